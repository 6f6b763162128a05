/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The names of digest exports.  See export-name.h.
 */

#include "config.h"

#include <stdio.h>
#include <string.h>

#include "digest/export-name.h"

#define SEED_DIGITS 16
#define BLOCK_DIGITS 7 /* of DIGEST_BLOCK_MAX */

void
digest_name_format (char name[DIGEST_NAME_MAX], const struct digest_key *key)
{
  snprintf (name, DIGEST_NAME_MAX, DIGEST_PREFIX "%016" PRIx64 ".%" PRIu32, key->seed, key->block);
}

bool
digest_name_is_ours (const char *name)
{
  return strncmp (name, DIGEST_PREFIX, strlen (DIGEST_PREFIX)) == 0;
}

bool
digest_name_is_base (const char *name, const char **of)
{
  size_t length = strlen (DIGEST_BASE);

  if (strncmp (name, DIGEST_BASE, length) != 0 || (name[length] != '\0' && name[length] != '/'))
    return false;
  *of = name[length] == '/' ? name + length + 1 : name + length;
  return !digest_name_is_ours (*of);
}

/* Read SEED.  What follows it, or NULL. */
static const char *
parse_seed (const char *p, uint64_t *seed)
{
  static const char digits[] = "0123456789abcdef";

  *seed = 0;
  for (unsigned i = 0; i < SEED_DIGITS; i++, p++) {
    const char *digit = *p != '\0' ? strchr (digits, *p) : NULL;
    if (digit == NULL)
      return NULL;
    *seed = *seed << 4 | (uint64_t)(digit - digits);
  }
  return p;
}

/* Read BLOCK.  What follows it, or NULL. */
static const char *
parse_block (const char *p, uint32_t *block)
{
  unsigned n = 0;

  *block = 0;
  for (; *p >= '0' && *p <= '9'; n++, p++) {
    if (n == BLOCK_DIGITS || (n == 0 && *p == '0'))
      return NULL;
    *block = *block * 10 + (uint32_t)(*p - '0');
  }
  return n > 0 ? p : NULL;
}

const char *
digest_name_parse (const char *name, struct digest_key *key, const char **of)
{
  const char *p = parse_seed (name + strlen (DIGEST_PREFIX), &key->seed);

  if (p == NULL || *p != '.')
    return "the seed has 16 hexadecimal digits (0-9, a-f), and a dot follows it";
  p = parse_block (p + 1, &key->block);
  if (p == NULL || key->block < DIGEST_BLOCK_MIN || key->block > DIGEST_BLOCK_MAX
      || (key->block & (key->block - 1)) != 0)
    return "the block size is a power of two from 4096 to 1048576";
  if (*p != '\0' && *p != '/')
    return "after the block size the name ends, or a slash and an export's name follow";
  *of = *p == '/' ? p + 1 : p;
  if (digest_name_is_ours (*of))
    return "there are no digests of digests";
  return NULL;
}

bool
digest_description_parse (const char *text, const struct digest_key *key, uint64_t *size)
{
  char expected[DIGEST_DESCRIPTION_MAX];
  const char *number = strstr (text, "size=");

  if (number == NULL || sscanf (number, "size=%" SCNu64, size) != 1)
    return false;
  snprintf (expected, sizeof expected, DIGEST_DESCRIPTION, *size, key->block);
  return strcmp (text, expected) == 0;
}
