/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The convergence decision, step by step: looks at the counters given by hand.  (tests/sim has
 * whole jobs.)
 */

#include "config.h"

#include <string.h>

#include "tests/unit/unit.h"

#include "mirror/job/converge.h"

#define S UINT64_C (1000000000)
#define MIB (UINT64_C (1) << 20)
#define RATE(mib) ((double)(mib)*1048576)

struct story {
  struct converge c;
  struct converge_input in;
  bool few_sent; /* keep below the guard, however long it takes */
};

static struct story
begin (enum job_policy policy)
{
  struct story s = {
    .in = { .policy = policy,
            .now_ns = 100 * S,
            .disk_bytes = 1000 * MIB,
            .left_bytes = 500 * MIB,
            .bandwidth = RATE (100),
            .max_downtime_ms = 300,
            .waiting = -1 },
  };
  converge_init (&s.c);
  return s;
}

/* SECONDS go by at dirty rate MIB_S.  True if the gate was changed. */
static bool
pass_time (struct story *s, double seconds, double mib_s)
{
  bool changed = false;
  s->in.dirty_rate = RATE (mib_s);
  for (unsigned i = 0; i < (unsigned)(seconds * 10); i++) {
    s->in.now_ns += S / 10;
    s->in.dirtied_bytes += (uint64_t)(RATE (mib_s) / 10);
    s->in.sent_bytes += (uint64_t)(s->in.bandwidth / 10);
    if (s->few_sent)
      s->in.sent_bytes = 0;
    changed = converge_decide (&s->c, &s->in) || changed;
  }
  return changed;
}

static void
end_pass (struct story *s, uint64_t before_mib, uint64_t after_mib)
{
  s->in.passes++;
  s->in.pass_before = before_mib * MIB;
  s->in.pass_after = after_mib * MIB;
  s->in.left_bytes = after_mib * MIB;
}

Test (converge, foresees_a_pass_that_will_not_halve)
{
  struct story s = begin (POLICY_SYNC);
  cr_assert_not (pass_time (&s, 1.9, 60)); /* not a whole window yet */
  cr_assert (pass_time (&s, 0.5, 60));
  cr_assert_eq (s.c.gate, CONVERGE_SYNCHRONOUS);
  cr_assert_eq (s.c.reason, CONVERGE_RATE);

  s = begin (POLICY_SYNC);
  cr_assert_not (pass_time (&s, 25, 49));
}

Test (converge, a_burst_that_dirties_little_of_the_disk_is_let_through)
{
  struct story s = begin (POLICY_SYNC);
  s.in.disk_bytes = s.in.left_bytes = 100000 * MIB;
  cr_assert_not (pass_time (&s, 20, 90));
  cr_assert (pass_time (&s, 20, 90)); /* it does not stop */
}

Test (converge, a_pass_that_did_not_halve)
{
  struct story s = begin (POLICY_SYNC);
  pass_time (&s, 5, 10);
  end_pass (&s, 1000, 900); /* the first one says nothing: holes go by in no time */
  cr_assert_not (pass_time (&s, 5, 10));
  end_pass (&s, 900, 450);
  cr_assert_not (pass_time (&s, 5, 10));
  end_pass (&s, 450, 226);
  cr_assert (pass_time (&s, 0.1, 10));
  cr_assert_eq (s.c.gate, CONVERGE_SYNCHRONOUS);
  cr_assert_eq (s.c.reason, CONVERGE_PASS);
}

Test (converge, what_fits_needs_no_halving)
{
  struct story s = begin (POLICY_SYNC);
  pass_time (&s, 5, 10);
  end_pass (&s, 1000, 20);
  pass_time (&s, 1, 10);
  end_pass (&s, 20, 20); /* 200 ms */
  cr_assert_not (pass_time (&s, 1, 90));
  cr_assert_eq (s.c.verdict, CONVERGING_YES);
}

