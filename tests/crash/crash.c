/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves by crash states that a state file never forgets a block: crash [-n STATES] [-s SEED].
 *
 * One thread plays a guest, a worker, a destination and the threads that write the state file, in
 * random order, also within the file's writes and syncs.  Every write to the file and to the
 * source's disk is recorded.  Before and after each of them the program builds the states that a
 * power cut allows: all that came before the last completed sync, and any part of what came later,
 * with tears of 512 bytes, for the file and for the disk each by itself.  In each state the file is
 * recovered, and then
 *   - each block whose recovered bit is clear has, in every state of the disk that the cut allows,
 *     exactly what the destination has flushed, and nothing is on its way there;
 *   - each recovered sample of such a block is what the destination has.
 * Now and then it goes on from such a state with a new server, which may be cut in its recovery; or
 * only the server is killed, and the page cache is as it was (then the live map counts).  At the
 * end of a run the job ends, while the guest writes.
 *
 * In the last fifth of the runs the destination is replaced by another one now and then, which has
 * nothing, and all is to be copied again.  Then a bit that is clear is believed only together with
 * a sample of the destination that is there.
 *
 * A block's content is a number, counted up at each write.
 */

#include "config.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/text.h"
#include "base/uuid.h"
#include "dirty-bitmap/claims.h"
#include "dirty-bitmap/samples.h"
#include "dirty-bitmap/state/state.h"
#include "tests/crash/medium.h"

#define BLOCK 8192u
/* Their fine bits fill more than a sector of an L2 page, so that it can tear. */
#define EXTENTS 9u
#define PER_EXTENT 512u
#define BLOCKS (EXTENTS * PER_EXTENT - 7) /* an odd tail */
#define MOST_GUESTS 4

/* ---- the disk and the destination ---- */

static struct medium_block disk[BLOCKS];
static uint32_t newest;

static struct {
  uint32_t flushed;
  uint32_t written; /* what its cache has; the same if nothing is on its way */
  bool late;        /* a request for it may still be applied */
} dest[BLOCKS];

static bool is_replaced; /* the destination, now and then; and how often that was: */
static uint32_t nr_dest;

static struct guest_write {
  bool active, entered, counted;
  uint64_t first, count;
  uint32_t version;
} guests[MOST_GUESTS];

static struct state state;
static struct region *region;
static struct state_layout layout;
static _Atomic uint64_t *live;
static uint8_t boot[16], other_boot[16];
static uint64_t nr_states, wanted_states = 20000, seed = 1, nr_runs;
static bool in_callback;
static bool is_ending; /* the job: a file that has none may be found */

static void __attribute__ ((noreturn)) violation (const char *what, uint64_t block)
{
  printf ("VIOLATION after %llu states, seed %llu: %s, block %llu\n", (unsigned long long)nr_states,
          (unsigned long long)seed, what, (unsigned long long)block);
  exit (1);
}

/* ---- crash states ---- */

/* Does F have a sample that this destination has, of a block that is clean? */
static bool
is_proved (const struct state_found *f)
{
  for (unsigned i = 0; i < SAMPLES_MAX; i++) {
    struct sample s;
    uint32_t of;
    if (!state_find_sample (medium.fd, f, i, &s) || (f->bits[s.block / 64] >> (s.block % 64) & 1))
      continue;
    memcpy (&of, s.data + sizeof of, sizeof of);
    if (of == nr_dest)
      return true;
  }
  return false;
}

static void
check_found (const struct state_found *f, bool same_boot)
{
  if (nr_dest != 0 && !is_proved (f))
    return;
  for (uint64_t b = 0; b < BLOCKS; b++) {
    if ((f->bits[b / 64] >> (b % 64) & 1) != 0)
      continue;
    if (dest[b].late || dest[b].written != dest[b].flushed)
      violation ("clean, and something is on its way to the destination", b);
    if (!same_boot && disk[b].durable != dest[b].flushed)
      violation ("clean, but the disk may hold what was durable", b);
    for (unsigned i = 0; i < disk[b].nr; i++)
      if (disk[b].late[i] != dest[b].flushed
          && !(same_boot && disk[b].late[i] != disk[b].completed
               && disk[b].late[i] < disk[b].completed))
        violation ("clean, but the disk may hold something else", b);
  }
  bool look = medium_random (16) == 0; /* reading the samples takes long */
  if (!look && !same_boot)
    return;
  for (unsigned i = 0; i < SAMPLES_MAX; i++) {
    struct sample s;
    if (!state_find_sample (medium.fd, f, i, &s) || (f->bits[s.block / 64] >> (s.block % 64) & 1))
      continue;
    uint32_t version;
    memcpy (&version, s.data, sizeof version);
    if (version != dest[s.block].flushed)
      violation ("a sample is not what the destination has", s.block);
  }
}

