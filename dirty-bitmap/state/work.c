/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Writing the state file: commits of L1, and rounds of cooling.  See state.h.
 *
 * The order in a round, each step durable before the next (the crash test leaves out each in turn):
 *   1  look at extents in which no write is in flight; drop from the live map what the region no
 *      longer has; those that shall cool are not hot from now on
 *   2  flush the source's disk
 *   3  samples and note
 *   4  L2
 *   5  drop the L1 bits of those that are still not hot
 * Samples come before L2, since a sample of a block whose bit is set is not looked at, and an old
 * sample of a clean block would say that the destination is another one.
 */

#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/claims.h"
#include "dirty-bitmap/state/internal.h"

#define TICK_MS 1000
#define MOST_PAGES 2048u /* of L2 in one round */

int
state_write_failed (struct state *s, const char *what)
{
  char reason[STATE_REASON_MAX + 1];

  snprintf (reason, sizeof reason, "%s: %s", what, strerror (errno));
  state_lose (s, reason);
  return -1;
}

/* ---- L1 ---- */

/* Build page P from the bits as they are now.  Under lock. */
static void
build_l1 (struct state *s, uint64_t p, uint8_t *page)
{
  struct state_page_id id = { .kind = STATE_L1, .number = p, .sequence = s->l1_sequence[p] + 1 };

  memcpy (id.uuid, s->super.epoch, 16);
  state_page_put_words (page, 0, &s->l1[p * STATE_PAGE_WORDS], STATE_PAGE_WORDS);
  state_page_seal (page, STATE_PAGE, &id);
}

/* Write every L1 page that changed, into the copy that does not hold what is durable now; then
 * sync.  Under io_lock. */
static int
write_l1 (struct state *s)
{
  const struct state_layout *l = &s->layout;
  uint8_t page[STATE_PAGE];
  uint8_t *written = calloc (l->nr_l1_pages + 1, 1);
  bool any = false;

  if (written == NULL)
    return state_write_failed (s, "L1");
  for (uint64_t p = 0; p < l->nr_l1_pages; p++) {
    pthread_mutex_lock (&s->lock);
    bool dirty = s->l1_page_dirty[p] != 0;
    s->l1_page_dirty[p] = 0;
    if (dirty)
      build_l1 (s, p, page);
    pthread_mutex_unlock (&s->lock);
    if (!dirty)
      continue;
    uint64_t copy = s->l1_copy[p] ^ 1u;
    if (s->io.write (s->io.opaque, page, sizeof page, l->l1_offset + (2 * p + copy) * STATE_PAGE)
        == -1) {
      free (written);
      return state_write_failed (s, "L1");
    }
    written[p] = any = true;
  }
  if (any && s->io.sync (s->io.opaque) == -1) {
    free (written);
    return state_write_failed (s, "L1");
  }
  for (uint64_t p = 0; p < l->nr_l1_pages; p++)
    if (written[p]) {
      s->l1_copy[p] ^= 1u;
      s->l1_sequence[p]++;
    }
  free (written);
  return 0;
}

void
state_commit_now (struct state *s)
{
  uint64_t *taken = NULL, nr = 0;

  pthread_mutex_lock (&s->lock);
  if (atomic_load (&s->active) && s->nr_pending != 0)
    taken = malloc (s->nr_pending * sizeof *taken);
  for (uint64_t e = 0; taken != NULL && nr < s->nr_pending; e++) {
    assert (e < s->layout.nr_extents);
    if (!s->pending[e])
      continue;
    taken[nr++] = e;
    s->nr_hot += (s->l1[e / 64] >> (e % 64) & 1) == 0;
    s->l1[e / 64] |= UINT64_C (1) << (e % 64);
    s->l1_page_dirty[e / (STATE_PAGE_WORDS * 64)] = 1;
  }
  pthread_mutex_unlock (&s->lock);
  if (taken == NULL)
    return;
  int r = write_l1 (s);
  pthread_mutex_lock (&s->lock);
  for (uint64_t i = 0; r == 0 && i < nr; i++) {
    s->pending[taken[i]] = 0;
    s->nr_pending--;
    atomic_store (&s->hot[taken[i]], 1);
  }
  s->commits++;
  pthread_cond_broadcast (&s->committed);
  pthread_mutex_unlock (&s->lock);
  free (taken);
}

void
state_commit (struct state *s)
{
  pthread_mutex_lock (&s->io_lock);
  state_commit_now (s);
  pthread_mutex_unlock (&s->io_lock);
}

