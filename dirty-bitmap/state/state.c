/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Beginning and ending a job's tracking, and what a guest's write does.  See state.h.
 *
 * A write and the one who looks at an extent, each in its order, all sequentially consistent:
 *   write:   count itself into the extent; is it hot?  If not, count out, and wait
 *   looker:  (under lock) not hot; is nobody counted?  If somebody is, hot again, and try later
 * Either the write sees "not hot", or the looker sees the write.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/state/state.h"

#define SLICE_MS 100         /* between two probes of a write that waits */
#define ANSWER_LIMIT_MS 5000 /* a state file that takes longer is lost */
#define DEFAULT_IDLE_TICKS 30

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
  pthread_mutex_init (&s->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&s->committed, &attr);
  pthread_cond_init (&s->work, &attr);
  pthread_condattr_destroy (&attr);
}

void
state_destroy (struct state *s)
{
  free (s->in_flight);
  free (s->hot);
  free (s->touched);
  free (s->pending);
  free (s->l1);
  free (s->l1_page_dirty);
  free (s->l1_sequence);
  free (s->l1_copy);
  free (s->l2_page_dirty);
  free (s->sample_crc);
  pthread_cond_destroy (&s->work);
  pthread_cond_destroy (&s->committed);
  pthread_mutex_destroy (&s->lock);
  pthread_mutex_destroy (&s->io_lock);
}

static int
allocate (struct state *s, const struct state_layout *l, char **error)
{
  uint64_t n = l->nr_extents + 1, l1_words = l->nr_l1_pages * STATE_PAGE_WORDS + 1;

  if (s->in_flight != NULL) {
    if (memcmp (&s->layout, l, sizeof *l) != 0)
      return text_error (error, "the disk's size or its blocks have changed");
    return 0;
  }
  s->in_flight = calloc (n, sizeof *s->in_flight);
  s->hot = calloc (n, sizeof *s->hot);
  s->touched = calloc (n, sizeof *s->touched);
  s->pending = calloc (n, 1);
  s->l1 = calloc (l1_words, 8);
  s->l1_page_dirty = calloc (l->nr_l1_pages + 1, 1);
  s->l1_sequence = calloc (l->nr_l1_pages + 1, 8);
  s->l1_copy = calloc (l->nr_l1_pages + 1, 1);
  s->l2_page_dirty = calloc (l->nr_l2_pages + 1, 1);
  s->sample_crc = calloc (64, sizeof *s->sample_crc);
  if (s->in_flight == NULL || s->hot == NULL || s->touched == NULL || s->pending == NULL
      || s->l1 == NULL || s->l1_page_dirty == NULL || s->l1_sequence == NULL || s->l1_copy == NULL
      || s->l2_page_dirty == NULL || s->sample_crc == NULL)
    return text_error (error, "out of memory");
  s->layout = *l;
  return 0;
}

/* Write SUPER into both places, one after the other: so the file never holds an older one that
 * promises more than the newer one.  Under io_lock. */
static int
write_super (struct state *s, struct state_super *super)
{
  uint8_t page[STATE_PAGE];

  super->sequence = s->super.sequence + 1;
  state_super_encode (super, page);
  for (unsigned copy = 0; copy < 2; copy++)
    if (s->io.write (s->io.opaque, page, sizeof page, copy * STATE_PAGE) == -1
        || s->io.sync (s->io.opaque) == -1)
      return -1;
  s->super = *super;
  return 0;
}

/* Everything that is in memory only, for a job whose L1 bits are in s->l1. */
static void
start_tracking (struct state *s)
{
  pthread_mutex_lock (&s->lock);
  s->nr_hot = 0;
  for (uint64_t e = 0; e < s->layout.nr_extents; e++) {
    bool hot = (s->l1[e / 64] >> (e % 64) & 1) != 0;
    s->nr_hot += hot;
    atomic_store (&s->hot[e], hot);
    /* What is in a cache may not be durable, whoever wrote it. */
    atomic_store (&s->touched[e], atomic_load (&s->tick));
    s->pending[e] = 0;
  }
  s->nr_pending = 0;
  memset (s->l1_page_dirty, 0, s->layout.nr_l1_pages);
  s->region = NULL;
  s->may_settle = false;
  s->lost = s->loss_unwritten = false;
  s->reason[0] = '\0';
  pthread_mutex_unlock (&s->lock);
  memset (s->l2_page_dirty, 0, s->layout.nr_l2_pages);
  s->flush_owed = true; /* what an earlier server dropped from the live map may wait for it */
  s->owed_tick = atomic_load (&s->tick);
  memset (s->sample_crc, 0, 64 * sizeof *s->sample_crc);
  atomic_store (&s->active, true);
}

