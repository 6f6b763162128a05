/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The tracker.  See tracker.h.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>

#include "base/text.h"
#include "dirty-bitmap/bitmap.h"
#include "nbd-plugin/mirror/tracker.h"

void
tracker_init (struct tracker *t)
{
  pthread_rwlockattr_t attr;

  /* A busy guest must not keep the control thread from changing the table. */
  pthread_rwlockattr_init (&attr);
  pthread_rwlockattr_setkind_np (&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
  pthread_rwlock_init (&t->table, &attr);
  pthread_rwlockattr_destroy (&attr);
  pthread_mutex_init (&t->size, NULL);
  atomic_init (&t->nr_regions, 0);
  atomic_init (&t->opened, 0);
  t->known = false;
}

void
tracker_destroy (struct tracker *t)
{
  pthread_mutex_destroy (&t->size);
  pthread_rwlock_destroy (&t->table);
}

/* BLOCK_SIZE is what was asked for; it was checked when it was given. */
static void
too_large (uint64_t disk_size, uint32_t block_size, char **error)
{
  bool can_grow = block_size != 0 && block_size < REGION_MAX_BLOCK_SIZE
                  && disk_size <= region_max_disk_size (REGION_MAX_BLOCK_SIZE);

  if (block_size == 0)
    block_size = REGION_MAX_BLOCK_SIZE; /* the default grows up to that */
  text_error (error,
              "a disk of %" PRIu64 " bytes is too large to be tracked: the limit is %" PRIu64
              " TiB with blocks of %" PRIu32 " KiB%s",
              disk_size, region_max_disk_size (block_size) >> 40, block_size >> 10,
              can_grow ? "; choose a larger mirror-block-size" : "");
}

int
tracker_opened (struct tracker *t, uint64_t disk_size, uint32_t block_size, char **error)
{
  int r = 0;

  atomic_fetch_add (&t->opened, 1);
  pthread_mutex_lock (&t->size);
  if (!t->known) {
    r = region_geometry_init (&t->geo, disk_size, block_size);
    if (r == 0)
      t->known = true;
    else
      too_large (disk_size, block_size, error);
  } else if (t->geo.disk_size != disk_size)
    r = text_error (error,
                    "the disk's size changed from %" PRIu64 " to %" PRIu64
                    " bytes while it is tracked: restart the server to serve the new size",
                    t->geo.disk_size, disk_size);
  pthread_mutex_unlock (&t->size);
  return r;
}

bool
tracker_geometry (struct tracker *t, struct region_geometry *geo)
{
  pthread_mutex_lock (&t->size);
  bool known = t->known;
  if (known)
    *geo = t->geo;
  pthread_mutex_unlock (&t->size);
  return known;
}

uint64_t
tracker_mark_slow (struct tracker *t, uint64_t offset, uint64_t length)
{
  uint64_t most = 0;

  pthread_rwlock_rdlock (&t->table);
  unsigned n = atomic_load (&t->nr_regions);
  for (unsigned i = 0; i < n; i++) {
    uint64_t dirtied = bitmap_mark (t->regions[i], offset, length);
    if (dirtied > most)
      most = dirtied;
  }
  pthread_rwlock_unlock (&t->table);
  return most;
}

int
tracker_add (struct tracker *t, struct region *r)
{
  int ret = -1;

  pthread_rwlock_wrlock (&t->table);
  unsigned n = atomic_load (&t->nr_regions);
  if (n < TRACKER_MAX_REGIONS) {
    t->regions[n] = r;
    atomic_store (&t->nr_regions, n + 1);
    ret = 0;
  }
  pthread_rwlock_unlock (&t->table);
  return ret;
}

void
tracker_remove (struct tracker *t, struct region *r)
{
  pthread_rwlock_wrlock (&t->table);
  unsigned n = atomic_load (&t->nr_regions);
  for (unsigned i = 0; i < n; i++)
    if (t->regions[i] == r) {
      t->regions[i] = t->regions[n - 1];
      atomic_store (&t->nr_regions, n - 1);
      break;
    }
  pthread_rwlock_unlock (&t->table);
}
