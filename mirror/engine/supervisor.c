/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Sessions, one after another.  See supervisor.h.
 */

#include "config.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/engine/supervisor.h"

#define BACK_OFF_MIN_NS (500 * NS_PER_MS)
#define BACK_OFF_MAX_NS (30000 * NS_PER_MS)
#define STOP_NS (1000 * NS_PER_MS)
#define STOP_GIVEN_UP_NS (20 * NS_PER_MS) /* the user has waited long enough */
#define STOP_POLL_MS 2
/* A session beyond the job's time limit is given so long for a reply before it is ended, and some
 * round trips. */
#define REPLY_NS (150 * NS_PER_MS)
#define REPLY_TRIPS 3
/* How often a request is tried that is refused with an error that does not pass.  Servers also say
 * EINVAL where the protocol has no name for their own error, and that one may pass: eight tries
 * take a minute. */
#define REFUSED_TRIES 3
#define EINVAL_TRIES 8
/* A session that lasts so long gets somewhere, whether it has flushed or not. */
#define SETTLED_NS (10 * NS_PER_S)

static void *
connect_thread (void *opaque)
{
  struct supervisor *s = opaque;
  s->connected = session_connect (s->engine, s->options, &s->connect_problem, &s->connect_error);
  atomic_store (&s->thread_done, true);
  engine_notify (s->engine);
  return NULL;
}

static void
set_error (struct supervisor *s, const char *why)
{
  text_free (s->error);
  s->error = text_copy (why ? why : "out of memory");
}

/* When the job gives up, if nothing changes; UINT64_MAX: never. */
static uint64_t
give_up_at (const struct supervisor *s)
{
  if (s->trouble_ns == 0 || s->give_up_ns >= UINT64_MAX - s->trouble_ns)
    return UINT64_MAX;
  return s->trouble_ns + s->give_up_ns;
}

static void
give_up (struct supervisor *s)
{
  s->gave_up = true;
  s->state = SUPERVISOR_ENDED;
}

static void
wait_and_retry (struct supervisor *s)
{
  uint64_t now = clock_ns ();
  if (s->lost_ns == 0)
    s->lost_ns = now;
  /* A destination that takes every connection and then fails every write is as good as away. */
  if (s->trouble_ns == 0)
    s->trouble_ns = s->lost_ns;
  uint64_t deadline = give_up_at (s);
  if (now >= deadline) {
    give_up (s);
    return;
  }
  s->state = SUPERVISOR_WAITING;
  s->retry_ns = now + s->back_off_ns < deadline ? now + s->back_off_ns : deadline;
  s->back_off_ns *= 2;
  if (s->back_off_ns > BACK_OFF_MAX_NS)
    s->back_off_ns = BACK_OFF_MAX_NS;
}

static void
begin_connect (struct supervisor *s)
{
  atomic_store (&s->thread_done, false);
  s->connected = NULL;
  s->connect_error = NULL;
  if (pthread_create (&s->thread, NULL, connect_thread, s) != 0) {
    set_error (s, "cannot start a thread");
    s->problem = SESSION_UNREACHABLE;
    wait_and_retry (s);
    return;
  }
  s->thread_running = true;
  s->state = SUPERVISOR_CONNECTING;
}

void
supervisor_init (struct supervisor *s, struct engine *e, struct session_options *o,
                 uint64_t give_up_ns)
{
  memset (s, 0, sizeof *s);
  s->engine = e;
  s->options = o;
  s->give_up_ns = give_up_ns;
  s->back_off_ns = BACK_OFF_MIN_NS;
  begin_connect (s);
}

/* Grows with each reply to a write or a flush, and with what need not be written: a job that only
 * compares may write nothing for long. */
static uint64_t
progress_of (const struct engine *e)
{
  return atomic_load (&e->region->hdr->progress) + atomic_load (&e->counters.passed_bytes);
}

/* A session was made, or not. */
static void
connect_finished (struct supervisor *s)
{
  pthread_join (s->thread, NULL);
  s->thread_running = false;
  struct session *made = s->connected;
  s->connected = NULL;
  if (made != NULL && session_start (made, &s->connect_error) == -1) {
    session_end (made);
    made = NULL;
    s->connect_problem = SESSION_UNREACHABLE;
  }
  if (made == NULL) {
    set_error (s, s->connect_error);
    text_free (s->connect_error);
    s->connect_error = NULL;
    s->problem = s->connect_problem;
    /* The very first attempt fails at once, and what is refused always does. */
    if (s->problem == SESSION_REFUSED || !s->ever_copied)
      s->state = SUPERVISOR_ENDED;
    else
      wait_and_retry (s);
    return;
  }
  if (s->lost_ns != 0) {
    s->degraded_ns += clock_ns () - s->lost_ns;
    s->reconnects++;
    s->lost_ns = 0;
  }
  s->ever_copied = true;
  s->session_ns = clock_ns ();
  s->progress = progress_of (s->engine);
  s->progress_ns = s->session_ns;
  s->session = made;
  s->state = SUPERVISOR_COPYING;
}

