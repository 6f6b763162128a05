/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves by crash states that a state file never forgets a block: crash [-n STATES] [-s SEED].
 *
 * One thread plays a guest, a worker, a destination and the thread that writes the state file, in
 * random order, also within the file's writes and syncs.  Every write to the file and to the
 * source's disk is recorded.  Before and after each of them the program builds the states that a
 * power cut allows: all that came before the last completed sync, and any part of what came later,
 * with tears of 512 bytes, for the file and for the disk each by itself.  In each state the file is
 * recovered, and then
 *   - each block whose recovered bit is clear has, in every state of the disk that the cut allows,
 *     exactly what the destination has flushed, and nothing is on its way there;
 *   - each recovered sample of such a block is what the destination has.
 * Now and then it goes on from such a state with a new server, which may be cut in its recovery; or
 * only the server is killed, and the page cache is as it was (then the live map counts).
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
#include <sys/mman.h>
#include <unistd.h>

#include "base/text.h"
#include "base/uuid.h"
#include "dirty-bitmap/claims.h"
#include "dirty-bitmap/samples.h"
#include "dirty-bitmap/state/state.h"

#define BLOCK 8192u
/* Their fine bits fill more than a sector of an L2 page, so that it can tear. */
#define EXTENTS 9u
#define PER_EXTENT 512u
#define BLOCKS (EXTENTS * PER_EXTENT - 7) /* an odd tail */
#define MOST_WRITES 256
#define MOST_GUESTS 4
#define MOST_VERSIONS 64

static uint64_t rng;

static uint64_t
random_below (uint64_t n)
{
  rng ^= rng << 13;
  rng ^= rng >> 7;
  rng ^= rng << 17;
  return rng % n;
}

/* ---- the file ---- */

static struct {
  int fd;           /* a memfd that holds what is durable */
  uint8_t *durable; /* its mapping */
  uint8_t *cached;  /* what a reader sees: all writes */
  struct {
    uint64_t offset;
    size_t length;
    uint8_t *data;
  } late[MOST_WRITES]; /* since the last sync */
  unsigned nr_late;
} file;

/* ---- the disk and the destination ---- */

struct versions {
  uint32_t durable;
  uint32_t late[MOST_VERSIONS]; /* written, or being written, since the last flush */
  unsigned nr;
};
static struct versions disk[BLOCKS];
static uint32_t completed[BLOCKS]; /* what a reader of the disk sees */
static uint32_t newest;

static struct {
  uint32_t flushed;
  uint32_t written; /* what its cache has; the same if nothing is on its way */
  bool late;        /* a request for it may still be applied */
} dest[BLOCKS];

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

static void __attribute__ ((noreturn)) violation (const char *what, uint64_t block)
{
  printf ("VIOLATION after %llu states, seed %llu: %s, block %llu\n", (unsigned long long)nr_states,
          (unsigned long long)seed, what, (unsigned long long)block);
  exit (1);
}

/* ---- crash states ---- */

static void
apply_part (uint8_t *to, unsigned i, bool all)
{
  for (size_t at = 0; at < file.late[i].length; at += 512)
    if (all || random_below (2) == 0)
      memcpy (to + file.late[i].offset + at, file.late[i].data + at, 512);
}

/* Put a random state of the file into file.durable.  The old contents come back with undo(). */
static void
cut_file (void)
{
  for (unsigned i = 0; i < file.nr_late; i++)
    switch (random_below (3)) {
    case 0:
      break;
    case 1:
      apply_part (file.durable, i, true);
      break;
    default:
      apply_part (file.durable, i, false);
    }
}

