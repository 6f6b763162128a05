/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Keeps a job supplied with sessions: connects, watches, and after a loss waits and connects again.
 *
 *   CONNECTING  a session is being made; then COPYING, or WAITING, or ENDED if it was refused
 *   COPYING     until the session is lost; then WAITING
 *   WAITING     0.5 s, doubled at each failure up to 30 s; then CONNECTING
 *   ENDED
 *
 * The job gives up when sessions have been lost, without a flush in between, for give_up_ns.  This
 * is kept in every state: the last wait is shortened, a connection that is still being made then is
 * left alone, and so is a session that waits for a reply in vain.
 *
 * It ends as well when several sessions in a row were lost, each soon, because the
 * destination refused a request with an error that does not pass: trying again would change
 * nothing.
 *
 * Connecting may block for as long as its time limits allow, so it has a thread of its own, and the
 * job's thread stays able to answer.  All functions are the job's thread's.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_SUPERVISOR_H
#define NBDMIRROR_MIRROR_ENGINE_SUPERVISOR_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "mirror/engine/engine.h"
#include "mirror/engine/session.h"

enum supervisor_state {
  SUPERVISOR_CONNECTING,
  SUPERVISOR_COPYING,
  SUPERVISOR_WAITING,
  SUPERVISOR_ENDED
};

struct supervisor {
  struct engine *engine;
  struct session_options *options;
  uint64_t give_up_ns; /* end after so long without a destination that works; UINT64_MAX: never */

  enum supervisor_state state;
  struct session *session;      /* while COPYING */
  enum session_problem problem; /* valid when ENDED, of the last failure */
  char *error;                  /* the last failure, or NULL */
  bool gave_up;                 /* ENDED because give_up_ns was over */
  bool ever_copied;
  unsigned reconnects;
  unsigned refusals;    /* sessions in a row that ended with a request that is always refused */
  uint64_t degraded_ns; /* in all, up to the present session */
  uint64_t lost_ns;     /* since when there is no session, once one was lost; else 0 */
  uint64_t trouble_ns;  /* since when sessions have been lost without getting anywhere; else 0 */
  uint64_t session_ns;  /* when the present session began */
  uint64_t retry_ns, back_off_ns;
  uint64_t progress, progress_ns; /* while COPYING: of the region, and since when something waits
                                     for a reply in vain */

  pthread_t thread; /* while CONNECTING */
  bool thread_running;
  _Atomic bool thread_done;
  struct session *connected;
  enum session_problem connect_problem;
  char *connect_error;
};

void supervisor_init (struct supervisor *s, struct engine *e, struct session_options *o,
                      uint64_t give_up_ns);

/* Move on.  Call when the engine's notify_fd was readable, at least every 100 ms, and at
 * supervisor_due_ns().  Returns true if the state changed. */
bool supervisor_poll (struct supervisor *s);

/* When supervisor_poll() has something to do by itself; UINT64_MAX: not known. */
uint64_t supervisor_due_ns (const struct supervisor *s);

/* ENDED: why, for the user.  The caller frees it with text_free(). */
char *supervisor_verdict (const struct supervisor *s);

/* Time without a destination, in all, until now. */
uint64_t supervisor_degraded_ns (const struct supervisor *s);

/* End the session, if any.  A connection that is being made is waited for, but for no longer than 1
 * s: returns false if its thread still runs, and then the engine, the options and S must stay as
 * they are until the process ends. */
bool supervisor_stop (struct supervisor *s);

#endif
