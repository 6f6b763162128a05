/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The order of copying.  See pass.h.
 */

#include "config.h"

#include <string.h>

#include "mirror/engine/pass.h"

void
pass_init (struct pass *p)
{
  memset (p, 0, sizeof *p);
}

void
pass_restart (struct pass *p)
{
  p->cursor = 0;
  p->hint_start = p->hint_end = 0;
  p->nr_hints = 0;
}

/* Cut [*FIRST, +*COUNT) at the first busy block.  If *FIRST itself is busy, move behind that range
 * and return its number: look again from there.  Else 0. */
static uint64_t
avoid_busy (const struct pass *p, uint64_t *first, uint64_t *count)
{
  for (unsigned i = 0; i < p->nr_busy; i++) {
    uint64_t start = p->busy[i].first, end = start + p->busy[i].count;
    if (start <= *first && *first < end) {
      *first = end;
      return p->busy[i].number;
    }
    if (*first < start && start < *first + *count)
      *count = start - *first;
  }
  return 0;
}

bool
pass_free_run (const struct pass *p, const struct region *r, uint64_t from, uint64_t end,
               uint64_t max, uint64_t *first, uint64_t *count)
{
  while (from < end && bitmap_next_set (r, REGION_DIRTY, from, end, &from)) {
    if (!bitmap_next_run (r, REGION_DIRTY, from, max < end - from ? max : end - from, first, count))
      return false;
    from = *first;
    /* A write that waits gives a bad block no more attempts than the passes give it. */
    if (avoid_busy (p, &from, count) == 0 && unreadable_may_read (&p->unreadable, 0, &from, count))
      return true;
  }
  return false;
}

/* Is block FIRST in quarantine?  Cut the run where that changes. */
static bool
cut_at_quarantine (const struct region *r, uint64_t first, uint64_t *count)
{
  uint64_t q, n;
  /* Only as far as the run goes: behind it the whole summary of a large disk may be empty. */
  if (!bitmap_next_set (r, REGION_QUARANTINE, first, first + *count, &q))
    return false;
  if (q > first) {
    *count = q - first;
    return false;
  }
  if (bitmap_next_run (r, REGION_QUARANTINE, first, *count, &q, &n) && q == first)
    *count = n;
  return true;
}

/* Where does the quarantine that FIRST is in end?  It may be the whole disk, so it is found in one
 * step. */
static uint64_t
quarantine_end (const struct region *r, uint64_t first)
{
  uint64_t q, n;
  if (bitmap_next_run (r, REGION_QUARANTINE, first, r->geo.nr_blocks, &q, &n) && q == first)
    return first + n;
  return first + 1; /* it has just left */
}

/* The kinds of extents.  What lies in a lower layer is one kind, whatever it reads as. */
enum hint { HINT_DATA, HINT_ZERO, HINT_LOWER };

static enum hint
kind_of (const struct endpoint_extent *x)
{
  return x->lower ? HINT_LOWER : x->zero ? HINT_ZERO : HINT_DATA;
}

/* How many whole blocks from FIRST on lie in extents of *KIND (set here)?  A block that is of two
 * kinds counts as data, and so does a stretch of zeroes, or in a lower layer, that is shorter than
 * MIN_BYTES. */
static uint64_t
hint_run (const struct pass *p, const struct region_geometry *geo, uint64_t first,
          uint64_t min_bytes, enum hint *kind)
{
  uint64_t pos = first << geo->block_shift, at = p->hint_start, data_end = pos;
  *kind = HINT_DATA;
  for (unsigned i = 0; i < p->nr_hints;) {
    uint64_t start = at;
    enum hint k = kind_of (&p->hints[i]);
    for (; i < p->nr_hints && kind_of (&p->hints[i]) == k; i++)
      at += p->hints[i].length;
    uint64_t end = at;
    if (end <= pos)
      continue;
    if (start < pos)
      start = pos;
    /* Whole blocks inside: the disk's last block may be short. */
    uint64_t b0 = (start + geo->block_size - 1) >> geo->block_shift;
    uint64_t b1 = end >= geo->disk_size ? geo->nr_blocks : end >> geo->block_shift;
    bool usable = k != HINT_DATA && b1 > b0 && (end - start >= min_bytes || end >= geo->disk_size);
    if (usable && b0 == first) {
      *kind = k;
      return b1 - b0;
    }
    if (usable)
      return b0 - first;
    data_end = end;
  }
  uint64_t n = ((data_end + geo->block_size - 1) >> geo->block_shift) - first;
  return n > 0 ? n : 1;
}

