/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The gate: may a guest's mutation go to the layer below now, must it wait, or is it refused?  It
 * also counts the mutations that are below (rule R3).  It knows nothing of nbdkit, so that it is
 * tested alone; the way to notice a shutdown is a callback.
 *
 *            hold                     the word says "commit"
 *   OPEN ------------> HELD ---------------------------------> FENCED
 *    ^                  |   (only if it was prepared)            |
 *    |  lease ended, released, the word says "abort"             |
 *    +------------------+                                        |
 *    +-----------------------------------------------------------+  rollback
 *
 * A hold that was prepared to be released is not fenced at the commit: the gate stays held until
 * the control thread has taken the job's region away and calls gate_release_committed(), so that
 * nothing that comes after the commit is copied any more.  Its lease goes on meanwhile.
 *
 * A hold is a lease: whoever looks at the gate after the lease's end, a waiting guest thread or the
 * control thread, ends it, so that a control thread that is stuck in a slow file system keeps no
 * guest waiting.  Each hold has a generation, never used again, nor by the next server: generations
 * begin at the date in microseconds.  A prepared hold ends only through
 * its decision word: compare-and-swap to "abort" first, then what the word says is done.
 *
 * The order that makes a drain see every mutation (model: guest process, GATEINC):
 *   mutation:  count up; look at the gate; if not open count down, wait, and start again
 *   drain:     gate held; then each shard of the counter is seen at 0 once
 * All of these are sequentially consistent.  Who came before the hold is counted until its dirty
 * bits are set; who comes later sees the hold.  One look per shard is enough, at any time while
 * this generation is held, since nobody who is counted later passes.
 *
 * To wait for those who are below now while the gate stays open (gate_all_passed()), each counter
 * has two halves.  A mutation counts in the one whose turn it is, and remembers which that was.
 * Where a half was seen at 0, all who had counted there before have ended; and as soon as the other
 * one has the turn, it falls to 0 however busy the guest is.  Who has read the turn just before it
 * changed may still count in the old half, but each thread does that once only.
 *
 * Locks: `lock` protects everything but the atomics; it is a leaf, and nothing slow is done under
 * it.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_GATE_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_GATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "control/decision.h"

#define GATE_SHARDS 16u
#define GATE_SLICE_NS (100 * NS_PER_MS) /* longest time between two probes of a waiter */

enum gate_mode { GATE_OPEN = 0, GATE_HELD = 1, GATE_FENCED = 2 };
#define GATE_MODE_MASK 3u
#define GATE_DRAINING 4u /* somebody wants to know when the counter falls to 0 */

struct gate_shard {
  _Alignas(64) _Atomic uint64_t n[2];
};

struct gate {
  struct gate_shard in_flight[GATE_SHARDS];
  _Alignas(64) _Atomic uint32_t word; /* enum gate_mode | GATE_DRAINING */
  _Atomic uint32_t turn;              /* the half in which mutations count that come now: 0 or 1 */
  int wake_fd;                        /* eventfd, owned: the control thread should look */

  _Alignas(64) pthread_mutex_t lock;
  pthread_cond_t changed; /* the mode changed */
  uint64_t base;          /* generations begin above it */
  uint64_t generation;    /* of the running hold, or of the last one; 0: none yet */
  int64_t held_ns;        /* when it began, in clock_ns() */
  int64_t lease_end_ns;
  uint32_t seen_empty; /* a bit for each half of a shard that was seen at 0 in this hold */
  bool prepared;
  bool releases; /* at the commit it is released and not fenced */
  bool keep;     /* at the commit waiters go on waiting, and who comes later joins them */
  bool stopping; /* the server ends: waiters give up, the gate stays as it is */
  struct decision *decision; /* borrowed while prepared */
  const char *reason;        /* why the last hold ended; a constant */
  unsigned waiting;          /* mutations that wait */
};

