/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The engine, driven by hand.  The test plays the guest and the filter (it marks, posts, and reads
 * answers) and the copiers (it takes tasks, and says that they have ended), in orders that a busy
 * machine and a slow destination produce now and then.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/engine-fixture.h"

#define BLOCKS 20000u
#define DELAY_NS UINT64_C (50000000)

static const struct engine_room urgent_only = { .urgent = true };

static void
setup (void)
{
  engine_setup (BLOCKS, false);
}

/* What the filter does, and then the worker. */
static void
begin_synchronous (void)
{
  atomic_fetch_add (&r->hdr->sync_epoch, 1);
  engine_set_synchronous (e, true, DELAY_NS);
}

static bool
synchronised (void)
{
  return atomic_load (&r->hdr->synced_epoch) == atomic_load (&r->hdr->sync_epoch);
}

static void
nap (uint64_t ns)
{
  struct timespec ts = { .tv_nsec = (long)ns };
  nanosleep (&ts, NULL);
}

/* The first pass has come to its end, but counts as going on while many zeroes are on their way.
 * The pass after it is nearly done.  What is written now is copied later, so the write must not be
 * answered before that. */
Test (engine, no_answer_ahead_of_a_pass_that_has_ended)
{
  setup ();
  mark (10000, 10000);
  struct engine_task ask = expect (WORK_ASK, 10000, 10000);
  const struct endpoint_extent zeroes
      = { .length = region_bytes (&r->geo, 10000, 10000), .zero = true };
  engine_hints (e, &ask, 0, &zeroes, 1);
  struct engine_task zero = expect (WORK_ZERO, 10000, 10000);

  begin_synchronous ();
  mark (5, 1);
  struct engine_task t = expect (WORK_DATA, 5, 1); /* a pass in which everything is synchronous */
  mark (4, 1);
  struct engine_task late = expect (WORK_DATA, 4, 1); /* and the one after it */
  done (&t);
  cr_assert (!synchronised (), "the zeroes are still on their way");

  mark (100, 1);
  int slot = urgent_post (r, URGENT_WRITE, 100, 1);
  struct engine_task u;
  engine_next (e, &(struct engine_room){ .urgent = false }, &u);
  done (&zero);
  cr_assert (synchronised () == false || urgent_wait (r, slot, 0) != URGENT_ANSWER_OK,
             "synchronised, and a write that is not at the destination was answered");
  done (&late);
  urgent_drop (r, slot);
  teardown ();
}

/* A guest's thread has set its bit, and is interrupted before it counts it.  The block is copied
 * meanwhile, so the counter is one too low. */
Test (engine, the_counter_is_no_proof_that_nothing_is_dirty)
{
  setup ();
  mark (3, 1);
  mark (9, 1);
  atomic_fetch_sub (&r->hdr->count[REGION_DIRTY], 1);
  engine_set_hurry (e, true, false); /* no pauses between passes */
  begin_synchronous ();
  struct engine_task t = expect (WORK_DATA, 3, 1), none;
  done (&t);
  engine_next (e, &anything, &none);    /* comes to the end, */
  engine_next (e, &urgent_only, &none); /* and looks at what that means */
  cr_assert (!synchronised () || !bitmap_test (r, REGION_DIRTY, 9),
             "synchronised though block 9 was never copied");
  atomic_fetch_add (&r->hdr->count[REGION_DIRTY], 1);
  t = expect (WORK_DATA, 9, 1);
  done (&t);
  engine_next (e, &anything, &none);
  engine_next (e, &urgent_only, &none);
  cr_assert (synchronised ());
  teardown ();
}

