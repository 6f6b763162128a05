/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Urgent slots: every request is seen once and gets its own answer, whoever gives up when, between
 * threads and between processes; every wait ends; a table that is scribbled over harms nobody.  And
 * a worker that sleeps until something is dirty is woken (watch.h).
 */

#include "config.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/urgent.h"
#include "dirty-bitmap/watch.h"
#include "tests/unit/fixture.h"

#define MS INT64_C (1000000)

static struct urgent_slot *
slots_of (struct region *r)
{
  return (struct urgent_slot *)((char *)r->hdr + r->geo.urgent_offset);
}

static unsigned
not_free (struct region *r)
{
  unsigned n = 0;

  for (unsigned i = 0; i < URGENT_SLOTS; i++)
    n += atomic_load (&slots_of (r)[i].state) != URGENT_FREE;
  return n;
}

/* The worker reads what the filter posted, and the filter gets the answer that was given. */
Test (urgent, post_take_answer)
{
  struct region *r = fixture_region (1000), *w = fixture_map (r->fd);
  struct urgent_request q;

  cr_assert_not (urgent_any (w));
  cr_assert_not (urgent_take (w, &q));
  int a = urgent_post (r, URGENT_WRITE | URGENT_FLUSH, 990, 10);
  int b = urgent_post (r, URGENT_FLUSH, 5, 5);
  cr_assert (a >= 0 && b >= 0 && a != b);
  cr_assert (urgent_any (w));
  cr_assert (urgent_take (w, &q));
  cr_assert_eq (q.slot, (unsigned)a);
  cr_assert_eq (q.kind, URGENT_WRITE | URGENT_FLUSH);
  cr_assert_eq (q.first, 990);
  cr_assert_eq (q.count, 10);
  cr_assert (urgent_take (w, &q));
  cr_assert_eq (q.slot, (unsigned)b);
  cr_assert_eq (q.kind, URGENT_FLUSH);
  cr_assert_eq (q.count, 0, "a flush has no blocks");
  cr_assert_not (urgent_take (w, &q), "nothing is taken twice");
  cr_assert_not (urgent_any (w));

  cr_assert_eq (urgent_wait (r, a, clock_ns ()), URGENT_ANSWER_NONE);
  urgent_answer (w, (unsigned)b, false);
  urgent_answer (w, (unsigned)a, true);
  cr_assert_eq (urgent_wait (r, a, 0), URGENT_ANSWER_OK, "the answer wins over the deadline");
  cr_assert_eq (urgent_wait (r, b, 0), URGENT_ANSWER_LATE);
  urgent_drop (r, a);
  urgent_drop (r, b);
  cr_assert_eq (not_free (r), 0);
  region_free (w);
  region_free (r);
}

/* A request given up before it is taken is never seen; one given up later keeps its slot until the
 * worker has answered, so that the answer cannot reach the slot's next user. */
Test (urgent, give_up)
{
  struct region *r = fixture_region (1000);
  struct urgent_request q;

  urgent_drop (r, urgent_post (r, URGENT_WRITE, 1, 1));
  cr_assert_eq (not_free (r), 0);
  cr_assert_not (urgent_take (r, &q));

  int a = urgent_post (r, URGENT_WRITE, 2, 1);
  cr_assert (urgent_take (r, &q));
  cr_assert_not (urgent_abandoned (r, q.slot));
  urgent_drop (r, a);
  cr_assert (urgent_abandoned (r, q.slot));
  for (unsigned i = 1; i < URGENT_SLOTS; i++)
    cr_assert_neq (urgent_post (r, URGENT_WRITE, i % 1000, 1), a, "the slot is still the worker's");
  cr_assert_eq (urgent_post (r, URGENT_WRITE, 0, 1), -1);
  urgent_answer (r, q.slot, true);
  cr_assert_eq (urgent_post (r, URGENT_WRITE, 0, 1), a);
  cr_assert_eq (urgent_wait (r, a, 0), URGENT_ANSWER_NONE);
  region_free (r);
}

