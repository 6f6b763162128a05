/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The state file's library: the format, the table of checkpoints, recordings that are frozen,
 * merged and read back, and what damage does to them.  Crashes are tests/crash's.
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/text.h"
#include "base/uuid.h"
#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/samples.h"
#include "dirty-bitmap/state/file.h"
#include "dirty-bitmap/state/recordings.h"
#include "tests/unit/unit.h"

#define BLOCK 4096u
#define DISK (UINT64_C (64) << 20)

/* A server with a state file in memory.  Each function asserts that it succeeds. */
static struct state_file file = STATE_FILE_INIT;
static struct state state;
static struct state_layout layout;
static uint8_t boot[16] = { 1 };

static void
start (void)
{
  struct state_found f;
  uint8_t uuid[16];
  char *error = NULL;

  cr_assert (state_layout_init (&layout, DISK, BLOCK) == 0);
  if (file.fd == -1)
    file.fd = memfd_create ("state", MFD_CLOEXEC);
  if (file.disk_fd == -1)
    file.disk_fd = memfd_create ("disk", MFD_CLOEXEC);
  const struct state_io io = state_file_io (&file);
  state_init (&state, &io);
  off_t size = lseek (file.fd, 0, SEEK_END);
  cr_assert (state_find (file.fd, (uint64_t)size, boot, NULL, &f, &error) == 0, "%s", error);
  uuid_make (uuid);
  if (size == 0) {
    cr_assert (state_file_allocate (&file, 0, layout.areas_offset) == 0);
    cr_assert (state_file_map_job (&file, &layout, &error) == 0);
    cr_assert (state_file_map_recordings (&file, &layout, &error) == 0);
  }
  int r = f.tracked ? state_continue (&state, &f, file.live, file.slots, uuid, boot, &error)
                    : state_know (&state, &f);
  cr_assert (r == 0, "%s", error);
  state_found_free (&f);
}

static void
end (void)
{
  state_destroy (&state);
}

/* Each test begins with it: where all tests run in one process, the file of the last one is there
 * still. */
static void
begin (void)
{
  state_file_close (&file);
  file = (struct state_file)STATE_FILE_INIT;
  start ();
}

static void
write_block (uint64_t block)
{
  bool counted;

  for (unsigned tries = 0; !state_try_enter (&state, block * BLOCK, BLOCK, &counted); tries++) {
    cr_assert (tries < 2, "a commit did not make the extent hot");
    state_commit (&state);
  }
  if (counted)
    state_leave (&state, block * BLOCK, BLOCK);
}

static void
prepare (const char *name)
{
  char *error = NULL;
  uint8_t uuid[16];

  uuid_make (uuid);
  cr_assert (state_checkpoint_prepare (&state, &layout, file.slots, boot, name, uuid, &error) == 0,
             "%s", error);
}

static void
commit (void)
{
  char *error = NULL;

  cr_assert (state_checkpoint_commit (&state, &error) == 0, "%s", error);
}

static void
add (const char *name)
{
  prepare (name);
  commit ();
}

static void
drop (const char *name)
{
  char *error = NULL;

  cr_assert (state_checkpoint_remove (&state, name, &error) == 0, "%s", error);
}

/* Exactly these NR blocks were changed since NAME. */
static void
changed (const char *name, const uint64_t *blocks, unsigned nr)
{
  uint64_t *bits = calloc (layout.geo.nr_words, 8), set = 0;
  char *error = NULL;

  cr_assert (state_changed_now (&state, name, bits, &error) == 0, "%s", error);
  for (uint64_t w = 0; w < layout.geo.nr_words; w++)
    set += (uint64_t)__builtin_popcountll (bits[w]);
  cr_assert (set == nr, "%s: %llu blocks, not %u", name, (unsigned long long)set, nr);
  for (unsigned i = 0; i < nr; i++)
    cr_assert ((bits[blocks[i] / 64] >> (blocks[i] % 64) & 1) != 0, "block %llu is missing",
               (unsigned long long)blocks[i]);
  free (bits);
}
#define CHANGED(name, ...)                                                                         \
  changed (name, (const uint64_t[]){ __VA_ARGS__ },                                                \
           sizeof (const uint64_t[]){ __VA_ARGS__ } / sizeof (uint64_t))