int
state_begin (struct state *s, const struct state_layout *layout, _Atomic uint64_t *live,
             const uint8_t uuid[16], const uint8_t boot[16], char **error)
{
  struct state_super super = { .disk_size = layout->geo.disk_size,
                               .block_size = layout->geo.block_size,
                               .status = STATE_ACTIVE,
                               .job = true };
  int r = -1;

  memcpy (super.uuid, uuid, 16);
  memcpy (super.boot, boot, 16);
  pthread_mutex_lock (&s->io_lock);
  if (allocate (s, layout, error) == 0) {
    s->live = live;
    for (uint64_t w = 0; w < layout->geo.nr_words; w++)
      atomic_store (&live[w], ~UINT64_C (0));
    /* No page bears the new job's UUID yet, which means: everything is dirty. */
    memset (s->l1, 0xff, layout->nr_l1_pages * STATE_PAGE_WORDS * 8);
    memset (s->l1_sequence, 0, layout->nr_l1_pages * 8);
    memset (s->l1_copy, 1, layout->nr_l1_pages);
    s->note_sequence = 0;
    s->note_copy = 1;
    s->note[0] = s->wanted_note[0] = '\0';
    if (write_super (s, &super) == 0) {
      start_tracking (s);
      r = 0;
    } else
      text_error (error, "it cannot be written: %s", strerror (errno));
  }
  pthread_mutex_unlock (&s->io_lock);
  return r;
}

int
state_continue (struct state *s, const struct state_found *f, _Atomic uint64_t *live,
                const uint8_t boot[16], char **error)
{
  struct state_super super = f->super;
  int r = -1;

  super.status = STATE_ACTIVE;
  memcpy (super.boot, boot, 16);
  memset (super.reason, 0, sizeof super.reason);
  memset (&super.identity, 0, sizeof super.identity);
  pthread_mutex_lock (&s->io_lock);
  s->super = f->super;
  if (allocate (s, &f->layout, error) == 0) {
    s->live = live;
    for (uint64_t w = 0; w < f->layout.geo.nr_words; w++)
      atomic_store (&live[w], f->bits[w]);
    memcpy (s->l1, f->l1, f->layout.nr_l1_pages * STATE_PAGE_WORDS * 8);
    memcpy (s->l1_sequence, f->l1_sequence, f->layout.nr_l1_pages * 8);
    memcpy (s->l1_copy, f->l1_copy, f->layout.nr_l1_pages);
    s->note_sequence = f->note_sequence;
    s->note_copy = f->note_copy;
    memcpy (s->note, f->note, sizeof s->note);
    memcpy (s->wanted_note, f->note, sizeof s->wanted_note);
    if (write_super (s, &super) == 0) {
      start_tracking (s);
      r = 0;
    } else
      text_error (error, "it cannot be written: %s", strerror (errno));
  }
  pthread_mutex_unlock (&s->io_lock);
  return r;
}

static void
stop_tracking (struct state *s)
{
  pthread_mutex_lock (&s->lock);
  atomic_store (&s->active, false);
  s->region = NULL;
  pthread_cond_broadcast (&s->committed);
  pthread_mutex_unlock (&s->lock);
}

void
state_end (struct state *s)
{
  stop_tracking (s);
  pthread_mutex_lock (&s->io_lock);
  struct state_super super = s->super;
  super.job = false;
  super.status = STATE_CLEAN;
  int r = super.sequence == 0 ? 0 : write_super (s, &super);
  int saved = errno;
  pthread_mutex_unlock (&s->io_lock);
  pthread_mutex_lock (&s->lock);
  s->loss_unwritten = s->lost = false;
  pthread_mutex_unlock (&s->lock);
  if (r == -1)
    state_lose (s, strerror (saved));
}

