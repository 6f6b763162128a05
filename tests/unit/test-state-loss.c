/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The state file's library: where it stops to track, a block that is written from then on must not
 * be clean to a server that is started in this boot.
 */

#include "config.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "tests/unit/state-fixture.h"

static struct region *region;

/* A job with REGION, in which nothing is dirty any more. */
static void
begin_job (const struct state_layout *l)
{
  char *error = NULL;
  uint8_t uuid[16];

  uuid_make (uuid);
  cr_assert (state_begin (&state, l, file.live, uuid, boot, NULL, &error) == 0, "%s", error);
  region = region_create (&l->geo, uuid, &error);
  cr_assert (region != NULL, "%s", error);
  state_set_region (&state, region);
  state_allow_settling (&state);
}

/* A guest's write, and a round after it. */
static void
write_and_look (uint64_t block)
{
  bool counted;

  state_allow_settling (&state);
  if (!state_try_enter (&state, block * BLOCK, BLOCK, &counted)) {
    state_commit (&state);
    cr_assert (state_try_enter (&state, block * BLOCK, BLOCK, &counted));
  }
  state_round (&state);
  if (counted)
    state_leave (&state, block * BLOCK, BLOCK);
}

/* The server is killed: what does the next one say of BLOCK? */
static bool
is_clean (uint64_t block)
{
  struct state_found f;
  char *error = NULL;
  uint64_t size = (uint64_t)lseek (file.fd, 0, SEEK_END);

  cr_assert (state_find (file.fd, size, boot, NULL, &f, &error) == 0, "%s", error);
  bool clean = f.bits != NULL && (f.bits[block / 64] >> (block % 64) & 1) == 0;
  state_found_free (&f);
  return clean;
}

/* ---- a job that cannot begin ---- */

static unsigned failing_writes;

static int
fail_at_the_superblock (void *opaque, const void *data, size_t length, uint64_t offset)
{
  if (offset < UINT64_C (2) * STATE_PAGE && failing_writes != 0) {
    failing_writes--;
    errno = EIO;
    return -1;
  }
  return state_file_io (opaque).write (opaque, data, length, offset);
}

/* One begins in place of another, and fails; the old one goes on. */
static void
cannot_begin (const char *since)
{
  struct state_view v;
  char *error = NULL;
  uint8_t uuid[16];

  begin ();
  add ("a");
  begin_job (&layout);
  state_round (&state);
  cr_assert (is_clean (1), "the test is about what is clean");
  state_set_region (&state, NULL);
  state.io.write = fail_at_the_superblock;
  failing_writes = 1;
  uuid_make (uuid);
  cr_assert (state_begin (&state, &layout, file.live, uuid, boot, since, &error) == -1);
  text_free (error);
  state_look (&state, &v);
  cr_assert (v.lost && !v.job);
  cr_assert_not (is_clean (1));
  state_set_region (&state, region);
  write_and_look (1);
  cr_assert_not (is_clean (1));
  end ();
  region_free (region);
}

Test (state_loss, a_job_that_cannot_begin)
{
  cannot_begin (NULL);
}

Test (state_loss, a_job_since_a_checkpoint_that_cannot_begin)
{
  cannot_begin ("a");
}

/* ---- a checkpoint that cannot be removed ---- */

static int
fail_once (void *opaque)
{
  state.io.sync = state_file_io (opaque).sync;
  errno = EIO;
  return -1;
}

/* An error of the disk's is told once: it may be that of a page of L1, which is synced by another
 * thread at the same time. */
Test (state_loss, a_sync_that_fails_at_a_removal)
{
  struct state_view v;
  char *error = NULL;

  for (unsigned frozen = 0; frozen < 2; frozen++) {
    begin ();
    add ("a");
    write_block (1);
    add ("b");
    write_block (2);
    if (frozen)
      add ("c");
    state.io.sync = fail_once;
    cr_assert (state_checkpoint_remove (&state, "b", &error) == -1);
    cr_assert (strstr (error, strerror (EIO)) != NULL, "%s", error);
    text_free (error);
    state_look (&state, &v);
    cr_assert (v.lost);
    end ();
  }
}

/* ---- while a round looks ---- */

static void *
make_a_round (void *opaque)
{
  (void)opaque;
  state_round (&state);
  return NULL;
}

