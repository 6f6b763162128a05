/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See rollback-token.h.
 */

#include "config.h"

#include <string.h>

#include "control/rollback-token.h"

bool
rollback_token_valid (const char *token)
{
  size_t n = strspn (token, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");

  return n >= 1 && n <= ROLLBACK_TOKEN_MAX && token[n] == '\0';
}
