/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A session: connecting to the destination, starting and stopping the copiers.  See session.h.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "dirty-bitmap/bitmap.h"
#include "mirror/engine/copier.h"
#include "mirror/engine/engine.h"
#include "mirror/engine/identity.h"
#include "mirror/engine/session.h"
#include "mirror/endpoint/blocking.h"

#define MAX_COPIERS 4
#define DRAIN_SECONDS 2

static char *
message (const char *fmt, ...)
{
  va_list ap;
  char *s;
  va_start (ap, fmt);
  if (vasprintf (&s, fmt, ap) == -1)
    s = NULL;
  va_end (ap);
  return s;
}

char *
session_refusal (const struct endpoint *dest, uint64_t disk_size, uint32_t block_size,
                 bool allow_no_flush)
{
  const struct endpoint_info *info = endpoint_info (dest);
  const char *name = endpoint_name (dest);

  if (info->read_only)
    return message ("%s is read-only", name);
  if (info->size < disk_size)
    return message ("%s is too small: %" PRIu64 " bytes, and the source has %" PRIu64, name,
                    info->size, disk_size);
  if (!info->can_flush && !allow_no_flush)
    return message ("%s cannot flush, so nothing written there is ever known to be safe "
                    "(--allow-unsafe-destination accepts that)",
                    name);
  if (info->min_block > block_size)
    return message ("%s takes requests of at least %" PRIu32 " bytes, but blocks of %" PRIu32
                    " bytes are tracked: choose a larger block size (mirror-block-size=)",
                    name, info->min_block, block_size);
  uint32_t unit = info->min_block > SAMPLE_BYTES ? info->min_block : SAMPLE_BYTES;
  if (info->max_request < unit)
    return message ("%s takes requests of at most %" PRIu32 " bytes, and needs to take %" PRIu32,
                    name, info->max_request, unit);
  uint64_t tail = disk_size % info->min_block;
  if (tail != 0 && info->size < disk_size - tail + info->min_block)
    return message ("%s takes only multiples of %" PRIu32
                    " bytes, too large for the end of the disk",
                    name, info->min_block);
  return NULL;
}

/* The same for a session that is being made.  A destination that reconnects is checked again. */
static char *
check_destination (struct session *s, const struct session_options *o)
{
  const struct region_geometry *geo = &s->engine->region->geo;
  const struct endpoint_info *info = endpoint_info (s->dest);

  s->min_block = info->min_block;
  s->have_flush = info->can_flush;
  if (info->size > geo->disk_size)
    s->warning = message ("%s is larger than the source (%" PRIu64 " > %" PRIu64
                          " bytes): what lies behind the end is left alone",
                          endpoint_name (s->dest), info->size, geo->disk_size);
  return session_refusal (s->dest, geo->disk_size, geo->block_size, o->allow_no_flush);
}

/* Read what follows an odd tail, to write it back unchanged with each write of the tail. */
static char *
read_tail_pad (struct session *s)
{
  uint64_t size = s->engine->region->geo.disk_size;
  uint32_t used = (uint32_t)(size % s->min_block);
  if (used == 0)
    return NULL;
  uint8_t *buf;
  if (posix_memalign ((void **)&buf, 4096, s->min_block > 4096 ? s->min_block : 4096) != 0)
    return message ("out of memory");
  int err = sync_read (s->copiers[0].dest, buf, s->min_block, size - used);
  if (err) {
    free (buf);
    return message ("%s: cannot read the last block: %s", endpoint_name (s->dest), strerror (err));
  }
  s->tail_pad_len = s->min_block - used;
  memmove (buf, buf + used, s->tail_pad_len);
  s->tail_pad = buf;
  return NULL;
}

static unsigned
how_many_copiers (const struct session *s)
{
  long cores = sysconf (_SC_NPROCESSORS_ONLN);
  unsigned n = cores < 1 ? 1 : cores > MAX_COPIERS ? MAX_COPIERS : (unsigned)cores;
  if (s->engine->options.nr_copiers != 0 && n > s->engine->options.nr_copiers)
    n = s->engine->options.nr_copiers;
  const struct endpoint_info *src = endpoint_info (s->engine->source);
  if (s->engine->options.offline && src->is_nbd && !src->can_multi_conn)
    return 1; /* a server of somebody else's, which may take one client only */
  return endpoint_info (s->dest)->can_multi_conn ? n : 1;
}

/* Open the channels of all copiers.  NULL, or why not, with *PROBLEM. */
static char *
open_channels (struct session *s, enum session_problem *problem)
{
  unsigned n = how_many_copiers (s);
  char *error = NULL;

  s->copiers = calloc (n, sizeof *s->copiers);
  if (s->copiers == NULL)
    return message ("out of memory");
  s->nr_copiers = n;
  for (unsigned i = 0; i < n; i++) {
    struct copier *c = &s->copiers[i];
    if (copier_init (c, s, i) == -1)
      return message ("cannot make a copier: %s", strerror (errno));
    c->dest = channel_open (s->dest, NULL, &error);
    if (c->dest == NULL)
      return error;
    c->source = channel_open (s->engine->source, NULL, &error);
    if (c->source == NULL) {
      *problem = SESSION_SOURCE;
      return error;
    }
  }
  return NULL;
}

