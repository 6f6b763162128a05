/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Claims: the order of bits, turns under threads, the end of a session, and, with everything
 * together, a process that marks while another copies and is killed again and again.
 */

#include "config.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/fixture.h"

static void
check_all (const struct region *r)
{
  for (int a = 0; a < REGION_NR_ARRAYS; a++)
    fixture_check (r, (enum region_array)a);
}

/* ---- one thread ---- */

/* A run goes from dirty to claimed, and back if it is given back; the result counts dirty bits
 * only. */
Test (claims, run_and_give_back)
{
  struct region *r = fixture_region (10000);

  for (unsigned set = 0; set < 2; set++) {
    bitmap_set (r, REGION_DIRTY, 100, 50);
    bitmap_set (r, REGION_DIRTY, 200, 5000);
    cr_assert_eq (claim_run (r, set, 120, 1000), 30 + 920);
    cr_assert_eq (bitmap_count (r, claim_array (set)), 1000, "all of the run is claimed");
    cr_assert_eq (bitmap_count (r, REGION_DIRTY), 20 + 4080);
    cr_assert_not (bitmap_test_any (r, REGION_DIRTY, 120, 1000));
    claim_give_back (r, set, 150, 60);
    cr_assert_eq (bitmap_count (r, claim_array (set)), 940);
    cr_assert_eq (bitmap_count (r, REGION_DIRTY), 20 + 4080 + 60);
    cr_assert_eq (bitmap_count (r, claim_array (1 - set)), 0);
    check_all (r);
    bitmap_clear_all (r, REGION_DIRTY);
    claim_release (r, set);
    cr_assert (claims_all_empty (r));
  }
  region_free (r);
}

/* A turn is refused while the other set holds claims or entries. */
Test (claims, turn)
{
  struct region *r = fixture_region (1000);
  unsigned old = 7;

  unsigned a = claim_enter (r);
  cr_assert_eq (claim_enter (r), a);
  claim_run (r, a, 5, 5);
  cr_assert (claim_turn (r, &old));
  cr_assert_eq (old, a);
  unsigned b = claim_enter (r);
  cr_assert_eq (b, 1 - a);
  cr_assert_not (claim_drained (r, a));
  cr_assert_not (claim_turn (r, &old), "two copiers are still counted in the other set");
  cr_assert_not (claim_leave (r, a), "not the last one");
  cr_assert_not (claim_drained (r, a));
  cr_assert (claim_leave (r, a), "the last one");
  cr_assert (claim_drained (r, a));
  cr_assert_not (claim_turn (r, &old), "the other set is not released");
  claim_release (r, a);
  old = 7;
  cr_assert (claim_turn (r, &old));
  cr_assert_eq (old, b);
  cr_assert_not (claim_turn (r, &old), "a copier that has claimed nothing yet is counted there");
  cr_assert (claim_leave (r, b));
  claim_release (r, b);
  cr_assert (claim_turn (r, &old));
  cr_assert (claims_all_empty (r));
  region_free (r);
}

/* Everything that is not empty is noticed by the final look. */
Test (claims, all_empty)
{
  struct region *r = fixture_region (70000);

  for (int a = 0; a < REGION_NR_ARRAYS; a++)
    for (uint64_t b = 0; b < 70000; b += 69999) {
      cr_assert (claims_all_empty (r));
      bitmap_set (r, (enum region_array)a, b, 1);
      cr_assert_eq (claims_all_empty (r), a == REGION_VISITED, "visited blocks are no work left");
      bitmap_clear (r, (enum region_array)a, b, 1);
    }
  region_free (r);
}

/* R5: claims go to dirty and quarantine, nothing else changes, the session goes up, and a look that
 * goes on meanwhile is told. */
