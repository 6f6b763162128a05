/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves of the gate: a drained hold has nobody below and lets nobody pass, however many threads
 * push; a lease ends even if only the waiting mutations look; a hold that is over cannot be
 * prepared, released or drained by its old generation; a prepared hold ends as the decision word
 * says and in no other way; and however busy a guest is, those who are below now have ended soon.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/unit.h"

/* Threads that push against the gate are stopped for a moment right after they looked at it, in the
 * inline code of gate.h: if that look came before the counting, a hold slips in between. */
static _Thread_local unsigned pause_every, looks;

static uint32_t
paused (uint32_t value)
{
  if (pause_every != 0 && ++looks % pause_every == 0)
    usleep (200);
  return value;
}

#undef atomic_load
#define atomic_load(p) paused (atomic_load_explicit (p, memory_order_seq_cst))
#include "nbd-plugin/mirror/gate.h"
#undef atomic_load
#define atomic_load(p) atomic_load_explicit (p, memory_order_seq_cst)

#define MS 1000000ll
#define LONG_LEASE (60000 * MS)

static int
no_shutdown (void *opaque)
{
  (void)opaque;
  return 0;
}

static int
shutting_down (void *opaque)
{
  (void)opaque;
  return ESHUTDOWN;
}

static enum gate_mode
mode (struct gate *g)
{
  struct gate_view v;
  gate_look (g, &v);
  return v.mode;
}

static uint64_t
hold (struct gate *g, int64_t lease)
{
  uint64_t generation = 0;
  cr_assert_eq (gate_hold (g, lease, &generation), 0);
  return generation;
}

static struct decision *
new_word (void)
{
  char *error = NULL;
  struct decision *d = decision_create (&error);
  cr_assert_not_null (d);
  return d;
}

/* The lease ends now, however slow this machine is. */
static void
expire (struct gate *g)
{
  pthread_mutex_lock (&g->lock);
  g->lease_end_ns = (int64_t)clock_ns ();
  pthread_mutex_unlock (&g->lock);
}

/* A mutation in a thread of its own that ends at once after it passed. */
struct mutation {
  pthread_t thread;
  struct gate *gate;
  gate_probe *probe;
  _Atomic int result; /* -1: still waiting */
};

static void *
mutate (void *opaque)
{
  struct mutation *m = opaque;
  unsigned half;
  int r = gate_enter (m->gate, 3, &half, m->probe, NULL);
  if (r == 0)
    gate_leave (m->gate, 3, half);
  atomic_store (&m->result, r);
  return NULL;
}

static void
start (struct mutation *m, struct gate *g, gate_probe *probe)
{
  struct gate_view v;

  gate_look (g, &v);
  unsigned before = v.waiting;
  m->gate = g;
  m->probe = probe;
  atomic_init (&m->result, -1);
  cr_assert_eq (pthread_create (&m->thread, NULL, mutate, m), 0);
  do { /* until it waits, or has ended */
    usleep (1000);
    gate_look (g, &v);
  } while (v.waiting == before && atomic_load (&m->result) == -1);
}

static int
result (struct mutation *m)
{
  pthread_join (m->thread, NULL);
  return atomic_load (&m->result);
}

Test (gate, open_counts)
{
  struct gate g;
  unsigned first, second;
  cr_assert_eq (gate_init (&g), 0);
  cr_assert_eq (gate_enter (&g, 0, &first, no_shutdown, NULL), 0);
  cr_assert_eq (gate_enter (&g, 5, &second, no_shutdown, NULL), 0);
  cr_assert_eq (gate_in_flight (&g), 2);
  gate_leave (&g, 5, second);
  gate_leave (&g, 0, first);
  cr_assert_eq (gate_in_flight (&g), 0);
  gate_destroy (&g);
}

