/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The durable fence record: the file CONTROL.fence beside the control socket.  While it is there,
 * this disk was handed over and no server may let a guest write to it (rule R10).
 *
 *   NONE ---draft---> DRAFT ---commit---> COMMITTED ---remove---> NONE
 *                       +------remove------------------------------^
 *
 * The draft, CONTROL.fence.draft, is durable before the gate is held, so before the disk is called
 * prepared: from then on the coordinator may commit at any instant, even if this server dies before
 * it hears of it. So a draft found at start is a hand-off in doubt, and as good as a fence until
 * somebody who knows how it ended says so.  Committing is a rename, which needs no new disk space.
 *
 * Before "prepared" nothing can have been committed, and blocks may be left that were never copied.
 * So the draft is marked just before the disk is called prepared.  The mark is not made durable,
 * since the guest would wait for that: it outlives a server that is killed, but perhaps not the
 * host.  A draft of this boot without the mark is therefore none; one of another boot is in doubt.
 *
 * A disk that was moved to other storage of this host keeps its control socket (nbdmirror
 * evacuate-disk).  The record then names the successor: a server of that very file or device is not
 * meant by it.
 *
 * Used by one thread (main thread before the fork, then the control thread).
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_FENCE_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_FENCE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "control/rollback-token.h"

#define FENCE_SUCCESSOR_MAX 1023

enum fence_state { FENCE_NONE, FENCE_DRAFT, FENCE_COMMITTED };

struct fence_record {
  char token[ROLLBACK_TOKEN_MAX + 1]; /* "" if unknown: the record could not be read */
  uint64_t generation;
  uint64_t disk_size;
  char successor[FENCE_SUCCESSOR_MAX + 1]; /* absolute path, or "" */
  bool prepared; /* the disk may have been called prepared, and so may be committed */
};

struct fence {
  char *path;       /* owned */
  char *draft_path; /* owned */
  enum fence_state state;
  struct fence_record record; /* valid unless NONE */
  off_t mark_offset;          /* of the mark in a draft that we have written */
  bool superseded;            /* a record is there, but of the disk that this one succeeds */
};

/* Look what is there for the control socket CONTROL, whose disk is kept in the file or
 * device DISK (absolute; NULL: not known).  0, and the state is set; *WARNING (text_free) is set to
 * a message where the record is damaged: it counts as a fence then.  -1 with *ERROR (text_free).
 */
int fence_open (struct fence *f, const char *control, const char *disk, char **warning,
                char **error);
void fence_close (struct fence *f); /* leaves the files alone */

/* All: 0, or -1 with *ERROR (text_free); the state changes only on success. */
int fence_draft (struct fence *f, const struct fence_record *record, char **error);
/* The disk is about to be called prepared.  Does not wait for the medium. */
int fence_mark_prepared (struct fence *f, char **error);
int fence_commit (struct fence *f, char **error);
int fence_remove (struct fence *f, char **error); /* draft and record; durable */

/* Is the committed record in a file system in memory, and lost with the power? */
bool fence_in_memory (const struct fence *f);

#endif
