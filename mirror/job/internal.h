/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the files of a live mirror job share (job.h):
 *
 *   job.c            the main loop: samples, decisions, signals
 *   finish.c         its end
 *   check.c          the checks before it begins, opening source and destination
 *   proofs.c         is the destination such that blocks may be left out?
 *   since.c          incremental, since which checkpoint?
 *   attach.c         attaching to the filter: region, counters, the past
 *   dry-run.c        the same checks, some seconds of measuring, a forecast
 *   requests.c       what users ask for through the filter, and the filter's events
 *   apply-policy.c   what the convergence policy decides, applied to the gate and told
 *   gate-control.c   throttled and synchronous writes of the guest
 *   final.c          hold, last blocks, prepared, committed, sealed
 *   checkpoint.c     what the destination is told of checkpoints
 *   status.c         the status object
 *
 * Everything here belongs to the job's thread.
 */

#ifndef NBDMIRROR_MIRROR_JOB_INTERNAL_H
#define NBDMIRROR_MIRROR_JOB_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "control/client.h"
#include "digest/whole.h"
#include "mirror/engine/bell.h"
#include "mirror/engine/engine.h"
#include "mirror/engine/supervisor.h"
#include "mirror/handoff/coordinator.h"
#include "mirror/job/converge.h"
#include "mirror/job/estimate.h"
#include "mirror/job/gate-control.h"
#include "mirror/job/job.h"
#include "mirror/job/incremental.h"
#include "mirror/job/look-again.h"
#include "mirror/job/live-verify.h"
#include "mirror/job/source-errors.h"
#include "mirror/job/stall.h"
#include "mirror/job/worker-lock.h"

#define JOB_CONTROL_TIMEOUT_MS 10000

/* The final phase. */
enum final_state {
  FINAL_NONE,
  FINAL_SETTLE,  /* at the end of a pass the least is left: wait for one that leaves very little */
  FINAL_FLUSH,   /* the flush before the hold, so that the one in it is short */
  FINAL_AWAIT,   /* on a long line: the moment at which nothing has to be copied twice */
  FINAL_ARMED,   /* the coordinator knows that this disk can be held; others cannot yet */
  FINAL_COPY,    /* gate held and drained: the last blocks, and their flush */
  FINAL_PREPARED /* the filter took the final look; the coordinator decides */
};

/* verifying.c */
struct job_verify {
  struct live_verify *live;     /* NULL: none runs */
  struct live_verify_view last; /* of the running one, or of the last one */
  uint64_t told;                /* its mismatches that the user knows of */
  unsigned attempts;            /* verifications begun */
  bool good;                    /* the last one found no difference */
  uint64_t mismatches, offset;  /* of all: blocks, and the first one's offset in bytes */
  char *error;                  /* why the last one failed, or NULL */
};

struct job {
  const struct job_options *o; /* `options` */
  struct job_options options;  /* the user's; what is sent may be decided here (since.c) */
  struct job_verify verify;
  struct session_options dest;          /* a copy of ours: its `opened` is used up */
  struct endpoint_session dest_session; /* see endpoint_options.session */
  struct control_client *control;
  struct worker_lock lock;
  /* An old worker's requests may come late, anywhere: all blocks began in quarantine. */
  bool unknown_past;
  struct endpoint *source;
  struct endpoint *base_image;         /* NULL unless o->sync names one */
  char base_digest[DIGEST_WHOLE_TEXT]; /* of it; "" */
  struct incremental incremental;
  struct found_samples found;        /* at the destination, before anything was sent */
  struct look_again look_again;      /* by what it is recognised later */
  char *since;                       /* o->sync.since, if we have chosen it */
  char return_uuid[UUID_TEXT_BYTES]; /* of the checkpoint that begins there at the commit; "" */
  bool dest_proved; /* what the region does not have as left is equal, and nobody had to trust */
  struct region *region;
  struct engine engine;
  struct supervisor supervisor;
  struct bell bell;
  bool engine_ready, supervising;
  struct source_errors source_errors;
  struct stall stall;
  struct estimate estimate;
  struct converge converge;
  double waiting; /* guest writes in the synchronous gate, on average; -1: not known */