Test (converge, throttles_by_steps)
{
  struct story s = begin (POLICY_THROTTLE);
  s.in.left_bytes = 100 * MIB;
  s.in.disk_bytes = 10000 * MIB;
  pass_time (&s, 5, 10);
  static const double want[] = { 0.8, 0.6, 0.4, 0.2 };
  end_pass (&s, 10000, 1000);
  for (unsigned i = 0; i < 4; i++) {
    pass_time (&s, 3, 45);
    end_pass (&s, 1000, 900);
    cr_assert (pass_time (&s, 0.1, 45));
    cr_assert_eq (s.c.gate, CONVERGE_THROTTLED);
    cr_assert_float_eq ((double)s.c.dirty_limit, want[i] * RATE (100), 1);
    end_pass (&s, 1000, 900); /* in which the gate was changed: says nothing */
    cr_assert_not (pass_time (&s, 1, 15));
  }
  end_pass (&s, 1000, 900);
  cr_assert (pass_time (&s, 0.1, 15));
  cr_assert_eq (s.c.gate, CONVERGE_SYNCHRONOUS);
}

Test (converge, throttles_as_far_as_the_traffic_asks_for)
{
  struct story s = begin (POLICY_THROTTLE);
  s.in.left_bytes = 950 * MIB;
  cr_assert (pass_time (&s, 2.5, 90)); /* 200 sent, 950 / (1 - 0.2) to come */
  cr_assert_float_eq ((double)s.c.dirty_limit, RATE (20), 1);
}

Test (converge, throttling_that_is_not_obeyed_is_given_up)
{
  struct story s = begin (POLICY_THROTTLE);
  pass_time (&s, 2.1, 95);
  cr_assert_eq (s.c.gate, CONVERGE_THROTTLED);
  cr_assert_not (pass_time (&s, 1.5, 95)); /* the window is still of the time before */
  cr_assert (pass_time (&s, 1, 95));
  cr_assert_eq (s.c.gate, CONVERGE_SYNCHRONOUS);
  cr_assert_eq (s.c.reason, CONVERGE_USELESS);
}

Test (converge, the_limit_follows_the_bandwidth)
{
  struct story s = begin (POLICY_THROTTLE);
  pass_time (&s, 3, 60);
  double step = (double)s.c.dirty_limit / RATE (100);
  s.in.bandwidth = RATE (95);
  cr_assert_not (pass_time (&s, 1, 20)); /* not for every tremble */
  s.in.bandwidth = RATE (50);
  cr_assert (pass_time (&s, 0.1, 20));
  cr_assert_float_eq ((double)s.c.dirty_limit, step * RATE (50), 1);
}

Test (converge, opens_when_the_guest_is_calm)
{
  struct story s = begin (POLICY_SYNC);
  s.few_sent = true;
  pass_time (&s, 3, 90);
  cr_assert_eq (s.c.gate, CONVERGE_SYNCHRONOUS);
  s.in.waiting = 0.2;
  cr_assert_not (pass_time (&s, 4.9, 5));
  cr_assert_not (pass_time (&s, 1, 40)); /* begins again */
  cr_assert_not (pass_time (&s, 4.9, 5));
  cr_assert (pass_time (&s, 0.5, 5));
  cr_assert_eq (s.c.gate, CONVERGE_OPEN);
  cr_assert_eq (s.c.reason, CONVERGE_CALM);
}

/* 200 writes/s of 4 KiB over a line with 10 ms of delay: two of them wait at any time, which says
 * nothing about what it wants.  So it is let have up to 0.4 x B, and is watched. */
static struct story
on_trial (enum job_policy policy, double waiting)
{
  struct story s = begin (policy);
  s.few_sent = true;
  for (unsigned i = 0; i < 100 && s.c.gate != CONVERGE_SYNCHRONOUS; i++)
    pass_time (&s, 0.1, 130);
  cr_assert_eq (s.c.gate, CONVERGE_SYNCHRONOUS);
  s.in.ready = true;
  s.in.left_bytes = MIB;
  s.in.waiting = waiting;
  cr_assert_not (pass_time (&s, 6.9, 1)); /* window and calm time */
  cr_assert (pass_time (&s, 0.5, 1));
  cr_assert_eq (s.c.gate, CONVERGE_THROTTLED);
  cr_assert_eq (s.c.reason, CONVERGE_TRIAL);
  cr_assert_float_eq ((double)s.c.dirty_limit, RATE (40), 1);
  s.in.waiting = -1;
  s.in.ready = false;
  s.in.left_bytes = 500 * MIB;
  return s;
}