/* ---- 1: looking at extents ---- */

/* What the region still has of COUNT words from FIRST on.  Arrays in the order that finds a block
 * which is being claimed (claims.h).  False if a block was given back meanwhile, which may have
 * been seen in neither, or if a clearer was at work: then it is to be tried again later. */
static bool
region_words (const struct region *r, uint64_t first, uint64_t count, uint64_t *words)
{
  uint64_t given_back = atomic_load (&r->hdr->given_back);

  memset (words, 0, count * 8);
  for (int a = REGION_DIRTY; a <= REGION_QUARANTINE; a++)
    if (!bitmap_or_words (r, (enum region_array)a, first, count, words))
      return false;
  return atomic_load (&r->hdr->given_back) == given_back;
}

enum look { LOOK_BUSY, LOOK_SAME, LOOK_CHANGED };

/* Look at extent E: drop from the job's live map what the region no longer has, unless a write is
 * in flight there.  COOL: then it is not hot any more.  NEED_DURABLE: only if what was written
 * there is durable at the source, for nobody could make it so.  *FLUSH: it is not, and some bits
 * are clear. Under lock. */
static enum look
look_at (struct state *s, uint64_t e, bool cool, bool need_durable, bool *flush)
{
  uint64_t first, count = state_extent_words (&s->layout, e, &first), kept[64];
  uint8_t hot = atomic_exchange (&s->hot[e], 0);
  bool changed = false, job = s->region != NULL;

  assert (count <= 64);
  bool busy = s->pending[e] || atomic_load (&s->in_flight[e]) != 0;
  bool durable = atomic_load (&s->touched[e]) < atomic_load (&s->flushed);
  if (busy || (need_durable && !durable)
      || (job && !region_words (s->region, first, count, kept))) {
    atomic_store (&s->hot[e], hot);
    return LOOK_BUSY;
  }
  bool full = true;
  for (uint64_t i = 0; job && i < count; i++) {
    uint64_t old = atomic_load (&s->live[first + i]), now = old & kept[i];
    changed |= now != old;
    full &= now == ~UINT64_C (0);
    atomic_store (&s->live[first + i], now);
  }
  *flush = !durable && !full;
  if (!cool)
    atomic_store (&s->hot[e], hot);
  return changed ? LOOK_CHANGED : LOOK_SAME;
}

/* What a round is about to do. */
struct round {
  uint64_t *cooling; /* extents */
  uint64_t nr_cooling, max_cooling;
  unsigned pages;
  bool flush_needed;
};

/* Extent E, as step 1.  Under lock. */
static void
step_1_extent (struct state *s, uint64_t e, uint64_t *over, struct round *round)
{
  uint32_t tick = atomic_load (&s->tick), touched = atomic_load (&s->touched[e]);
  bool has_l1 = (s->l1[e / 64] >> (e % 64) & 1) != 0;
  bool cool = has_l1 && (tick - touched >= s->idle_ticks || *over != 0);
  uint64_t p = e / s->layout.extents_per_page;
  bool job = s->region != NULL, page_dirty = s->l2_page_dirty[p] || s->recorded_page_dirty[p];

  if (round->nr_cooling == round->max_cooling)
    cool = false;
  bool l2 = cool || !has_l1, flush;
  if (l2 && !page_dirty && round->pages >= MOST_PAGES)
    return;
  enum look is = look_at (s, e, cool, job && l2 && s->io.sync_disk == NULL, &flush);
  if (is == LOOK_BUSY || (!cool && (has_l1 || is == LOOK_SAME)))
    return;
  round->pages += !page_dirty;
  s->l2_page_dirty[p] |= job;
  s->recorded_page_dirty[p] |= cool; /* a recording's bits change in hot extents only */
  round->flush_needed |= flush;
  if (cool) {
    round->cooling[round->nr_cooling++] = e;
    *over -= *over != 0;
  }
}

/* A quick look without the lock: is there nothing to do?  A write that comes now is for later. */
static bool
cold_and_clean (struct state *s, uint64_t e)
{
  uint64_t first, count = state_extent_words (&s->layout, e, &first);

  if (atomic_load (&s->hot[e]))
    return false;
  for (uint64_t i = 0; s->super.job && i < count; i++)
    if (atomic_load (&s->live[first + i]) != 0)
      return false;
  return true;
}