/* A guest that does nothing but flush must not keep the job from being handed over. */
Test (engine, a_flush_that_makes_nothing_durable_is_not_waited_for)
{
  setup ();
  begin_synchronous ();
  mark (7, 1);
  struct engine_task t = expect (WORK_DATA, 7, 1);
  done (&t);
  engine_next (e, &urgent_only, &t);
  cr_assert (synchronised ());
  int slot = urgent_post (r, URGENT_FLUSH, 0, 0);
  engine_next (e, &urgent_only, &t);
  expect (WORK_FLUSH, 0, 0);
  cr_assert (!engine_clean (e), "clean before what was written is flushed");
  int next = urgent_post (r, URGENT_FLUSH, 0, 0);
  engine_next (e, &urgent_only, &t);
  engine_flush_done (e);
  cr_assert_eq (urgent_wait (r, slot, 0), URGENT_ANSWER_OK);
  cr_assert (engine_clean (e), "not clean because the guest has asked for another flush");
  expect (WORK_FLUSH, 0, 0);
  cr_assert (engine_clean (e), "not clean because of a flush of nothing");
  engine_flush_done (e);
  cr_assert_eq (urgent_wait (r, next, 0), URGENT_ANSWER_OK);
  urgent_drop (r, slot);
  urgent_drop (r, next);
  teardown ();
}

/* A destination still writes, but does not flush any more: only one flush of the guest waits in
 * vain. */
Test (engine, a_flush_that_hangs_is_waited_for_once)
{
  setup ();
  begin_synchronous ();
  mark (7, 1);
  struct engine_task t = expect (WORK_DATA, 7, 1);
  done (&t);
  int first = urgent_post (r, URGENT_FLUSH, 0, 0);
  engine_next (e, &urgent_only, &t);
  expect (WORK_FLUSH, 0, 0);
  nap (DELAY_NS + DELAY_NS / 4);
  int second = urgent_post (r, URGENT_FLUSH, 0, 0);
  engine_next (e, &urgent_only, &t);
  cr_assert_eq (urgent_wait (r, second, 0), URGENT_ANSWER_LATE);
  urgent_drop (r, second);
  urgent_drop (r, first);
  atomic_fetch_add (&r->hdr->sync_epoch, 1); /* missed */
  engine_next (e, &anything, &t);
  cr_assert (!synchronised (), "synchronised while the destination does not flush");
  int write = urgent_post (r, URGENT_WRITE, 7, 1); /* has been copied */
  engine_next (e, &urgent_only, &t);
  cr_assert_eq (urgent_wait (r, write, 0), URGENT_ANSWER_OK);
  urgent_drop (r, write);
  engine_flush_done (e);
  engine_next (e, &urgent_only, &t);
  cr_assert (synchronised ());
  teardown ();
}

/* Under a low limit nothing moves for seconds.  That is no hang, in any mode of the gate. */
Test (engine, waiting_for_the_limit_is_progress)
{
  setup ();
  engine_set_rate (e, 1000);
  mark (0, 8);
  mark (20, 1);
  struct engine_task t = expect (WORK_DATA, 0, 8);
  done (&t);
  uint64_t before = atomic_load (&r->hdr->progress);
  t = expect (WORK_NONE, 0, 0);
  cr_assert (atomic_load (&r->hdr->progress) > before);
  cr_assert_leq (t.wait_ns, UINT64_C (250000000));
  teardown ();
}

/* Nothing is to be done until the block may be tried again, unless another one turns dirty. */
Test (engine, sleeps_while_all_that_is_dirty_cannot_be_read)
{
  setup ();
  engine_set_watched (e, true);
  mark (5, 1);
  struct engine_task t = expect (WORK_DATA, 5, 1);
  engine_task_unread (e, &t, EIO);
  t = expect (WORK_NONE, 0, 0);
  cr_assert_gt (t.wait_ns, UINT64_C (250000000));
  cr_assert (atomic_load (&r->hdr->watched), "nobody would tell of another block");
  mark (9, 1);
  cr_assert_not (atomic_load (&r->hdr->watched), "the bell did not ring");
  engine_rung (e);
  nap (UINT64_C (60000000)); /* a pass waits for so long after the last one */
  t = expect (WORK_DATA, 9, 1);
  done (&t);
  teardown ();
}

