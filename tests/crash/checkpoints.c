/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves by crash states that no checkpoint forgets a change: checkpoints [-n STATES] [-s SEED].
 *
 * As crash.c does for a job, one thread plays a guest and the threads that write the state file, in
 * random order.  Checkpoints are added and removed meanwhile.  In each state that a power cut
 * allows, within the writing of the file as well, the file is read, and then
 *   - the checkpoints are those that were there before or after what was under way;
 *   - each block that is not among the changes since a checkpoint holds, in every state of the disk
 *     that the cut allows, what it held at the checkpoint's instant, wherever that was chosen
 *     between the last wait and the end of the command.
 * Now and then it goes on from such a state with a new server, whose recovery may be cut as well;
 * or the server is killed, or ends cleanly.
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
#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/state/recordings.h"
#include "tests/crash/medium.h"

#define BLOCK 8192u
/* Two pages of fine bits in each recording: 63 extents of 512 blocks a page. */
#define EXTENTS 66u
#define PER_EXTENT 512u
#define BLOCKS (EXTENTS * PER_EXTENT - 7) /* an odd tail */
#define USED 400u                         /* blocks that are ever written, spread over the disk */
#define GUESTS 4u
#define MOST 5u /* checkpoints at a time */

static struct medium_block disk[USED];
static uint32_t newest;

static struct guest_write {
  bool active, entered, counted, waited_for;
  unsigned first, count;
  uint32_t version;
} guests[GUESTS];

/* What each checkpoint must remember. */
struct checkpoint {
  char name[16];
  uint32_t at_first[USED], at_last[USED]; /* what the disk held at its first and last instant */
};
static struct checkpoint list[MOST + 1];
static unsigned nr_list;
static bool adding;    /* the last one of the list may be missing */
static int removing;   /* this one may be missing; -1: none */
static bool preparing; /* a checkpoint is prepared; */
static bool drained;   /* and every write that began before has ended */

static struct state state;
static struct region *region;
static struct state_layout layout;
static _Atomic uint64_t *live, *slots[2];
static uint8_t boot[16], other_boot[16];
static uint64_t nr_states, wanted_states = 20000, seed = 1, nr_runs, nr_names, nr_kinds[5];
static bool busy;     /* others must not go on */
static bool in_round; /* of cooling */

static void __attribute__ ((noreturn)) violation (const char *what, uint64_t block)
{
  printf ("VIOLATION after %llu states, seed %llu: %s, block %llu\n", (unsigned long long)nr_states,
          (unsigned long long)seed, what, (unsigned long long)block);
  exit (1);
}

/* Where used block U is: some in each extent, and some in a row. */
static uint64_t
place (unsigned u)
{
  uint64_t b = (uint64_t)(u / 4) * 337 + u % 4;
  return b < BLOCKS ? b : BLOCKS - 1 - u % 4;
}

/* ---- looking at a state of the file ---- */

static void
check_block (const struct checkpoint *c, const uint64_t *bits, unsigned u, bool same_boot)
{
  const struct medium_block *b = &disk[u];
  uint64_t at = place (u);

  if ((bits[at / 64] >> (at % 64) & 1) != 0)
    return;
  if (b->completed != c->at_first[u] || b->completed != c->at_last[u])
    violation ("it was changed, and is not among the changes", at);
  if (same_boot)
    return;
  if (b->durable != b->completed)
    violation ("it may go back to what was durable, and is not among the changes", at);
  for (unsigned i = 0; i < b->nr; i++)
    if (b->late[i] != b->completed)
      violation ("it may go back or on, and is not among the changes", at);
}

static int
read_durable (void *opaque, void *data, size_t length, uint64_t offset)
{
  (void)opaque;
  memcpy (data, medium.durable + offset, length);
  return 0;
}