/* What a server finds after a power failure. */
static void
find_after_power_failure (struct state_found *f)
{
  static const uint8_t other_boot[16] = { 2 };
  char *error = NULL;

  cr_assert (
      state_find (file.fd, (uint64_t)lseek (file.fd, 0, SEEK_END), other_boot, NULL, f, &error)
          == 0,
      "%s", error);
}

Test (state, a_table_comes_back)
{
  static struct state_table t, back;
  uint8_t *pages = malloc (STATE_TABLE_PAGES * STATE_PAGE);

  t = (struct state_table){ .sequence = 7, .nr = STATE_CHECKPOINTS_MAX, .slot = 1 };
  t.recording = true;
  for (uint32_t i = 0; i < t.nr; i++) {
    struct state_checkpoint *c = &t.list[i];
    memset (c->name, 'a' + (int)(i % 26), STATE_NAME_MAX - i / 26);
    uuid_make (c->uuid);
    uuid_make (c->recording);
    c->area = i;
    c->blocks = i * 1000003;
    c->created_us = -(int64_t)i;
    c->inconsistent = i % 2 != 0;
    memset (c->fault, 'x', i % (STATE_FAULT_MAX + 1));
  }
  state_table_encode (&t, pages);
  cr_assert (state_table_decode (pages, &back) == STATE_PAGE_GOOD);
  cr_assert (memcmp (&t, &back, sizeof t) == 0);
  /* Each byte counts. */
  for (size_t at = 0; at < STATE_TABLE_PAGES * STATE_PAGE; at += 97) {
    pages[at] ^= 0x10;
    cr_assert (state_table_decode (pages, &back) == STATE_PAGE_BAD, "byte %zu", at);
    pages[at] ^= 0x10;
  }
  /* Two of one name; no recording, and a last one that claims to be consistent. */
  strcpy (t.list[255].name, t.list[0].name);
  state_table_encode (&t, pages);
  cr_assert (state_table_decode (pages, &back) == STATE_PAGE_BAD);
  t.nr = 1;
  t.recording = false;
  state_table_encode (&t, pages);
  cr_assert (state_table_decode (pages, &back) == STATE_PAGE_BAD);
  free (pages);
}

Test (state, names)
{
  static const char *const good[]
      = { "a", "2026-11-28 noon", "\xc3\xa4", "a.b", "\xf0\x9f\x98\x80" };
  static const char *const bad[] = { "",
                                     ".a",
                                     "-a",
                                     "a/b",
                                     "a\nb",
                                     "\xff",
                                     "a\xc3",
                                     "\xc0\xaf",
                                     "\xed\xa0\x80",
                                     "\xf4\x90\x80\x80",
                                     "\x7f",
                                     "\xe0\x80",
                                     "\xf0\x80\x80\x80" };
  char longest[STATE_NAME_MAX + 2];

  for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
    cr_assert (state_name_fault (good[i]) == NULL, "%s", good[i]);
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
    cr_assert (state_name_fault (bad[i]) != NULL, "%zu", i);
  memset (longest, 'n', sizeof longest);
  longest[STATE_NAME_MAX + 1] = '\0';
  cr_assert (state_name_fault (longest) != NULL);
  longest[STATE_NAME_MAX] = '\0';
  cr_assert (state_name_fault (longest) == NULL);
}

Test (state, the_parts_of_the_layout_do_not_overlap)
{
  static const uint64_t sizes[] = { 0, 1, 4096, DISK, (UINT64_C (1) << 40) + 512 };

  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
    for (uint32_t block = 4096; block <= 1 << 20; block *= 16) {
      struct state_layout l;
      cr_assert (state_layout_init (&l, sizes[i], block) == 0);
      cr_assert (l.note_offset + 2 * STATE_NOTE_PAGES * STATE_PAGE == STATE_TABLE_OFFSET);
      cr_assert (STATE_TABLE_OFFSET + 2 * STATE_TABLE_PAGES * STATE_PAGE == l.l1_offset);
      cr_assert (l.samples_offset == l.l1_offset + 2 * l.nr_l1_pages * STATE_PAGE);
      cr_assert (l.live_offset >= l.l2_offset + l.nr_l2_pages * STATE_PAGE);
      cr_assert (l.file_size >= l.live_offset + l.geo.nr_words * 8);
      cr_assert (l.areas_offset >= l.recordings_offset + 2 * l.geo.nr_words * 8);
      cr_assert (l.area_bytes >= l.nr_l2_pages * STATE_PAGE);
      /* At most 64 MiB for each TiB and checkpoint in blocks of 4 KiB. */
      if (sizes[i] > DISK)
        cr_assert (l.area_bytes <= UINT64_C (64) << 20);
    }
}

