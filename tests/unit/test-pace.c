/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves of the pace: the throttled rate is kept and rewrites are free; no wait is longer than it
 * may be; a worker that does nothing costs all writers together one delay, a slow one is not taken
 * for such; "synchronised" is never said while a write went on unanswered; and the region can be
 * freed the moment pace_end() returns, however many threads are at it.
 * measures_times
 */

#include "config.h"

#include <poll.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

#include "base/fd.h"
#include "tests/unit/fixture.h"

/* The guest threads of the lifetime test are stopped for a moment now and then right after they
 * loaded something: the instants on which the argument in pace.h depends become long. */
static _Thread_local unsigned pause_every, looks;

static void
dawdle (void)
{
  if (pause_every != 0 && ++looks % pause_every == 0)
    usleep (3000);
}

#undef atomic_load
#define atomic_load(p)                                                                             \
  __extension__({                                                                                  \
    __typeof__ (atomic_load_explicit (p, memory_order_seq_cst)) loaded                             \
        = atomic_load_explicit (p, memory_order_seq_cst);                                          \
    dawdle ();                                                                                     \
    loaded;                                                                                        \
  })
#include "nbd-plugin/mirror/pace.c"
#undef atomic_load
#define atomic_load(p) atomic_load_explicit (p, memory_order_seq_cst)

#define MS 1000000ll
#define BLOCKS 10000u

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

static void
write_block (struct pace *p, uint64_t block, uint64_t dirtied)
{
  pace_after (p, URGENT_WRITE, block * BLOCK, BLOCK, dirtied, no_shutdown, NULL);
}

static struct pace_view
look (struct pace *p)
{
  struct pace_view v;

  pace_look (p, &v);
  return v;
}

/* ---- throttled ---- */

/* On a simulated clock: whatever is asked in excess, the rate is kept to within what may be saved
 * up. */
Test (pace, bucket_keeps_the_rate)
{
  for (int64_t step = MS / 10; step <= 30 * MS; step *= 3) {
    struct pace_bucket b = { .limit = 10 << 20 };
    int64_t now = 5000 * MS, begin = now;
    uint64_t bytes = 0;

    b.paid_ns = now;
    while (now < begin + 10000 * MS) {
      int64_t until = pace_bucket_take (&b, 65536, now, 50 * MS);
      bytes += 65536;
      cr_assert_leq (until, now + 50 * MS);
      now = until > now + step ? until
                               : now + step; /* writes when it may, and no faster than it can */
    }
    double limit = 10.0 * (10 << 20), can = 10000.0 * MS / (double)step * 65536;
    double wanted = can < limit ? can : limit;
    cr_assert (bytes > wanted * 0.98 && bytes < wanted * 1.02 + 65536, "step %lld: %g of %g",
               (long long)step, (double)bytes, wanted);
  }
}

/* What is saved up is limited, and so is debt: a huge write pays max-delay, and the next pays for
 * itself only on top of that. */
Test (pace, bucket_limits)
{
  struct pace_bucket b = { .limit = 1000000, .paid_ns = 0 };
  int64_t now = 100000 * MS;

  cr_assert_eq (pace_bucket_take (&b, 100000, now, 50 * MS), now, "100 ms were saved up");
  cr_assert_eq (pace_bucket_take (&b, 10000, now, 50 * MS), now + 10 * MS);
  cr_assert_eq (pace_bucket_take (&b, UINT64_C (1) << 60, now, 50 * MS), now + 50 * MS);
  cr_assert_eq (pace_bucket_take (&b, 1000, now, 50 * MS), now + 50 * MS);
  now += 45 * MS;
  cr_assert_eq (pace_bucket_take (&b, 1000, now, 50 * MS), now + 6 * MS);
  b.limit = 1;
  cr_assert_eq (pace_bucket_take (&b, UINT64_MAX, now, PACE_MAX_DELAY_NS), now + PACE_MAX_DELAY_NS);
}

struct dirtier {
  struct pace *p;
  int64_t end;
  uint64_t bytes;
};

