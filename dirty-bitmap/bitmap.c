/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Bits, summaries and counters of the shared arrays.
 *
 * Everything is sequentially consistent.  Ranges are worked on in groups: the up to 64 words that
 * share one summary word, so that a hole of 2 GiB costs one summary update for 4096 blocks.
 *
 * Why the clearer looks again: it makes a word zero, a setter sets a bit of that word and the
 * (still set) summary bit, the clearer takes the summary bit away.  Without the second look the
 * setter's bit would never be found again.  What remains is the instant between the two, in which
 * the setter's bit is there and its summary bit is not.  For a search that is harmless; for the
 * last look of a hand-over it is not, so clearers count themselves around that instant
 * (clears_begun, clears_done) and bitmap_empty() gives no positive answer across one.
 *
 * Words are read from memory that another process may scribble over: no value found there is used
 * as an index, and bits behind the last block are masked out wherever a position is computed.
 */

#include "config.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/watch.h"

typedef _Atomic uint64_t aword;

static inline aword *
words_of (const struct region *r, enum region_array a)
{
  return (aword *)((char *)r->hdr + r->geo.array_offset[a]);
}

static inline aword *
summary_of (const struct region *r, enum region_array a)
{
  return (aword *)((char *)r->hdr + r->geo.summary_offset[a]);
}

static inline uint64_t
popcount (uint64_t w)
{
  return (uint64_t)__builtin_popcountll (w);
}

/* Bits LOW to HIGH - 1; 0 <= LOW < HIGH <= 64. */
static inline uint64_t
bits (unsigned low, unsigned high)
{
  return (~UINT64_C (0) << low) & (~UINT64_C (0) >> (64 - high));
}

/* The part of word W that lies in the blocks from FIRST up to, not including, END. */
static inline uint64_t
mask_in_word (uint64_t w, uint64_t first, uint64_t end)
{
  unsigned low = first > w * 64 ? (unsigned)(first - w * 64) : 0;
  unsigned high = end - w * 64 < 64 ? (unsigned)(end - w * 64) : 64;

  return bits (low, high);
}

static inline void
assert_range (const struct region *r, uint64_t first, uint64_t count)
{
  assert (first <= r->geo.nr_blocks && count <= r->geo.nr_blocks - first);
}

static inline void
add_count (struct region *r, enum region_array a, uint64_t n)
{
  if (n > 0)
    atomic_fetch_add (&r->hdr->count[a], (int64_t)n);
}

static inline void
sub_count (struct region *r, enum region_array a, uint64_t n)
{
  if (n > 0)
    atomic_fetch_sub (&r->hdr->count[a], (int64_t)n);
}

/* Take away those of the summary bits MASK whose words are zero. */
static void
clear_summary (struct region *r, enum region_array a, uint64_t group, uint64_t mask)
{
  aword *words = words_of (r, a), *summary = summary_of (r, a);
  uint64_t back = 0;

  mask &= atomic_load (&summary[group]);
  if (mask == 0)
    return;
  atomic_fetch_add (&r->hdr->clears_begun[a], 1);
  atomic_fetch_and (&summary[group], ~mask);
  for (uint64_t m = mask; m != 0; m &= m - 1) {
    unsigned i = (unsigned)__builtin_ctzll (m);

    if (atomic_load (&words[group * 64 + i]) != 0)
      back |= UINT64_C (1) << i;
  }
  if (back != 0)
    atomic_fetch_or (&summary[group], back);
  atomic_fetch_add (&r->hdr->clears_done[a], 1);
}

uint64_t
bitmap_set (struct region *r, enum region_array a, uint64_t first, uint64_t count)
{
  aword *words = words_of (r, a), *summary = summary_of (r, a);
  uint64_t end = first + count, changed = 0;

  assert_range (r, first, count);
  if (count == 0)
    return 0;
  for (uint64_t w = first / 64, last = (end - 1) / 64; w <= last;) {
    uint64_t group = w / 64, touched = 0;

    for (; w <= last && w / 64 == group; w++) {
      uint64_t mask = mask_in_word (w, first, end);

      changed += popcount (~atomic_fetch_or (&words[w], mask) & mask);
      touched |= UINT64_C (1) << (w % 64);
    }
    atomic_fetch_or (&summary[group], touched);
  }
  add_count (r, a, changed);
  return changed;
}

