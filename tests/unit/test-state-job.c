/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The state file's library: a job in it, what of it cools, and what a server that was killed leaves
 * to the next one.
 */

#include "config.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/state-fixture.h"

/* A job begins and ends beside a recording, which knows nothing of it. */
Test (state, a_job_beside)
{
  char *error = NULL;
  uint8_t uuid[16];

  begin ();
  add ("a");
  write_block (1);
  uuid_make (uuid);
  cr_assert (state_begin (&state, &layout, file.live, uuid, boot, NULL, &error) == 0, "%s", error);
  write_block (2);
  CHANGED ("a", 1, 2);
  state_end (&state);
  write_block (3);
  CHANGED ("a", 1, 2, 3);
  end ();
}

/* What a server that was killed has left: is BLOCK clean, and is there a sample of it? */
static void
left (uint64_t block, bool *clean, bool *sampled)
{
  struct state_found f;
  char *error = NULL;

  cr_assert (state_find (file.fd, layout.file_size, boot, NULL, &f, &error) == 0, "%s", error);
  cr_assert (f.how == STATE_FROM_LIVE);
  *clean = (f.bits[block / 64] >> (block % 64) & 1) == 0;
  *sampled = false;
  for (unsigned i = 0; i < SAMPLES_MAX; i++) {
    struct sample s;
    *sampled |= state_find_sample (file.fd, &f, i, &s) && s.block == block;
  }
  state_found_free (&f);
}

/* The control thread begins something while the disk is flushed, so that the round is given up. */
static int
flush_in_vain (void *opaque)
{
  (void)opaque;
  pthread_mutex_lock (&state.io_lock);
  state.changes++;
  pthread_mutex_unlock (&state.io_lock);
  return 0;
}

/* The live map forgets a block before the file forgets its old sample.  A server that is killed in
 * between must not leave a sample by which the right destination is refused. */
Test (state, no_old_sample_of_a_clean_block)
{
  const struct sample sample = { .block = 5, .length = 4, .data = "old" };
  char *error = NULL;
  uint8_t uuid[16];
  bool clean, sampled;

  begin ();
  uuid_make (uuid);
  cr_assert (state_begin (&state, &layout, file.live, uuid, boot, NULL, &error) == 0, "%s", error);
  struct region *r = region_create (&layout.geo, uuid, &error);
  state_set_region (&state, r);
  state_allow_settling (&state);
  samples_put (r, &sample);
  for (unsigned i = 0; i < 3; i++)
    state_round (&state);
  left (5, &clean, &sampled);
  cr_assert (clean && sampled);
  write_block (5); /* copied and flushed at once: the region has neither the block nor the sample */
  bitmap_set (r, REGION_CLAIMED_A, 5, 1);
  samples_drop_in (r, REGION_CLAIMED_A);
  bitmap_clear (r, REGION_CLAIMED_A, 5, 1);
  state.io.sync_disk = flush_in_vain;
  state.flush_owed = true;
  state.owed_tick = UINT32_MAX;
  state_round (&state);
  left (5, &clean, &sampled);
  cr_assert (clean, "the test is about the time after that");
  cr_assert_not (sampled);
  end ();
  region_free (r);
}

/* What a power failure leaves: is BLOCK clean, and is there a sample of SAMPLE? */
static void
left_without_power (uint64_t block, uint64_t sample, bool *clean, bool *sampled)
{
  struct state_found f;

  find_after_power_failure (&f);
  cr_assert (f.how == STATE_FROM_L1);
  *clean = (f.bits[block / 64] >> (block % 64) & 1) == 0;
  *sampled = false;
  for (unsigned i = 0; i < SAMPLES_MAX; i++) {
    struct sample s;
    *sampled |= state_find_sample (file.fd, &f, i, &s) && s.block == sample;
  }
  state_found_free (&f);
}

static struct region *worker_region;
static uint64_t copied_again;

/* A worker finds that the destination may lack BLOCK, and proves it by a sample of the next one. */
static void
copy_again (uint64_t block)
{
  const struct sample sample
      = { .block = block + 1, .length = 4, .kind = SAMPLE_SENT, .data = "new" };

  copied_again = block;
  bitmap_set (worker_region, REGION_DIRTY, block, 1);
  atomic_fetch_add (&worker_region->hdr->given_back, 1);
  samples_put (worker_region, &sample);
}

static int
copy_again_meanwhile (void *opaque)
{
  (void)opaque;
  copy_again (2000);
  return 0;
}

/* At no instant does the file know the sample and not the block. */
static int
write_and_look (void *opaque, const void *data, size_t length, uint64_t offset)
{
  bool clean, sampled;
  int r = state_file_io (opaque).write (opaque, data, length, offset);

  left_without_power (copied_again, copied_again + 1, &clean, &sampled);
  cr_assert (!clean || !sampled, "what proves a destination came before what it lacks");
  return r;
}