/* A round has begun to drop what the region does not have, when the file is lost. */
Test (state_loss, a_round_is_under_way)
{
  struct state_layout large;
  pthread_t thread;
  char *error = NULL;

  cr_assert (state_layout_init (&large, UINT64_C (64) << 30, BLOCK) == 0);
  for (unsigned tries = 0; tries < 20; tries++) {
    begin ();
    state_file_close (&file);
    file = (struct state_file)STATE_FILE_INIT;
    file.fd = memfd_create ("state", MFD_CLOEXEC);
    file.disk_fd = memfd_create ("disk", MFD_CLOEXEC);
    cr_assert (state_file_allocate (&file, 0, large.file_size) == 0);
    cr_assert (state_file_map_job (&file, &large, &error) == 0, "%s", error);
    begin_job (&large);
    cr_assert (pthread_create (&thread, NULL, make_a_round, NULL) == 0);
    while (atomic_load (&file.live[large.geo.nr_words / 16]) != 0)
      ;
    state_lose (&state, "no luck");
    pthread_join (thread, NULL);
    for (uint64_t w = 0; w < large.geo.nr_words; w++)
      cr_assert (atomic_load (&file.live[w]) == ~UINT64_C (0), "try %u: word %llu", tries,
                 (unsigned long long)w);
    end ();
    region_free (region);
  }
}

/* A region that is no longer marked is not looked at, while the file is being written too. */
Test (state_loss, a_region_that_is_let_go)
{
  begin ();
  begin_job (&layout);
  state_round (&state);
  cr_assert (is_clean (1));
  pthread_mutex_lock (&state.io_lock);
  state_set_region (&state, NULL);
  pthread_mutex_unlock (&state.io_lock);
  write_block (1);
  state_round (&state);
  cr_assert_not (is_clean (1));
  end ();
  region_free (region);
}

/* ---- what only the live map has ---- */

/* The next server, which finds the live map as it was. */
static void
next_server (void)
{
  char *error = NULL;
  uint8_t uuid[16];

  end ();
  region_free (region);
  start ();
  uuid_make (uuid);
  region = region_create (&layout.geo, uuid, &error);
  cr_assert (region != NULL, "%s", error);
  state_fill_region (&state, region);
  state_set_region (&state, region);
}

/* A job of which all is cold, in the file too. */
static void
begin_cold_job (void)
{
  begin ();
  add ("a");
  begin_job (&layout);
  while (state.nr_hot != 0 || !is_clean (1))
    state_round (&state);
  state_round (&state);
}

static int
fail_to_write (void *opaque, const void *data, size_t length, uint64_t offset)
{
  (void)opaque, (void)data, (void)length, (void)offset;
  errno = ENOSPC;
  return -1;
}

/* The file is lost, and cannot say so; the next server finds room again, and ends cleanly. */
Test (state_loss, a_loss_that_was_never_written)
{
  const struct state_identity id = { .known = false };
  struct state_found f;

  begin_cold_job ();
  state.io.write = fail_to_write;
  state_lose (&state, "no room");
  state_round (&state);
  write_block (1);
  next_server ();
  cr_assert (!is_clean (1), "the live map forgot it");
  cr_assert (state_close_clean (&state, &id) == 0);
  find_after_power_failure (&f);
  cr_assert (f.how == STATE_FROM_CLEAN);
  cr_assert (f.dirty_blocks == layout.geo.nr_blocks, "%llu blocks are dirty in L2",
             (unsigned long long)f.dirty_blocks);
  cr_assert (f.recorded_blocks == layout.geo.nr_blocks, "%llu blocks are recorded",
             (unsigned long long)f.recorded_blocks);
  state_found_free (&f);
  end ();
  region_free (region);
}

static int
flush_in_vain (void *opaque)
{
  (void)opaque;
  pthread_mutex_lock (&state.io_lock);
  state.changes++;
  pthread_mutex_unlock (&state.io_lock);
  return 0;
}

/* A worker sets BLOCK dirty by itself. */
static void
doubt (uint64_t block)
{
  bitmap_set (region, REGION_DIRTY, block, 1);
  atomic_fetch_add (&region->hdr->given_back, 1);
}

/* What a worker set dirty has come into the live map, and not into L2, when the server is killed.
 * The next one ends cleanly, or goes on until the power fails. */