uint64_t
bitmap_clear (struct region *r, enum region_array a, uint64_t first, uint64_t count)
{
  aword *words = words_of (r, a);
  uint64_t end = first + count, changed = 0;

  assert_range (r, first, count);
  if (count == 0)
    return 0;
  for (uint64_t w = first / 64, last = (end - 1) / 64; w <= last;) {
    uint64_t group = w / 64, empty = 0;

    for (; w <= last && w / 64 == group; w++) {
      uint64_t mask = mask_in_word (w, first, end);
      uint64_t old = atomic_load (&words[w]);

      if (old != 0) {
        old = atomic_fetch_and (&words[w], ~mask);
        changed += popcount (old & mask);
      }
      if ((old & ~mask) == 0)
        empty |= UINT64_C (1) << (w % 64);
    }
    clear_summary (r, a, group, empty);
  }
  sub_count (r, a, changed);
  return changed;
}

bool
bitmap_test (const struct region *r, enum region_array a, uint64_t block)
{
  assert_range (r, block, 1);
  return (atomic_load (&words_of (r, a)[block / 64]) >> (block % 64)) & 1;
}

bool
bitmap_test_any (const struct region *r, enum region_array a, uint64_t first, uint64_t count)
{
  aword *words = words_of (r, a);
  uint64_t end = first + count;

  assert_range (r, first, count);
  if (count == 0)
    return false;
  for (uint64_t w = first / 64; w <= (end - 1) / 64; w++)
    if (atomic_load (&words[w]) & mask_in_word (w, first, end))
      return true;
  return false;
}

/* The bits of word W from block FROM on, without what lies behind the last block. */
static inline uint64_t
word_from (const struct region *r, enum region_array a, uint64_t w, uint64_t from)
{
  return atomic_load (&words_of (r, a)[w]) & mask_in_word (w, from, r->geo.nr_blocks);
}

bool
bitmap_next_set (const struct region *r, enum region_array a, uint64_t from, uint64_t end,
                 uint64_t *found)
{
  aword *words = words_of (r, a), *summary = summary_of (r, a);
  uint64_t first = from / 64;

  if (end > r->geo.nr_blocks)
    end = r->geo.nr_blocks;
  if (from >= end)
    return false;
  uint64_t last = (end - 1) / 64;
  for (uint64_t group = first / 64; group <= last / 64; group++) {
    uint64_t s = atomic_load (&summary[group]) & mask_in_word (group, first, last + 1);

    for (; s != 0; s &= s - 1) {
      uint64_t w = group * 64 + (unsigned)__builtin_ctzll (s);
      uint64_t v = atomic_load (&words[w]) & mask_in_word (w, from, end);

      if (v != 0) {
        *found = w * 64 + (unsigned)__builtin_ctzll (v);
        return true;
      }
    }
  }
  return false;
}

bool
bitmap_next_run (const struct region *r, enum region_array a, uint64_t from, uint64_t max,
                 uint64_t *first, uint64_t *count)
{
  uint64_t start;

  assert (max > 0);
  if (!bitmap_next_set (r, a, from, UINT64_MAX, &start))
    return false;
  uint64_t limit = max < r->geo.nr_blocks - start ? start + max : r->geo.nr_blocks;
  uint64_t end = start + 1;
  while (end < limit) {
    uint64_t clear = ~atomic_load (&words_of (r, a)[end / 64]) & bits (end % 64, 64);

    if (clear != 0) {
      end = end / 64 * 64 + (unsigned)__builtin_ctzll (clear);
      break;
    }
    end = (end / 64 + 1) * 64;
  }
  *first = start;
  *count = (end < limit ? end : limit) - start;
  return true;
}

uint64_t
bitmap_count (const struct region *r, enum region_array a)
{
  int64_t n = atomic_load (&r->hdr->count[a]);

  if (n < 0)
    return 0;
  return (uint64_t)n < r->geo.nr_blocks ? (uint64_t)n : r->geo.nr_blocks;
}

bool
bitmap_empty (const struct region *r, enum region_array a)
{
  uint64_t block, begun;

  /* In this order: clears that have begun by the second look had all ended by the first. */
  uint64_t done = atomic_load (&r->hdr->clears_done[a]);
  begun = atomic_load (&r->hdr->clears_begun[a]);
  if (begun != done)
    return false;
  if (bitmap_next_set (r, a, 0, UINT64_MAX, &block))
    return false;
  return atomic_load (&r->hdr->clears_begun[a]) == begun;
}

bool
bitmap_or_words (const struct region *r, enum region_array a, uint64_t w, uint64_t count,
                 uint64_t *words)
{
  aword *summary = summary_of (r, a);

  /* In this order, as in bitmap_empty(). */
  uint64_t done = atomic_load (&r->hdr->clears_done[a]);
  uint64_t begun = atomic_load (&r->hdr->clears_begun[a]);
  if (begun != done)
    return false;
  for (uint64_t i = 0; i < count; i++, w++)
    if ((atomic_load (&summary[w / 64]) >> (w % 64) & 1) != 0)
      words[i] |= word_from (r, a, w, 0);
  return atomic_load (&r->hdr->clears_begun[a]) == begun;
}

