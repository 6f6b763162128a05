/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Random UUIDs.  See uuid.h.
 */

#include "config.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/uuid.h"

void
uuid_make (uint8_t uuid[16])
{
  if (getentropy (uuid, 16) == -1) {
    uint64_t now = clock_ns ();
    memset (uuid, 0, 16);
    memcpy (uuid, &now, sizeof now);
  }
  uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x40); /* version 4 */
  uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80); /* the variant of RFC 9562 */
}

void
uuid_text (const uint8_t uuid[16], char text[UUID_TEXT_BYTES])
{
  char *at = text;

  for (unsigned i = 0; i < 16; i++)
    at += sprintf (at, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
}

static int
digit (char c)
{
  return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool
uuid_parse (const char *text, uint8_t uuid[16])
{
  for (unsigned i = 0; i < 16; i++) {
    if ((i == 4 || i == 6 || i == 8 || i == 10) && *text++ != '-')
      return false;
    int high = digit (text[0]), low = high == -1 ? -1 : digit (text[1]);
    if (low == -1)
      return false;
    uuid[i] = (uint8_t)(high << 4 | low);
    text += 2;
  }
  return *text == '\0';
}