static void
check_found (const struct state_found *f, bool same_boot)
{
  for (uint64_t b = 0; b < BLOCKS; b++) {
    if ((f->bits[b / 64] >> (b % 64) & 1) != 0)
      continue;
    if (dest[b].late || dest[b].written != dest[b].flushed)
      violation ("clean, and something is on its way to the destination", b);
    if (!same_boot && disk[b].durable != dest[b].flushed)
      violation ("clean, but the disk may hold what was durable", b);
    for (unsigned i = 0; i < disk[b].nr; i++)
      if (disk[b].late[i] != dest[b].flushed
          && !(same_boot && disk[b].late[i] != completed[b] && disk[b].late[i] < completed[b]))
        violation ("clean, but the disk may hold something else", b);
  }
  if (random_below (16) != 0)
    return; /* reading the samples takes long */
  for (unsigned i = 0; i < SAMPLES_MAX; i++) {
    struct sample s;
    if (!state_find_sample (file.fd, f, i, &s) || (f->bits[s.block / 64] >> (s.block % 64) & 1))
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

  if (state_find (file.fd, layout.file_size, now, NULL, f, &error) == -1) {
    printf ("%s\n", error);
    violation ("the file is refused", 0);
  }
  if (!f->super.job)
    violation ("the job is gone", 0);
  check_found (f, same_boot);
  nr_states++;
}

/* Build some of the states that a cut at this instant allows. */
static void
cut_here (void)
{
  static uint8_t *saved;
  struct state_found f;

  if (saved == NULL)
    saved = malloc (layout.file_size);
  for (unsigned n = 0; n < 3; n++) {
    for (unsigned i = 0; i < file.nr_late; i++)
      memcpy (saved + file.late[i].offset, file.durable + file.late[i].offset, file.late[i].length);
    cut_file ();
    look_at_file (other_boot, &f, false);
    state_found_free (&f);
    for (unsigned i = 0; i < file.nr_late; i++)
      memcpy (file.durable + file.late[i].offset, saved + file.late[i].offset, file.late[i].length);
  }
}

static void play (void);

static int
file_write (void *opaque, const void *data, size_t length, uint64_t offset)
{
  (void)opaque;
  if (file.nr_late == MOST_WRITES)
    violation ("too many writes without a sync", 0);
  file.late[file.nr_late].offset = offset;
  file.late[file.nr_late].length = length;
  file.late[file.nr_late].data = malloc (length);
  memcpy (file.late[file.nr_late++].data, data, length);
  memcpy (file.cached + offset, data, length);
  cut_here ();
  play ();
  return 0;
}

static void
settle_file (void)
{
  for (unsigned i = 0; i < file.nr_late; i++) {
    memcpy (file.durable + file.late[i].offset, file.late[i].data, file.late[i].length);
    free (file.late[i].data);
  }
  file.nr_late = 0;
}

static int
file_sync (void *opaque)
{
  (void)opaque;
  unsigned before = file.nr_late;
  cut_here ();
  play ();
  if (file.nr_late != before)
    violation ("two threads write", 0);
  settle_file ();
  cut_here ();
  return 0;
}

/* What was completed becomes durable; what is being written may be either way. */
static int
disk_sync (void *opaque)
{
  (void)opaque;
  for (uint64_t b = 0; b < BLOCKS; b++) {
    unsigned kept = 0;
    disk[b].durable = completed[b];
    for (unsigned i = 0; i < disk[b].nr; i++)
      if (disk[b].late[i] > completed[b])
        disk[b].late[kept++] = disk[b].late[i];
    disk[b].nr = kept;
  }
  return 0;
}

/* ---- the guest ---- */

static void
guest_begins (void)
{
  struct guest_write *g = &guests[random_below (MOST_GUESTS)];

  if (g->active)
    return;
  /* Most writes stay in two extents, so that others get cold. */
  uint64_t extent = random_below (4) != 0 ? random_below (2) : random_below (EXTENTS);
  g->first = extent * PER_EXTENT + random_below (8) * 63;
  g->count = 1 + random_below (3);
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
    for (uint64_t b = g->first; b < g->first + g->count; b++) {
      if (disk[b].nr == MOST_VERSIONS)
        disk_sync (NULL);
      disk[b].late[disk[b].nr++] = g->version;
    }
    return;
  }
  for (uint64_t b = g->first; b < g->first + g->count; b++)
    completed[b] = g->version;
  bitmap_mark (region, g->first * BLOCK, g->count * BLOCK);
  if (g->counted)
    state_leave (&state, g->first * BLOCK, g->count * BLOCK);
  g->active = false;
}

static void
guest_flushes (void)
{
  uint32_t begun = state_flush_begins (&state);
  disk_sync (NULL);
  state_flush_ended (&state, begun);
}

/* ---- the worker and the destination ---- */

static void
worker_copies (void)
{
  uint64_t first, count;
  unsigned set = claim_enter (region);

  if (bitmap_next_run (region, REGION_DIRTY, random_below (BLOCKS), 1 + random_below (600), &first,
                       &count)) {
    claim_run (region, set, first, count);
    for (uint64_t b = first; b < first + count; b++) {
      dest[b].written = completed[b];
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
    struct sample s = { .length = sizeof dest[0].flushed };
    if (!bitmap_next_set (region, claim_array (old), random_below (BLOCKS), UINT64_MAX, &b)
        || dest[b].late)
      continue;
    s.block = b;
    memcpy (s.data, &dest[b].flushed, sizeof dest[b].flushed);
    samples_put (region, &s);
  }
  claim_release (region, old);
}

/* Anything but writing the state file may happen at any time. */
static void
play (void)
{
  if (in_callback)
    return;
  in_callback = true;
  for (uint64_t n = random_below (4); n > 0; n--)
    switch (random_below (8)) {
    case 0:
    case 1:
      guest_begins ();
      break;
    case 2:
    case 3:
    case 4:
      guest_goes_on (&guests[random_below (MOST_GUESTS)]);
      break;
    case 5:
      worker_copies ();
      break;
    case 6:
      worker_flushes ();
      break;
    default:
      if (random_below (8) == 0)
        guest_flushes ();
      else if (random_below (40) == 0)
        claims_revoke (region);
    }
  in_callback = false;
}

/* ---- servers ---- */

static void
start_state (bool can_sync)
{
  const struct state_io io
      = { .write = file_write, .sync = file_sync, .sync_disk = can_sync ? disk_sync : NULL };
  uint8_t uuid[16];

  state_init (&state, &io);
  state.hot_limit = 3;
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
    if (state_find_sample (file.fd, f, i, &s))
      samples_put (region, &s);
  }
  state_set_region (&state, region);
  state_allow_settling (&state);
}

