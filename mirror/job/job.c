/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The main loop of a live mirror job.  See job.h, and internal.h for the parts.
 *
 * One thread waits for: the filter (requests, events), the engine (a lost session, a finished
 * pass), signals, and the clock.  At least every 100 ms it looks at the counters and decides.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "mirror/engine/allowance.h"
#include "mirror/job/internal.h"
#include "mirror/job/rest.h"

#define PUBLISH_NS (250 * NS_PER_MS)
/* So often while nothing happens that anybody would not tell us: to show that we are there. */
#define QUIET_NS (5 * NS_PER_S)
#define QUIET_SHOWN_NS NS_PER_S /* where the progress is on a terminal */
#define COPY_LOOK_MS 10         /* in FINAL_COPY: will it fit in the lease? */

static const char *const policy_names[] = { "sync", "throttle", "none", "fail" };

const char *
job_policy_name (enum job_policy p)
{
  return policy_names[p];
}

bool
job_policy_parse (const char *name, enum job_policy *p)
{
  for (unsigned i = 0; i < sizeof policy_names / sizeof policy_names[0]; i++)
    if (!strcmp (name, policy_names[i])) {
      *p = (enum job_policy)i;
      return true;
    }
  return false;
}

void
job_say (struct job *j, enum job_message kind, const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  char *text = text_vprintf (fmt, ap);
  va_end (ap);
  j->o->message (j->o->opaque, kind, text);
  text_free (text);
}

void
job_end (struct job *j, enum job_result result)
{
  if (j->over)
    return;
  j->over = true;
  j->result = result;
}

/* ---- decisions ---- */

void
job_set_ready (struct job *j, bool ready)
{
  if (ready == j->ready)
    return;
  j->ready = ready;
  engine_set_counting (&j->engine, !ready);
}

/* How many bytes of the disk a second the limit lets through: more than it says, if they are
 * compressed. */
static uint64_t
content_limit (const struct job *j)
{
  uint64_t limit = allowance_rate (&j->engine.allowance, j->rate_limit),
           wire = region_wire_bytes (j->region);
  uint64_t sent = atomic_load (&j->region->hdr->sent_bytes);

  return wire > 0 && sent > wire ? (uint64_t)((double)limit * (double)sent / (double)wire) : limit;
}

static struct estimate_sample
look (struct job *j, uint64_t now)
{
  struct engine *e = &j->engine;
  const struct region *r = j->region;
  return (struct estimate_sample){
    .now_ns = now,
    .acked_bytes = atomic_load (&e->counters.acked_bytes),
    .passed_bytes = atomic_load (&e->counters.passed_bytes),
    .dirtied_bytes = atomic_load (&r->hdr->dirtied_total) << r->geo.block_shift,
    .left_bytes = engine_left_bytes (e),
    .line_bytes = atomic_load (&e->counters.writing_bytes),
    .busy_ns = engine_busy_ns (e),
    .limit = content_limit (j),
    .quarantine_bytes = bitmap_count (r, REGION_QUARANTINE) << r->geo.block_shift,
  };
}

static bool
is_stuck (const struct job *j)
{
  const struct rest_view v
      = { .state = j->supervisor.state, .paused = j->paused, .unreadable = j->source_errors.any };
  return rest_is_stuck (&v);
}

static void
take_sample (struct job *j, uint64_t now)
{
  struct engine *e = &j->engine;
  struct estimate_sample s = look (j, now);

  s.queue_full = !engine_was_idle (e);

  const struct estimate_costs costs = { .flush_ns = engine_flush_ns (e),
                                        .rtt_ns = engine_rtt_ns (e),
                                        .write_ns = engine_write_ns (e),
                                        .no_flush_yet = !engine_has_flushed (e) };
  estimate_add (&j->estimate, &s, &costs, (double)j->max_downtime_ms);
  j->flush_awaited = costs.no_flush_yet;
  j->last_sample_ns = now;

  job_set_ready (j, j->estimate.ready && !is_stuck (j));
}

/* A session begins.  What goes over it before the first sample counts as well: the whole of a small
 * disk may. */
