/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See drop-plan.h.
 */

#include "config.h"

#include "backup/drop-plan.h"

/* The next link that is kept, from I on; END: there is none. */
static size_t
next_kept (const struct drop_link *links, size_t i, size_t end)
{
  while (i < end && !links[i].kept)
    i++;
  return i;
}

/* One chain: a full backup and the incremental ones up to END. */
static size_t
plan_chain (const struct drop_link *links, size_t begin, size_t end, struct drop_step *steps)
{
  size_t first = next_kept (links, begin, end), n = 0;

  if (first == end)
    return 0;
  /* The middle first, while everything below is as it was. */
  for (size_t base = first, top; (top = next_kept (links, base + 1, end)) < end; base = top)
    if (top != base + 1)
      steps[n++] = (struct drop_step){ .kind = DROP_REBASE, .top = top, .base = base };
  if (first == begin)
    return n;
  size_t second = next_kept (links, first + 1, end);
  steps[n++] = (struct drop_step){ .kind = DROP_COMMIT, .top = first, .base = begin };
  if (second < end)
    steps[n++] = (struct drop_step){ .kind = DROP_RELINK, .top = second, .base = begin };
  steps[n++] = (struct drop_step){ .kind = DROP_BECOME, .top = first, .base = begin };
  return n;
}

size_t
drop_plan (const struct drop_link *links, size_t nr, struct drop_step *steps)
{
  size_t n = 0;

  for (size_t begin = 0, end; begin < nr; begin = end) {
    for (end = begin + 1; end < nr && !links[end].full;)
      end++;
    n += plan_chain (links, begin, end, steps + n);
  }
  return n;
}
