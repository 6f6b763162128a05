/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Urgent slots.  See urgent.h for the states and for what an answer means.
 *
 * urgent_posted has a bit for each slot that may be POSTED.  The filter sets it after the state;
 * the worker clears it before it tries to take the slot.  Nobody else clears it.  A slot that is
 * given up leaves its bit to the worker: clearing it there could take away the bit of the next
 * request in the same slot.
 *
 * The bell: the filter counts it up and calls the kernel only if somebody sleeps; the sleeper
 * counts itself in before the kernel compares the bell with what was read.  One of the two sees the
 * other (both are sequentially consistent).  A worker that died while it was counted in costs each
 * later request one system call and nothing else.
 */

#include "config.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "dirty-bitmap/urgent.h"

_Static_assert(sizeof (struct urgent_slot) == 64, "a slot is one cache line");
_Static_assert(URGENT_SLOTS <= INT_MAX, "a slot number is an int");

/* How often a state is fought over before it is left as it is: only a worker that scribbles over
 * the table makes it change more than twice. */
#define TRIES 8

static inline struct urgent_slot *
slot_at (const struct region *r, unsigned i)
{
  assert (i < URGENT_SLOTS);
  return (struct urgent_slot *)((char *)r->hdr + r->geo.urgent_offset) + i;
}

/* Sleep while *WORD is VALUE.  Not FUTEX_PRIVATE: two processes share the word.  Returns false if
 * it was another value from the start. */
static bool
futex_wait (_Atomic uint32_t *word, uint32_t value, int64_t until_ns)
{
  struct timespec until = clock_timespec ((uint64_t)until_ns);

  /* Absolute, CLOCK_MONOTONIC. */
  return syscall (SYS_futex, word, FUTEX_WAIT_BITSET, value, &until, NULL, FUTEX_BITSET_MATCH_ANY)
             == 0
         || errno != EAGAIN;
}