static void *
dirty (void *opaque)
{
  struct dirtier *d = opaque;

  while ((int64_t)clock_ns () < d->end) {
    write_block (d->p, 1, 1);
    d->bytes += BLOCK;
  }
  return NULL;
}

/* Four threads that dirty as fast as they can are kept at the limit. */
Test (pace, throttled_rate)
{
  struct region *r = fixture_region (BLOCKS);
  struct dirtier d[4];
  pthread_t t[4];
  struct pace p;
  uint64_t sum = 0;

  pace_init (&p);
  pace_set (&p, r, PACE_THROTTLED, 8 << 20, 50 * MS);
  int64_t begin = (int64_t)clock_ns ();
  for (int i = 0; i < 4; i++) {
    d[i] = (struct dirtier){ .p = &p, .end = begin + 1000 * MS };
    cr_assert_eq (pthread_create (&t[i], NULL, dirty, &d[i]), 0);
  }
  for (int i = 0; i < 4; i++) {
    pthread_join (t[i], NULL);
    sum += d[i].bytes;
  }
  double rate = (double)sum * 1e9 / (double)((int64_t)clock_ns () - begin);
  cr_assert (rate < 1.05 * (8 << 20), "%g bytes/s of 8 MiB/s", rate);
  cr_assert (rate > 0.5 * (8 << 20), "%g bytes/s of 8 MiB/s", rate); /* this machine may be busy */
  struct pace_view v = look (&p);
  cr_assert_eq (v.mode, PACE_THROTTLED);
  cr_assert_eq (v.limit, 8 << 20);
  cr_assert_gt (v.delayed, 10);
  cr_assert_eq (v.missed, 0);
  cr_assert_not (v.synchronised);

  /* A rewrite pays nothing, not even what others owe. */
  pace_set (&p, r, PACE_THROTTLED, 1, 60000 * MS);
  begin = (int64_t)clock_ns ();
  for (int i = 0; i < 1000; i++)
    write_block (&p, 1, 0);
  pace_after (&p, URGENT_FLUSH, 0, 0, 0, no_shutdown, NULL);
  cr_assert_lt ((int64_t)clock_ns () - begin, 20000 * MS);
  pace_end (&p);
  pace_destroy (&p);
  region_free (r);
}

static void *
one_write (void *opaque)
{
  write_block (opaque, 1, 1);
  return NULL;
}

static pthread_t
start_write (struct pace *p)
{
  pthread_t t;

  cr_assert_eq (pthread_create (&t, NULL, one_write, p), 0);
  usleep (30000);
  return t;
}

/* A throttled wait ends at max-delay, when the mode changes, and at shutdown. */
Test (pace, throttled_waits_end)
{
  struct region *r = fixture_region (BLOCKS);
  struct pace p;
  int64_t begin = (int64_t)clock_ns ();

  pace_init (&p);
  pace_set (&p, r, PACE_THROTTLED, 1, 40 * MS);
  write_block (&p, 1, 1);
  cr_assert_geq ((int64_t)clock_ns () - begin, 40 * MS);
  cr_assert_lt (look (&p).longest_ns, 20000 * MS);

  pace_set (&p, r, PACE_THROTTLED, 1, PACE_MAX_DELAY_NS);
  pthread_t t = start_write (&p);
  pace_set (&p, r, PACE_OPEN, 0, PACE_MAX_DELAY_NS);
  pthread_join (t, NULL);
  pace_set (&p, r, PACE_THROTTLED, 1, PACE_MAX_DELAY_NS);
  t = start_write (&p);
  pace_end (&p);
  pthread_join (t, NULL);
  pace_set (&p, r, PACE_THROTTLED, 1, PACE_MAX_DELAY_NS);
  pace_after (&p, URGENT_WRITE, 0, BLOCK, 1, shutting_down, NULL);
  cr_assert_lt (look (&p).longest_ns, 30000 * MS);
  pace_end (&p);
  pace_destroy (&p);
  region_free (r);
}

/* Throttling that helps nobody is given up: something is dirty and nothing has moved for a second.
 */