  /* Settings that users change while it runs. */
  enum job_policy policy;
  uint64_t max_downtime_ms;
  uint64_t rate_limit;
  bool paused;
  struct job_gate_state gate;

  bool dry;        /* a dry run: nothing is created, locked or written */
  bool persistent; /* the filter has a state file; or it does not say */
  bool fresh;      /* a full job that begins here, not a resumed one */
  uint64_t start_ns;
  struct { /* counters of the job's earlier workers */
    uint64_t reconnects, passes;
    double degraded_s, total_s;
  } base;

  bool ready; /* the estimate says so, and nothing is in the way (job_set_ready()) */
  bool started_told;
  uint64_t last_sample_ns, last_publish_ns;
  bool flush_awaited; /* the last sample saw no flush of what was written */
  bool rested;        /* nothing has happened since the last sample */
  char state[16];     /* as last published */
  bool told_not_converging;
  uint64_t
      too_long_ns; /* since when a write and a flush alone exceed max-downtime; 0: they do not */
  bool told_too_long;
  bool warned_larger;
  bool complained; /* about a command that the filter refused */

  enum final_state final;
  int64_t final_request; /* the relayed request to answer on failure; -1: none */
  bool arm;              /* the coordinator holds the gate, when all its disks are armed */
  uint64_t lease_ms, generation;
  bool final_unknown;     /* it cannot be given up: the filter did not answer (FINAL_UNKNOWN) */
  int deferred_signal;    /* to be obeyed when it is given up after all */
  uint64_t await_end_ns;  /* when FINAL_AWAIT is over at the latest */
  uint64_t final_wraps;   /* engine.wraps when FINAL_SETTLE last looked, */
  uint64_t settle_end_ns; /* when that is over at the latest, */
  uint64_t settle_left;   /* the least that was left at the end of a pass, */
  unsigned settle_vain;   /* and how many passes have ended since with no less */
  bool settle_sync;       /* meanwhile guest writes wait for the destination */
  uint64_t held_ns, held_acked; /* when the gate was held, and counters.acked_bytes then */
  uint64_t final_flushes;       /* counters.flushes when the flush of FINAL_FLUSH was asked for */
  bool committed;
  bool released;   /* the job has ended with an instant, and the guest goes on here */
  bool is_receive; /* the destination is to be sealed after the commit (seal.h) */
  bool sealed;
  double downtime_ms;
  char *token;

  /* Our own hand-off (--on-ready complete, or block-job-complete). */
  bool handing_off;
  pthread_t handoff_thread;
  _Atomic bool handoff_done;
  int handoff_status;
  struct coordinator_result handoff_result;
  char *handoff_error;
  uint64_t next_handoff_ns;
  bool complete_wanted;

  bool over;
  bool lost; /* the filter has gone while something was proved */
  enum job_result result;
};

void job_say (struct job *j, enum job_message kind, const char *fmt, ...)
    __attribute__ ((format (printf, 3, 4)));
/* End the main loop with RESULT; the first call counts. */
void job_end (struct job *j, enum job_result result);

/* The job is ready, or no longer.  Passes are counted while it is not. */
void job_set_ready (struct job *j, bool ready);

/* Is a job that is left over to be gone on with? */
bool job_resumes (const struct job *j);

/* finish.c: end the session and tell the filter.  Frees J, unless a connection that is still being
 * made uses it.  *REPORT becomes a new reference, or stays as it is where nothing was copied.
 * Returns how the job has ended. */
enum job_result job_finish (struct job *j, json_t **report);
/* Close what was opened, and free J.  Its session, engine and control connection have ended. */
void job_free (struct job *j);

/* check.c: the filter's status, a new reference; or NULL with the message said. */
json_t *job_query (struct job *j);

/* proofs.c: refuse the destination because of WHY, which this frees.  Returns -1. */
int job_refuse_destination (struct job *j, char *why);
/* The destination is open.  STATUS is the filter's.  0, or -1 with j->result set and the message
 * said. */
int job_prove (struct job *j, json_t *status);