static void
begin_estimate (struct job *j)
{
  j->flush_awaited = false;
  j->last_sample_ns = clock_ns ();
  estimate_begin (&j->estimate, look (j, j->last_sample_ns));
}

static void
say_why_it_ended (struct job *j)
{
  char *why = supervisor_verdict (&j->supervisor);
  job_say (j, JOB_ERROR, "%s", why);
  text_free (why);
}

static void
supervise (struct job *j)
{
  struct supervisor *s = &j->supervisor;

  while (supervisor_poll (s)) {
    switch (s->state) {
    case SUPERVISOR_COPYING:
      begin_estimate (j);
      job_checkpoint_session (j);
      if (s->session->warning && !j->warned_larger) {
        job_say (j, JOB_WARNING, "%s", s->session->warning);
        j->warned_larger = true;
      }
      if (s->session->news)
        job_say (j, JOB_WARNING, "%s", s->session->news);
      if (s->reconnects > 0)
        job_say (j, JOB_NOTICE, "%s is back after %.1f s",
                 s->problem == SESSION_SOURCE ? "source" : "destination",
                 (double)supervisor_degraded_ns (s) / (double)NS_PER_S);
      if (!j->started_told && j->o->started)
        j->o->started (j->o->opaque);
      j->started_told = true;
      break;
    case SUPERVISOR_WAITING:
      job_say (j, JOB_WARNING, "%s lost, tracking goes on; trying again in %.1f s: %s",
               s->problem == SESSION_SOURCE ? "source" : "destination",
               (double)(s->retry_ns - clock_ns ()) / (double)NS_PER_S, s->error);
      job_set_ready (j, false);
      j->return_uuid[0] = '\0';
      estimate_lost (&j->estimate);
      break;
    case SUPERVISOR_ENDED:
      say_why_it_ended (j);
      job_end (j, s->problem == SESSION_REFUSED  ? JOB_REFUSED
                  : s->problem == SESSION_SOURCE ? JOB_FAILED
                                                 : JOB_DEST_FAILED);
      break;
    default:
      break;
    }
    job_publish (j);
  }
}

/* While the source cannot be read somewhere the job is never ready. */
static void
check_source (struct job *j)
{
  struct source_errors *errors = &j->source_errors;
  bool changed = source_errors_look (errors, &j->engine);

  if (!errors->any) {
    if (changed)
      job_say (j, JOB_NOTICE, "source: everything can be read again");
    return;
  }
  bool give_up = source_errors_give_up (errors, j->o->give_up_ns, clock_ns ());
  if (!changed && !give_up)
    return;
  CLEANUP_TEXT char *why = source_errors_text (errors, &j->engine);
  job_set_ready (j, false);
  if (give_up) {
    job_say (j, JOB_ERROR, "source: given up after %.1f s: %s",
             (double)j->o->give_up_ns / (double)NS_PER_S, why);
    job_end (j, JOB_FAILED);
  } else
    job_say (j, JOB_WARNING, "source: %s; it is tried again, and the job is not ready before", why);
  job_publish (j);
}

/* For how long (ns) the user allows that nothing moves. */
static uint64_t
stall_limit (struct job *j)
{
  return stall_limit_ns (j->o->give_up_stalled_ns, ENGINE_REQUEST_BYTES,
                         allowance_rate (&j->engine.allowance, j->rate_limit));
}

