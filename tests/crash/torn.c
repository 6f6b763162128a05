/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves that two torn writes of a page of L1 never make up a good one.
 *
 * The power fails twice while the same copy of the page is written.  The first write would have
 * dropped two bits, and its header and the sector of one of them reach the disk.  The second one
 * drops only the other bit, and nothing but that bit's sector reaches the disk.  Then each sector
 * of the copy is as the first write meant it.  If nothing had been written to it in between, it
 * would be good, and newer than the other copy.  But a guest has written to the extent of the first
 * bit meanwhile, so that this bit must not be lost.
 *
 * The tears are chosen, because random ones meet this too rarely.  It needs a disk whose L1 fills
 * three sectors, which crash.c could not look at as often.
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "base/uuid.h"
#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/state/state.h"
#include "tests/crash/medium.h"

#define BLOCK (1u << 20)
#define EXTENTS 8200u
#define PER_EXTENT 64u
#define SECTOR 512u
#define IDLE_TICKS 3u

/* One extent whose L1 bit is in the header's sector, and one in each of the next two. */
enum { IN_FIRST = 0, IN_SECOND = 4000, IN_THIRD = 8000 };

static struct state_layout layout;
static struct state state;
static struct region *region;
static _Atomic uint64_t *live;
static uint8_t boot[16];
static unsigned keep; /* the next write of L1 is torn: a bit for each sector that survives; 0: no */

static void __attribute__ ((noreturn)) fail (const char *what)
{
  printf ("%s\n", what);
  exit (1);
}

static void
maybe_tear (void)
{
  if (keep == 0 || medium.off || medium.nr_late == 0)
    return;
  unsigned newest = medium.nr_late - 1;
  uint64_t offset = medium.late[newest].offset;
  if (offset < layout.l1_offset || offset >= layout.samples_offset)
    return;
  for (unsigned i = 0; i < medium.late[newest].length / SECTOR; i++)
    if ((keep >> i & 1) != 0)
      memcpy (medium.durable + offset + i * SECTOR, medium.late[newest].data + i * SECTOR, SECTOR);
  keep = 0;
  medium.off = true;
}

static void
nobody_else (void)
{
}

static void
start_server (void)
{
  const struct state_io io = { .read = medium_read, .write = medium_write, .sync = medium_sync };
  uint8_t uuid[16];

  state_init (&state, &io);
  state.idle_ticks = IDLE_TICKS;
  uuid_make (uuid);
  region = region_create (&layout.geo, uuid, NULL);
  if (region == NULL)
    fail ("out of memory");
}

/* The worker has copied everything. */
static void
all_is_copied (void)
{
  state_set_region (&state, region);
  state_allow_settling (&state);
}

/* A guest writes a block of extent E and flushes. */
static void
write_to (uint64_t e)
{
  uint64_t offset = e * PER_EXTENT * BLOCK;
  bool counted;

  while (!state_try_enter (&state, offset, BLOCK, &counted))
    state_commit (&state);
  if (!counted)
    fail ("a write is not tracked");
  state_leave (&state, offset, BLOCK);
  atomic_fetch_add (&state.tick, 1);
  state_flush_ended (&state, state_flush_begins (&state));
}

/* The power has failed: what is in the file now, and what it is taken for. */
static void
look (struct state_found *f)
{
  CLEANUP_TEXT char *error = NULL;

  if (!medium.off)
    fail ("L1 was not written, so nothing is torn");
  medium.off = false;
  medium_forget_late ();
  memcpy (medium.cached, medium.durable, medium.size);
  region_free (region);
  state_destroy (&state);
  uuid_make (boot);
  if (state_find (medium.fd, layout.file_size, boot, NULL, f, &error) == -1)
    fail (error);
}

static bool
has (const struct state_found *f, uint64_t e)
{
  return (f->bits[e * PER_EXTENT / 64] & 1) != 0;
}

int
main (void)
{
  struct state_found f;
  uint8_t uuid[16];

  if (state_layout_init (&layout, (uint64_t)EXTENTS * PER_EXTENT * BLOCK, BLOCK) == -1
      || layout.nr_extents != EXTENTS || medium_open (layout.file_size) == -1)
    fail ("the layout is not as this test needs it");
  medium.cut = maybe_tear;
  medium.others = nobody_else;
  live = calloc (layout.geo.nr_words, 8);
  uuid_make (uuid);
  uuid_make (boot);
  start_server ();
  if (live == NULL || state_begin (&state, &layout, live, uuid, boot, NULL, NULL) == -1)
    fail ("a job cannot begin");
  all_is_copied ();
  state_round (&state);

  /* The copies take turns: the older one has the second and the third bit, too. */
  write_to (IN_SECOND);
  write_to (IN_THIRD);
  write_to (IN_FIRST);
  keep = 1u << 0 | 1u << 1;
  for (unsigned i = 0; i <= IDLE_TICKS && !medium.off; i++)
    state_round (&state);
  look (&f);
  if (!has (&f, IN_FIRST) || !has (&f, IN_SECOND) || !has (&f, IN_THIRD))
    fail ("the first cut loses a bit");
  if (f.bad_pages != 1)
    fail ("the page is not torn");

  start_server ();
  if (state_continue (&state, &f, live, state.slots, uuid, boot, NULL) == -1)
    fail ("the job cannot go on");
  state_found_free (&f);
  all_is_copied ();
  keep = 1u << 2;
  for (unsigned i = 0; i <= IDLE_TICKS + 1 && !medium.off; i++) {
    write_to (IN_SECOND);
    bitmap_set (region, REGION_DIRTY, IN_SECOND * PER_EXTENT, 1); /* and it is not copied */
    state_round (&state);
  }
  look (&f);
  if (!has (&f, IN_SECOND))
    fail ("VIOLATION: an extent that was written to is clean");
  state_found_free (&f);
  free ((void *)live);
  return 0;
}
