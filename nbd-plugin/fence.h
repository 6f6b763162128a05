/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The durable fence record: the file CONTROL.fence beside the control socket.  While it is there,
 * this disk was handed over and no server may let a guest write to it (rule R10).
 *
 *   NONE ---draft---> DRAFT ---commit---> COMMITTED ---remove---> NONE
 *                       +------remove------------------------------^
 *
 * The draft, CONTROL.fence.draft, is durable before the gate is held, so before the disk is called prepared:
 * from then on the coordinator may commit at any instant, even if this server dies before it hears of it.
 * So a draft found at start is a hand-off in doubt, and as good as a fence until somebody who
 * knows how it ended says so.  Committing is a rename, which needs no new disk space.
 *
 * Used by one thread (main thread before the fork, then the control thread).
 */

#ifndef NBDMIRROR_FENCE_H
#define NBDMIRROR_FENCE_H

#include <stdbool.h>
#include <stdint.h>

#define FENCE_TOKEN_MAX 64

enum fence_state { FENCE_NONE, FENCE_DRAFT, FENCE_COMMITTED };

struct fence_record {
  char token[FENCE_TOKEN_MAX + 1]; /* "" if unknown: the record could not be read */
  uint64_t generation;
  uint64_t disk_size;
};

struct fence {
  char *path;       /* owned */
  char *draft_path; /* owned */
  enum fence_state state;
  struct fence_record record; /* valid unless NONE */
};

/* 1 to 64 characters of [A-Za-z0-9._-] */
bool fence_token_valid (const char *token);

/* Look what is there for the control socket CONTROL.  0, and the state is set; *WARNING (caller
 * frees) is set to a message where the record is damaged: it counts as a fence then.  -1 with
 * *ERROR (caller frees). */
int fence_open (struct fence *f, const char *control, char **warning, char **error);
void fence_close (struct fence *f); /* leaves the files alone */

/* All: 0, or -1 with *ERROR (caller frees); the state changes only on success. */
int fence_draft (struct fence *f, const struct fence_record *record, char **error);
int fence_commit (struct fence *f, char **error);
int fence_remove (struct fence *f, char **error); /* draft and record; durable */

#endif
