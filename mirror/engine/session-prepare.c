/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * May a session write to its destination, and which connections does it have?  See
 * session-prepare.h.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/samples.h"
#include "mirror/endpoint/blocking.h"
#include "mirror/engine/identity.h"
#include "mirror/engine/session-prepare.h"

#define MAX_COPIERS 4

char *
session_refusal (const struct endpoint *dest, uint64_t disk_size, uint32_t block_size,
                 bool allow_no_flush)
{
  const struct endpoint_info *info = endpoint_info (dest);
  const char *name = endpoint_name (dest);

  if (info->read_only)
    return text_printf ("%s is read-only", name);
  if (info->size < disk_size)
    return text_printf ("%s is too small: %" PRIu64 " bytes, and the source has %" PRIu64, name,
                        info->size, disk_size);
  if (info->flush_error != 0 && !allow_no_flush)
    return text_printf ("%s offers to flush and refuses it (%s), so nothing written there is ever "
                        "known to be safe (--allow-unsafe-destination accepts that)",
                        name, strerror (info->flush_error));
  if (!info->can_flush && !allow_no_flush)
    return text_printf ("%s cannot flush, so nothing written there is ever known to be safe "
                        "(--allow-unsafe-destination accepts that)",
                        name);
  if (info->min_block > block_size)
    return text_printf ("%s takes requests of at least %" PRIu32 " bytes, but blocks of %" PRIu32
                        " bytes are tracked: choose a larger block size (mirror-block-size=)",
                        name, info->min_block, block_size);
  uint32_t unit = info->min_block > SAMPLE_BYTES ? info->min_block : SAMPLE_BYTES;
  if (info->max_request < unit)
    return text_printf ("%s takes requests of at most %" PRIu32
                        " bytes, and needs to take %" PRIu32,
                        name, info->max_request, unit);
  uint64_t tail = disk_size % info->min_block;
  if (tail != 0 && info->size < disk_size - tail + info->min_block)
    return text_printf ("%s takes only multiples of %" PRIu32
                        " bytes, too large for the end of the disk",
                        name, info->min_block);
  return NULL;
}

/* Tell the user TEXT, which becomes the session's, beside what there is to be told already. */
static void
warn (struct session *s, char *text)
{
  char *before = s->warning;

  if (before == NULL) {
    s->warning = text;
    return;
  }
  s->warning = text_printf ("%s; %s", before, text);
  text_free (before);
  text_free (text);
}

/* Look at the destination of a session that is being made.  This is done at each reconnect. */
static char *
check_destination (struct session *s, const struct session_options *o)
{
  const struct region_geometry *geo = &s->engine->region->geo;
  const struct endpoint_info *info = endpoint_info (s->target.endpoint);

  s->target.min_block = info->min_block;
  s->target.have_flush = info->can_flush;
  if (info->size > geo->disk_size)
    s->warning = text_printf ("%s is larger than the source (%" PRIu64 " > %" PRIu64
                              " bytes): what lies behind the end is left alone",
                              endpoint_name (s->target.endpoint), info->size, geo->disk_size);
  return session_refusal (s->target.endpoint, geo->disk_size, geo->block_size, o->allow_no_flush);
}

/* Read what follows an odd tail, to write it back unchanged with each write of the tail. */
static char *
read_tail_pad (struct session *s)
{
  uint64_t size = s->engine->region->geo.disk_size;
  uint32_t used = (uint32_t)(size % s->target.min_block);
  if (used == 0)
    return NULL;
  uint8_t *buf;
  if (posix_memalign ((void **)&buf, 4096, s->target.min_block > 4096 ? s->target.min_block : 4096)
      != 0)
    return text_copy ("out of memory");
  int err = sync_read (s->copiers[0].slots.dest, buf, s->target.min_block, size - used);
  if (err) {
    free (buf);
    return text_printf ("%s: cannot read the last block: %s", endpoint_name (s->target.endpoint),
                        strerror (err));
  }
  s->target.tail_pad_len = s->target.min_block - used;
  memmove (buf, buf + used, s->target.tail_pad_len);
  s->target.tail_pad = buf;
  return NULL;
}

/* Copiers where nothing is against it. */
static unsigned
most_copiers (unsigned limit)
{
  long cores = sysconf (_SC_NPROCESSORS_ONLN);
  unsigned n = cores < 1 ? 1 : cores > MAX_COPIERS ? MAX_COPIERS : (unsigned)cores;
  return limit != 0 && n > limit ? limit : n;
}

unsigned
session_connections_each (unsigned limit)
{
  return (limit != 0 ? limit : MAX_COPIERS) / most_copiers (limit);
}

