/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The convergence decision.  See converge.h.
 *
 * In the comments D is the dirty rate (how many bytes the guest turns dirty in a second), and B is
 * the bandwidth (how many bytes the worker copies in a second).
 */

#include "config.h"

#include <string.h>

#include "base/clock.h"
#include "mirror/job/converge.h"

/* There is no verdict before this time has passed or the second pass has begun. */
#define UNKNOWN_NS (10 * NS_PER_S)
/* The end of a pass is foreseen only after 1/32 of the disk has turned dirty in it.  Without this a
 * single short burst of writes would slow the guest down in a copy that takes hours. */
#define FORESEE_PART 32
/* What a guest does to less than this part of the disk says little about the rest of it. */
#define CLEAN_PART 0.1
/* D rises in the first pass if it is this many times its mean since the pass began. */
#define RISES 1.2
/* A throttle step is chosen so that the whole job sends at most this many times the disk's size. */
#define BUDGET_DISKS 1.5
/* Throttling does not work if D is above this many times the limit. */
#define OBEYED 1.5
/* The limit does not hold the guest back if D is below this part of the limit. */
#define WANTS_LESS 0.7
/* An open gate would do if D is below this part of B and the guest wants no more. */
#define CALM 0.35
/* The guest in the synchronous gate is known to want little if that is below this part of B. */
#define CALM_WANTS 0.4
/* Nobody knows what the guest wants while more of its writes than this wait on average. */
#define CALM_WAITING 0.9
/* A trial lets the guest have this part of B.  It is below CONVERGE_HALF, so the job converges
 * whatever the guest does with it. */
#define TRIAL_STEP 0.4
/* A trial can fail only after the guest has dirtied CONVERGE_HALF of B for this time, in seconds.
 */
#define TRIAL_S 1.0
/* A guest that uses most of its limit for this long, or for twice that, wants more. */
#define BURST_NS ((uint64_t)(NS_PER_S / 2))
/* The guest has to be calm for this long before the gate is opened.  The time is doubled after each
 * opening that was too early, up to the second value. */
#define CALM_NS (5 * NS_PER_S)
#define CALM_MAX_NS (320 * NS_PER_S)
/* It converges again when D is below this part of B. */
#define RECOVERED 0.85
/* The limit follows B only when B has changed by this part. */
#define LIMIT_SLACK 0.1
/* D is measured over CONVERGE_WINDOW_NS.  On a small disk that would be many passes, so there it is
 * measured over this part of one pass, and at least over WINDOW_MIN_NS. */
#define WINDOW_PART 0.2
#define WINDOW_MIN_NS (NS_PER_S * 4 / 10)

/* A guest's write that waits takes a trip to the destination, and some time in queues. */
#define FAR 1.25

static const double steps[] = { 0.8, 0.6, 0.4, CONVERGE_LOWEST_STEP };
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

/* The time over which D is measured. */
static uint64_t
window_ns (const struct converge_input *in)
{
  double part = WINDOW_PART * (double)in->disk_bytes / in->bandwidth * (double)NS_PER_S;
  return part < (double)WINDOW_MIN_NS        ? WINDOW_MIN_NS
         : part < (double)CONVERGE_WINDOW_NS ? (uint64_t)part
                                             : CONVERGE_WINDOW_NS;
}

/* Has the present gate been in effect for at least that time? */
static bool
settled (const struct converge *c, const struct converge_input *in)
{
  return in->bandwidth > 0 && in->now_ns - c->gate_ns >= window_ns (in);
}

/* The dirty rate since the gate was last changed. */
static double
rate_now (const struct converge *c, const struct converge_input *in)
{
  uint64_t ns = in->now_ns - c->marks[1].ns;
  if (ns == 0 || in->now_ns - c->gate_ns >= CONVERGE_WINDOW_NS)
    return in->dirty_rate;
  return (double)(in->dirtied_bytes - c->marks[1].dirtied) / (double)ns * (double)NS_PER_S;
}

