/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup: the user's commands around the instant.  What freezes a guest must be followed by what
 * thaws it, even if we are killed.  So a process of its own waits to run --after-release-exec: it
 * does so when it is told, at the limit, or when we are gone and the command that freezes, which
 * outlives us, has ended.  It runs it exactly once.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/backup/backup.h"

#define FIRST_FD 3
#define EXIT_LATE 3 /* of the process that thaws: the command was run at the limit */

struct backup_thaw {
  pid_t pid;
  int fd; /* a byte tells it to thaw */
};

int
backup_hook (const struct backup_run *run, const char *event, const char *command,
             const struct backup_thaw *thaw, char **error)
{
  char *const words[] = { (char *)"sh", (char *)"-c", (char *)command, NULL };
  const struct child_options o = { .path = "/bin/sh",
                                   .output_to_stderr = true,
                                   .own_group = true,
                                   .keep = { thaw != NULL ? thaw->fd : -1 } };
  int status;

  setenv ("NBDMIRROR_EVENT", event, 1);
  setenv ("NBDMIRROR_BACKUP", run->name, 1);
  setenv ("NBDMIRROR_REPOSITORY", run->store.repo.path, 1);
  pid_t pid = child_start (words, &o);
  if (pid == -1)
    return text_error (error, "--%s-exec: %s", event, strerror (errno));
  if (!child_ended (pid, (int)run->hook_ms, &status)) {
    kill (-pid, SIGKILL);
    while (!child_ended (pid, 1000, &status))
      ;
    return text_error (error, "--%s-exec: not done within %llu ms, so it was killed", event,
                       (unsigned long long)run->hook_ms);
  }
  if (WIFSIGNALED (status))
    return text_error (error, "--%s-exec: the command was killed by signal %d", event,
                       WTERMSIG (status));
  if (WEXITSTATUS (status) != 0)
    return text_error (error, "--%s-exec: the command failed with exit status %d", event,
                       WEXITSTATUS (status));
  return 0;
}

/* In the child. */
static void
wait_and_thaw (const struct backup_run *run, int fd)
{
  CLEANUP_TEXT char *error = NULL;
  struct pollfd p = { .fd = fd, .events = POLLIN };
  uint64_t begun = clock_ms ();
  bool late = false;

  setpgid (0, 0);
  /* Nobody may take us for the one who has started us: its locks and its connections to the servers
   * end with it. */
  if (dup2 (fd, FIRST_FD) == -1 || close_range (FIRST_FD + 1, ~0U, 0) == -1)
    late = true;
  p.fd = FIRST_FD;
  signal (SIGINT, SIG_IGN);
  signal (SIGTERM, SIG_IGN);
  signal (SIGHUP, SIG_IGN);
  for (;;) {
    uint64_t gone = clock_ms () - begun;
    late |= gone >= run->hook_ms;
    if (late || poll (&p, 1, (int)(run->hook_ms - gone)) > 0)
      break;
  }
  int r = backup_hook (run, "after-release", run->after_release, NULL, &error);
  if (r == -1)
    cmd_warning ("%s", error);
  /* What failed at the limit is run again where a guest may be frozen. */
  bool failed = r == -1 && (!late || run->before_hold == NULL);
  _exit (failed ? EXIT_ERROR : late ? EXIT_LATE : EXIT_DONE);
}

struct backup_thaw *
backup_thaw_start (const struct backup_run *run, char **error)
{
  struct backup_thaw *t = malloc (sizeof *t);
  int ends[2];

  if (t == NULL || pipe2 (ends, O_CLOEXEC) == -1) {
    text_error (error, "%s", strerror (errno));
    free (t);
    return NULL;
  }
  fflush (NULL);
  t->fd = ends[1];
  t->pid = fork ();
  if (t->pid == 0) {
    close (ends[1]);
    wait_and_thaw (run, ends[0]);
  }
  close (ends[0]);
  if (t->pid != -1)
    return t;
  text_error (error, "fork: %s", strerror (errno));
  close (ends[1]);
  free (t);
  return NULL;
}

int
backup_thaw_end (const struct backup_run *run, struct backup_thaw *t, char **error)
{
  int status = 0;

  fd_write_all (t->fd, "", 1); /* it may have thawed already */
  while (!child_ended (t->pid, 1000, &status))
    ;
  fd_close (&t->fd);
  free (t);
  if (WIFEXITED (status) && WEXITSTATUS (status) == EXIT_DONE)
    return 0;
  bool late = WIFEXITED (status) && WEXITSTATUS (status) == EXIT_LATE;
  if (late && run->before_hold == NULL)
    return text_error (error, "--after-release-exec: the limit was reached, so it was run before"
                              " the disks were released");
  if (!late && !WIFSIGNALED (status))
    return text_error (error, "--after-release-exec: the command failed");
  /* Nobody knows how far it came, or whether the guest was frozen only then: we may have been
   * stopped.  A guest that stays frozen is worse than one thawed twice. */
  CLEANUP_TEXT char *why = NULL;
  int r = backup_hook (run, "after-release", run->after_release, NULL, &why);
  if (late)
    return text_error (error,
                       "--after-release-exec: the limit was reached, so it was run before the"
                       " disks were released, and again at the end%s%s",
                       r == -1 ? ": " : "", r == -1 ? why : "");
  return text_error (error,
                     "--after-release-exec: the process that runs it was killed by signal"
                     " %d, so it was run at the end%s%s",
                     WTERMSIG (status), r == -1 ? ": " : "", r == -1 ? why : "");
}