Test (pace, throttled_in_vain)
{
  struct region *r = fixture_region (BLOCKS);
  struct pace p;
  int64_t now = 1000 * MS;

  pace_init (&p);
  pace_set (&p, r, PACE_THROTTLED, 1, PACE_MAX_DELAY_NS);
  pace_tick (&p, now);
  pace_tick (&p, now += 5000 * MS); /* nothing is dirty */
  cr_assert_not (atomic_load (&p.moot));
  bitmap_set (r, REGION_DIRTY, 0, 1);
  pace_tick (&p, now += 900 * MS);
  cr_assert_not (atomic_load (&p.moot));
  atomic_fetch_add (&r->hdr->progress, 1);
  pace_tick (&p, now += 900 * MS);
  pace_tick (&p, now += 900 * MS);
  cr_assert_not (atomic_load (&p.moot));
  pthread_t t = start_write (&p);
  pace_tick (&p, now += 200 * MS);
  cr_assert (atomic_load (&p.moot));
  pthread_join (t, NULL); /* released */
  write_block (&p, 2, 1);
  cr_assert_lt (look (&p).longest_ns, 30000 * MS);
  atomic_fetch_add (&r->hdr->progress, 1);
  pace_tick (&p, now);
  cr_assert_not (atomic_load (&p.moot));
  pace_end (&p);
  pace_destroy (&p);
  region_free (r);
}

/* ---- synchronous ---- */

enum manner { ANSWER, REFUSE, ONLY_PROGRESS, NOTHING };

/* A worker that keeps to its MANNER. */
struct worker {
  struct region *r;
  _Atomic int manner;
  _Atomic bool stop;
  pthread_t thread;
};

static void *
work (void *opaque)
{
  struct worker *w = opaque;
  struct urgent_request q;

  while (!atomic_load (&w->stop)) {
    uint32_t seen = urgent_bell (w->r);

    while (atomic_load (&w->manner) < ONLY_PROGRESS && urgent_take (w->r, &q)) {
      bool answer = atomic_load (&w->manner) == ANSWER;
      if (answer)
        atomic_fetch_add (&w->r->hdr->progress, 1);
      urgent_answer (w->r, q.slot, answer);
    }
    if (atomic_load (&w->manner) == ONLY_PROGRESS)
      atomic_fetch_add (&w->r->hdr->progress, 1);
    urgent_sleep (w->r, seen, MS);
  }
  return NULL;
}

static void
start_worker (struct worker *w, struct region *r, enum manner manner)
{
  *w = (struct worker){ .r = r, .manner = (int)manner };
  cr_assert_eq (pthread_create (&w->thread, NULL, work, w), 0);
}

static void
stop_worker (struct worker *w)
{
  atomic_store (&w->stop, true);
  pthread_join (w->thread, NULL);
}

/* Writes and flushes wait for their answer and say what they want; "synchronised" follows the
 * epochs. */