static void
step_1 (struct state *s, struct round *round)
{
  uint64_t n = s->layout.nr_extents;

  pthread_mutex_lock (&s->lock);
  uint64_t over = s->nr_hot > s->hot_limit ? s->nr_hot - s->hot_limit : 0;
  pthread_mutex_unlock (&s->lock);
  for (uint64_t i = 0; i < n; i++) {
    uint64_t e = (s->cursor + i) % n;
    if (cold_and_clean (s, e))
      continue;
    pthread_mutex_lock (&s->lock);
    bool go_on = atomic_load (&s->active) && s->may_settle && (s->region != NULL || !s->super.job);
    if (go_on)
      step_1_extent (s, e, &over, round);
    pthread_mutex_unlock (&s->lock);
    if (!go_on)
      return;
  }
  s->cursor = round->nr_cooling != 0 ? (round->cooling[round->nr_cooling - 1] + 1) % n : 0;
}

/* ---- 2: the source's disk ---- */

/* Is everything durable there whose fine bits were dropped? */
static bool
step_2 (struct state *s, const struct round *round)
{
  if (round->flush_needed) {
    s->flush_owed = true;
    s->owed_tick = atomic_load (&s->tick);
  }
  if (s->flush_owed)
    s->flush_owed = atomic_load (&s->flushed) <= s->owed_tick
                    && (s->io.sync_disk == NULL || s->io.sync_disk (s->io.opaque) == -1);
  return !s->flush_owed;
}

/* ---- 3: samples and note ---- */

static int
step_3 (struct state *s)
{
  bool any = false;

  if (!s->super.job)
    return 0;
  if (state_write_samples (s, &any) == -1 || state_write_note (s, &any) == -1)
    return -1;
  return any && s->io.sync (s->io.opaque) == -1 ? state_write_failed (s, "samples") : 0;
}

/* ---- 4: L2 ---- */

int64_t
state_write_page (struct state *s, const struct state_page_id *id, const _Atomic uint64_t *live,
                  uint64_t area_offset, bool skip_empty)
{
  const struct state_layout *l = &s->layout;
  uint32_t words = l->extents_per_page * l->words_per_extent;
  uint64_t first = id->number * words;
  uint8_t page[STATE_PAGE];
  int64_t set = 0;

  memset (page, 0, sizeof page);
  for (uint32_t w = 0; w < words && first + w < l->geo.nr_words; w++) {
    uint64_t v = atomic_load (&live[first + w]);
    state_page_put_words (page, w, &v, 1);
    set += __builtin_popcountll (v);
  }
  if (set == 0 && skip_empty)
    return 0;
  state_page_seal (page, sizeof page, id);
  if (s->io.write (s->io.opaque, page, sizeof page, area_offset + id->number * STATE_PAGE) == -1)
    return -1;
  return set;
}

/* Page P of checkpoint C's recording. */
static int
write_recorded (struct state *s, uint64_t p, const struct state_checkpoint *c, uint32_t slot)
{
  struct state_page_id id = { .kind = STATE_RECORDING, .number = p, .sequence = 1 };

  memcpy (id.uuid, c->recording, 16);
  uint64_t area = s->layout.areas_offset + c->area * s->layout.area_bytes;
  return state_write_page (s, &id, s->slots[slot], area, false) == -1 ? -1 : 0;
}

static int
step_4 (struct state *s)
{
  const struct state_table *t = s->table;
  bool any = false;

  for (uint64_t p = 0; p < s->layout.nr_l2_pages; p++) {
    struct state_page_id id = { .kind = STATE_L2, .number = p, .sequence = 1 };
    if (s->l2_page_dirty[p] && s->super.job) {
      memcpy (id.uuid, s->super.uuid, 16);
      if (state_write_page (s, &id, s->live, s->layout.l2_offset, false) == -1)
        return state_write_failed (s, "L2");
      any = true;
    }
    if (s->recorded_page_dirty[p]
        && ((t->recording && write_recorded (s, p, &t->list[t->nr - 1], t->slot) == -1)
            || (s->preparing && write_recorded (s, p, &s->next, s->next_slot) == -1)))
      return state_write_failed (s, "recording");
    any |= s->recorded_page_dirty[p] != 0;
    s->l2_page_dirty[p] = s->recorded_page_dirty[p] = 0;
  }
  return any && s->io.sync (s->io.opaque) == -1 ? state_write_failed (s, "L2") : 0;
}

/* ---- 5: the L1 bits ---- */