/* All slots can be in use, are taken in the order of arrival, and can be used again. */
Test (urgent, full_table_in_order)
{
  struct region *r = fixture_region (URGENT_SLOTS);
  struct urgent_request q;

  for (int round = 0; round < 3; round++) {
    for (unsigned i = 0; i < URGENT_SLOTS; i++)
      cr_assert_geq (urgent_post (r, URGENT_WRITE, i, 1), 0);
    cr_assert_eq (urgent_post (r, URGENT_WRITE, 0, 1), -1);
    for (unsigned i = 0; i < URGENT_SLOTS; i++) {
      cr_assert (urgent_take (r, &q));
      cr_assert_eq (q.first, i);
      urgent_answer (r, q.slot, true);
      urgent_drop (r, (int)q.slot);
    }
    cr_assert_eq (not_free (r), 0);
    /* The next round begins in the middle of a word. */
    int slot = urgent_post (r, URGENT_FLUSH, 0, 0);
    cr_assert (urgent_take (r, &q));
    urgent_answer (r, q.slot, true);
    urgent_drop (r, slot);
  }
  region_free (r);
}

/* A range that does not lie on the disk is answered late and not handed out. */
Test (urgent, bad_range)
{
  struct region *r = fixture_region (100);
  struct urgent_request q;
  int a = urgent_post (r, URGENT_WRITE, 99, 2);
  int b = urgent_post (r, URGENT_WRITE, UINT64_MAX, 2);

  cr_assert_not (urgent_take (r, &q));
  cr_assert_eq (urgent_wait (r, a, 0), URGENT_ANSWER_LATE);
  cr_assert_eq (urgent_wait (r, b, 0), URGENT_ANSWER_LATE);
  region_free (r);
}

/* ---- time ---- */

struct sleeper {
  struct region *r;
  int slot; /* -1: the bell */
  enum urgent_answer answer;
  int64_t slept;
  _Atomic bool begun, done;
};

static void *
sleep_10s (void *opaque)
{
  struct sleeper *s = opaque;
  int64_t begin = clock_ns ();
  uint32_t bell = urgent_bell (s->r);

  atomic_store (&s->begun, true);
  if (s->slot == -1)
    urgent_sleep (s->r, bell, 10000 * MS);
  else
    s->answer = urgent_wait (s->r, s->slot, begin + 10000 * MS);
  s->slept = clock_ns () - begin;
  atomic_store (&s->done, true);
  return NULL;
}

static pthread_t
start (struct sleeper *s)
{
  pthread_t t;

  atomic_store (&s->begun, false);
  cr_assert_eq (pthread_create (&t, NULL, sleep_10s, s), 0);
  while (!atomic_load (&s->begun))
    usleep (1000);
  usleep (50000);
  cr_assert_not (atomic_load (&s->done), "it did not sleep");
  return t;
}

/* Waits end at their time, at the answer, and when all are woken, whether posted or taken. */
Test (urgent, waits_end)
{
  struct region *r = fixture_region (100);
  struct urgent_request q;
  int64_t begin = clock_ns ();
  struct sleeper s = { .r = r, .slot = urgent_post (r, URGENT_WRITE, 1, 1) };

  cr_assert_eq (urgent_wait (r, s.slot, begin + 30 * MS), URGENT_ANSWER_NONE);
  cr_assert_geq (clock_ns () - begin, 30 * MS);

  pthread_t t = start (&s);
  while (!atomic_load (&s.done)) {
    urgent_wake_all (r);
    usleep (1000);
  }
  pthread_join (t, NULL);
  cr_assert_eq (s.answer, URGENT_ANSWER_NONE);
  cr_assert_lt (s.slept, 9000 * MS);

  /* It is taken while it sleeps, and answered then. */
  atomic_store (&s.done, false);
  t = start (&s);
  cr_assert (urgent_take (r, &q));
  usleep (20000);
  cr_assert_not (atomic_load (&s.done), "being taken is no answer");
  urgent_answer (r, q.slot, true);
  pthread_join (t, NULL);
  cr_assert_eq (s.answer, URGENT_ANSWER_OK);
  cr_assert_lt (s.slept, 9000 * MS);
  urgent_drop (r, s.slot);

  /* Taken before it sleeps. */
  s.slot = urgent_post (r, URGENT_FLUSH, 0, 0);
  cr_assert (urgent_take (r, &q));
  atomic_store (&s.done, false);
  t = start (&s);
  while (!atomic_load (&s.done)) {
    urgent_wake_all (r);
    usleep (1000);
  }
  pthread_join (t, NULL);
  cr_assert_eq (s.answer, URGENT_ANSWER_NONE);
  region_free (r);
}