Test (gate, hold_drains)
{
  struct gate g;
  struct mutation m;
  unsigned half;
  cr_assert_eq (gate_init (&g), 0);
  cr_assert_eq (gate_enter (&g, 0, &half, no_shutdown, NULL), 0);
  uint64_t n = hold (&g, LONG_LEASE), again;
  cr_assert_eq (gate_hold (&g, LONG_LEASE, &again), EBUSY);
  cr_assert_eq (gate_drained (&g, n), EAGAIN);
  cr_assert_eq (gate_drained (&g, n + 1), ETIME);
  start (&m, &g, no_shutdown);
  cr_assert_eq (gate_in_flight (&g), 1, "a waiter counts as in flight");

  gate_leave (&g, 0, half); /* must wake who waits for the drain */
  struct pollfd p = { .fd = g.wake_fd, .events = POLLIN };
  cr_assert_eq (poll (&p, 1, 0), 1);
  cr_assert_eq (gate_drained (&g, n), 0);
  cr_assert_eq (atomic_load (&m.result), -1);
  cr_assert_eq (gate_release (&g, n + 1, "test"), ESTALE);
  cr_assert_eq (gate_release (&g, n, "test"), 0);
  cr_assert_eq (result (&m), 0);
  cr_assert_eq (gate_drained (&g, n), ETIME);
  cr_assert_eq (gate_release (&g, n, "test"), ESTALE);
  cr_assert_gt (hold (&g, LONG_LEASE), n);
  cr_assert_eq (gate_drained (&g, n), ETIME);
  gate_destroy (&g);
}

/* A hold whose commit is a release stays until the control thread has taken the region away; only
 * the end of its lease opens it without that, and then it counts as broken. */
Test (gate, released_at_the_commit)
{
  struct mutation m;
  struct gate g;

  for (int late = 0; late < 2; late++) {
    struct decision *word = new_word ();
    cr_assert_eq (gate_init (&g), 0);
    uint64_t n = hold (&g, LONG_LEASE);
    cr_assert_eq (gate_drained (&g, n), 0);
    cr_assert_eq (gate_prepare_release (&g, n, word), 0);
    cr_assert_eq (gate_release_committed (&g, n), ESTALE, "released before the commit");
    start (&m, &g, no_shutdown);
    cr_assert_eq (decision_try (word, DECISION_COMMIT), DECISION_COMMIT);
    gate_settle (&g);
    cr_assert_eq (mode (&g), GATE_HELD, "it was not left to the control thread");
    cr_assert_eq (gate_release (&g, n, "test"), EALREADY);
    cr_assert_eq (mode (&g), GATE_HELD);
    cr_assert_eq (atomic_load (&m.result), -1, "a guest wrote before the region was taken away");
    cr_assert_eq (gate_release_committed (&g, n + 1), ESTALE);
    if (late)
      expire (&g);
    cr_assert_eq (gate_release_committed (&g, n), late ? ESTALE : 0);
    cr_assert_eq (result (&m), 0);
    cr_assert_eq (mode (&g), GATE_OPEN);
    cr_assert_eq (gate_release_committed (&g, n), ESTALE);
    gate_destroy (&g);
    decision_free (word);
  }
}

/* At the end of the server nobody lets the guest go any more, and whoever owns the word frees it
 * before the worker's connection is closed. */
Test (gate, released_at_the_commit_while_it_stops)
{
  struct decision *word = new_word ();
  struct gate g;

  cr_assert_eq (gate_init (&g), 0);
  uint64_t n = hold (&g, LONG_LEASE);
  cr_assert_eq (gate_drained (&g, n), 0);
  cr_assert_eq (gate_prepare_release (&g, n, word), 0);
  cr_assert_eq (decision_try (word, DECISION_COMMIT), DECISION_COMMIT);
  gate_stop (&g);
  cr_assert_eq (gate_release_committed (&g, n), 0);
  cr_assert_eq (mode (&g), GATE_HELD);
  decision_free (word);
  gate_release (&g, 0, "the worker has gone");
  gate_settle (&g);
  cr_assert_eq (mode (&g), GATE_HELD);
  gate_destroy (&g);
}

Test (gate, lease_ends_without_a_control_thread)
{
  struct gate g;
  struct mutation m;
  cr_assert_eq (gate_init (&g), 0);
  int64_t begin = (int64_t)clock_ns ();
  uint64_t n = hold (&g, 150 * MS);
  start (&m, &g, no_shutdown);
  cr_assert_eq (result (&m), 0);
  int64_t took = (int64_t)clock_ns () - begin;
  cr_assert (took >= 150 * MS && took < 5000 * MS, "took %lld ms", (long long)(took / MS));
  cr_assert_eq (gate_drained (&g, n), ETIME);
  struct decision *word = new_word ();
  cr_assert_eq (gate_prepare (&g, n, word, false), ETIME);
  decision_free (word);
  gate_destroy (&g);
}

