/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What is tracked, and that it ends: a job, and a checkpoint's recording.  See state.h.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/state/internal.h"

#define DEFAULT_IDLE_TICKS (30 * STATE_TICKS_A_SECOND)

void
state_init (struct state *s, const struct state_io *io)
{
  pthread_condattr_t attr;

  memset (s, 0, sizeof *s);
  s->io = *io;
  s->hot_limit = STATE_DEFAULT_HOT;
  s->idle_ticks = DEFAULT_IDLE_TICKS;
  atomic_init (&s->active, false);
  atomic_init (&s->tick, 1);
  atomic_init (&s->flushed, 0);
  pthread_mutex_init (&s->io_lock, NULL);
  pthread_mutex_init (&s->l1_lock, NULL);
  pthread_mutex_init (&s->disk_lock, NULL);
  pthread_mutex_init (&s->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&s->committed, &attr);
  pthread_cond_init (&s->work, &attr);
  pthread_cond_init (&s->cool, &attr);
  pthread_condattr_destroy (&attr);
}

void
state_destroy (struct state *s)
{
  free (s->in_flight);
  free (s->hot);
  free (s->touched);
  free (s->pending);
  free (s->asked);
  free (s->l1);
  free (s->l1_page_dirty);
  free (s->l1_sequence);
  free (s->l1_copy);
  free (s->l1_written);
  free (s->l2_page_dirty);
  free (s->recorded_page_dirty);
  free (s->table);
  free (s->sample_crc);
  pthread_cond_destroy (&s->cool);
  pthread_cond_destroy (&s->work);
  pthread_cond_destroy (&s->committed);
  pthread_mutex_destroy (&s->lock);
  pthread_mutex_destroy (&s->disk_lock);
  pthread_mutex_destroy (&s->l1_lock);
  pthread_mutex_destroy (&s->io_lock);
}

int
state_allocate (struct state *s, const struct state_layout *l, char **error)
{
  uint64_t n = l->nr_extents + 1, l1_words = l->nr_l1_pages * STATE_PAGE_WORDS + 1;

  if (s->in_flight != NULL) {
    if (memcmp (&s->layout, l, sizeof *l) != 0)
      return text_error (error,
                         "this state file is of a disk of another size, or in other blocks: stop"
                         " the server, remove the file, which has nothing to tell of this disk, and"
                         " start the server again");
    return 0;
  }
  s->in_flight = calloc (n, sizeof *s->in_flight);
  s->hot = calloc (n, sizeof *s->hot);
  s->touched = calloc (n, sizeof *s->touched);
  s->pending = calloc (n, 1);
  s->asked = calloc (n, sizeof *s->asked);
  s->l1 = calloc (l1_words, 8);
  s->l1_page_dirty = calloc (l->nr_l1_pages + 1, 1);
  s->l1_sequence = calloc (l->nr_l1_pages + 1, 8);
  s->l1_copy = calloc (l->nr_l1_pages + 1, 1);
  s->l1_written = calloc (l->nr_l1_pages + 1, 1);
  s->l2_page_dirty = calloc (l->nr_l2_pages + 1, 1);
  s->recorded_page_dirty = calloc (l->nr_l2_pages + 1, 1);
  s->sample_crc = calloc (64, sizeof *s->sample_crc);
  if (s->table == NULL)
    s->table = calloc (1, sizeof *s->table);
  if (s->in_flight == NULL || s->hot == NULL || s->touched == NULL || s->pending == NULL
      || s->asked == NULL || s->l1 == NULL || s->l1_page_dirty == NULL || s->l1_sequence == NULL
      || s->l1_copy == NULL || s->l1_written == NULL || s->l2_page_dirty == NULL
      || s->recorded_page_dirty == NULL || s->sample_crc == NULL || s->table == NULL)
    return text_error (error, "out of memory");
  s->layout = *l;
  return 0;
}

static int
write_both (struct state *s, const uint8_t *data, size_t size, uint64_t offset)
{
  for (unsigned copy = 0; copy < 2; copy++)
    if (s->io.write (s->io.opaque, data, size, offset + copy * size) == -1
        || s->io.sync (s->io.opaque) == -1)
      return -1;
  return 0;
}

int
state_write_super (struct state *s, struct state_super *super)
{
  uint8_t page[STATE_PAGE];

  s->changes++;
  super->sequence = s->super.sequence + 1;
  state_super_encode (super, page);
  if (write_both (s, page, sizeof page, 0) == -1)
    return -1;
  s->super = *super;
  return 0;
}

int
state_sync_disk (struct state *s)
{
  pthread_mutex_lock (&s->disk_lock);
  int r = s->io.sync_disk (s->io.opaque), saved = errno;
  if (r == -1)
    state_write_failed (s, "the disk cannot be flushed");
  pthread_mutex_unlock (&s->disk_lock);
  errno = saved;
  return r;
}