/* Note where D stands.  rate_now() needs two such marks as long as the gate is younger than
 * CONVERGE_WINDOW_NS.  Then it measures over one to two of our own, shorter windows.  A small disk
 * needs that: in its first pass only writes behind the cursor count, so D rises quickly. */
static void
mark (struct converge *c, const struct converge_input *in)
{
  const struct converge_mark now = { in->now_ns, in->dirtied_bytes, in->left_bytes };

  if (in->now_ns - c->burst_marks[0].ns >= BURST_NS) {
    c->burst_marks[1] = c->burst_marks[0];
    c->burst_marks[0] = now;
  }
  if (in->bandwidth <= 0 || in->now_ns - c->marks[0].ns < window_ns (in))
    return;
  c->marks[1] = c->marks[0];
  c->marks[0] = now;
}

/* Forget D, because it was measured under other conditions. */
static void
mark_anew (struct converge *c, const struct converge_input *in)
{
  c->gate_ns = in->now_ns;
  c->stretch_dirtied = c->gate_dirtied = in->dirtied_bytes;
  c->marks[0] = c->marks[1] = c->burst_marks[0] = c->burst_marks[1]
      = (struct converge_mark){ in->now_ns, in->dirtied_bytes, in->left_bytes };
}

static void
begin (struct converge *c, const struct converge_input *in)
{
  c->begun = true;
  c->passes_seen = in->passes;
  mark_anew (c, in);
}

/* Could what is left be copied within the allowed downtime?  The time for the flush is taken off
 * first, but never more than three quarters of the downtime.  If so, the lengths of passes say
 * nothing, and no gate would make the job ready sooner. */
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

/* Does the guest dirty more than a trial allows?  It can, because each of its writes is delayed
 * only for a bounded time. */
static bool
trial_failed (const struct converge *c, const struct converge_input *in)
{
  double s = (double)(in->now_ns - c->gate_ns) / (double)NS_PER_S;
  double dirtied = (double)(in->dirtied_bytes - c->gate_dirtied),
         half = CONVERGE_HALF * in->bandwidth;
  return dirtied > half * TRIAL_S && (dirtied > half * s || in->dirty_rate > half);
}

/* Will the guest dirty as fast as the worker copies, once the first pass has gone over the disk?
 * What is dirty already cannot turn dirty, so in that pass D shows only the writes to what is
 * clean.  D rises with that part of the disk if the guest writes everywhere.  If D does not rise,
 * the guest writes to one part, and more clean blocks elsewhere will not change D. */
static bool
hopeless (const struct converge *c, const struct converge_input *in)
{
  const struct converge_mark *from = &c->marks[1];
  double s = (double)(in->now_ns - from->ns), whole_s = (double)(in->now_ns - c->gate_ns);
  double clean = 1 - ((double)in->left_bytes + (double)from->left) / 2 / (double)in->disk_bytes;
  double dirtied = (double)(in->dirtied_bytes - from->dirtied);
  double mean = (double)(in->dirtied_bytes - c->gate_dirtied) / whole_s * s;
  double copied = in->bandwidth * s / (double)NS_PER_S;

  return in->passes == 0 && clean >= CLEAN_PART && dirtied >= RISES * mean
         && dirtied >= CONVERGE_LOSING * clean * copied;
}

/* Can the end of the pass be foreseen?  Returns why it will not do, or CONVERGE_NO_REASON. */
static enum converge_reason
foresee (const struct converge *c, const struct converge_input *in)
{
  if (c->on_trial && trial_failed (c, in))
    return CONVERGE_USELESS;
  if (!settled (c, in) || little_left (in))
    return CONVERGE_NO_REASON;
  double rate = rate_now (c, in), half = CONVERGE_HALF * in->bandwidth;
  uint64_t dirtied = in->dirtied_bytes - c->stretch_dirtied;
  bool much = dirtied > in->disk_bytes / FORESEE_PART;

  switch (c->gate) {
  case CONVERGE_OPEN:
    return much && (rate > half || hopeless (c, in)) ? CONVERGE_RATE : CONVERGE_NO_REASON;
  case CONVERGE_THROTTLED:
    return rate > OBEYED * (double)c->dirty_limit && rate > half ? CONVERGE_USELESS
                                                                 : CONVERGE_NO_REASON;
  case CONVERGE_SYNCHRONOUS:
    break;
  }
  return CONVERGE_NO_REASON;
}