static char *
prove_identity (struct session *s, enum session_problem *problem)
{
  char *error;
  uint64_t rtt;
  enum identity id = identity_check (s->copiers[0].dest, s->dest, s->engine->region, &rtt, &error);
  if (id == IDENTITY_SAME) {
    atomic_store (&s->engine->rtt_ns, rtt);
    return NULL;
  }
  if (id == IDENTITY_OTHER)
    *problem = SESSION_REFUSED;
  return error ? error : message ("out of memory");
}

struct session *
session_connect (struct engine *e, struct session_options *o, enum session_problem *problem,
                 char **error)
{
  *problem = SESSION_UNREACHABLE;
  struct session *s = calloc (1, sizeof *s);
  if (s == NULL) {
    *error = message ("out of memory");
    return NULL;
  }
  s->engine = e;
  pthread_mutex_init (&s->lock, NULL);
  int errnum = 0;
  s->dest
      = o->opened ? o->opened : endpoint_open (o->dest, o->nr_dest, &o->endpoint, &errnum, error);
  o->opened = NULL;
  /* From now on a file that has vanished is a lost destination: an empty new one is none. */
  o->endpoint.create = false;
  if (s->dest == NULL) {
    if (errnum == EROFS)
      *problem = SESSION_REFUSED;
    session_end (s);
    return NULL;
  }
  *problem = SESSION_REFUSED;
  *error = check_destination (s, o);
  if (*error == NULL) {
    *problem = SESSION_UNREACHABLE;
    *error = open_channels (s, problem);
  }
  if (*error == NULL)
    *error = prove_identity (s, problem);
  if (*error == NULL)
    *error = read_tail_pad (s);
  if (*error != NULL) {
    session_end (s);
    return NULL;
  }
  return s;
}

int
session_start (struct session *s, bool first, char **error)
{
  struct engine *e = s->engine;

  pthread_mutex_lock (&e->lock);
  e->session = s;
  atomic_store (&e->may_skip, first);
  /* The server has answered a read by now (identity.c), so its first reply is not later than this.
   */
  e->grace_end_ns = now_ns () + e->options.grace_ns;
  e->last_flush_ns = now_ns ();
  pthread_mutex_unlock (&e->lock);

  for (unsigned i = 0; i < s->nr_copiers; i++) {
    int err = pthread_create (&s->copiers[i].thread, NULL, copier_run, &s->copiers[i]);
    if (err != 0) {
      *error = message ("cannot start a thread: %s", strerror (err));
      return -1;
    }
    s->nr_started++;
  }
  return 0;
}

void
session_kick (struct session *s)
{
  if (s == NULL)
    return;
  for (unsigned i = 0; i < s->nr_copiers; i++)
    copier_wake (&s->copiers[i]);
}

void
session_kick_flusher (struct session *s)
{
  if (s != NULL)
    copier_wake (&s->copiers[0]);
}

void
session_fail (struct session *s, const char *why)
{
  pthread_mutex_lock (&s->lock);
  if (s->error == NULL)
    s->error = strdup (why ? why : "connection lost");
  pthread_mutex_unlock (&s->lock);
  atomic_store (&s->stop, true);
  session_kick (s);
  engine_notify (s->engine);
}

const char *
session_lost (struct session *s)
{
  pthread_mutex_lock (&s->lock);
  const char *why = s->error;
  pthread_mutex_unlock (&s->lock);
  return why;
}

/* Join the copiers, giving them time to end what they have begun. */
static void
join_copiers (struct session *s)
{
  struct timespec deadline;
  clock_gettime (CLOCK_REALTIME, &deadline);
  deadline.tv_sec += DRAIN_SECONDS;

  atomic_store (&s->draining, true);
  session_kick (s);
  for (unsigned i = 0; i < s->nr_started; i++) {
    if (pthread_timedjoin_np (s->copiers[i].thread, NULL, &deadline) == 0)
      continue;
    atomic_store (&s->stop, true);
    session_kick (s);
    pthread_join (s->copiers[i].thread, NULL);
  }
  atomic_store (&s->stop, true);
}

/* Was every request of this session answered, and is nothing left of those before it?  Its threads
 * have stopped. */
static bool
all_answered (struct session *s)
{
  bool all = session_lost (s) == NULL && bitmap_empty (s->engine->region, REGION_QUARANTINE);
  for (unsigned i = 0; i < s->nr_started; i++)
    all = all && s->copiers[i].nr_active == 0;
  return all;
}

void
session_end (struct session *s)
{
  struct engine *e = s->engine;
  bool started = s->nr_started > 0;

  join_copiers (s);
  if (started)
    e->unanswered = !all_answered (s);
  pthread_mutex_lock (&e->lock);
  if (e->session == s)
    e->session = NULL;
  pthread_mutex_unlock (&e->lock);
  for (unsigned i = 0; i < s->nr_copiers; i++)
    copier_destroy (&s->copiers[i]);
  if (started)
    engine_session_over (e);
  if (s->dest)
    endpoint_close (s->dest);
  pthread_mutex_destroy (&s->lock);
  free (s->copiers);
  free (s->tail_pad);
  free (s->warning);
  free (s->error);
  free (s);
}
