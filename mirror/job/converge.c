/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The convergence decision.  See converge.h.
 */

#include "config.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "mirror/job/converge.h"

#define UNKNOWN_NS (10 * NS_PER_S) /* a verdict from then on, or from the second pass on */
#define HALF 0.5                   /* a pass halves what is left if D is at most this part of B */
/* So much of the disk may turn dirty in a pass before its end is foreseen: the price of not slowing
 * a guest down for one short burst in a copy of hours. */
#define FORESEE_PART 32
#define BUDGET_DISKS 1.5 /* a throttle step should keep the traffic within this */
#define OBEYED 1.5       /* D above this times the limit: throttling does not work */
#define WANTS_LESS 0.7   /* D below this times the limit: the guest is not held back by it */
#define CALM 0.35 /* D below this part of B: an open gate would do, if the guest wants no more */
#define CALM_WANTS                                                                                 \
  0.4 /* what a guest in the synchronous gate may want at most for that to be known */
#define CALM_WAITING 0.9 /* more writes waiting than this: what it wants is not known */
#define TRIAL_STEP                                                                                 \
  0.4 /* of B: what it may have while that is found out.  Below HALF, whatever it wants */
#define TRIAL_S 1.0 /* so long HALF of B makes more than it may dirty before a trial has failed */
#define CALM_NS (5 * NS_PER_S)
#define CALM_MAX_NS (320 * NS_PER_S)
#define LOSING 0.95     /* D above this part of B: what is left shrinks too slowly to speak of */
#define RECOVERED 0.85  /* D below this part of B: it converges again */
#define SYNC_PART 0.25  /* of B goes to guest writes that wait while the rest is caught up */
#define LIMIT_SLACK 0.1 /* the limit follows B in steps of this */
/* D is judged over CONVERGE_WINDOW_NS; on a small disk, where that is many passes, over this part
 * of one. */
#define WINDOW_PART 0.2
#define WINDOW_MIN_NS (NS_PER_S * 4 / 10)

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

/* How long D is to be looked at before it is judged. */
static uint64_t
window_ns (const struct converge_input *in)
{
  double part = WINDOW_PART * (double)in->disk_bytes / in->bandwidth * (double)NS_PER_S;
  return part < (double)WINDOW_MIN_NS        ? WINDOW_MIN_NS
         : part < (double)CONVERGE_WINDOW_NS ? (uint64_t)part
                                             : CONVERGE_WINDOW_NS;
}

/* Has the present gate been in effect for that long? */
static bool
settled (const struct converge *c, const struct converge_input *in)
{
  return in->bandwidth > 0 && in->now_ns - c->gate_ns >= window_ns (in);
}

/* D under the present gate. */
static double
rate_now (const struct converge *c, const struct converge_input *in)
{
  uint64_t ns = in->now_ns - c->marks[1].ns;
  if (ns == 0 || in->now_ns - c->gate_ns >= CONVERGE_WINDOW_NS)
    return in->dirty_rate;
  return (double)(in->dirtied_bytes - c->marks[1].dirtied) / (double)ns * (double)NS_PER_S;
}

/* Until there is a whole CONVERGE_WINDOW_NS of it, rate_now() is over one to two of our own
 * windows: on a small disk D rises within the first pass, before whose cursor everything is dirty
 * already. */
static void
mark (struct converge *c, const struct converge_input *in)
{
  if (in->bandwidth <= 0 || in->now_ns - c->marks[0].ns < window_ns (in))
    return;
  c->marks[1] = c->marks[0];
  c->marks[0] = (struct converge_mark){ in->now_ns, in->dirtied_bytes };
}

/* Everything that is known about D is about another time. */
static void
mark_anew (struct converge *c, const struct converge_input *in)
{
  c->gate_ns = in->now_ns;
  c->stretch_dirtied = c->gate_dirtied = in->dirtied_bytes;
  c->marks[0] = c->marks[1] = (struct converge_mark){ in->now_ns, in->dirtied_bytes };
}

static void
begin (struct converge *c, const struct converge_input *in)
{
  c->begun = true;
  c->passes_seen = in->passes;
  mark_anew (c, in);
}

/* Is so little left that it could be handed over, but for what the flush takes?  Then passes say
 * nothing, and no gate would help. */
