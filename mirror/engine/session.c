/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A session's life: starting and stopping the copiers.  See session.h.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/text.h"
#include "dirty-bitmap/bitmap.h"
#include "mirror/engine/session-prepare.h"
#include "mirror/engine/session.h"

#define DRAIN_NS (2 * NS_PER_S)

/* ---- what the copiers and the engine tell the session ---- */

/* Called with the engine's lock held. */
static void
wake_all (void *opaque)
{
  struct session *s = opaque;
  for (unsigned i = 0; i < s->nr_copiers; i++)
    copier_wake (&s->copiers[i]);
}

static void
wake_flusher (void *opaque)
{
  struct session *s = opaque;
  copier_wake (&s->copiers[0]);
}

void
session_fail (struct session *s, const char *why)
{
  pthread_mutex_lock (&s->lock);
  if (s->error == NULL)
    s->error = text_copy (why ? why : "connection lost");
  pthread_mutex_unlock (&s->lock);
  atomic_store (&s->target.stop, true);
  wake_all (s);
  engine_notify (s->engine);
}

bool
session_lost_source (const struct session *s)
{
  return atomic_load (&s->target.source_lost);
}

static void
fail (void *opaque, const char *why)
{
  session_fail (opaque, why);
}

/* ---- beginning ---- */

struct session *
session_connect (struct engine *e, struct session_options *o, enum session_problem *problem,
                 char **error)
{
  *problem = SESSION_UNREACHABLE;
  struct session *s = calloc (1, sizeof *s);
  if (s == NULL) {
    *error = text_copy ("out of memory");
    return NULL;
  }
  s->engine = e;
  s->target.fail = fail;
  s->target.opaque = s;
  pthread_mutex_init (&s->lock, NULL);
  int errnum = 0;
  s->target.endpoint
      = o->opened ? o->opened : endpoint_open (o->dest, o->nr_dest, &o->endpoint, &errnum, error);
  s->proved = o->opened != NULL && o->proved;
  o->opened = NULL;
  /* From now on a file that has vanished is a lost destination, and must not be made anew. */
  o->endpoint.create = false;
  o->endpoint.flush_tried
      = s->target.endpoint != NULL && endpoint_info (s->target.endpoint)->flush_error == 0;
  if (s->target.endpoint == NULL) {
    if (errnum == EROFS)
      *problem = SESSION_REFUSED;
    session_end (s);
    return NULL;
  }
  *error = session_prepare (s, o, problem);
  if (*error != NULL) {
    session_end (s);
    return NULL;
  }
  return s;
}

int
session_start (struct session *s, char **error)
{
  s->wakers = (struct engine_copiers){
    .wake_all = wake_all,
    .wake_flusher = wake_flusher,
    .opaque = s,
    .zeroes_cost = !endpoint_info (s->target.endpoint)->can_zero,
  };
  /* The server has answered a read by now (identity.c). */
  engine_session_begin (s->engine, &s->wakers);
  s->begun = true;

  uint64_t rtt_ns = atomic_load (&s->engine->rtt_ns);
  if (rtt_ns == 0)
    rtt_ns = endpoint_info (s->target.endpoint)->rtt_ns;
  for (unsigned i = 0; i < s->nr_copiers; i++) {
    window_expect (&s->copiers[i].slots.windows.whole, rtt_ns);
    int err = pthread_create (&s->copiers[i].thread, NULL, copier_run, &s->copiers[i]);
    if (err != 0)
      return text_error (error, "cannot start a thread: %s", strerror (err));
    s->nr_started++;
  }
  return 0;
}

const char *
session_lost (struct session *s)
{
  pthread_mutex_lock (&s->lock);
  const char *why = s->error;
  pthread_mutex_unlock (&s->lock);
  return why;
}

int
session_refused_with (const struct session *s)
{
  return atomic_load (&s->target.refused_with);
}

/* ---- end ---- */

/* Join the copiers, giving them time to end what they have begun. */
static void
join_copiers (struct session *s)
{
  /* This goes by the date.  pthread_clockjoin_np() would not, but ThreadSanitizer does not know it,
   * and would take what a copier did before its end for a race. */
  uint64_t date_ns = (uint64_t)clock_date_us () * NS_PER_US;
  struct timespec deadline = clock_timespec (date_ns + DRAIN_NS);

  atomic_store (&s->target.draining, true);
  wake_all (s);
  for (unsigned i = 0; i < s->nr_started; i++) {
    if (pthread_timedjoin_np (s->copiers[i].thread, NULL, &deadline) == 0)
      continue;
    atomic_store (&s->target.stop, true);
    wake_all (s);
    pthread_join (s->copiers[i].thread, NULL);
  }
  atomic_store (&s->target.stop, true);
}

/* Was every request of this session answered, and is nothing left of those before it?  Its threads
 * have stopped. */
static bool
all_answered (struct session *s)
{
  bool all = session_lost (s) == NULL && bitmap_empty (s->engine->region, REGION_QUARANTINE);
  for (unsigned i = 0; i < s->nr_started; i++)
    all = all && s->copiers[i].left == 0;
  return all;
}

void
session_end (struct session *s)
{
  join_copiers (s);
  if (s->nr_started > 0)
    s->engine->unanswered = !all_answered (s);
  for (unsigned i = 0; i < s->nr_copiers; i++)
    copier_close (&s->copiers[i]);
  /* From here on the engine wakes nobody, so the copiers can go. */
  if (s->begun)
    engine_session_over (s->engine);
  for (unsigned i = 0; i < s->nr_copiers; i++)
    copier_destroy (&s->copiers[i]);
  if (s->target.digests)
    endpoint_close (s->target.digests);
  if (s->target.endpoint)
    endpoint_close (s->target.endpoint);
  pthread_mutex_destroy (&s->lock);
  free (s->copiers);
  free (s->target.tail_pad);
  text_free (s->warning);
  text_free (s->news);
  text_free (s->error);
  free (s);
}
