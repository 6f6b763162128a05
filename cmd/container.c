/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See container.h.  The magic numbers are those of the formats' specifications.
 */

#include "config.h"

#include <string.h>

#include "cmd/container.h"

static const struct magic {
  const char *format;
  unsigned offset, len;
  const char *bytes;
} magics[] = {
  { "qcow2", 0, 8, "QFI\xfb\0\0\0\x02" },
  { "qcow2", 0, 8, "QFI\xfb\0\0\0\x03" },
  { "qcow", 0, 8, "QFI\xfb\0\0\0\x01" },
  { "qed", 0, 4, "QED\0" },
  { "vmdk", 0, 4, "KDMV" },
  { "vmdk", 0, 4, "COWD" },
  { "vmdk", 0, 21, "# Disk DescriptorFile" },
  { "vdi", 64, 4, "\x7f\x10\xda\xbe" },
  { "vpc", 0, 8, "conectix" },
  { "vhdx", 0, 8, "vhdxfile" },
  { "parallels", 0, 16, "WithoutFreeSpace" },
  { "parallels", 0, 16, "WithouFreSpacExt" },
};

const char *
container_format (const uint8_t *head, size_t len)
{
  for (size_t i = 0; i < sizeof magics / sizeof magics[0]; i++) {
    const struct magic *m = &magics[i];

    if (m->offset + m->len <= len && memcmp (head + m->offset, m->bytes, m->len) == 0)
      return m->format;
  }
  return NULL;
}