Test (claims, revoke)
{
  struct region *r = fixture_region (20000);
  uint64_t session = atomic_load (&r->hdr->session);
  uint64_t given_back = atomic_load (&r->hdr->given_back);

  claim_enter (r);
  bitmap_set (r, REGION_DIRTY, 0, 10);
  bitmap_set (r, REGION_CLAIMED_A, 5, 10);
  bitmap_set (r, REGION_CLAIMED_B, 10000, 10000);
  bitmap_set (r, REGION_QUARANTINE, 14, 6);
  claims_revoke (r);
  cr_assert_eq (bitmap_count (r, REGION_CLAIMED_A) + bitmap_count (r, REGION_CLAIMED_B), 0);
  cr_assert_eq (bitmap_count (r, REGION_DIRTY), 15 + 10000);
  cr_assert_eq (bitmap_count (r, REGION_QUARANTINE), 15 + 10000);
  cr_assert_not (bitmap_test (r, REGION_QUARANTINE, 4));
  cr_assert (bitmap_test (r, REGION_QUARANTINE, 5) && bitmap_test (r, REGION_QUARANTINE, 19));
  cr_assert (bitmap_test (r, REGION_DIRTY, 14) && !bitmap_test (r, REGION_DIRTY, 15));
  cr_assert (claim_drained (r, 0) && claim_drained (r, 1));
  cr_assert_eq (atomic_load (&r->hdr->session), session + 1);
  cr_assert_neq (atomic_load (&r->hdr->given_back), given_back);
  check_all (r);
  region_free (r);
}

/* A fresh region takes over all that the old one knew, on top of what it has been told already. */
Test (claims, merge)
{
  struct region *old = fixture_region (20000), *fresh = fixture_region (20000);

  atomic_store (&old->hdr->session, 41);
  atomic_store (&old->hdr->dirtied_total, 1000);
  bitmap_set (old, REGION_DIRTY, 0, 10);
  bitmap_set (old, REGION_CLAIMED_A, 100, 10);
  bitmap_set (old, REGION_CLAIMED_B, 19990, 10);
  bitmap_set (old, REGION_QUARANTINE, 105, 10);
  bitmap_set (old, REGION_VISITED, 300, 7);
  atomic_store (&old->hdr->skipped_bytes, 77);
  claim_enter (old);
  bitmap_mark (fresh, 5 * BLOCK, 10 * BLOCK);
  region_merge (fresh, old);
  cr_assert_eq (bitmap_count (fresh, REGION_DIRTY), 15 + 10 + 10);
  cr_assert_eq (bitmap_count (fresh, REGION_QUARANTINE), 15 + 10);
  cr_assert (bitmap_test (fresh, REGION_DIRTY, 0) && bitmap_test (fresh, REGION_DIRTY, 14)
             && bitmap_test (fresh, REGION_DIRTY, 109) && bitmap_test (fresh, REGION_DIRTY, 19999));
  cr_assert (bitmap_test (fresh, REGION_QUARANTINE, 100)
             && bitmap_test (fresh, REGION_QUARANTINE, 114)
             && bitmap_test (fresh, REGION_QUARANTINE, 19990));
  cr_assert_not (bitmap_test (fresh, REGION_DIRTY, 110), "quarantine alone does not mean dirty");
  cr_assert (bitmap_test (fresh, REGION_VISITED, 300) && bitmap_test (fresh, REGION_VISITED, 306)
             && bitmap_count (fresh, REGION_VISITED) == 7);
  cr_assert_eq (atomic_load (&fresh->hdr->skipped_bytes), 77);
  cr_assert_eq (bitmap_count (fresh, REGION_CLAIMED_A) + bitmap_count (fresh, REGION_CLAIMED_B), 0);
  cr_assert_eq (atomic_load (&fresh->hdr->session), 42);
  cr_assert_eq (atomic_load (&fresh->hdr->dirtied_total), 1010);
  cr_assert (claim_drained (fresh, 0) && claim_drained (fresh, 1));
  check_all (fresh);
  region_free (old);
  region_free (fresh);
}

/* ---- looks ---- */