Test (pace, synchronous)
{
  struct region *r = fixture_region (BLOCKS);
  struct urgent_request q;
  struct worker w;
  struct pace p;

  pace_init (&p);
  write_block (&p, 1, 1); /* open: no region is needed */
  pace_set (&p, r, PACE_SYNCHRONOUS, 0, PACE_MAX_DELAY_NS);
  cr_assert_not (look (&p).synchronised, "nobody has caught up");
  atomic_store (&r->hdr->synced_epoch, atomic_load (&r->hdr->sync_epoch));
  cr_assert (look (&p).synchronised);

  pthread_t t = start_write (&p);
  cr_assert (urgent_take (r, &q));
  cr_assert_eq (q.kind, URGENT_WRITE);
  cr_assert_eq (q.first, 1);
  cr_assert_eq (q.count, 1);
  usleep (20000);
  cr_assert_eq (atomic_load (&p.users), 1, "it waits for the answer");
  urgent_answer (r, q.slot, true);
  pthread_join (t, NULL);
  cr_assert (look (&p).synchronised);
  cr_assert_eq (look (&p).missed, 0);
  cr_assert_eq (look (&p).delayed, 1);

  start_worker (&w, r, ANSWER);
  for (unsigned i = 0; i < 300; i++)
    write_block (&p, i, 1);
  /* Over the end of the disk, and beyond it. */
  pace_after (&p, URGENT_WRITE | URGENT_FLUSH, (BLOCKS - 1) * (uint64_t)BLOCK, 10 * BLOCK, 1,
              no_shutdown, NULL);
  pace_after (&p, URGENT_WRITE, UINT64_MAX - 5, 5, 1, no_shutdown, NULL);
  pace_after (&p, URGENT_FLUSH, 0, 0, 0, no_shutdown, NULL);
  cr_assert_eq (look (&p).missed, 0);
  cr_assert (look (&p).synchronised);

  /* A refusal is a miss, and at once.  The control thread is told of the first one. */
  p.wake_fd = fd_wake_new ();
  atomic_store (&w.manner, REFUSE);
  write_block (&p, 7, 1);
  cr_assert_eq (look (&p).missed, 1);
  struct pollfd told = { .fd = p.wake_fd, .events = POLLIN };
  cr_assert_eq (poll (&told, 1, 0), 1, "nobody is told that it is synchronised no longer");
  fd_wake_clear (p.wake_fd);
  write_block (&p, 7, 1);
  cr_assert_eq (poll (&told, 1, 0), 0);
  fd_close (&p.wake_fd);
  cr_assert_not (look (&p).synchronised);
  cr_assert_eq (atomic_load (&r->hdr->sync_epoch), look (&p).epoch);
  atomic_store (&r->hdr->synced_epoch, atomic_load (&r->hdr->sync_epoch));
  cr_assert (look (&p).synchronised);
  cr_assert_lt (look (&p).longest_ns, 30000 * MS);

  /* The mode ended: what was caught up then counts no longer when it begins again. */
  pace_set (&p, r, PACE_OPEN, 0, 50 * MS);
  cr_assert_not (look (&p).synchronised);
  pace_set (&p, r, PACE_SYNCHRONOUS, 0, 50 * MS);
  cr_assert_not (look (&p).synchronised);
  stop_worker (&w);
  pace_end (&p);
  pace_destroy (&p);
  region_free (r);
}

struct writer {
  struct pace *p;
  unsigned writes;
  int64_t until; /* or that long */
  _Atomic unsigned done;
};

static void *
write_many (void *opaque)
{
  struct writer *w = opaque;

  for (unsigned i = 0; w->until != 0 ? (int64_t)clock_ns () < w->until : i < w->writes; i++) {
    write_block (w->p, i % BLOCKS, 1);
    atomic_fetch_add (&w->done, 1);
  }
  return NULL;
}

#define WRITERS 4

/* A worker that does nothing: all writes of all threads together wait once.  When it moves again,
 * writes wait again. */
Test (pace, hung_from_the_start)
{
  struct region *r = fixture_region (BLOCKS);
  struct writer w = { .writes = 100 };
  pthread_t t[WRITERS];
  struct worker worker;
  struct pace p;
  int64_t begin = (int64_t)clock_ns ();

  pace_init (&p);
  w.p = &p;
  pace_set (&p, r, PACE_SYNCHRONOUS, 0, 500 * MS);
  for (int i = 0; i < WRITERS; i++)
    cr_assert_eq (pthread_create (&t[i], NULL, write_many, &w), 0);
  for (int i = 0; i < WRITERS; i++)
    pthread_join (t[i], NULL);
  int64_t took = (int64_t)clock_ns () - begin;
  cr_assert (took >= 500 * MS, "%d writes took %lld ms", WRITERS * 100, (long long)(took / MS));
  cr_assert_eq (look (&p).missed, WRITERS * 100);
  cr_assert_leq (look (&p).delayed, WRITERS, "the others did not even ask");
  cr_assert_not (look (&p).synchronised);

  start_worker (&worker, r, ONLY_PROGRESS);
  while (atomic_load (&r->hdr->progress) == 0)
    usleep (1000);
  atomic_store (&worker.manner, ANSWER);
  uint64_t delayed = look (&p).delayed;
  write_block (&p, 1, 1);
  cr_assert_eq (look (&p).missed, WRITERS * 100, "it was answered");
  cr_assert_eq (look (&p).delayed, delayed + 1);
  stop_worker (&worker);
  pace_end (&p);
  pace_destroy (&p);
  region_free (r);
}