Test (converge, a_guest_of_which_nobody_knows_what_it_wants_is_tried)
{
  static const double waiting[] = { -1, 0.95, 2, 16 };
  for (unsigned i = 0; i < 4; i++) {
    struct story s = on_trial (i % 2 ? POLICY_THROTTLE : POLICY_SYNC, waiting[i]);
    cr_assert_not (pass_time (&s, 60, 30)); /* less than it may, but no open gate would do */
    cr_assert_not (
        pass_time (&s, 60, 39)); /* all that it may: it stays so, better off than before */
    cr_assert_not (pass_time (&s, 4.9, 27));
    cr_assert (pass_time (&s, 1.3, 27)); /* what it did a second ago counts as well */
    cr_assert_eq (s.c.gate, CONVERGE_OPEN);
  }
}

Test (converge, a_trial_ends_when_it_does_not_hold_the_guest)
{
  for (unsigned p = POLICY_SYNC; p <= POLICY_THROTTLE; p++) {
    struct story s = on_trial ((enum job_policy)p, 2);
    cr_assert_not (pass_time (&s, 0.2, 200));
    cr_assert (pass_time (&s, 0.2, 200)); /* half of what B is in a second: no need to see more */
    cr_assert_eq (s.c.gate, CONVERGE_SYNCHRONOUS);
    cr_assert_eq (s.c.reason, CONVERGE_USELESS);
    s.in.waiting = 2;
    cr_assert_not (pass_time (&s, 11.7, 1)); /* twice as long until the next one */
    s.in.ready = true;
    cr_assert (pass_time (&s, 0.5, 1));
    cr_assert_eq (s.c.gate, CONVERGE_THROTTLED);
    s.in.ready = false;
    s.in.waiting = -1;
    cr_assert_not (pass_time (&s, 3, 39));
    s.in.left_bytes = 500 * MIB;
    s.few_sent = false;
    s.in.sent_bytes += 4 * s.in.disk_bytes; /* too much for becoming ready */
    cr_assert (pass_time (&s, 0.1, 39));
    cr_assert_eq (s.c.gate, CONVERGE_SYNCHRONOUS);
  }
}

Test (converge, no_trial_before_its_time)
{
  struct story s = begin (POLICY_SYNC);
  s.few_sent = true;
  pass_time (&s, 3, 90);
  s.in.waiting = 2;
  s.in.left_bytes = 899 * MIB; /* at a dirty rate of 0.4 x B that makes 1.5 x the disk, no more */
  cr_assert_not (pass_time (&s, 60, 36)); /* an open gate would not do */
  s.in.by_hand = true;
  cr_assert_not (pass_time (&s, 60, 1));
  s.in.by_hand = false;
  s.in.left_bytes = 901 * MIB;
  cr_assert_not (pass_time (&s, 60, 1)); /* it would cost too much traffic */
  s.in.left_bytes = 899 * MIB;
  cr_assert (pass_time (&s, 0.1, 1));
  cr_assert_eq (s.c.gate, CONVERGE_THROTTLED);
}

/* One write waits most of the time: it has been doing something else for at least the rest. */
Test (converge, what_waits_less_than_always_wants_little)
{
  struct story s = begin (POLICY_SYNC);
  s.few_sent = true;
  pass_time (&s, 3, 90);
  s.in.waiting = 0.8;
  cr_assert (pass_time (&s, 7.1, 7.9)); /* at most 39.5 */
  cr_assert_eq (s.c.gate, CONVERGE_OPEN);
  s = begin (POLICY_SYNC);
  s.few_sent = true;
  pass_time (&s, 3, 90);
  s.in.ready = true;
  s.in.waiting = 0.8;
  cr_assert (pass_time (&s, 7.1, 8.1)); /* at most 40.5 */
  cr_assert_eq (s.c.gate, CONVERGE_THROTTLED);
}

