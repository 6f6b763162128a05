/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Rounds of cooling, and the thread that makes them.  See state.h.
 *
 * The order in a round, each step durable before the next (the crash test leaves out each in turn):
 *   0  add to the live map what turned dirty in the region without a guest
 *   1  look at extents in which no write is in flight; drop from the live map what the region no
 *      longer has; those that shall cool are not hot from now on
 *   2  flush the source's disk
 *   3  samples and note
 *   4  L2
 *   5  drop the L1 bits of those that are still not hot
 * Samples come before L2, since a sample of a block whose bit is set is not looked at, and an old
 * sample of a clean block would say that the destination is another one.  But a new sample may
 * prove a destination to which all was to be copied again.  So it waits for a round in which L2 has
 * what step 0 has added, and only the old one goes before that.
 *
 * Commits go on beside all of it, but for the last step.
 *
 * A disk may take long to flush.  The control thread does not wait for that: io_lock is free
 * meanwhile.  If it has begun or ended something then, the round is given up, and the next one
 * begins with a new look.
 */

#include "config.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/claims.h"
#include "dirty-bitmap/state/internal.h"

#define ROUND_MS 1000
#define MOST_PAGES 2048u /* of L2 in one round */
#define OLDEST 1023u     /* ticks; older ones count as so old */

/* ---- 0: what turned dirty without a guest ---- */

/* What the region still has of COUNT words from FIRST on.  False: try again later. */
static bool
region_words (const struct region *r, uint64_t first, uint64_t count, uint64_t *words)
{
  memset (words, 0, count * 8);
  return claims_or_words (r, first, count, words);
}

/* Extent E, under lock.  While a clearer is at work all of it counts: a look drops what is too
 * much.
 */
static void
take_in_extent (struct state *s, uint64_t e)
{
  uint64_t first, count = state_extent_words (&s->layout, e, &first), words[64], added = 0;

  assert (count <= 64);
  if (!region_words (s->region, first, count, words))
    memset (words, 0xff, sizeof words);
  for (uint64_t i = 0; i < count; i++) {
    uint64_t missing = words[i] & ~atomic_load (&s->live[first + i]);
    if (missing != 0)
      atomic_fetch_or (&s->live[first + i], missing);
    added |= missing;
  }
  if (added != 0)
    s->l2_page_dirty[e / s->layout.extents_per_page] = s->added = true;
}

void
state_take_in (struct state *s)
{
  pthread_mutex_lock (&s->lock);
  bool job = s->super.job && s->region != NULL;
  uint64_t given_back = job ? atomic_load (&s->region->hdr->given_back) : s->given_back;
  bool news = given_back != s->given_back;
  s->given_back = given_back; /* what comes from now on is for the next time */
  pthread_mutex_unlock (&s->lock);
  for (uint64_t e = 0; news && e < s->layout.nr_extents; e++) {
    pthread_mutex_lock (&s->lock);
    if (s->region != NULL)
      take_in_extent (s, e);
    pthread_mutex_unlock (&s->lock);
  }
}

/* ---- 1: looking at extents ---- */

enum look { LOOK_BUSY, LOOK_SAME, LOOK_CHANGED };

/* Look at extent E: drop from the job's live map what the region no longer has, unless a write is
 * in flight there.  COOL: then it is not hot any more.  *FLUSH: what was written there is not
 * durable at the source, and some bits are clear.  If nobody can flush the disk, nothing is dropped
 * before the guest has.  The live map then must know of it too: what is below us may keep writes in
 * its own memory, and lose them if it is killed with us.  Under lock. */
static enum look
look_at (struct state *s, uint64_t e, bool cool, bool *flush)
{
  uint64_t first, count = state_extent_words (&s->layout, e, &first), kept[64];
  uint8_t hot = atomic_exchange (&s->hot[e], 0);
  bool changed = false, job = s->region != NULL;

  assert (count <= 64);
  bool busy = s->pending[e] || atomic_load (&s->in_flight[e]) != 0;
  bool durable = atomic_load (&s->touched[e]) < atomic_load (&s->flushed);
  if (busy || (job && s->io.sync_disk == NULL && !durable)
      || (job && !region_words (s->region, first, count, kept))) {
    atomic_store (&s->hot[e], hot);
    return LOOK_BUSY;
  }
  bool full = true;
  for (uint64_t i = 0; job && i < count; i++) {
    uint64_t old = atomic_fetch_and (&s->live[first + i], kept[i]), now = old & kept[i];
    changed |= now != old;
    full &= now == ~UINT64_C (0);
  }
  *flush = !durable && !full;
  if (!cool)
    atomic_store (&s->hot[e], hot);
  return changed ? LOOK_CHANGED : LOOK_SAME;
}

