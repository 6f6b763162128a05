/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The offline copy: one pass of the engine over a disk that nobody writes to meanwhile, between any
 * two endpoints.  Its region is private.
 *
 * With a tracker the same over a disk in use, pass after pass, up to the hand-over.
 */

#ifndef NBDMIRROR_MIRROR_JOB_COPY_H
#define NBDMIRROR_MIRROR_JOB_COPY_H

#include "mirror/job/copy-server.h"
#include "mirror/job/job.h"
#include "mirror/job/sync.h"
#include "mirror/job/tracker.h"

struct copy_options {
  char *const *source; /* as for endpoint_open(); the destination may be `null:` as well */
  unsigned nr_source;
  struct session_options dest;
  uint64_t source_only; /* bytes from the beginning of an NBD source; 0: all of it */
  struct sync_options sync;
  enum engine_sparse sparse;
  bool dest_is_zero;        /* the user says so */
  uint64_t rate_limit;      /* bytes a second; 0: none */
  struct budget *budget;    /* besides; borrowed, or NULL */
  uint64_t give_up_ns;      /* 0: a lost destination ends the copy; UINT64_MAX: never give up */
  unsigned max_connections; /* --connections; 0: default */

  /* NULL: nobody writes to the source.  Else it is in use, and these are about the hand-over. */
  const struct tracker *tracker;
  uint64_t max_downtime_ms;
  bool complete_when_ready;   /* else at JOB_SIGNAL_COMPLETE */
  bool fail_if_slow;          /* JOB_NOT_CONVERGED instead of trying on */
  struct copy_server *server; /* its control socket, borrowed; NULL: it has none */

  /* As in struct job_options. */
  void *opaque;
  void (*message) (void *opaque, enum job_message kind, const char *text);
  void (*progress) (void *opaque, json_t *status);
  _Atomic int *signal;
  int signal_fd;
};

/* JOB_COMPLETED only after the destination's flush succeeded; with a tracker the guest is stopped
 * then (and if it is JOB_NOT_SEALED), and else it is not held.  *REPORT: a new reference, or NULL.
 */
enum job_result copy_run (const struct copy_options *o, json_t **report);

/* The state that a report tells.  A constant. */
const char *copy_end_name (enum job_result result);

#endif