/* ---- doing something about it ---- */

static bool
leaves_open (enum job_policy policy)
{
  return policy == POLICY_NONE || policy == POLICY_FAIL;
}

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

/* Does the job stay within its budget if the guest gets the part STEP of B from now on?  While the
 * guest dirties STEP x B, each byte that is left costs 1 / (1 - STEP) bytes until it is done. */
static bool
affordable (const struct converge_input *in, double step)
{
  double total = (double)in->sent_bytes + (double)in->left_bytes / (1 - step);
  return total <= BUDGET_DISKS * (double)in->disk_bytes;
}

/* Choose the gentlest step below the present one that is affordable, or else the last step.  False
 * if there is no step below the present one. */
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
  if (before == CONVERGE_SYNCHRONOUS || leaves_open (in->policy))
    return false;
  if (((c->was_opened && before == CONVERGE_OPEN) || c->on_trial)
      && c->calm_needed_ns < CALM_MAX_NS)
    c->calm_needed_ns *= 2; /* the gate was opened too early, or the trial came too early */
  bool far = in->policy == POLICY_SYNC && c->far;
  bool throttle = (in->policy == POLICY_THROTTLE || far) && why != CONVERGE_USELESS
                  && why != CONVERGE_GUARD && !c->on_trial && in->bandwidth > 0
                  && choose_step (c, in);
  set_gate (c, in, throttle ? CONVERGE_THROTTLED : CONVERGE_SYNCHRONOUS,
            throttle && far ? CONVERGE_FAR : why);
  return true;
}

/* In the throttled gate: does the guest use most of its limit, if only in bursts?  Over two seconds
 * one that writes for one of every four seconds looks as if it wanted half of its limit.  With an
 * open gate it would write at once what was held back, and the gate would go to and fro. */
static bool
uses_limit (const struct converge *c, const struct converge_input *in)
{
  double s = (double)(in->now_ns - c->burst_marks[1].ns) / (double)NS_PER_S;
  double dirtied = (double)(in->dirtied_bytes - c->burst_marks[1].dirtied);

  return dirtied >= WANTS_LESS * (double)c->dirty_limit * s
         && in->now_ns - c->burst_marks[1].ns >= BURST_NS;
}

/* Would an open gate do, provided that the guest wants little more than it gets now? */
static bool
little (const struct converge *c, const struct converge_input *in)
{
  double rate = rate_now (c, in);
  if (!settled (c, in) || rate >= CALM * in->bandwidth)
    return false;
  if (!in->ready && over_guard (c, in) && !little_left (in))
    return false;
  return c->gate != CONVERGE_THROTTLED
         || (rate < WANTS_LESS * (double)c->dirty_limit && !uses_limit (c, in));
}

/* Is it known that the guest wants little more than it gets now?
 *
 * In the throttled gate it is known, since little() has seen that the guest does not use its limit.
 *
 * In the synchronous gate W writes wait on average.  By Little's law the guest spends at most the
 * part W of its time waiting.  So without waiting it would get at most 1 / (1 - W) times as much
 * done.  Where W is near one or above, nothing is known: the guest may be held back, or it may just
 * send many requests at a time. */
static bool
wants_little (const struct converge *c, const struct converge_input *in)
{
  if (c->gate == CONVERGE_THROTTLED)
    return true;
  return in->waiting >= 0 && in->waiting < CALM_WAITING
         && rate_now (c, in) / (1 - in->waiting) < CALM_WANTS * in->bandwidth;
}

/* Find out what the guest wants by letting it have more.  The limit of a trial is a part of B at
 * which the job still converges.
 *
 * If the guest turns out to be calm, the gate is opened.  If it uses the whole limit, the gate
 * stays throttled: the guest has more there than the synchronous gate gave it.  If it gets past the
 * limit, which it can by sending more requests at a time than before, the gate becomes synchronous
 * again (trial_failed()). */
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

