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
#include "tests/crash/play.h"

static struct play play; /* the medium's hooks have no argument */

/* ---- the file ---- */

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
must (const struct play *p, int r, const char *what, char **error)
{
  if (r == -1 && !medium.off) {
    printf ("%s\n", *error != NULL ? *error : strerror (errno));
    play_violation (p, what, 0);
  }
  text_free (*error);
}

static void
prepare (struct play *p)
{
  struct play_checkpoint *c = &p->list[p->nr_list];
  uint8_t uuid[16];
  char *error = NULL;

  if (p->preparing || p->nr_list == PLAY_CHECKPOINTS)
    return;
  snprintf (c->name, sizeof c->name, "c%llu", (unsigned long long)p->nr_names++);
  uuid_make (uuid);
  must (p,
        state_checkpoint_prepare (&p->state, &p->layout, p->slots, p->boot, c->name, uuid, &error),
        "a checkpoint cannot be prepared", &error);
  p->preparing = !medium.off;
  for (unsigned i = 0; i < PLAY_WRITES; i++)
    p->writes[i].waited_for = p->writes[i].active;
}

/* Has everything ended that began before?  From now on the checkpoint's instant may be: other disks
 * of the same checkpoint may take longer. */
static void
drain (struct play *p)
{
  for (unsigned i = 0; i < PLAY_WRITES; i++)
    if (p->writes[i].waited_for)
      return;
  play_snapshot (p, p->list[p->nr_list].at_first);
  p->drained = true;
}

static void
commit (struct play *p)
{
  struct play_checkpoint *c = &p->list[p->nr_list];
  char *error = NULL;

  p->preparing = p->drained = false;
  if (medium_random (5) == 0) {
    state_checkpoint_abort (&p->state);
    return;
  }
  play_snapshot (p, c->at_last);
  p->nr_list++;
  p->adding = true;
  must (p, state_checkpoint_flush (&p->state), "the disk cannot be flushed", &error);
  must (p, state_checkpoint_commit (&p->state, &error), "a checkpoint cannot be added", &error);
  if (medium.off)
    return;
  p->adding = false;
  play_snapshot (p, c->at_last);
  play_check_cuts (p);
}

static void
remove_one (struct play *p)
{
  char *error = NULL;

  if (p->preparing || p->nr_list == 0)
    return;
  p->removing = (int)medium_random (p->nr_list);
  must (p, state_checkpoint_remove (&p->state, p->list[p->removing].name, &error),
        "a checkpoint cannot be removed", &error);
  if (medium.off)
    return;
  memmove (&p->list[p->removing], &p->list[p->removing + 1],
           (p->nr_list - (unsigned)p->removing - 1) * sizeof p->list[0]);
  p->nr_list--;
  p->removing = -1;
}

/* ---- the flush of the disk ---- */

static void begin_job (struct play *p);

/* The control thread does something while a round waits for the disk. */
static void
control (struct play *p)
{
  switch (medium_random (8)) {
  case 0:
    prepare (p);
    break;
  case 1:
    if (p->preparing && !p->drained)
      drain (p);
    break;
  case 2:
    if (p->drained)
      commit (p);
    break;
  case 3:
    remove_one (p);
    break;
  case 4:
    if (p->state.super.job && medium_random (2) == 0)
      state_end (&p->state);
    if (!p->state.super.job && !medium.off)
      begin_job (p);
    break;
  default:
    state_commit (&p->state);
  }
}

/* The flush that a round, or a checkpoint, asks for takes long: others go on, first touches are
 * committed, and checkpoints come and go.  It makes durable what was completed before it began, and
 * perhaps more. */
static int
disk_sync (void *opaque)
{
  struct play *p = opaque;
  bool early = medium_random (2) == 0;

  if (early)
    play_flush_disk (p);
  for (uint64_t n = medium_random (3); n > 0 && !p->alone && !medium.off; n--) {
    play_act (p);
    if (p->cooling && !p->controls) {
      p->controls = true;
      pthread_mutex_unlock (&p->state.disk_lock); /* there is only one thread here */
      control (p);
      pthread_mutex_lock (&p->state.disk_lock);
      p->controls = false;
    }
  }
  if (!early && !medium.off)
    play_flush_disk (p);
  return 0;
}

/* ---- servers ---- */

static void
start_state (struct play *p)
{
  const struct state_io io = { .read = medium_read,
                               .allocate = allocate,
                               .discard = discard,
                               .write = medium_write,
                               .sync = medium_sync,
                               .sync_l1 = medium_random (2) == 0 ? medium_sync_l1 : NULL,
                               .sync_disk = p->can_sync ? disk_sync : NULL,
                               .opaque = p };
  uint8_t uuid[16];

  state_init (&p->state, &io);
  p->state.hot_limit = medium_random (2) == 0 ? 3 : 24; /* many: extents ahead become hot, too */
  p->state.idle_ticks = 3;
  uuid_make (uuid);
  p->region = region_create (&p->layout.geo, uuid, NULL);
  bitmap_set (p->region, REGION_DIRTY, 0, PLAY_BLOCKS);
}

