/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The convergence decision: does the mirror get ahead of the guest, and what is to be done if it
 * does not?
 *
 * A state machine over plain values: no clock, no I/O, no locks.  The job's thread gives it a look
 * at the counters about ten times a second and does what it says to the gate; the simulator in
 * tests/sim gives it modelled disks and guests.
 *
 *   from         when                                                  to
 *   OPEN         a pass did not halve what was left, or will not       THROTTLED or SYNCHRONOUS
 *   THROTTLED    the same                                              THROTTLED, a step lower
 *   THROTTLED    the same at the lowest step, or steps do nothing      SYNCHRONOUS
 *   either       the guest has wanted little for a while               OPEN
 *   SYNCHRONOUS  the guest gets little; what it wants is not known     THROTTLED, "on trial"
 *   on trial     the guest wants little                                OPEN
 *   on trial     the throttle does not hold it                         SYNCHRONOUS
 *
 * On trial the guest gets as much as still converges, so that what it wants can be seen.
 *
 * Each relapse doubles the calm that is asked for before the next try, so a guest that needs a gate
 * is not moved to and fro.
 *
 * By policy: sync goes to SYNCHRONOUS at once, throttle by steps, none and fail leave the gate
 * open.  Where one write to the destination takes about as long as a guest's write may wait, it
 * would wait in vain each time, and the destination would not have it any sooner.  There the line
 * is called far, and sync goes by steps as well.  SYNCHRONOUS is still the last resort: the guest's
 * writes then wait as long as they may, which slows the guest down, whatever it is that they wait
 * for.
 *
 * Words, all in bytes a second: B, what the destination acknowledges; D, what the guest turns from
 * clean to dirty.  A pass leaves D / B of what it began with, so it halves what was left if D <= B
 * / 2.  In the first pass D is lower than it will be, since most of the disk is dirty anyway.  That
 * it will be as high as B is foreseen by how it rises with what is clean.
 */

#ifndef NBDMIRROR_MIRROR_JOB_CONVERGE_H
#define NBDMIRROR_MIRROR_JOB_CONVERGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum job_policy { POLICY_SYNC, POLICY_THROTTLE, POLICY_NONE, POLICY_FAIL };

enum converge_gate { CONVERGE_OPEN, CONVERGE_THROTTLED, CONVERGE_SYNCHRONOUS };

enum converging { CONVERGING_UNKNOWN, CONVERGING_YES, CONVERGING_NO };

/* Why the gate was last changed, or why it does not converge. */
enum converge_reason {
  CONVERGE_NO_REASON,
  CONVERGE_PASS,    /* a pass did not halve what was left */
  CONVERGE_RATE,    /* D is too high for the next pass to */
  CONVERGE_GUARD,   /* too many passes, or too much sent */
  CONVERGE_USELESS, /* the guest is faster than the throttled gate lets it be: its delays are
                       bounded */
  CONVERGE_CALM,    /* the guest wants little */
  CONVERGE_TRIAL,   /* it may want little: it gets as much as still converges, and is watched */
  CONVERGE_FAR      /* policy sync: D is too high, and waiting for the destination would be in
                       vain */
};

/* Guards: what may be spent on becoming ready.  Being ready starts them anew, and so does a new
 * worker. */
#define CONVERGE_MAX_PASSES 30
#define CONVERGE_MAX_DISKS 3

/* What the forecast goes by as well, as parts of B. */
#define CONVERGE_HALF 0.5        /* a pass halves what is left if D is at most this */
#define CONVERGE_LOSING 0.95     /* if D is above this, what is left hardly shrinks */
#define CONVERGE_SYNC_PART 0.25  /* goes to guest writes that wait, while the rest catches up */
#define CONVERGE_LOWEST_STEP 0.2 /* of throttling */