struct look {
  struct region *r;
  _Atomic uint64_t round; /* odd: block 3 is in exactly one place on its way */
  _Atomic bool stop;
  _Atomic uint64_t looks;
  const char *_Atomic wrong;
};

/* Looks at the one block that is always somewhere while the round is the same odd number. */
static void *
looker (void *arg)
{
  struct look *l = arg;

  while (!atomic_load (&l->stop)) {
    uint64_t round = atomic_load (&l->round);
    bool all = claims_all_empty (l->r);
    bool bit = bitmap_test (l->r, REGION_DIRTY, 3) || bitmap_test (l->r, REGION_CLAIMED_A, 3);
    uint64_t sum = bitmap_count (l->r, REGION_DIRTY);

    sum += bitmap_count (l->r, REGION_CLAIMED_A);
    if (round % 2 == 0 || atomic_load (&l->round) != round)
      continue;
    if (all)
      atomic_store (&l->wrong, "claims_all_empty");
    if (!bit)
      atomic_store (&l->wrong, "bits");
    if (sum == 0)
      atomic_store (&l->wrong, "counters");
    atomic_fetch_add (&l->looks, 1);
  }
  return NULL;
}

/* While a block goes from dirty to claimed, dirty and then claimed never look both empty, in bits,
 * in counters, and by claims_all_empty.  (Fails if claim_run clears before it sets.) */
Test (claims, no_look_misses_a_claim)
{
  struct look l = { .r = fixture_region (64) };
  uint64_t start = 0;
  pthread_t t;

  cr_assert_eq (pthread_create (&t, NULL, looker, &l), 0);
  for (unsigned n = 0; n < 1000000 && atomic_load (&l.wrong) == NULL && !fixture_late (&start);
       n++) {
    bitmap_set (l.r, REGION_DIRTY, 3, 1);
    atomic_fetch_add (&l.round, 1);
    for (volatile unsigned spin = n % 50; spin > 0; spin--)
      ;
    claim_run (l.r, 0, 3, 1);
    for (volatile unsigned spin = n % 50; spin > 0; spin--)
      ;
    atomic_fetch_add (&l.round, 1);
    claim_release (l.r, 0);
  }
  atomic_store (&l.stop, true);
  pthread_join (t, NULL);
  cr_assert_null (atomic_load (&l.wrong), "missed by %s", atomic_load (&l.wrong));
  cr_assert_gt (atomic_load (&l.looks), 100, "the looks met the rounds");
  region_free (l.r);
}

/* Only claims_all_empty: the block goes to and fro, which a plain look at each array can miss. */
static void *
all_empty_looker (void *arg)
{
  struct look *l = arg;

  while (!atomic_load (&l->stop)) {
    if (claims_all_empty (l->r))
      atomic_store (&l->wrong, "claims_all_empty");
    atomic_fetch_add (&l->looks, 1);
  }
  return NULL;
}

/* A block claimed and given back without end is never overlooked.  (Fails if claim_give_back does
 * not count, or clears before it sets.) */
Test (claims, no_look_misses_a_block_given_back)
{
  struct look l = { .r = fixture_region (64) };
  uint64_t start = 0;
  pthread_t t;

  bitmap_set (l.r, REGION_DIRTY, 3, 1);
  cr_assert_eq (pthread_create (&t, NULL, all_empty_looker, &l), 0);
  for (unsigned n = 0; n < 1000000 && atomic_load (&l.wrong) == NULL && !fixture_late (&start);
       n++) {
    claim_run (l.r, 0, 3, 1);
    for (volatile unsigned spin = n % 60; spin > 0; spin--)
      ;
    claim_give_back (l.r, 0, 3, 1);
    for (volatile unsigned spin = n % 70; spin > 0; spin--)
      ;
  }
  atomic_store (&l.stop, true);
  pthread_join (t, NULL);
  cr_assert_null (atomic_load (&l.wrong), "missed by %s", atomic_load (&l.wrong));
  region_free (l.r);
}