/* What was acknowledged and not flushed is lost with the session.  The filter is told so before the
 * gate is opened, which may take until the last copier has come back from a slow source. */
Test (engine, not_synchronised_after_a_lost_session)
{
  setup ();
  begin_synchronous ();
  mark (7, 1);
  struct engine_task t = expect (WORK_DATA, 7, 1);
  done (&t);
  engine_next (e, &urgent_only, &t);
  cr_assert (synchronised ());
  engine_session_over (e);
  cr_assert (bitmap_test (r, REGION_DIRTY, 7));
  cr_assert (!synchronised (), "synchronised, and a block is dirty again");
  teardown ();
}

/* ---- anything, in any order ---- */

#define FEW 300u /* blocks */
#define GUESTS 6u
#define COPIES 8u

/* A guest's write on its way. */
struct writer {
  enum { WRITER_IDLE, WRITER_SET, WRITER_MARKED, WRITER_WAITS } state;
  uint64_t first, count, version;
  uint64_t uncounted; /* bits that are set, and not counted yet */
  int slot;
};

/* A task of a copier. */
struct copy {
  enum { COPY_IDLE, COPY_TAKEN, COPY_READ } state;
  enum engine_work work;
  struct engine_task t;
  uint64_t versions[FEW];
};

static struct world {
  uint64_t rnd, version;
  uint64_t source[FEW], dest[FEW],
      told[FEW]; /* versions; TOLD: of what the guest was told is done */
  uint64_t durable[FEW],
      soon[FEW]; /* at the destination: flushed; by the flush that is on its way */
  struct writer writers[GUESTS];
  struct copy copies[COPIES];
  bool gate, flushing; /* the filter's gate is synchronous; a flush is on its way */
  unsigned nr_synchronised;
} world;

static uint64_t
any (uint64_t n)
{
  return fixture_random (&world.rnd) % n;
}

static void
tell_writer (struct writer *w)
{
  for (uint64_t b = w->first; b < w->first + w->count; b++)
    if (world.told[b] < w->version)
      world.told[b] = w->version;
  w->state = WRITER_IDLE;
}

/* Its time is up, or nobody waits any more. */
static void
leave_writer (struct writer *w, bool missed)
{
  urgent_drop (r, w->slot);
  if (missed)
    atomic_fetch_add (&r->hdr->sync_epoch, 1);
  tell_writer (w);
}

static void
step_writer (struct writer *w)
{
  switch (w->state) {
  case WRITER_IDLE:
    w->first = any (4) != 0 ? any (10) : any (FEW - 4);
    w->count = 1 + any (4);
    w->version = ++world.version;
    for (uint64_t b = w->first; b < w->first + w->count; b++)
      world.source[b] = w->version;
    w->uncounted = bitmap_set (r, REGION_DIRTY, w->first, w->count);
    atomic_fetch_sub (&r->hdr->count[REGION_DIRTY], (int64_t)w->uncounted);
    w->state = WRITER_SET;
    break;
  case WRITER_SET:
    atomic_fetch_add (&r->hdr->count[REGION_DIRTY], (int64_t)w->uncounted);
    w->state = WRITER_MARKED;
    break;
  case WRITER_MARKED:
    if (!world.gate)
      tell_writer (w);
    else {
      w->slot
          = urgent_post (r, URGENT_WRITE | (any (3) == 0 ? URGENT_FLUSH : 0), w->first, w->count);
      w->state = WRITER_WAITS;
    }
    break;
  case WRITER_WAITS:
    switch (urgent_wait (r, w->slot, 0)) {
    case URGENT_ANSWER_OK:
      leave_writer (w, false);
      break;
    case URGENT_ANSWER_LATE:
      leave_writer (w, true);
      break;
    case URGENT_ANSWER_NONE:
      if (any (100) == 0)
        leave_writer (w, true);
    }
  }
}