/* A disk that is copied in a second: what is seen in a part of that has to do. */
Test (converge, a_small_disk_is_judged_sooner)
{
  struct story s = begin (POLICY_SYNC);
  s.in.disk_bytes = s.in.left_bytes = 100 * MIB;
  cr_assert_not (pass_time (&s, 0.4, 60));
  cr_assert (pass_time (&s, 0.2, 60));
  cr_assert_eq (s.c.gate, CONVERGE_SYNCHRONOUS);
}

Test (converge, each_relapse_makes_it_wait_longer)
{
  struct story s = begin (POLICY_SYNC);
  s.in.disk_bytes = s.in.left_bytes = 100 * MIB;
  s.few_sent = true;
  double calm[8];
  for (unsigned i = 0; i < 8; i++) {
    s.in.waiting = 2;
    pass_time (&s, 4, 90);
    cr_assert_eq (s.c.gate, CONVERGE_SYNCHRONOUS);
    s.in.waiting = 0;
    for (calm[i] = 0; s.c.gate != CONVERGE_OPEN && calm[i] < 1000; calm[i]++) {
      pass_time (&s, 1, 1);
    }
    cr_assert (i == 0 || calm[i] > 1.5 * calm[i - 1] || calm[i] > 300, "%u: %f", i, calm[i]);
  }
  cr_assert_leq (calm[7], 400);
}

Test (converge, ready_is_left_alone)
{
  struct story s = begin (POLICY_SYNC);
  s.in.ready = true;
  s.in.passes = 100;
  cr_assert_not (pass_time (&s, 3600, 90)); /* 3 x the disk, many times over */
  cr_assert_eq (s.c.verdict, CONVERGING_YES);
  s.in.ready = false;
  cr_assert_not (pass_time (&s, 1, 10)); /* what was sent while ready does not count */
  s.in.suspended = true;
  pass_time (&s, 3600, 90);
  s.in.suspended = false;
  cr_assert_not (pass_time (&s, 1, 10)); /* nor what was copied again out of quarantine */
}

Test (converge, guards)
{
  struct story s = begin (POLICY_THROTTLE);
  s.in.passes = CONVERGE_MAX_PASSES;
  cr_assert (pass_time (&s, 0.1, 1));
  cr_assert_eq (s.c.gate, CONVERGE_SYNCHRONOUS);
  s = begin (POLICY_SYNC);
  pass_time (&s, 0.1, 1);
  s.in.sent_bytes += CONVERGE_MAX_DISKS * s.in.disk_bytes;
  cr_assert (pass_time (&s, 0.1, 1));
  s = begin (POLICY_FAIL);
  s.in.passes = CONVERGE_MAX_PASSES;
  pass_time (&s, 0.1, 1);
  cr_assert (s.c.give_up);
}

Test (converge, fail_gives_up_at_the_end_of_a_pass)
{
  struct story s = begin (POLICY_FAIL);
  pass_time (&s, 20, 90);
  end_pass (&s, 1000, 500);
  pass_time (&s, 20, 90);
  cr_assert_not (s.c.give_up);
  end_pass (&s, 500, 400);
  pass_time (&s, 0.1, 90);
  cr_assert (s.c.give_up);
  cr_assert_eq (s.c.gate, CONVERGE_OPEN);
}

Test (converge, nothing_is_judged_while_suspended)
{
  struct story s = begin (POLICY_FAIL);
  pass_time (&s, 5, 90);
  end_pass (&s, 1000, 900);
  pass_time (&s, 1, 90);
  s.in.suspended = true;
  for (unsigned i = 0; i < 100; i++)
    end_pass (&s, 10, 10);
  s.in.left_bytes = 500 * MIB;
  cr_assert_not (pass_time (&s, 5, 90));
  cr_assert_not (s.c.give_up);
  s.in.suspended = false;
  s.in.passes = 3; /* as if none had been counted meanwhile */
  pass_time (&s, 0.1, 90);
  cr_assert_not (s.c.give_up);

  s = begin (POLICY_SYNC); /* and a window of its own afterwards */
  pass_time (&s, 1.5, 90);
  s.in.suspended = true;
  pass_time (&s, 5, 0);
  s.in.suspended = false;
  cr_assert_not (pass_time (&s, 1.9, 90));
  cr_assert (pass_time (&s, 1, 90));
}