int
state_close_clean (struct state *s, const struct state_identity *id)
{
  if (!atomic_load (&s->active))
    return -1;
  pthread_mutex_lock (&s->lock);
  s->may_settle = true; /* there are no writes any more */
  uint64_t limit = s->hot_limit;
  s->hot_limit = 0;
  pthread_mutex_unlock (&s->lock);
  for (unsigned tries = 0; tries < 1000000 && atomic_load (&s->active); tries++) {
    uint64_t before = s->nr_hot;
    state_round (s);
    if (s->nr_hot == 0 || s->nr_hot == before)
      break;
  }
  pthread_mutex_lock (&s->lock);
  s->hot_limit = limit;
  bool cool = s->nr_hot == 0 && !s->lost;
  pthread_mutex_unlock (&s->lock);
  if (!cool)
    return -1;
  pthread_mutex_lock (&s->io_lock);
  struct state_super super = s->super;
  super.status = STATE_CLEAN;
  super.identity = *id;
  int r = write_super (s, &super);
  pthread_mutex_unlock (&s->io_lock);
  return r;
}

void
state_fill_region (const struct state *s, struct region *r)
{
  uint64_t run = 0, n = r->geo.nr_blocks;

  bitmap_set (r, REGION_VISITED, 0, n);
  for (uint64_t b = 0; b <= n; b++) {
    if (b < n && (atomic_load (&s->live[b / 64]) >> (b % 64) & 1) != 0) {
      run++;
      continue;
    }
    bitmap_set (r, REGION_QUARANTINE, b - run, run);
    bitmap_set (r, REGION_DIRTY, b - run, run);
    run = 0;
  }
}

void
state_set_region (struct state *s, const struct region *r)
{
  pthread_mutex_lock (&s->lock);
  s->region = r;
  pthread_mutex_unlock (&s->lock);
}

void
state_allow_settling (struct state *s)
{
  pthread_mutex_lock (&s->lock);
  s->may_settle = true;
  pthread_mutex_unlock (&s->lock);
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
  for (uint64_t w = 0; s->live != NULL && w < s->layout.geo.nr_words; w++)
    atomic_store (&s->live[w], ~UINT64_C (0));
}

void
state_lose (struct state *s, const char *reason)
{
  /* Before a write goes on that is not marked any more. */
  state_mark_all (s);
  pthread_mutex_lock (&s->lock);
  if (!s->lost) {
    s->lost = s->loss_unwritten = true;
    snprintf (s->reason, sizeof s->reason, "%s", reason);
  }
  atomic_store (&s->active, false);
  pthread_cond_broadcast (&s->committed);
  pthread_cond_signal (&s->work);
  pthread_mutex_unlock (&s->lock);
}

/* ---- guest threads ---- */

struct extents {
  uint64_t first, last;
};

/* False where there is nothing to count: no job, or not a byte of the disk. */
static bool
extents_of (const struct state *s, uint64_t offset, uint64_t length, struct extents *x)
{
  const struct state_layout *l = &s->layout;

  if (length == 0 || offset >= l->geo.disk_size)
    return false;
  uint64_t end = length < l->geo.disk_size - offset ? offset + length : l->geo.disk_size;
  x->first = offset / l->extent_size;
  x->last = (end - 1) / l->extent_size;
  return true;
}

static void
count_out (struct state *s, const struct extents *x, uint64_t end)
{
  for (uint64_t e = x->first; e < end; e++)
    atomic_fetch_sub (&s->in_flight[e], 1);
}

/* Count into all extents.  False, and counted into none, if one is not hot. */
static bool
count_in (struct state *s, const struct extents *x)
{
  for (uint64_t e = x->first; e <= x->last; e++) {
    atomic_fetch_add (&s->in_flight[e], 1);
    if (!atomic_load (&s->hot[e])) {
      count_out (s, x, e + 1);
      return false;
    }
  }
  return true;
}

