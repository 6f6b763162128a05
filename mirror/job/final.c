/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The final phase of a live job, from the request to prepare to the commit:
 *
 *   NONE
 *   SETTLE     Passes go on until one leaves very little, or no less than those before it, for at
 *              most SETTLE_NS.  Where passes do not halve what is left, policies sync and throttle
 *              make the gate synchronous meanwhile.
 *   FLUSH      What is acknowledged becomes durable while the guest still runs.
 *   AWAIT      Only on a long line: copying goes on until a moment at which no block that is being
 *              copied has been written again.  Such a block would make the pause two writes long.
 *   ARMED      A coordinator of several disks waits until all have come so far, and then has all
 *              gates held.  Passes go on meanwhile.  If nothing is left then, the filter finds the
 *              disk prepared by itself, and we are told of the commit or the release only.
 *   COPY       The filter has held and drained the gate.  The last blocks are copied and flushed.
 *   PREPARED   The filter took its final look (R3): nothing is in flight, and nothing is left.
 *              Then the hand-off is committed, or the gate is released (by lease, coordinator, user
 *              or a lost destination), which leads back to NONE.
 *
 * After the commit, when the session has ended, the destination is sealed.
 *
 * A filter that does not answer when a hand-off is given up may have committed it.  We stay then
 * where we are, until it says how that ended or its connection is lost.
 *
 * The filter keeps the lease: whatever happens to us, it opens the gate in time.  But a guest is
 * not to be held for nothing: if what is left would not fit in the lease (2 x max-downtime, or what
 * the coordinator asked for) it is not held at all, or let go as soon as that is seen.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/endpoint/seal.h"
#include "mirror/endpoint/uri.h"
#include "mirror/job/internal.h"

#define SETTLE_NS (1000 * NS_PER_MS)
/* Another pass is not worth while if what is left would take no longer than this. */
#define SETTLE_MS 2
/* So many passes may end with no less left than the best one before. */
#define SETTLE_VAIN 5
/* The guest is rather slowed down than held, if what is left would take at least this long. */
#define SETTLE_SLOW_MS 10
#define RETRY_HANDOFF_NS (1000 * NS_PER_MS)

/* A line is long if a write takes at least this.  AWAIT takes no longer than so many writes. */
#define LONG_LINE_NS ((uint64_t)(5 * NS_PER_MS))
#define AWAIT_WRITES 3

static void
back_to_copying (struct job *j)
{
  j->final = FINAL_NONE;
  j->final_request = -1;
  j->final_unknown = false;
  j->settle_sync = false;
  engine_set_hurry (&j->engine, false, false);
}

/* How long it would take to copy what is left; 0 if that is not known. */
static double
left_ms (struct job *j)
{
  double bandwidth = j->estimate.bandwidth;
  return bandwidth > 0 ? (double)engine_left_bytes (&j->engine) / bandwidth * 1000 : 0;
}

/* What is left would take MS, and the guest writes too much for passes to bring that down.  If the
 * policy allows it, the guest's writes wait for the destination from now on until the hold, each
 * for at most max-write-delay.  That is better than one pause for all that is left.
 * job_gate_update() sets the gate, and sets it back. */
static void
settle_synchronously (struct job *j, double ms)
{
  if (j->settle_sync || ms < SETTLE_SLOW_MS
      || (j->policy != POLICY_SYNC && j->policy != POLICY_THROTTLE))
    return;
  j->settle_sync = true;
  job_gate_update (j);
}

static void
settle (struct job *j)
{
  j->final = FINAL_SETTLE;
  j->final_wraps = atomic_load (&j->engine.wraps);
  j->settle_left = UINT64_MAX;
  j->settle_vain = 0;
  if (j->estimate.dirty_rate > j->estimate.bandwidth / 2)
    settle_synchronously (j, left_ms (j)); /* no pass would halve what is left */
}

/* How long a pause would be that began now, or has begun HELD_MS ago: the last blocks are copied
 * and flushed.  BANDWIDTH is in bytes a second, and above 0. */
static double
rest_ms (struct job *j, double bandwidth, double held_ms)
{
  double left = (double)engine_left_bytes (&j->engine);
  double write = (double)engine_write_ns (&j->engine) / (double)NS_PER_MS - held_ms;

  return left / bandwidth * 1000 + (left > 0 && write > 0 ? write : 0)
         + (double)engine_flush_ns (&j->engine) / (double)NS_PER_MS;
}

/* Is so little left that a stopped guest can be handed over?  This is asked where the job is not
 * ready, because that takes two samples, and a stopped guest can make nothing worse meanwhile. */
