/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Does a guest start from a backup?
 */

#ifndef NBDMIRROR_CMD_REPOSITORY_BOOT_H
#define NBDMIRROR_CMD_REPOSITORY_BOOT_H

#include <stdatomic.h>
#include <stdint.h>

#include "backup/repository.h"

struct boot {
  const char *repository; /* its path */
  const char *command;    /* for /bin/sh; NULL: nothing is to be booted.  In its environment
                             NBDMIRROR_URI is the first disk's URI, NBDMIRROR_URIS those of all */
  const char *mark;       /* a text that it prints when the guest is up */
  uint64_t limit_ms;      /* how long that may take */
  _Atomic int *signal;    /* not 0: give up */
};

/* Serve the disks of E on throw-away overlays, run the command, and wait for its mark.  The command
 * and all that it has started is then killed.  NULL, or why it did not come (for text_free()). */
char *boot_backup (const struct boot *b, const struct backup_entry *e);

#endif
