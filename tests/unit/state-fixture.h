/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A server with a state file in memory, for tests of the state file's library.  Each function
 * asserts that it succeeds.
 */

#ifndef NBDMIRROR_TESTS_UNIT_STATE_FIXTURE_H
#define NBDMIRROR_TESTS_UNIT_STATE_FIXTURE_H

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

static struct state_file file = STATE_FILE_INIT;
static struct state state;
static struct state_layout layout;
static uint8_t boot[16] = { 1 };

static inline void
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

static inline void
end (void)
{
  state_destroy (&state);
}

/* Each test begins with it: where all tests run in one process, the file of the last one is there
 * still. */
static inline void
begin (void)
{
  state_file_close (&file);
  file = (struct state_file)STATE_FILE_INIT;
  start ();
}

static inline void
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

static inline void
prepare (const char *name)
{
  char *error = NULL;
  uint8_t uuid[16];

  uuid_make (uuid);
  cr_assert (state_checkpoint_prepare (&state, &layout, file.slots, boot, name, uuid, &error) == 0,
             "%s", error);
}

static inline void
commit (void)
{
  char *error = NULL;

  cr_assert (state_checkpoint_flush (&state) == 0);
  cr_assert (state_checkpoint_commit (&state, &error) == 0, "%s", error);
}

static inline void
add (const char *name)
{
  prepare (name);
  commit ();
}

static inline void
drop (const char *name)
{
  char *error = NULL;

  cr_assert (state_checkpoint_remove (&state, name, &error) == 0, "%s", error);
}

/* Exactly these NR blocks were changed since NAME. */
static inline void
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
static inline void
find_after_power_failure (struct state_found *f)
{
  static const uint8_t other_boot[16] = { 2 };
  char *error = NULL;

  cr_assert (
      state_find (file.fd, (uint64_t)lseek (file.fd, 0, SEEK_END), other_boot, NULL, f, &error)
          == 0,
      "%s", error);
}

#endif