/* What a worker sets dirty by itself, and an old worker's requests, get into the file. */
Test (state, dirty_without_a_guest)
{
  const struct sample first = { .block = 5, .length = 4, .kind = SAMPLE_SENT, .data = "old" };
  char *error = NULL;
  uint8_t uuid[16];
  bool clean, sampled;

  begin ();
  uuid_make (uuid);
  cr_assert (state_begin (&state, &layout, file.live, uuid, boot, NULL, &error) == 0, "%s", error);
  struct region *r = worker_region = region_create (&layout.geo, uuid, &error);
  samples_put (r, &first);
  state_set_region (&state, r);
  state_allow_settling (&state);
  for (unsigned i = 0; i < 3; i++)
    state_round (&state);
  left_without_power (1000, 5, &clean, &sampled);
  cr_assert (clean && sampled);
  state.io.write = write_and_look;
  copy_again (1000);
  state_round (&state);
  left (1000, &clean, &sampled);
  cr_assert_not (clean);
  left_without_power (1000, 5, &clean, &sampled);
  cr_assert (!clean && sampled, "the sample that did not change is there still");
  state_round (&state);
  left_without_power (1000, 1001, &clean, &sampled);
  cr_assert (!clean && sampled);
  /* The same behind the round's back. */
  state.io.sync_disk = copy_again_meanwhile;
  state.flush_owed = true;
  state.owed_tick = UINT32_MAX;
  state_round (&state);
  state_round (&state);
  left (2000, &clean, &sampled);
  cr_assert_not (clean);
  left_without_power (2000, 5, &clean, &sampled);
  cr_assert_not (clean);
  bitmap_set (r, REGION_QUARANTINE, 3000, 1);
  state_set_region (&state, r);
  left (3000, &clean, &sampled);
  cr_assert_not (clean);
  state_round (&state);
  left_without_power (3000, 5, &clean, &sampled);
  cr_assert_not (clean);
  end ();
  region_free (r);
}

/* A job that begins with what was changed, and what becomes of it. */
Test (state, a_job_since_a_checkpoint)
{
  char *error = NULL;
  struct state_found f;
  uint8_t uuid[16];

  begin ();
  add ("a");
  write_block (1);
  add ("b");
  write_block (2);
  uuid_make (uuid);
  cr_assert (state_begin (&state, &layout, file.live, uuid, boot, "none", &error) == -1);
  text_free (error);
  cr_assert (!state.super.job);
  error = NULL;
  cr_assert (state_begin (&state, &layout, file.live, uuid, boot, "a", &error) == 0, "%s", error);
  write_block (3);
  cr_assert (file.live[0] == 0xe && file.live[1] == 0);
  end ();
  start ();
  cr_assert (file.live[0] == 0xe && file.live[1] == 0, "killed");
  /* Nothing of it was written yet, and the power fails: everything is dirty. */
  find_after_power_failure (&f);
  cr_assert (f.super.job && f.dirty_blocks == 16384);
  state_found_free (&f);
  end ();
}

static int
write_no_superblock (void *opaque, const void *data, size_t length, uint64_t offset)
{
  return offset < UINT64_C (2) * STATE_PAGE
             ? -1
             : state_file_io (opaque).write (opaque, data, length, offset);
}

/* After a power failure the live map is an old one.  A server that goes on fills it before its
 * superblock says that it counts: else one that is killed in between would lose what was found. */
Test (state, the_live_map_before_the_superblock)
{
  struct state_found f;
  char *error = NULL;
  uint8_t uuid[16];

  begin ();
  uuid_make (uuid);
  cr_assert (state_begin (&state, &layout, file.live, uuid, boot, NULL, &error) == 0, "%s", error);
  write_block (1);
  end ();
  memset ((void *)file.live, 0, layout.live_bytes);
  find_after_power_failure (&f);
  const struct state_io io = state_file_io (&file);
  state_init (&state, &io);
  state.io.write = write_no_superblock;
  cr_assert (state_continue (&state, &f, file.live, file.slots, uuid, boot, &error) == -1);
  text_free (error);
  cr_assert ((atomic_load (&file.live[0]) & 2) != 0, "block 1 is clean in the live map");
  state_found_free (&f);
  end ();
}

/* A server is killed between its first two writes to a new file. */
Test (state, a_file_without_its_room)
{
  struct state_found f;
  char *error = NULL;

  begin ();
  end ();
  for (off_t size = sizeof STATE_BEGUN; size < 2 * (off_t)STATE_PAGE; size += 997) {
    cr_assert (ftruncate (file.fd, 0) == 0);
    cr_assert (pwrite (file.fd, STATE_BEGUN, sizeof STATE_BEGUN, 0) == sizeof STATE_BEGUN);
    cr_assert (ftruncate (file.fd, size) == 0);
    cr_assert (state_find (file.fd, (uint64_t)size, boot, NULL, &f, &error) == 0, "%s", error);
    cr_assert (!f.tracked);
    state_found_free (&f);
  }
  cr_assert (pwrite (file.fd, "x", 1, 0) == 1);
  cr_assert (state_find (file.fd, 1000, boot, NULL, &f, &error) == -1);
  text_free (error);
}

static bool
believed (uint8_t mark)
{
  const struct state_identity now = { .mark = { mark }, .inode = 7, .known = true };
  struct state_found f;
  char *error = NULL;
  off_t size = lseek (file.fd, 0, SEEK_END);

  cr_assert (state_find (file.fd, (uint64_t)size, boot, &now, &f, &error) == 0, "%s", error);
  bool is = f.how != STATE_FROM_NOTHING;
  state_found_free (&f);
  return is;
}

