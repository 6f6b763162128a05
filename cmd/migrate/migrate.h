/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror migrate: a running VM with its memory and all its disks (blueprint 12).  What its files
 * share.
 *
 *   migrate.c        options, and the order of the steps
 *   machine.c    one QEMU's monitor
 *   check.c  what is looked at before anything is begun
 *   disks.c  the mirrors: one worker process a disk
 *   steps.c  memory, hold, switch, commit, start
 *   back.c   the way back, and --recover
 *   plan.c   which side has to run, as a function of what is seen; pure
 *   guard.c  the process that looks after the one that does all this
 *   journal.c    log, phase line, report
 *
 * There is one commit: the decision word of the hand-off (mirror/handoff/coordinator.h).  Before it
 * every failure leads back to the source, whose disks are then writable; after it to the
 * destination.  The guest at the destination is started by nobody but us, after the commit; at the
 * source it is QEMU itself that resumes it when the memory migration fails, or we.
 *
 * One thread, but for the hooks' children and the parallel calls at the commit.  Times are
 * milliseconds of CLOCK_MONOTONIC.
 */

#ifndef NBDMIRROR_CMD_MIGRATE_MIGRATE_H
#define NBDMIRROR_CMD_MIGRATE_MIGRATE_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>
#include <jansson.h>

#include "cmd/cmd.h"
#include "cmd/hooks.h"
#include "control/client.h"
#include "mirror/handoff/coordinator.h"

#define QMP_CALL_MS 20000
#define QMP_CONNECT_MS 10000

/* ---- one QEMU ------------------------------------------------------------------------------- */

struct migrate;

/* What a QEMU that waits for a migration does when that has come. */
enum vm_start {
  VM_START_UNKNOWN, /* it is behind a tunnel, or its arguments cannot be seen */
  VM_START_PAUSED,  /* -S */
  VM_START_RUNS
};

struct vm {
  struct migrate *m;
  const char *name;           /* "source" or "destination" */
  const char *path;           /* of the QMP socket */
  struct control_client *qmp; /* NULL: not connected, or lost */
  bool direct; /* the one who listens at PATH is a QEMU, and no tunnel to one; as of the last
                  connection */
  enum vm_start start;                  /* the same */
  char migration[32];                   /* the last status that a MIGRATION event told; "" none */
  double stop_ms, resume_ms;            /* when these events came; 0: they did not */
  json_int_t memory_left, memory_total; /* bytes, as query-migrate told last; total 0: it did not */
  json_t *old_caps, *old_params;        /* to be set again by a roll-back, or NULL */
};

/* 0, or -1 with *ERROR (caller frees). */
int vm_connect (struct vm *vm, char **error);
void vm_close (struct vm *vm);

/* Run a command; steals ARGS.  0, or -1 with *ERROR (caller frees) that names the side; *REFUSED
 * (may be NULL): QEMU has answered, with an error.  A connection that is lost is closed; the next
 * call connects again. */
int vm_call (struct vm *vm, const char *command, json_t *args, json_t **ret, bool *refused,
             char **error);

/* Take in the events that are there.  -1: the connection is lost. */
int vm_events (struct vm *vm);

/* Is nobody listening at the socket any more?  That is a QEMU that has ended, if its socket is
 * local. */
bool vm_is_dead (const struct vm *vm);
/* The connection was lost: is it because it has ended, or will do so in a moment?  Only true where
 * that is certain: of a monitor that is forwarded it never is. */
bool vm_wait_dead (struct vm *vm);

/* query-status and query-migrate, into BUF; "" if it cannot be asked. */
void vm_status (struct vm *vm, char buf[32]);
void vm_migration (struct vm *vm, char buf[32]);

/* Set capabilities, remembering what they were: NAME, value, ..., NULL. */
int vm_set_capabilities (struct vm *vm, char **error, ...);

/* ---- the disks ------------------------------------------------------------------------------ */

struct disk {
  const char *control, *dest;
  struct control_client *client;
  pid_t pid;  /* of the worker that we have started, else 0 */
  bool ours;  /* we have started its job */
  bool ended; /* the worker has, with this status of waitpid */
  int wait_status;
  json_t *status;          /* the last one, or NULL */
  double told_s, heard_ms; /* the worker's "total-s", and when it last moved */
};

/* ---- all of it ------------------------------------------------------------------------------ */

enum phase {
  PHASE_CHECK,  /* looking at both sides */
  PHASE_MIRROR, /* the disks are copied until all are ready */
  PHASE_MEMORY, /* the memory is copied, the disks are kept in step */
  PHASE_HOLD,   /* the guest is stopped; hold, drain, flush every disk */
  PHASE_SWITCH, /* the last of the memory and the devices */
  PHASE_COMMIT, /* every disk is fenced */
  PHASE_START,  /* the guest is started at the destination */
  PHASE_DONE,
  PHASE_BACK, /* roll-back */
  PHASE_FAILED,
  PHASES
};

struct migrate_options {
  const char *memory_uri, *incoming_uri;
  const char *bandwidth, *max_downtime, *policy,
      *connections;          /* for mirror, as given; may be NULL */
  uint64_t memory_bandwidth; /* bytes a second; 0: QEMU's own */
  uint64_t max_downtime_ms;
  uint64_t timeout_ms; /* up to the hold; 0: none */
  uint64_t switch_ms;  /* the lease: from the hold to the commit */
  bool resume, keep_mirrors, quit_source, auto_converge, no_disk_check, recover, json;
  const char *log, *report;
};

