/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Child processes that run other programs.
 *
 * A child starts with all signals as they are by default, but for SIGHUP, which stays ignored where
 * somebody wants that (nohup).  All functions may be called from any thread.
 */

#ifndef NBDMIRROR_BASE_CHILD_H
#define NBDMIRROR_BASE_CHILD_H

#include <stdbool.h>
#include <sys/types.h>

/* Run WORDS (NULL at the end; the program is looked up in PATH) and wait for it.  Returns its exit
 * status, or 128 and the signal that ended it, or -1 if it could not be run.  If OUTPUT is not NULL
 * it is set to what the program printed (at most 1 MiB, the caller frees it), or to NULL; else that
 * goes to our standard error. */
int child_run (const char *const *words, char **output);

#define CHILD_KEEP 7

/* All zero: standard input and output are /dev/null, standard error is ours. */
struct child_options {
  const char *path;         /* the program; NULL: words[0], looked up in PATH */
  char *const *environment; /* as for execve(); NULL: ours */
  bool our_stdio;           /* standard input and output are ours */
  bool output_to_stderr;    /* standard output goes to our standard error */
  int keep[CHILD_KEEP];     /* descriptors to pass on by their numbers; 0 or -1: none */
  int listen_fd;            /* a listening socket, passed on as systemd's socket activation does
                               (LISTEN_FDS=1, descriptor 3); 0 or -1: none.  Not with KEEP. */
  int stdio_fd;             /* standard input and output are this; 0 or -1: none */
  bool own_group;           /* it leads a process group, so a Ctrl-C reaches us alone, and kill()
                               with its negative number reaches all that it started */
  bool end_with_us;         /* the kernel kills it when the thread that started it ends */
  /* Not NULL: called with the child's process id before the program runs.  It never runs where this
   * process ends before the call does, or where the call returns an errno and not 0. */
  int (*before) (void *opaque, pid_t pid);
  void *opaque;
};

/* Start a program; WORDS end with NULL.  Returns its process id, or -1 with errno, also where it
 * cannot be executed. */
pid_t child_start (char *const *words, const struct child_options *o);

/* Has it ended?  Waits for at most TIMEOUT_MS (0: it only looks).  *STATUS is as from waitpid(), or
 * 0 where somebody else has waited for it.  Call it until it says so: until then it is a zombie. */
bool child_ended (pid_t pid, int timeout_ms, int *status);

#endif
