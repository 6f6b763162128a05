/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A simulator of one mirror job: a modelled disk, guest, line and gate under a virtual clock,
 * driven by the real decision (mirror/job/converge.c) and the real estimates
 * (mirror/job/estimate.c).
 *
 * The model advances in steps of 1 ms.  In each one
 *   - the guest's threads issue what is due (a guest that was held up catches up afterwards, as
 * fio's rate limit does), and wait in the gate: throttled, until the token bucket lets them go;
 * synchronous, until the line has carried their blocks; never for longer than max-write-delay, at
 * which the write goes on and its blocks stay dirty;
 *   - the line carries its bytes: urgent requests in their order, a quarter of the line at most
 * while the job is not synchronised and half otherwise, unless there is nothing else to do; the
 * rest goes over the disk in block order.  In the first pass a request that lies ahead of the
 * cursor is answered at once. Left out: the source's reads, lost sessions, zeroes, and that one
 * request of 256 KiB on the line delays the next.
 */

#ifndef NBDMIRROR_TESTS_SIM_SIM_H
#define NBDMIRROR_TESTS_SIM_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "mirror/job/converge.h"

enum sim_guest {
  SIM_UNIFORM,
  SIM_ZIPF,       /* exponent 1.1, over the whole disk, scattered */
  SIM_HOT_SPOT,   /* 90 % of the writes go to 5 % of the disk */
  SIM_SEQUENTIAL, /* round and round */
  SIM_BURSTY,     /* uniform, 1 s of every 4 at four times the rate */
  SIM_STOP_START, /* uniform, on_s on, on_s off */
  SIM_REWRITE,    /* 4 MiB of the disk, at random */
  SIM_NR_GUESTS
};
const char *sim_guest_name (enum sim_guest g);

struct sim_options {
  uint64_t disk_bytes;
  double bandwidth; /* bytes a second: the limit, or what the line carries */
  bool capped; /* by a limit: requests are answered at once.  Else by the line, whose queue each
                  waits through */
  enum job_policy policy;
  enum sim_guest guest;
  double guest_rate; /* bytes a second that it wants to write */
  double on_s;       /* of SIM_STOP_START: 5 */
  unsigned threads;  /* requests it can have waiting */
  unsigned request_blocks;
  double max_write_delay_ms;
  double max_downtime_ms;
  double flush_ms, rtt_ms;
  double give_up_s;    /* of the virtual clock */
  bool forgets;        /* it does not catch up what it is late with */
  double calm_after_s; /* from then on the guest wants calm_rate, and nothing of what it is late
                          with; 0: never */
  double calm_rate;
  double stay_s;    /* it is handed over at that time at the earliest, ready or not before */
  bool defer_hot;   /* what if: blocks dirtied in two of the last three passes are copied last in a
                       pass */
  bool ahead_twice; /* what if: what is written ahead of the first pass's cursor is copied again
                       later */
  unsigned seed;
};

struct sim_result {
  bool ended;   /* it was handed over */
  bool gave_up; /* policy fail */
  bool said_no; /* the verdict when it ended, or when time was up, was "not converging" */
  bool ever_said_no;
  double ready_s; /* when it became ready */
  double traffic; /* sent, as a part of the disk */
  double pause_ms;
  unsigned passes;
  enum converge_gate gate; /* at the end */
  double first_slowed_s;   /* when the gate was first changed; < 0: never */
  double kept;             /* part of the writes that it wanted which the guest got done */
  double longest_delay_ms;
  unsigned switches; /* of the gate */
  bool waited;       /* the gate was synchronous at some time */
  double unready_s;  /* after it was ready for the first time */
  double calm_kept;  /* as kept, from calm_after_s on */
};

#define SIM_BLOCK 4096u

/* The options of the issue: 1 GiB, 100 MiB/s, 16 threads of 4 KiB, 50 ms, 300 ms. */
struct sim_options sim_defaults (void);

struct sim_result sim_run (const struct sim_options *o);

#endif