static void
futex_wake (_Atomic uint32_t *word)
{
  syscall (SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static bool
change (struct urgent_slot *s, uint32_t from, uint32_t to)
{
  return atomic_compare_exchange_strong (&s->state, &from, to);
}

/* ---- the filter ---- */

/* A free slot, now FILLING, or -1. */
static int
reserve (struct region *r)
{
  for (unsigned n = 0; n < URGENT_SLOTS; n++) {
    unsigned i = atomic_fetch_add (&r->urgent_next, 1) % URGENT_SLOTS;
    struct urgent_slot *s = slot_at (r, i);

    if (atomic_load_explicit (&s->state, memory_order_relaxed) == URGENT_FREE
        && change (s, URGENT_FREE, URGENT_FILLING))
      return (int)i;
  }
  return -1;
}

int
urgent_post (struct region *r, uint32_t kind, uint64_t first, uint64_t count)
{
  int slot = reserve (r);

  if (slot == -1)
    return -1;
  struct urgent_slot *s = slot_at (r, (unsigned)slot);
  bool write = (kind & URGENT_WRITE) != 0;
  atomic_store_explicit (&s->kind, kind, memory_order_relaxed);
  atomic_store_explicit (&s->first, write ? first : 0, memory_order_relaxed);
  atomic_store_explicit (&s->count, write ? count : 0, memory_order_relaxed);
  atomic_store (&s->state, URGENT_POSTED);
  atomic_fetch_or (&r->hdr->urgent_posted[slot / 64], UINT64_C (1) << (slot % 64));
  urgent_ring (r);
  return slot;
}

/* A slot of ours that is FREE or ABANDONED was scribbled over, and nobody is going to answer. */
static enum urgent_answer
answer_in (uint32_t state)
{
  switch (state) {
  case URGENT_POSTED:
  case URGENT_TAKEN:
    return URGENT_ANSWER_NONE;
  case URGENT_DONE:
    return URGENT_ANSWER_OK;
  default:
    return URGENT_ANSWER_LATE;
  }
}

enum urgent_answer
urgent_wait (struct region *r, int slot, int64_t until_ns)
{
  struct urgent_slot *s = slot_at (r, (unsigned)slot);

  for (int i = 0; i < TRIES; i++) {
    uint32_t state = atomic_load (&s->state);

    /* The worker takes a slot without waking anybody.  No other change is not an answer. */
    if (answer_in (state) != URGENT_ANSWER_NONE || futex_wait (&s->state, state, until_ns))
      break;
  }
  return answer_in (atomic_load (&s->state));
}

void
urgent_drop (struct region *r, int slot)
{
  struct urgent_slot *s = slot_at (r, (unsigned)slot);

  for (int i = 0; i < TRIES; i++) {
    uint32_t state = atomic_load (&s->state);
    bool taken = state == URGENT_TAKEN;

    if (change (s, state, taken ? URGENT_ABANDONED : URGENT_FREE))
      return;
  }
}

void
urgent_wake_all (struct region *r)
{
  for (unsigned i = 0; i < URGENT_SLOTS; i++) {
    struct urgent_slot *s = slot_at (r, i);

    if (answer_in (atomic_load (&s->state)) == URGENT_ANSWER_NONE)
      futex_wake (&s->state);
  }
}

/* ---- the worker ---- */

bool
urgent_any (const struct region *r)
{
  for (unsigned w = 0; w < REGION_URGENT_WORDS; w++)
    if (atomic_load (&r->hdr->urgent_posted[w]) != 0)
      return true;
  return false;
}

/* Take slot I, whose bit was set. */
static bool
take (struct region *r, unsigned i, struct urgent_request *q)
{
  struct urgent_slot *s = slot_at (r, i);

  atomic_fetch_and (&r->hdr->urgent_posted[i / 64], ~(UINT64_C (1) << (i % 64)));
  if (!change (s, URGENT_POSTED, URGENT_TAKEN))
    return false;
  q->slot = i;
  q->kind = atomic_load_explicit (&s->kind, memory_order_relaxed);
  q->first = atomic_load_explicit (&s->first, memory_order_relaxed);
  q->count = atomic_load_explicit (&s->count, memory_order_relaxed);
  atomic_store_explicit (&r->urgent_next, i + 1, memory_order_relaxed);
  if (q->first <= r->geo.nr_blocks && q->count <= r->geo.nr_blocks - q->first)
    return true;
  urgent_answer (r, i, false);
  return false;
}

bool
urgent_take (struct region *r, struct urgent_request *q)
{
  unsigned from = atomic_load_explicit (&r->urgent_next, memory_order_relaxed) % URGENT_SLOTS;

  /* The word where the last one was found comes twice: its later slots first, its earlier ones
   * last. */
  for (unsigned n = 0; n <= REGION_URGENT_WORDS; n++) {
    unsigned w = (from / 64 + n) % REGION_URGENT_WORDS;
    uint64_t bits = atomic_load (&r->hdr->urgent_posted[w]);

    if (n == 0)
      bits &= ~UINT64_C (0) << (from % 64);
    for (; bits != 0; bits &= bits - 1)
      if (take (r, w * 64 + (unsigned)__builtin_ctzll (bits), q))
        return true;
  }
  return false;
}

void
urgent_answer (struct region *r, unsigned slot, bool ok)
{
  struct urgent_slot *s = slot_at (r, slot);

  if (change (s, URGENT_TAKEN, ok ? URGENT_DONE : URGENT_LATE))
    futex_wake (&s->state);
  else
    change (s, URGENT_ABANDONED, URGENT_FREE);
}

bool
urgent_abandoned (const struct region *r, unsigned slot)
{
  return atomic_load (&slot_at (r, slot)->state) == URGENT_ABANDONED;
}

uint32_t
urgent_bell (const struct region *r)
{
  return atomic_load (&r->hdr->wake_worker);
}

void
urgent_sleep (struct region *r, uint32_t seen, int64_t timeout_ns)
{
  atomic_fetch_add (&r->hdr->worker_sleeps, 1);
  futex_wait (&r->hdr->wake_worker, seen, (int64_t)clock_ns () + timeout_ns);
  atomic_fetch_sub (&r->hdr->worker_sleeps, 1);
}

void
urgent_ring (struct region *r)
{
  atomic_fetch_add (&r->hdr->wake_worker, 1);
  if (atomic_load (&r->hdr->worker_sleeps) != 0)
    futex_wake (&r->hdr->wake_worker);
}