/* Blocks that were visited are copied whatever layer holds them (difference.h).  Is FIRST one?  Cut
 * the run where that changes. */
static bool
cut_at_visited (const struct region *r, uint64_t first, uint64_t *count)
{
  uint64_t v, n;
  if (!bitmap_next_set (r, REGION_VISITED, first, first + *count, &v))
    return false;
  if (v > first) {
    *count = v - first;
    return false;
  }
  if (bitmap_next_run (r, REGION_VISITED, first, *count, &v, &n) && v == first)
    *count = n;
  return true;
}

/* How far does the run at FIRST go, up to MAX blocks?  It is known to begin there, neither busy nor
 * in quarantine. */
static uint64_t
whole_run (const struct pass *p, const struct region *r, uint64_t first, uint64_t max)
{
  uint64_t at, count;
  if (!bitmap_next_run (r, REGION_DIRTY, first, max, &at, &count) || at != first)
    return 1; /* never: only we clear dirty bits */
  avoid_busy (p, &at, &count);
  cut_at_quarantine (r, first, &count);
  return count;
}

/* Of MAX blocks from FIRST on, how many can be copied now as ordinary data?  FIRST is one. */
static uint64_t
plain_run (const struct pass *p, const struct region *r, const struct pass_options *o,
           uint64_t first, uint64_t max)
{
  uint64_t at = first, count = max;

  avoid_busy (p, &at, &count);
  cut_at_quarantine (r, first, &count);
  unreadable_may_read (&p->unreadable, o->now_ns, &at, &count);
  return count;
}

/* COUNT blocks from FIRST on are dirty, and go as one request.  How many blocks is it with those
 * near them, of at most MAX?  At most half of the blocks are clean, so that no pass sends more than
 * twice of what it must. */
static uint64_t
with_neighbours (const struct pass *p, const struct region *r, const struct pass_options *o,
                 uint64_t first, uint64_t count, uint64_t max)
{
  uint64_t clean = 0;

  if (max > r->geo.nr_blocks - first)
    max = r->geo.nr_blocks - first;
  if (count < max)
    max = plain_run (p, r, o, first, max);
  while (count < max) {
    uint64_t end = first + count, look = o->max_gap + 1, at, n;
    if (look > max - count)
      look = max - count;
    if (!bitmap_next_set (r, REGION_DIRTY, end, end + look, &at)
        || clean + (at - end) > count - clean)
      break;
    if (!bitmap_next_run (r, REGION_DIRTY, at, first + max - at, &at, &n) || at >= end + look)
      break;
    clean += at - end;
    count = at + n - first;
  }
  return count;
}