/* The user has changed the policy to one that leaves the gate open.  What another gate has cost
 * says nothing of an open one, so the guards begin anew. */
static bool
let_go (struct converge *c, const struct converge_input *in)
{
  if (c->gate == CONVERGE_OPEN || !leaves_open (in->policy))
    return false;
  set_gate (c, in, CONVERGE_OPEN, CONVERGE_NO_REASON);
  c->sent_unjudged = in->sent_bytes;
  c->passes_unjudged = in->passes;
  return true;
}

/* Keep the limit at its part of B, when B changes. */
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
  double enough = (c->verdict == CONVERGING_NO ? RECOVERED : CONVERGE_LOSING) * in->bandwidth;

  if (in->ready || little_left (in)) {
    c->verdict = CONVERGING_YES;
    return;
  }
  if (in->bandwidth <= 0 || early) {
    c->verdict = CONVERGING_UNKNOWN;
    return;
  }
  /* Whatever the gate is, what is left shrinks by B - D: in the synchronous gate D counts the
   * writes that are copied at once, and B counts them as well. */
  bool losing = settled (c, in) && rate_now (c, in) >= enough;
  bool stuck = c->gate == CONVERGE_OPEN && (c->stuck || over_guard (c, in));
  c->verdict = losing || stuck ? CONVERGING_NO : CONVERGING_YES;
  if (c->verdict == CONVERGING_NO && c->gate == CONVERGE_OPEN)
    c->reason = why != CONVERGE_NO_REASON ? why : c->stuck ? CONVERGE_PASS : CONVERGE_RATE;
}

/* Did the user choose the gate by hand just now, or leave it to the policy again?  Then what was
 * measured before says nothing. */
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

/* Must no decision be made now?  While most of what is left is in quarantine, the line is busy with
 * reading back, and the passes are tiny, so they say nothing.  A smaller part in quarantine must
 * not stop the policy, because it may stay there for as long as the guest keeps a pass from ending.
 */
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
  c->far = converge_is_far (in->trip_ms, in->max_write_delay_ms);
  mark (c, in);

  look_at_hand (c, in);
  bool changed = let_go (c, in);
  enum converge_reason why = judge_pass (c, in);
  if (why == CONVERGE_NO_REASON)
    why = foresee (c, in);
  /* With a gate that the user has chosen, D and the passes do not say what an open gate would do.
   */
  if (in->by_hand) {
    why = CONVERGE_NO_REASON;
    c->stuck = false;
  }
  if (why == CONVERGE_NO_REASON && over_guard (c, in) && !little_left (in))
    why = CONVERGE_GUARD;
  if (in->ready)
    why = CONVERGE_NO_REASON;
  if (why != CONVERGE_NO_REASON ? escalate (c, in, why) : relax (c, in))
    changed = true;
  if (follow_bandwidth (c, in))
    changed = true;
  judge (c, in, why);
  c->give_up = in->policy == POLICY_FAIL && c->verdict == CONVERGING_NO
               && (why == CONVERGE_PASS || why == CONVERGE_GUARD);
  return changed;
}

/* ---- what others ask ---- */

bool
converge_is_far (double trip_ms, double max_delay_ms)
{
  return max_delay_ms > 0 && trip_ms * FAR > max_delay_ms;
}

double
converge_expected_rate (const struct converge *c, enum job_policy policy, double bandwidth,
                        double dirty_rate)
{
  double most = dirty_rate;
  if (c->gate == CONVERGE_OPEN && dirty_rate > CONVERGE_HALF * bandwidth) {
    if (policy == POLICY_SYNC && !c->far)
      most = CONVERGE_SYNC_PART * bandwidth;
    else if (policy == POLICY_THROTTLE || policy == POLICY_SYNC)
      most = CONVERGE_LOWEST_STEP * bandwidth;
  }
  return most < dirty_rate ? most : dirty_rate;
}
