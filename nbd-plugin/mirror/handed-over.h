/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the disk's own file says after a hand-off: it stands at the checkpoint that begins at the
 * destination at that instant (nbd-plugin/standing-record.h).  So the disk can come back later, and
 * only what was changed since is sent.
 *
 *   nothing --commit--> being recorded --durable--> recorded --rollback, or served anew--> nothing
 *
 * If the disk had been received here, its file says that it is sealed, so that no mirror may write
 * to it.  After the commit that is not true any more, and is removed as well.  After a rollback the
 * disk is its guest's, wherever it came from, and its file says so.
 *
 * The record must be gone before anybody writes to the disk again.  It is made only after the
 * commit, since it takes as long as a flush of the disk; a server that is killed before that leaves
 * none.  A thread makes it, so that clients of the control socket do not wait.
 *
 * Control thread, or before it runs.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_HANDED_OVER_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_HANDED_OVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/uuid.h"

struct handed_over {
  pthread_t thread;
  bool thread_runs;           /* borrows the disk's file, if we have it open */
  char uuid[UUID_TEXT_BYTES]; /* "": none */
  _Atomic bool recorded;
};

struct mirror;

/* At the start, before any mutation: nobody has handed this disk over, or it was taken back. */
void handed_over_forget_old (struct mirror *m);

/* At the start of a server of a disk that was handed over: what a server that was killed after the
 * commit had left undone. */
void handed_over_unseal (struct mirror *m);

/* The hand-off is committed, and the fence durable.  UUID: the checkpoint's; NULL, or no
 * UUID: the destination begins none.  It is recorded only in a file whose bytes the guest sees. */
void handed_over_record (struct mirror *m, const char *uuid);

/* Before a rollback.  0, or -1 with *ERROR (text_free()): then there must be none. */
int handed_over_take_back (struct mirror *m, char **error);

/* The checkpoint at which the disk stands, or NULL. */
const char *handed_over_look (const struct mirror *m);

/* The server ends: wait for the thread. */
void handed_over_end (struct mirror *m);

#endif
