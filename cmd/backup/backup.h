/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror backup: what its files share.
 *
 *   options.c   the options and the operands
 *   backup.c    the order of the steps
 *   disk.c      what every step uses: a disk that fails, and the signal
 *   facts.c     asks each disk's server, and plans: full or incremental
 *   forecast.c  how many bytes, and for how long (--dry-run)
 *   serve.c     a disk that nobody serves: a server of ours, for the time of the backup
 *   workers.c   a new qcow2 file and a worker for each disk, until all are ready
 *   instant.c   all disks at one instant, with the user's commands around it
 *   thaw.c      the process that lets the guest thaw, whatever becomes of us
 *   seal.c      the manifest, and the checkpoints that are not needed any more
 *   digests.c   reads what was written, for the digests
 *   compress.c  compresses a file that is complete (--compress)
 *   store.c     what is done in the repository, where that is (store.h)
 *   tell.c      what people and programs are told at the end
 *   metrics.c   what Prometheus is told
 *   watch.c     a repository that does not answer
 *
 * The order keeps an interrupted run harmless: the files and the checkpoints are new ones, and the
 * old checkpoints are removed only when the manifest that makes them superfluous is on the disk.
 * One thread does everything, and another one watches it (watch.c).
 */

#ifndef NBDMIRROR_CMD_BACKUP_BACKUP_H
#define NBDMIRROR_CMD_BACKUP_BACKUP_H

#include <jansson.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "backup/names.h"
#include "backup/plan.h"
#include "base/private-dir.h"
#include "cmd/backup/store.h"
#include "cmd/cmd.h"
#include "control/client.h"

struct backup_disk {
  const char *operand; /* as the user has named it */
  char *control;       /* the control socket, absolute */
  char *place;         /* what the manifest calls it: the control socket, or the image */
  const char *state;   /* --state of an image that nobody serves; NULL: none */
  pid_t server;        /* that we have started for it; 0: none */
  char *id;
  bool locked; /* we hold its lock */
  struct control_client *client;
  uint64_t size;
  bool has_state;  /* its server has a state file, so checkpoints can be added */
  bool restart;    /* a job of an interrupted backup is left over */
  int64_t changed; /* bytes that an incremental backup would read, and with --dry-run a full one;
                      -1: not known */
  bool full;
  char *reason;
  char *parent_backup, *parent_file; /* of an incremental one */
  char *since;                       /* its checkpoint */
  char *file;                        /* relative to the repository */
  pid_t worker;                      /* 0: it has ended */
  uint64_t stopped_ms;               /* since when it is stopped; 0: it is not */
  bool ready;
  uint64_t copied;
  double pause_ms; /* -1: not known */
  char checkpoint_uuid[UUID_TEXT_BYTES];
  char *error; /* why it has no backup; NULL: all is well */
  bool told;   /* the user knows it */
  int status;  /* the exit status for that */
};

struct backup_run {
  struct store store;
  char *place; /* the repository, absolute */
  struct backup_disk *disks;
  unsigned nr_disks;
  enum backup_mode mode;
  int mode_given; /* the option that has set it; 0: none */
  char name[BACKUP_NAME_MAX];
  char *checkpoint;              /* the name of the one that is added */
  char folder[PRIVATE_DIR_SIZE]; /* a temporary one, for sockets and logs; "": none */
  int folder_fd;                 /* its lock */
  const char *policy, *bandwidth, *budget, *max_downtime, *before_hold, *after_release;
  uint64_t max_duration_ms, hook_ms; /* 0: no limit; of the commands, and of the time between */
  const char **includes;
  unsigned nr_includes;
  bool compress, require_frozen, dry_run, json, no_progress;
  const char *report, *metrics;
  double forecast_s; /* --dry-run: how long copying takes; -1: not known */
  uint64_t begun_ms;
  int64_t begun_us;
  bool begun;  /* there is a NAME.begun */
  bool frozen; /* the guest was frozen at the instant */
  struct manifest manifest;
};

/* backup.c: back up the disks of RUN into the repository at PATH.  Says what is wrong; an exit
 * status. */
int backup_run_steps (struct backup_run *run, const char *path);
/* Free what RUN points to, end its servers, and remove its folder. */
void backup_free_run (struct backup_run *run);

/* folder.c.  To make it also removes what killed backups have left.  -1 after an error message. */
int backup_make_folder (struct backup_run *run);
void backup_remove_folder (const struct backup_run *run);

