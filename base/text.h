/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Strings that cannot fail half-way.  Where memory runs out, the text is the constant
 * "out of memory": so nobody has to ask whether a message exists before showing it.
 *
 * Whatever comes from here is freed with text_free(), never with free().  All functions may be
 * called from any thread.
 */

#ifndef NBDMIRROR_BASE_TEXT_H
#define NBDMIRROR_BASE_TEXT_H

#include <stdarg.h>

/* A formatted text, never NULL.  The caller frees it with text_free(). */
char *text_printf (const char *format, ...) __attribute__ ((format (printf, 1, 2)));
char *text_vprintf (const char *format, va_list args) __attribute__ ((format (printf, 1, 0)));

/* A copy of TEXT, never NULL.  TEXT itself must not be NULL.  The caller frees it with
 * text_free(). */
char *text_copy (const char *text);

/* Put a formatted text into *WHERE, for a function that tells its caller what went wrong.  What
 * stood in *WHERE before is not freed.  WHERE may be NULL: then nobody wants to know.
 * Always returns -1, so that a function can end with `return text_error (error, …)`. */
int text_error (char **where, const char *format, ...) __attribute__ ((format (printf, 2, 3)));

/* Free a text of this file, any other text from malloc(), or NULL. */
void text_free (char *text);

/* For a local variable: text_free() it when it goes out of scope. */
void text_cleanup (char **text);
#define CLEANUP_TEXT __attribute__ ((cleanup (text_cleanup)))

#endif