struct litmus {
  struct region *r;
  _Atomic unsigned source, copied;
  _Atomic unsigned round, answered;
  struct {
    _Alignas(64) _Atomic unsigned v;
  } slow[24]; /* cache lines of the other processor, which keep the writer's stores waiting */
};

static void *
litmus_copier (void *arg)
{
  struct litmus *l = arg;

  for (unsigned n = 1;; n++) {
    unsigned round;

    while ((round = atomic_load (&l->round)) < n)
      ;
    if (round == UINT_MAX)
      return NULL;
    claim_run (l->r, 0, 3, 1);
    atomic_store (&l->copied, atomic_load_explicit (&l->source, memory_order_relaxed));
    for (int i = 0; i < 24; i++)
      atomic_store_explicit (&l->slow[i].v, n, memory_order_relaxed);
    atomic_store (&l->answered, n);
  }
}

/* R2: a guest write to a block that is dirty already races with its claim.  Either the copier reads
 * the new data, or the block is dirty afterwards.  (Fails if bitmap_set looks whether the bit is
 * set already before it sets it.) */
Test (claims, mark_races_with_claim)
{
  struct litmus l = { .r = fixture_region (64) };
  uint64_t start = 0;
  pthread_t t;

  cr_assert_eq (pthread_create (&t, NULL, litmus_copier, &l), 0);
  for (unsigned n = 1; n < 300000; n++) {
    if (n % 256 == 0 && fixture_late (&start))
      break;
    bitmap_set (l.r, REGION_DIRTY, 3, 1);
    atomic_store (&l.round, n);
    for (volatile unsigned spin = n % 64; spin > 0; spin--)
      ;
    for (int i = 0; i < 24; i++)
      atomic_store_explicit (&l.slow[i].v, n, memory_order_relaxed);
    atomic_store_explicit (&l.source, n, memory_order_relaxed); /* the layer below is no fence */
    bitmap_mark (l.r, 3 * BLOCK, 1);
    while (atomic_load (&l.answered) != n)
      ;
    cr_assert (bitmap_test (l.r, REGION_DIRTY, 3) || atomic_load (&l.copied) == n,
               "round %u: the write is lost", n);
    claim_release (l.r, 0);
  }
  atomic_store (&l.round, UINT_MAX);
  pthread_join (t, NULL);
  region_free (l.r);
}

/* ---- turns ---- */

#define TURN_NR 512
#define TURN_COPIERS 3

enum { IDLE, CLAIMED, ANSWERED };

struct turns {
  struct region *r;
  _Atomic uint8_t state[TURN_NR]; /* of the block's last copy */
  _Atomic bool stop;
};

struct copier {
  struct turns *t;
  unsigned id;
};

/* Claims single blocks of its own share, so that state[] has one owner a block. */
static void *
turn_copier (void *arg)
{
  struct copier *c = arg;
  struct turns *t = c->t;
  uint64_t rnd = 5 + c->id;

  while (!atomic_load (&t->stop)) {
    uint64_t b = fixture_random (&rnd) % (TURN_NR / TURN_COPIERS) * TURN_COPIERS + c->id;
    unsigned set = claim_enter (t->r);

    if (!bitmap_test (t->r, REGION_CLAIMED_A, b) && !bitmap_test (t->r, REGION_CLAIMED_B, b)) {
      atomic_store (&t->state[b], CLAIMED);
      claim_run (t->r, set, b, 1);
      for (volatile unsigned spin = (unsigned)(rnd % 64); spin > 0; spin--)
        ;
      atomic_store (&t->state[b], ANSWERED);
    }
    claim_leave (t->r, set);
  }
  return NULL;
}

/* What a FLUSH sent at the drain covers is all that the release drops: every claim of the set was
 * answered before, and none is added in between.  (Fails without claim_enter's second look.) */
