/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The places that could not be read.  See unreadable.h.
 */

#include "config.h"

#include "base/clock.h"
#include "mirror/engine/unreadable.h"

#define BACK_OFF_MIN_NS ((uint64_t)(NS_PER_S / 2))
#define BACK_OFF_MAX_NS ((uint64_t)(30 * NS_PER_S))

static void
back_off (struct unreadable_back_off *w, uint64_t now_ns)
{
  w->ns = w->ns == 0 ? BACK_OFF_MIN_NS : 2 * w->ns;
  if (w->ns > BACK_OFF_MAX_NS)
    w->ns = BACK_OFF_MAX_NS;
  w->retry_ns = now_ns + w->ns;
}

static void
add (struct unreadable *u, struct unreadable_run run)
{
  if (run.count > 0 && u->nr < UNREADABLE_MAX)
    u->runs[u->nr++] = run;
}

/* Forget [FIRST, END).  What is left of the runs that overlap it stays. */
static void
cut_out (struct unreadable *u, uint64_t first, uint64_t end)
{
  for (unsigned i = 0; i < u->nr;) {
    struct unreadable_run *r = &u->runs[i];
    uint64_t r_end = r->first + r->count;
    if (r_end <= first || end <= r->first) {
      i++;
      continue;
    }
    struct unreadable_run before = *r, behind = *r;
    before.count = r->first < first ? first - r->first : 0;
    behind.first = end;
    behind.count = end < r_end ? r_end - end : 0;
    *r = u->runs[--u->nr];
    add (u, before);
    add (u, behind);
  }
}

static const struct unreadable_run *
find_single (const struct unreadable *u, uint64_t block)
{
  for (unsigned i = 0; i < u->nr; i++)
    if (u->runs[i].first == block && u->runs[i].count == 1)
      return &u->runs[i];
  return NULL;
}

void
unreadable_failed (struct unreadable *u, uint64_t first, uint64_t count, int err, uint64_t now_ns)
{
  struct unreadable_run run = { .first = first, .count = count, .err = err };

  if (count == 1) {
    const struct unreadable_run *known = find_single (u, first);
    if (known)
      run.w = known->w;
    back_off (&run.w, now_ns);
  }
  cut_out (u, first, first + count);
  add (u, run);
  if (u->since_ns == 0)
    u->since_ns = now_ns;
  if (++u->series < UNREADABLE_SERIES)
    return;
  u->series = 0;
  back_off (&u->source, now_ns);
}

void
unreadable_copied (struct unreadable *u, uint64_t first, uint64_t count)
{
  if (u->since_ns == 0)
    return;
  u->series = 0;
  u->source = (struct unreadable_back_off){ 0, 0 };
  cut_out (u, first, first + count);
  if (u->nr == 0)
    u->since_ns = 0;
}

bool
unreadable_suspended (const struct unreadable *u, uint64_t now_ns)
{
  return now_ns < u->source.retry_ns;
}

uint64_t
unreadable_left_alone (const struct unreadable *u, uint64_t now_ns, uint64_t *until_ns)
{
  uint64_t blocks = 0;

  for (unsigned i = 0; i < u->nr; i++) {
    uint64_t retry_ns = u->runs[i].w.retry_ns;
    if (now_ns >= retry_ns)
      continue;
    if (blocks == 0 || retry_ns < *until_ns)
      *until_ns = retry_ns;
    blocks += u->runs[i].count;
  }
  return blocks;
}

bool
unreadable_may_read (const struct unreadable *u, uint64_t now_ns, uint64_t *first, uint64_t *count)
{
  for (unsigned i = 0; i < u->nr; i++) {
    const struct unreadable_run *r = &u->runs[i];
    if (r->first <= *first && *first < r->first + r->count) {
      if (now_ns < r->w.retry_ns) {
        *first = r->first + r->count;
        return false;
      }
      *count = 1;
    } else if (*first < r->first && r->first < *first + *count)
      *count = r->first - *first;
  }
  return true;
}
