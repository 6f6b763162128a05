/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Sessions, one after another.  See supervisor.h.
 */

#include "config.h"

#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/engine/supervisor.h"

#define BACK_OFF_MIN_NS (500 * NS_PER_MS)
#define BACK_OFF_MAX_NS (30000 * NS_PER_MS)
#define STOP_NS (1000 * NS_PER_MS)
#define STOP_POLL_MS 2
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

static void
wait_and_retry (struct supervisor *s)
{
  uint64_t now = clock_ns ();
  if (s->lost_ns == 0)
    s->lost_ns = now;
  /* A destination that takes every connection and then fails every write is as good as away. */
  if (s->trouble_ns == 0)
    s->trouble_ns = s->lost_ns;
  if (s->give_up_ns != UINT64_MAX && now - s->trouble_ns >= s->give_up_ns) {
    s->state = SUPERVISOR_ENDED;
    return;
  }
  s->state = SUPERVISOR_WAITING;
  s->retry_ns = now + s->back_off_ns;
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
                 uint64_t give_up_ns, bool first_may_skip)
{
  memset (s, 0, sizeof *s);
  s->engine = e;
  s->options = o;
  s->give_up_ns = give_up_ns;
  s->first_may_skip = first_may_skip;
  s->back_off_ns = BACK_OFF_MIN_NS;
  begin_connect (s);
}

/* A session was made, or not. */
static void
connect_finished (struct supervisor *s)
{
  pthread_join (s->thread, NULL);
  s->thread_running = false;
  struct session *made = s->connected;
  s->connected = NULL;
  if (made != NULL && session_start (made, s->first_may_skip, &s->connect_error) == -1) {
    session_end (made);
    made = NULL;
    s->connect_problem = SESSION_UNREACHABLE;
  }
  if (made == NULL) {
    set_error (s, s->connect_error);
    text_free (s->connect_error);
    s->connect_error = NULL;
    s->problem = s->connect_problem;
    /* The very first attempt fails at once; what is refused, or a dead source, always does. */
    if (s->problem != SESSION_UNREACHABLE || !s->ever_copied)
      s->state = SUPERVISOR_ENDED;
    else
      wait_and_retry (s);
    return;
  }
  s->first_may_skip = false;
  if (s->lost_ns != 0) {
    s->degraded_ns += clock_ns () - s->lost_ns;
    s->reconnects++;
    s->lost_ns = 0;
  }
  s->ever_copied = true;
  s->session_ns = clock_ns ();
  s->flushes_before = atomic_load (&s->engine->counters.flushes);
  s->session = made;
  s->state = SUPERVISOR_COPYING;
}

static void
session_was_lost (struct supervisor *s)
{
  set_error (s, session_lost (s->session));
  s->problem = SESSION_UNREACHABLE;
  session_end (s->session);
  s->session = NULL;
  s->lost_ns = clock_ns ();
  if (s->lost_ns - s->session_ns >= SETTLED_NS)
    s->trouble_ns = 0;
  wait_and_retry (s);
}

bool
supervisor_poll (struct supervisor *s)
{
  enum supervisor_state before = s->state;

  switch (s->state) {
  case SUPERVISOR_CONNECTING:
    if (atomic_load (&s->thread_done))
      connect_finished (s);
    break;
  case SUPERVISOR_COPYING:
    if (session_lost (s->session))
      session_was_lost (s);
    else if (atomic_load (&s->engine->counters.flushes) > s->flushes_before) {
      s->back_off_ns = BACK_OFF_MIN_NS;
      s->trouble_ns = 0;
    }
    break;
  case SUPERVISOR_WAITING:
    if (clock_ns () >= s->retry_ns)
      begin_connect (s);
    break;
  case SUPERVISOR_ENDED:
    break;
  }
  return s->state != before;
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
    for (uint64_t end = clock_ns () + STOP_NS; !atomic_load (&s->thread_done);
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