int
state_bury (struct state *s, uint64_t offset)
{
  uint8_t sector[512];

  memset (sector, 0xff, sizeof sector);
  return s->io.write (s->io.opaque, sector, sizeof sector, offset) == 0
                 && s->io.sync (s->io.opaque) == 0
             ? 0
             : -1;
}

int
state_write_table (struct state *s, struct state_table *t)
{
  uint8_t pages[STATE_TABLE_PAGES * STATE_PAGE];

  s->changes++;
  t->sequence = s->table->sequence + 1;
  state_table_encode (t, pages);
  /* Begin with the older copy.  A server that was killed between the two left only one that is new;
   * if that were torn now, the old table would count again. */
  for (unsigned i = 0; i < 2; i++) {
    uint8_t copy = s->table_copy ^ 1u;
    uint64_t offset = STATE_TABLE_OFFSET + copy * sizeof pages;
    if (state_bury (s, offset) == -1
        || s->io.write (s->io.opaque, pages, sizeof pages, offset) == -1
        || s->io.sync (s->io.opaque) == -1)
      return -1;
    s->table_copy = copy;
  }
  *s->table = *t;
  return 0;
}

/* The active recording missed something. */
static void
make_inconsistent (struct state_table *t, const char *fault)
{
  if (!t->recording || t->list[t->nr - 1].inconsistent)
    return;
  struct state_checkpoint *c = &t->list[t->nr - 1];
  c->inconsistent = true;
  snprintf (c->fault, sizeof c->fault, "%.*s", (int)STATE_FAULT_MAX, fault);
}

int
state_break_recording (struct state *s, const char *fault, bool go_on)
{
  if (!s->table->recording || (go_on && s->table->list[s->table->nr - 1].inconsistent))
    return 0;
  struct state_table *t = malloc (sizeof *t);
  if (t == NULL)
    return -1;
  *t = *s->table;
  make_inconsistent (t, fault);
  t->recording = go_on;
  int r = state_write_table (s, t);
  free (t);
  return r;
}

int
state_write_off (struct state *s)
{
  struct state_view now;

  state_look (s, &now);
  if (!now.lost)
    return 0;
  atomic_store (&s->marked[1], NULL);
  atomic_store (&s->marked[2], NULL);
  s->preparing = false;
  return state_break_recording (s, now.reason, false);
}

void
state_break (struct state *s, const char *reason)
{
  pthread_mutex_lock (&s->io_lock);
  int r = s->table != NULL ? state_break_recording (s, reason, true) : 0, saved = errno;
  pthread_mutex_unlock (&s->io_lock);
  if (r == -1)
    state_lose (s, strerror (saved));
}

static void
look_at_region (struct state *s, const struct region *r)
{
  pthread_mutex_lock (&s->lock);
  s->region = r;
  s->given_back = UINT64_MAX; /* all of it is news */
  pthread_mutex_unlock (&s->lock);
}

/* What was tracked has ended, and WRITTEN says whether the file knows (0, or -1 with errno).  Up to
 * here first touches were committed and writes marked, for a power failure could have left a file
 * that knows nothing of the end.  If it could not be written, these maps are all dirty from now on.
 * KEEP: something else is still tracked.  False: the tracking is lost. */
static bool
stop_tracking (struct state *s, int written, bool keep)
{
  if (written == -1)
    state_lose (s, strerror (errno));
  else if (!keep) {
    pthread_mutex_lock (&s->lock);
    atomic_store (&s->active, false);
    s->loss_unwritten = s->lost = false;
    pthread_cond_broadcast (&s->committed);
    pthread_mutex_unlock (&s->lock);
  }
  return written == 0;
}

void
state_end (struct state *s)
{
  pthread_mutex_lock (&s->io_lock);
  look_at_region (s, NULL);
  bool recording = s->table != NULL && (s->table->recording || s->preparing);
  struct state_super super = s->super;
  super.job = false;
  if (!recording)
    super.status = STATE_CLEAN;
  int r = super.sequence == 0 ? 0 : state_write_super (s, &super);
  if (stop_tracking (s, r, recording))
    atomic_store (&s->marked[0], NULL);
  pthread_mutex_unlock (&s->io_lock);
}

void
state_disown (struct state *s, const char *reason)
{
  pthread_mutex_lock (&s->io_lock);
  look_at_region (s, NULL);
  struct state_super super = s->super;
  super.job = false;
  super.status = STATE_CLEAN;
  int r = s->table == NULL || state_break_recording (s, reason, false) == 0
              ? state_write_super (s, &super)
              : -1;
  s->preparing = false;
  if (stop_tracking (s, r, false))
    for (unsigned i = 0; i < 3; i++)
      atomic_store (&s->marked[i], NULL);
  pthread_mutex_unlock (&s->io_lock);
}