Test (state_loss, a_kill_before_l2_is_written)
{
  const struct state_identity id = { .known = false };
  const struct sample sample = { .block = 5, .length = 4, .data = "old" };
  struct state_found f;
  struct sample s;

  for (unsigned cleanly = 0; cleanly < 2; cleanly++) {
    begin_cold_job ();
    state.io.sync_disk = flush_in_vain;
    state.flush_owed = true;
    state.owed_tick = UINT32_MAX;
    doubt (1);
    state_round (&state);
    cr_assert_not (is_clean (1));
    find_after_power_failure (&f);
    cr_assert ((f.bits[0] & 2) == 0, "the test is about what L2 does not have");
    state_found_free (&f);
    next_server ();
    samples_put (region, &sample);
    if (cleanly)
      cr_assert (state_close_clean (&state, &id) == 0);
    else {
      state_allow_settling (&state);
      state_round (&state);
    }
    find_after_power_failure (&f);
    cr_assert (f.how == (cleanly ? STATE_FROM_CLEAN : STATE_FROM_L1));
    cr_assert ((f.bits[0] & 2) != 0, "it was forgotten");
    bool sampled = false;
    for (unsigned i = 0; i < SAMPLES_MAX; i++)
      sampled |= state_find_sample (file.fd, &f, i, &s) && s.block == 5;
    cr_assert (sampled || !cleanly, "nothing proves the destination any more");
    state_found_free (&f);
    end ();
    region_free (region);
  }
}

/* Where nobody can flush the disk, a round may be unable to write L2.  Then the end is not clean,
 * and the next server looks at the live map. */
Test (state_loss, an_end_before_l2_is_written)
{
  const struct state_identity id = { .known = false };

  begin_cold_job ();
  state.io.sync_disk = NULL;
  state.flush_owed = true;
  state.owed_tick = UINT32_MAX;
  doubt (1);
  cr_assert (state_close_clean (&state, &id) == -1);
  cr_assert_not (is_clean (1));
  end ();
  region_free (region);
}

/* ---- the end of a job ---- */

static unsigned superblocks;

/* While the end is written to the superblock, and to the table, a guest writes block 1.  It is
 * below only after its extent has an L1 bit, and in the live map. */
static int
write_while_it_ends (void *opaque, const void *data, size_t length, uint64_t offset)
{
  struct state_found f;
  bool counted;

  if (offset >= state.layout.l1_offset || offset < STATE_PAGE)
    return state_file_io (opaque).write (opaque, data, length, offset);
  superblocks++;
  cr_assert (superblocks > 1 || !state_try_enter (&state, BLOCK, BLOCK, &counted),
             "it is written before the file knows of the end, and without an L1 bit");
  write_block (1);
  find_after_power_failure (&f);
  cr_assert (f.bits == NULL || (f.bits[0] & 2) != 0);
  state_found_free (&f);
  cr_assert_not (is_clean (1));
  return state_file_io (opaque).write (opaque, data, length, offset);
}

/* A guest writes while a job ends, or while the tracking of another disk does. */
Test (state_loss, a_write_while_a_job_ends)
{
  struct state_view v;

  for (unsigned disowned = 0; disowned < 2; disowned++) {
    begin ();
    begin_job (&layout);
    while (state.nr_hot != 0 || !is_clean (1))
      state_round (&state);
    superblocks = 0;
    state.io.write = write_while_it_ends;
    if (disowned)
      state_disown (&state, "another disk");
    else
      state_end (&state);
    cr_assert_gt (superblocks, 0);
    state_look (&state, &v);
    cr_assert (!v.job && !v.lost);
    end ();
    region_free (region);
  }
}

/* The file cannot say that the job has ended. */
Test (state_loss, a_job_that_cannot_end)
{
  struct state_view v;

  for (unsigned disowned = 0; disowned < 2; disowned++) {
    begin ();
    begin_job (&layout);
    while (state.nr_hot != 0 || !is_clean (1))
      state_round (&state);
    state.io.write = fail_at_the_superblock;
    failing_writes = UINT_MAX;
    if (disowned)
      state_disown (&state, "another disk");
    else
      state_end (&state);
    state_look (&state, &v);
    cr_assert (v.lost && !v.job);
    write_block (1);
    cr_assert (!is_clean (1), "%u: a write after the end was not marked", disowned);
    end ();
    region_free (region);
  }
}
