/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * How long the loop of a job may sleep.  See rest.h.
 */

#include "config.h"

#include "mirror/job/rest.h"

#define NEARLY_DONE (UINT64_C (32) << 20) /* bytes: from here on it looks each millisecond */
#define LOOK_MS 100u
#define LOOKS 10u /* in a second */
#define REST_MS 1000u

bool
rest_is_stuck (const struct rest_view *v)
{
  return v->state != SUPERVISOR_COPYING || v->paused || v->unreadable;
}

unsigned
rest_copy_ms (const struct rest_view *v)
{
  if (v->held)
    return 1;
  if (rest_is_stuck (v))
    return v->asleep ? REST_MS : LOOK_MS;
  uint64_t soon = NEARLY_DONE; /* what may be sent before the next look */
  if (v->limit > 0 && v->limit / LOOKS < soon)
    soon = v->limit / LOOKS;
  return v->left <= soon ? 1 : LOOK_MS;
}
