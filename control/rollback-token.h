/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The rollback token of a hand-off, which whoever takes it back must know.
 */

#ifndef NBDMIRROR_CONTROL_ROLLBACK_TOKEN_H
#define NBDMIRROR_CONTROL_ROLLBACK_TOKEN_H

#include <stdbool.h>

#define ROLLBACK_TOKEN_MAX 64 /* characters */

/* 1 to 64 characters of [A-Za-z0-9._-]? */
bool rollback_token_valid (const char *token);

#endif
