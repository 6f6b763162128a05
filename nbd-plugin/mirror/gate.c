/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The gate.  See gate.h for its states and its order.
 */

#include "config.h"

#include <errno.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "nbd-plugin/mirror/gate.h"

/* Of each half; those of half 1 stand above those of half 0. */
#define ALL_SHARDS ((UINT32_C (1) << GATE_SHARDS) - 1)
#define ALL_HALVES (ALL_SHARDS | ALL_SHARDS << GATE_SHARDS)
_Static_assert(2 * GATE_SHARDS <= 32, "seen_empty has a bit for each half");

int
gate_init (struct gate *g)
{
  pthread_condattr_t attr;

  for (unsigned i = 0; i < GATE_SHARDS; i++)
    for (unsigned half = 0; half < 2; half++)
      atomic_init (&g->in_flight[i].n[half], 0);
  atomic_init (&g->word, GATE_OPEN);
  g->base = (uint64_t)clock_date_us ();
  atomic_init (&g->turn, 0);
  g->generation = 0;
  g->held_ns = g->lease_end_ns = 0;
  g->seen_empty = 0;
  g->prepared = g->releases = g->keep = g->stopping = false;
  g->decision = NULL;
  g->reason = NULL;
  g->waiting = 0;
  g->wake_fd = fd_wake_new ();
  if (g->wake_fd == -1)
    return -1;
  pthread_mutex_init (&g->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&g->changed, &attr);
  pthread_condattr_destroy (&attr);
  return 0;
}

void
gate_destroy (struct gate *g)
{
  pthread_cond_destroy (&g->changed);
  pthread_mutex_destroy (&g->lock);
  fd_close (&g->wake_fd);
}

void
gate_wake (struct gate *g)
{
  fd_wake (g->wake_fd);
}

static enum gate_mode
mode_of (const struct gate *g)
{
  return (enum gate_mode) (atomic_load (&g->word) & GATE_MODE_MASK);
}

/* The hold is over: the gate takes MODE.  Called with the lock. */
static void
end_hold (struct gate *g, enum gate_mode mode, const char *reason)
{
  g->prepared = g->releases = false;
  g->decision = NULL;
  g->reason = reason;
  atomic_store (&g->word, (uint32_t)mode);
  pthread_cond_broadcast (&g->changed);
  gate_wake (g);
}

/* Called with the lock.  After it the mode is true at NOW. */
static void
settle (struct gate *g, int64_t now)
{
  if (mode_of (g) != GATE_HELD || g->stopping)
    return;
  if (g->prepared) {
    enum decision_value v = decision_get (g->decision);
    if (v == DECISION_UNDECIDED && now >= g->lease_end_ns)
      v = decision_try (g->decision, DECISION_ABORT);
    if (v == DECISION_COMMIT && g->releases) {
      if (now >= g->lease_end_ns)
        end_hold (g, GATE_OPEN, "lease ended");
    } else if (v == DECISION_COMMIT)
      end_hold (g, GATE_FENCED, "committed");
    else if (v != DECISION_UNDECIDED)
      end_hold (g, GATE_OPEN, now >= g->lease_end_ns ? "lease ended" : "aborted");
  } else if (now >= g->lease_end_ns)
    end_hold (g, GATE_OPEN, "lease ended");
}

static void
wait_until (struct gate *g, int64_t ns)
{
  struct timespec ts = clock_timespec ((uint64_t)ns);
  pthread_cond_timedwait (&g->changed, &g->lock, &ts);
}

