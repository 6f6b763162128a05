/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * When the job is synchronised.  See catchup.h.
 */

#include "config.h"

#include "mirror/engine/catchup.h"

void
catchup_set (struct catchup *c, bool on)
{
  if (c->on == on)
    return;
  c->on = on;
  c->begun.valid = c->tail.valid = false;
}

void
catchup_lost (struct catchup *c, struct region *r)
{
  c->begun.valid = c->tail.valid = false;
  if (catchup_synchronised (c, r))
    atomic_store (&r->hdr->synced_epoch, atomic_load (&r->hdr->sync_epoch) - 1);
}

bool
catchup_synchronised (const struct catchup *c, const struct region *r)
{
  return c->on && atomic_load (&r->hdr->synced_epoch) == atomic_load (&r->hdr->sync_epoch);
}

void
catchup_begin (struct catchup *c, const struct region *r, const struct pass *p)
{
  if (!c->on || c->begun.valid)
    return;
  c->begun = (struct catchup_mark){
    .valid = true,
    .epoch = atomic_load (&r->hdr->sync_epoch), /* first: the bits are looked at later */
    .given_back = atomic_load (&r->hdr->given_back),
    .number = p->last_number,
  };
}

uint64_t
catchup_wait_number (const struct catchup *c)
{
  return c->on && c->begun.valid ? c->begun.number : 0;
}

static bool
holds (const struct catchup_mark *m, const struct region *r)
{
  return m->valid && atomic_load (&r->hdr->sync_epoch) == m->epoch
         && atomic_load (&r->hdr->given_back) == m->given_back;
}

void
catchup_wrapped (struct catchup *c, const struct region *r, const struct pass *p)
{
  if (holds (&c->begun, r) && bitmap_count (r, REGION_QUARANTINE) == 0
      && p->unreadable.since_ns == 0 && !holds (&c->tail, r)) {
    c->tail = c->begun;
    c->tail.number = p->last_number;
  }
  c->begun.valid = false;
}

static bool
at_rest (const struct region *r, const struct pass *p)
{
  /* The counters cost nothing and come first, but only the bits are certain. */
  return p->nr_busy == 0 && bitmap_count (r, REGION_DIRTY) == 0
         && bitmap_count (r, REGION_QUARANTINE) == 0 && bitmap_empty (r, REGION_DIRTY)
         && bitmap_empty (r, REGION_QUARANTINE);
}

void
catchup_look (struct catchup *c, struct region *r, const struct pass *p)
{
  if (!c->on || catchup_synchronised (c, r))
    return;
  uint64_t epoch = atomic_load (&r->hdr->sync_epoch);
  if (at_rest (r, p))
    atomic_store (&r->hdr->synced_epoch, epoch);
  else if (holds (&c->tail, r) && !pass_busy_since (p, c->tail.number)) {
    atomic_store (&r->hdr->synced_epoch, c->tail.epoch);
    c->tail.valid = false;
  }
}