void
state_allow_settling (struct state *s)
{
  uint32_t tick = atomic_load (&s->tick);

  pthread_mutex_lock (&s->lock);
  /* Those writes were not counted: a flush that began before now may have missed them. */
  for (uint64_t e = 0; !s->may_settle && s->touched != NULL && e < s->layout.nr_extents; e++)
    atomic_store (&s->touched[e], tick);
  s->may_settle = true;
  pthread_mutex_unlock (&s->lock);
}

int
state_close_clean (struct state *s, const struct state_identity *id)
{
  if (!atomic_load (&s->active))
    return -1;
  state_allow_settling (s); /* there are no writes any more */
  pthread_mutex_lock (&s->lock);
  uint64_t limit = s->hot_limit;
  s->hot_limit = 0;
  pthread_mutex_unlock (&s->lock);
  for (unsigned tries = 0; tries < 1000000 && atomic_load (&s->active); tries++) {
    uint64_t before = s->nr_hot;
    bool added = s->added;
    state_round (s);
    /* After a round that has written what was added, samples want another one (note.c). */
    if ((s->nr_hot == 0 || s->nr_hot == before) && s->added == added)
      break;
  }
  pthread_mutex_lock (&s->lock);
  s->hot_limit = limit;
  bool cool = s->nr_hot == 0 && !s->lost && !s->added;
  pthread_mutex_unlock (&s->lock);
  if (!cool)
    return -1;
  pthread_mutex_lock (&s->io_lock);
  struct state_super super = s->super;
  super.status = STATE_CLEAN;
  super.identity = *id;
  int r = state_write_super (s, &super);
  pthread_mutex_unlock (&s->io_lock);
  return r;
}

void
state_fill_region (const struct state *s, struct region *r)
{
  uint64_t words[64];

  bitmap_set (r, REGION_VISITED, 0, r->geo.nr_blocks);
  for (uint64_t w = 0; w < r->geo.nr_words; w += 64) {
    uint64_t n = r->geo.nr_words - w < 64 ? r->geo.nr_words - w : 64;
    for (uint64_t i = 0; i < n; i++)
      words[i] = atomic_load (&s->live[w + i]);
    bitmap_set_words (r, REGION_QUARANTINE, w, n, words);
    bitmap_set_words (r, REGION_DIRTY, w, n, words);
  }
}

void
state_set_region (struct state *s, const struct region *r)
{
  if (r == NULL) {
    look_at_region (s, NULL);
    return;
  }
  pthread_mutex_lock (&s->io_lock);
  look_at_region (s, r);
  state_take_in (s);
  pthread_mutex_unlock (&s->io_lock);
  state_lost_page (s);
}

void
state_set_note (struct state *s, const char *text)
{
  pthread_mutex_lock (&s->lock);
  snprintf (s->wanted_note, sizeof s->wanted_note, "%s", text);
  pthread_mutex_unlock (&s->lock);
}

void
state_look (struct state *s, struct state_view *view)
{
  pthread_mutex_lock (&s->lock);
  view->job = atomic_load (&s->active);
  view->lost = s->lost;
  view->recording
      = view->job && (atomic_load (&s->marked[1]) != NULL || atomic_load (&s->marked[2]) != NULL);
  memcpy (view->reason, s->reason, sizeof view->reason);
  view->hot = view->job ? s->nr_hot : 0;
  view->hot_limit = s->hot_limit;
  view->commits = s->commits;
  view->waits = s->waits;
  pthread_mutex_unlock (&s->lock);
}

void
state_mark_all (struct state *s)
{
  for (unsigned i = 0; i < 3; i++) {
    _Atomic uint64_t *live = atomic_load (&s->marked[i]);
    for (uint64_t w = 0; live != NULL && w < s->layout.geo.nr_words; w++)
      atomic_store (&live[w], ~UINT64_C (0));
  }
}

void
state_lose (struct state *s, const char *reason)
{
  /* No round drops a bit from now on that is set here: before a write goes on that is not marked
   * any more. */
  pthread_mutex_lock (&s->lock);
  s->losing++;
  pthread_mutex_unlock (&s->lock);
  state_mark_all (s);
  pthread_mutex_lock (&s->lock);
  s->losing--;
  if (!s->lost) {
    s->lost = s->loss_unwritten = true;
    snprintf (s->reason, sizeof s->reason, "%s", reason);
  }
  atomic_store (&s->active, false);
  pthread_cond_broadcast (&s->committed);
  pthread_cond_signal (&s->work);
  pthread_mutex_unlock (&s->lock);
}

bool
state_lost_page (struct state *s)
{
  bool lost = s->io.lost_page != NULL && atomic_load (s->io.lost_page);

  if (lost && atomic_load (&s->active))
    state_lose (s, "a page of it is gone: it was cut short, or its file system is full or fails");
  if (lost)
    errno = EIO;
  return lost;
}