/* Called with the lock by a mutation that came while the gate was held.  0 when it is open. */
static int
wait_for_opening (struct gate *g, gate_probe *probe, void *opaque)
{
  for (;;) {
    int64_t now = (int64_t)clock_ns ();
    settle (g, now);
    enum gate_mode mode = mode_of (g);
    if (mode == GATE_OPEN)
      return 0;
    if (g->stopping)
      return ESHUTDOWN;
    if (mode == GATE_FENCED && !g->keep)
      return EPERM;

    int64_t until = now + GATE_SLICE_NS;
    if (mode == GATE_HELD && until > g->lease_end_ns)
      until = g->lease_end_ns;
    wait_until (g, until);
    if (mode_of (g) == GATE_OPEN)
      return 0;

    pthread_mutex_unlock (&g->lock);
    int err = probe (opaque);
    pthread_mutex_lock (&g->lock);
    if (err != 0)
      return err;
  }
}

int
gate_wait (struct gate *g, unsigned shard, unsigned *half, gate_probe *probe, void *opaque)
{
  for (;;) {
    enum gate_mode mode = mode_of (g);
    if (mode == GATE_OPEN)
      return 0;
    gate_leave (g, shard, *half);

    pthread_mutex_lock (&g->lock);
    g->waiting++;
    int err = wait_for_opening (g, probe, opaque);
    g->waiting--;
    pthread_mutex_unlock (&g->lock);
    if (err != 0)
      return err;
    *half = atomic_load (&g->turn);
    atomic_fetch_add (&g->in_flight[shard].n[*half], 1);
  }
}

/* Add the halves that are at 0 to *SEEN. */
static void
see_empty (const struct gate *g, uint32_t *seen)
{
  for (unsigned half = 0; half < 2; half++)
    for (unsigned i = 0; i < GATE_SHARDS; i++)
      if (atomic_load (&g->in_flight[i].n[half]) == 0)
        *seen |= UINT32_C (1) << (half * GATE_SHARDS + i);
}

bool
gate_all_passed (struct gate *g, uint32_t *seen)
{
  see_empty (g, seen);
  if (*seen == ALL_HALVES)
    return true;
  /* Nobody who began before is in the half without the turn: then the other one may fall to 0. */
  uint32_t turn = atomic_load (&g->turn), idle = ALL_SHARDS << (1 - turn) * GATE_SHARDS;
  if ((*seen & idle) == idle)
    atomic_store (&g->turn, 1 - turn);
  return false;
}

uint64_t
gate_in_flight (const struct gate *g)
{
  uint64_t sum = 0;
  for (unsigned i = 0; i < GATE_SHARDS; i++)
    sum += atomic_load (&g->in_flight[i].n[0]) + atomic_load (&g->in_flight[i].n[1]);
  return sum;
}

/* The date may have gone back since a fence record was written. */
static uint64_t
next_generation (const struct gate *g)
{
  return (g->generation > g->base ? g->generation : g->base) + 1;
}

int
gate_hold (struct gate *g, int64_t lease_ns, uint64_t *generation)
{
  int r = 0;

  pthread_mutex_lock (&g->lock);
  int64_t now = (int64_t)clock_ns ();
  settle (g, now);
  if (g->stopping)
    r = ESHUTDOWN;
  else if (mode_of (g) == GATE_HELD)
    r = EBUSY;
  else if (mode_of (g) == GATE_FENCED)
    r = EPERM;
  else {
    *generation = g->generation = next_generation (g);
    g->held_ns = now;
    g->lease_end_ns = now + lease_ns;
    g->seen_empty = 0;
    g->keep = false;
    g->reason = NULL;
    atomic_store (&g->word, GATE_HELD | GATE_DRAINING);
  }
  pthread_mutex_unlock (&g->lock);
  return r;
}

/* Called with the lock. */
static int
drained (struct gate *g, uint64_t generation)
{
  settle (g, (int64_t)clock_ns ());
  if (mode_of (g) != GATE_HELD || g->generation != generation)
    return ETIME;
  see_empty (g, &g->seen_empty);
  if (g->seen_empty != ALL_HALVES)
    return EAGAIN;
  atomic_store (&g->word, GATE_HELD); /* nobody needs to wake us any more */
  return 0;
}