Test (gate, probe_ends_the_wait)
{
  struct gate g;
  struct mutation m;
  cr_assert_eq (gate_init (&g), 0);
  hold (&g, LONG_LEASE);
  start (&m, &g, shutting_down);
  cr_assert_eq (result (&m), ESHUTDOWN);
  cr_assert_eq (gate_in_flight (&g), 0);
  gate_destroy (&g);
}

Test (gate, stop_lets_nobody_through)
{
  struct gate g;
  struct mutation m, late;
  uint64_t n;
  cr_assert_eq (gate_init (&g), 0);
  hold (&g, LONG_LEASE);
  start (&m, &g, no_shutdown);
  gate_stop (&g);
  cr_assert_eq (result (&m), ESHUTDOWN);
  expire (&g); /* but nothing opens any more */
  start (&late, &g, no_shutdown);
  cr_assert_eq (result (&late), ESHUTDOWN);
  cr_assert_eq (mode (&g), GATE_HELD);
  cr_assert_eq (gate_hold (&g, LONG_LEASE, &n), ESHUTDOWN);
  gate_destroy (&g);
}

Test (gate, prepared_obeys_the_word)
{
  static const struct {
    uint32_t word; /* set before the event */
    bool release;  /* the event: a release, or the end of the lease */
    enum gate_mode then;
    uint32_t word_then;
  } cases[] = {
    { DECISION_UNDECIDED, true, GATE_OPEN, DECISION_ABORT },
    { DECISION_UNDECIDED, false, GATE_OPEN, DECISION_ABORT },
    { DECISION_COMMIT, true, GATE_FENCED, DECISION_COMMIT },
    { DECISION_COMMIT, false, GATE_FENCED, DECISION_COMMIT },
    { DECISION_ABORT, true, GATE_OPEN, DECISION_ABORT },
    { DECISION_ABORT, false, GATE_OPEN, DECISION_ABORT },
    { 77, false, GATE_OPEN, 77 }, /* a word that makes no sense is no commit */
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    struct gate g;
    struct mutation m;
    struct decision *word = new_word ();
    cr_assert_eq (gate_init (&g), 0);
    uint64_t n = hold (&g, LONG_LEASE);
    cr_assert_eq (gate_prepare (&g, n, word, false), 0);
    cr_assert_eq (mode (&g), GATE_HELD);
    start (&m, &g, no_shutdown);
    atomic_store (word->word, cases[i].word);
    if (cases[i].release) {
      int r = gate_release (&g, n, "test");
      cr_assert_eq (r,
                    cases[i].then == GATE_FENCED          ? EALREADY
                    : cases[i].word == DECISION_UNDECIDED ? 0
                                                          : ESTALE,
                    "case %zu: %d", i, r);
    } else
      expire (&g);
    cr_assert_eq (result (&m), cases[i].then == GATE_OPEN ? 0 : EPERM, "case %zu", i);
    cr_assert_eq (mode (&g), cases[i].then, "case %zu", i);
    cr_assert_eq (atomic_load (word->word), cases[i].word_then, "case %zu", i);
    decision_free (word);
    gate_destroy (&g);
  }
}

Test (gate, prepare_needs_the_drain)
{
  struct gate g;
  struct decision *word = new_word ();
  unsigned half;
  cr_assert_eq (gate_init (&g), 0);
  cr_assert_eq (gate_enter (&g, 7, &half, no_shutdown, NULL), 0);
  uint64_t n = hold (&g, LONG_LEASE);
  cr_assert_eq (gate_prepare (&g, n, word, false), EAGAIN);
  gate_leave (&g, 7, half);
  cr_assert_eq (gate_prepare (&g, n + 1, word, false), ETIME);
  cr_assert_eq (gate_prepare (&g, n, word, false), 0);
  decision_try (word, DECISION_ABORT);
  gate_settle (&g);
  cr_assert_eq (mode (&g), GATE_OPEN);
  decision_free (word);
  gate_destroy (&g);
}

