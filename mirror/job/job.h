/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The jobs of a worker process.  A live mirror attaches to the filter, copies, tells when it is
 * ready, hands off, and answers what users ask of it meanwhile.  The folder also holds the offline
 * copy (copy.h), the comparison of two disks (verify.h), and the pure decisions that a job makes:
 * estimate.h, converge.h, forecast.h.
 *
 * It uses the engine, the endpoints, the coordinator of a hand-off, the control client, the dirty
 * bitmap, and base.  Nothing below it calls it: it polls the engine, whose notify_fd wakes it.
 *
 * Threads: a job has one, which calls everything here and owns the job's data, so the folder has no
 * lock of its own.  What the copiers write is atomic or read under engine.lock.  Three things run
 * in a thread beside it: connecting to the destination (supervisor.h), the coordinator of a
 * hand-off that the job starts by itself (final.c), and the test reads of a dry run (read-test.h).
 */

#ifndef NBDMIRROR_MIRROR_JOB_JOB_H
#define NBDMIRROR_MIRROR_JOB_JOB_H

#include <stdbool.h>
#include <stdint.h>
#include <jansson.h>

#include "mirror/engine/session.h"
#include "mirror/job/converge.h"
#include "mirror/job/sync.h"

/* What becomes of a job that is left over at the filter. */
enum job_start {
  JOB_NEW,              /* there must be none */
  JOB_RESUME,           /* go on with it; there must be one */
  JOB_RESTART,          /* start over */
  JOB_RESUME_OR_RESTART /* go on with it if there is one, else begin */
};

#define JOB_MAX_WRITE_DELAY_MS 50 /* the default */

/* How it ended; the command maps this to an exit status. */
enum job_result {
  JOB_COMPLETED,     /* handed off: the source is fenced */
  JOB_NOT_SEALED,    /* the same, but the destination could not be sealed (seal.h), so a late
                        request may still be applied under the guest: 3 */
  JOB_FAILED,        /* the source, the server or we: 1 */
  JOB_DEST_FAILED,   /* resumable: 3 */
  JOB_NOT_CONVERGED, /* 4 */
  JOB_CANCELLED,     /* 6 */
  JOB_REFUSED,       /* 7 */
  JOB_DIFFERENT,     /* verified, and not equal: 5 */
  JOB_DETACHED       /* SIGTERM; resumable: 3 */
};

/* What a signal handler asks for. */
enum job_signal {
  JOB_SIGNAL_NONE,
  JOB_SIGNAL_CANCEL,
  JOB_SIGNAL_DETACH,
  JOB_SIGNAL_COMPLETE /* only a tracked copy asks for it (copy.h) */
};

/* Does SIGNAL end what is done before the job copies? */
static inline bool
job_signal_ends (int signal)
{
  return signal == JOB_SIGNAL_CANCEL || signal == JOB_SIGNAL_DETACH;
}

enum job_message { JOB_NOTICE, JOB_WARNING, JOB_ERROR };

struct job_options {
  const char *control;
  struct session_options dest;
  struct sync_options sync;
  bool verify; /* verify the copy once it is ready, and complete by itself only after that */
  enum engine_sparse sparse;
  enum job_start start;
  enum job_policy policy;
  uint64_t max_downtime_ms;
  uint64_t max_write_delay_ms; /* longest wait of a guest's write, throttled or synchronous */
  uint64_t rate_limit;         /* bytes a second; 0: none */
  struct budget *budget;       /* besides; borrowed, or NULL */
  uint64_t give_up_ns;         /* without destination or source; UINT64_MAX: never */
  uint64_t give_up_stalled_ns; /* while nothing moves; 0: never */
  uint64_t grace_ns;           /* of quarantine; 0: default */
  unsigned max_connections;    /* --connections; 0: default */
  bool complete_when_ready;
  bool unlimited_hold; /* the bandwidth limit does not hold while the gate is held */

  /* Callbacks, all in the job's thread.  STATUS is borrowed. */
  void *opaque;
  void (*message) (void *opaque, enum job_message kind, const char *text);
  void (*progress) (void *opaque, json_t *status); /* about ten times a second */
  bool progress_is_watched;       /* and each second where nothing happens, not only each 5 s */
  void (*started) (void *opaque); /* attached and copying */
  /* Before a hand-off of the job's own accord, in a thread of its own; may be NULL.  -1 with *ERROR
   * (the job frees it with text_free()): the hand-off is given up, and tried again. */
  int (*before_hold) (void *opaque, char **error);
  /* Written by signal handlers, which also write to the eventfd signal_fd. */
  _Atomic int *signal;
  int signal_fd;
};

/* Run the job to its end.  *REPORT (a new reference) is the final status object with its pass-log,
 * or NULL if it never began.  The reason of a failure was given to message(). */
enum job_result job_run (const struct job_options *o, json_t **report);

/* Check everything that job_run() would, measure for MEASURE_NS, and foretell how it would go:
 * without a job, and without writing anything.  JOB_COMPLETED: it would end.  JOB_NOT_CONVERGED: it
 * would not end under this policy.  Else as job_run().  *REPORT (a new reference): what was
 * measured and the forecast, or NULL. */
enum job_result job_dry_run (const struct job_options *o, uint64_t measure_ns, json_t **report);

const char *job_policy_name (enum job_policy p);
/* False if NAME is none of them. */
bool job_policy_parse (const char *name, enum job_policy *p);

#endif
