/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See names.h.
 */

#include "config.h"

#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "cmd/adopt/names.h"
#include "cmd/cmd.h"
#include "cmd/units.h"
#include "digest/hash.h"

#define TAG_BYTES 6

void
adopt_names_make (struct adopt_names *n, const char *control)
{
  const struct digest_key key = { .block = DIGEST_BLOCK_MIN };
  uint8_t digest[DIGEST_SIZE * (PATH_MAX / DIGEST_BLOCK_MIN + 1)];
  size_t length = strlen (control);
  unsigned long long tag = 0;

  digest_blocks (&key, control, length < PATH_MAX ? length : PATH_MAX, digest);
  for (unsigned i = 0; i < TAG_BYTES; i++)
    tag = tag << 8 | digest[i];

  snprintf (n->node, sizeof n->node, "nbdmirror-server-%012llx", tag);
  snprintf (n->job, sizeof n->job, "nbdmirror-job-%012llx", tag);
  snprintf (n->filter, sizeof n->filter, "nbdmirror-move-%012llx", tag);
  snprintf (n->image, sizeof n->image, "nbdmirror-disk-%012llx", tag);
  snprintf (n->file, sizeof n->file, "nbdmirror-file-%012llx", tag);
}

bool
adopt_word_ok (const char *option, const char *value, const char *words)
{
  if (value == NULL || units_is_word (value, words))
    return true;
  cmd_usage_error ("%s '%s': must be one of %s", option, value, words);
  return false;
}