Test (gate, keep_and_rollback)
{
  struct gate g;
  struct mutation kept, late;
  struct decision *word = new_word ();
  uint64_t again;
  cr_assert_eq (gate_init (&g), 0);
  uint64_t n = hold (&g, LONG_LEASE);
  cr_assert_eq (gate_prepare (&g, n, word, true), 0);
  start (&kept, &g, no_shutdown);
  decision_try (word, DECISION_COMMIT);
  gate_settle (&g);
  cr_assert_eq (mode (&g), GATE_FENCED);
  decision_free (word); /* nobody may look at it any more */
  start (&late, &g, no_shutdown);
  cr_assert_eq (gate_hold (&g, LONG_LEASE, &again), EPERM);
  usleep (50000);
  cr_assert_eq (atomic_load (&kept.result), -1);
  cr_assert_eq (atomic_load (&late.result), -1);
  gate_unfence (&g);
  cr_assert_eq (result (&kept), 0);
  cr_assert_eq (result (&late), 0);
  gate_destroy (&g);
}

Test (gate, fence_at_start)
{
  struct gate g;
  struct mutation m;
  cr_assert_eq (gate_init (&g), 0);
  const uint64_t recorded = UINT64_C (1) << 52; /* before the date went back */
  gate_fence (&g, recorded);
  start (&m, &g, no_shutdown);
  cr_assert_eq (result (&m), EPERM);
  cr_assert_eq (gate_release (&g, 0, "test"), EALREADY);
  gate_unfence (&g);
  cr_assert_eq (hold (&g, LONG_LEASE), recorded + 1);
  gate_destroy (&g);
}

Test (gate, generations_of_two_servers_differ)
{
  struct gate first, next;
  struct gate_view view;

  cr_assert_eq (gate_init (&first), 0);
  uint64_t generation = hold (&first, LONG_LEASE);
  gate_destroy (&first);
  clock_sleep_ms (1);
  cr_assert_eq (gate_init (&next), 0);
  gate_look (&next, &view);
  cr_assert_eq (view.generation, 0, "no hold yet");
  cr_assert_gt (view.next_generation, generation);
  cr_assert_eq (hold (&next, LONG_LEASE), view.next_generation);
  gate_destroy (&next);
}

/* ---- many threads against many holds ---- */

#define PUSHERS 6
#define HOLDS 300

struct push {
  pthread_t thread;
  struct gate *gate;
  unsigned shard;
  _Atomic bool *stop;
  _Atomic unsigned *below;
  _Atomic unsigned long *passed;
};

static void *
push (void *opaque)
{
  struct push *p = opaque;
  pause_every = 31;
  while (!atomic_load (p->stop)) {
    unsigned half;
    if (gate_enter (p->gate, p->shard, &half, no_shutdown, NULL) != 0)
      continue;
    atomic_fetch_add (p->below, 1);
    for (volatile int i = 0; i < 200; i++)
      ;
    atomic_fetch_sub (p->below, 1);
    atomic_fetch_add (p->passed, 1);
    gate_leave (p->gate, p->shard, half);
  }
  return NULL;
}

Test (gate, nobody_is_below_a_drained_hold)
{
  struct gate g;
  struct push pushers[PUSHERS];
  _Atomic bool stop = false;
  _Atomic unsigned below = 0;
  _Atomic unsigned long passed = 0;

  cr_assert_eq (gate_init (&g), 0);
  for (unsigned i = 0; i < PUSHERS; i++) {
    pushers[i] = (struct push){
      .gate = &g, .shard = i / 2, .stop = &stop, .below = &below, .passed = &passed
    };
    cr_assert_eq (pthread_create (&pushers[i].thread, NULL, push, &pushers[i]), 0);
  }
  for (unsigned h = 0; h < HOLDS; h++) {
    uint64_t n = hold (&g, LONG_LEASE);
    while (gate_drained (&g, n) != 0)
      ;
    cr_assert_eq (atomic_load (&below), 0, "somebody is below in hold %u", h);
    unsigned long before = atomic_load (&passed);
    usleep (500); /* longer than the pause of somebody who has looked */
    cr_assert_eq (atomic_load (&below), 0, "somebody came below in hold %u", h);
    cr_assert_eq (atomic_load (&passed), before, "somebody passed in hold %u", h);
    cr_assert_eq (gate_release (&g, n, "test"), 0);
    usleep (100);
  }
  atomic_store (&stop, true);
  for (unsigned i = 0; i < PUSHERS; i++)
    pthread_join (pushers[i].thread, NULL);
  cr_assert_gt (atomic_load (&passed), HOLDS);
  cr_assert_eq (gate_in_flight (&g), 0);
  gate_destroy (&g);
}

/* ---- waiting for those who are below now, with an open gate ---- */

/* A guest has always two mutations below: the counter of its shard never falls to 0.  Each step
 * ends one and begins another. */
