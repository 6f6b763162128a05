/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The destination's identity.  See identity.h.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/samples.h"
#include "mirror/endpoint/blocking.h"
#include "mirror/endpoint/buffers.h"
#include "mirror/engine/identity.h"

/* A sample that is read back. */
struct probe {
  struct probes *all;
  struct sample sample;
  uint8_t *buf;
  uint64_t offset, started_ns, took_ns;
  int err;
};

/* All of them are read at the same time: one after the other they would take 64 round trips. */
struct probes {
  struct probe *list; /* room for SAMPLES_MAX */
  unsigned nr, in_flight;
  uint8_t *memory;
};

static bool
probes_init (struct probes *p, size_t room)
{
  *p = (struct probes){ .list = calloc (SAMPLES_MAX, sizeof *p->list),
                        .memory = buffers_new (SAMPLES_MAX * room) };
  for (unsigned i = 0; p->list != NULL && p->memory != NULL && i < SAMPLES_MAX; i++) {
    p->list[i].all = p;
    p->list[i].buf = p->memory + i * room;
  }
  return p->list != NULL && p->memory != NULL;
}

static void
probes_free (struct probes *p)
{
  /* If waiting itself has failed, requests still use the memory. */
  if (p->in_flight > 0)
    return;
  free (p->list);
  free (p->memory);
}

/* The samples that can be compared, or else the beginning of the disk, of which nothing is known.
 */
static void
choose (struct probes *p, const struct region *r)
{
  for (unsigned i = 0; i < SAMPLES_MAX; i++) {
    struct probe *one = &p->list[p->nr];

    if (!samples_get (r, i, &one->sample) || bitmap_test (r, REGION_QUARANTINE, one->sample.block))
      continue;
    one->offset = one->sample.block << r->geo.block_shift;
    p->nr++;
  }
  if (p->nr > 0 || r->geo.disk_size == 0)
    return;
  p->list[0].sample.length = 0;
  p->list[0].offset = 0;
  p->nr = 1;
}

static void
was_read (void *opaque, int error)
{
  struct probe *one = opaque;

  one->took_ns = clock_ns () - one->started_ns;
  one->err = error;
  one->all->in_flight--;
}

/* Begin to read LENGTH bytes, rounded up to the endpoint's smallest block.  0 or an errno. */
static int
begin (struct channel *ch, const struct endpoint_info *info, struct probe *one, uint32_t length)
{
  uint64_t n = (length + (uint64_t)info->min_block - 1) / info->min_block * info->min_block;

  if (one->offset + n > info->size)
    return EINVAL;
  one->started_ns = clock_ns ();
  if (channel_read (ch, one->buf, (uint32_t)n, one->offset, was_read, one) == -1)
    return errno;
  one->all->in_flight++;
  return 0;
}

/* Read all, with as many in flight as the channel takes.  0, or an errno where waiting failed. */
static int
read_all (struct probes *p, struct channel *ch, const struct endpoint_info *info,
          const struct region *r)
{
  uint32_t least = r->geo.disk_size < SAMPLE_BYTES ? (uint32_t)r->geo.disk_size : SAMPLE_BYTES;
  int err = 0;

  for (unsigned i = 0; i < p->nr && err == 0; i++) {
    struct probe *one = &p->list[i];

    if (channel_room (ch) == 0)
      err = sync_drain (ch, &p->in_flight);
    one->err = err ? err : begin (ch, info, one, one->sample.length ? one->sample.length : least);
  }
  int drained = sync_drain (ch, &p->in_flight);
  return err ? err : drained;
}

/* What the answers say.  *WORST is the one that decided, and *RTT_NS the shortest time. */
static enum identity
compare (const struct probes *p, const struct probe **worst, uint64_t *rtt_ns)
{
  enum identity result = IDENTITY_SAME;

  for (unsigned i = 0; i < p->nr; i++) {
    const struct probe *one = &p->list[i];

    if (one->err == 0 && one->took_ns < *rtt_ns)
      *rtt_ns = one->took_ns;
    if (one->err == 0 && memcmp (one->buf, one->sample.data, one->sample.length) != 0) {
      *worst = one;
      return IDENTITY_OTHER;
    }
    if (one->err != 0 && result == IDENTITY_SAME) {
      *worst = one;
      result = IDENTITY_UNKNOWN;
    }
  }
  return result;
}

enum identity
identity_check (struct channel *ch, const struct endpoint *dest, const struct region *r,
                uint64_t *rtt_ns, char **error)
{
  const struct endpoint_info *info = endpoint_info (dest);
  enum identity result = IDENTITY_UNKNOWN;
  const struct probe *worst = NULL;
  struct probes all;
  int err = ENOMEM;

  *error = NULL;
  *rtt_ns = UINT64_MAX;
  if (probes_init (&all, info->min_block > SAMPLE_BYTES ? info->min_block : SAMPLE_BYTES)) {
    choose (&all, r);
    err = read_all (&all, ch, info, r);
    if (err == 0)
      result = compare (&all, &worst, rtt_ns);
  }
  if (*rtt_ns == UINT64_MAX)
    *rtt_ns = 0;
  uint64_t offset = worst != NULL ? worst->offset : 0;
  if (result == IDENTITY_UNKNOWN)
    text_error (error, "%s: cannot read at offset %" PRIu64 ": %s", endpoint_name (dest), offset,
                channel_error (ch) ? channel_error (ch) : strerror (worst ? worst->err : err));
  else if (result == IDENTITY_OTHER)
    text_error (error,
                "%s is not the destination that this job has been writing to: "
                "the data at offset %" PRIu64 " is not what was stored there",
                endpoint_name (dest), offset);
  probes_free (&all);
  return result;
}