static void
session_was_lost (struct supervisor *s)
{
  int refused_with = session_refused_with (s->session);
  unsigned tries = refused_with == EINVAL ? EINVAL_TRIES : REFUSED_TRIES;
  set_error (s, session_lost (s->session));
  s->problem = session_lost_source (s->session) ? SESSION_SOURCE : SESSION_UNREACHABLE;
  session_end (s->session);
  s->session = NULL;
  s->lost_ns = clock_ns ();
  bool settled = s->lost_ns - s->session_ns >= SETTLED_NS;
  if (settled)
    s->trouble_ns = 0;
  s->refusals = refused_with == 0 ? 0 : settled ? 1 : s->refusals + 1;
  if (s->refusals < tries) {
    wait_and_retry (s);
    return;
  }
  char *why = text_printf ("%s (the same at each of %u tries)", s->error, s->refusals);
  set_error (s, why);
  text_free (why);
  s->state = SUPERVISOR_ENDED;
}

/* Has the session been waiting for a reply since the job should have given up, and longer than a
 * destination that works takes for one?  Each reply to a write counts, of zeroes as well: a block
 * in quarantine is done only two round trips after it was begun. */
static bool
waits_in_vain (struct supervisor *s)
{
  struct engine *e = s->engine;
  uint64_t now = clock_ns (), progress = progress_of (e);

  if (progress != s->progress || atomic_load (&e->counters.in_copy_bytes) == 0) {
    s->progress = progress;
    s->progress_ns = now;
  }
  return now >= give_up_at (s)
         && now - s->progress_ns >= REPLY_NS + REPLY_TRIPS * engine_rtt_ns (e);
}

static void
look_at_session (struct supervisor *s)
{
  if (session_lost (s->session)) {
    session_was_lost (s);
    return;
  }
  if (atomic_load (&s->engine->counters.flushes) > s->engine->flushes_before) {
    s->back_off_ns = BACK_OFF_MIN_NS;
    s->trouble_ns = 0;
  }
  if (!waits_in_vain (s))
    return;
  session_fail (s->session, s->error);
  session_was_lost (s);
  give_up (s);
}

bool
supervisor_poll (struct supervisor *s)
{
  enum supervisor_state before = s->state;

  switch (s->state) {
  case SUPERVISOR_CONNECTING:
    if (atomic_load (&s->thread_done))
      connect_finished (s);
    else if (clock_ns () >= give_up_at (s))
      give_up (s);
    break;
  case SUPERVISOR_COPYING:
    look_at_session (s);
    break;
  case SUPERVISOR_WAITING:
    if (clock_ns () >= give_up_at (s))
      give_up (s);
    else if (clock_ns () >= s->retry_ns)
      begin_connect (s);
    break;
  case SUPERVISOR_ENDED:
    break;
  }
  return s->state != before;
}

uint64_t
supervisor_due_ns (const struct supervisor *s)
{
  uint64_t give_up = give_up_at (s);

  if (s->state == SUPERVISOR_WAITING)
    return s->retry_ns < give_up ? s->retry_ns : give_up;
  if (s->state == SUPERVISOR_CONNECTING)
    return give_up;
  return UINT64_MAX;
}

char *
supervisor_verdict (const struct supervisor *s)
{
  if (s->gave_up && s->give_up_ns > 0)
    return text_printf ("given up after %g s without a %s that works: %s",
                        (double)s->give_up_ns / (double)NS_PER_S,
                        s->problem == SESSION_SOURCE ? "source" : "destination", s->error);
  return text_printf ("%s%s", s->problem == SESSION_REFUSED ? "refused: " : "", s->error);
}

uint64_t
supervisor_degraded_ns (const struct supervisor *s)
{
  return s->degraded_ns + (s->lost_ns ? clock_ns () - s->lost_ns : 0);
}

bool
supervisor_stop (struct supervisor *s)
{
  if (s->session)
    session_end (s->session);
  s->session = NULL;
  s->state = SUPERVISOR_ENDED;
  if (s->thread_running) {
    /* Most connections are made at once: then everything can be put away. */
    uint64_t patience = clock_ns () >= give_up_at (s) ? STOP_GIVEN_UP_NS : STOP_NS;
    for (uint64_t end = clock_ns () + patience; !atomic_load (&s->thread_done);
         clock_sleep_ms (STOP_POLL_MS))
      if (clock_ns () >= end)
        return false;
    pthread_join (s->thread, NULL);
    s->thread_running = false;
    if (s->connected)
      session_end (s->connected);
    s->connected = NULL;
    text_free (s->connect_error);
    s->connect_error = NULL;
  }
  text_free (s->error);
  s->error = NULL;
  return true;
}