/* A server that is not ours, and may take only one client. */
static bool
may_take_only_one (const struct endpoint *ep)
{
  return ep != NULL && endpoint_info (ep)->is_nbd && !endpoint_info (ep)->can_multi_conn;
}

unsigned
session_channels (unsigned limit, const struct endpoint *offline_source,
                  const struct endpoint *base)
{
  return may_take_only_one (offline_source) || may_take_only_one (base) ? 1 : most_copiers (limit);
}

static unsigned
how_many_copiers (const struct session *s)
{
  const struct engine_options *o = &s->engine->options;

  if (!endpoint_info (s->target.endpoint)->can_multi_conn)
    return 1;
  return session_channels (o->max_connections, o->offline ? s->engine->source : NULL, o->base);
}

/* The channels of the copiers, before there are copiers.  BESIDE: to the base image or to the
 * destination's digests, else NULL. */
struct channels {
  struct channel *dest[MAX_COPIERS], *source[MAX_COPIERS], *beside[MAX_COPIERS];
  unsigned nr;
};

/* What the copiers have a channel to, beside the source and the destination; or NULL. */
static struct endpoint *
beside_of (const struct session *s)
{
  struct endpoint *base = s->engine->options.base;

  return base != NULL ? base : s->target.digests;
}

static char *
prove_identity (struct session *s, struct channel *dest, enum session_problem *problem)
{
  /* The first session of a copy has written nothing yet that could be compared, and a destination
   * that cannot be read will do. */
  if (s->engine->options.offline && s->engine->grace_end_ns == 0)
    return NULL;
  char *error;
  uint64_t rtt;
  enum identity id = identity_check (dest, s->target.endpoint, s->engine->region, &rtt, &error);
  if (id == IDENTITY_SAME) {
    atomic_store (&s->engine->rtt_ns, rtt);
    return NULL;
  }
  if (id == IDENTITY_OTHER)
    *problem = SESSION_REFUSED;
  return error;
}

/* Open the first channel to the destination.  Its identity is proved while its other connections
 * are being made.  NULL with *ERRNUM, *ERROR and *PROBLEM. */
static struct channel *
open_first (struct session *s, enum session_problem *problem, int *errnum, char **error)
{
  struct channel *dest = channel_open (s->target.endpoint, errnum, error);

  if (dest == NULL)
    return NULL;
  *error = prove_identity (s, dest, problem);
  if (*error == NULL && channel_widen (dest, errnum, error) == 0)
    return dest;
  channel_close (dest);
  return NULL;
}

/* Open the channels of one copier more.  False with *ERRNUM and *ERROR, and *PROBLEM where that is
 * not the destination's fault; then none of them is open. */
static bool
open_next (struct session *s, struct channels *chs, enum session_problem *problem, int *errnum,
           char **error)
{
  struct endpoint *beside = beside_of (s);
  struct channel *dest = chs->nr == 0 ? open_first (s, problem, errnum, error)
                                      : channel_open (s->target.endpoint, errnum, error);
  struct channel *source = NULL, *third = NULL;

  if (dest != NULL)
    source = channel_open (s->engine->source, errnum, error);
  if (source != NULL && beside != NULL)
    third = channel_open (beside, errnum, error);
  if (source != NULL && (third != NULL || beside == NULL)) {
    chs->dest[chs->nr] = dest;
    chs->source[chs->nr] = source;
    chs->beside[chs->nr++] = third;
    return true;
  }
  if (dest != NULL && (source == NULL || beside == s->engine->options.base))
    *problem = SESSION_SOURCE;
  channel_close (source);
  channel_close (dest);
  return false;
}

/* Open the channels of WANTED copiers, or of fewer where a server takes no more connections.  NULL,
 * or why not even of one, with *PROBLEM. */
static char *
open_channels (struct session *s, struct channels *chs, unsigned wanted,
               enum session_problem *problem)
{
  enum session_problem found = *problem;

  while (chs->nr < wanted) {
    char *error = NULL;
    int errnum = 0;
    if (open_next (s, chs, &found, &errnum, &error))
      continue;
    if (chs->nr == 0 || errnum != ENDPOINT_FULL) {
      *problem = found;
      return error;
    }
    text_free (error);
    break;
  }
  return NULL;
}

/* The first connection's server is the right one.  Is that of each other one the same?  NULL, or
 * why not, with *PROBLEM. */
static char *
prove_each (struct session *s, const struct channels *chs, enum session_problem *problem)
{
  char *error = NULL;

  if (chs->nr == 1 && channel_connections (chs->dest[0]) == 1)
    return NULL;
  if (identity_check_each (chs->dest, chs->nr, s->target.endpoint, s->engine->region, &error)
      == IDENTITY_OTHER)
    *problem = SESSION_REFUSED;
  return error;
}