static bool
little_is_left (struct job *j)
{
  return j->supervisor.state == SUPERVISOR_COPYING && !j->source_errors.any
         && j->estimate.bandwidth > 0
         && rest_ms (j, j->estimate.bandwidth, 0) <= (double)(2 * j->max_downtime_ms);
}

/* Have the filter close the gate.  Returns when all writes that were below it have ended. */
static void
hold (struct job *j)
{
  json_t *ret = NULL;
  char *class_ = NULL, *error = NULL;
  int timeout = (int)(j->lease_ms < INT32_MAX / 2 ? j->lease_ms : INT32_MAX / 2);

  engine_set_hurry (&j->engine, true, j->o->unlimited_hold);
  j->held_acked = atomic_load (&j->engine.counters.acked_bytes);
  struct control_call call = { .command = "mirror-hold",
                               .args = json_pack ("{s:I}", "lease-ms", (json_int_t)j->lease_ms),
                               .timeout_ms = timeout + JOB_CONTROL_TIMEOUT_MS,
                               .ret = &ret,
                               .class_ = &class_ };
  if (control_client_call (j->control, &call, &error) == -1) {
    int64_t request = j->final_request;
    back_to_copying (j);
    if (request >= 0)
      job_reply (j, request, class_ ? class_ : "GenericError", "%s", error ? error : "hold failed");
    job_say (j, JOB_WARNING, "cannot hold the gate: %s", error);
    text_free (class_);
    text_free (error);
    return;
  }
  j->generation = (uint64_t)json_integer_value (json_object_get (ret, "generation"));
  json_decref (ret);
  j->final = FINAL_COPY;
  j->held_ns = clock_ns ();
}

/* Tell the coordinator that everything is done that can be done before the hold. */
static void
be_armed (struct job *j)
{
  j->final = FINAL_ARMED;
  job_reply (j, j->final_request, NULL, "%s", "");
  j->final_request = -1;
}

void
job_final_held (struct job *j, uint64_t generation)
{
  if (j->final != FINAL_ARMED)
    return;
  engine_set_hurry (&j->engine, true, j->o->unlimited_hold);
  j->held_acked = atomic_load (&j->engine.counters.acked_bytes);
  j->generation = generation;
  j->final = FINAL_COPY;
  j->held_ns = clock_ns ();
}

void
job_final_begin (struct job *j, int64_t request, uint64_t lease_ms, bool guest_stopped, bool arm)
{
  if (j->final != FINAL_NONE) {
    job_reply (j, request, "Busy", "another hand-over is under way");
    return;
  }
  if (j->paused || !(j->ready || (guest_stopped && little_is_left (j)))) {
    job_reply (j, request, "NotReady", "the job is not ready: it is %s, with %llu bytes left",
               job_state (j), (unsigned long long)engine_left_bytes (&j->engine));
    return;
  }
  job_verify_stop (j, "a hand-over has begun");
  j->final_request = request;
  j->arm = arm;
  j->lease_ms = lease_ms;
  j->settle_end_ns = clock_ns () + SETTLE_NS;
  settle (j);
  if (guest_stopped) {
    /* Passes and a flush before the hold help only a guest that runs meanwhile. */
    hold (j);
    job_final_step (j);
    return;
  }
  /* Passes follow one another at once now, since each is shorter than the one before. */
  engine_set_hurry (&j->engine, true, false);
  job_final_step (j);
}

/* The flush has ended.  Would what is left fit into the allowed pause?  If not, it is tried again
 * from SETTLE on, until SETTLE_NS are over, because the guest may just have written much at once.
 * After that the hand-off is refused if not even the lease is long enough.  Returns true if the
 * gate may be held now. */
static bool
fits (struct job *j)
{
  double bandwidth = j->estimate.bandwidth;
  if (bandwidth <= 0)
    return true;
  double ms = rest_ms (j, bandwidth, 0);
  if (ms <= (double)j->max_downtime_ms && ms <= (double)j->lease_ms)
    return true;
  if (clock_ns () < j->settle_end_ns) {
    settle (j);
    return false;
  }
  if (ms <= (double)j->lease_ms)
    return true;
  if (j->final_request >= 0)
    job_reply (j, j->final_request, "NotReady",
               "%llu bytes are left, which would take %.0f ms: longer than the %llu ms that the "
               "guest may be held",
               (unsigned long long)engine_left_bytes (&j->engine), ms,
               (unsigned long long)j->lease_ms);
  back_to_copying (j);
  return false;
}

/* The guest is held.  Let it go if what is left will not be done within the lease.  In the first
 * half of the lease a quarter more is allowed, because the bandwidth may be estimated a little low.
 */