static void
end_server (struct play *p)
{
  region_free (p->region);
  state_destroy (&p->state);
  p->preparing = p->drained = false;
}

/* The list is what the file says. */
static void
take_list (struct play *p, const struct state_found *f)
{
  unsigned nr = f->table != NULL ? f->table->nr : 0, kept = 0;

  for (unsigned i = 0; i < p->nr_list; i++)
    if (kept < nr && strcmp (f->table->list[kept].name, p->list[i].name) == 0)
      memmove (&p->list[kept++], &p->list[i], sizeof p->list[0]);
  p->nr_list = kept;
  p->adding = false;
  p->removing = -1;
}

/* The next server finds what there is.  False: the power failed in its recovery. */
static bool
next_server (struct play *p, const uint8_t *boot, bool same_boot)
{
  struct state_found f;
  uint8_t uuid[16];

  play_check (p, boot, same_boot, &f);
  take_list (p, &f);
  start_state (p);
  uuid_make (uuid);
  p->alone = true; /* no guest yet */
  int r = f.tracked ? state_continue (&p->state, &f, p->live, p->slots, uuid, boot, NULL)
                    : state_know (&p->state, &f);
  p->alone = false;
  bool job = f.super.job;
  state_found_free (&f);
  if (r == -1) {
    if (!medium.off)
      play_violation (p, "a server cannot go on", 0);
    return false;
  }
  if (job)
    state_set_region (&p->state, p->region);
  state_allow_settling (&p->state);
  return true;
}

static void
cut_and_fail (void)
{
  play_check_cuts (&play);
  if (play.cut_after != 0 && --play.cut_after == 0)
    medium.off = true;
}

static void
others (void)
{
  play_act (&play);
  if (play.alone || medium.off || pthread_mutex_trylock (&play.state.l1_lock) != 0)
    return;
  pthread_mutex_unlock (&play.state.l1_lock);
  if (medium_writes_l1 ())
    play_violation (&play, "L1 is written, and another thread may write it as well", 0);
  if (medium_random (4) == 0)
    state_commit (&play.state);
}

static void
power_failed (struct play *p)
{
  do {
    medium.off = false;
    end_server (p);
    medium_cut_for_good ();
    play_lose (p, true);
    uuid_make (p->boot);
    p->cut_after = medium_random (2) == 0 ? 1 + medium_random (8) : 0;
  } while (!next_server (p, p->boot, false));
}

static void
save_live (const struct play *p, const _Atomic uint64_t *from, uint64_t offset)
{
  for (uint64_t w = 0; w < p->layout.geo.nr_words; w++) {
    uint64_t v = from[w];
    memcpy (medium.durable + offset + w * 8, &v, 8);
  }
}

/* kill -9, or a clean end: the caches stay.  But a disk that nobody can sync may be in the server's
 * own memory: then what was not flushed is lost. */
static void
server_ends (struct play *p, bool clean)
{
  static const struct state_identity unknown;

  if (clean) {
    for (unsigned i = 0; i < PLAY_WRITES; i++)
      while (p->writes[i].active && p->writes[i].entered)
        play_go_on (p, &p->writes[i]);
    if (p->preparing)
      state_checkpoint_abort (&p->state);
    p->preparing = p->drained = false;
    p->alone = true;
    state_close_clean (&p->state, &unknown);
    p->alone = false;
    if (medium.off)
      return;
  }
  medium_settle (); /* for a reader; what is durable is not asked in this run any more */
  save_live (p, p->live, p->layout.live_offset);
  for (unsigned i = 0; i < 2; i++)
    save_live (p, p->slots[i], p->layout.recordings_offset + i * p->layout.live_bytes);
  end_server (p);
  play_lose (p, !p->can_sync);
  next_server (p, p->boot, true);
}

static void
begin_job (struct play *p)
{
  uint8_t uuid[16];
  char *error = NULL;

  if (p->preparing)
    return;
  uuid_make (uuid);
  must (p, state_begin (&p->state, &p->layout, p->live, uuid, p->boot, NULL, &error),
        "a job cannot begin", &error);
  if (medium.off)
    return;
  state_set_region (&p->state, p->region);
}

/* All writes that began before the tracking have ended. */
static void
allow_settling (struct play *p)
{
  for (unsigned i = 0; i < PLAY_WRITES; i++)
    if (p->writes[i].active && p->writes[i].entered && !p->writes[i].counted)
      return;
  state_allow_settling (&p->state);
}