/* Nothing has moved for as long as the user allows. */
static void
check_stall (struct job *j, uint64_t now)
{
  struct engine *e = &j->engine;
  const struct engine_counters *c = &e->counters;
  uint64_t moved = atomic_load (&c->acked_bytes) + atomic_load (&c->passed_bytes);
  /* What is in quarantine waits for its grace time (R12), which is nobody's fault. */
  bool grace = j->supervisor.state == SUPERVISOR_COPYING
               && now - j->supervisor.session_ns < e->options.grace_ns
               && bitmap_count (j->region, REGION_QUARANTINE) > 0;
  bool due = !j->paused && !grace && engine_left_bytes (e) > 0;
  uint64_t ns = stall_look (&j->stall, moved, due, now);

  if (j->o->give_up_stalled_ns == 0 || ns < stall_limit (j))
    return;
  const char *lost = j->supervisor.state != SUPERVISOR_COPYING ? j->supervisor.error : NULL;
  CLEANUP_TEXT char *unread
      = j->source_errors.any ? source_errors_text (&j->source_errors, e) : NULL;
  const char *why = lost ? lost : unread ? unread : "the destination does not answer";
  job_say (j, JOB_ERROR, "given up: nothing has moved for %.1f s: %s",
           (double)ns / (double)NS_PER_S, why);
  /* Its requests are not waited for. */
  if (j->supervisor.session)
    session_fail (j->supervisor.session, why);
  job_end (j, unread && !lost ? JOB_FAILED : JOB_DEST_FAILED);
}

static void
obey_signal (struct job *j, int sig)
{
  if (sig == JOB_SIGNAL_NONE)
    return;
  bool cancel = sig == JOB_SIGNAL_CANCEL;
  switch (job_final_abort (j, "GenericError",
                           cancel ? "the job was cancelled" : "the worker was ended")) {
  case FINAL_TOO_LATE:
    job_say (j, JOB_NOTICE, "too late: the hand-over is committed");
    return;
  case FINAL_UNKNOWN:
    j->deferred_signal = sig;
    return;
  default:
    job_end (j, cancel ? JOB_CANCELLED : JOB_DETACHED);
  }
}

static void
check_signal (struct job *j)
{
  fd_wake_clear (j->o->signal_fd);
  obey_signal (j, atomic_exchange (j->o->signal, JOB_SIGNAL_NONE));
}

/* ---- the loop ---- */

/* Is the gate at rest?  It is not where the policy has closed it, because how long the guest is
 * calm matters then. */
static bool
gate_is_quiet (const struct job *j)
{
  return j->gate.wanted == JOB_GATE_OPEN
         && (j->gate.now == JOB_GATE_OPEN || (j->gate.by_hand && job_gate_synchronised (j)));
}

/* Does nothing change unless somebody wakes us: the engine, the filter, or the end of a wait that
 * supervisor_due_ns() or quiet_until_ns() knows?  Ready, and the guest has written nothing lately;
 * or paused; or the destination is lost; or all that is left cannot be read for now. */
static bool
is_quiet (struct job *j)
{
  if (job_verify_active (j) || j->final != FINAL_NONE || j->handing_off || j->complete_wanted
      || j->o->complete_when_ready || !gate_is_quiet (j) || strcmp (job_state (j), j->state) != 0
      || !engine_asleep (&j->engine))
    return false;
  if (is_stuck (j))
    return true;
  return j->ready && engine_left_bytes (&j->engine) == 0 && estimate_have_rates (&j->estimate)
         && j->estimate.dirty_rate <= 0 && j->estimate.move_rate <= 0;
}

/* When the next sample is to be taken: at once if all that the last one missed was a first flush,
 * which has come.  While something cannot be read none makes the job ready. */
static uint64_t
sample_due_ns (struct job *j)
{
  bool may_be_ready = !j->ready && !is_stuck (j);
  uint64_t left = engine_left_bytes (&j->engine);

  if (may_be_ready && left == 0 && j->flush_awaited && engine_has_flushed (&j->engine))
    return j->last_sample_ns;
  return j->last_sample_ns
         + estimate_next_ns (&j->estimate, may_be_ready, left, (double)j->max_downtime_ms);
}

static uint64_t
earlier (uint64_t a, uint64_t b)
{
  return a < b ? a : b;
}

/* While it is quiet: when is there something to do, though nobody wakes us? */
static uint64_t
quiet_until_ns (struct job *j)
{
  uint64_t shown = (uint64_t)(j->o->progress_is_watched ? QUIET_SHOWN_NS : QUIET_NS);
  uint64_t due = earlier (j->last_sample_ns + shown,
                          source_errors_due_ns (&j->source_errors, j->o->give_up_ns));

  if (j->o->give_up_stalled_ns > 0 && !j->paused && engine_left_bytes (&j->engine) > 0)
    due = earlier (due, j->stall.since_ns + stall_limit (j));
  return due;
}