/* -> how long writers wait in all once nothing moves */
static int64_t
wait_in_vain (void)
{
  struct region *r = fixture_region (BLOCKS);
  struct writer w = { .writes = 50 };
  pthread_t t[WRITERS];
  struct worker worker;
  struct pace p;

  pace_init (&p);
  w.p = &p;
  pace_set (&p, r, PACE_SYNCHRONOUS, 0, 1600 * MS);
  start_worker (&worker, r, ONLY_PROGRESS);
  for (int i = 0; i < WRITERS; i++)
    cr_assert_eq (pthread_create (&t[i], NULL, write_many, &w), 0);
  usleep (1200000);
  atomic_store (&worker.manner, NOTHING);
  usleep (10000);
  int64_t begin = (int64_t)clock_ns ();
  for (int i = 0; i < WRITERS; i++)
    pthread_join (t[i], NULL);
  int64_t took = (int64_t)clock_ns () - begin;
  cr_assert_eq (look (&p).missed, WRITERS * 50);
  stop_worker (&worker);
  pace_end (&p);
  pace_destroy (&p);
  region_free (r);
  return took;
}

/* A worker that answered until now, and then nothing moves: one delay from then on, though every
 * waiter has seen progress since it began.  One delay and one look more, that is; two delays would
 * be what is left of the first, 400 ms, and 1600.  A busy machine may take that long now and then.
 */
Test (pace, hangs_while_they_wait)
{
  int64_t took = 0;

  for (int i = 0; i < 3 && (i == 0 || took >= 1950 * MS); i++)
    took = wait_in_vain ();
  cr_assert_lt (took, 1950 * MS, "%lld ms", (long long)(took / MS));
}

/* A destination that is only slow is waited for each time, and not taken for hung. */
Test (pace, slow_is_not_hung)
{
  struct region *r = fixture_region (BLOCKS);
  struct worker worker;
  struct pace p;

  pace_init (&p);
  pace_set (&p, r, PACE_SYNCHRONOUS, 0, 200 * MS);
  start_worker (&worker, r, ONLY_PROGRESS);
  while (atomic_load (&r->hdr->progress) == 0)
    usleep (1000);
  int64_t begin = (int64_t)clock_ns ();
  for (unsigned i = 0; i < 3; i++)
    write_block (&p, i, 1);
  cr_assert_geq ((int64_t)clock_ns () - begin, 600 * MS);
  cr_assert_eq (look (&p).delayed, 3);
  cr_assert_eq (look (&p).missed, 3);
  /* Idle for longer than max-delay, then a write: that nothing moved meanwhile says nothing. */
  atomic_store (&worker.manner, ANSWER);
  write_block (&p, 1, 1);
  usleep (450000);
  write_block (&p, 1, 1);
  cr_assert_eq (look (&p).missed, 3);
  stop_worker (&worker);

  /* It hung, and has caught up with nothing to do, which moves nothing: it is asked again. */
  write_block (&p, 1, 1);
  write_block (&p, 1, 1);
  cr_assert_eq (look (&p).missed, 5);
  cr_assert_eq (look (&p).delayed, 6, "the last one was not even asked for");
  atomic_store (&r->hdr->synced_epoch, atomic_load (&r->hdr->sync_epoch));
  write_block (&p, 1, 1);
  cr_assert_eq (look (&p).delayed, 7);
  pace_end (&p);
  pace_destroy (&p);
  region_free (r);
}

/* Waits of a minute end at once when the mode changes, when the pace ends, and at shutdown, which
 * is a miss; when no slot is free nobody waits. */
