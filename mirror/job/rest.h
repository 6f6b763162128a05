/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * How long the loop of a job may sleep.  Plain values in, plain values out.
 */

#ifndef NBDMIRROR_MIRROR_JOB_REST_H
#define NBDMIRROR_MIRROR_JOB_REST_H

#include <stdbool.h>
#include <stdint.h>

#include "mirror/engine/supervisor.h"

struct rest_view {
  enum supervisor_state state;
  bool paused;     /* by the user */
  bool unreadable; /* something of the source is */
  bool asleep;     /* the copiers sleep, and no hand-over is under way */
  bool held;       /* the guest is, so it waits for us */
  uint64_t left;   /* bytes */
  uint64_t limit;  /* bytes a second, 0: none */
};

/* Neither ready nor at its end, whatever is copied: paused, the destination is lost, or something
 * cannot be read.  The end of that wakes the loop. */
bool rest_is_stuck (const struct rest_view *v);

/* The longest sleep of a copy's loop, in ms, unless something is due or wakes it before. */
unsigned rest_copy_ms (const struct rest_view *v);

#endif