static void
take_copy (struct copy *c)
{
  const struct engine_room room
      = { any (2) != 0, any (2) != 0, any (4) != 0, any (4) != 0, any (2) != 0 };

  c->work = engine_next (e, &room, &c->t);
  switch (c->work) {
  case WORK_NONE:
    break;
  case WORK_FLUSH:
    world.flushing = true;
    memcpy (world.soon, world.dest, sizeof world.soon);
    break;
  case WORK_ASK: {
    const struct endpoint_extent x
        = { .length = region_bytes (&r->geo, c->t.first, c->t.count), .zero = any (2) != 0 };
    engine_hints (e, &c->t, 0, &x, 1);
    break;
  }
  default:
    c->state = COPY_TAKEN;
  }
}

static void
step_copy (struct copy *c)
{
  uint64_t n = c->t.count;

  switch (c->state) {
  case COPY_IDLE:
    take_copy (c);
    return;
  case COPY_TAKEN:
    memcpy (c->versions, world.source + c->t.first, n * sizeof c->versions[0]);
    c->state = COPY_READ;
    if (c->work == WORK_ZERO && any (2) != 0) { /* some of it is not zero after all */
      n = any (n);
      claim_give_back (r, c->t.set, c->t.first + n, c->t.count - n);
      memcpy (c->versions + n, world.dest + c->t.first + n,
              (c->t.count - n) * sizeof c->versions[0]);
    } else if (any (30) == 0) {
      engine_task_unread (e, &c->t, ESHUTDOWN);
      c->state = COPY_IDLE;
    }
    return;
  case COPY_READ:
    for (uint64_t b = 0; b < n; b++)
      cr_assert_geq (c->versions[b], world.dest[c->t.first + b], "an older copy came last (R6)");
    memcpy (world.dest + c->t.first, c->versions, n * sizeof c->versions[0]);
    if (c->work == WORK_VERIFY)
      bitmap_clear (r, REGION_QUARANTINE, c->t.first, n);
    engine_task_done (e, &c->t, NULL, 0, SAMPLE_SENT);
    c->state = COPY_IDLE;
  }
}

static void
change_gate (void)
{
  if (world.gate) {
    world.gate = false;
    for (unsigned i = 0; i < GUESTS; i++)
      if (world.writers[i].state == WRITER_WAITS)
        leave_writer (&world.writers[i], false);
    engine_set_synchronous (e, false, DELAY_NS);
  } else {
    world.gate = true;
    begin_synchronous ();
  }
}

static void
lose_session (void)
{
  engine_session_over (e);
  if (any (2) != 0) /* the destination's host has crashed */
    memcpy (world.dest, world.durable, sizeof world.dest);
  for (unsigned i = 0; i < COPIES; i++)
    world.copies[i].state = COPY_IDLE;
  world.flushing = false;
  e->grace_end_ns = 1;
}

static void
step_world (unsigned now)
{
  static const unsigned guest_does[] = { 600, 0, 150, 30 }; /* of 1000, in turns */
  uint64_t what = any (1000);

  if (what < 4)
    change_gate ();
  else if (what < 5)
    lose_session ();
  else if (what < 50 && world.flushing) {
    world.flushing = false;
    memcpy (world.durable, world.soon, sizeof world.durable);
    engine_flush_done (e);
  } else if (what < guest_does[now / 400 % 4])
    step_writer (&world.writers[any (GUESTS)]);
  else
    step_copy (&world.copies[any (COPIES)]);
}

/* The promise: while the filter would say "synchronised", or the worker that it is done, nothing is
 * missing at the destination that the guest was told is done. */
