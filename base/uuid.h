/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Random UUIDs (version 4, RFC 9562).  Any thread may call these functions.
 */

#ifndef NBDMIRROR_BASE_UUID_H
#define NBDMIRROR_BASE_UUID_H

#include <stdbool.h>
#include <stdint.h>

#define UUID_TEXT_BYTES 37 /* 36 characters and the NUL */

/* Fill UUID with a new one.  It cannot fail: without a source of random numbers the UUID is made
 * from the clock, which still tells two of this host apart. */
void uuid_make (uint8_t uuid[16]);

/* Write UUID as 8-4-4-4-12 hexadecimal digits in lower case. */
void uuid_text (const uint8_t uuid[16], char text[UUID_TEXT_BYTES]);

/* Read such a text.  False: it is none. */
bool uuid_parse (const char *text, uint8_t uuid[16]);

#endif
