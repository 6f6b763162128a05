/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The tracker: the disk's size, and the table of regions in which every mutation is marked.
 *
 * Guest threads only mark; the control thread alone changes the table.  Attaching with an old
 * region at hand goes: add the fresh one, merge the old one into it, remove the old one.  A
 * mutation that marked the old one only had taken the table's lock before the fresh one was added,
 * so its bit is there when the merge begins; from then on both are marked.
 *
 * Locks: `table` (read: marking; write: add, remove), `size` (first open against others).  Neither
 * is held while taking another lock.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_TRACKER_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_TRACKER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "dirty-bitmap/region.h"

#define TRACKER_MAX_REGIONS 8

struct tracker {
  pthread_rwlock_t table;
  _Atomic unsigned nr_regions;
  struct region *regions[TRACKER_MAX_REGIONS]; /* borrowed from the jobs */

  _Atomic uint64_t opened; /* connections that the export has had */
  pthread_mutex_t size;
  bool known; /* a client has opened the export */
  struct region_geometry geo;
};

void tracker_init (struct tracker *t);
void tracker_destroy (struct tracker *t);

/* The export was opened and has DISK_SIZE bytes.  The first call fixes the geometry (BLOCK_SIZE 0:
 * the default).
 * 0, or -1 with *ERROR set (caller frees): the size differs from the first one, or cannot be
 * tracked. */
int tracker_opened (struct tracker *t, uint64_t disk_size, uint32_t block_size, char **error);

/* The geometry, if it is known already. */
bool tracker_geometry (struct tracker *t, struct region_geometry *geo);

/* Mark a mutation in every region (R1, R2). To be called after the layer below has returned,
 * whatever its result, and before gate_leave().  Returns how many blocks turned from clean to
 * dirty: the largest such number of all regions. */
uint64_t tracker_mark_slow (struct tracker *t, uint64_t offset, uint64_t length);

static inline uint64_t
tracker_mark (struct tracker *t, uint64_t offset, uint64_t length)
{
  return atomic_load (&t->nr_regions) != 0 ? tracker_mark_slow (t, offset, length) : 0;
}

/* 0, or -1 when the table is full. */
int tracker_add (struct tracker *t, struct region *r);

/* After it returns no guest thread touches R any more. */
void tracker_remove (struct tracker *t, struct region *r);

#endif