static void
wait_for_something (struct job *j)
{
  j->rested = is_quiet (j);
  if (j->rested && engine_left_bytes (&j->engine) == 0)
    j->stall.since_ns = 0; /* nothing is to move, until the guest writes */
  uint64_t due = earlier (j->rested ? quiet_until_ns (j) : sample_due_ns (j),
                          supervisor_due_ns (&j->supervisor));
  uint64_t now = clock_ns ();
  bool at_once = now >= due || control_client_has_event (j->control);
  int timeout = at_once ? 0 : (int)((due - now) / NS_PER_MS) + 1;
  if ((j->final == FINAL_COPY || j->final == FINAL_AWAIT) && timeout > COPY_LOOK_MS)
    timeout = COPY_LOOK_MS;
  struct pollfd fds[3] = {
    { .fd = control_client_fd (j->control), .events = POLLIN },
    { .fd = j->engine.notify_fd, .events = POLLIN },
    { .fd = j->o->signal_fd, .events = POLLIN },
  };
  if (poll (fds, 3, timeout) == -1)
    return;
  if (fds[1].revents)
    fd_wake_clear (j->engine.notify_fd);
  if (fds[2].revents)
    check_signal (j);
}

static void
report_progress (struct job *j, uint64_t now)
{
  if (strcmp (job_state (j), j->state) != 0 || now - j->last_publish_ns >= PUBLISH_NS)
    job_publish (j);
  if (j->o->progress) {
    json_t *status = job_status (j);
    j->o->progress (j->o->opaque, status);
    json_decref (status);
  }
}

static void
run (struct job *j)
{
  while (!j->over) {
    wait_for_something (j);
    if (job_handle_events (j) == -1 || j->over)
      break; /* not to complain of a session that ends because it was sealed */
    if (j->final == FINAL_NONE)
      obey_signal (j, j->deferred_signal);
    if (j->over)
      break;
    supervise (j);
    check_source (j);
    check_stall (j, clock_ns ());
    if (j->over)
      break;
    job_verify_step (j);
    if (j->over)
      break;
    job_gate_update (j);
    job_final_step (j);
    job_handoff_poll (j);
    uint64_t now = clock_ns ();
    if (now < sample_due_ns (j))
      continue;
    if (j->rested && j->supervisor.state == SUPERVISOR_COPYING)
      begin_estimate (j); /* a long rest says nothing about the rates from now on */
    else if (j->supervisor.state == SUPERVISOR_COPYING)
      take_sample (j, now);
    j->last_sample_ns = now;
    job_apply_policy (j, now);
    if (j->ready && j->final == FINAL_NONE
        && (j->complete_wanted || (j->o->complete_when_ready && !job_verify_active (j))))
      job_handoff_start (j);
    report_progress (j, now);
  }
}

enum job_result
job_run (const struct job_options *o, json_t **report)
{
  struct job *j = calloc (1, sizeof *j);

  *report = NULL;
  if (j == NULL) {
    o->message (o->opaque, JOB_ERROR, "out of memory");
    return JOB_FAILED;
  }
  j->options = *o;
  j->o = &j->options;
  j->policy = o->policy;
  j->max_downtime_ms = o->max_downtime_ms;
  j->gate.max_write_delay_ms
      = o->max_write_delay_ms ? o->max_write_delay_ms : JOB_MAX_WRITE_DELAY_MS;
  j->rate_limit = o->rate_limit;
  j->final_request = -1;
  j->lock.fd = -1;
  j->start_ns = clock_ns ();
  estimate_init (&j->estimate);
  converge_init (&j->converge);
  j->waiting = -1;
  if (job_attach (j) == 0) {
    supervisor_init (&j->supervisor, &j->engine, &j->dest, o->give_up_ns);
    j->supervising = true;
    bell_start (&j->bell, &j->engine);
    job_publish (j);
    run (j);
  }
  return job_finish (j, report);
}
