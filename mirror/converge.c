/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The convergence decision.  See converge.h.
 */

#include <config.h>

#include <stdio.h>
#include <string.h>

#include "mirror/converge.h"

#define NS_PER_S UINT64_C (1000000000)
#define UNKNOWN_NS (10 * NS_PER_S) /* a verdict from then on, or from the second pass on */
#define HALF 0.5                   /* a pass halves what is left if D is at most this part of B */
/* So much of the disk may turn dirty in a pass before its end is foreseen: the price of not slowing a guest down
 * for one short burst in a copy of hours. */
#define FORESEE_PART 32
#define BUDGET_DISKS 1.5     /* a throttle step should keep the traffic within this */
#define OBEYED 1.5           /* D above this times the limit: throttling does not work */
#define WANTS_LESS 0.7       /* D below this times the limit: the guest is not held back by it */
#define CALM_THROTTLED 0.35  /* D below this part of B: an open gate would do */
#define CALM_SYNCHRONOUS 0.25
#define CALM_WAITING 0.5     /* fewer writes waiting: what the guest wants is at most twice what it gets */
#define CALM_NS (5 * NS_PER_S)
#define CALM_MAX_NS (320 * NS_PER_S)
#define LOSING 0.95          /* D above this part of B: what is left shrinks too slowly to speak of */
#define RECOVERED 0.85       /* D below this part of B: it converges again */
#define SYNC_PART 0.25       /* of B goes to guest writes that wait while the rest is caught up */
#define LIMIT_SLACK 0.1      /* the limit follows B in steps of this */

static const double steps[] = { 0.8, 0.6, 0.4, 0.2 };
#define NR_STEPS (sizeof steps / sizeof steps[0])

void
converge_init (struct converge *c)
{
  memset (c, 0, sizeof *c);
  c->calm_needed_ns = CALM_NS;
}

void
converge_interrupted (struct converge *c)
{
  c->begun = false;
  c->calm_ns = 0;
}

static void
begin (struct converge *c, const struct converge_input *in)
{
  c->begun = true;
  c->gate_ns = in->now_ns;
  c->passes_seen = in->passes;
  c->stretch_dirtied = in->dirtied_bytes;
}

/* Has the present gate been in effect for as long as D is measured over? */
static bool
settled (const struct converge *c, const struct converge_input *in)
{
  return in->bandwidth > 0 && in->now_ns - c->gate_ns >= CONVERGE_WINDOW_NS;
}

/* Is so little left that it could be handed over, but for what the flush takes?  Then passes say nothing, and no
 * gate would help. */
static bool
little_left (const struct converge_input *in)
{
  double allowed = in->max_downtime_ms - in->fixed_ms;
  if (allowed < in->max_downtime_ms / 4)
    allowed = in->max_downtime_ms / 4;
  return in->bandwidth > 0 && (double) in->left_bytes / in->bandwidth * 1000 <= allowed;
}

/* ---- does it converge as things are? ---- */

static bool
over_guard (const struct converge *c, const struct converge_input *in)
{
  return in->passes - c->passes_unjudged >= CONVERGE_MAX_PASSES
         || in->sent_bytes - c->sent_unjudged > CONVERGE_MAX_DISKS * in->disk_bytes;
}

/* Judge the pass that has just ended, if one has. */
static enum converge_reason
judge_pass (struct converge *c, const struct converge_input *in)
{
  if (in->passes == c->passes_seen)
    return CONVERGE_NO_REASON;
  bool mixed = c->pass_mixed;
  c->passes_seen = in->passes;
  c->pass_mixed = false;
  c->stretch_dirtied = in->dirtied_bytes;
  if (mixed || in->passes < 2)
    return CONVERGE_NO_REASON;
  c->stuck = in->pass_after > in->pass_before / 2 && !little_left (in);
  return c->stuck ? CONVERGE_PASS : CONVERGE_NO_REASON;
}

/* Is it clear before the end of the pass? */
static enum converge_reason
foresee (const struct converge *c, const struct converge_input *in)
{
  if (!settled (c, in) || little_left (in))
    return CONVERGE_NO_REASON;
  uint64_t dirtied = in->dirtied_bytes - c->stretch_dirtied;
  bool much = dirtied > in->disk_bytes / FORESEE_PART;

  switch (c->gate) {
  case CONVERGE_OPEN:
    return much && in->dirty_rate > HALF * in->bandwidth ? CONVERGE_RATE : CONVERGE_NO_REASON;
  case CONVERGE_THROTTLED:
    return in->dirty_rate > OBEYED * (double) c->dirty_limit && in->dirty_rate > HALF * in->bandwidth
             ? CONVERGE_USELESS
             : CONVERGE_NO_REASON;
  case CONVERGE_SYNCHRONOUS:
    break;
  }
  return CONVERGE_NO_REASON;
}