struct busy {
  struct gate *gate;
  unsigned half[2], step;
};

static void
go_on (struct busy *b)
{
  unsigned *half = &b->half[b->step++ % 2];

  gate_leave (b->gate, 3, *half);
  cr_assert_eq (gate_enter (b->gate, 3, half, no_shutdown, NULL), 0);
}

static unsigned
steps_until_passed (struct busy *b, uint32_t *seen)
{
  unsigned steps = 0;

  while (!gate_all_passed (b->gate, seen)) {
    cr_assert_lt (++steps, 100, "it waits for ever");
    go_on (b);
  }
  return steps;
}

/* Who waits is done soon, but not before all who were below then have ended.  Two who wait do not
 * disturb each other. */
Test (gate, all_pass_while_a_guest_is_busy)
{
  struct gate g;
  unsigned slow;

  cr_assert_eq (gate_init (&g), 0);
  struct busy b = { .gate = &g };
  for (unsigned i = 0; i < 2; i++)
    cr_assert_eq (gate_enter (&g, 3, &b.half[i], no_shutdown, NULL), 0);
  for (unsigned apart = 0; apart < 8; apart++) {
    uint32_t seen[2] = { 0 };
    cr_assert_eq (gate_enter (&g, apart % 2 != 0 ? 3 : 4, &slow, no_shutdown, NULL), 0);
    cr_assert_not (gate_all_passed (&g, &seen[0]));
    for (unsigned i = 0; i < apart; i++) {
      go_on (&b);
      cr_assert_not (gate_all_passed (&g, &seen[0]));
    }
    for (unsigned i = 0; i < 20; i++) {
      cr_assert (!gate_all_passed (&g, &seen[i % 2]), "one who was below has not ended");
      go_on (&b);
    }
    gate_leave (&g, apart % 2 != 0 ? 3 : 4, slow);
    cr_assert_leq (steps_until_passed (&b, &seen[apart / 4]), 8);
    cr_assert_leq (steps_until_passed (&b, &seen[1 - apart / 4]), 8);
  }
  for (unsigned i = 0; i < 2; i++)
    gate_leave (&g, 3, b.half[i]);
  uint32_t seen = 0;
  cr_assert (gate_all_passed (&g, &seen), "nobody is below");
  gate_destroy (&g);
}

#define CROWD 4
#define WAITS 300

struct member {
  pthread_t thread;
  struct gate *gate;
  _Atomic bool *stop;
  _Atomic unsigned below; /* odd while it is */
};

static void *
come_and_go (void *opaque)
{
  struct member *p = opaque;
  unsigned half;

  pause_every = 7;
  while (!atomic_load (p->stop)) {
    cr_assert_eq (gate_enter (p->gate, 3, &half, no_shutdown, NULL), 0);
    atomic_fetch_add (&p->below, 1);
    usleep (100);
    atomic_fetch_add (&p->below, 1);
    gate_leave (p->gate, 3, half);
  }
  return NULL;
}

/* The same with threads, which are stopped now and then between their look at the turn and their
 * counting. */
Test (gate, nobody_from_before_is_below)
{
  struct member crowd[CROWD];
  _Atomic bool stop = false;
  unsigned before[CROWD];
  struct gate g;

  cr_assert_eq (gate_init (&g), 0);
  for (unsigned i = 0; i < CROWD; i++) {
    crowd[i].gate = &g;
    crowd[i].stop = &stop;
    atomic_init (&crowd[i].below, 0);
    cr_assert_eq (pthread_create (&crowd[i].thread, NULL, come_and_go, &crowd[i]), 0);
  }
  for (unsigned n = 0; n < WAITS; n++) {
    uint32_t seen = 0;
    for (unsigned i = 0; i < CROWD; i++)
      before[i] = atomic_load (&crowd[i].below);
    while (!gate_all_passed (&g, &seen))
      ;
    for (unsigned i = 0; i < CROWD; i++)
      cr_assert (before[i] % 2 == 0 || atomic_load (&crowd[i].below) != before[i],
                 "wait %u: one who was below has not ended", n);
  }
  atomic_store (&stop, true);
  for (unsigned i = 0; i < CROWD; i++)
    pthread_join (crowd[i].thread, NULL);
  cr_assert_eq (gate_in_flight (&g), 0);
  gate_destroy (&g);
}
