/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the engine gives out first while guest writes wait.  Urgent blocks come first, but the
 * background is not starved before the job is synchronised, and its requests are so short that no
 * guest waits long behind one.  The test plays the filter (it marks and posts) and the copiers (it
 * asks for work and says that it is done).
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/fixture.h"

#include "base/clock.h"
#include "mirror/engine/task.h"

#define BLOCKS 16384u /* 64 MiB */
#define DELAY_NS UINT64_C (50000000)

static struct region *r;
static struct endpoint *source;
static struct engine e;
static char path[64];
static const struct engine_room both = { .verify = true, .background = true, .urgent = true };

static void
setup (uint64_t rate)
{
  char *error = NULL, *argv[] = { path, NULL };
  const struct engine_options o = { .rate_limit = rate };
  const struct endpoint_options eo = { 0 };

  strcpy (path, "/tmp/test-engine-urgent-XXXXXX");
  int fd = mkstemp (path);
  cr_assert_neq (fd, -1);
  cr_assert_eq (ftruncate (fd, (off_t)BLOCKS * BLOCK - 1), 0);
  close (fd);
  source = endpoint_open (argv, 1, &eo, NULL, &error);
  cr_assert_not_null (source, "%s", error);
  r = fixture_region (BLOCKS);
  cr_assert_eq (engine_init (&e, r, source, &o, &error), 0);
}

static void
finish (void)
{
  engine_destroy (&e);
  endpoint_close (source);
  region_free (r);
  unlink (path);
}

/* The gate becomes synchronous. */
static void
synchronous (void)
{
  atomic_fetch_add (&r->hdr->sync_epoch, 1);
  engine_set_synchronous (&e, true, DELAY_NS);
}

static int
write_block (uint64_t block)
{
  bitmap_set (r, REGION_DIRTY, block, 1);
  return urgent_post (r, URGENT_WRITE, block, 1);
}

static void
done (const struct engine_task *t)
{
  engine_task_done (&e, t, NULL, 0, SAMPLE_SENT);
}

/* The source is all holes; the engine is told that they are data. */
static enum engine_work
next (const struct engine_room *room, struct engine_task *t)
{
  enum engine_work w = engine_next (&e, room, t);
  while (w == WORK_ASK) {
    engine_hints (&e, t, EIO, NULL, 0);
    w = engine_next (&e, room, t);
  }
  return w;
}

Test (engine_urgent, the_background_keeps_three_quarters_while_catching_up)
{
  uint64_t background = 0, urgent = 0;
  struct engine_task t;

  setup (0);
  bitmap_set (r, REGION_DIRTY, 0, BLOCKS);
  synchronous ();
  /* Behind the cursor somebody always waits. */
  cr_assert_eq (next (&both, &t), WORK_DATA);
  done (&t);
  int slots[64];
  for (unsigned i = 0; i < 64; i++)
    slots[i] = write_block (i);
  for (unsigned n = 0; e.pass.cursor < BLOCKS && n < 2 * BLOCKS; n++) {
    enum engine_work w = next (&both, &t);
    cr_assert_eq (w, WORK_DATA, "kind %d at %lu", w, (unsigned long)e.pass.cursor);
    *(t.urgent ? &urgent : &background) += t.count;
    done (&t);
    if (t.urgent) {
      cr_assert_eq (urgent_wait (r, slots[t.first], 0), URGENT_ANSWER_OK);
      urgent_drop (r, slots[t.first]);
      slots[t.first] = write_block (t.first);
    }
  }
  cr_assert (urgent > 0, "urgent blocks were starved");
  cr_assert (urgent * 3 <= background + 3 * 64 + 64, "%lu urgent blocks beside %lu",
             (unsigned long)urgent, (unsigned long)background);
  finish ();
}

Test (engine_urgent, urgent_first_once_it_is_synchronised)
{
  struct engine_task t;

  setup (0);
  synchronous ();
  cr_assert_eq (next (&both, &t), WORK_NONE);
  cr_assert_eq (atomic_load (&r->hdr->synced_epoch), 1,
                "an idle job is not seen to be synchronised");
  bitmap_set (r, REGION_DIRTY, 0, 1000); /* as if somebody else waited for these */
  int slots[50];
  for (unsigned i = 0; i < 50; i++)
    slots[i] = write_block (5000 + 2 * i);
  for (unsigned i = 0; i < 50; i++) {
    cr_assert_eq (next (&both, &t), WORK_DATA);
    cr_assert (t.urgent && t.first == 5000 + 2 * i);
    done (&t);
    cr_assert_eq (urgent_wait (r, slots[i], 0), URGENT_ANSWER_OK);
  }
  finish ();
}

