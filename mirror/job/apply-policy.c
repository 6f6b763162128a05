/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The convergence policy, applied to a live job: this gives the decision (converge.h) what it needs
 * to know, does to the gate what it says, and tells the user.
 */

#include "config.h"

#include <string.h>

#include "base/clock.h"
#include "dirty-bitmap/urgent.h"
#include "mirror/job/internal.h"

#define MIB 1048576.0
#define TOO_LONG_NS (3 * NS_PER_S) /* one slow flush is not worth a word */
#define WAITING_WEIGHT 0.1         /* of one look in the average: about the last second */

/* How many guest writes wait in the synchronous gate, on average over the last looks. */
static double
count_waiting (struct job *j)
{
  const struct region *r = j->region;
  const struct urgent_slot *slots
      = (const struct urgent_slot *)((const char *)r->hdr + r->geo.urgent_offset);
  unsigned n = 0;

  if (job_gate_now (j) != JOB_GATE_SYNCHRONOUS) {
    j->waiting = -1;
    return j->waiting;
  }
  for (unsigned i = 0; i < URGENT_SLOTS; i++)
    n += atomic_load_explicit (&slots[i].state, memory_order_relaxed) != URGENT_FREE;
  j->waiting = j->waiting < 0 ? n : (1 - WAITING_WEIGHT) * j->waiting + WAITING_WEIGHT * n;
  return j->waiting;
}

static struct converge_input
look (struct job *j, uint64_t now_ns)
{
  struct engine *e = &j->engine;
  const struct estimate *est = &j->estimate;

  pthread_mutex_lock (&e->lock);
  unsigned n = e->nr_passes;
  struct engine_pass last = n ? e->pass_log[(n - 1) % ENGINE_MAX_PASS_LOG] : e->pass_now;
  pthread_mutex_unlock (&e->lock);
  return (struct converge_input){
    .now_ns = now_ns,
    .policy = j->policy,
    .disk_bytes = j->region->geo.disk_size,
    .sent_bytes = atomic_load (&j->region->hdr->sent_bytes),
    .left_bytes = est->last.left_bytes,
    .dirtied_bytes = est->last.dirtied_bytes,
    .passes = n,
    .pass_before = last.left_before,
    .pass_after = last.left_after,
    .bandwidth = est->bandwidth,
    .dirty_rate = est->dirty_rate,
    .fixed_ms = est->fixed_ms,
    .trip_ms = est->trip_ms,
    .max_write_delay_ms = (double)j->gate.max_write_delay_ms,
    .max_downtime_ms = (double)j->max_downtime_ms,
    .waiting = count_waiting (j),
    .ready = j->ready,
    .by_hand = j->gate.by_hand,
    .quarantine_bytes = est->last.quarantine_bytes,
    .suspended = j->paused || j->source_errors.any || j->supervisor.state != SUPERVISOR_COPYING
                 || j->final != FINAL_NONE || !est->have_last,
  };
}

static const char *
action (struct job *j, char *buf, size_t size)
{
  return converge_action (&j->converge, j->policy, (double)j->gate.max_write_delay_ms, buf, size);
}

static void
tell_gate (struct job *j, enum converge_gate before)
{
  const struct converge *c = &j->converge;
  const struct estimate *est = &j->estimate;
  char text[160];

  if (c->gate == CONVERGE_OPEN)
    job_say (j, JOB_NOTICE, "guest writes are delayed no longer: %s",
             converge_reason_text (c->reason));
  else if (c->gate != before || c->reason != CONVERGE_CALM)
    job_say (j, JOB_NOTICE, "%s (dirty %.1f MiB/s, bandwidth %.1f MiB/s): %s",
             converge_reason_text (c->reason), est->dirty_rate / MIB, est->bandwidth / MIB,
             action (j, text, sizeof text));
}

static void
tell_verdict (struct job *j)
{
  const struct converge *c = &j->converge;
  const struct estimate *est = &j->estimate;
  char text[160];

  if (c->verdict == CONVERGING_YES && j->ready)
    j->told_not_converging = false;
  if (c->verdict != CONVERGING_NO || j->told_not_converging)
    return;
  j->told_not_converging = true;
  job_say (j, j->policy == POLICY_FAIL ? JOB_ERROR : JOB_WARNING,
           "not converging: %s (dirty %.1f MiB/s, bandwidth %.1f MiB/s, %.1f MiB left): %s",
           converge_reason_text (c->reason), est->dirty_rate / MIB, est->bandwidth / MIB,
           (double)est->last.left_bytes / MIB, action (j, text, sizeof text));
}

/* Little is left, and still no hand-over would fit: no policy can help, only the user. */
static void
tell_too_long (struct job *j, uint64_t now_ns)
{
  const struct estimate *est = &j->estimate;

  if (est->fixed_ms <= (double)j->max_downtime_ms || j->converge.verdict != CONVERGING_YES) {
    j->too_long_ns = 0;
    j->told_too_long = j->told_too_long && !j->ready;
    return;
  }
  if (j->too_long_ns == 0)
    j->too_long_ns = now_ns;
  if (j->told_too_long || now_ns - j->too_long_ns < TOO_LONG_NS)
    return;
  j->told_too_long = true;
  job_say (j, JOB_WARNING,
           "not ready: one write to the destination takes %.0f ms and a flush %.0f ms, together "
           "longer than the pause of %llu ms that --max-downtime allows",
           est->trip_ms, est->fixed_ms - est->trip_ms, (unsigned long long)j->max_downtime_ms);
}

void
job_apply_policy (struct job *j, uint64_t now_ns)
{
  static const enum job_gate modes[] = { JOB_GATE_OPEN, JOB_GATE_THROTTLED, JOB_GATE_SYNCHRONOUS };
  struct converge *c = &j->converge;
  const struct converge_input in = look (j, now_ns);
  enum converge_gate before = c->gate;
  double step = c->step;

  if (converge_decide (c, &in)) {
    job_gate_set (j, modes[c->gate], c->dirty_limit);
    if (c->gate != before || c->step != step)
      tell_gate (j, before);
  }
  tell_verdict (j);
  tell_too_long (j, now_ns);
  if (c->give_up)
    job_end (j, JOB_NOT_CONVERGED);
}

void
job_add_convergence (struct job *j, json_t *o)
{
  const struct converge *c = &j->converge;
  const struct estimate *est = &j->estimate;
  char text[160];
  double rate = converge_expected_rate (c, j->policy, est->bandwidth, est->dirty_rate);
  double eta = estimate_eta_s (est, (double)j->max_downtime_ms, rate);

  json_object_set_new (o, "eta-s", eta >= 0 ? json_real (eta) : json_null ());
  json_object_set_new (o, "converging",
                       c->verdict == CONVERGING_UNKNOWN
                           ? json_null ()
                           : json_boolean (c->verdict == CONVERGING_YES));
  json_object_set_new (o, "policy-action",
                       c->verdict == CONVERGING_UNKNOWN && c->gate == CONVERGE_OPEN
                           ? json_null ()
                           : json_string (action (j, text, sizeof text)));
}
