/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the steps of taking backups out of a repository share (drop.c has their order).  A function
 * that returns a status returns EXIT_DONE, or an exit status after a message.
 */

#ifndef NBDMIRROR_CMD_REPOSITORY_DROP_INTERNAL_H
#define NBDMIRROR_CMD_REPOSITORY_DROP_INTERNAL_H

#include <stdatomic.h>
#include <stddef.h>

#include "backup/drop-plan.h"
#include "backup/repository.h"
#include "cmd/repository/repository.h"

/* One disk's backups, the oldest first. */
struct line {
  char *id; /* owned */
  int lock, prune_lock;
  struct backup_entry **entry;
  struct manifest_disk **disk;
  struct drop_link *links;
  struct drop_step *steps;
  size_t nr, nr_steps;
};

struct dropping {
  struct opened *o;
  _Atomic int *signal;
  struct line *lines;
  size_t nr_lines;
};

/* ---- drop.c ---- */

/* Say ERROR, which is freed.  EXIT_ERROR. */
int drop_fail (char *error);

/* Replace the manifest of E. */
int drop_write_entry (struct dropping *x, struct backup_entry *e);

/* Replace the text at WHERE by a copy of TEXT, which may be NULL. */
void drop_set_text (char **where, const char *text);

/* ---- drop-lines.c ---- */

/* Lock the disk ID, if it is not locked yet, and give it a line, which is filled later: the entries
 * may change until all locks are held. */
int drop_add_line (struct dropping *x, const char *id);

/* The same for all disks that share a manifest with one that has a line. */
int drop_add_neighbours (struct dropping *x);

/* Look up the backups of L's disk, and plan the steps that they need. */
int drop_fill_line (struct dropping *x, struct line *l);

/* Free all lines, and unlock their disks. */
void drop_free_lines (struct dropping *x);

/* ---- drop-steps.c ---- */

/* Carry out the steps of all lines, or leave off at a signal, between two of them. */
int drop_carry_out (struct dropping *x);

/* ---- drop-remove.c ---- */

/* Remove the files that no backup needs any more, and then the manifests that were dropped. */
int drop_remove (struct dropping *x);

#endif
