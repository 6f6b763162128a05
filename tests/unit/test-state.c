/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The state file's library: the format, the table of checkpoints, recordings that are frozen,
 * merged and read back, and what damage does to them.  Crashes are tests/crash's.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/state-fixture.h"

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

/* A checkpoint is prepared, and its disk is being flushed; then the file is lost, and a job begins
 * anew.  What was written in between is in no map, so the checkpoint must not be added. */
Test (state, a_checkpoint_does_not_outlive_a_loss)
{
  char *error = NULL;
  uint8_t uuid[16];

  begin ();
  add ("a");
  prepare ("b");
  write_block (7);
  state_lose (&state, "no luck");
  uuid_make (uuid);
  cr_assert (state_begin (&state, &layout, file.live, uuid, boot, NULL, &error) == 0, "%s", error);
  cr_assert (state_checkpoint_commit (&state, &error) == -1);
  text_free (error);
  cr_assert (state.table->nr == 1 && !state.table->recording);
  add ("c");
  write_block (8);
  CHANGED ("c", 8);
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