/* The bell wakes a sleeping worker, and one that is about to sleep does not. */
Test (urgent, bell)
{
  struct region *r = fixture_region (100);
  struct sleeper s = { .r = r, .slot = -1 };
  uint32_t seen = urgent_bell (r);
  int64_t begin = clock_ns ();

  urgent_sleep (r, seen, 20 * MS);
  cr_assert_geq (clock_ns () - begin, 20 * MS);
  pthread_t t = start (&s);
  urgent_post (r, URGENT_WRITE, 1, 1);
  pthread_join (t, NULL);
  cr_assert_lt (s.slept, 9000 * MS);
  begin = clock_ns ();
  urgent_sleep (r, seen, 10000 * MS);
  cr_assert_lt (clock_ns () - begin, 9000 * MS, "it rang since it was read");
  cr_assert_eq (atomic_load (&r->hdr->worker_sleeps), 0);
  region_free (r);
}

/* ---- a worker that sleeps while nothing is dirty ---- */

#define WATCH_ROUNDS 20000

static void *
mark_blocks (void *opaque)
{
  struct region *r = opaque;

  for (uint64_t i = 1; i <= WATCH_ROUNDS; i++) {
    for (volatile uint64_t n = i * 7919 % 400; n > 0; n--) /* at another moment each time */
      ;
    bitmap_mark (r, (i % 100) * r->geo.block_size, 1);
    while (!bitmap_empty (r, REGION_DIRTY)) /* until the worker has copied it */
      sched_yield ();
  }
  return NULL;
}

/* However marking and falling asleep meet, no block waits for a worker that sleeps. */
Test (urgent, watch)
{
  struct region *r = fixture_region (100);
  pthread_t t;
  unsigned copied = 0, slept = 0;

  pthread_create (&t, NULL, mark_blocks, r);
  while (copied < WATCH_ROUNDS) {
    uint32_t seen = urgent_bell (r);
    if (watch_begin (r)) {
      uint64_t begin = clock_ns ();
      urgent_sleep (r, seen, 20000 * MS);
      cr_assert_lt (clock_ns () - begin, 19000 * MS, "a block turned dirty, and nobody rang");
      slept++;
    }
    copied += bitmap_clear (r, REGION_DIRTY, 0, r->geo.nr_blocks) > 0;
  }
  pthread_join (t, NULL);
  cr_assert_gt (slept, 0);

  /* Nobody watches: nobody rings. */
  atomic_store (&r->hdr->watched, 0);
  uint32_t seen = urgent_bell (r);
  bitmap_mark (r, 0, 1);
  cr_assert_eq (urgent_bell (r), seen);
  cr_assert_not (watch_begin (r), "a block is dirty");
  region_free (r);
}

/* ---- both sides at once ---- */

#define ROUNDS 1500
#define GUESTS 6
#define BLOCKS 100000

static _Atomic bool stop_worker;

/* Answers ok where the first block is even. */
static void
work (struct region *r)
{
  while (!atomic_load (&stop_worker)) {
    uint32_t seen = urgent_bell (r);
    struct urgent_request q;

    while (urgent_take (r, &q)) {
      if (q.count != q.first % 7 + 1
          || q.kind != URGENT_WRITE + (q.first % 3 == 0 ? URGENT_FLUSH : 0))
        _exit (3); /* parts of two requests */
      urgent_answer (r, q.slot, q.first % 2 == 0);
    }
    urgent_sleep (r, seen, 20 * MS);
  }
}

struct guest {
  struct region *r;
  uint64_t rnd;
  unsigned answered, given_up, full, wrong;
};

static void *
guest (void *opaque)
{
  struct guest *g = opaque;
  uint64_t begin = 0;

  for (int i = 0; i < ROUNDS && !fixture_late (&begin); i++) {
    uint64_t first = fixture_random (&g->rnd) % (BLOCKS - 8);
    uint32_t kind = URGENT_WRITE + (first % 3 == 0 ? URGENT_FLUSH : 0);
    int slot = urgent_post (g->r, kind, first, first % 7 + 1);
    if (slot == -1) {
      g->full++;
      continue;
    }
    enum urgent_answer answer = URGENT_ANSWER_NONE;
    if (fixture_random (&g->rnd) % 4 == 0) /* impatient */
      answer = urgent_wait (g->r, slot, clock_ns () + (int64_t)(fixture_random (&g->rnd) % 30000));
    else
      for (int n = 0; n < 100 && answer == URGENT_ANSWER_NONE; n++)
        answer = urgent_wait (g->r, slot, clock_ns () + 100 * MS);
    if (answer == URGENT_ANSWER_NONE)
      g->given_up++;
    else {
      g->answered++;
      g->wrong += (answer == URGENT_ANSWER_OK) != (first % 2 == 0);
    }
    urgent_drop (g->r, slot);
  }
  return NULL;
}