static void
look_at_file (const uint8_t *now, struct state_found *f, bool same_boot)
{
  char *error = NULL;

  if (state_find (medium.fd, layout.file_size, now, NULL, f, &error) == -1) {
    printf ("%s\n", error);
    violation ("the file is refused", 0);
  }
  if (f->super.job)
    check_found (f, same_boot);
  else if (!is_ending)
    violation ("the job is gone", 0);
  nr_states++;
}

/* Build some of the states that a cut at this instant allows. */
static void
cut_here (void)
{
  struct state_found f;

  for (unsigned n = 0; n < 3; n++) {
    medium_cut_begin ();
    look_at_file (other_boot, &f, false);
    state_found_free (&f);
    medium_cut_undo ();
  }
}

static void
disk_flush (void)
{
  for (uint64_t b = 0; b < BLOCKS; b++)
    medium_block_flush (&disk[b]);
}

/* ---- the guest ---- */

static void
guest_begins (void)
{
  struct guest_write *g = &guests[medium_random (MOST_GUESTS)];

  if (g->active)
    return;
  /* Most writes stay in two extents, so that others get cold. */
  uint64_t extent = medium_random (4) != 0 ? medium_random (2) : medium_random (EXTENTS);
  g->first = extent * PER_EXTENT + medium_random (8) * 63;
  g->count = 1 + medium_random (3);
  if (g->first + g->count > BLOCKS)
    g->count = BLOCKS - g->first;
  for (unsigned i = 0; i < MOST_GUESTS; i++) /* a guest does not write a block twice at a time */
    if (guests[i].active && guests[i].first < g->first + g->count
        && g->first < guests[i].first + guests[i].count)
      return;
  g->active = true;
  g->entered = false;
}

static void
guest_goes_on (struct guest_write *g)
{
  if (!g->active)
    return;
  if (!g->entered) {
    if (!state_try_enter (&state, g->first * BLOCK, g->count * BLOCK, &g->counted))
      return;
    g->entered = true;
    g->version = ++newest;
    for (uint64_t b = g->first; b < g->first + g->count; b++)
      medium_block_begin (&disk[b], g->version);
    return;
  }
  for (uint64_t b = g->first; b < g->first + g->count; b++)
    disk[b].completed = g->version;
  bitmap_mark (region, g->first * BLOCK, g->count * BLOCK);
  if (g->counted)
    state_leave (&state, g->first * BLOCK, g->count * BLOCK);
  g->active = false;
}

static void
guest_flushes (void)
{
  uint32_t begun = state_flush_begins (&state);
  disk_flush ();
  state_flush_ended (&state, begun);
}

/* ---- the worker and the destination ---- */

static void
worker_copies (void)
{
  uint64_t first, count;
  unsigned set = claim_enter (region);

  if (bitmap_next_run (region, REGION_DIRTY, medium_random (BLOCKS), 1 + medium_random (600),
                       &first, &count)) {
    claim_run (region, set, first, count);
    for (uint64_t b = first; b < first + count; b++) {
      dest[b].written = disk[b].completed;
      dest[b].late = true;
      bitmap_clear (region, REGION_QUARANTINE, b, 1);
    }
  }
  claim_leave (region, set);
}

static void
worker_flushes (void)
{
  unsigned old;

  if (!claim_turn (region, &old))
    return;
  for (uint64_t b = 0; b < BLOCKS; b++) {
    if (!bitmap_test (region, claim_array (old), b))
      continue;
    if (bitmap_test (region, claim_array (1 - old), b))
      continue; /* copied again since: that one is still on its way */
    dest[b].flushed = dest[b].written;
    dest[b].late = false;
  }
  samples_drop_in (region, claim_array (old));
  for (unsigned n = 0; n < 3; n++) {
    uint64_t b;
    struct sample s = { .length = 2 * sizeof dest[0].flushed, .kind = SAMPLE_SENT };
    if (!bitmap_next_set (region, claim_array (old), medium_random (BLOCKS), UINT64_MAX, &b)
        || dest[b].late)
      continue;
    s.block = b;
    memcpy (s.data, &dest[b].flushed, sizeof dest[b].flushed);
    memcpy (s.data + sizeof nr_dest, &nr_dest, sizeof nr_dest);
    samples_put (region, &s);
  }
  claim_release (region, old);
}