Test (pace, synchronous_waits_end)
{
  struct region *r = fixture_region (BLOCKS);
  struct pace p;

  pace_init (&p);
  pace_set (&p, r, PACE_SYNCHRONOUS, 0, PACE_MAX_DELAY_NS);
  pthread_t t = start_write (&p);
  pace_end (&p);
  cr_assert_eq (atomic_load (&p.users), 0);
  pthread_join (t, NULL);

  pace_set (&p, r, PACE_SYNCHRONOUS, 0, 8000 * MS);
  t = start_write (&p);
  pace_set (&p, r, PACE_THROTTLED, 1 << 30, 50 * MS);
  pthread_join (t, NULL);
  cr_assert_lt (look (&p).longest_ns, 7500 * MS);
  cr_assert_eq (look (&p).missed, 0, "nobody asks for it any more");

  pace_set (&p, r, PACE_SYNCHRONOUS, 0, 8000 * MS);
  pace_reset_counters (&p);
  pace_after (&p, URGENT_FLUSH, 0, 0, 0, shutting_down, NULL);
  cr_assert_lt (look (&p).longest_ns, 8000 * MS / LOOKS,
                "a shutdown is noticed late if max-delay is long");
  cr_assert_eq (look (&p).missed, 1);
  for (unsigned i = 0; i < URGENT_SLOTS; i++)
    urgent_post (r, URGENT_FLUSH, 0, 0);
  int64_t begin = (int64_t)clock_ns ();
  write_block (&p, 1, 1);
  cr_assert_lt ((int64_t)clock_ns () - begin, 7500 * MS);
  cr_assert_eq (look (&p).missed, 2);
  pace_reset_counters (&p);
  cr_assert_eq (look (&p).missed + look (&p).delayed, 0);
  pace_end (&p);
  pace_destroy (&p);
  region_free (r);
}

/* ---- lifetime ---- */

static _Atomic bool stop_guests;

static void *
guest (void *opaque)
{
  struct pace *p = opaque;
  uint64_t rnd = 1 + (uint64_t)(uintptr_t)&rnd;

  pause_every = 23;
  while (!atomic_load (&stop_guests)) {
    uint64_t v = fixture_random (&rnd);
    pace_after (p, v & 1 ? URGENT_WRITE : URGENT_WRITE | URGENT_FLUSH, v % BLOCKS * BLOCK, BLOCK,
                v >> 8 & 1, no_shutdown, NULL);
  }
  return NULL;
}

/* Regions come and go under six threads, with a worker that answers, one that is stopped, and none.
 * A thread that touches a region after pace_end() is killed: it is unmapped. */
Test (pace, region_goes)
{
  pthread_t t[6];
  struct pace p;
  uint64_t rnd = 7;
  uint64_t begin = 0;
  unsigned rounds = 0;

  pace_init (&p);
  for (int i = 0; i < 6; i++)
    cr_assert_eq (pthread_create (&t[i], NULL, guest, &p), 0);
  for (; rounds < 400 && !fixture_late (&begin); rounds++) {
    struct region *r = fixture_region (BLOCKS);
    struct worker w;
    bool worker = fixture_random (&rnd) % 3 == 0;

    if (worker)
      start_worker (&w, r, fixture_random (&rnd) % 2 == 0 ? ANSWER : ONLY_PROGRESS);
    for (unsigned changes = (unsigned)(fixture_random (&rnd) % 4); changes > 0; changes--) {
      pace_set (&p, r, (enum pace_mode) (fixture_random (&rnd) % 3), 1 << 20, 5 * MS);
      usleep ((unsigned)(fixture_random (&rnd) % 2000));
    }
    pace_set (&p, r, PACE_SYNCHRONOUS, 0, 5 * MS);
    usleep ((unsigned)(fixture_random (&rnd) % 2000));
    if (worker)
      stop_worker (&w);
    pace_end (&p);
    region_free (r);
    usleep (1500); /* for those who are late */
  }
  atomic_store (&stop_guests, true);
  for (int i = 0; i < 6; i++)
    pthread_join (t[i], NULL);
  cr_assert_gt (rounds, 20);
  cr_assert_gt (look (&p).delayed, 0);
  pace_destroy (&p);
}
