/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * evacuate-disk: move the disk of a running guest to other storage of this host.
 *
 *   1. Look at everything that could go wrong later, and try to start a server of the new disk.
 *   2. Mirror, in a child process, until the job is ready.
 *   3. Hand over, with the waiting writes kept.  The fence record names the new disk as the
 *      successor.
 *   4. Take over: a new server takes the socket's name, and the old one is ended with SIGKILL.  The
 *      guest's NBD client connects again and repeats what was not answered.
 *
 * Until the new server has the socket's name, every failure leaves the guest with the old server.
 * If the command was killed it goes on where it was when it is run again.
 *
 *   evacuate.c  the order of the steps
 *   options.c   the command line
 *   new-disk.c  the new disk
 *   worker.c    the mirroring process
 *   server.c    the two servers, and the takeover
 *
 * One thread, but for those of the coordinator.  Functions say what went wrong themselves.
 */

#ifndef NBDMIRROR_CMD_EVACUATE_EVACUATE_H
#define NBDMIRROR_CMD_EVACUATE_EVACUATE_H

#include <signal.h>
#include <stdbool.h>
#include <sys/types.h>

#include "cmd/cmd.h"
#include "cmd/evacuate/server.h"
#include "cmd/serve/nbdkit-args.h"
#include "mirror/job/sync.h"

struct evacuate {
  const char *control, *disk_arg;
  char *disk, *pidfile; /* absolute; owned */
  char *state;          /* the same; NULL: the new server keeps no state file */
  char **worker_args;   /* options for `mirror`, nr_worker_args of them; the array is owned */
  unsigned nr_worker_args;
  struct sync_options sync; /* what WORKER_ARGS say of it; borrowed from the command line */
  unsigned lease_ms;
  bool overwrite, resume, json;
  bool created; /* the new disk is ours to remove */
  struct nbdkit_args args;
  struct old_server old;
  struct new_server new;
  pid_t worker;
};

/* The signal that ends us; 0: none has come. */
extern volatile sig_atomic_t evacuate_signal;

/* ---- options.c ---- */
extern const struct cmd_option evacuate_options[];
/* False: return *STATUS. */
bool evacuate_parse (struct cmd_line *line, struct evacuate *e, int *status);
/* PATH made absolute, with its links resolved if it is there: the fence record and the new server
 * must name it alike.  The caller frees it.  NULL after an error message. */
char *evacuate_resolve (const char *path);

/* ---- new-disk.c ---- */
/* Check the new disk, and create it if it is not there, for SIZE bytes.  0, an exit status, or -1:
 * it is the guest's disk already. */
int evacuate_prepare_disk (struct evacuate *e, double size);
/* A job that is over leaves nothing of ours behind, unless it can be resumed. */
void evacuate_remove_disk (struct evacuate *e);

/* ---- worker.c ---- */
/* 0 or -1. */
int evacuate_start_worker (struct evacuate *e);
/* Until the disk can be handed over.  0, or the exit status of the worker, which has said why it
 * ended. */
int evacuate_wait_ready (struct evacuate *e);
/* Send SIG (0: none) and wait for its end; after 5 s it is killed.  Its exit status, or -1. */
int evacuate_end_worker (struct evacuate *e, int sig);
/* The same before the hand-over: what to exit with.  EXIT_DEST_FAILED: the job can be resumed, so
 * the new disk has to stay. */
int evacuate_leave (struct evacuate *e, int sig);

#endif
