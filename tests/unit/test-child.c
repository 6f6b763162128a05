/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A child process that must not run before something is prepared for it: it runs afterwards, and
 * never if that fails, or if the process that prepares it is killed meanwhile.
 */

#include "config.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/unit.h"

#include "base/child.h"
#include "base/text.h"

/* Shared with the processes that a test makes. */
struct seen {
  pid_t pid;
  bool had_run; /* when it was prepared */
};

static char dir[32];
static char *mark; /* the program makes this file */
static struct seen *seen;

static void
setup (void)
{
  strcpy (dir, "/tmp/nbdmirror-child-XXXXXX");
  cr_assert_not_null (mkdtemp (dir));
  mark = text_printf ("%s/mark", dir);
  seen = mmap (NULL, sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  cr_assert_neq (seen, MAP_FAILED);
}

static void
teardown (void)
{
  unlink (mark);
  rmdir (dir);
  text_free (mark);
}

static bool
has_run (void)
{
  return access (mark, F_OK) == 0;
}

static void
note (pid_t pid)
{
  usleep (50000); /* enough for a program that does not wait */
  seen->pid = pid;
  seen->had_run = has_run ();
}

static int
prepare (void *opaque, pid_t pid)
{
  note (pid);
  return *(int *)opaque;
}

static int
die (void *opaque, pid_t pid)
{
  (void)opaque;
  note (pid);
  kill (getpid (), SIGKILL);
  abort ();
}

static pid_t
start (int (*before) (void *opaque, pid_t pid), void *opaque)
{
  char *const words[] = { (char *)"touch", mark, NULL };
  const struct child_options options = { .before = before, .opaque = opaque };

  return child_start (words, &options);
}

Test (child, runs_when_it_is_prepared)
{
  int result = 0, status;

  setup ();
  pid_t pid = start (prepare, &result);
  cr_assert (pid > 0 && seen->pid == pid && !seen->had_run);
  cr_assert (child_ended (pid, 10000, &status) && WIFEXITED (status) && WEXITSTATUS (status) == 0);
  cr_assert (has_run ());
  teardown ();
}

Test (child, does_not_run_if_that_fails)
{
  int result = EMFILE;

  setup ();
  cr_assert_eq (start (prepare, &result), -1);
  cr_assert_eq (errno, EMFILE);
  cr_assert_eq (waitpid (seen->pid, NULL, WNOHANG), -1, "it is left behind");
  cr_assert (!has_run ());
  teardown ();
}

Test (child, does_not_run_if_we_die)
{
  int status;

  setup ();
  cr_assert_eq (prctl (PR_SET_CHILD_SUBREAPER, 1), 0);
  pid_t pid = fork ();
  if (pid == 0) {
    start (die, NULL);
    _exit (0);
  }
  cr_assert (waitpid (pid, &status, 0) == pid && WIFSIGNALED (status));
  cr_assert_eq (waitpid (seen->pid, &status, 0), seen->pid, "it is not our child");
  cr_assert (WIFEXITED (status) && WEXITSTATUS (status) == 127);
  cr_assert (!has_run ());
  teardown ();
}

Test (child, tells_why_it_cannot_run)
{
  char *const words[] = { (char *)"/nonexistent", NULL };
  int result = 0;

  seen = mmap (NULL, sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  mark = text_copy ("/nonexistent");
  const struct child_options options = { .before = prepare, .opaque = &result };
  cr_assert_eq (child_start (words, &options), -1);
  cr_assert_eq (errno, ENOENT);
  text_free (mark);
}