/* ---- doing something about it ---- */

static void
set_gate (struct converge *c, const struct converge_input *in, enum converge_gate gate,
          enum converge_reason why)
{
  c->gate = gate;
  c->reason = why;
  c->gate_ns = in->now_ns;
  c->calm_ns = 0;
  c->dirty_limit = gate == CONVERGE_THROTTLED ? (uint64_t) (c->step * in->bandwidth) : 0;
  c->stretch_dirtied = in->dirtied_bytes;
  c->pass_mixed = true;
  c->stuck = false;
}

/* The gentlest step below the present one that keeps the traffic within the budget, else the last one.  With a dirty rate
 * of F x B each byte that is left costs 1 / (1 - F) bytes in the end. */
static bool
choose_step (struct converge *c, const struct converge_input *in)
{
  double now = c->gate == CONVERGE_THROTTLED ? c->step : 1;
  for (unsigned i = 0; i < NR_STEPS; i++) {
    if (steps[i] >= now)
      continue;
    c->step = steps[i];
    double total = (double) in->sent_bytes + (double) in->left_bytes / (1 - steps[i]);
    if (total <= BUDGET_DISKS * (double) in->disk_bytes)
      return true;
  }
  return c->step < now;
}

/* Returns true if the gate was changed. */
static bool
escalate (struct converge *c, const struct converge_input *in, enum converge_reason why)
{
  enum converge_gate before = c->gate;
  if (before == CONVERGE_SYNCHRONOUS || in->policy == POLICY_NONE || in->policy == POLICY_FAIL)
    return false;
  if (c->was_opened && before == CONVERGE_OPEN && c->calm_needed_ns < CALM_MAX_NS)
    c->calm_needed_ns *= 2; /* it was opened too early */
  bool throttle = in->policy == POLICY_THROTTLE && why != CONVERGE_USELESS && why != CONVERGE_GUARD
                  && in->bandwidth > 0 && choose_step (c, in);
  set_gate (c, in, throttle ? CONVERGE_THROTTLED : CONVERGE_SYNCHRONOUS, why);
  return true;
}

/* Would an open gate do?  The guest is not held back by the present one, and wants little. */
static bool
calm (const struct converge *c, const struct converge_input *in)
{
  if (!settled (c, in))
    return false;
  if (c->gate == CONVERGE_THROTTLED)
    return in->dirty_rate < WANTS_LESS * (double) c->dirty_limit
           && in->dirty_rate < CALM_THROTTLED * in->bandwidth;
  return in->dirty_rate < CALM_SYNCHRONOUS * in->bandwidth && in->waiting >= 0
         && in->waiting < CALM_WAITING;
}

static bool
relax (struct converge *c, const struct converge_input *in)
{
  if (c->gate == CONVERGE_OPEN)
    return false;
  if (in->policy == POLICY_NONE || in->policy == POLICY_FAIL) { /* changed by the user */
    set_gate (c, in, CONVERGE_OPEN, CONVERGE_NO_REASON);
    return true;
  }
  if (!calm (c, in))
    c->calm_ns = 0;
  else if (c->calm_ns == 0)
    c->calm_ns = in->now_ns;
  else if (in->now_ns - c->calm_ns >= c->calm_needed_ns) {
    set_gate (c, in, CONVERGE_OPEN, CONVERGE_CALM);
    c->was_opened = true;
    return true;
  }
  return false;
}

/* B changes: the limit is a part of it. */
static bool
follow_bandwidth (struct converge *c, const struct converge_input *in)
{
  if (c->gate != CONVERGE_THROTTLED || in->bandwidth <= 0)
    return false;
  double want = c->step * in->bandwidth, have = (double) c->dirty_limit;
  if (want > have * (1 - LIMIT_SLACK) && want < have * (1 + LIMIT_SLACK))
    return false;
  c->dirty_limit = want < 1 ? 1 : (uint64_t) want;
  return true;
}

/* ---- the verdict ---- */

static void
judge (struct converge *c, const struct converge_input *in, enum converge_reason why)
{
  bool early = in->passes == 0 && in->now_ns - c->start_ns < UNKNOWN_NS;
  double enough = (c->verdict == CONVERGING_NO ? RECOVERED : LOSING) * in->bandwidth;

  if (in->ready || little_left (in)) {
    c->verdict = CONVERGING_YES;
    return;
  }
  if (in->bandwidth <= 0 || early) {
    c->verdict = CONVERGING_UNKNOWN;
    return;
  }
  /* Under a gate D counts what is copied at once as well: what is left shrinks by B - D, whatever the gate. */
  bool losing = settled (c, in) && in->dirty_rate >= enough;
  bool stuck = c->gate == CONVERGE_OPEN && (c->stuck || over_guard (c, in));
  c->verdict = losing || stuck ? CONVERGING_NO : CONVERGING_YES;
  if (c->verdict == CONVERGING_NO && c->gate == CONVERGE_OPEN)
    c->reason = why != CONVERGE_NO_REASON ? why : c->stuck ? CONVERGE_PASS : CONVERGE_RATE;
}