static enum pass_kind
find_next (const struct pass *p, const struct region *r, const struct pass_options *o,
           uint64_t *first, uint64_t *count)
{
  const struct region_geometry *geo = &r->geo;
  /* Long runs are counted only where their length matters: not for each request for data. */
  uint64_t max = o->min_ask > o->max_data ? o->min_ask : o->max_data;
  uint64_t from = p->cursor;

  for (;;) {
    if (from >= geo->nr_blocks || !bitmap_next_run (r, REGION_DIRTY, from, max, first, count))
      return PASS_END;
    from = *first;
    uint64_t number = avoid_busy (p, &from, count);
    if (number != 0 && number <= o->wait_number)
      return PASS_WAIT;
    if (number != 0 || !unreadable_may_read (&p->unreadable, o->now_ns, &from, count))
      continue;
    if (cut_at_quarantine (r, *first, count)) {
      if (!o->quarantine_ready) {
        from = quarantine_end (r, *first);
        continue;
      }
      if (o->verify_full)
        return PASS_WAIT;
      if (*count > o->max_data)
        *count = o->max_data;
      return PASS_VERIFY;
    }
    break;
  }

  uint64_t pos = *first << geo->block_shift;
  bool hinted = pos >= p->hint_start && pos < p->hint_end;
  if (!hinted && o->min_ask && *count >= o->min_ask) {
    *count = whole_run (p, r, *first, o->max_ask > max ? o->max_ask : max);
    return PASS_ASK;
  }
  if (hinted) {
    enum hint kind;
    uint64_t n = hint_run (p, geo, *first, o->min_ask << geo->block_shift, &kind);
    if (kind == HINT_LOWER && cut_at_visited (r, *first, &n))
      kind = HINT_DATA;
    if (kind != HINT_DATA) {
      if (n > o->max_zero)
        n = o->max_zero;
      *count = n > *count ? whole_run (p, r, *first, n) : n;
      return PASS_ZERO;
    }
    if (n < *count)
      *count = n;
    if (n < max)
      max = n;
  }
  if (max > o->max_data)
    max = o->max_data;
  if (*count > max)
    *count = max;
  if (o->max_gap > 0 && o->longest == 0)
    *count = with_neighbours (p, r, o, *first, *count, max);
  return PASS_DATA;
}

enum pass_kind
pass_next (const struct pass *p, const struct region *r, const struct pass_options *o,
           uint64_t *first, uint64_t *count)
{
  enum pass_kind kind = find_next (p, r, o, first, count);
  bool buffer = kind == PASS_DATA || kind == PASS_VERIFY || kind == PASS_ZERO;
  return buffer && o->longest != 0 && *count > o->longest ? PASS_LONG : kind;
}

bool
pass_busy_add (struct pass *p, uint64_t first, uint64_t count)
{
  if (p->nr_busy == PASS_MAX_BUSY)
    return false;
  p->busy[p->nr_busy++] = (struct pass_range){ first, count, ++p->last_number };
  return true;
}

bool
pass_busy_any (const struct pass *p, uint64_t first, uint64_t count)
{
  for (unsigned i = 0; i < p->nr_busy; i++)
    if (p->busy[i].first < first + count && first < p->busy[i].first + p->busy[i].count)
      return true;
  return false;
}

bool
pass_busy_dirty (const struct pass *p, const struct region *r)
{
  uint64_t found;

  for (unsigned i = 0; i < p->nr_busy; i++)
    if (bitmap_next_set (r, REGION_DIRTY, p->busy[i].first, p->busy[i].first + p->busy[i].count,
                         &found))
      return true;
  return false;
}

bool
pass_busy_since (const struct pass *p, uint64_t number)
{
  for (unsigned i = 0; i < p->nr_busy; i++)
    if (p->busy[i].number <= number)
      return true;
  return false;
}

void
pass_busy_remove (struct pass *p, uint64_t first)
{
  for (unsigned i = 0; i < p->nr_busy; i++)
    if (p->busy[i].first == first) {
      p->busy[i] = p->busy[--p->nr_busy];
      return;
    }
}

void
pass_set_hints (struct pass *p, uint64_t offset, uint64_t length,
                const struct endpoint_extent *extents, unsigned nr)
{
  p->hint_pending = false;
  p->hint_start = offset;
  p->nr_hints = 0;
  if (nr == 0) {
    p->hints[p->nr_hints++] = (struct endpoint_extent){ .length = length };
    p->hint_end = offset + length;
    return;
  }
  uint64_t end = offset;
  for (unsigned i = 0; i < nr && i < PASS_MAX_HINTS; i++) {
    p->hints[p->nr_hints++] = extents[i];
    end += extents[i].length;
  }
  p->hint_end = end;
}
