/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Is the backup of a disk to be full or incremental, and why?  An incremental one is right only if
 * the file below it holds the disk as it was at a checkpoint or later, and every change since that
 * checkpoint was recorded.  All of that is known here from plain values.  Pure.
 */

#ifndef NBDMIRROR_BACKUP_PLAN_H
#define NBDMIRROR_BACKUP_PLAN_H

#include <stdbool.h>
#include <stdint.h>

/* The most files in a chain.  Whoever reads the last one opens all of them, and few processes may
 * open more than 1,024 files.  QEMU 7.2 ends by a signal where it reads through 1,100. */
#define BACKUP_CHAIN_MAX 500

enum backup_mode { BACKUP_AUTO, BACKUP_FULL, BACKUP_INCREMENTAL };

/* What the disk's server says of the checkpoint that the last backup has added. */
enum backup_checkpoint {
  CHECKPOINT_NO_STATE, /* the server keeps no state file */
  CHECKPOINT_MISSING,
  CHECKPOINT_OTHER, /* there is one of that name, with another UUID */
  CHECKPOINT_INCONSISTENT,
  CHECKPOINT_GOOD
};

struct backup_facts {
  enum backup_mode mode;         /* what the user asks for */
  const char *parent;            /* the last backup of this disk; NULL: there is none */
  const char *chain_fault;       /* NULL, or why nothing can be put on it */
  unsigned chain_files;          /* of its chain, with its own */
  const char *parent_checkpoint; /* its checkpoint; NULL: it has none */
  uint64_t size, parent_size;    /* of the disk, bytes */
  enum backup_checkpoint checkpoint;
  const char *checkpoint_reason; /* why it is inconsistent; NULL: not said */
};

/* True: incremental.  *REASON (for text_free()) says why it is so, or why it is full. */
bool backup_plan (const struct backup_facts *f, char **reason);

#endif