Test (state, since_each_checkpoint)
{
  begin ();
  add ("a");
  write_block (5);
  write_block (9000);
  add ("b");
  write_block (6);
  add ("c");
  write_block (5);
  CHANGED ("a", 5, 6, 9000);
  CHANGED ("b", 5, 6);
  CHANGED ("c", 5);
  end ();
}

/* Between prepare and commit both recordings are marked. */
Test (state, a_write_between_is_in_both)
{
  begin ();
  add ("a");
  write_block (1);
  prepare ("b");
  write_block (2);
  commit ();
  write_block (3);
  CHANGED ("a", 1, 2, 3);
  CHANGED ("b", 2, 3);
  /* What was given up has left nothing. */
  prepare ("c");
  write_block (4);
  state_checkpoint_abort (&state);
  cr_assert (state_table_find (state.table, "c") == -1);
  CHANGED ("b", 2, 3, 4);
  end ();
}

Test (state, an_extent_that_cools_between_is_in_both)
{
  struct state_found f;

  begin ();
  state.idle_ticks = 0;
  add ("a");
  state_allow_settling (&state);
  prepare ("b");
  write_block (2);
  state_round (&state);
  cr_assert (state.nr_hot == 0);
  commit ();
  find_after_power_failure (&f);
  cr_assert (f.recorded_blocks == 1, "%llu blocks", (unsigned long long)f.recorded_blocks);
  state_found_free (&f);
  end ();
}

Test (state, removing)
{
  begin ();
  add ("a");
  write_block (1);
  add ("b");
  write_block (2);
  add ("c");
  write_block (3);
  drop ("b"); /* in the middle */
  CHANGED ("a", 1, 2, 3);
  CHANGED ("c", 3);
  drop ("c"); /* the active one */
  CHANGED ("a", 1, 2, 3);
  write_block (4);
  CHANGED ("a", 1, 2, 3, 4);
  add ("d");
  drop ("a"); /* without a parent */
  write_block (5);
  CHANGED ("d", 5);
  drop ("d");
  cr_assert (state.table->nr == 0 && !atomic_load (&state.active));
  add ("e"); /* in an area, and a live map, that were used before */
  CHANGED ("e");
  end ();
}

Test (state, a_server_goes_on)
{
  struct state_found f;

  begin ();
  add ("a");
  write_block (1);
  add ("b");
  write_block (2);
  end (); /* killed */
  start ();
  CHANGED ("a", 1, 2);
  CHANGED ("b", 2);
  write_block (3);
  find_after_power_failure (&f);
  /* The extent was hot: all of it, and nothing else. */
  cr_assert (f.how == STATE_FROM_L1 && f.recorded_blocks == 1024);
  state_found_free (&f);
  state_allow_settling (&state);
  struct state_identity id = { .known = true, .size = DISK };
  cr_assert (state_close_clean (&state, &id) == 0);
  find_after_power_failure (&f);
  cr_assert (f.how == STATE_FROM_CLEAN && f.recorded_blocks == 2);
  state_found_free (&f);
  end ();
}

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
  /* As after a recovery: the guest has not flushed yet and nobody else can.  The round is given up.
   */
  state.io.sync_disk = NULL;
  state.flush_owed = true;
  state.owed_tick = UINT32_MAX;
  state_round (&state);
  left (5, &clean, &sampled);
  cr_assert (clean, "the test is about the time after that");
  cr_assert_not (sampled);
  end ();
  region_free (r);
}

/* Where nobody can flush the disk, what the guest has not flushed may be older after a power
 * failure, so it counts as changed. */
