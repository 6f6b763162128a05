/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Was a run of blocks left alone?  See untouched.h.
 */

#include "config.h"

#include <assert.h>
#include <string.h>

#include "base/clock.h"
#include "mirror/engine/internal.h"
#include "mirror/engine/allowance.h"
#include "mirror/engine/untouched.h"

static void
touch (struct untouched *u, uint64_t block)
{
  u->touched[block / 64] |= UINT64_C (1) << block % 64;
}

bool
untouched_is (const struct untouched *u, uint64_t block)
{
  return !(u->touched[block / 64] & UINT64_C (1) << block % 64);
}

/* Note the blocks that have something before them.  Blocks of an array before the last go to a
 * later one, or back to the first: a block on its way is found in one of them, or was noted by
 * untouched_taken(), or is found when the run is ended. */
static void
note_unclean (struct engine *e, struct untouched *u)
{
  for (int a = REGION_DIRTY; a <= REGION_QUARANTINE; a++) {
    enum region_array array = (enum region_array)a;
    /* By the bits: the summary may be late for an instant. */
    if (!bitmap_test_any (e->region, array, u->first, u->count))
      continue;
    for (uint64_t block = 0; block < u->count; block++)
      if (bitmap_test (e->region, array, u->first + block))
        touch (u, block);
  }
}

void
untouched_begin (struct engine *e, struct untouched *u, uint64_t first, uint64_t count)
{
  assert (count > 0 && count <= UNTOUCHED_MAX);
  u->first = first;
  u->count = count;
  memset (u->touched, 0, sizeof u->touched);
  /* First in the list, then the look: a claim is noted, or seen. */
  pthread_mutex_lock (&e->lock);
  u->next = e->untouched;
  e->untouched = u;
  note_unclean (e, u);
  pthread_mutex_unlock (&e->lock);
}

void
untouched_end (struct engine *e, struct untouched *u)
{
  pthread_mutex_lock (&e->lock);
  note_unclean (e, u);
  struct untouched **p = &e->untouched;
  while (*p != u)
    p = &(*p)->next;
  *p = u->next;
  pthread_mutex_unlock (&e->lock);
}

void
untouched_taken (struct engine *e, uint64_t first, uint64_t count)
{
  for (struct untouched *u = e->untouched; u != NULL; u = u->next) {
    uint64_t from = first > u->first ? first : u->first;
    uint64_t end = first + count < u->first + u->count ? first + count : u->first + u->count;
    for (uint64_t block = from; block < end; block++)
      touch (u, block - u->first);
  }
}

void
untouched_copy_again (struct engine *e, uint64_t first, uint64_t count)
{
  pthread_mutex_lock (&e->lock);
  /* As for any block that turns dirty without a guest: what was said of the others before holds no
   * longer (catchup.h, claims_all_empty()). */
  bitmap_set (e->region, REGION_DIRTY, first, count);
  atomic_fetch_add (&e->region->hdr->given_back, 1);
  engine_wake_all (e);
  pthread_mutex_unlock (&e->lock);
  engine_notify (e);
}

uint64_t
untouched_pay (struct engine *e, uint64_t bytes)
{
  pthread_mutex_lock (&e->lock);
  uint64_t now = clock_ns (), wait = allowance_wait (&e->allowance, now);
  if (wait == 0)
    allowance_take (&e->allowance, bytes, now);
  pthread_mutex_unlock (&e->lock);
  return wait;
}