/* The power often fails while the table is written, since that is what may be torn twice. */
static void
maybe_cut_soon (struct play *p)
{
  if (medium_random (4) == 0)
    p->cut_after = 1 + medium_random (6);
}

/* The bound of hot extents goes by their number. */
static void
check_hot (const struct play *p)
{
  uint64_t nr = 0;

  if (!atomic_load (&p->state.active) || medium.off)
    return;
  for (uint64_t e = 0; e < p->layout.nr_extents; e++)
    nr += p->state.l1[e / 64] >> (e % 64) & 1;
  if (nr != p->state.nr_hot)
    play_violation (p, "the number of hot extents is wrong", p->state.nr_hot);
}

static void
one_step (struct play *p)
{
  uint64_t what = medium_random (100);

  if (what < 20) {
    p->cooling = true;
    state_round (&p->state);
    p->cooling = false;
    check_hot (p);
  } else if (what < 50)
    state_commit (&p->state);
  else if (what < 56)
    prepare (p);
  else if (what < 62 && p->drained) {
    maybe_cut_soon (p);
    commit (p);
  } else if (what < 70 && p->preparing && !p->drained)
    drain (p);
  else if (what < 73) {
    maybe_cut_soon (p);
    remove_one (p);
  } else if (what == 73)
    server_ends (p, medium_random (2) == 0);
  else if (what == 74)
    p->cut_after = 1 + medium_random (60);
  else if (what == 75 && medium_random (2) == 0)
    p->state.super.job ? state_end (&p->state) : begin_job (p);
  else if (what < 82)
    allow_settling (p);
}

static void
one_run (struct play *p)
{
  p->can_sync = medium_random (4) != 0;
  p->nr_runs++;
  p->cut_after = 0;
  play_begin (p);
  medium_clear ();
  memcpy (medium.durable, STATE_BEGUN, sizeof STATE_BEGUN);
  memcpy (medium.cached, STATE_BEGUN, sizeof STATE_BEGUN);
  medium.off = false;
  uuid_make (p->boot);
  start_state (p);
  for (unsigned step = 0; step < 600 && p->nr_states < p->wanted_states; step++) {
    play_act (p);
    one_step (p);
    if (medium.off)
      power_failed (p);
  }
  end_server (p);
}

/* Room for the file and for the live maps.  0, or -1. */
static int
set_up (struct play *p)
{
  if (state_layout_init (&p->layout, (uint64_t)PLAY_BLOCKS * PLAY_BLOCK - 512, PLAY_BLOCK) == -1
      || medium_open (p->layout.areas_offset + (PLAY_CHECKPOINTS + 3) * p->layout.area_bytes) == -1)
    return -1;
  medium.cut = cut_and_fail;
  medium.others = others;
  medium.l1_begin = p->layout.l1_offset;
  medium.l1_end = p->layout.samples_offset;
  p->live = calloc (3 * p->layout.geo.nr_words, 8);
  if (p->live == NULL)
    return -1;
  p->slots[0] = p->live + p->layout.geo.nr_words;
  p->slots[1] = p->live + 2 * p->layout.geo.nr_words;
  uuid_make (p->other_boot);
  return 0;
}

int
main (int argc, char **argv)
{
  const char *is_short = getenv ("SHORT");
  struct play *p = &play;
  int option;

  p->wanted_states = is_short != NULL && strcmp (is_short, "0") != 0 ? 5000 : 20000;
  p->seed = 1;
  while ((option = getopt (argc, argv, "n:s:")) != -1)
    switch (option) {
    case 'n':
      p->wanted_states = strtoull (optarg, NULL, 10);
      break;
    case 's':
      p->seed = strtoull (optarg, NULL, 10);
      break;
    default:
      fprintf (stderr, "usage: %s [-n STATES] [-s SEED]\n", argv[0]);
      return 2;
    }
  medium_seed (p->seed);
  if (set_up (p) == -1)
    return 1;
  while (p->nr_states < p->wanted_states)
    one_run (p);
  printf ("%llu crash states in %llu runs, seed %llu: no violation (%llu nothing, %llu clean,"
          " %llu exact, %llu extents, %llu everything)\n",
          (unsigned long long)p->nr_states, (unsigned long long)p->nr_runs,
          (unsigned long long)p->seed, (unsigned long long)p->nr_kinds[0],
          (unsigned long long)p->nr_kinds[1], (unsigned long long)p->nr_kinds[2],
          (unsigned long long)p->nr_kinds[3], (unsigned long long)p->nr_kinds[4]);
  free ((void *)p->live);
  return 0;
}
