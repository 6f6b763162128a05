/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the files of a copy share (copy.h):
 *
 *   copy.c           opens both sides, runs the engine, ends
 *   copy-status.c    how it stands
 *   tracked.c        the same copy of a disk in use: passes, ready, the hand-over
 *   copy-server.c    its control socket
 *   copy-handoff.c   a hand-over that a coordinator asks for there
 *
 * Everything here belongs to the job's thread.
 */

#ifndef NBDMIRROR_MIRROR_JOB_COPY_INTERNAL_H
#define NBDMIRROR_MIRROR_JOB_COPY_INTERNAL_H

#include <poll.h>

#include "mirror/engine/engine.h"
#include "mirror/engine/supervisor.h"
#include "mirror/job/copy.h"
#include "mirror/job/copy-handoff.h"
#include "mirror/job/estimate.h"
#include "mirror/job/incremental.h"
#include "mirror/job/look-again.h"
#include "mirror/job/source-errors.h"

/* The passes over a disk in use. */
struct tracked {
  unsigned passes;        /* finished; every block was copied and flushed at the end of each */
  bool pass_runs;         /* blocks are left of the present one */
  uint64_t pass_ns;       /* when it began */
  uint64_t look_ns;       /* the next look for changes */
  uint64_t last_pass_ns;  /* how long the last one took, with its flush and its look */
  uint64_t changed_bytes; /* what the last look found */
  unsigned fitting;       /* passes running that fit the allowed pause */
  bool ready;
  bool held;
  uint64_t held_ns;
  uint64_t retry_ns; /* no hold before then: the last one did not end in time */
  uint64_t pause_ns; /* how long the guest was stopped at the commit */
  double dirty_rate; /* bytes a second, between the last two looks */
  bool paused;       /* by the user */
  bool told_slow, told_wait;
};

struct copy {
  const struct copy_options *o;
  struct session_options dest;
  struct endpoint *source;
  struct endpoint *base; /* NULL unless o->sync needs one */
  struct incremental incremental;
  struct found_samples found;      /* at the destination, before anything was sent */
  struct look_again look_again;    /* by what it is recognised later */
  struct endpoint_session session; /* see endpoint_options.session */
  int state_lock;                  /* keeps servers away from the state file, or -1 */
  struct region *region;
  struct engine engine;
  struct supervisor supervisor;
  struct source_errors source_errors;
  struct estimate estimate;
  struct tracked tracked;               /* with o->tracker */
  uint64_t rate_limit, max_downtime_ms; /* as in the options, or as was set since */
  bool fail_if_slow;
  bool is_receive; /* a server of nbdmirror receive is the destination */
  bool sealed;
  uint64_t start_ns;
  bool flush_asked; /* the last one, in this session */
  uint64_t flushes_before;
  bool warned;
};

/* copy.c: are all blocks acknowledged, and has the flush that came after that succeeded?  Asks for
 * the flush.  It is asked for anew once something was dirty. */
bool copy_all_done (struct copy *c);

/* copy-status.c */

/* Where to: a name, or the words of a command.  A new reference. */
json_t *copy_target (const struct copy *c);
/* A new reference, or NULL. */
json_t *copy_status (struct copy *c, const char *state);
/* The same of a copy that runs. */
json_t *copy_status_now (struct copy *c);

/* copy-server.c.  S may be NULL: no control socket. */

/* Its destination is still being proved: answer who asks.  To be called several times a second. */
void copy_server_prove (struct copy_server *s, struct copy *c);
/* The copy C runs from now on; NULL: it has ended. */
void copy_server_begin (struct copy_server *s, struct copy *c);
/* That is what is told from now on.  STATUS is borrowed, and completed. */
void copy_server_tell (struct copy_server *s, json_t *status);
/* As poll() of EXTRA, and answer meanwhile. */
int copy_server_poll (struct copy_server *s, int timeout_ms, struct pollfd *extra,
                      unsigned nr_extra);
struct copy_handoff *copy_server_handoff (struct copy_server *s);

/* tracked.c */

/* Begin to track, before anything is read. */
int tracked_begin (struct copy *c, char **error);
/* Returns true when it is over, with *RESULT; errors were told. */
bool tracked_step (struct copy *c, enum job_result *result);
/* It is over: let the guest go on, unless it is handed over in this very moment.  *RESULT changes
 * then. */
void tracked_end (struct copy *c, enum job_result *result);
void tracked_set_paused (struct copy *c, bool paused);
/* The guest goes on, if it is held. */
void tracked_release (struct copy *c);
/* Is nothing to be done until tracked.look_ns? */
bool tracked_rests (const struct copy *c);
const char *tracked_state (const struct copy *c);

#endif