/* After a lost session, with a guest as fast as the line: a few blocks stay in quarantine for as
 * long as it writes. The policy must not wait for the last of them (it did, and the job sent 6 x
 * the disk with an open gate). */
Test (converge, a_little_in_quarantine_does_not_stop_the_policy)
{
  struct story s = begin (POLICY_SYNC);
  s.in.quarantine_bytes = 251 * MIB; /* more than half of what is left: another thing goes on */
  cr_assert_not (pass_time (&s, 30, 99));
  cr_assert_eq (s.c.gate, CONVERGE_OPEN);
  s.in.quarantine_bytes = 250 * MIB;
  cr_assert_not (pass_time (&s, 1.9, 99)); /* a window of its own */
  cr_assert (pass_time (&s, 0.5, 99));
  cr_assert_eq (s.c.gate, CONVERGE_SYNCHRONOUS);

  s = begin (POLICY_FAIL);
  s.in.quarantine_bytes = MIB;
  pass_time (&s, 20, 99);
  end_pass (&s, 1000, 500);
  pass_time (&s, 5, 99);
  end_pass (&s, 500, 400);
  pass_time (&s, 0.1, 99);
  cr_assert (s.c.give_up);
}

Test (converge, another_policy_opens_the_gate)
{
  struct story s = begin (POLICY_SYNC);
  pass_time (&s, 3, 90);
  s.in.policy = POLICY_NONE;
  cr_assert (pass_time (&s, 0.1, 10));
  cr_assert_eq (s.c.gate, CONVERGE_OPEN);
}

/* Also once too much was spent, or where a trial has just failed; and fail begins to count then. */
Test (converge, another_policy_opens_the_gate_whatever_is_wrong)
{
  static const enum job_policy policies[] = { POLICY_NONE, POLICY_FAIL };

  for (unsigned i = 0; i < 2; i++) {
    struct story s = begin (POLICY_SYNC);
    s.in.passes = CONVERGE_MAX_PASSES;
    pass_time (&s, 0.1, 10);
    cr_assert_eq (s.c.gate, CONVERGE_SYNCHRONOUS);
    s.in.policy = policies[i];
    cr_assert (pass_time (&s, 0.1, 10));
    cr_assert_eq (s.c.gate, CONVERGE_OPEN);
    cr_assert_eq (s.c.reason, CONVERGE_NO_REASON);
    cr_assert_not (pass_time (&s, 1, 10));
    cr_assert_not (s.c.give_up);

    s = on_trial (POLICY_SYNC, 2);
    cr_assert_not (pass_time (&s, 0.2, 200));
    s.in.policy = policies[i];
    cr_assert (pass_time (&s, 0.2, 200));
    cr_assert_eq (s.c.gate, CONVERGE_OPEN);
  }
}

Test (converge, verdict)
{
  struct story s = begin (POLICY_NONE);
  pass_time (&s, 9, 10);
  cr_assert_eq (s.c.verdict, CONVERGING_UNKNOWN); /* too early to tell */
  pass_time (&s, 2, 10);
  cr_assert_eq (s.c.verdict, CONVERGING_YES);
  pass_time (&s, 1, 101);
  cr_assert_eq (s.c.verdict, CONVERGING_NO);
  pass_time (&s, 1, 90); /* does not tremble */
  cr_assert_eq (s.c.verdict, CONVERGING_NO);
  pass_time (&s, 1, 80);
  cr_assert_eq (s.c.verdict, CONVERGING_YES);

  s = begin (POLICY_NONE); /* from the second pass on */
  pass_time (&s, 1, 10);
  end_pass (&s, 1000, 100);
  pass_time (&s, 0.1, 10);
  cr_assert_eq (s.c.verdict, CONVERGING_YES);
  end_pass (&s, 100, 80);
  pass_time (&s, 1, 10);
  cr_assert_eq (s.c.verdict, CONVERGING_NO);
  end_pass (&s, 80, 40);
  pass_time (&s, 0.1, 10);
  cr_assert_eq (s.c.verdict, CONVERGING_YES);
  s.in.bandwidth = 0;
  pass_time (&s, 0.1, 10);
  cr_assert_eq (s.c.verdict, CONVERGING_UNKNOWN);
}