/* No sample can be compared, so everything is copied again. */
static void
worker_doubts (void)
{
  claims_revoke (region);
  bitmap_set (region, REGION_DIRTY, 0, BLOCKS);
  samples_drop_in (region, REGION_DIRTY);
  atomic_fetch_add (&region->hdr->given_back, 1);
}

static void
destination_is_replaced (void)
{
  nr_dest++;
  memset (dest, 0, sizeof dest);
  worker_doubts ();
}

/* Anything but writing the state file may happen at any time. */
static void
play (void)
{
  if (in_callback)
    return;
  in_callback = true;
  for (uint64_t n = medium_random (4); n > 0; n--)
    switch (medium_random (8)) {
    case 0:
    case 1:
      guest_begins ();
      break;
    case 2:
    case 3:
    case 4:
      guest_goes_on (&guests[medium_random (MOST_GUESTS)]);
      break;
    case 5:
      worker_copies ();
      break;
    case 6:
      worker_flushes ();
      break;
    default:
      if (medium_random (8) == 0)
        guest_flushes ();
      else if (medium_random (40) == 0)
        claims_revoke (region);
      else if (is_replaced && medium_random (60) == 0)
        destination_is_replaced ();
    }
  in_callback = false;
}

/* While a round, or a commit, writes. */
static void
others (void)
{
  play ();
  if (in_callback || pthread_mutex_trylock (&state.l1_lock) != 0)
    return;
  pthread_mutex_unlock (&state.l1_lock);
  if (medium_writes_l1 ())
    violation ("L1 is written, and another thread may write it as well", 0);
  if (medium_random (4) == 0)
    state_commit (&state);
}

/* The flush that a round asks for takes long: others go on, and first touches are committed.  It
 * makes durable what was completed before it began, and perhaps more. */
static int
disk_sync (void *opaque)
{
  (void)opaque;
  bool early = medium_random (2) == 0;
  if (early)
    disk_flush ();
  for (uint64_t n = medium_random (3); n > 0 && !in_callback; n--) {
    play ();
    cut_here ();
    state_commit (&state);
  }
  if (!early)
    disk_flush ();
  return 0;
}

/* ---- servers ---- */

static void
start_state (bool can_sync)
{
  const struct state_io io = { .read = medium_read,
                               .write = medium_write,
                               .sync = medium_sync,
                               .sync_l1 = medium_random (2) == 0 ? medium_sync_l1 : NULL,
                               .sync_disk = can_sync ? disk_sync : NULL };
  uint8_t uuid[16];

  state_init (&state, &io);
  state.hot_limit = medium_random (2) == 0 ? 3 : 12; /* many: extents ahead become hot, too */
  state.idle_ticks = 3;
  uuid_make (uuid);
  region = region_create (&layout.geo, uuid, NULL);
}

static void
end_server (void)
{
  region_free (region);
  state_destroy (&state);
  memset (guests, 0, sizeof guests);
}

/* The next server finds F. */
static void
go_on_from (const struct state_found *f, bool can_sync, const uint8_t *now)
{
  start_state (can_sync);
  in_callback = true; /* no guest yet */
  if (state_continue (&state, f, live, state.slots, now, now, NULL) == -1)
    violation ("the recovered job cannot go on", 0);
  in_callback = false;
  state_fill_region (&state, region);
  for (unsigned i = 0; i < SAMPLES_MAX; i++) {
    struct sample s;
    if (state_find_sample (medium.fd, f, i, &s))
      samples_put (region, &s);
  }
  state_set_region (&state, region);
  state_allow_settling (&state);
  if (nr_dest != 0 && !is_proved (f))
    worker_doubts ();
}

/* What was late at the destination was applied or not. */
static void
settle_destination (void)
{
  for (uint64_t b = 0; b < BLOCKS; b++)
    if (dest[b].late && medium_random (2) == 0)
      dest[b].flushed = dest[b].written;
    else
      dest[b].written = dest[b].flushed;
  for (uint64_t b = 0; b < BLOCKS; b++)
    dest[b].late = false;
}

static void
power_fails (bool can_sync)
{
  struct state_found f;

  medium_cut_for_good ();
  look_at_file (other_boot, &f, false);
  end_server ();
  for (uint64_t b = 0; b < BLOCKS; b++)
    medium_block_cut (&disk[b]);
  settle_destination ();
  uuid_make (boot);
  go_on_from (&f, can_sync, boot);
  state_found_free (&f);
}

