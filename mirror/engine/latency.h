/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The lowest latency of late: of all values that were noted in this second and the one before.
 *
 * The lowest one is what the line and the server need at least; what lies above it is waiting, most
 * of it behind requests of our own.  Any thread may call these functions.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_LATENCY_H
#define NBDMIRROR_MIRROR_ENGINE_LATENCY_H

#include <pthread.h>
#include <stdint.h>

struct latency {
  pthread_mutex_t lock;
  uint64_t second;    /* of `lowest[0]` */
  uint64_t lowest[2]; /* ns, of this second and the one before; 0: none */
};

void latency_init (struct latency *l);
void latency_destroy (struct latency *l);

void latency_note (struct latency *l, uint64_t ns, uint64_t now_ns);

/* In ns.  0: nothing was noted lately. */
uint64_t latency_lowest (struct latency *l, uint64_t now_ns);

#endif