/* The user would wonder why it is slow. */
static void
warn_if_full (struct session *s)
{
  const struct endpoint *all[] = { s->target.endpoint, s->engine->source, beside_of (s) };
  const char *told = NULL; /* the digests have the destination's name */

  for (unsigned i = 0; i < 3; i++) {
    if (all[i] == NULL || !endpoint_is_full (all[i])
        || (told != NULL && strcmp (told, endpoint_name (all[i])) == 0))
      continue;
    told = endpoint_name (all[i]);
    warn (s, text_printf ("%s admits fewer connections than it offers: going on with those that"
                          " there are",
                          told));
  }
}

/* May the destination be compared by digests?  They come over connections of their own, and one
 * flush has to cover what all of them have shown.  So it must offer multi-conn. */
static bool
may_have_digests (const struct session *s, const struct session_options *o, uint32_t unit)
{
  const struct endpoint_info *info = endpoint_info (s->target.endpoint);

  return s->engine->options.sync == ENGINE_SYNC_COMPARE && info->is_nbd && info->can_multi_conn
         && o->nr_dest == 1 && unit >= DIGEST_BLOCK_MIN && unit <= DIGEST_BLOCK_MAX
         && unit <= s->engine->region->geo.block_size;
}

/* Look for digests of the destination's blocks.  The seed is ours, and new for each session, so the
 * guest cannot prepare two blocks with one digest.  Without digests the destination is read. */
static void
open_digests (struct session *s, const struct session_options *o)
{
  uint32_t unit = slots_unit (s->engine, &s->target);
  struct endpoint_options eo = { .connect_timeout_ms = o->endpoint.connect_timeout_ms,
                                 .request_timeout_ms = o->endpoint.request_timeout_ms,
                                 .nr_channels = how_many_copiers (s),
                                 .digests = &s->target.key };
  char *why = NULL;

  if (!may_have_digests (s, o, unit)
      || getrandom (&s->target.key.seed, sizeof s->target.key.seed, 0)
             != (ssize_t)sizeof s->target.key.seed)
    return;
  s->target.key.block = unit;
  s->target.digests = endpoint_open (o->dest, o->nr_dest, &eo, NULL, &why);
  text_free (why);
  if (s->target.digests == NULL)
    return;
  /* R13: what another server holds says nothing about the destination. */
  if (endpoint_info (s->target.digests)->digests_of < s->engine->region->geo.disk_size
      || !endpoint_same_server (s->target.endpoint, s->target.digests)) {
    endpoint_close (s->target.digests);
    s->target.digests = NULL;
  }
}

/* Comparing moves the whole disk then, which the user should know once. */
static void
tell_of_reading (struct session *s)
{
  if (s->engine->options.sync != ENGINE_SYNC_COMPARE || s->target.digests != NULL
      || !endpoint_info (s->target.endpoint)->is_nbd || s->engine->grace_end_ns != 0)
    return;
  warn (s, text_printf ("%s serves no digests (nbdkit-digest-filter(1)): it is read to be compared",
                        endpoint_name (s->target.endpoint)));
}

/* A server has admitted fewer connections than were WANTED, perhaps. */
static void
note_admitted (const struct session *s, struct session_options *o, const struct channels *chs,
               unsigned wanted)
{
  unsigned nr = 0;

  if (chs->nr < wanted)
    o->most_channels = o->endpoint.nr_channels = chs->nr;
  for (unsigned i = 0; i < chs->nr; i++)
    nr += channel_connections (chs->dest[i]);
  if (endpoint_is_full (s->target.endpoint))
    o->endpoint.nr_admitted = nr;
}

/* Make the copiers, with their channels.  NULL, or why not, with *PROBLEM. */
static char *
make_copiers (struct session *s, struct session_options *o, enum session_problem *problem)
{
  struct channels chs = { .nr = 0 };
  unsigned wanted = how_many_copiers (s);
  uint64_t begin = clock_ns ();

  if (o->most_channels != 0 && wanted > o->most_channels)
    wanted = o->most_channels;
  char *error = open_channels (s, &chs, wanted, problem);
  /* A server that left us waiting would do so at each reconnection. */
  if (chs.nr > 0 && clock_ns () - begin > NS_PER_S)
    note_admitted (s, o, &chs, wanted);
  if (error == NULL)
    error = prove_each (s, &chs, problem);
  if (error == NULL)
    warn_if_full (s);
  s->copiers = calloc (MAX_COPIERS, sizeof *s->copiers);
  if (error == NULL && s->copiers == NULL)
    error = text_copy ("out of memory");
  for (unsigned i = 0; i < chs.nr; i++) {
    struct copier *c = s->copiers != NULL ? &s->copiers[i] : NULL;
    if (error == NULL && c != NULL) {
      s->nr_copiers++;
      if (copier_init (c, s->engine, &s->target, chs.nr, i == 0) == -1)
        error = text_printf ("cannot make a copier: %s", strerror (errno));
      c->slots.dest = chs.dest[i];
      c->slots.source = chs.source[i];
      c->slots.beside = chs.beside[i];
    } else {
      channel_close (chs.dest[i]);
      channel_close (chs.source[i]);
      channel_close (chs.beside[i]);
    }
  }
  return error;
}