Test (converge, words)
{
  char buf[160];
  struct story s = begin (POLICY_SYNC);
  cr_assert_str_eq (converge_action (&s.c, POLICY_SYNC, 50, buf, sizeof buf), "nothing is needed");
  cr_assert_float_eq (converge_expected_rate (&s.c, POLICY_SYNC, 100, 90), 25, 0.01);
  cr_assert_float_eq (converge_expected_rate (&s.c, POLICY_THROTTLE, 100, 90), 20, 0.01);
  cr_assert_float_eq (converge_expected_rate (&s.c, POLICY_NONE, 100, 90), 90, 0.01);
  cr_assert_float_eq (converge_expected_rate (&s.c, POLICY_SYNC, 100, 40), 40, 0.01);
  pass_time (&s, 3, 90);
  cr_assert_str_eq (converge_action (&s.c, POLICY_SYNC, 50, buf, sizeof buf),
                    "guest writes wait for the destination for now, for at most 50 ms each");
}

/* The guards are about one attempt to become ready.  A job that has been ready for days, and left
 * that for a moment thirty times, is not to slow its guest down (or to end, with policy fail) at
 * the next little burst. */
Test (converge, being_ready_starts_the_guards_anew)
{
  static const enum job_policy policies[] = { POLICY_SYNC, POLICY_FAIL };

  for (unsigned i = 0; i < 2; i++) {
    struct story s = begin (policies[i]);
    for (unsigned n = 0; n < 100; n++) {
      s.in.ready = false;
      s.in.left_bytes = 40 * MIB;
      cr_assert_not (pass_time (&s, 0.4, 10), "slowed down in burst %u", n);
      end_pass (&s, 40, 4);
      pass_time (&s, 0.1, 10);
      cr_assert_not (s.c.give_up, "given up in burst %u", n);
      s.in.ready = true;
      pass_time (&s, 5, 5);
    }
    cr_assert_gt (s.in.sent_bytes, 3 * s.in.disk_bytes);
    cr_assert_eq (s.c.verdict, CONVERGING_YES);
  }
}

/* What the job has sent before this worker came may have been sent in the ready state. */
Test (converge, what_was_sent_before_a_resume_does_not_count)
{
  struct story s = begin (POLICY_SYNC);
  s.in.sent_bytes = 50 * s.in.disk_bytes;
  cr_assert_not (pass_time (&s, 12, 10));
  cr_assert_eq (s.c.gate, CONVERGE_OPEN);
}

/* With synchronous=on all that the guest writes turns dirty and is copied: no reason for the policy
 * to do anything, or to end the job, when it falls out of the ready state for a moment. */
Test (converge, nothing_is_done_about_a_gate_that_is_synchronous_by_hand)
{
  static const enum job_policy policies[] = { POLICY_FAIL, POLICY_SYNC, POLICY_THROTTLE };

  for (unsigned i = 0; i < 3; i++) {
    struct story s = begin (policies[i]);
    s.in.by_hand = true;
    pass_time (&s, 3, 99);
    for (unsigned n = 0; n < 5; n++) {
      end_pass (&s, 60, 50);
      cr_assert_not (pass_time (&s, 1, 99));
      cr_assert_not (s.c.give_up, "given up in pass %u", n);
    }
    s.in.by_hand = false;
    cr_assert_not (pass_time (&s, 1, 99), "judged by what was seen before");
    pass_time (&s, 2, 99);
    end_pass (&s, 60, 50); /* of both */
    pass_time (&s, 1, 99);
    end_pass (&s, 60, 50);
    pass_time (&s, 0.1, 99);
    cr_assert (s.c.give_up || s.c.gate != CONVERGE_OPEN);
  }
}
