/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Urgent requests, as the worker keeps them.  See urgent-queue.h.
 */

#include "config.h"

#include <string.h>

#include "mirror/engine/urgent-queue.h"

static void
answer (struct urgent_queue *q, struct region *r, unsigned i, bool ok)
{
  urgent_answer (r, q->items[i].slot, ok);
  q->nr--;
  memmove (&q->items[i], &q->items[i + 1], (q->nr - i) * sizeof q->items[0]);
}

/* The dirty bits are looked at first: a block that is claimed between the two looks is busy by
 * then. */
static bool
unfinished (const struct region *r, const struct pass *p, const struct urgent_item *it)
{
  return bitmap_test_any (r, REGION_DIRTY, it->first, it->count)
         || pass_busy_any (p, it->first, it->count);
}

/* The write part of item I is done.  True if it waits for the next flush now; else it was answered.
 */
static bool
written (struct urgent_queue *q, struct region *r, const struct urgent_view *v, unsigned i)
{
  struct urgent_item *it = &q->items[i];

  it->writing = false;
  it->flush_nr = v->next_flush;
  if (it->flush && v->synchronised && !v->flush_hangs)
    return true;
  answer (q, r, i, !it->flush || !v->flush_hangs);
  return false;
}

/* Will the first pass copy all blocks of IT, so that nobody needs to wait for them?  Not if one of
 * them is busy, because the pass would skip it. */
static bool
is_ahead (const struct urgent_view *v, const struct urgent_item *it)
{
  return v->first_pass && !v->synchronised && it->first >= v->pass->cursor
         && !pass_busy_any (v->pass, it->first, it->count);
}

bool
urgent_queue_gather (struct urgent_queue *q, struct region *r, const struct urgent_view *v)
{
  struct urgent_request u;
  bool flush = false;

  while (q->nr < URGENT_SLOTS && urgent_take (r, &u)) {
    unsigned i = q->nr++;
    struct urgent_item *it = &q->items[i];
    *it = (struct urgent_item){
      .slot = u.slot,
      .flush = (u.kind & URGENT_FLUSH) != 0,
      .first = u.first,
      .count = (u.kind & URGENT_WRITE) != 0 ? u.count : 0,
      .pos = u.first,
    };
    if (it->count > 0 && bitmap_count (r, REGION_QUARANTINE) > 0
        && bitmap_test_any (r, REGION_QUARANTINE, it->first, it->count))
      answer (q, r, i, false);
    else if (it->count > 0 && is_ahead (v, it))
      answer (q, r, i, true);
    else if (it->count > 0 && unfinished (r, v->pass, it))
      it->writing = true;
    else if (written (q, r, v, i))
      flush = true;
  }
  return flush;
}

bool
urgent_queue_next (struct urgent_queue *q, struct region *r, const struct pass *p, uint64_t max,
                   uint64_t *first, uint64_t *count)
{
  for (unsigned i = 0; i < q->nr;) {
    struct urgent_item *it = &q->items[i];
    uint64_t end = it->first + it->count;

    if (urgent_abandoned (r, it->slot)) {
      answer (q, r, i, false);
      continue;
    }
    if (it->writing && it->pos < end) {
      if (pass_free_run (p, r, it->pos, end, max, first, count))
        return true;
      it->pos = end; /* all of it is busy or clean: urgent_queue_settle() looks again */
    }
    i++;
  }
  return false;
}

void
urgent_queue_handed_out (struct urgent_queue *q, uint64_t first, uint64_t count)
{
  for (unsigned i = 0; i < q->nr; i++) {
    struct urgent_item *it = &q->items[i];
    if (it->writing && it->pos >= first && it->pos < first + count)
      it->pos = first + count;
  }
}

bool
urgent_queue_settle (struct urgent_queue *q, struct region *r, const struct urgent_view *v,
                     uint64_t first, uint64_t count)
{
  bool flush = false;

  for (unsigned i = 0; i < q->nr;) {
    struct urgent_item *it = &q->items[i];
    unsigned nr = q->nr;

    if (it->writing && it->first < first + count && first < it->first + it->count) {
      if (unfinished (r, v->pass, it))
        it->pos = it->first;
      else if (written (q, r, v, i))
        flush = true;
    }
    i += q->nr == nr;
  }
  return flush;
}

void
urgent_queue_flushed (struct urgent_queue *q, struct region *r, uint64_t number)
{
  for (unsigned i = 0; i < q->nr;) {
    if (!q->items[i].writing && q->items[i].flush_nr <= number)
      answer (q, r, i, true);
    else
      i++;
  }
}

void
urgent_queue_refuse (struct urgent_queue *q, struct region *r)
{
  struct urgent_request u;

  while (q->nr > 0)
    answer (q, r, q->nr - 1, false);
  while (urgent_take (r, &u))
    urgent_answer (r, u.slot, false);
  q->credit = 0;
}

void
urgent_queue_earn (struct urgent_queue *q, uint64_t bytes)
{
  q->credit += (int64_t)(bytes / URGENT_SHARE);
  if (q->credit > URGENT_CREDIT_BYTES)
    q->credit = URGENT_CREDIT_BYTES;
}

void
urgent_queue_spend (struct urgent_queue *q, uint64_t bytes)
{
  q->credit -= (int64_t)bytes;
  if (q->credit < -URGENT_CREDIT_BYTES)
    q->credit = -URGENT_CREDIT_BYTES;
}
