/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Claim sets: entry counts, turns, release and revocation (rules R4, R5, R12).
 *
 * A set is in one of these states; only the flusher moves it, and one set is always active:
 *
 *   active    copiers enter it, claims are added
 *   draining  no longer active; copiers that are counted in it end their requests
 *   drained   nobody is counted in it: its claims are all answered, a FLUSH covers them
 *   empty     released; may become active again
 *
 * The second look in claim_enter() is what makes "drained" last: a copier that read the active set
 * before a turn and counted itself after it would otherwise claim into a set being flushed.
 *
 * The order of dirty and claimed is array by array: first every claimed bit of the run and the
 * counter, then every dirty bit and its counter.  Whoever looks at dirty first and at claimed next
 * (bits or counters) finds every block, since a block leaves dirty only when it is in claimed.
 * REGION_DIRTY is therefore the first of the arrays.
 */

#include "config.h"

#include <assert.h>
#include <sched.h>
#include <string.h>

#include "base/clock.h"
#include "dirty-bitmap/claims.h"
#include "dirty-bitmap/samples.h"

unsigned
claim_enter (struct region *r)
{
  for (;;) {
    unsigned set = atomic_load (&r->hdr->active_set) & 1;

    atomic_fetch_add (&r->hdr->entries[set], 1);
    if ((atomic_load (&r->hdr->active_set) & 1) == set)
      return set;
    atomic_fetch_sub (&r->hdr->entries[set], 1);
  }
}

bool
claim_leave (struct region *r, unsigned set)
{
  assert (set < 2);
  return atomic_fetch_sub (&r->hdr->entries[set], 1) == 1;
}

uint64_t
claim_run (struct region *r, unsigned set, uint64_t first, uint64_t count)
{
  assert (set < 2);
  bitmap_set (r, claim_array (set), first, count);
  return bitmap_clear (r, REGION_DIRTY, first, count);
}

uint64_t
claim_mixed_run (struct region *r, unsigned set, uint64_t first, uint64_t count)
{
  uint64_t clean = 0, at = first, end = first + count;

  assert (count <= 64);
  while (at < end) {
    uint64_t dirty = end, n = 0;
    bitmap_next_set (r, REGION_DIRTY, at, end, &dirty);
    if (dirty > at) {
      n = dirty - at;
      /* One that has turned dirty since that look is claimed as such. */
      if (claim_run (r, set, at, n) == 0)
        clean |= (n == 64 ? UINT64_MAX : (UINT64_C (1) << n) - 1) << (at - first);
    } else {
      if (!bitmap_next_run (r, REGION_DIRTY, at, end - at, &dirty, &n) || dirty != at)
        n = 1; /* never: only the worker clears dirty bits */
      claim_run (r, set, at, n);
    }
    at += n;
  }
  return clean;
}

void
claim_give_back (struct region *r, unsigned set, uint64_t first, uint64_t count)
{
  assert (set < 2);
  bitmap_set (r, REGION_DIRTY, first, count);
  atomic_fetch_add (&r->hdr->given_back, 1); /* between the two: see claims_all_empty */
  bitmap_clear (r, claim_array (set), first, count);
}

bool
claim_turn (struct region *r, unsigned *old)
{
  unsigned active = atomic_load (&r->hdr->active_set) & 1, other = 1 - active;

  if (!claim_drained (r, other) || !bitmap_empty (r, claim_array (other)))
    return false;
  atomic_store (&r->hdr->active_set, other);
  *old = active;
  return true;
}

bool
claim_drained (const struct region *r, unsigned set)
{
  assert (set < 2);
  return atomic_load (&r->hdr->entries[set]) == 0;
}

void
claim_release (struct region *r, unsigned set)
{
  assert (set < 2);
  bitmap_clear_all (r, claim_array (set));
}

/* Dirty before claimed is right for blocks on their way forward, and would miss one on its way back
 * (claimed to dirty, between the two looks); the counter of those tells. */
bool
claims_all_empty (const struct region *r)
{
  uint64_t given_back = atomic_load (&r->hdr->given_back);

  for (int a = REGION_DIRTY; a <= REGION_QUARANTINE; a++) /* visited blocks are no work left */
    if (!bitmap_empty (r, (enum region_array)a))
      return false;
  return atomic_load (&r->hdr->given_back) == given_back;
}

bool
claims_or_words (const struct region *r, uint64_t w, uint64_t count, uint64_t *words)
{
  uint64_t given_back = atomic_load (&r->hdr->given_back);

  for (int a = REGION_DIRTY; a <= REGION_QUARANTINE; a++)
    if (!bitmap_or_words (r, (enum region_array)a, w, count, words))
      return false;
  return atomic_load (&r->hdr->given_back) == given_back;
}

bool
claims_or_all (const struct region *r, uint64_t *words, uint64_t limit_ms)
{
  enum { STEP = 64 };
  uint64_t begun = clock_ms ();

  for (uint64_t w = 0; w < r->geo.nr_words; w += STEP) {
    uint64_t count = r->geo.nr_words - w < STEP ? r->geo.nr_words - w : STEP;
    while (!claims_or_words (r, w, count, words + w)) {
      if (clock_ms () - begun >= limit_ms)
        return false;
      sched_yield (); /* to a clearer, which hides a block for a moment */
    }
  }
  return true;
}

void
claims_revoke (struct region *r)
{
  atomic_fetch_add (&r->hdr->session, 1);
  for (unsigned set = 0; set < 2; set++) {
    bitmap_or (r, REGION_QUARANTINE, r, claim_array (set));
    bitmap_or (r, REGION_DIRTY, r, claim_array (set));
  }
  /* As in claim_give_back().  Quarantine shows these blocks to a look as well, but only until the
   * next session has copied them. */
  atomic_fetch_add (&r->hdr->given_back, 1);
  for (unsigned set = 0; set < 2; set++) {
    bitmap_clear_all (r, claim_array (set));
    atomic_store (&r->hdr->entries[set], 0);
  }
}

void
claims_quarantine_from (struct region *to, const struct region *old)
{
  for (unsigned set = 0; set < 2; set++)
    bitmap_or (to, REGION_QUARANTINE, old, claim_array (set));
  bitmap_or (to, REGION_QUARANTINE, old, REGION_QUARANTINE);
}

void
region_merge (struct region *fresh, const struct region *old)
{
  assert (memcmp (&fresh->geo, &old->geo, sizeof fresh->geo) == 0);
  claims_quarantine_from (fresh, old);
  for (unsigned set = 0; set < 2; set++)
    bitmap_or (fresh, REGION_DIRTY, old, claim_array (set));
  bitmap_or (fresh, REGION_DIRTY, old, REGION_DIRTY);
  bitmap_or (fresh, REGION_VISITED, old, REGION_VISITED);
  atomic_store (&fresh->hdr->session, atomic_load (&old->hdr->session) + 1);
  atomic_fetch_add (&fresh->hdr->dirtied_total, atomic_load (&old->hdr->dirtied_total));
  atomic_fetch_add (&fresh->hdr->sent_bytes, atomic_load (&old->hdr->sent_bytes));
  atomic_fetch_add (&fresh->hdr->zero_bytes, atomic_load (&old->hdr->zero_bytes));
  atomic_fetch_add (&fresh->hdr->skipped_bytes, atomic_load (&old->hdr->skipped_bytes));
  atomic_fetch_add (&fresh->hdr->saved_bytes, atomic_load (&old->hdr->saved_bytes));
  samples_copy (fresh, old);
}