static void
give_up_early (struct job *j)
{
  double held_ms = (double)(clock_ns () - j->held_ns) / (double)NS_PER_MS,
         lease = (double)j->lease_ms;
  double seen = held_ms < 1
                    ? 0
                    : (double)(atomic_load (&j->engine.counters.acked_bytes) - j->held_acked)
                          / held_ms * 1000;
  double bandwidth = seen > j->estimate.bandwidth ? seen : j->estimate.bandwidth;
  char why[160];

  if (bandwidth <= 0)
    return;
  double ms = rest_ms (j, bandwidth, held_ms);
  if (held_ms + ms <= (held_ms < lease / 2 ? 1.25 * lease : lease))
    return;
  snprintf (
      why, sizeof why,
      "held for %.0f ms, and the rest would take %.0f ms more: longer than the %.0f ms allowed",
      held_ms, ms, lease);
  job_final_abort (j, "LeaseEnded", why);
}

/* Has the time come to leave SETTLE: because little is left, or passes bring it no further down, or
 * SETTLE_NS are over? */
static bool
settled (struct job *j)
{
  uint64_t left = engine_left_bytes (&j->engine), wraps = atomic_load (&j->engine.wraps);

  if (left == 0 || clock_ns () >= j->settle_end_ns)
    return true;
  if (wraps == j->final_wraps)
    return false;
  j->final_wraps = wraps;
  double ms = left_ms (j);
  if (ms <= SETTLE_MS)
    return true;
  if (left > j->settle_left / 2)
    settle_synchronously (j, ms);
  if (left < j->settle_left) {
    j->settle_left = left;
    j->settle_vain = 0;
    return false;
  }
  return ++j->settle_vain >= SETTLE_VAIN;
}

static void
flush_before (struct job *j)
{
  struct engine *e = &j->engine;

  j->final = FINAL_FLUSH;
  j->final_flushes = atomic_load (&e->counters.flushes);
  engine_flush (e);
}

static void
await (struct job *j)
{
  uint64_t latency = engine_write_ns (&j->engine);

  j->final = FINAL_AWAIT;
  j->await_end_ns = clock_ns () + (latency < LONG_LINE_NS ? 0 : AWAIT_WRITES * latency);
}

/* Has AWAIT come to its end? */
static bool
moment_has_come (struct job *j)
{
  return clock_ns () >= j->await_end_ns || !engine_copies_in_vain (&j->engine);
}

/* Tell the filter to let the guest go on. */
static enum final_end
unhold (struct job *j, const char *our_class, const char *why)
{
  char *class_ = NULL, *error = NULL;
  /* In ARMED we do not know whether the filter holds the gate by now; 0 stands for either. */
  json_int_t generation = j->final == FINAL_ARMED ? 0 : (json_int_t)j->generation;
  struct control_call call = { .command = "mirror-unhold",
                               .args = json_pack ("{s:I, s:s, s:s}", "generation", generation,
                                                  "reason", why, "class", our_class),
                               .timeout_ms = JOB_CONTROL_TIMEOUT_MS,
                               .class_ = &class_ };

  enum final_end end = FINAL_UNKNOWN;
  if (control_client_call (j->control, &call, &error) == 0)
    end = FINAL_GIVEN_UP;
  else if (class_ != NULL && strcmp (class_, "StaleGeneration") == 0) /* that hold is over */
    end = FINAL_GIVEN_UP;
  else if (class_ != NULL && strcmp (class_, "AlreadyCommitted") == 0)
    end = FINAL_TOO_LATE;
  else
    job_say (j, JOB_WARNING,
             "the hand-over cannot be given up, and may be committed: %s; waiting for the server",
             error);
  text_free (class_);
  text_free (error);
  return end;
}

/* Give the hand-off up because of WHY.  The request that asked for it is answered with CLASS_. */
enum final_end
job_final_abort (struct job *j, const char *class_, const char *why)
{
  if (j->final == FINAL_NONE)
    return FINAL_GIVEN_UP;
  if (j->final_unknown)
    return FINAL_UNKNOWN;
  enum final_end end = j->final >= FINAL_ARMED ? unhold (j, class_, why) : FINAL_GIVEN_UP;
  j->final_unknown = end == FINAL_UNKNOWN;
  if (end != FINAL_GIVEN_UP)
    return end;
  if (j->final_request >= 0)
    job_reply (j, j->final_request, class_, "%s", why);
  job_say (j, JOB_WARNING, "hand-over given up, the guest goes on: %s", why);
  back_to_copying (j);
  return FINAL_GIVEN_UP;
}

void
job_final_released (struct job *j, const char *reason)
{
  if (j->final == FINAL_NONE)
    return;
  if (j->final_request >= 0)
    job_reply (j, j->final_request, "LeaseEnded", "%s", reason);
  job_say (j, JOB_WARNING, "%s, the guest goes on: %s",
           j->final >= FINAL_COPY ? "the gate was released" : "hand-over given up", reason);
  back_to_copying (j);
}