/* disk.c: the signal that asks us to end, or 0, after backup_catch_signals(). */
extern volatile sig_atomic_t backup_signal;
void backup_catch_signals (void);

/* The absolute path of PATH, which may be missing.  For text_free(). */
char *backup_absolute (const char *path);

/* D fails: note why, in words, unless something is noted already. */
void backup_fail (struct backup_disk *d, int status, const char *fmt, ...)
    __attribute__ ((format (printf, 3, 4)));

/* facts.c: connect to the disk's server, and learn its size and what can be incremental.  Errors go
 * to D. */
void backup_ask (struct backup_run *run, struct backup_disk *d);
/* End the jobs that are left over at the servers of disks that have failed.  True: there may be one
 * still, since a server cannot be asked, for instance. */
bool backup_job_is_left (const struct backup_run *run);
/* Full or incremental?  Fills in D's plan. */
void backup_decide (struct backup_run *run, struct backup_disk *d, const struct backup_list *list);
/* All checkpoints of D's disk: a new reference, or NULL with D->has_state false, or with an error
 * in D. */
json_t *backup_checkpoints (struct backup_disk *d);

/* forecast.c: look how many bytes a full backup of each disk is, and how long all of it would take,
 * by --bandwidth and by the fastest backup in LIST. */
void backup_forecast (struct backup_run *run, const struct backup_list *list);

/* serve.c */
void backup_serve (struct backup_run *run, struct backup_disk *d, unsigned nr);
void backup_stop_server (struct backup_disk *d);

/* workers.c: make the file and start the worker; wait until every worker is ready or has ended.  An
 * exit status is returned where all of it has to end (a signal, or --max-duration). */
void backup_start_worker (struct backup_run *run, struct backup_disk *d, unsigned nr);
int backup_wait_ready (struct backup_run *run);
/* End it with SIG (0: it ends by itself), and take over its report. */
void backup_end_worker (struct backup_run *run, struct backup_disk *d, unsigned nr, int sig);

/* instant.c: all disks that are ready, at one instant.  0, or an exit status after a message. */
int backup_instant (struct backup_run *run);

/* thaw.c */
struct backup_thaw;
/* From now on COMMAND is run once: when backup_thaw_end() is called, after LIMIT_MS, or when this
 * process and the commands that know of it (backup_hook) have ended.  NULL with *ERROR
 * (base/text.h). */
struct backup_thaw *backup_thaw_start (const struct backup_run *run, char **error);
/* Run it now, and wait for its end.  0: it was run now, and succeeded.  -1 with *ERROR: it failed,
 * or its process was killed, or the limit was reached before what froze the guest may have ended:
 * then it is run here (again). */
int backup_thaw_end (const struct backup_run *run, struct backup_thaw *t, char **error);
/* The environment and the words of a command of the user's; runs it within the limit.  THAW, unless
 * NULL, does not take us for gone before the command has ended as well.  0, or -1 with *ERROR. */
int backup_hook (const struct backup_run *run, const char *event, const char *command,
                 const struct backup_thaw *thaw, char **error);

/* seal.c: an exit status, after a message. */
int backup_seal (struct backup_run *run);
/* What the NR-th included file, FROM, is called in the repository.  For text_free(). */
char *backup_include_name (unsigned nr, const char *from);
/* There is no manifest: remove the checkpoints that were added, since a backup in the same second
 * gets the same name.  What was recorded stays recorded since the checkpoint before. */
void backup_drop_checkpoints (const struct backup_run *run);

/* watch.c: watch the thread that calls this, while it uses the repository: it has to come back to
 * backup_watch (ON) or backup_watch_alive() now and then.  LIMITED: --max-duration counts.  RUN has
 * to live until backup_watch_end(). */
void backup_watch_start (const struct backup_run *run);
void backup_watch_end (void);
void backup_watch (bool on, bool limited);
void backup_watch_alive (void);

/* tell.c */
/* metrics.c: write the file for Prometheus; SUCCESS: there is a manifest.  0, or -1 with errno. */
int backup_write_metrics (const struct backup_run *run, bool success);

void backup_tell_plan (const struct backup_run *run);
/* Why disks have failed, once.  A repository that does not answer may delay the end for long. */
void backup_tell_errors (struct backup_run *run);
int backup_tell_end (struct backup_run *run, int status);

#endif