/* Mark the blocks before they are written (R2).  A bit that is seen set stays set: bits are cleared
 * only where nobody is counted, and we are. */
static void
mark_live (struct state *s, uint64_t offset, uint64_t length)
{
  const struct region_geometry *geo = &s->layout.geo;
  uint64_t end = length < geo->disk_size - offset ? offset + length : geo->disk_size;
  uint64_t first = offset >> geo->block_shift, last = (end - 1) >> geo->block_shift;

  for (uint64_t w = first / 64; w <= last / 64; w++) {
    uint64_t low = w == first / 64 ? first % 64 : 0, high = w == last / 64 ? last % 64 : 63;
    uint64_t mask = (~UINT64_C (0) << low) & (~UINT64_C (0) >> (63 - high));
    if ((atomic_load (&s->live[w]) & mask) != mask)
      atomic_fetch_or (&s->live[w], mask);
  }
}

/* Ask for the L1 bits of the extents that are cold.  True if none is.  Under lock. */
static bool
ask (struct state *s, const struct extents *x)
{
  bool all_hot = true;

  for (uint64_t e = x->first; e <= x->last; e++) {
    if (atomic_load (&s->hot[e]))
      continue;
    if ((s->l1[e / 64] >> (e % 64) & 1) != 0 && !s->pending[e]) {
      atomic_store (&s->hot[e], 1); /* it was cooling: its bit is still on the disk */
      continue;
    }
    all_hot = false;
    if (!s->pending[e]) {
      s->pending[e] = 1;
      s->nr_pending++;
    }
  }
  if (!all_hot)
    pthread_cond_signal (&s->work);
  return all_hot;
}

bool
state_try_enter (struct state *s, uint64_t offset, uint64_t length, bool *counted)
{
  struct extents x;

  *counted = false;
  if (!atomic_load (&s->active) || !extents_of (s, offset, length, &x))
    return true;
  if (!count_in (s, &x)) {
    pthread_mutex_lock (&s->lock);
    bool in = atomic_load (&s->active) && ask (s, &x) && count_in (s, &x);
    bool over = !atomic_load (&s->active);
    pthread_mutex_unlock (&s->lock);
    if (!in)
      return over;
  }
  mark_live (s, offset, length);
  *counted = true;
  return true;
}

int
state_enter (struct state *s, uint64_t offset, uint64_t length, state_probe *probe, void *opaque,
             bool *counted)
{
  if (state_try_enter (s, offset, length, counted))
    return 0;
  uint64_t begun = clock_ms ();
  pthread_mutex_lock (&s->lock);
  s->waits++;
  pthread_mutex_unlock (&s->lock);
  while (!state_try_enter (s, offset, length, counted)) {
    if (clock_ms () - begun >= ANSWER_LIMIT_MS) {
      state_lose (s, "the state file did not answer in time");
      continue;
    }
    struct timespec until = clock_timespec (clock_ns () + SLICE_MS * NS_PER_MS);
    pthread_mutex_lock (&s->lock);
    if (s->nr_pending != 0 && atomic_load (&s->active))
      pthread_cond_timedwait (&s->committed, &s->lock, &until);
    pthread_mutex_unlock (&s->lock);
    int err = probe (opaque);
    if (err != 0)
      return err;
  }
  return 0;
}

void
state_leave (struct state *s, uint64_t offset, uint64_t length)
{
  struct extents x;

  if (!extents_of (s, offset, length, &x))
    return;
  uint32_t tick = atomic_load (&s->tick);
  for (uint64_t e = x.first; e <= x.last; e++)
    atomic_store (&s->touched[e], tick);
  count_out (s, &x, x.last + 1);
}

uint32_t
state_flush_begins (struct state *s)
{
  return atomic_load (&s->tick);
}

void
state_flush_ended (struct state *s, uint32_t begun)
{
  uint32_t flushed = atomic_load (&s->flushed);

  while (begun > flushed && !atomic_compare_exchange_weak (&s->flushed, &flushed, begun))
    ;
}