/* Everything is durable at the destination.  Ask the filter for its final look (R3).  If that finds
 * something left (NotEmpty), copying goes on. */
static void
prepare (struct job *j)
{
  char *class_ = NULL, *error = NULL;
  uint64_t session = atomic_load (&j->region->hdr->session);

  struct control_call call
      = { .command = "mirror-prepared",
          .args = json_pack ("{s:I, s:I}", "generation", (json_int_t)j->generation, "session",
                             (json_int_t)session),
          .timeout_ms = JOB_CONTROL_TIMEOUT_MS,
          .class_ = &class_ };
  if (control_client_call (j->control, &call, &error) == 0) {
    j->final = FINAL_PREPARED;
    if (j->final_request >= 0)
      job_reply (j, j->final_request, NULL, "%s", "");
    j->final_request = -1;
  } else if (class_ == NULL || strcmp (class_, "NotEmpty") != 0) {
    char *why = error;
    error = NULL;
    job_final_abort (j, class_ ? class_ : "GenericError", why ? why : "not prepared");
    text_free (why);
  }
  text_free (class_);
  text_free (error);
}

void
job_final_step (struct job *j)
{
  struct engine *e = &j->engine;

  if (j->final == FINAL_NONE || j->final_unknown)
    return;
  if (j->supervisor.state != SUPERVISOR_COPYING) {
    job_final_abort (j, "GenericError",
                     j->supervisor.error ? j->supervisor.error : "the destination is lost");
    return;
  }
  if (j->final == FINAL_SETTLE && settled (j))
    flush_before (j);
  if (j->final == FINAL_FLUSH && atomic_load (&e->counters.flushes) > j->final_flushes && fits (j))
    await (j);
  if (j->final == FINAL_AWAIT && moment_has_come (j)) {
    if (j->arm)
      be_armed (j);
    else
      hold (j);
  }
  if (j->final == FINAL_COPY) {
    engine_flush_if_settled (e);
    if (engine_clean (e))
      prepare (j);
    else
      give_up_early (j);
  }
}

/* ---- our own hand-off ---- */

static void *
handoff_thread (void *opaque)
{
  struct job *j = opaque;
  char *controls[] = { (char *)j->o->control };
  const struct coordinator_options ho
      = { .before_hold = j->o->before_hold, .opaque = j->o->opaque };

  j->handoff_status = coordinator_run (controls, 1, &ho, &j->handoff_result, &j->handoff_error);
  atomic_store (&j->handoff_done, true);
  engine_notify (&j->engine);
  return NULL;
}

void
job_handoff_start (struct job *j)
{
  if (j->handing_off || clock_ns () < j->next_handoff_ns)
    return;
  atomic_store (&j->handoff_done, false);
  if (pthread_create (&j->handoff_thread, NULL, handoff_thread, j) != 0) {
    job_say (j, JOB_WARNING, "cannot start a thread for the hand-over");
    j->next_handoff_ns = clock_ns () + RETRY_HANDOFF_NS;
    return;
  }
  j->handing_off = true;
}

void
job_handoff_poll (struct job *j)
{
  if (!j->handing_off || !atomic_load (&j->handoff_done))
    return;
  pthread_join (j->handoff_thread, NULL);
  j->handing_off = false;
  if (j->handoff_status == -1) {
    job_say (j, JOB_WARNING, "hand-over: %s", j->handoff_error ? j->handoff_error : "failed");
    j->next_handoff_ns = clock_ns () + RETRY_HANDOFF_NS;
  }
  text_free (j->handoff_error);
  j->handoff_error = NULL;
  if (j->handoff_status == -1 && j->handoff_result.committed)
    j->next_handoff_ns = UINT64_MAX; /* the filter still has to say so; see say_unconfirmed() */
  else
    coordinator_result_free (&j->handoff_result);
}

/* ---- after the commit ---- */

enum job_result
job_seal (struct job *j)
{
  const char *dest = j->dest.dest[0];
  char *error = NULL;
  int r = 0;

  if (!j->is_receive)
    return JOB_COMPLETED;
  /* An ssh destination is served by a process of this session alone.  If it has answered every
   * request, nothing can be written late, and there is nothing to seal. */
  if (uri_kind (dest) != URI_SSH || j->engine.unanswered)
    r = destination_seal (dest, &error);
  j->sealed = r == 0;
  if (r == 0)
    return JOB_COMPLETED;
  job_say (j, JOB_WARNING, DESTINATION_UNSEALED, j->o->control, dest,
           r == 1 ? "it is no server of nbdmirror receive any more" : error, dest);
  text_free (error);
  return JOB_NOT_SEALED;
}
