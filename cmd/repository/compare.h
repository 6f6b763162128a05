/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup-verify --compare: has the tracking of a disk missed a change since its last backup?
 */

#ifndef NBDMIRROR_CMD_REPOSITORY_COMPARE_H
#define NBDMIRROR_CMD_REPOSITORY_COMPARE_H

#include "cmd/repository/repository.h"

struct compare {
  const char *disk;      /* only this one; NULL: all */
  char *const *controls; /* DISK=CONTROL, where a disk's server is now */
  unsigned nr_controls;
  bool json;
  _Atomic int *signal; /* not 0: stop */
};

/* Compare each disk that O has a backup of with the last one.  What was missed is told, and its
 * server records it, so that the next backup copies it.  An exit status, after messages. */
int compare_disks (struct opened *o, const struct compare *how);

#endif
