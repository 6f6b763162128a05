/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A hand-off as its own files see it.
 */

#ifndef NBDMIRROR_MIRROR_HANDOFF_INTERNAL_H
#define NBDMIRROR_MIRROR_HANDOFF_INTERNAL_H

#include "mirror/handoff/disk.h"

struct coordinator {
  struct coordinator_disk *disks; /* owned */
  unsigned nr;
  struct decision
      *decision; /* owned; NULL: nothing is prepared, or the word cannot be had any more */
  char token[ROLLBACK_TOKEN_MAX + 1];
};

/* Without connections, token and word. */
struct coordinator *coordinator_alloc (char *const controls[], unsigned nr, char **error);

#endif