/* A consistent copy for the control thread. */
struct gate_view {
  enum gate_mode mode;
  uint64_t generation, next_generation;
  bool prepared, drained;
  int64_t held_ns, lease_end_ns;
  const char *reason;
  unsigned waiting;
};

/* Called by waiters, without the lock, at least every GATE_SLICE_NS.  0 to go on, or the errno with
 * which the mutation shall fail (ESHUTDOWN). */
typedef int gate_probe (void *opaque);

int gate_init (struct gate *g); /* 0, or -1 with errno */
void gate_destroy (struct gate *g);

/* The slow half of gate_enter. */
int gate_wait (struct gate *g, unsigned shard, unsigned *half, gate_probe *probe, void *opaque);
void gate_wake (struct gate *g);

/* Before a mutation.  SHARD < GATE_SHARDS.  Returns 0: it is counted and may pass, gate_leave() is
 * owed with *HALF; EPERM: fenced; or what PROBE returned, or ESHUTDOWN. */
static inline int
gate_enter (struct gate *g, unsigned shard, unsigned *half, gate_probe *probe, void *opaque)
{
  *half = atomic_load (&g->turn);
  atomic_fetch_add (&g->in_flight[shard].n[*half], 1);
  if (__builtin_expect ((atomic_load (&g->word) & GATE_MODE_MASK) == GATE_OPEN, 1))
    return 0;
  return gate_wait (g, shard, half, probe, opaque);
}

/* After the mutation's bits and counters are set (R3). */
static inline void
gate_leave (struct gate *g, unsigned shard, unsigned half)
{
  if (atomic_fetch_sub (&g->in_flight[shard].n[half], 1) == 1
      && (atomic_load (&g->word) & GATE_DRAINING) != 0)
    gate_wake (g);
}

/* Has every mutation that was below when *SEEN was set to 0 ended?  Call it again until it has.
 * Several may wait, each with a *SEEN of its own. */
bool gate_all_passed (struct gate *g, uint32_t *seen);

/* Mutations below now; a sum of looks at different instants, for status only. */
uint64_t gate_in_flight (const struct gate *g);

/* Close the gate for LEASE_NS.  0 and *GENERATION; or EBUSY (held already), EPERM (fenced),
 * ESHUTDOWN. */
int gate_hold (struct gate *g, int64_t lease_ns, uint64_t *generation);

/* Has everything that passed before this hold ended?  0: yes; EAGAIN: not yet; ETIME: the hold is
 * over (any reason), or was never. */
int gate_drained (struct gate *g, uint64_t generation);

/* From now on this hold ends only as WORD says (see above).  0, or ETIME (hold over), EAGAIN (not
 * drained). WORD must live until the hold has ended. */
int gate_prepare (struct gate *g, uint64_t generation, struct decision *word, bool keep);

/* The same, but at the commit the gate is released and not fenced. */
int gate_prepare_release (struct gate *g, uint64_t generation, struct decision *word);

/* The word of that hold says "commit", and nothing marks the job's region any more: open the gate.
 * 0, or ESTALE: the hold was over before, so the guest may have written since. */
int gate_release_committed (struct gate *g, uint64_t generation);

/* Look at the lease and at the word, and do what they say. */
void gate_settle (struct gate *g);

/* End a hold early. GENERATION 0 means whichever runs.  REASON is a constant.  0: the gate is open;
 * EALREADY: it is fenced, or the word said "commit" and so it is now, or is owed
 * gate_release_committed(); ESTALE: another generation,
 * or not held. */
int gate_release (struct gate *g, uint64_t generation, const char *reason);

void gate_fence (struct gate *g, uint64_t generation); /* at start: a fence record was found */
void gate_unfence (struct gate *g);                    /* rollback */

/* The server stops: waiting mutations fail with ESHUTDOWN, the gate opens for nobody any more.  A
 * hold that is prepared is still to be released: that decides its word, and fences if it says
 * "commit". */
void gate_stop (struct gate *g);

void gate_look (struct gate *g, struct gate_view *view); /* settles first */

#endif