/* What a round is about to do. */
struct round {
  uint32_t age;      /* extents that were not written for more ticks cool, */
  uint64_t more;     /* and so many of those that were not written for just so long */
  uint64_t *cooling; /* extents */
  uint64_t nr_cooling, max_cooling;
  unsigned pages;
  bool flush_needed;
};

static bool
has_l1_bit (const struct state *s, uint64_t e)
{
  return (s->l1[e / 64] >> (e % 64) & 1) != 0;
}

/* For how many ticks was E not written? */
static uint32_t
age_of (struct state *s, uint64_t e)
{
  uint32_t age = atomic_load (&s->tick) - atomic_load (&s->touched[e]);
  return age < OLDEST ? age : OLDEST;
}

/* If too many extents are hot, those that were not written for the longest time cool.  An eighth
 * more than needed do, so that not each first touch needs a round.  Under lock. */
static void
choose_age (struct state *s, struct round *round)
{
  uint64_t counts[OLDEST + 1] = { 0 }, limit = s->hot_limit - s->hot_limit / 4;
  uint64_t over = s->nr_hot > s->hot_limit - s->hot_limit / 8 ? s->nr_hot - limit : 0;

  round->age = OLDEST;
  if (over == 0)
    return;
  for (uint64_t w = 0; w <= (s->layout.nr_extents - 1) / 64; w++)
    for (uint64_t bits = s->l1[w]; bits != 0; bits &= bits - 1)
      counts[age_of (s, w * 64 + (unsigned)__builtin_ctzll (bits))]++;
  while (round->age != 0 && counts[round->age] < over)
    over -= counts[round->age--];
  round->more = over;
}

