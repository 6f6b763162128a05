/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The modelled guests: where and when they write.  See sim.h.
 */

#ifndef NBDMIRROR_TESTS_SIM_GUEST_H
#define NBDMIRROR_TESTS_SIM_GUEST_H

#include "tests/sim/sim.h"

struct guest {
  enum sim_guest kind;
  uint64_t nr_blocks;
  unsigned request_blocks;
  double rate;    /* bytes a second */
  uint64_t on_ms; /* of the one that stops and starts */
  uint64_t random;
  uint64_t position; /* of the sequential one */
  double zipf_norm;
};

void guest_init (struct guest *g, const struct sim_options *o);
/* The first block of its next request. */
uint64_t guest_next (struct guest *g);
/* How fast it wants to write at this moment, bytes a second. */
double guest_rate (const struct guest *g, uint64_t now_ms);
uint64_t guest_random (struct guest *g);

#endif