/* What was late at the destination was applied or not. */
static void
settle_destination (void)
{
  for (uint64_t b = 0; b < BLOCKS; b++)
    if (dest[b].late && random_below (2) == 0)
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

  cut_file ();
  for (unsigned i = 0; i < file.nr_late; i++)
    free (file.late[i].data);
  file.nr_late = 0;
  memcpy (file.cached, file.durable, layout.file_size);
  look_at_file (other_boot, &f, false);
  end_server ();
  for (uint64_t b = 0; b < BLOCKS; b++) {
    if (disk[b].nr != 0 && random_below (2) == 0)
      disk[b].durable = disk[b].late[random_below (disk[b].nr)];
    completed[b] = disk[b].durable;
    disk[b].nr = 0;
  }
  settle_destination ();
  uuid_make (boot);
  go_on_from (&f, can_sync, boot);
  state_found_free (&f);
}

/* kill -9: the caches stay; writes under way were done or not. */
static void
server_is_killed (bool can_sync)
{
  struct state_found f;

  settle_file (); /* for a reader; what is durable is not asked in this run any more */
  for (uint64_t w = 0; w < layout.geo.nr_words; w++) {
    uint64_t v = live[w];
    memcpy (file.durable + layout.live_offset + w * 8, &v, 8);
  }
  look_at_file (boot, &f, true);
  end_server ();
  for (uint64_t b = 0; b < BLOCKS; b++)
    for (unsigned i = 0; i < disk[b].nr; i++)
      if (disk[b].late[i] > completed[b]) {
        if (random_below (2) == 0)
          completed[b] = disk[b].late[i];
        else
          disk[b].late[i] = completed[b]; /* it never reached the cache */
      }
  settle_destination ();
  go_on_from (&f, can_sync, boot);
  state_found_free (&f);
}

static int
first_write (void *opaque, const void *data, size_t length, uint64_t offset)
{
  (void)opaque;
  memcpy (file.durable + offset, data, length);
  memcpy (file.cached + offset, data, length);
  return 0;
}

static int
first_sync (void *opaque)
{
  (void)opaque;
  return 0;
}

static void
one_run (void)
{
  bool can_sync = random_below (4) != 0;
  uint8_t uuid[16];

  nr_runs++;
  memset (disk, 0, sizeof disk);
  memset (completed, 0, sizeof completed);
  memset (dest, 0, sizeof dest);
  memset (file.durable, 0, layout.file_size);
  memset (file.cached, 0, layout.file_size);
  newest = 1;
  for (uint64_t b = 0; b < BLOCKS; b++)
    disk[b].durable = completed[b] = newest;
  uuid_make (boot);
  uuid_make (uuid);
  start_state (can_sync);
  /* Until the job's first superblock is durable there is no job, and nothing to look at. */
  state.io.write = first_write;
  state.io.sync = first_sync;
  if (state_begin (&state, &layout, live, uuid, boot, NULL, NULL) == -1)
    violation ("a job cannot begin", 0);
  state.io.write = file_write;
  state.io.sync = file_sync;
  bitmap_set (region, REGION_DIRTY, 0, BLOCKS);
  state_set_region (&state, region);
  state_allow_settling (&state);
  for (unsigned step = 0; step < 400 && nr_states < wanted_states; step++) {
    play ();
    switch (random_below (12)) {
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
      if (random_below (20) == 0)
        power_fails (can_sync);
      break;
    case 6:
      if (random_below (40) == 0)
        server_is_killed (can_sync);
      break;
    default:
      break;
    }
  }
  end_server ();
  for (unsigned i = 0; i < file.nr_late; i++)
    free (file.late[i].data);
  file.nr_late = 0;
}

int
main (int argc, char **argv)
{
  int option;

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
  rng = seed * UINT64_C (0x9e3779b97f4a7c15) + 1;
  if (state_layout_init (&layout, (uint64_t)BLOCKS * BLOCK - 512, BLOCK) == -1)
    return 1;
  file.fd = memfd_create ("state", MFD_CLOEXEC);
  if (file.fd == -1 || ftruncate (file.fd, (off_t)layout.file_size) == -1)
    return 1;
  file.durable = mmap (NULL, layout.file_size, PROT_READ | PROT_WRITE, MAP_SHARED, file.fd, 0);
  file.cached = calloc (1, layout.file_size);
  live = calloc (layout.geo.nr_words, 8);
  if (file.durable == MAP_FAILED || file.cached == NULL || live == NULL)
    return 1;
  uuid_make (other_boot);
  while (nr_states < wanted_states)
    one_run ();
  printf ("%llu crash states in %llu runs, seed %llu: no violation\n",
          (unsigned long long)nr_states, (unsigned long long)nr_runs, (unsigned long long)seed);
  return 0;
}
