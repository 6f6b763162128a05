/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See look-again.h.
 */

#include "config.h"

#include <inttypes.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "base/text.h"
#include "dirty-bitmap/bitmap.h"
#include "mirror/job/look-again.h"
#include "mirror/job/sampling.h"

/* As long as a request may take (--request-timeout). */
#define LATE_MS 30000
#define LATE_POLL_MS 10

/* Blocks in LEAVE_OUT, or in quarantine, may differ. */
struct look {
  const struct region *region;
  enum region_array leave_out;
  const _Atomic int *signal;
};

static bool
is_stopped (const struct look *l)
{
  return l->signal != NULL && atomic_load (l->signal) != 0;
}

static bool
differs_by_right (const struct look *l, uint64_t first, uint64_t end)
{
  uint64_t found;

  return bitmap_next_set (l->region, l->leave_out, first, end, &found)
         || bitmap_next_set (l->region, REGION_QUARANTINE, first, end, &found);
}

static bool
may_differ (void *opaque, uint64_t offset, uint64_t length, bool late)
{
  const struct look *l = opaque;
  const struct region_geometry *geo = &l->region->geo;
  uint64_t first = offset >> geo->block_shift,
           end = ((offset + length - 1) >> geo->block_shift) + 1;
  uint64_t begin = clock_ms ();

  /* What the guest writes can be read before it is dirty (R2): until its write has ended. */
  while (late && l->leave_out == REGION_DIRTY && !differs_by_right (l, first, end)
         && clock_ms () - begin < LATE_MS && !is_stopped (l))
    clock_sleep_ms (LATE_POLL_MS);
  return differs_by_right (l, first, end);
}

/* NULL, or why not, with *PROBLEM. */
static char *
look (const struct look_again *a, struct endpoint *ours, enum region_array leave_out,
      struct endpoint *dest, enum session_problem *problem)
{
  struct look l = { .region = a->region, .leave_out = leave_out, .signal = a->signal };
  const struct sampling s = { .ours = ours,
                              .dest = dest,
                              .size = a->region->geo.disk_size,
                              .prefer_data = true,
                              .leave_out = may_differ,
                              .opaque = &l,
                              .signal = a->signal };
  struct sampled found;
  char *error = NULL;

  enum job_result result = sampling_compare (&s, &found, &error);
  if (result == JOB_COMPLETED)
    return NULL;
  if (result == JOB_REFUSED && is_stopped (&l)) { /* it was not waited for */
    text_error (&error, "cancelled while blocks were compared");
    result = JOB_CANCELLED;
  }
  *problem = result == JOB_REFUSED       ? SESSION_REFUSED
             : result == JOB_DEST_FAILED ? SESSION_UNREACHABLE
                                         : SESSION_SOURCE;
  if (result == JOB_REFUSED)
    text_error (&error,
                "%s is not the destination that this job has been writing to: it differs in the"
                " block at offset %" PRIu64 ", which was left as it was",
                endpoint_name (dest), found.where);
  return error;
}

char *
look_again (void *opaque, struct endpoint *dest, enum session_problem *problem)
{
  const struct look_again *a = opaque;
  char *error = a->base != NULL ? look (a, a->base, REGION_VISITED, dest, problem) : NULL;

  return error != NULL ? error : look (a, a->source, REGION_DIRTY, dest, problem);
}