/* Was a session lost before anything that was sent is durable? */
static bool
only_found_again (const struct session *s)
{
  return s->engine->grace_end_ns != 0
         && atomic_load (&s->engine->region->hdr->sent_is_durable) == 0;
}

/* To copy all of it again would cost an incremental job too much: it looks at more of the
 * destination instead.  NULL, or why it may not go on, with *PROBLEM. */
static char *
look_at_more (struct session *s, const struct session_options *o, enum session_problem *problem)
{
  bool looks = s->engine->options.sync == ENGINE_SYNC_INCREMENTAL && only_found_again (s);

  return looks ? o->look_again (o->opaque, s->target.endpoint, problem) : NULL;
}

/* Is it known that the destination holds what is not dirty, and what would be left out?  What was
 * copied counts only at the destination that has it.  Where a job goes on and no sample could be
 * compared, since all of them were being written to, this may be another one.  Where nothing was
 * sent, and nothing that tells it from others was found there, what is left out was proved, but of
 * one connection's server. */
static bool
is_proved (const struct session *s)
{
  const struct region *r = s->engine->region;
  enum engine_sync sync = s->engine->options.sync;

  /* What was found is a few blocks, which another disk may have as well.  A worker that begins has
   * proved more of the destination's server before, as far as that can be. */
  if (identity_is_provable (r) && (!only_found_again (s) || sync == ENGINE_SYNC_INCREMENTAL))
    return true;
  if (sync == ENGINE_SYNC_FULL || sync == ENGINE_SYNC_COMPARE)
    return atomic_load (&r->hdr->session) <= 1;
  return s->proved && atomic_load (&r->hdr->sent_bytes) + atomic_load (&r->hdr->zero_bytes) == 0;
}

static bool
is_full (const struct region *r, enum region_array a)
{
  uint64_t first = 0, count = 0, all = r->geo.nr_blocks;

  return bitmap_next_run (r, a, 0, all, &first, &count) && first == 0 && count == all;
}

/* Else everything is copied again, or compared. */
static void
believe_only_what_is_proved (struct session *s)
{
  struct region *r = s->engine->region;
  enum engine_sync sync = s->engine->options.sync;
  bool sends_all = sync == ENGINE_SYNC_FULL || sync == ENGINE_SYNC_COMPARE;

  if (is_proved (s) || (is_full (r, REGION_DIRTY) && (sends_all || is_full (r, REGION_VISITED))))
    return;
  bitmap_set (r, REGION_DIRTY, 0, r->geo.nr_blocks);
  /* That a destination is zero was said of another one, perhaps. */
  bool compares = sync == ENGINE_SYNC_COMPARE && !s->engine->options.dest_is_zero;
  if (compares) { /* it is as if the job began, and nothing that was sent is relied on */
    samples_drop_in (r, REGION_DIRTY);
    bitmap_clear_all (r, REGION_VISITED);
    atomic_store (&r->hdr->sent_is_durable, 0);
  } else /* nor is its zero block, or its base, to be relied on */
    bitmap_set (r, REGION_VISITED, 0, r->geo.nr_blocks);
  atomic_fetch_add (&r->hdr->given_back, 1); /* a look that goes on is to notice, too */
  s->news
      = text_printf ("no block that was copied earlier can be compared now, so %s may be another"
                     " destination: everything is %s again",
                     endpoint_name (s->target.endpoint), compares ? "compared" : "copied");
}

/* ---- all of it ---- */

char *
session_prepare (struct session *s, struct session_options *o, enum session_problem *problem)
{
  *problem = SESSION_REFUSED;
  char *error = check_destination (s, o);
  if (error == NULL) {
    *problem = SESSION_UNREACHABLE;
    error = look_at_more (s, o, problem);
  }
  if (error == NULL) {
    open_digests (s, o);
    tell_of_reading (s);
    error = make_copiers (s, o, problem);
  }
  if (error == NULL)
    error = read_tail_pad (s);
  if (error == NULL)
    believe_only_what_is_proved (s);
  return error;
}