static struct guest
run_guests (struct region *r)
{
  struct guest g[GUESTS], sum = { .r = r };
  pthread_t t[GUESTS];

  for (unsigned i = 0; i < GUESTS; i++) {
    g[i] = (struct guest){ .r = r, .rnd = 1000 + i };
    cr_assert_eq (pthread_create (&t[i], NULL, guest, &g[i]), 0);
  }
  for (unsigned i = 0; i < GUESTS; i++) {
    pthread_join (t[i], NULL);
    sum.answered += g[i].answered;
    sum.given_up += g[i].given_up;
    sum.full += g[i].full;
    sum.wrong += g[i].wrong;
  }
  return sum;
}

static void
check_sum (struct region *r, struct guest sum)
{
  cr_assert_eq (sum.wrong, 0, "%u answers belonged to other requests", sum.wrong);
  cr_assert_eq (sum.full, 0);
  cr_assert_gt (sum.answered, 100);
  cr_assert_gt (sum.given_up, 0, "the race that this is about did not happen");
  for (int i = 0; i < 200 && not_free (r) > 0; i++)
    usleep (10000); /* the worker still answers what was given up */
  cr_assert_eq (not_free (r), 0);
}

static void *
worker_thread (void *opaque)
{
  work (opaque);
  return NULL;
}

Test (urgent, threads)
{
  struct region *r = fixture_region (BLOCKS);
  pthread_t worker;

  cr_assert_eq (pthread_create (&worker, NULL, worker_thread, r), 0);
  check_sum (r, run_guests (r));
  atomic_store (&stop_worker, true);
  pthread_join (worker, NULL);
  atomic_store (&stop_worker, false);
  region_free (r);
}

#ifndef UNIT_THREAD_SANITIZER /* which cannot follow two mappings of the same memory */
Test (urgent, processes)
{
  struct region *r = fixture_region (BLOCKS);
  pid_t pid = fork ();

  cr_assert_neq (pid, -1);
  if (pid == 0) {
    struct region *w = region_map (r->fd, &(char *){ NULL });
    if (w == NULL)
      _exit (2);
    work (w);
    _exit (0);
  }
  struct guest sum = run_guests (r);
  check_sum (r, sum);
  int status;
  cr_assert_eq (waitpid (pid, &status, WNOHANG), 0, "the worker ended with %x", status);
  kill (pid, SIGKILL);
  waitpid (pid, NULL, 0);

  /* It is gone: nobody answers, every wait ends at its time. */
  int64_t begin = clock_ns ();
  int slot = urgent_post (r, URGENT_WRITE, 0, 1);
  cr_assert_eq (urgent_wait (r, slot, begin + 30 * MS), URGENT_ANSWER_NONE);
  urgent_drop (r, slot);
  region_free (r);
}
#endif

/* A worker that scribbles: all calls of the filter end, and no slot is out of range. */
static void *
scribble (void *opaque)
{
  struct region *r = opaque;
  uint64_t rnd = 99;

  while (!atomic_load (&stop_worker)) {
    uint64_t v = fixture_random (&rnd);
    struct urgent_slot *s = &slots_of (r)[v % URGENT_SLOTS];

    atomic_store (&s->state, v & 1024 ? (uint32_t)(v >> 32) : (uint32_t)(v >> 32) % 8);
    atomic_store (&r->hdr->wake_worker, (uint32_t)(v >> 16));
    atomic_store (&r->hdr->worker_sleeps, (uint32_t)(v >> 24) % 2);
  }
  return NULL;
}

Test (urgent, scribbled)
{
  struct region *r = fixture_region (100);
  pthread_t t;
  uint64_t begin = 0;

  cr_assert_eq (pthread_create (&t, NULL, scribble, r), 0);
  for (int i = 0; i < 3000 && !fixture_late (&begin); i++) {
    int slot = urgent_post (r, URGENT_WRITE, 1, 1);
    cr_assert (slot >= -1 && slot < (int)URGENT_SLOTS);
    if (slot == -1)
      for (unsigned n = 0; n < URGENT_SLOTS; n++)
        atomic_store (&slots_of (r)[n].state, URGENT_FREE);
    else {
      urgent_wait (r, slot, clock_ns () + MS / 10);
      urgent_drop (r, slot);
    }
  }
  urgent_wake_all (r);
  atomic_store (&stop_worker, true);
  pthread_join (t, NULL);
  atomic_store (&stop_worker, false);
  region_free (r);
}
