/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See latency.h.
 */

#include "config.h"

#include "base/clock.h"
#include "mirror/engine/latency.h"

void
latency_init (struct latency *l)
{
  *l = (struct latency){ .second = 0 };
  pthread_mutex_init (&l->lock, NULL);
}

void
latency_destroy (struct latency *l)
{
  pthread_mutex_destroy (&l->lock);
}

/* Under the lock: forget what is too old. */
static void
turn_to (struct latency *l, uint64_t now_ns)
{
  uint64_t second = now_ns / NS_PER_S;

  if (second == l->second)
    return;
  l->lowest[1] = second == l->second + 1 ? l->lowest[0] : 0;
  l->lowest[0] = 0;
  l->second = second;
}

void
latency_note (struct latency *l, uint64_t ns, uint64_t now_ns)
{
  pthread_mutex_lock (&l->lock);
  turn_to (l, now_ns);
  if (l->lowest[0] == 0 || ns < l->lowest[0])
    l->lowest[0] = ns > 0 ? ns : 1;
  pthread_mutex_unlock (&l->lock);
}

uint64_t
latency_lowest (struct latency *l, uint64_t now_ns)
{
  pthread_mutex_lock (&l->lock);
  turn_to (l, now_ns);
  uint64_t a = l->lowest[0], b = l->lowest[1];
  pthread_mutex_unlock (&l->lock);
  return a == 0 || (b != 0 && b < a) ? b : a;
}