static void
check_changes (const struct state_found *f, const struct checkpoint *c, unsigned at, bool same_boot)
{
  static uint64_t bits[BLOCKS / 64 + 1];
  CLEANUP_TEXT char *error = NULL;

  memset (bits, 0, sizeof bits);
  if (state_changed_since (&layout, f->table, at, read_durable, NULL, bits, &error) == -1) {
    printf ("%s\n", error);
    violation ("a checkpoint is of no use", at);
  }
  for (uint64_t w = 0; w < layout.geo.nr_words; w++)
    bits[w] |= f->recorded[w];
  for (unsigned u = 0; u < USED; u++)
    check_block (c, bits, u, same_boot);
}

static void
check_found (const struct state_found *f, bool same_boot)
{
  unsigned at = 0, nr = f->table != NULL ? f->table->nr : 0;

  nr_states++;
  nr_kinds[f->how]++;
  for (unsigned i = 0; i < nr_list; i++) {
    if (at < nr && strcmp (f->table->list[at].name, list[i].name) == 0) {
      if (!f->table->recording || f->recorded == NULL)
        violation ("nothing is recorded", 0);
      check_changes (f, &list[i], at++, same_boot);
      continue;
    }
    if (!(adding && i + 1 == nr_list) && (int)i != removing)
      violation ("a checkpoint is gone", i);
  }
  if (at != nr)
    violation ("there is a checkpoint that nobody added", at);
}

static void
look_at_file (const uint8_t *now, struct state_found *f, bool same_boot)
{
  CLEANUP_TEXT char *error = NULL;

  if (state_find (medium.fd, medium.size, now, NULL, f, &error) == -1) {
    printf ("%s\n", error);
    violation ("the file is refused", 0);
  }
  check_found (f, same_boot);
}

static void
cut_here (void)
{
  struct state_found f;

  if (medium.off)
    return;
  for (unsigned n = 0; n < 2; n++) {
    medium_cut_begin ();
    look_at_file (other_boot, &f, false);
    state_found_free (&f);
    medium_cut_undo ();
  }
}

/* ---- the guest ---- */

static void
guest_begins (void)
{
  struct guest_write *g = &guests[medium_random (GUESTS)];

  if (g->active)
    return;
  g->first = (unsigned)(medium_random (3) != 0 ? medium_random (24) : medium_random (USED / 4) * 4);
  g->count = 1;
  while (g->count < 4 && g->first + g->count < USED
         && place (g->first + g->count) == place (g->first) + g->count && medium_random (2) == 0)
    g->count++;
  for (unsigned i = 0; i < GUESTS; i++) /* a guest does not write a block twice at a time */
    if (guests[i].active && guests[i].first < g->first + g->count
        && g->first < guests[i].first + guests[i].count)
      return;
  g->active = true;
  g->entered = g->waited_for = false;
}

static void
guest_goes_on (struct guest_write *g)
{
  if (!g->active)
    return;
  uint64_t offset = place (g->first) * BLOCK, length = (uint64_t)g->count * BLOCK;
  if (!g->entered) {
    if (!state_try_enter (&state, offset, length, &g->counted))
      return;
    g->entered = true;
    g->version = ++newest;
    for (unsigned u = g->first; u < g->first + g->count; u++)
      medium_block_begin (&disk[u], g->version);
    return;
  }
  for (unsigned u = g->first; u < g->first + g->count; u++)
    disk[u].completed = g->version;
  if (g->counted)
    state_leave (&state, offset, length);
  g->active = g->waited_for = false;
}

static void
disk_flush (void)
{
  for (unsigned u = 0; u < USED; u++)
    medium_block_flush (&disk[u]);
}

static void
guest_flushes (void)
{
  uint32_t begun = state_flush_begins (&state);
  disk_flush ();
  state_flush_ended (&state, begun);
}

/* Anything but writing the state file may happen at any time. */
static void
others (void)
{
  if (busy)
    return;
  busy = true;
  for (uint64_t n = medium_random (4); n > 0; n--) {
    uint64_t what = medium_random (64);
    if (what < 20)
      guest_begins ();
    else if (what < 63)
      guest_goes_on (&guests[medium_random (GUESTS)]);
    else if (medium_random (3) == 0)
      guest_flushes ();
  }
  busy = false;
}

static int
allocate (void *opaque, uint64_t offset, uint64_t length)
{
  (void)opaque;
  return offset + length <= medium.size ? 0 : -1;
}