/* since.c: with --sync incremental and auto, where no checkpoint is named: since which one?  STATUS
 * is the filter's.  0, or -1 with j->result set and the message said. */
int job_choose_since (struct job *j, const json_t *status);

/* attach.c: check, attach, prepare the engine.  0, or -1 with j->result set and the message said.
 */
int job_attach (struct job *j);
/* Map the region that the filter has passed as FD (-1: it passed none), which this closes.  Returns
 * as job_attach(), but leaves j->result alone. */
int job_take_region (struct job *j, int fd);

/* requests.c: handle what the filter sent.  -1: the connection is lost (the job is over then). */
int job_handle_events (struct job *j);
/* Answer relayed request REQUEST; CLASS_ NULL: success. */
void job_reply (struct job *j, int64_t request, const char *class_, const char *fmt, ...)
    __attribute__ ((format (printf, 4, 5)));

/* apply-policy.c: decide and act after each sample. */
void job_apply_policy (struct job *j, uint64_t now_ns);
/* Add to the status object O: eta-s, converging, policy-action. */
void job_add_convergence (struct job *j, json_t *o);

/* final.c */
/* Begin a hand-off, as REQUEST (to be answered) asks.  GUEST_STOPPED: nobody writes any more, so
 * hold at once.  ARM: hold when the coordinator says so. */
void job_final_begin (struct job *j, int64_t request, uint64_t lease_ms, bool guest_stopped,
                      bool arm);
void job_final_step (struct job *j);
/* Give up a hold that is ours: the guest goes on. */
enum final_end {
  FINAL_GIVEN_UP,
  FINAL_TOO_LATE, /* the hand-off is committed */
  FINAL_UNKNOWN   /* the filter does not answer, and may have committed it: only its word, or the
                     end of its connection, ends the hand-off now */
};
enum final_end job_final_abort (struct job *j, const char *class_, const char *why);
/* The coordinator has had the gate held, and something is left to copy. */
void job_final_held (struct job *j, uint64_t generation);
/* The filter has released the gate by itself. */
void job_final_released (struct job *j, const char *reason);
void job_handoff_start (struct job *j);
void job_handoff_poll (struct job *j);
/* After the commit, when our own session has ended: no late request of ours, or of a worker before
 * us, may be applied under the guest.  JOB_COMPLETED, or JOB_NOT_SEALED with the message said. */
enum job_result job_seal (struct job *j);

/* status.c */
/* The complete status object; a new reference. */
json_t *job_status (struct job *j);
/* The same with the pass log. */
json_t *job_report (struct job *j);
const char *job_state (struct job *j);
/* Tell the filter. */
void job_publish (struct job *j);
/* The filter, and REPORT (may be NULL): has the destination been sealed? */
void job_publish_sealed (struct job *j, json_t *report);

/* checkpoint.c: before anything is written.  OLD: the left-over job's status if it is resumed, else
 * NULL.  0, or -1 with j->result set and the message said. */
int job_checkpoint_begin (struct job *j, const json_t *old);
/* A session begins: tell the destination which checkpoint begins there if the job is handed over in
 * it.  Blocks for as long as a connection takes. */
void job_checkpoint_session (struct job *j);
/* At the end: flush what was sent, so that it is not left.  Blocks for two seconds at most. */
void job_checkpoint_flush (struct job *j);
/* After that, when nobody copies any more.  REPORT may be NULL. */
void job_checkpoint_end (struct job *j, json_t *report);

/* ---- verifying.c ---- */

/* Begin, unless one runs.  -1 with *ERROR (text_free()). */
int job_verify_start (struct job *j, char **error);
/* After this call no block is made dirty by a verification; a running one fails with WHY. */
void job_verify_stop (struct job *j, const char *why);
/* A verification runs, or one that the user wants has not been found good yet. */
bool job_verify_active (const struct job *j);
/* Often, from the loop. */
void job_verify_step (struct job *j);
/* At the end, before the engine is destroyed.  False if a thread still uses that and the source. */
bool job_verify_end (struct job *j);
void job_add_verification (struct job *j, json_t *o);

#endif