Test (claims, turns_under_threads)
{
  static struct turns t;
  struct copier c[TURN_COPIERS];
  pthread_t thread[TURN_COPIERS];
  unsigned turns = 0, released = 0, old;

  t.r = fixture_region (TURN_NR);
  for (unsigned i = 0; i < TURN_COPIERS; i++) {
    c[i] = (struct copier){ &t, i };
    cr_assert_eq (pthread_create (&thread[i], NULL, turn_copier, &c[i]), 0);
  }
  uint64_t start = clock_ms (), took;
  do {
    if (claim_turn (t.r, &old)) {
      uint64_t words[TURN_NR / 64];

      while (!claim_drained (t.r, old))
        sched_yield ();
      for (unsigned w = 0; w < TURN_NR / 64; w++) {
        words[w] = atomic_load (&fixture_words (t.r, claim_array (old))[w]);
        for (uint64_t m = words[w]; m != 0; m &= m - 1) {
          uint64_t b = w * 64 + (unsigned)__builtin_ctzll (m);

          cr_assert_eq (atomic_load (&t.state[b]), ANSWERED, "block %" PRIu64 " flushed early", b);
          released++;
        }
      }
      sched_yield (); /* the FLUSH takes its time */
      for (unsigned w = 0; w < TURN_NR / 64; w++)
        cr_assert_eq (atomic_load (&fixture_words (t.r, claim_array (old))[w]), words[w],
                      "claimed into a set that is being flushed, turn %u", turns);
      claim_release (t.r, old);
      cr_assert (bitmap_empty (t.r, claim_array (old)), "not empty after its release");
      turns++;
    }
    took = clock_ms () - start;
    /* A loaded machine gets round only a few times in two seconds. */
  } while (took < 2 * MS_PER_S || (turns <= 10 && took < 30 * MS_PER_S));
  atomic_store (&t.stop, true);
  for (unsigned i = 0; i < TURN_COPIERS; i++)
    pthread_join (thread[i], NULL);
  check_all (t.r);
  cr_assert_gt (turns, 10); /* each waits for copiers that have lost the processor */
  cr_assert_gt (released, turns);
  region_free (t.r);
}

/* ---- two processes ---- */

/* The guest's disk is one number a block, which a guest write raises before it is marked (R2); the
 * destination has a cache, which dies with a worker, and what a flush made durable. */
#define DISK_NR 20000
#define WORKER_COPIERS 2
#define MARKERS 2

struct disk {
  _Atomic uint32_t source[DISK_NR];
  _Atomic uint32_t cache[DISK_NR];
  _Atomic uint32_t durable[DISK_NR];
  _Atomic uint32_t busy[DISK_NR]; /* R6: one copy of a block at a time */
  _Atomic bool finish;            /* to the worker: end when nothing is left */
};

struct worker {
  struct region *r;
  struct disk *d;
  unsigned id;
  _Atomic bool *stop;
};

static void *
worker_copier (void *arg)
{
  struct worker *w = arg;
  uint64_t from = 0, first, count;

  while (!atomic_load (w->stop)) {
    if (!bitmap_next_run (w->r, REGION_DIRTY, from, 70, &first, &count)) {
      from = 0;
      sched_yield ();
      continue;
    }
    from = first + count;
    for (uint64_t b = first; b < first + count; b++) {
      if (atomic_exchange (&w->d->busy[b], 1) != 0)
        continue;
      unsigned set = claim_enter (w->r);
      claim_run (w->r, set, b, 1);
      atomic_store (&w->d->cache[b], atomic_load (&w->d->source[b]));
      claim_leave (w->r, set);
      atomic_store (&w->d->busy[b], 0);
    }
  }
  return NULL;
}

/* One flush of the destination, and the release of what it made durable (R4). */
static void
flush (struct region *r, struct disk *d)
{
  unsigned old;
  uint64_t from = 0, first, count;

  if (!claim_turn (r, &old))
    return;
  while (!claim_drained (r, old))
    sched_yield ();
  while (bitmap_next_run (r, claim_array (old), from, DISK_NR, &first, &count)) {
    for (from = first; from < first + count; from++)
      atomic_store (&d->durable[from], atomic_load (&d->cache[from]));
  }
  claim_release (r, old);
}