/* Zeroes at once: nobody needs that area any more. */
static void
discard (void *opaque, uint64_t offset, uint64_t length)
{
  (void)opaque;
  memset (medium.durable + offset, 0, length);
  memset (medium.cached + offset, 0, length);
}

/* ---- checkpoints ---- */

static void
must (int r, const char *what, char **error)
{
  if (r == -1 && !medium.off) {
    printf ("%s\n", *error != NULL ? *error : strerror (errno));
    violation (what, 0);
  }
  text_free (*error);
}

static void
prepare (void)
{
  struct checkpoint *c = &list[nr_list];
  uint8_t uuid[16];
  char *error = NULL;

  if (preparing || nr_list == MOST)
    return;
  snprintf (c->name, sizeof c->name, "c%llu", (unsigned long long)nr_names++);
  uuid_make (uuid);
  must (state_checkpoint_prepare (&state, &layout, slots, boot, c->name, uuid, &error),
        "a checkpoint cannot be prepared", &error);
  preparing = !medium.off;
  for (unsigned i = 0; i < GUESTS; i++)
    guests[i].waited_for = guests[i].active;
}

static void
snapshot (uint32_t *at)
{
  for (unsigned u = 0; u < USED; u++)
    at[u] = disk[u].completed;
}

/* Has everything ended that began before?  From now on the checkpoint's instant may be: other disks
 * of the same checkpoint may take longer. */
static void
drain (void)
{
  for (unsigned i = 0; i < GUESTS; i++)
    if (guests[i].waited_for)
      return;
  snapshot (list[nr_list].at_first);
  drained = true;
}

static void
commit (void)
{
  struct checkpoint *c = &list[nr_list];
  char *error = NULL;

  preparing = drained = false;
  if (medium_random (5) == 0) {
    state_checkpoint_abort (&state);
    return;
  }
  snapshot (c->at_last);
  nr_list++;
  adding = true;
  must (state_checkpoint_commit (&state, &error), "a checkpoint cannot be added", &error);
  if (medium.off)
    return;
  adding = false;
  snapshot (c->at_last);
  cut_here ();
}

static void
remove_one (void)
{
  char *error = NULL;

  if (preparing || nr_list == 0)
    return;
  removing = (int)medium_random (nr_list);
  must (state_checkpoint_remove (&state, list[removing].name, &error),
        "a checkpoint cannot be removed", &error);
  if (medium.off)
    return;
  memmove (&list[removing], &list[removing + 1],
           (nr_list - (unsigned)removing - 1) * sizeof list[0]);
  nr_list--;
  removing = -1;
}

/* ---- the flush of the disk ---- */

static void begin_job (void);

/* The control thread does something while a round waits for the disk. */
static void
control (void)
{
  switch (medium_random (8)) {
  case 0:
    prepare ();
    break;
  case 1:
    if (preparing && !drained)
      drain ();
    break;
  case 2:
    if (drained)
      commit ();
    break;
  case 3:
    remove_one ();
    break;
  case 4:
    if (state.super.job && medium_random (2) == 0)
      state_end (&state);
    if (!state.super.job && !medium.off)
      begin_job ();
    break;
  default:
    state_commit (&state);
  }
}

/* The flush that a round, or a checkpoint, asks for takes long: others go on, first touches are
 * committed, and checkpoints come and go.  It makes durable what was completed before it began, and
 * perhaps more. */
static int
disk_sync (void *opaque)
{
  static bool inside;

  (void)opaque;
  bool early = medium_random (2) == 0;
  if (early)
    disk_flush ();
  for (uint64_t n = medium_random (3); n > 0 && !busy && !medium.off; n--) {
    others ();
    if (in_round && !inside) {
      inside = true;
      pthread_mutex_unlock (&state.disk_lock); /* there is only one thread here */
      control ();
      pthread_mutex_lock (&state.disk_lock);
      inside = false;
    }
  }
  if (!early && !medium.off)
    disk_flush ();
  return 0;
}

/* ---- servers ---- */

