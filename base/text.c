/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See text.h.
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"

/* Not const, because a text may be changed by its owner in place. */
static char out_of_memory[] = "out of memory";

char *
text_vprintf (const char *format, va_list args)
{
  char *text;

  return vasprintf (&text, format, args) == -1 ? out_of_memory : text;
}

char *
text_printf (const char *format, ...)
{
  va_list args;

  va_start (args, format);
  char *text = text_vprintf (format, args);
  va_end (args);
  return text;
}

char *
text_copy (const char *text)
{
  char *copy = strdup (text);

  return copy != NULL ? copy : out_of_memory;
}

int
text_error (char **where, const char *format, ...)
{
  if (where != NULL) {
    va_list args;

    va_start (args, format);
    *where = text_vprintf (format, args);
    va_end (args);
  }
  return -1;
}

void
text_free (char *text)
{
  if (text != out_of_memory)
    free (text);
}

void
text_cleanup (char **text)
{
  text_free (*text);
}