/* The user has taken the gate in hand, or given it back. */
static void
look_at_hand (struct converge *c, const struct converge_input *in)
{
  if (in->by_hand == c->by_hand)
    return;
  c->by_hand = in->by_hand;
  c->gate_ns = in->now_ns;
  c->stretch_dirtied = in->dirtied_bytes;
  c->pass_mixed = true;
  c->stuck = false;
}

bool
converge_decide (struct converge *c, const struct converge_input *in)
{
  if (c->start_ns == 0) {
    c->start_ns = in->now_ns;
    c->last_sent = c->sent_unjudged = in->sent_bytes;
  }
  if (in->suspended)
    c->sent_unjudged += in->sent_bytes - c->last_sent;
  if (in->ready) {
    c->sent_unjudged = in->sent_bytes;
    c->passes_unjudged = in->passes;
  }
  c->last_sent = in->sent_bytes;
  if (in->suspended) {
    converge_interrupted (c);
    return false;
  }
  if (!c->begun)
    begin (c, in);

  look_at_hand (c, in);
  enum converge_reason why = judge_pass (c, in);
  if (why == CONVERGE_NO_REASON)
    why = foresee (c, in);
  if (in->by_hand) { /* D is what is copied as well, and passes are short: neither says what it does with an open gate */
    why = CONVERGE_NO_REASON;
    c->stuck = false;
  }
  if (why == CONVERGE_NO_REASON && over_guard (c, in) && !little_left (in))
    why = CONVERGE_GUARD;
  if (in->ready)
    why = CONVERGE_NO_REASON;
  bool changed = why != CONVERGE_NO_REASON ? escalate (c, in, why) : relax (c, in);
  if (follow_bandwidth (c, in))
    changed = true;
  judge (c, in, why);
  c->give_up = in->policy == POLICY_FAIL && c->verdict == CONVERGING_NO
               && (why == CONVERGE_PASS || why == CONVERGE_GUARD);
  return changed;
}

/* ---- in words ---- */

double
converge_expected_rate (const struct converge *c, enum job_policy policy, double bandwidth,
                        double dirty_rate)
{
  double most = dirty_rate;
  if (c->gate == CONVERGE_OPEN && dirty_rate > HALF * bandwidth) {
    if (policy == POLICY_SYNC)
      most = SYNC_PART * bandwidth;
    else if (policy == POLICY_THROTTLE)
      most = steps[NR_STEPS - 1] * bandwidth;
  }
  return most < dirty_rate ? most : dirty_rate;
}

const char *
converge_reason_text (enum converge_reason r)
{
  switch (r) {
  case CONVERGE_PASS:
    return "a pass did not halve what was left";
  case CONVERGE_RATE:
    return "the guest changes blocks too fast for passes to halve what is left";
  case CONVERGE_GUARD:
    return "too many passes, or too much sent";
  case CONVERGE_USELESS:
    return "throttling does not slow the guest enough";
  case CONVERGE_CALM:
    return "the guest is calm";
  case CONVERGE_NO_REASON:
    break;
  }
  return "by request";
}

const char *
converge_action (const struct converge *c, enum job_policy policy, double max_delay_ms, char *buf,
                 size_t size)
{
  bool no = c->verdict == CONVERGING_NO;

  if (c->gate == CONVERGE_THROTTLED)
    snprintf (buf, size, "the guest may change %.1f MiB/s for now, each write waits for at most %.0f ms",
              (double) c->dirty_limit / 1048576, max_delay_ms);
  else if (c->gate == CONVERGE_SYNCHRONOUS)
    snprintf (buf, size, "guest writes wait for the destination for now, for at most %.0f ms each%s",
              max_delay_ms, no ? "; it is not enough" : "");
  else if (!no)
    snprintf (buf, size, "nothing is needed");
  else if (policy == POLICY_SYNC)
    snprintf (buf, size, "guest writes are going to wait for the destination, for at most %.0f ms each",
              max_delay_ms);
  else if (policy == POLICY_THROTTLE)
    snprintf (buf, size, "guest writes are going to be slowed down, by at most %.0f ms each", max_delay_ms);
  else if (policy == POLICY_FAIL)
    snprintf (buf, size, "the job is going to end with exit status 4");
  else
    snprintf (buf, size, "it keeps trying");
  return buf;
}