static void
start_state (bool can_sync)
{
  const struct state_io io
      = { .read = medium_read,
          .allocate = allocate,
          .discard = discard,
          .write = medium_write,
          .sync = medium_sync,
          .write_durable = medium_random (2) == 0 ? medium_write_durable : NULL,
          .sync_disk = can_sync ? disk_sync : NULL };
  uint8_t uuid[16];

  state_init (&state, &io);
  state.hot_limit = medium_random (2) == 0 ? 3 : 24; /* many: extents ahead become hot, too */
  state.idle_ticks = 3;
  uuid_make (uuid);
  region = region_create (&layout.geo, uuid, NULL);
  bitmap_set (region, REGION_DIRTY, 0, BLOCKS);
}

static void
end_server (void)
{
  region_free (region);
  state_destroy (&state);
  memset (guests, 0, sizeof guests);
  preparing = drained = false;
}

/* The list is what the file says. */
static void
take_list (const struct state_found *f)
{
  unsigned nr = f->table != NULL ? f->table->nr : 0, kept = 0;

  for (unsigned i = 0; i < nr_list; i++)
    if (kept < nr && strcmp (f->table->list[kept].name, list[i].name) == 0)
      memmove (&list[kept++], &list[i], sizeof list[0]);
  nr_list = kept;
  adding = false;
  removing = -1;
}

/* The next server finds what there is.  False: the power failed in its recovery. */
static bool
next_server (bool can_sync, const uint8_t *now, bool same_boot)
{
  struct state_found f;
  uint8_t uuid[16];

  look_at_file (now, &f, same_boot);
  take_list (&f);
  start_state (can_sync);
  uuid_make (uuid);
  busy = true; /* no guest yet */
  int r = f.tracked ? state_continue (&state, &f, live, slots, uuid, now, NULL)
                    : state_know (&state, &f);
  busy = false;
  bool job = f.super.job;
  state_found_free (&f);
  if (r == -1) {
    if (!medium.off)
      violation ("a server cannot go on", 0);
    return false;
  }
  if (job)
    state_set_region (&state, region);
  state_allow_settling (&state);
  return true;
}

static uint64_t cut_after; /* so many looks at the file from now the power fails; 0: it does not */

static void
cut_and_fail (void)
{
  cut_here ();
  if (cut_after != 0 && --cut_after == 0)
    medium.off = true;
}

static void
power_failed (bool can_sync)
{
  do {
    medium.off = false;
    end_server ();
    medium_cut_for_good ();
    for (unsigned u = 0; u < USED; u++)
      medium_block_cut (&disk[u]);
    uuid_make (boot);
    cut_after = medium_random (2) == 0 ? 1 + medium_random (8) : 0;
  } while (!next_server (can_sync, boot, false));
}

static void
save_live (const _Atomic uint64_t *from, uint64_t offset)
{
  for (uint64_t w = 0; w < layout.geo.nr_words; w++) {
    uint64_t v = from[w];
    memcpy (medium.durable + offset + w * 8, &v, 8);
  }
}

/* kill -9, or a clean end: the caches stay. */
static void
server_ends (bool can_sync, bool clean)
{
  static const struct state_identity unknown;

  if (clean) {
    for (unsigned i = 0; i < GUESTS; i++)
      while (guests[i].active && guests[i].entered)
        guest_goes_on (&guests[i]);
    if (preparing)
      state_checkpoint_abort (&state);
    preparing = drained = false;
    busy = true;
    state_close_clean (&state, &unknown);
    busy = false;
    if (medium.off)
      return;
  }
  medium_settle (); /* for a reader; what is durable is not asked in this run any more */
  save_live (live, layout.live_offset);
  for (unsigned i = 0; i < 2; i++)
    save_live (slots[i], layout.recordings_offset + i * layout.live_bytes);
  end_server ();
  for (unsigned u = 0; u < USED; u++)
    medium_block_killed (&disk[u]);
  next_server (can_sync, boot, true);
}