/* Extent E, as step 1.  Under lock. */
static void
step_1_extent (struct state *s, uint64_t e, struct round *round)
{
  bool has_l1 = has_l1_bit (s, e);
  uint32_t age = age_of (s, e);
  bool extra = age > round->age || (age == round->age && round->more != 0);
  bool cool = has_l1 && (age >= s->idle_ticks || extra);
  uint64_t p = e / s->layout.extents_per_page;
  bool job = s->region != NULL, page_dirty = s->l2_page_dirty[p] || s->recorded_page_dirty[p];

  if (round->nr_cooling == round->max_cooling)
    cool = false;
  bool l2 = cool || !has_l1, flush;
  if (l2 && !page_dirty && round->pages >= MOST_PAGES)
    return;
  enum look is = look_at (s, e, cool, &flush);
  if (is == LOOK_BUSY || (!cool && (has_l1 || is == LOOK_SAME)))
    return;
  round->pages += !page_dirty;
  s->l2_page_dirty[p] |= job;
  s->recorded_page_dirty[p] |= cool; /* a recording's bits change in hot extents only */
  round->flush_needed |= flush;
  if (cool) {
    round->cooling[round->nr_cooling++] = e;
    round->more -= age == round->age && round->more != 0;
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
  choose_age (s, round);
  pthread_mutex_unlock (&s->lock);
  for (uint64_t i = 0; i < n; i++) {
    uint64_t e = (s->cursor + i) % n;
    if (cold_and_clean (s, e))
      continue;
    pthread_mutex_lock (&s->lock);
    bool go_on = atomic_load (&s->active) && s->losing == 0 && s->may_settle
                 && (s->region != NULL || !s->super.job);
    if (go_on)
      step_1_extent (s, e, round);
    pthread_mutex_unlock (&s->lock);
    if (!go_on)
      return;
  }
  s->cursor = round->nr_cooling != 0 ? (round->cooling[round->nr_cooling - 1] + 1) % n : 0;
}

/* ---- 2: the source's disk ---- */

/* Is everything durable there whose fine bits were dropped?  And is what step 1 saw still so? */
static bool
step_2 (struct state *s, const struct round *round)
{
  if (round->flush_needed) {
    s->flush_owed = true;
    s->owed_tick = atomic_load (&s->tick);
  }
  s->flush_owed = s->flush_owed && atomic_load (&s->flushed) <= s->owed_tick;
  if (!s->flush_owed || s->io.sync_disk == NULL)
    return !s->flush_owed;
  uint64_t changes = s->changes;
  pthread_mutex_unlock (&s->io_lock);
  int r = state_sync_disk (s);
  pthread_mutex_lock (&s->io_lock);
  if (r == -1 || s->changes != changes)
    return false;
  s->flush_owed = false;
  return true;
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
  if (any && s->io.sync (s->io.opaque) == -1)
    return state_write_failed (s, "L2");
  s->added = false;
  return 0;
}

/* ---- 5: the L1 bits ---- */

/* Where guests wait, the commit that comes next writes them as well. */
static void
step_5 (struct state *s, const struct round *round)
{
  pthread_mutex_lock (&s->l1_lock);
  pthread_mutex_lock (&s->lock);
  for (uint64_t i = 0; i < round->nr_cooling; i++) {
    uint64_t e = round->cooling[i];
    if (atomic_load (&s->hot[e]) || s->pending[e])
      continue; /* a write came back */
    s->l1[e / 64] &= ~(UINT64_C (1) << (e % 64));
    s->l1_page_dirty[e / (STATE_PAGE_WORDS * 64)] = 1;
    s->nr_hot--;
  }
  bool waited_for = s->nr_pending != 0 && atomic_load (&s->active) && !s->stop;
  pthread_mutex_unlock (&s->lock);
  if (!waited_for)
    state_write_l1 (s);
  pthread_mutex_unlock (&s->l1_lock);
}

/* Extents that were to cool and did not: where their L1 bit stands, they are as hot as before. */
static void
stay_hot (struct state *s, const struct round *round)
{
  pthread_mutex_lock (&s->lock);
  for (uint64_t i = 0; i < round->nr_cooling; i++) {
    uint64_t e = round->cooling[i];
    if (has_l1_bit (s, e) && !s->pending[e])
      atomic_store (&s->hot[e], 1);
  }
  pthread_mutex_unlock (&s->lock);
}

void
state_round (struct state *s)
{
  struct round round = { 0 };

  pthread_mutex_lock (&s->io_lock);
  round.max_cooling = s->layout.nr_extents; /* a first checkpoint may just have set it */
  atomic_fetch_add (&s->tick, 1);
  state_lost_page (s);
  state_write_loss (s);
  if (atomic_load (&s->active))
    round.cooling = malloc ((round.max_cooling + 1) * sizeof *round.cooling);
  if (round.cooling != NULL) {
    state_take_in (s);
    step_1 (s, &round);
    if (!step_2 (s, &round) || step_3 (s) == -1 || step_4 (s) == -1)
      stay_hot (s, &round);
    else
      step_5 (s, &round);
    free (round.cooling);
  }
  pthread_mutex_unlock (&s->io_lock);
}

void *
state_cool (void *opaque)
{
  struct state *s = opaque;
  uint64_t next = clock_ms () + ROUND_MS;

  pthread_mutex_lock (&s->lock);
  while (!s->stop) {
    struct timespec until = clock_timespec (next * (uint64_t)NS_PER_MS);
    if (!s->hurry)
      pthread_cond_timedwait (&s->cool, &s->lock, &until);
    bool due = clock_ms () >= next, hurry = s->hurry;
    s->hurry = false;
    pthread_mutex_unlock (&s->lock);
    if (due) {
      atomic_fetch_add (&s->tick, STATE_TICKS_A_SECOND - 1);
      next = clock_ms () + ROUND_MS;
    }
    if (due || hurry)
      state_round (s);
    pthread_mutex_lock (&s->lock);
  }
  pthread_mutex_unlock (&s->lock);
  return NULL;
}
