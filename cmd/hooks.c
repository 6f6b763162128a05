/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Commands of the user's at the turns of a hand-off.  See hooks.h.
 */

#include "config.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cmd/cmd.h"
#include "cmd/hooks.h"
#include "base/spawn.h"

#define OUR_VARIABLES 5

static const struct {
  const char *event, *option;
} names[HOOKS] = { { "ready", "--on-ready-exec" },
                   { "before-hold", "--before-hold-exec" },
                   { "after-commit", "--after-commit-exec" },
                   { "abort", "--on-abort-exec" } };

bool
hook_option (struct hooks *h, int c)
{
  if (c < HOOK_OPT || c >= HOOK_OPT + HOOKS)
    return false;
  h->command[c - HOOK_OPT] = optarg;
  return true;
}

static char *
variable (const char *name, const char *value)
{
  char *text;

  return asprintf (&text, "%s=%s", name, value != NULL ? value : "") == -1 ? NULL : text;
}

static char *
all_controls (const struct hooks *h)
{
  char *text = strdup ("NBDMIRROR_CONTROLS="), *next;
  unsigned i;

  for (i = 0; i < h->nr_controls && text != NULL; i++) {
    if (asprintf (&next, "%s%s%s", text, i > 0 ? "\n" : "", h->controls[i]) == -1)
      next = NULL;
    free (text);
    text = next;
  }
  return text;
}

/* Ours first: the first of a name counts.  OURS are freed by the caller. */
static char **
make_environment (char *ours[OUR_VARIABLES])
{
  size_t n = 0, i;
  char **env;

  while (environ[n] != NULL)
    n++;
  env = calloc (OUR_VARIABLES + n + 1, sizeof *env);
  for (i = 0; i < OUR_VARIABLES && env != NULL; i++) {
    if (ours[i] == NULL) {
      free (env);
      return NULL;
    }
    env[i] = ours[i];
  }
  if (env != NULL)
    memcpy (env + OUR_VARIABLES, environ, n * sizeof *env);
  return env;
}

static int
say (char **error, enum hook which, const char *what, int number)
{
  if (asprintf (error, "%s: %s%.0d", names[which].option, what, number) == -1)
    *error = NULL;
  return -1;
}

int
hook_run (const struct hooks *h, enum hook which, const char *token, const char *reason,
          char **error)
{
  char *const argv[] = { (char *)"sh", (char *)"-c", (char *)h->command[which], NULL };
  char *ours[OUR_VARIABLES], **env;
  int status, i;
  pid_t pid;

  if (h->command[which] == NULL)
    return 0;
  ours[0] = variable ("NBDMIRROR_EVENT", names[which].event);
  ours[1] = variable ("NBDMIRROR_CONTROL", h->nr_controls > 0 ? h->controls[0] : NULL);
  ours[2] = all_controls (h);
  ours[3] = variable ("NBDMIRROR_TOKEN", token);
  ours[4] = variable ("NBDMIRROR_REASON", reason);
  env = make_environment (ours);
  errno = ENOMEM;
  pid = env != NULL ? spawn_child ("/bin/sh", argv, env, STDERR_FILENO) : -1;
  int err = errno;
  free (env);
  for (i = 0; i < OUR_VARIABLES; i++)
    free (ours[i]);
  if (pid == -1)
    return say (error, which, strerror (err), 0);
  if (!spawn_ended (pid, HOOK_TIMEOUT_MS, &status)) {
    kill (-pid, SIGKILL);
    while (!spawn_ended (pid, 1000, &status))
      ;
    return say (error, which, "not done in time, killed after seconds: ", HOOK_TIMEOUT_MS / 1000);
  }
  if (WIFSIGNALED (status))
    return say (error, which, "the command was killed by signal ", WTERMSIG (status));
  if (WEXITSTATUS (status) != 0)
    return say (error, which, "the command failed with exit status ", WEXITSTATUS (status));
  return 0;
}

void
hook_run_warn (const struct hooks *h, enum hook which, const char *token, const char *reason)
{
  char *error = NULL;

  if (hook_run (h, which, token, reason, &error) == -1)
    cmd_warning ("%s", error != NULL ? error : "out of memory");
  free (error);
}

void
hook_not_run (const struct hooks *h, enum hook which, const char *why)
{
  if (h->command[which] != NULL)
    cmd_warning ("%s: not run: %s", names[which].option, why);
}
