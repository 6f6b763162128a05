/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves that the containers that QEMU knows are told from raw disks by their first bytes, and that
 * nothing is told from too few bytes.
 */

#include "config.h"

#include <string.h>

#include "cmd/container.h"
#include "tests/unit/unit.h"

/* The format of a file that has LEN bytes of TEXT at OFFSET, and zeroes around them. */
static const char *
format_of (const char *text, size_t len, size_t offset)
{
  uint8_t head[CONTAINER_HEAD] = { 0 };

  memcpy (head + offset, text, len);
  return container_format (head, sizeof head);
}

static void
is_format (const char *text, size_t len, size_t offset, const char *want)
{
  const char *got = format_of (text, len, offset);

  cr_assert (got != NULL, "%s was not recognised", want);
  cr_assert (strcmp (got, want) == 0, "%s was taken for %s", want, got);
}

Test (container, known)
{
  is_format ("QFI\xfb\0\0\0\x03", 8, 0, "qcow2");
  is_format ("QFI\xfb\0\0\0\x02", 8, 0, "qcow2");
  is_format ("QFI\xfb\0\0\0\x01", 8, 0, "qcow");
  is_format ("KDMV\x01", 5, 0, "vmdk");
  is_format ("# Disk DescriptorFile\n", 22, 0, "vmdk");
  is_format ("\x7f\x10\xda\xbe", 4, 64, "vdi");
  is_format ("conectix", 8, 0, "vpc");
  is_format ("vhdxfile", 8, 0, "vhdx");
}

Test (container, raw)
{
  cr_assert (format_of ("", 0, 0) == NULL);
  cr_assert (format_of ("QFI\xfb\0\0\0\x04", 8, 0) == NULL, "no such version");
  cr_assert (format_of ("QFI\xfb\0\0\0\x03", 8, 1) == NULL, "not at the beginning");
  cr_assert (format_of ("\x7f\x10\xda\xbe", 4, 0) == NULL, "not where vdi has it");
  cr_assert (format_of ("LUKS\xba\xbe", 6, 0) == NULL, "a guest encrypts its own disk so");
  cr_assert (format_of ("\x55\xaa", 2, 510) == NULL, "a boot sector");
}

Test (container, short_files)
{
  static const uint8_t qcow2[] = "QFI\xfb\0\0\0\x03";

  for (size_t len = 0; len < 8; len++)
    cr_assert (container_format (qcow2, len) == NULL, "%zu bytes", len);
  cr_assert (container_format (qcow2, 8) != NULL);
}