Test (state, what_is_not_durable_is_in_the_next_one)
{
  uint64_t *bits = calloc (16384 / 64 + 1, 8);
  char *error = NULL;

  begin ();
  state.io.sync_disk = NULL;
  add ("a"); /* nothing was flushed yet */
  cr_assert (state_changed_now (&state, "a", bits, &error) == 0 && bits[16384 / 64 - 1] != 0);
  state_allow_settling (&state);
  state_round (&state); /* the clock goes on */
  state_flush_ended (&state, state_flush_begins (&state));
  write_block (9000);
  add ("b");
  memset (bits, 0, 16384 / 8);
  cr_assert (state_changed_now (&state, "b", bits, &error) == 0);
  for (uint64_t b = 0; b < 16384; b++)
    cr_assert ((bits[b / 64] >> (b % 64) & 1) == (b / 1024 == 9000 / 1024), "block %llu",
               (unsigned long long)b);
  free (bits);
  end ();
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

/* As the file's own, where nobody keeps a guest's first touch of an extent waiting. */
static int
read_beside_guests (void *opaque, void *data, size_t length, uint64_t offset)
{
  cr_assert (pthread_mutex_trylock (&state.io_lock) == 0, "a guest would wait for this");
  pthread_mutex_unlock (&state.io_lock);
  return state_file_io (opaque).read (opaque, data, length, offset);
}

/* A disk may have 256 recordings of 32 MiB, and to read them takes seconds. */
Test (state, no_guest_waits_while_recordings_are_read)
{
  uint8_t uuid[16];
  char *error = NULL;

  begin ();
  for (unsigned i = 0; i < 4; i++) {
    add ((const char *[]){ "a", "b", "c", "d" }[i]);
    write_block (i * 1000);
  }
  state.io.read = read_beside_guests;
  drop ("b");
  drop ("d");
  uuid_make (uuid);
  cr_assert (state_begin (&state, &layout, file.live, uuid, boot, "a", &error) == 0, "%s", error);
  CHANGED ("a", 0, 1000, 2000, 3000);
  CHANGED ("c", 2000, 3000);
  end ();
}

Test (state, damage_is_never_clean)
{
  uint64_t *bits = calloc (16384 / 64 + 1, 8);
  static const uint8_t zeroes[STATE_PAGE];
  char *error = NULL;

  begin ();
  add ("a");
  write_block (1);
  add ("b");
  uint64_t area = layout.areas_offset + state.table->list[0].area * layout.area_bytes;
  cr_assert (pwrite (file.fd, "x", 1, (off_t)area + 3000) == 1);
  cr_assert (state_changed_now (&state, "a", bits, &error) == 0, "%s", error);
  cr_assert (bits[0] == ~UINT64_C (0), "a damaged page is not all changed");
  cr_assert (pwrite (file.fd, zeroes, sizeof zeroes, (off_t)area) == STATE_PAGE);
  cr_assert (state_changed_now (&state, "a", bits, &error) == -1, "a lost page is not noticed");
  text_free (error);
  free (bits);
  end ();
}

Test (state, what_was_missed_is_inconsistent)
{
  uint64_t *bits = calloc (16384 / 64 + 1, 8);
  char *error = NULL;

  begin ();
  add ("a");
  add ("b");
  state_break (&state, "a test");
  cr_assert (state_changed_now (&state, "a", bits, &error) == -1);
  cr_assert (strstr (error, "a test") != NULL, "%s", error);
  text_free (error);
  add ("c");
  write_block (7);
  CHANGED ("c", 7);
  error = NULL;
  cr_assert (state_changed_now (&state, "b", bits, &error) == -1);
  text_free (error);
  drop ("b"); /* its parent inherits that */
  error = NULL;
  cr_assert (state_changed_now (&state, "a", bits, &error) == -1);
  text_free (error);
  /* The file is lost: so is what it records, and a later checkpoint begins anew. */
  state_lose (&state, "no luck");
  error = NULL;
  cr_assert (state_changed_now (&state, "c", bits, &error) == -1);
  text_free (error);
  add ("d");
  write_block (8);
  CHANGED ("d", 8);
  error = NULL;
  cr_assert (state_changed_now (&state, "c", bits, &error) == -1);
  text_free (error);
  free (bits);
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

Test (state, at_most_256)
{
  char *error = NULL, name[16];
  uint8_t uuid[16] = { 0 };

  begin ();
  for (unsigned i = 0; i < STATE_CHECKPOINTS_MAX; i++) {
    snprintf (name, sizeof name, "c%u", i);
    add (name);
  }
  cr_assert (state_checkpoint_prepare (&state, &layout, file.slots, boot, "x", uuid, &error) == -1);
  text_free (error);
  write_block (3);
  CHANGED ("c0", 3);
  drop ("c128");
  CHANGED ("c0", 3);
  add ("x");
  end ();
}
