/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Events to the clients of the control socket.  Control thread only.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_EVENTS_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_EVENTS_H

#include <stdbool.h>
#include <stdint.h>
#include <jansson.h>

#include "nbd-plugin/mirror/gate.h"
#include "nbd-plugin/mirror/pace.h"

struct mirror;

/* What the clients were told last, so that every change is told once. */
struct told {
  const char *state, *status;
  enum gate_mode mode;
  uint64_t generation;
  enum pace_mode pace;
  bool synchronised;
  uint64_t sync_epoch;
  bool unreadable;              /* BLOCK_JOB_ERROR was sent, */
  json_int_t unreadable_offset; /* with this offset */
};

/* Tell what has changed since the last call. */
void mirror_tell (struct mirror *m);

#endif