/* What a guardian knows of the coordinator that died, beyond what can be seen. */
struct migrate_known {
  enum phase phase;
  bool committed; /* handed over; in PHASE_BACK: and that was being taken back */
  bool cont_sent, dest_direct;
  char token[HANDOFF_TOKEN_MAX + 1];
};

struct guard;

struct migrate {
  struct migrate_options o;
  struct vm source, dest;
  struct disk *disks;
  unsigned nr;
  char **controls; /* of the disks, for handoff.h */
  struct hooks hooks;

  struct coordinator *coordinator;
  struct coordinator_result result;
  bool held, committed, cont_sent;

  enum phase phase;
  int exit_status;
  bool unresolved;     /* nobody knows whether the guest runs */
  char *reason;        /* of the first failure, owned */
  json_t *rolled_back; /* what the roll-back did, texts */

  struct guard *guard; /* NULL: nobody looks after us */
  struct migrate_known known;
  char died[128]; /* how the coordinator did; "" it did not */

  _Atomic int *signal; /* set by a signal handler */
  int signal_fd;

  FILE *log;
  double start_ms, phase_ms, shown_ms;
  double took_ms[PHASES];
  double guest_pause_ms; /* -1: unknown */
  json_int_t memory_bytes;
};

double migrate_now (void);

/* Keep the reason, if it is the first, and the exit status.  Always -1. */
int migrate_fail (struct migrate *m, int exit_status, const char *fmt, ...)
    __attribute__ ((format (printf, 3, 4)));
/* The same with a message to be freed. */
int migrate_fail_with (struct migrate *m, int exit_status, char *message);

/* Wait up to MS for an event of either QEMU or a signal, and take it in. */
void migrate_wait (struct migrate *m, int ms);

/* Has the user, or the time, ended it?  -1 then. */
int migrate_interrupted (struct migrate *m);

/* ---- check.c ---- */
int migrate_check (struct migrate *m);

/* ---- disks.c ---- */
int disks_connect (struct migrate *m);
/* Are the jobs such that a migration may begin?  Learns which are running already. */
int disks_check (struct migrate *m);
int disks_start (struct migrate *m);
/* Look at all; -1 if one cannot come to an end any more.  *READY: all are. */
int disks_look (struct migrate *m, bool *ready);
int disks_wait_ready (struct migrate *m);
bool disks_degraded (struct migrate *m); /* has one lost its destination? */
void disks_refresh (struct migrate *m);  /* their status, for the report */
/* End the jobs that we have begun, and give up what `receive` serves for them. */
void disks_cancel (struct migrate *m);
/* Wait for our workers, which end by themselves after the commit. */
void disks_reap (struct migrate *m);
void disks_free (struct migrate *m);

/* ---- steps.c: 0, or -1 with m->reason ---- */
int step_memory (struct migrate *m);
int step_hold (struct migrate *m);
int step_switch (struct migrate *m);
int step_commit (struct migrate *m);
int step_start (struct migrate *m);
/* Seal every destination, then START; finalize every disk meanwhile.  Returns what START does. */
int migrate_after_commit (struct migrate *m, int (*start) (struct migrate *m));

/* ---- back.c ---- */
/* Back to the source.  True if its guest runs. */
bool migrate_back (struct migrate *m);
/* After a coordinator that was killed: an exit status. */
int migrate_recover (struct migrate *m);

/* ---- plan.c ---- */
enum plan {
  PLAN_NOTHING, /* one side runs, with its disks writable there */
  PLAN_FORWARD, /* finish the commit and start the destination */
  PLAN_BACK,    /* release, cancel, end the destination, start the source */
  PLAN_OPERATOR /* neither is safe */
};
/* WORD: the disks' decision word is there (coordinator_has_word).  SOURCE, DEST: run states as
 * query-status names them, "" if it cannot be asked.  MIGRATION: as query-migrate of the source
 * names it. */
enum plan migrate_plan (enum handoff_found disks, bool word, const char *source,
                        const char *migration, const char *dest);
/* The same for a guardian.  DEST_GONE: the destination QEMU is known to have ended. */
enum plan migrate_plan_known (enum plan plan, enum handoff_found disks,
                              const struct migrate_known *known, const char *source,
                              const char *dest, bool dest_gone);
/* Is a migration of that status one that could still go on? */
bool migration_is_active (const char *status);

/* ---- guard.c ---- */
/* Run WORK in a child and look after it.  Returns, in both processes, the status to exit with.  If
 * the child dies before guard_finished(), WORK runs here as well, with m->o.recover and m->died. */
int guard_run (struct migrate *m, int (*work) (struct migrate *m));
/* Its handlers are there: either process can be interrupted from now on. */
void guard_ready (struct migrate *m);
/* Write down what the guardian would need: before and after whatever it could not see. */
void guard_note (struct migrate *m);
void guard_finished (struct migrate *m, int status);
/* The guardian's --recover: several times if it has to. */
int guard_recover (struct migrate *m);

/* ---- journal.c ---- */
int log_open (struct migrate *m);
/* One line of JSON; steals DATA (may be NULL). */
void log_event (struct migrate *m, const char *event, json_t *data);
void log_text (struct migrate *m, const char *event, const char *text);
void log_phase (struct migrate *m, enum phase phase);
/* The phase line; called as often as one likes. */
void log_progress (struct migrate *m);
/* Before a message: end the phase line. */
void log_break (const struct migrate *m);
/* One thing that the roll-back did. */
void log_rolled_back (struct migrate *m, const char *fmt, ...)
    __attribute__ ((format (printf, 2, 3)));
void log_report (struct migrate *m);
void log_close (struct migrate *m);

#endif