int
gate_drained (struct gate *g, uint64_t generation)
{
  pthread_mutex_lock (&g->lock);
  int r = drained (g, generation);
  pthread_mutex_unlock (&g->lock);
  return r;
}

static int
prepare (struct gate *g, uint64_t generation, struct decision *word, bool keep, bool releases)
{
  pthread_mutex_lock (&g->lock);
  int r = drained (g, generation);
  if (r == 0) {
    g->decision = word;
    g->prepared = true;
    g->keep = keep;
    g->releases = releases;
  }
  pthread_mutex_unlock (&g->lock);
  return r;
}

int
gate_prepare (struct gate *g, uint64_t generation, struct decision *word, bool keep)
{
  return prepare (g, generation, word, keep, false);
}

int
gate_prepare_release (struct gate *g, uint64_t generation, struct decision *word)
{
  return prepare (g, generation, word, false, true);
}

int
gate_release_committed (struct gate *g, uint64_t generation)
{
  pthread_mutex_lock (&g->lock);
  settle (g, (int64_t)clock_ns ());
  bool ours = mode_of (g) == GATE_HELD && g->generation == generation && g->prepared && g->releases
              && decision_get (g->decision) == DECISION_COMMIT;
  if (ours && !g->stopping)
    end_hold (g, GATE_OPEN, "committed");
  else if (ours) { /* held until the end, and who owns the word may free it now */
    g->prepared = g->releases = false;
    g->decision = NULL;
  }
  pthread_mutex_unlock (&g->lock);
  return ours ? 0 : ESTALE;
}

void
gate_settle (struct gate *g)
{
  pthread_mutex_lock (&g->lock);
  settle (g, (int64_t)clock_ns ());
  pthread_mutex_unlock (&g->lock);
}

int
gate_release (struct gate *g, uint64_t generation, const char *reason)
{
  int r = 0;

  pthread_mutex_lock (&g->lock);
  settle (g, (int64_t)clock_ns ());
  if (mode_of (g) == GATE_FENCED)
    r = EALREADY;
  else if (mode_of (g) != GATE_HELD || (generation != 0 && generation != g->generation))
    r = ESTALE;
  else if (g->prepared && decision_try (g->decision, DECISION_ABORT) == DECISION_COMMIT) {
    if (!g->releases)
      end_hold (g, GATE_FENCED, "committed");
    r = EALREADY;
  } else if (!g->stopping)
    end_hold (g, GATE_OPEN, reason);
  else {
    g->prepared = g->releases = false; /* aborted; held until the end */
    g->decision = NULL;
  }
  pthread_mutex_unlock (&g->lock);
  return r;
}

void
gate_fence (struct gate *g, uint64_t generation)
{
  pthread_mutex_lock (&g->lock);
  g->generation = generation;
  g->keep = false;
  end_hold (g, GATE_FENCED, "fence record");
  pthread_mutex_unlock (&g->lock);
}

void
gate_unfence (struct gate *g)
{
  pthread_mutex_lock (&g->lock);
  if (mode_of (g) == GATE_FENCED && !g->stopping)
    end_hold (g, GATE_OPEN, "rollback");
  pthread_mutex_unlock (&g->lock);
}

void
gate_stop (struct gate *g)
{
  pthread_mutex_lock (&g->lock);
  g->stopping = true;
  pthread_cond_broadcast (&g->changed);
  pthread_mutex_unlock (&g->lock);
}

void
gate_look (struct gate *g, struct gate_view *view)
{
  pthread_mutex_lock (&g->lock);
  settle (g, (int64_t)clock_ns ());
  view->mode = mode_of (g);
  view->generation = g->generation;
  view->next_generation = next_generation (g);
  view->prepared = g->prepared;
  view->drained = view->mode == GATE_HELD && g->seen_empty == ALL_HALVES;
  view->held_ns = g->held_ns;
  view->lease_end_ns = g->lease_end_ns;
  view->reason = g->reason;
  view->waiting = g->waiting;
  pthread_mutex_unlock (&g->lock);
}
