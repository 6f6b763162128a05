/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A job that gets nowhere.  See stall.h.
 */

#include "config.h"

#include "base/clock.h"
#include "mirror/job/stall.h"

#define REQUESTS 2.0 /* one that waits for the limit, behind one that the limit let go */

uint64_t
stall_look (struct stall *s, uint64_t moved, bool due, uint64_t now_ns)
{
  if (!due || moved != s->moved || s->since_ns == 0) {
    s->moved = moved;
    s->since_ns = now_ns;
  }
  return now_ns - s->since_ns;
}

uint64_t
stall_limit_ns (uint64_t limit_ns, uint64_t request_bytes, uint64_t rate)
{
  if (rate == 0)
    return limit_ns;
  double slow = REQUESTS * (double)request_bytes / (double)rate * (double)NS_PER_S;
  return slow > (double)limit_ns ? (uint64_t)slow : limit_ns;
}