/* A whole worker: copiers and a flusher.  Ends by itself only when told so and nothing is left. */
static void __attribute__ ((noreturn)) worker_process (int fd, struct disk *d)
{
  char *error = NULL;
  struct region *r = region_map (fd, &error);
  struct worker w[WORKER_COPIERS];
  pthread_t t[WORKER_COPIERS];
  _Atomic bool stop = false;

  if (r == NULL || prctl (PR_SET_PDEATHSIG, SIGKILL) == -1) /* a failed test leaves no process */
    _exit (1);
  for (unsigned i = 0; i < WORKER_COPIERS; i++) {
    w[i] = (struct worker){ r, d, i, &stop };
    if (pthread_create (&t[i], NULL, worker_copier, &w[i]) != 0)
      _exit (2);
  }
  while (!(atomic_load (&d->finish) && claims_all_empty (r)))
    flush (r, d);
  atomic_store (&stop, true);
  for (unsigned i = 0; i < WORKER_COPIERS; i++)
    pthread_join (t[i], NULL);
  /* A copier that was about to claim a block which another one had just copied may have claimed it
   * after that look: once too often, but it must not stay. */
  while (!claims_all_empty (r))
    flush (r, d);
  _exit (0);
}

/* The filter's side: markers, and the region they mark, which changes at every attach. */
struct filter {
  pthread_rwlock_t lock;
  struct region *r;
  struct disk *d;
  _Atomic bool stop;
  _Atomic uint64_t turned; /* what bitmap_mark returned, summed up */
};

struct marker {
  struct filter *f;
  uint64_t rnd;
};

static void *
marker_thread (void *arg)
{
  struct marker *m = arg;
  struct filter *f = m->f;

  while (!atomic_load (&f->stop)) {
    uint64_t b = fixture_random (&m->rnd) % DISK_NR;
    uint64_t n = fixture_random (&m->rnd) % (DISK_NR - b < 100 ? DISK_NR - b : 100) + 1;

    pthread_rwlock_rdlock (&f->lock);
    for (uint64_t i = b; i < b + n; i++)
      atomic_fetch_add (&f->d->source[i], 1);
    atomic_fetch_add (&f->turned, bitmap_mark (f->r, b * BLOCK, n * BLOCK));
    pthread_rwlock_unlock (&f->lock);
    if (fixture_random (&m->rnd) % 16 == 0)
      usleep (50);
  }
  return NULL;
}

/* Start a worker on a fresh region that has taken over the old one's knowledge. */
static pid_t
attach (struct filter *f)
{
  struct region *old, *fresh = fixture_region (DISK_NR);

  pthread_rwlock_wrlock (&f->lock);
  old = f->r;
  f->r = fresh;
  pthread_rwlock_unlock (&f->lock);
  region_merge (fresh, old);
  region_free (old);
  for (unsigned b = 0; b < DISK_NR; b++) { /* what was not flushed is gone, what was private too */
    atomic_store (&f->d->cache[b], atomic_load (&f->d->durable[b]));
    atomic_store (&f->d->busy[b], 0);
  }
  pid_t pid = fork ();
  cr_assert_geq (pid, 0);
  if (pid == 0)
    worker_process (fresh->fd, f->d);
  return pid;
}