static int
step_5 (struct state *s, const struct round *round)
{
  pthread_mutex_lock (&s->lock);
  for (uint64_t i = 0; i < round->nr_cooling; i++) {
    uint64_t e = round->cooling[i];
    if (atomic_load (&s->hot[e]) || s->pending[e])
      continue; /* a write came back */
    s->l1[e / 64] &= ~(UINT64_C (1) << (e % 64));
    s->l1_page_dirty[e / (STATE_PAGE_WORDS * 64)] = 1;
    s->nr_hot--;
  }
  pthread_mutex_unlock (&s->lock);
  return write_l1 (s);
}

/* Extents that were to cool and did not: their L1 bit stands, so they are as hot as before. */
static void
stay_hot (struct state *s, const struct round *round)
{
  pthread_mutex_lock (&s->lock);
  for (uint64_t i = 0; i < round->nr_cooling; i++)
    atomic_store (&s->hot[round->cooling[i]], 1);
  pthread_mutex_unlock (&s->lock);
}

/* The file does not say what was lost: say it on the disk, which is often elsewhere. */
static void
unmark_disk (struct state *s)
{
  static const uint8_t none[16];

  if (!s->unmarked && s->io.mark_disk != NULL && memcmp (s->disk.mark, none, 16) != 0)
    s->unmarked = s->io.mark_disk (s->io.opaque, NULL) == 0;
}

/* Is a loss to be written?  It says INCONSISTENT, which is as good as all dirty. */
static void
write_loss (struct state *s)
{
  uint8_t page[STATE_PAGE];

  pthread_mutex_lock (&s->lock);
  bool unwritten = s->loss_unwritten;
  struct state_super super = s->super;
  memcpy (super.reason, s->reason, sizeof super.reason);
  pthread_mutex_unlock (&s->lock);
  if (!unwritten || super.sequence == 0)
    return;
  state_mark_all (s); /* again: a round that was under way may have dropped bits since */
  super.status = STATE_INCONSISTENT;
  super.sequence++;
  state_super_encode (&super, page);
  for (unsigned copy = 0; copy < 2; copy++)
    if (s->io.write (s->io.opaque, page, sizeof page, copy * STATE_PAGE) == -1
        || s->io.sync (s->io.opaque) == -1) {
      unmark_disk (s);
      return; /* tried again */
    }
  s->super = super;
  pthread_mutex_lock (&s->lock);
  s->loss_unwritten = false;
  pthread_mutex_unlock (&s->lock);
}

void
state_round (struct state *s)
{
  struct round round = { .max_cooling = s->layout.nr_extents };

  pthread_mutex_lock (&s->io_lock);
  atomic_fetch_add (&s->tick, 1);
  write_loss (s);
  if (atomic_load (&s->active))
    round.cooling = malloc ((round.max_cooling + 1) * sizeof *round.cooling);
  if (round.cooling != NULL) {
    step_1 (s, &round);
    state_commit_now (s);
    bool durable = step_2 (s, &round);
    state_commit_now (s);
    if (!durable || step_3 (s) == -1 || step_4 (s) == -1)
      stay_hot (s, &round);
    else {
      state_commit_now (s);
      step_5 (s, &round);
    }
    free (round.cooling);
  }
  pthread_mutex_unlock (&s->io_lock);
}

void *
state_work (void *opaque)
{
  struct state *s = opaque;
  uint64_t next = clock_ms () + TICK_MS;

  pthread_mutex_lock (&s->lock);
  while (!s->stop) {
    struct timespec until = clock_timespec (next * (uint64_t)NS_PER_MS);
    if (s->nr_pending == 0 || !atomic_load (&s->active))
      pthread_cond_timedwait (&s->work, &s->lock, &until);
    bool pending = s->nr_pending != 0 && atomic_load (&s->active);
    bool over = atomic_load (&s->active) && s->nr_hot > s->hot_limit + s->hot_limit / 16;
    pthread_mutex_unlock (&s->lock);
    if (pending)
      state_commit (s);
    if (clock_ms () >= next || (over && pending)) {
      state_round (s);
      next = clock_ms () + TICK_MS;
    }
    pthread_mutex_lock (&s->lock);
  }
  pthread_mutex_unlock (&s->lock);
  return NULL;
}

void
state_stop (struct state *s)
{
  pthread_mutex_lock (&s->lock);
  s->stop = true;
  pthread_cond_signal (&s->work);
  pthread_mutex_unlock (&s->lock);
}