/* A server finds the disk with mark NOW, announces NEXT, and is killed then. */
static void
announce (uint8_t now_mark, uint8_t next)
{
  const struct state_identity now = { .mark = { now_mark }, .inode = 7, .known = true };
  const uint8_t mark[16] = { next };
  struct state_found f;
  char *error = NULL;
  off_t size = lseek (file.fd, 0, SEEK_END);

  cr_assert (state_find (file.fd, (uint64_t)size, boot, &now, &f, &error) == 0, "%s", error);
  cr_assert (state_announce_mark (&state, &f, &now, mark) == 0);
  state_found_free (&f);
}

/* The disk is given a new mark: whenever the server is killed, the file is believed with the disk
 * as it is then, and a disk that somebody else has served never is. */
Test (state, a_new_mark)
{
  begin ();
  state.disk = (struct state_identity){ .mark = { 1 }, .inode = 7 };
  add ("a");
  cr_assert (believed (1) && !believed (2));
  announce (1, 2);
  cr_assert (believed (1) && believed (2) && !believed (0));
  announce (2, 3); /* the server before had marked it */
  cr_assert (!believed (1) && believed (2) && believed (3));
  announce (2, 4); /* the one before had not */
  cr_assert (believed (2) && !believed (3) && believed (4));
  announce (0, 5); /* it was served without the file */
  cr_assert (!believed (0) && !believed (5));
  announce (9, 6);
  cr_assert (!believed (9) && !believed (6));
  end ();
}

/* The hot set is bounded: what was not written for the longest time cools first. */
Test (state, the_least_recently_used_cool)
{
  enum { EXTENT = 1024, LIMIT = 8 }; /* blocks; see choose_age() for when how many cool */

  begin ();
  add ("a");
  state_allow_settling (&state);
  state.hot_limit = LIMIT;
  state.idle_ticks = 1000;
  for (unsigned e = 0; e < LIMIT - 1; e++) {
    write_block (e * EXTENT);
    state_round (&state); /* the clock goes on */
  }
  cr_assert_eq (state.nr_hot, LIMIT - 1);
  write_block (0); /* the first one again, which is hot, and then one more */
  write_block ((LIMIT - 1) * EXTENT);
  cr_assert_eq (state.nr_hot, LIMIT);
  state_round (&state);
  cr_assert_eq (state.nr_hot, LIMIT - LIMIT / 4);
  for (unsigned e = 0; e < LIMIT; e++)
    cr_assert_eq (state.hot[e] != 0, e != 1 && e != 2, "extent %u", e);
  end ();
}

/* Of two guests that write to cold extents all the time, the second one begins while a commit is
 * made for the first.  SYNCS counts commits, which take long. */
static _Atomic int extents_left, syncs;

static int
slow_sync (void *opaque)
{
  atomic_fetch_add (&syncs, 1);
  clock_sleep_ms (20);
  return state_file_io (opaque).sync (opaque);
}

static int
go_on_waiting (void *opaque)
{
  (void)opaque;
  return 0;
}

static void *
write_cold_extents (void *opaque)
{
  (void)opaque;
  /* From the last one down, so that none follows a hot one and becomes hot with it. */
  for (int e; (e = atomic_fetch_sub (&extents_left, 1) - 1) >= 0;) {
    bool counted = false;
    cr_assert (
        state_enter (&state, (uint64_t)e * 1024 * BLOCK, BLOCK, go_on_waiting, NULL, &counted)
        == 0);
    if (counted)
      state_leave (&state, (uint64_t)e * 1024 * BLOCK, BLOCK);
    usleep (300); /* its reply has to come to the guest, and its next write to us */
  }
  return NULL;
}

static int
commits_of_two_guests (void)
{
  pthread_t worker, guests[2];

  begin ();
  add ("a");
  state.io.sync = slow_sync;
  state.io.sync_l1 = NULL;
  extents_left = DISK / BLOCK / 1024;
  syncs = 0;
  cr_assert (pthread_create (&worker, NULL, state_work, &state) == 0);
  for (unsigned i = 0; i < 2; i++) {
    cr_assert (pthread_create (&guests[i], NULL, write_cold_extents, NULL) == 0);
    while (syncs == 0)
      clock_sleep_ms (1);
  }
  for (unsigned i = 0; i < 2; i++)
    pthread_join (guests[i], NULL);
  state_stop (&state);
  pthread_join (worker, NULL);
  end ();
  return syncs;
}

/* They get into step, and need half as many commits as they make writes, where they would take
 * turns otherwise.  A busy machine may keep one of them from coming in time, so they have some
 * tries. */
Test (state, guests_that_take_turns_share_commits)
{
  int best = INT_MAX;

  for (unsigned tries = 0; tries < 4 && best > 12; tries++) {
    int took = commits_of_two_guests ();
    best = took < best ? took : best;
  }
  cr_assert_leq (best, 12, "16 writes took %d commits", best);
}