static void
begin_job (void)
{
  uint8_t uuid[16];
  char *error = NULL;

  if (preparing)
    return;
  uuid_make (uuid);
  must (state_begin (&state, &layout, live, uuid, boot, NULL, &error), "a job cannot begin",
        &error);
  if (medium.off)
    return;
  state_set_region (&state, region);
}

/* All writes that began before the tracking have ended. */
static void
allow_settling (void)
{
  for (unsigned i = 0; i < GUESTS; i++)
    if (guests[i].active && guests[i].entered && !guests[i].counted)
      return;
  state_allow_settling (&state);
}

/* The power often fails while the table is written, since that is what may be torn twice. */
static void
maybe_cut_soon (void)
{
  if (medium_random (4) == 0)
    cut_after = 1 + medium_random (6);
}

/* The bound of hot extents goes by their number. */
static void
check_hot (void)
{
  uint64_t nr = 0;

  if (!atomic_load (&state.active) || medium.off)
    return;
  for (uint64_t e = 0; e < layout.nr_extents; e++)
    nr += state.l1[e / 64] >> (e % 64) & 1;
  if (nr != state.nr_hot)
    violation ("the number of hot extents is wrong", state.nr_hot);
}

static void
one_step (bool can_sync)
{
  uint64_t what = medium_random (100);

  if (what < 20) {
    in_round = true;
    state_round (&state);
    in_round = false;
    check_hot ();
  } else if (what < 50)
    state_commit (&state);
  else if (what < 56)
    prepare ();
  else if (what < 62 && drained) {
    maybe_cut_soon ();
    commit ();
  } else if (what < 70 && preparing && !drained)
    drain ();
  else if (what < 73) {
    maybe_cut_soon ();
    remove_one ();
  } else if (what == 73)
    server_ends (can_sync, medium_random (2) == 0);
  else if (what == 74)
    cut_after = 1 + medium_random (60);
  else if (what == 75 && medium_random (2) == 0)
    state.super.job ? state_end (&state) : begin_job ();
  else if (what < 82)
    allow_settling ();
}

static void
one_run (void)
{
  bool can_sync = medium_random (4) != 0;

  nr_runs++;
  memset (disk, 0, sizeof disk);
  medium_clear ();
  memcpy (medium.durable, STATE_BEGUN, sizeof STATE_BEGUN);
  memcpy (medium.cached, STATE_BEGUN, sizeof STATE_BEGUN);
  medium.off = adding = preparing = drained = false;
  removing = -1;
  nr_list = 0;
  newest = 1;
  cut_after = 0;
  for (unsigned u = 0; u < USED; u++)
    disk[u].durable = disk[u].completed = newest;
  uuid_make (boot);
  start_state (can_sync);
  for (unsigned step = 0; step < 600 && nr_states < wanted_states; step++) {
    others ();
    one_step (can_sync);
    if (medium.off)
      power_failed (can_sync);
  }
  end_server ();
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
  medium_seed (seed);
  if (state_layout_init (&layout, (uint64_t)BLOCKS * BLOCK - 512, BLOCK) == -1
      || medium_open (layout.areas_offset + (MOST + 3) * layout.area_bytes) == -1)
    return 1;
  medium.cut = cut_and_fail;
  medium.others = others;
  _Atomic uint64_t *maps = calloc (3 * layout.geo.nr_words, 8);
  if (maps == NULL)
    return 1;
  live = maps;
  slots[0] = maps + layout.geo.nr_words;
  slots[1] = maps + 2 * layout.geo.nr_words;
  uuid_make (other_boot);
  while (nr_states < wanted_states)
    one_run ();
  printf ("%llu crash states in %llu runs, seed %llu: no violation (%llu nothing, %llu clean,"
          " %llu exact, %llu extents, %llu everything)\n",
          (unsigned long long)nr_states, (unsigned long long)nr_runs, (unsigned long long)seed,
          (unsigned long long)nr_kinds[0], (unsigned long long)nr_kinds[1],
          (unsigned long long)nr_kinds[2], (unsigned long long)nr_kinds[3],
          (unsigned long long)nr_kinds[4]);
  free ((void *)maps);
  return 0;
}