Test (engine_urgent, no_room_is_no_room)
{
  const struct engine_room background = { .background = true }, urgent = { .urgent = true };
  struct engine_task t;

  setup (0);
  synchronous ();
  next (&both, &t);
  write_block (9000);
  cr_assert_eq (next (&urgent, &t), WORK_DATA);
  cr_assert (t.urgent);
  done (&t);
  bitmap_set (r, REGION_DIRTY, 0, 1000);
  write_block (9000);
  cr_assert_eq (next (&urgent, &t), WORK_DATA);
  cr_assert (t.urgent);
  done (&t);
  cr_assert_eq (next (&urgent, &t), WORK_NONE, "background work in a slot for urgent work");
  write_block (9000);
  usleep (60000); /* a new pass lets a few writes gather */
  cr_assert_eq (next (&background, &t), WORK_DATA);
  cr_assert (!t.urgent);
  done (&t);
  finish ();
}

/* The background has nothing to do, so urgent blocks need no credit. */
Test (engine_urgent, out_of_turn_when_there_is_nothing_else)
{
  struct engine_task t, u;

  setup (0);
  bitmap_set (r, REGION_DIRTY, 100, 1);
  synchronous ();
  usleep (60000);
  cr_assert_eq (next (&both, &t), WORK_DATA);
  bitmap_set (r, REGION_DIRTY, 100,
              1); /* while it is copied: the pass ends, and the next one waits */
  cr_assert_eq (next (&both, &u), WORK_NONE);
  cr_assert_eq (e.pass.cursor, 0);
  int slot = write_block (20);
  e.urgent.credit = 0;
  e.wrapped_ns = clock_ns (); /* however long it took to come here */
  cr_assert_eq (next (&both, &u), WORK_DATA);
  cr_assert (u.urgent && u.first == 20);
  done (&u);
  cr_assert_eq (urgent_wait (r, slot, 0), URGENT_ANSWER_OK);
  done (&t);
  finish ();
}

Test (engine_urgent, short_requests_under_a_limit)
{
  struct engine_task t;

  setup (4 << 20); /* a quarter of a second for 1 MiB: 6.25 ms are 6 blocks */
  bitmap_set (r, REGION_DIRTY, 0, BLOCKS);
  usleep (20000);
  cr_assert_eq (next (&both, &t), WORK_DATA);
  cr_assert_eq (t.count, ENGINE_REQUEST_BYTES / BLOCK);
  done (&t);
  synchronous ();
  enum engine_work w;
  uint64_t progress = atomic_load (&r->hdr->progress);
  while ((w = next (&both, &t)) == WORK_NONE) {
    cr_assert (t.limited && t.wait_ns <= DELAY_NS / 4, "waiters would not see that all is well");
    usleep ((useconds_t)(t.wait_ns / 1000) + 1);
  }
  cr_assert (atomic_load (&r->hdr->progress) > progress,
             "waiting for the limit looks like standing still");
  cr_assert_eq (w, WORK_DATA);
  cr_assert_eq (t.count, 6, "%lu blocks", (unsigned long)t.count);
  done (&t);
  finish ();
}

/* Nobody waits for a job that is paused, or that has lost its destination. */
Test (engine_urgent, late_while_nothing_is_copied)
{
  struct engine_task t;

  setup (0);
  synchronous ();
  next (&both, &t);
  int slot = write_block (7);
  engine_rung (&e); /* there is no session */
  cr_assert_eq (urgent_wait (r, slot, 0), URGENT_ANSWER_LATE);
  slot = write_block (8);
  next (&both, &t);
  engine_set_paused (&e, true);
  cr_assert_eq (urgent_wait (r, slot, 0), URGENT_ANSWER_LATE);
  engine_set_paused (&e, false);
  done (&t);
  slot = write_block (9);
  cr_assert_eq (next (&both, &t), WORK_DATA);
  slot = write_block (9);
  next (&both, &t);
  engine_session_over (&e);
  cr_assert_eq (urgent_wait (r, slot, 0), URGENT_ANSWER_LATE);
  finish ();
}