static void
check_world (void)
{
  bool all = world.gate && synchronised (), clean = engine_clean (e);

  for (unsigned i = 0; clean && i < GUESTS; i++) /* a hold waits for those below (R3) */
    clean = world.writers[i].state != WRITER_SET;
  world.nr_synchronised += all;
  for (uint64_t b = 0; (all || clean) && b < FEW; b++)
    cr_assert_geq (world.dest[b], world.told[b], "%s, and block %lu is missing at the destination",
                   all ? "synchronised" : "clean", (unsigned long)b);
}

Test (engine, synchronised_is_true_whatever_happens)
{
  unsigned steps = getenv ("NBDMIRROR_LONG") != NULL ? 1000000 : 60000;

  for (unsigned round = 0; round < 6; round++) {
    memset (&world, 0, sizeof world);
    world.rnd = 12345 + round;
    engine_setup (FEW, false);
    engine_set_hurry (e, true, false); /* no pauses between passes */
    bitmap_set (r, REGION_DIRTY, 0, FEW);
    e->grace_end_ns = 1;
    for (unsigned i = 0; i < steps; i++) {
      step_world (i);
      check_world ();
    }
    cr_assert_gt (world.nr_synchronised, steps / 100, "hardly ever synchronised: %u",
                  world.nr_synchronised);
    lose_session ();
    teardown ();
  }
}

/* ---- untouched.h ---- */

static bool
left_alone (const struct untouched *u, uint64_t block)
{
  return untouched_is (u, block - u->first);
}

/* What is dirty, claimed or in quarantine at the beginning or at the end was not left alone. */
Test (untouched, sees_what_is_not_clean)
{
  struct untouched u;

  setup ();
  mark (100, 1);
  bitmap_set (r, REGION_CLAIMED_A, 101, 1);
  bitmap_set (r, REGION_CLAIMED_B, 102, 1);
  bitmap_set (r, REGION_QUARANTINE, 103, 1);
  untouched_begin (e, &u, 64, 200);
  for (uint64_t block = 100; block < 104; block++)
    cr_assert_not (left_alone (&u, block), "%lu at the beginning", (unsigned long)block);
  bitmap_clear (r, REGION_DIRTY, 100, 1);
  bitmap_clear (r, REGION_CLAIMED_A, 101, 1);
  bitmap_clear (r, REGION_CLAIMED_B, 102, 1);
  bitmap_clear (r, REGION_QUARANTINE, 103, 1);
  mark (200, 1);
  bitmap_set (r, REGION_QUARANTINE, 201, 1);
  untouched_end (e, &u);
  for (uint64_t block = 64; block < 264; block++)
    cr_assert_eq (left_alone (&u, block),
                  !(block >= 100 && block < 104) && block != 200 && block != 201, "%lu",
                  (unsigned long)block);
  teardown ();
}

/* What was written, copied and flushed in between looks as clean as before, and was not. */
Test (untouched, notes_what_is_copied_in_between)
{
  struct untouched u, beside;

  setup ();
  untouched_begin (e, &beside, 0, 100);
  untouched_begin (e, &u, 100, UNTOUCHED_MAX);
  mark (99, 3);
  struct engine_task t = expect (WORK_DATA, 99, 3);
  done (&t);
  bitmap_clear (r, REGION_CLAIMED_A, 99, 3);
  bitmap_clear (r, REGION_CLAIMED_B, 99, 3);
  untouched_end (e, &u);
  untouched_end (e, &beside);
  cr_assert (left_alone (&beside, 98) && !left_alone (&beside, 99));
  cr_assert (!left_alone (&u, 100) && !left_alone (&u, 101) && left_alone (&u, 102));

  /* What is wrong at the destination is copied again, and nothing that was said before holds. */
  uint64_t before = atomic_load (&r->hdr->given_back);
  untouched_copy_again (e, 500, 2);
  uint64_t after = atomic_load (&r->hdr->given_back);
  cr_assert_eq (after, before + 1);
  cr_assert_eq (bitmap_count (r, REGION_DIRTY), 2);
  nap (60000000); /* between two passes */
  expect (WORK_DATA, 500, 2);
  teardown ();
}