static void
two_processes (int kills)
{
  struct disk *d
      = mmap (NULL, sizeof *d, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  struct filter f = { .r = fixture_region (DISK_NR), .d = d };
  struct marker m[MARKERS];
  pthread_t t[MARKERS];
  uint64_t rnd = 31337;
  int status;

  cr_assert_neq (d, MAP_FAILED);
  pthread_rwlock_init (&f.lock, NULL);
  pid_t pid = attach (&f);
  for (unsigned i = 0; i < MARKERS; i++) {
    m[i] = (struct marker){ &f, 77 + i };
    cr_assert_eq (pthread_create (&t[i], NULL, marker_thread, &m[i]), 0);
  }
  for (int i = 0; i < kills; i++) {
    usleep ((useconds_t)(1000 + fixture_random (&rnd) % 60000));
    kill (pid, SIGKILL);
    cr_assert_eq (waitpid (pid, &status, 0), pid);
    cr_assert (WIFSIGNALED (status), "the worker ended by itself");
    pid = attach (&f);
  }
  if (kills == 0)
    usleep (1000000);
  atomic_store (&f.stop, true);
  for (unsigned i = 0; i < MARKERS; i++)
    pthread_join (t[i], NULL);
  if (kills > 0) /* a worker's verification of quarantined blocks is not the bitmap's business */
    bitmap_clear_all (f.r, REGION_QUARANTINE);
  atomic_store (&d->finish, true);
  cr_assert_eq (waitpid (pid, &status, 0), pid);
  cr_assert (WIFEXITED (status) && WEXITSTATUS (status) == 0);

  for (unsigned b = 0; b < DISK_NR; b++)
    cr_assert_eq (atomic_load (&d->durable[b]), atomic_load (&d->source[b]), "block %u is lost", b);
  cr_assert (claims_all_empty (f.r));
  for (int a = 0; a < REGION_NR_ARRAYS; a++)
    cr_assert_eq (atomic_load (&f.r->hdr->count[a]), 0, "array %d: counter %" PRId64, a,
                  atomic_load (&f.r->hdr->count[a]));
  check_all (f.r);
  cr_assert_eq (atomic_load (&f.r->hdr->dirtied_total), atomic_load (&f.turned));
  cr_assert_gt (atomic_load (&f.turned), DISK_NR, "there was some work");
  region_free (f.r);
  munmap (d, sizeof *d);
}

#define LARGE_NR (UINT64_C (1) << 24)

static _Atomic bool seen;

static void *
clear_all_the_time (void *opaque)
{
  struct region *r = opaque;

  while (!atomic_load (&seen)) {
    bitmap_set (r, REGION_DIRTY, LARGE_NR - 1, 1);
    bitmap_clear (r, REGION_DIRTY, LARGE_NR - 1, 1);
  }
  return NULL;
}

/* What stays is found while a copier clears all the time. */
Test (claims, a_look_at_a_busy_job)
{
  struct region *r = fixture_region (LARGE_NR);
  uint64_t *words = calloc (r->geo.nr_words, 8);
  pthread_t t;

  bitmap_set (r, REGION_DIRTY, 5, 1);
  bitmap_set (r, REGION_CLAIMED_B, 64 * 64, 1);
  bitmap_set (r, REGION_QUARANTINE, LARGE_NR - 2, 1);
  atomic_store (&seen, false);
  cr_assert_eq (pthread_create (&t, NULL, clear_all_the_time, r), 0);
  while (atomic_load (&r->hdr->clears_begun[REGION_DIRTY]) < 100)
    sched_yield ();
  bool all = claims_or_all (r, words, 1000);
  atomic_store (&seen, true);
  pthread_join (t, NULL);
  cr_assert (all, "the job is too busy");
  cr_assert (words[0] == 1 << 5 && words[64] == 1);
  cr_assert ((words[LARGE_NR / 64 - 1] >> 62 & 1) != 0);
  free (words);
  region_free (r);
}

/* One process marks, the other copies: both sides equal in the end, counters exact. */
Test (claims, two_processes, .timeout = 60)
{
  two_processes (0);
}

#ifndef UNIT_THREAD_SANITIZER /* which cannot fork a process that has threads */
/* The same with the copying process killed at random instants and its cache lost. */
Test (claims, killed_workers, .timeout = 60)
{
  two_processes (30);
}
#endif
