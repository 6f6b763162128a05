/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Bit operations on the arrays of a shared region, safe between threads and processes without
 * a lock.
 *
 * Two levels: a summary bit says that its 64-bit word may be other than zero.
 *   setter:   word |= bits;  summary |= bit           (both unconditional, sequentially consistent)
 *   clearer:  word &= ~bits; if the word became zero: summary &= ~bit; if word != 0: summary |= bit
 * A summary bit may thus stand for a word that is empty, but no non-empty word stays without its
 * summary bit once the setter and every clearer have returned.  In between, and for ever if a
 * clearer is killed there, a word may lack its summary bit: bitmap_empty() notices and does not say
 * "empty", bitmap_or() looks at the words themselves, bitmap_next_run() finds the bit in its next
 * pass, and bitmap_end_clears() mends it.  There is no "is it set already?" shortcut: without a
 * fence before the look it loses updates (rule R2).
 *
 * Units are blocks.  FIRST + COUNT must lie within the disk (asserted).  COUNT may be 0.
 */

#ifndef NBDMIRROR_DIRTY_BITMAP_BITMAP_H
#define NBDMIRROR_DIRTY_BITMAP_BITMAP_H

#include "dirty-bitmap/region.h"

/* Set COUNT bits from FIRST.  Returns how many were clear before.  O(words). */
uint64_t bitmap_set (struct region *r, enum region_array a, uint64_t first, uint64_t count);

/* Clear COUNT bits from FIRST.  Returns how many were set before.  O(words). */
uint64_t bitmap_clear (struct region *r, enum region_array a, uint64_t first, uint64_t count);

/* Set the bits of WORDS, which are the COUNT 64-bit words from word W on.  Bits beyond the last
 * block do not matter.  O(words), and a word without a bit costs a look only. */
void bitmap_set_words (struct region *r, enum region_array a, uint64_t w, uint64_t count,
                       const uint64_t *words);

/* Is this bit set? */
bool bitmap_test (const struct region *r, enum region_array a, uint64_t block);

/* Is any of COUNT bits from FIRST set?  O(words). */
bool bitmap_test_any (const struct region *r, enum region_array a, uint64_t first, uint64_t count);

/* Find the first set bit in [FROM, END) (or up to the last block, if that comes first): stores it
 * in *FOUND. Returns false if there is none.  O(summary words of the range + words touched). */
bool bitmap_next_set (const struct region *r, enum region_array a, uint64_t from, uint64_t end,
                      uint64_t *found);

/* Find the first run of set bits at or after FROM: stores its start in *FIRST and its length, at
 * most MAX (> 0), in *COUNT.  A run longer than MAX is cut.  Returns false if there is none.
 * O(summary words skipped + words touched).  Bits set behind its back during the call may be
 * missed. */
bool bitmap_next_run (const struct region *r, enum region_array a, uint64_t from, uint64_t max,
                      uint64_t *first, uint64_t *count);

/* The counter of set bits, cut to 0 and the number of blocks.  O(1); exactness: see struct
 * region_header. */
uint64_t bitmap_count (const struct region *r, enum region_array a);

/* No bit set?  Looks at the bits through the summary and trusts no counter.  True only if no bit
 * whose setter had returned before the call stayed set throughout it; while clearers run it may say
 * false of an empty array.  O(summary). */
bool bitmap_empty (const struct region *r, enum region_array a);

/* OR the COUNT 64-bit words from word W on into WORDS.  Looks at the bits through the summary, so
 * that untouched memory stays untouched.  False, and WORDS may lack bits, if a clearer was at work:
 * try again later.  A bit whose setter had returned before the call, and that stayed set throughout
 * it, is there otherwise. */
bool bitmap_or_words (const struct region *r, enum region_array a, uint64_t w, uint64_t count,
                      uint64_t *words);

/* Clear every bit of the array, and correct the counter by what was cleared.  O(summary). */
void bitmap_clear_all (struct region *r, enum region_array a);

/* Every clearer has ended, some perhaps within a clear: make the summaries whole, so that
 * bitmap_empty() and bitmap_or_words() can say yes again.  Setters may be at work.  O(arrays) if
 * there is nothing to mend, else O(words of allocated pages). */
void bitmap_end_clears (struct region *r);

/* Mark the guest's mutation of LENGTH bytes at OFFSET: rounds outwards to blocks (R1), cuts at
 * the end of the disk, sets dirty bits, adds to count and dirtied_total.  Returns the number of
 * blocks that turned from clean to dirty.  LENGTH 0 does nothing. */
uint64_t bitmap_mark (struct region *r, uint64_t offset, uint64_t length);

/* OR the bits of array FROM of SRC into array TO of DST (which may be the same region), with exact
 * counters.  Both must have the same geometry (asserted).  Reads every word of SRC that was ever
 * touched and not its summary, which a killed clearer may have left wrong.  O(words of allocated
 * pages). */
void bitmap_or (struct region *dst, enum region_array to, const struct region *src,
                enum region_array from);

#endif
