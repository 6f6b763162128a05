/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the parts of the filter share.  One `struct mirror` a server: nbdkit gives its callbacks
 * no place to keep one, so it is a static variable of mirror-filter.c, and everything else gets a
 * pointer.
 *
 * Threads: nbdkit's threads use `config`, `tracker`, `gate` and `pace` and nothing else, and run
 * only the callbacks in mirror-filter.c.  All else belongs to the control thread (thread.c) from
 * after_fork to cleanup, and to the main thread before and after.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_FILTER_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_FILTER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <jansson.h>

#include "control/decision.h"
#include "control/server.h"
#include "nbd-plugin/mirror/fence.h"
#include "nbd-plugin/mirror/gate.h"
#include "nbd-plugin/mirror/pace.h"
#include "nbd-plugin/mirror/process.h"
#include "nbd-plugin/mirror/tracker.h"

#define DEFAULT_ID "mirror"
#define DEFAULT_MAX_DOWNTIME_MS 300
#define MAX_LEASE_MS (24 * 3600 * 1000ll)
#define RELAY_LIMIT_MS 10000     /* for the worker to answer a user's request */
#define PREPARE_LIMIT_MS 60000   /* the same for a hand-off, before the lease begins to count */
#define OLD_WORKER_LIMIT_MS 2000 /* for an old worker that hung up to be gone */
#define PREPARED_POLL_MS 2       /* how often a prepared hold's decision word is looked at */
#define SHUTDOWN_POLL_MS 100     /* how often nbdkit is asked whether it stops */

#define NS_PER_MS 1000000ll

/* What the user gave; constant after get_ready. */
struct mirror_config {
  char *control;       /* owned, absolute */
  char *direct;        /* owned, absolute, or NULL */
  const char *uri;     /* or NULL */
  const char *export;  /* never NULL */
  uint32_t block_size; /* 0: default */
};

/* A user's request that waits for the worker's mirror-reply. */
struct relay {
  struct relay *next;
  uint64_t number;
  struct control_peer *peer;
  json_t *id;   /* owned, or NULL */
  bool prepare; /* the hand-off's; its answer is checked */
  int64_t limit_ns;
};

/* An answer that waits: to mirror-hold for the drain, to mirror-attach for the old worker's end. */
struct waiting_answer {
  struct control_peer *peer; /* NULL: none waits */
  json_t *id;                /* owned, or NULL */
  json_t *args;              /* owned, or NULL */
  uint64_t generation;
  int64_t limit_ns;
};

struct job {
  char instance[37]; /* of this filter: a random UUID, told to every worker that attaches */
  struct control_peer *worker; /* attached, else NULL */
  struct process process;      /* of the last worker */
  struct region *region;       /* being marked; NULL: no job that could be resumed */
  struct region *ghost;        /* blocks that requests of a dropped job may still hit (R12) */
  const char *ended;           /* state while no worker is attached: "idle", "detached" ... */
  json_t *published;           /* by the worker, checked; never NULL */
  char *reason;                /* the last word of a worker that left, or NULL */
  bool keep_waiters;           /* default for hand-offs, from mirror-attach */
  struct relay *relays;
  uint64_t last_request;
  struct waiting_answer hold;
  struct waiting_answer attach;
  bool was_ready; /* BLOCK_JOB_READY was sent */
};

/* A region for whoever wants to know what the guest writes (measure.h). */
struct measure {
  struct control_peer *peer;
  struct region *region; /* NULL: none is under way */
};

struct handoff {
  bool active;
  struct control_peer *coordinator;
  struct decision *decision; /* owned */
  char token[FENCE_TOKEN_MAX + 1];
  char successor[FENCE_SUCCESSOR_MAX + 1]; /* for the fence record; "" none */
  bool keep_waiters;
  int64_t lease_ms;
  uint64_t generation; /* of its hold, 0: none yet */
  bool prepared;
  bool kept;          /* it stands without the coordinator's connection */
  int64_t retry_ns;   /* the fence record could not be committed: try again then */
  char *record_error; /* why, or NULL */
};

/* What was last told to the listeners, so that every change is told once (events.c). */
struct told {
  const char *state, *status;
  enum gate_mode mode;
  uint64_t generation;
  enum pace_mode pace;
  bool synchronised;
  uint64_t sync_epoch;
};

struct mirror {
  struct mirror_config config;
  struct tracker tracker;
  struct gate gate;
  struct pace pace;

  struct fence fence;
  struct control_server *server;
  struct job job;
  struct handoff handoff;
  struct measure measure;
  struct told told;
  bool have_downtime; /* of the committed hand-off; unknown after a restart */
  double downtime_ms;

  pthread_t thread;
  bool thread_runs;
  _Atomic bool stop;
};

/* mirror-filter.c: debug output, nbdkit -D mirror.NAME=1 */
extern int mirror_debug_control;
extern int mirror_debug_gate;

/* commands.c: what control_server calls */
extern const struct control_server_ops mirror_server_ops;

/* status.c */
const char *mirror_gate_name (const struct gate_view *gate, enum pace_mode pace); /* a constant */
const char *mirror_state (struct mirror *m);                                      /* a constant */
const char *mirror_job_status (struct mirror *m); /* as in QMP; a constant */
json_t *mirror_status (struct mirror *m);
json_t *mirror_block_jobs (struct mirror *m);
json_t *mirror_jobs (struct mirror *m);
json_t *mirror_block_job_event (struct mirror *m); /* data of BLOCK_JOB_... */

/* events.c: tell what has changed since it was last called */
void mirror_tell (struct mirror *m);

#endif
