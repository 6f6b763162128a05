/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What `--disk` of `nbdmirror migrate` says:
 *
 *   CONTROL=DEST[,NAME=VALUE...]
 *
 * A comma within CONTROL, DEST or a value is written twice, as QEMU has it.  No I/O, so that it is
 * tested exhaustively.
 */

#ifndef NBDMIRROR_CMD_MIGRATE_DISK_OPTION_H
#define NBDMIRROR_CMD_MIGRATE_DISK_OPTION_H

#include <stdbool.h>

#include "cmd/cmd.h"
#include "mirror/job/sync.h"

struct disk_option {
  char *control, *dest;
  char *name;                  /* with --adopt: of the guest's device; else NULL */
  char *image, *discard, *aio; /* for --adopt and --give-back; NULL: not given */
  char *base, *base_format;    /* what SYNC points to; NULL: not given */
  struct sync_options sync;
  bool have_sync; /* it was given */
  bool verify;    /* the copy is verified before the guest moves */
};

/* What may follow CONTROL=DEST, for a table of options. */
enum {
  DISK_OPTION_SYNC = 0x600,
  DISK_OPTION_BASE,
  DISK_OPTION_BASE_FORMAT,
  DISK_OPTION_TRUST_BASE,
  DISK_OPTION_VERIFY,
  DISK_OPTION_IMAGE,
  DISK_OPTION_DISCARD,
  DISK_OPTION_AIO,
  DISK_OPTION_END
};
#define DISK_OPTION_PARTS                                                                          \
  { ",sync", DISK_OPTION_SYNC, "full|top|base|compare|incremental|auto",                           \
    "what to send of this disk, as with --sync of 'mirror'" },                                     \
      { ",base", DISK_OPTION_BASE, "IMAGE", "the base for sync=base and sync=top" },               \
      { ",base-format", DISK_OPTION_BASE_FORMAT, "FORMAT", "the base's format (default raw)" },    \
      { ",trust-base", DISK_OPTION_TRUST_BASE, "on|off",                                           \
        "where the destination does not tell the digest of its base, go on after a sample" },      \
      { ",verify", DISK_OPTION_VERIFY, "on|off",                                                   \
        "verify the copy before the guest moves; a difference rolls back (exit status 5)" },       \
      { ",image", DISK_OPTION_IMAGE, "FILE",                                                       \
        "with --give-back: the image that the destination's 'receive' writes" },                   \
      { ",discard", DISK_OPTION_DISCARD, "ignore|unmap", "as for 'adopt' and 'give-back'" },       \
  {                                                                                                \
    ",aio", DISK_OPTION_AIO, "threads|native|io_uring", "as for 'adopt' and 'give-back'"           \
  }

/* Read TEXT into *D.  NULL, or the reason why it is refused (base/text.h, the caller frees it).
 * Free *D in either case. */
char *disk_option_parse (const char *text, struct disk_option *d);
void disk_option_free (struct disk_option *d);

#endif