/* One look. */
struct converge_input {
  uint64_t now_ns;
  enum job_policy policy;
  uint64_t disk_bytes;
  uint64_t sent_bytes;              /* data sent by the job so far */
  uint64_t left_bytes;              /* dirty, or claimed and not acknowledged */
  uint64_t dirtied_bytes;           /* turned from clean to dirty, ever growing */
  unsigned passes;                  /* finished, outside ready */
  uint64_t pass_before, pass_after; /* bytes dirty when the last of them began and ended */
  double bandwidth;                 /* B; 0: not known */
  double dirty_rate;                /* D, over the last CONVERGE_WINDOW_NS */
  double fixed_ms;                  /* of the expected pause: flush and round trips */
  double trip_ms;                   /* one write to the destination that waits behind no other */
  double max_write_delay_ms;        /* how long a guest's write may wait */
  double max_downtime_ms;
  double waiting; /* guest writes that wait in the synchronous gate, on average; < 0: not known */
  bool ready;
  bool by_hand;              /* the user has made the gate synchronous, whatever the policy wants */
  uint64_t quarantine_bytes; /* of what is left */
  bool suspended;            /* paused, no destination, or a hand-off under way: nothing to judge */
};

#define CONVERGE_WINDOW_NS UINT64_C (2000000000)

struct converge_mark {
  uint64_t ns, dirtied, left; /* dirtied_bytes and left_bytes at that time */
};

struct converge {
  /* Results. */
  enum converge_gate gate;
  uint64_t dirty_limit; /* while THROTTLED: bytes a second */
  enum converging verdict;
  enum converge_reason reason;
  bool give_up; /* policy fail: end with "did not converge" */

  /* What it remembers. */
  bool begun;
  double step;                /* while THROTTLED: of B */
  uint64_t start_ns, gate_ns; /* when it all, and when the present gate, began */
  unsigned passes_seen;
  bool pass_mixed;          /* the gate was changed during the present pass: its end says nothing */
  bool stuck;               /* the last pass that says something did not halve what was left */
  bool on_trial;            /* THROTTLED to find out what the guest wants */
  uint64_t stretch_dirtied; /* dirtied_bytes when the pass or the gate began */
  uint64_t gate_dirtied;    /* when the gate began */
  struct converge_mark marks[2];       /* of late, the last one first; none from before the gate */
  struct converge_mark burst_marks[2]; /* the same, closer together */
  uint64_t last_sent, sent_unjudged; /* the latter: before this worker, up to the last time of being
                                        ready, or suspended */
  unsigned passes_unjudged;          /* up to the last time of being ready */
  uint64_t calm_ns;                  /* since when the guest gets little; 0: it does not */
  bool calm_doubted;                 /* since then: it may have wanted more */
  uint64_t calm_needed_ns;           /* for how long it must, before the gate is opened */
  bool was_opened;                   /* since the first escalation */
  bool by_hand;                      /* as last seen */
  bool far;                          /* the line: policy sync goes by steps */
};

void converge_init (struct converge *c);

/* Look at IN and bring the results up to date.  Returns true if gate or dirty_limit changed. */
bool converge_decide (struct converge *c, const struct converge_input *in);

/* The session was lost, or somebody else set the gate: what was seen of rates so far is about other
 * times. */
void converge_interrupted (struct converge *c);

/* What the guest's dirty rate is going to be under what the policy will do, if it is DIRTY_RATE
 * now: for an ETA. */
double converge_expected_rate (const struct converge *c, enum job_policy policy, double bandwidth,
                               double dirty_rate);

/* In words, what the policy does or will do about it: "nothing is needed", "guest writes wait for
 * ...". MAX_DELAY_MS: the longest that a guest's write waits.  Returns BUF. */
const char *converge_action (const struct converge *c, enum job_policy policy, double max_delay_ms,
                             char *buf, size_t size);

const char *converge_reason_text (enum converge_reason r);

/* Would a guest's write that may wait for MAX_DELAY_MS wait in vain, if the destination takes
 * TRIP_MS for a write? */
bool converge_is_far (double trip_ms, double max_delay_ms);

#endif
