/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * At which checkpoint of its source a received disk stands, so that `--sync incremental` needs no
 * other proof.
 *
 * A disk stands at a checkpoint if it holds, in each block that the source has not changed since
 * the checkpoint, what the source holds there.  The mirror says so when its job ends, after its
 * last flush.  The filter then keeps that in an extended attribute of the disk's file.
 *
 *   unknown --the mirror says so--> recorded --declared, then a mutation--> declared
 *      ^                               |                                       |
 *      +----- any other mutation ------+---------------------------------------+
 *
 * The attribute is removed, and that is durable, before the first mutation begins.  A session that
 * has declared to write only what was changed since the checkpoint does not change the truth of it,
 * so the server still knows it in memory.  It writes the attribute again when it ends in order.
 * After a crash nothing is known.
 *
 * The attribute also has the file's size, inode and time of modification, so that what others write
 * while no server has the disk is noticed.
 *
 * Any thread may call these functions.  The lock is held over system calls; it is taken before the
 * lock of the admission.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_RECEIVE_STANDING_H
#define NBDMIRROR_NBD_PLUGIN_RECEIVE_STANDING_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/uuid.h"
#include "nbd-plugin/receive/admission.h"

struct standing {
  pthread_mutex_t lock;
  _Atomic bool known;       /* mutations have to look */
  _Atomic uint64_t allowed; /* the generation whose mutations need not; 0: none */

  /* Under lock. */
  struct admission *admission;
  int fd;                     /* the disk's file, borrowed; -1: it cannot keep anything */
  bool recorded;              /* the attribute is there */
  char uuid[UUID_TEXT_BYTES]; /* the checkpoint's */
  uint64_t declared;          /* the generation that was declared; 0: none */
  char declared_id[RECEIVE_ID_MAX + 1];
};

void standing_init (struct standing *s, struct admission *a);
/* Read what FD's attribute says.  A block device has none, and stands nowhere. */
void standing_load (struct standing *s, int fd);
/* The server ends in order: record what is known. */
void standing_unload (struct standing *s);

/* The checkpoint's UUID, or "". */
void standing_look (struct standing *s, char uuid[UUID_TEXT_BYTES]);

/* Session ID says: from now on I write only what was changed since TO, and I know that TO is FROM
 * or an earlier checkpoint of the same disk.  0, or an errno: ESTALE the disk does not stand at
 * FROM, ESHUTDOWN the session is not the current one. */
int standing_declare (struct standing *s, const char *id, const char *from, const char *to);
/* Session ID continues session LAST, whose mutations have ended. */
void standing_follow (struct standing *s, const char *id, const char *last, uint64_t generation);
/* Session ID says that the disk stands at UUID.  0, or an errno: ESHUTDOWN as above, EBUSY
 * mutations are in flight, ENOTSUP the disk's file cannot keep it, or why that has failed. */
int standing_record (struct standing *s, const char *id, const char *uuid);

/* The slow part of standing_mutates(). */
int standing_lose (struct standing *s, uint64_t generation);

/* A mutation of GENERATION (0: the guest) is about to begin.  The caller was counted in by the
 * admission, or has sealed it, before.  0, or an errno: then the mutation must not be done. */
static inline int
standing_mutates (struct standing *s, uint64_t generation)
{
  if (!atomic_load (&s->known) || (generation != 0 && atomic_load (&s->allowed) == generation))
    return 0;
  return standing_lose (s, generation);
}

#endif