void
bitmap_set_words (struct region *r, enum region_array a, uint64_t w, uint64_t count,
                  const uint64_t *words)
{
  aword *out = words_of (r, a), *summary = summary_of (r, a);
  uint64_t changed = 0;

  assert (w <= r->geo.nr_words && count <= r->geo.nr_words - w);
  for (uint64_t i = 0; i < count; i++, w++) {
    uint64_t v = words[i];

    if (v == 0)
      continue;
    v &= mask_in_word (w, 0, r->geo.nr_blocks);
    changed += popcount (~atomic_fetch_or (&out[w], v) & v);
    atomic_fetch_or (&summary[w / 64], UINT64_C (1) << (w % 64));
  }
  add_count (r, a, changed);
}

void
bitmap_clear_all (struct region *r, enum region_array a)
{
  aword *words = words_of (r, a), *summary = summary_of (r, a);
  uint64_t changed = 0;

  for (uint64_t group = 0; group < r->geo.nr_summary; group++) {
    uint64_t s = atomic_load (&summary[group]) & mask_in_word (group, 0, r->geo.nr_words);

    for (uint64_t m = s; m != 0; m &= m - 1)
      changed += popcount (atomic_exchange (&words[group * 64 + (unsigned)__builtin_ctzll (m)], 0));
    clear_summary (r, a, group, s);
  }
  sub_count (r, a, changed);
}

uint64_t
bitmap_mark (struct region *r, uint64_t offset, uint64_t length)
{
  uint64_t size = r->geo.disk_size;

  if (length == 0 || offset >= size)
    return 0;
  uint64_t end = length < size - offset ? offset + length : size;
  uint64_t first = offset >> r->geo.block_shift;
  uint64_t changed
      = bitmap_set (r, REGION_DIRTY, first, ((end - 1) >> r->geo.block_shift) + 1 - first);
  if (changed > 0)
    atomic_fetch_add (&r->hdr->dirtied_total, changed);
  watch_marked (r);
  return changed;
}

/* The next words of array A, from word W on, that have memory behind them: *W to *END.  False if
 * there are no more.  Reading any other page of the memfd would allocate it. */
static bool
next_allocated (const struct region *r, enum region_array a, uint64_t *w, uint64_t *end)
{
  off_t base = (off_t)r->geo.array_offset[a];
  off_t limit = base + (off_t)(r->geo.nr_words * 8);

  if (*w >= r->geo.nr_words)
    return false;
  *end = r->geo.nr_words;
  off_t data = lseek (r->fd, base + (off_t)(*w * 8), SEEK_DATA);
  if (data == -1)
    return errno != ENXIO; /* if it cannot be asked, everything is looked at */
  if (data >= limit)
    return false;
  off_t hole = lseek (r->fd, data, SEEK_HOLE);
  if (hole != -1 && hole < limit)
    *end = (uint64_t)(hole - base) / 8;
  *w = (uint64_t)(data - base) / 8;
  return true;
}

void
bitmap_end_clears (struct region *r)
{
  for (unsigned a = 0; a < REGION_NR_ARRAYS; a++) {
    uint64_t begun = atomic_load (&r->hdr->clears_begun[a]), w = 0, end;

    if (atomic_load (&r->hdr->clears_done[a]) == begun)
      continue;
    while (next_allocated (r, a, &w, &end))
      for (; w < end; w++)
        if (word_from (r, a, w, 0) != 0)
          atomic_fetch_or (&summary_of (r, a)[w / 64], UINT64_C (1) << (w % 64));
    atomic_store (&r->hdr->clears_done[a], begun);
  }
}

void
bitmap_or (struct region *dst, enum region_array to, const struct region *src,
           enum region_array from)
{
  aword *out = words_of (dst, to), *summary = summary_of (dst, to);
  uint64_t w = 0, end, changed = 0;

  assert (memcmp (&dst->geo, &src->geo, sizeof dst->geo) == 0);
  while (next_allocated (src, from, &w, &end)) {
    for (; w < end; w++) {
      uint64_t v = word_from (src, from, w, 0);

      if (v == 0)
        continue;
      changed += popcount (~atomic_fetch_or (&out[w], v) & v);
      atomic_fetch_or (&summary[w / 64], UINT64_C (1) << (w % 64));
    }
  }
  add_count (dst, to, changed);
}
