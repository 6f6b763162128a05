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
#include "base/zero.h"
#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/samples.h"
#include "mirror/endpoint/blocking.h"
#include "mirror/endpoint/buffers.h"
#include "mirror/engine/identity.h"

/* So many samples are read over each connection: even one of another server's is hardly equal. */
#define EACH_SAMPLES 8u

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
  struct probe *list;
  unsigned nr, in_flight;
  uint8_t *memory;
};

/* For up to MOST probes of DEST. */
static bool
probes_init (struct probes *p, unsigned most, const struct endpoint *dest)
{
  const struct endpoint_info *info = endpoint_info (dest);
  size_t room = info->min_block > SAMPLE_BYTES ? info->min_block : SAMPLE_BYTES;

  *p = (struct probes){ .list = calloc (most, sizeof *p->list),
                        .memory = buffers_new (most * room) };
  for (unsigned i = 0; p->list != NULL && p->memory != NULL && i < most; i++) {
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

/* Up to MOST samples that can be compared, and those of what was sent first.  Those of zeroes,
 * which an empty disk has as well, come last: a disk that begins with zeroes has many of them. */
static void
choose_samples (struct probes *p, unsigned most, const struct region *r)
{
  for (unsigned n = 0; n < 2 * SAMPLES_MAX && p->nr < most; n++) {
    struct probe *one = &p->list[p->nr];
    bool zeroes = n >= SAMPLES_MAX;

    if (!samples_get (r, (SAMPLES_FOUND + n) % SAMPLES_MAX, &one->sample)
        || all_zero (one->sample.data, one->sample.length) != zeroes
        || !samples_comparable (r, &one->sample))
      continue;
    one->offset = one->sample.block << r->geo.block_shift;
    p->nr++;
  }
}

/* An empty disk has zeroes as well.  They prove nothing even where only zeroes were sent: what was
 * left out, being as the base, is not zero.  Nor do they prove that what was sent is there: they
 * may have been there before, since a server need not know of zeroes that it has stored. */
bool
identity_is_provable (const struct region *r)
{
  /* Another destination may hold what was found at this one.  It would lack what was sent. */
  bool found_will_do = atomic_load (&r->hdr->sent_is_durable) == 0;
  struct sample s;

  for (unsigned i = 0; i < SAMPLES_MAX; i++)
    if (samples_get (r, i, &s) && !all_zero (s.data, s.length) && samples_comparable (r, &s)
        && (found_will_do || s.kind == SAMPLE_SENT))
      return true;
  return false;
}

/* All of them, or else the beginning of the disk, of which nothing is known. */
static void
choose (struct probes *p, const struct region *r)
{
  choose_samples (p, SAMPLES_MAX, r);
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
  uint64_t n = endpoint_round_up (info, length);

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

/* Say in *ERROR why RESULT is not IDENTITY_SAME.  WORST may be NULL: then it is ERR. */
static void
tell (enum identity result, const struct probe *worst, int err, struct channel *ch,
      const struct endpoint *dest, char **error)
{
  uint64_t offset = worst != NULL ? worst->offset : 0;

  if (result == IDENTITY_UNKNOWN)
    text_error (error, "%s: cannot read at offset %" PRIu64 ": %s", endpoint_name (dest), offset,
                channel_error (ch) ? channel_error (ch) : strerror (worst ? worst->err : err));
  else if (result == IDENTITY_OTHER)
    text_error (error,
                "%s is not the destination that this job has been writing to: "
                "the data at offset %" PRIu64 " is not what was stored there",
                endpoint_name (dest), offset);
}

enum identity
identity_check (struct channel *ch, const struct endpoint *dest, const struct region *r,
                uint64_t *rtt_ns, char **error)
{
  enum identity result = IDENTITY_UNKNOWN;
  const struct probe *worst = NULL;
  struct probes all;
  int err = ENOMEM;

  *error = NULL;
  *rtt_ns = UINT64_MAX;
  if (probes_init (&all, SAMPLES_MAX, dest)) {
    const struct endpoint_info *info = endpoint_info (dest);

    choose (&all, r);
    bool was_read = all.nr > 0 && all.list[0].sample.length == 0 && info->was_read;
    err = was_read ? 0 : read_all (&all, ch, info, r);
    if (err == 0)
      result = compare (&all, &worst, rtt_ns);
    if (was_read)
      *rtt_ns = info->rtt_ns;
  }
  if (*rtt_ns == UINT64_MAX)
    *rtt_ns = 0;
  tell (result, worst, err, ch, dest, error);
  probes_free (&all);
  return result;
}

/* ---- over each connection ---- */

/* Begin to read each of the samples that P has over each connection of CH.  P has room for them. */
static void
begin_each (struct probes *p, struct channel *ch, const struct endpoint_info *info)
{
  unsigned nr_conns = channel_connections (ch);
  int err = 0;

  p->nr *= nr_conns;
  for (unsigned i = p->nr; i-- > 0;) {
    p->list[i].sample = p->list[i / nr_conns].sample;
    p->list[i].offset = p->list[i / nr_conns].offset;
  }
  channel_in_turn (ch, true);
  for (unsigned i = 0; i < p->nr; i++) {
    struct probe *one = &p->list[i];

    if (err == 0)
      err = begin (ch, info, one, one->sample.length);
    one->err = err;
  }
  channel_in_turn (ch, false);
}

/* Wait for the answers, and tell what they say. */
static enum identity
end_each (struct probes *p, struct channel *ch, const struct endpoint *dest, char **error)
{
  int err = p->memory != NULL ? sync_drain (ch, &p->in_flight) : ENOMEM;
  enum identity result = IDENTITY_UNKNOWN;
  const struct probe *worst = NULL;
  uint64_t rtt_ns = UINT64_MAX;

  if (err == 0)
    result = compare (p, &worst, &rtt_ns);
  tell (result, worst, err, ch, dest, error);
  return result;
}

enum identity
identity_check_each (struct channel *const *chs, unsigned nr, const struct endpoint *dest,
                     const struct region *r, char **error)
{
  enum identity result = IDENTITY_SAME;
  struct probes *each = calloc (nr, sizeof *each);

  *error = NULL;
  if (each == NULL) {
    text_error (error, "out of memory");
    return IDENTITY_UNKNOWN;
  }
  for (unsigned i = 0; i < nr; i++) {
    unsigned nr_conns = channel_connections (chs[i]), most = channel_room (chs[i]) / nr_conns;

    if (most > EACH_SAMPLES)
      most = EACH_SAMPLES;
    if (!probes_init (&each[i], most * nr_conns, dest))
      continue;
    choose_samples (&each[i], most, r);
    begin_each (&each[i], chs[i], endpoint_info (dest));
  }
  for (unsigned i = 0; i < nr; i++) {
    CLEANUP_TEXT char *why = NULL;
    enum identity one = end_each (&each[i], chs[i], dest, &why);

    if (one != IDENTITY_SAME && result != IDENTITY_OTHER) {
      result = one;
      text_free (*error);
      *error = text_copy (why);
    }
    probes_free (&each[i]);
  }
  free (each);
  return result;
}
