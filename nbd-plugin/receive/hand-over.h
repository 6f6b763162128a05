/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A disk that is tracked here (`nbdmirror receive --control`) goes over to its guest: the mirror
 * filter below begins a checkpoint before the guest's first mutation (control/take-over.h).
 *
 * The checkpoint has an identity that the mirror has chosen, so that the source's disk can be
 * recognised later: it holds what this disk held at that instant.  This is true only if the session
 * that told the identity was the last one that wrote.  So the identity goes with that session: if
 * another one came after it, the checkpoint has none, and does not begin.
 *
 * Any thread may call these functions.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_RECEIVE_HAND_OVER_H
#define NBDMIRROR_NBD_PLUGIN_RECEIVE_HAND_OVER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/uuid.h"
#include "control/take-over.h"
#include "nbd-plugin/receive/admission.h"

struct hand_over {
  pthread_mutex_t lock;
  struct take_over_page *page; /* NULL: the disk is not tracked here */

  /* Under lock. */
  uint8_t uuid[16];    /* what was told, */
  uint64_t generation; /* by the session of this generation; 0: nothing */
};

void hand_over_init (struct hand_over *h);
void hand_over_destroy (struct hand_over *h);

/* Can a checkpoint begin here? */
bool hand_over_records (const struct hand_over *h);

/* Session ID says that the checkpoint is to be UUID.  0, or an errno: ESHUTDOWN the session is not
 * the current one, ENOTSUP nothing is recorded here, EINVAL that is no UUID. */
int hand_over_tell (struct hand_over *h, struct admission *a, const char *id, const char *uuid);

/* A is sealed, and nothing of a mirror is in flight: the disk is the guest's.  Does not wait. */
void hand_over_begin (struct hand_over *h, struct admission *a);

/* The slow part of hand_over_guest_mutates(). */
int hand_over_wait (struct hand_over *h, struct admission *a, admission_pause pause, void *opaque);

/* A is sealed and over, and a mutation of the guest's is about to begin.  The first ones wait, for
 * at most ten seconds.  0, or PAUSE's errno: then the mutation must not be done. */
static inline int
hand_over_guest_mutates (struct hand_over *h, struct admission *a, admission_pause pause,
                         void *opaque)
{
  if (h->page == NULL || atomic_load (&h->page->state) >= TAKE_OVER_DONE)
    return 0;
  return hand_over_wait (h, a, pause, opaque);
}

#endif