static bool
little_left (const struct converge_input *in)
{
  double allowed = in->max_downtime_ms - in->fixed_ms;
  if (allowed < in->max_downtime_ms / 4)
    allowed = in->max_downtime_ms / 4;
  return in->bandwidth > 0 && (double)in->left_bytes / in->bandwidth * 1000 <= allowed;
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

/* The guest gets more than the trial's limit: its delays are bounded.  Seen as soon as a second's
 * worth was dirtied. */
static bool
trial_failed (const struct converge *c, const struct converge_input *in)
{
  double s = (double)(in->now_ns - c->gate_ns) / (double)NS_PER_S;
  double dirtied = (double)(in->dirtied_bytes - c->gate_dirtied), half = HALF * in->bandwidth;
  return dirtied > half * TRIAL_S && (dirtied > half * s || in->dirty_rate > half);
}

/* Is it clear before the end of the pass? */
static enum converge_reason
foresee (const struct converge *c, const struct converge_input *in)
{
  if (c->on_trial && trial_failed (c, in))
    return CONVERGE_USELESS;
  if (!settled (c, in) || little_left (in))
    return CONVERGE_NO_REASON;
  double rate = rate_now (c, in), half = HALF * in->bandwidth;
  uint64_t dirtied = in->dirtied_bytes - c->stretch_dirtied;
  bool much = dirtied > in->disk_bytes / FORESEE_PART;

  switch (c->gate) {
  case CONVERGE_OPEN:
    return much && rate > half ? CONVERGE_RATE : CONVERGE_NO_REASON;
  case CONVERGE_THROTTLED:
    return rate > OBEYED * (double)c->dirty_limit && rate > half ? CONVERGE_USELESS
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
  mark_anew (c, in);
  c->calm_ns = 0;
  c->dirty_limit = gate == CONVERGE_THROTTLED ? (uint64_t)(c->step * in->bandwidth) : 0;
  c->pass_mixed = true;
  c->stuck = false;
  c->on_trial = false;
}

/* May the guest have STEP of B for as long as it takes to copy what is left, and the traffic stay
 * within the budget?  With a dirty rate of F x B each byte that is left costs 1 / (1 - F) bytes in
 * the end. */
static bool
affordable (const struct converge_input *in, double step)
{
  double total = (double)in->sent_bytes + (double)in->left_bytes / (1 - step);
  return total <= BUDGET_DISKS * (double)in->disk_bytes;
}

/* The gentlest step below the present one that keeps the traffic within the budget, else the last
 * one. */
static bool
choose_step (struct converge *c, const struct converge_input *in)
{
  double now = c->gate == CONVERGE_THROTTLED ? c->step : 1;
  for (unsigned i = 0; i < NR_STEPS; i++) {
    if (steps[i] >= now)
      continue;
    c->step = steps[i];
    if (affordable (in, c->step))
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
  if (((c->was_opened && before == CONVERGE_OPEN) || c->on_trial)
      && c->calm_needed_ns < CALM_MAX_NS)
    c->calm_needed_ns *= 2; /* it was opened, or tried, too early */
  bool throttle = in->policy == POLICY_THROTTLE && why != CONVERGE_USELESS && why != CONVERGE_GUARD
                  && !c->on_trial && in->bandwidth > 0 && choose_step (c, in);
  set_gate (c, in, throttle ? CONVERGE_THROTTLED : CONVERGE_SYNCHRONOUS, why);
  return true;
}

/* Would an open gate do, if the guest wants little more than it gets? */
static bool
little (const struct converge *c, const struct converge_input *in)
{
  double rate = rate_now (c, in);
  if (!settled (c, in) || rate >= CALM * in->bandwidth)
    return false;
  if (!in->ready && over_guard (c, in) && !little_left (in))
    return false;
  return c->gate != CONVERGE_THROTTLED || rate < WANTS_LESS * (double)c->dirty_limit;
}

/* Is it known that it does not?  Throttled: it does not use what it may have.  Synchronous: with W
 * writes waiting on average at least 1 - W of its time goes to something else (Little's law), so
 * without the waits it would get at most 1 / (1 - W) times as much done.  With more than one
 * waiting it may be held back, or just have many requests at a time: nobody knows. */
static bool
wants_little (const struct converge *c, const struct converge_input *in)
{
  if (c->gate == CONVERGE_THROTTLED)
    return true;
  return in->waiting >= 0 && in->waiting < CALM_WAITING
         && rate_now (c, in) / (1 - in->waiting) < CALM_WANTS * in->bandwidth;
}

/* The way to know what a guest wants is to let it have it, up to what still converges.  If it turns
 * out to be calm the gate is opened; if not it stays as it is, for the guest has more now than the
 * synchronous gate let it have.  As its waits are bounded here as they are there, a guest that
 * could get past this limit would have got as much in the synchronous gate, and would not be on
 * trial, unless it makes more requests at a time by now: then back. */
static bool
try_out (struct converge *c, const struct converge_input *in)
{
  if (in->by_hand || !(in->ready || affordable (in, TRIAL_STEP)))
    return false;
  c->step = TRIAL_STEP;
  set_gate (c, in, CONVERGE_THROTTLED, CONVERGE_TRIAL);
  c->on_trial = true;
  return true;
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
  if (!little (c, in)) {
    c->calm_ns = 0;
    return false;
  }
  bool known = wants_little (c, in);
  if (c->calm_ns == 0) {
    c->calm_ns = in->now_ns;
    c->calm_doubted = false;
  }
  c->calm_doubted = c->calm_doubted || !known;
  if (in->now_ns - c->calm_ns < c->calm_needed_ns)
    return false;
  if (c->calm_doubted)
    return try_out (c, in);
  set_gate (c, in, CONVERGE_OPEN, CONVERGE_CALM);
  c->was_opened = true;
  return true;
}

/* B changes: the limit is a part of it. */
static bool
follow_bandwidth (struct converge *c, const struct converge_input *in)
{
  if (c->gate != CONVERGE_THROTTLED || in->bandwidth <= 0)
    return false;
  double want = c->step * in->bandwidth, have = (double)c->dirty_limit;
  if (want > have * (1 - LIMIT_SLACK) && want < have * (1 + LIMIT_SLACK))
    return false;
  c->dirty_limit = want < 1 ? 1 : (uint64_t)want;
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
  /* Under a gate D counts what is copied at once as well: what is left shrinks by B - D, whatever
   * the gate. */
  bool losing = settled (c, in) && rate_now (c, in) >= enough;
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
  mark_anew (c, in);
  c->pass_mixed = true;
  c->stuck = false;
}

/* Where most of what is left is in quarantine the line is used for something else, and tiny passes
 * say nothing. A little of it may stay there for as long as the guest keeps a pass from ending:
 * that must not stop the policy. */
static bool
suspended (const struct converge_input *in)
{
  return in->suspended || in->quarantine_bytes > in->left_bytes / 2;
}

bool
converge_decide (struct converge *c, const struct converge_input *in)
{
  if (c->start_ns == 0) {
    c->start_ns = in->now_ns;
    c->last_sent = c->sent_unjudged = in->sent_bytes;
  }
  if (suspended (in))
    c->sent_unjudged += in->sent_bytes - c->last_sent;
  if (in->ready) {
    c->sent_unjudged = in->sent_bytes;
    c->passes_unjudged = in->passes;
  }
  c->last_sent = in->sent_bytes;
  if (suspended (in)) {
    converge_interrupted (c);
    return false;
  }
  if (!c->begun)
    begin (c, in);
  mark (c, in);

  look_at_hand (c, in);
  enum converge_reason why = judge_pass (c, in);
  if (why == CONVERGE_NO_REASON)
    why = foresee (c, in);
  if (in->by_hand) { /* D is what is copied as well, and passes are short: neither says what it does
                        with an open gate */
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
  case CONVERGE_TRIAL:
    return "the guest changes little, and may want no more";
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
    snprintf (buf, size,
              "the guest may change %.1f MiB/s for now, each write waits for at most %.0f ms",
              (double)c->dirty_limit / 1048576, max_delay_ms);
  else if (c->gate == CONVERGE_SYNCHRONOUS)
    snprintf (buf, size,
              "guest writes wait for the destination for now, for at most %.0f ms each%s",
              max_delay_ms, no ? "; it is not enough" : "");
  else if (!no)
    snprintf (buf, size, "nothing is needed");
  else if (policy == POLICY_SYNC)
    snprintf (buf, size,
              "guest writes are going to wait for the destination, for at most %.0f ms each",
              max_delay_ms);
  else if (policy == POLICY_THROTTLE)
    snprintf (buf, size, "guest writes are going to be slowed down, by at most %.0f ms each",
              max_delay_ms);
  else if (policy == POLICY_FAIL)
    snprintf (buf, size, "the job is going to end with exit status 4");
  else
    snprintf (buf, size, "it keeps trying");
  return buf;
}
