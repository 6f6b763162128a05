/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Claims: what a copier holds between clearing a block's dirty bit and the destination's flush
 * (rule R4).  Two claim sets take turns, so that a flush releases only blocks whose write was
 * answered before the flush was sent, while copying goes on in the other set:
 *
 *   copier:  s = claim_enter()          counted in s, and s is still active after counting
 *            claim_run(s, …)            set claimed, then clear dirty
 *            read source, write destination, wait for the reply
 *            claim_leave(s)
 *   flusher: claim_turn(&old)           refused until the inactive set is empty
 *            wait for claim_drained(old)
 *            FLUSH, wait for the reply
 *            claim_release(old)         empties it: those blocks are safe at the destination
 *
 * If anything goes wrong: claims_revoke() after all copiers have stopped (rule R5).
 * Order everywhere: what protects a block is set before what protected it so far is cleared,
 * bits and counters both, so that no look at any instant finds a block in none of the arrays.
 */

#ifndef NBDMIRROR_DIRTY_BITMAP_CLAIMS_H
#define NBDMIRROR_DIRTY_BITMAP_CLAIMS_H

#include "dirty-bitmap/bitmap.h"

/* The array of claim set SET (0 or 1). */
static inline enum region_array
claim_array (unsigned set)
{
  return set == 0 ? REGION_CLAIMED_A : REGION_CLAIMED_B;
}

/* Count the caller into the active claim set and return that set.  Counts, then looks again
 * whether the set is still active; else undoes it and tries the other.  An undone entry wakes
 * nobody: a flusher that waits for claim_drained() must look again after a few milliseconds by
 * itself. */
unsigned claim_enter (struct region *r);

/* Undo claim_enter. Returns true if the set's count fell to 0 (the flusher may be waiting). */
bool claim_leave (struct region *r, unsigned set);

/* Claim COUNT blocks from FIRST into SET: sets the claimed bits (and counter), then clears the
 * dirty bits.  Returns how many dirty bits were cleared.  The caller is counted in SET. */
uint64_t claim_run (struct region *r, unsigned set, uint64_t first, uint64_t count);

/* The same for a run of at most 64 blocks of which some may be clean: they are sent along between
 * dirty ones, and protected like these.  Returns a bit for each block that was clean, bit 0 for
 * FIRST. */
uint64_t claim_mixed_run (struct region *r, unsigned set, uint64_t first, uint64_t count);

/* Give a run back that was claimed by the caller and not, or not successfully, copied (R7): sets
 * dirty, then clears the claimed bits of SET.  The caller is still counted in SET. */
void claim_give_back (struct region *r, unsigned set, uint64_t first, uint64_t count);

/* Turn: make the other set active, and store the one that was in *OLD.  Returns false, and does
 * nothing, if the other set still holds claims or entries.  One flusher at a time. */
bool claim_turn (struct region *r, unsigned *old);

/* Is nobody counted in SET? */
bool claim_drained (const struct region *r, unsigned set);

/* Empty SET after a successful destination FLUSH that was sent when SET was drained. */
void claim_release (struct region *r, unsigned set);

/* Are dirty, both claim sets and quarantine all empty?  The look at the arrays in rule R3: bits,
 * not counters, and in the order that finds a block which is being claimed (dirty first); a block
 * given back or revoked meanwhile makes it false.  The caller looks at in-flight before and at the
 * session after.  While others clear bits it may say false though nothing is left: ask again. */
bool claims_all_empty (const struct region *r);

/* OR what is dirty, claimed or in quarantine into WORDS, which are the COUNT 64-bit words from word
 * W on: what the destination may lack.  Arrays in the order that finds a block which is being
 * claimed.  False, and WORDS may lack bits, if a block was given back meanwhile, which may have
 * been seen in neither array, or if a clearer was at work: try again later. */
bool claims_or_words (const struct region *r, uint64_t w, uint64_t count, uint64_t *words);

/* The same for the whole disk, while others claim and release: in small steps, since no block has
 * to be seen at the same instant as another.  False: that took longer than LIMIT_MS. */
bool claims_or_all (const struct region *r, uint64_t *words, uint64_t limit_ms);

/* End of a session (R5): session number up; both claim sets into quarantine and into dirty; then
 * both sets emptied and entry counts zeroed.  All copiers of this process must have stopped. */
void claims_revoke (struct region *r);

/* Put everything that requests of OLD's job may still hit at the destination, its claims and its
 * quarantine, into TO's quarantine (R12).  Same geometry (asserted). */
void claims_quarantine_from (struct region *to, const struct region *old);

/* Take over everything the OLD region still knows, into FRESH, which the filter is already marking:
 * dirty | claimed -> dirty, claimed | quarantine -> quarantine, visited -> visited, session = OLD's
 * + 1; dirtied_total, sent_bytes, zero_bytes, skipped_bytes, saved_bytes and samples are carried
 * over.  The old worker's process has ended.  Same geometry (asserted). */
void region_merge (struct region *fresh, const struct region *old);

#endif
