/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * An engine that a test drives by hand: there is no session, there are no threads, and nothing is
 * copied.  The test plays the guest (it marks) and the copiers (it takes tasks, and says that they
 * have ended).
 */

#ifndef NBDMIRROR_TESTS_UNIT_ENGINE_FIXTURE_H
#define NBDMIRROR_TESTS_UNIT_ENGINE_FIXTURE_H

#include <stdlib.h>
#include <unistd.h>

#include "tests/unit/fixture.h"

#include "mirror/engine/task.h"

static struct engine *e;
static struct region *r;

static const struct engine_room anything
    = { .flusher = true, .verify = true, .background = true, .urgent = true };

static void
engine_setup (uint64_t nr_blocks, bool neighbours)
{
  char name[] = "/tmp/nbdmirror-test-engine.XXXXXX";
  const struct engine_options options = { .max_connections = 1, .neighbours = neighbours };
  char *error = NULL, *argv[] = { name };
  int fd = mkstemp (name);

  r = fixture_region (nr_blocks);
  cr_assert (fd != -1 && ftruncate (fd, (off_t)r->geo.disk_size) == 0);
  close (fd);
  struct endpoint *source
      = endpoint_open (argv, 1, &(struct endpoint_options){ .writable = false }, NULL, &error);
  cr_assert_not_null (source, "%s", error != NULL ? error : "?");
  unlink (name);
  e = calloc (1, sizeof *e);
  cr_assert_eq (engine_init (e, r, source, &options, &error), 0);
}

static void
teardown (void)
{
  endpoint_close (e->source);
  engine_destroy (e);
  free (e);
  region_free (r);
}

static void
mark (uint64_t first, uint64_t count)
{
  bitmap_mark (r, first << r->geo.block_shift, count << r->geo.block_shift);
}

static struct engine_task
expect (enum engine_work work, uint64_t first, uint64_t count)
{
  struct engine_task t;
  enum engine_work w = engine_next (e, &anything, &t);

  cr_assert_eq (w, work, "work %d instead of %d", (int)w, (int)work);
  if (work != WORK_FLUSH && work != WORK_NONE)
    cr_assert (t.first == first && t.count == count, "%lu + %lu instead of %lu + %lu",
               (unsigned long)t.first, (unsigned long)t.count, (unsigned long)first,
               (unsigned long)count);
  return t;
}

static inline void
done (const struct engine_task *t)
{
  engine_task_done (e, t, NULL, 0, SAMPLE_SENT);
}

#endif