/* kill -9: the caches stay; writes under way were done or not.  But a disk that nobody can sync may
 * be in the server's own memory: then what was not flushed is lost. */
static void
server_is_killed (bool can_sync)
{
  struct state_found f;

  medium_settle (); /* for a reader; what is durable is not asked in this run any more */
  for (uint64_t w = 0; w < layout.geo.nr_words; w++) {
    uint64_t v = live[w];
    memcpy (medium.durable + layout.live_offset + w * 8, &v, 8);
  }
  look_at_file (boot, &f, can_sync);
  end_server ();
  for (uint64_t b = 0; b < BLOCKS; b++)
    if (can_sync)
      medium_block_killed (&disk[b]);
    else
      medium_block_cut (&disk[b]);
  settle_destination ();
  go_on_from (&f, can_sync, boot);
  state_found_free (&f);
}

static int
first_write (void *opaque, const void *data, size_t length, uint64_t offset)
{
  (void)opaque;
  memcpy (medium.durable + offset, data, length);
  memcpy (medium.cached + offset, data, length);
  return 0;
}

static int
first_sync (void *opaque)
{
  (void)opaque;
  return 0;
}

/* The job ends, while guests come into extents that are cold, if all went well. */
static void
end_job (void)
{
  for (unsigned n = 0; n < 2 * state.idle_ticks; n++)
    state_round (&state);
  for (unsigned n = 0; n < 2 * MOST_GUESTS; n++)
    guest_begins ();
  is_ending = true;
  state_end (&state);
  is_ending = false;
}

static void
one_run (void)
{
  bool can_sync = medium_random (4) != 0;
  uint8_t uuid[16];

  nr_runs++;
  nr_dest = 0;
  memset (disk, 0, sizeof disk);
  memset (dest, 0, sizeof dest);
  medium_clear ();
  newest = 1;
  for (uint64_t b = 0; b < BLOCKS; b++)
    disk[b].durable = disk[b].completed = newest;
  uuid_make (boot);
  uuid_make (uuid);
  start_state (can_sync);
  /* Until the job's first superblock is durable there is no job, and nothing to look at. */
  const struct state_io io = state.io;
  state.io.write = first_write;
  state.io.sync = first_sync;
  if (state_begin (&state, &layout, live, uuid, boot, NULL, NULL) == -1)
    violation ("a job cannot begin", 0);
  state.io = io;
  bitmap_set (region, REGION_DIRTY, 0, BLOCKS);
  state_set_region (&state, region);
  state_allow_settling (&state);
  for (unsigned step = 0; step < 400 && nr_states < wanted_states; step++) {
    play ();
    switch (medium_random (12)) {
    case 0:
    case 1:
      state_round (&state);
      break;
    case 2:
    case 3:
    case 4:
      state_commit (&state);
      break;
    case 5:
      if (medium_random (20) == 0)
        power_fails (can_sync);
      break;
    case 6:
      if (medium_random (state.added ? 4 : 40) == 0) /* L2 does not have it yet */
        server_is_killed (can_sync);
      break;
    default:
      break;
    }
  }
  end_job ();
  end_server ();
}

int
main (int argc, char **argv)
{
  const char *is_short = getenv ("SHORT");
  int option;

  if (is_short != NULL && strcmp (is_short, "0") != 0)
    wanted_states = 5000;
  while ((option = getopt (argc, argv, "n:s:")) != -1)
    switch (option) {
    case 'n':
      wanted_states = strtoull (optarg, NULL, 10);
      break;
    case 's':
      seed = strtoull (optarg, NULL, 10);
      break;
    default:
      fprintf (stderr, "usage: %s [-n STATES] [-s SEED]\n", argv[0]);
      return 2;
    }
  medium_seed (seed);
  if (state_layout_init (&layout, (uint64_t)BLOCKS * BLOCK - 512, BLOCK) == -1
      || medium_open (layout.file_size) == -1)
    return 1;
  medium.cut = cut_here;
  medium.others = others;
  medium.l1_begin = layout.l1_offset;
  medium.l1_end = layout.samples_offset;
  live = calloc (layout.geo.nr_words, 8);
  if (live == NULL)
    return 1;
  uuid_make (other_boot);
  while (nr_states < wanted_states)
    one_run ();
  is_replaced = true;
  wanted_states += wanted_states / 4;
  while (nr_states < wanted_states)
    one_run ();
  printf ("%llu crash states in %llu runs, seed %llu: no violation\n",
          (unsigned long long)nr_states, (unsigned long long)nr_runs, (unsigned long long)seed);
  return 0;
}
