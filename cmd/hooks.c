/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Commands that the user has given for the turns of a hand-off.  See hooks.h.
 */

#include "config.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/hooks.h"

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
all_controls (const struct hooks *h)
{
  char *text = text_copy ("NBDMIRROR_CONTROLS=");

  for (unsigned i = 0; i < h->nr_controls; i++) {
    char *next = text_printf ("%s%s%s", text, i > 0 ? "\n" : "", h->controls[i]);
    text_free (text);
    text = next;
  }
  return text;
}

static void
describe (const struct hooks *h, enum hook which, const char *token, const char *reason,
          char *ours[OUR_VARIABLES])
{
  ours[0] = text_printf ("NBDMIRROR_EVENT=%s", names[which].event);
  ours[1] = text_printf ("NBDMIRROR_CONTROL=%s", h->nr_controls > 0 ? h->controls[0] : "");
  ours[2] = all_controls (h);
  ours[3] = text_printf ("NBDMIRROR_TOKEN=%s", token != NULL ? token : "");
  ours[4] = text_printf ("NBDMIRROR_REASON=%s", reason != NULL ? reason : "");
}

/* OURS come first, because the first of a name counts.  NULL: out of memory. */
static char **
make_environment (char *ours[OUR_VARIABLES])
{
  size_t n = 0;

  while (environ[n] != NULL)
    n++;
  char **env = calloc (OUR_VARIABLES + n + 1, sizeof *env);
  if (env == NULL)
    return NULL;
  memcpy (env, ours, OUR_VARIABLES * sizeof *env);
  memcpy (env + OUR_VARIABLES, environ, n * sizeof *env);
  return env;
}

/* -1 with errno. */
static pid_t
start (const struct hooks *h, enum hook which, const char *token, const char *reason)
{
  char *const words[] = { (char *)"sh", (char *)"-c", (char *)h->command[which], NULL };
  char *ours[OUR_VARIABLES];

  describe (h, which, token, reason, ours);
  char **env = make_environment (ours);
  const struct child_options o
      = { .path = "/bin/sh", .environment = env, .output_to_stderr = true, .own_group = true };
  errno = ENOMEM;
  pid_t pid = env != NULL ? child_start (words, &o) : -1;
  int err = errno;
  free (env);
  for (int i = 0; i < OUR_VARIABLES; i++)
    text_free (ours[i]);
  errno = err;
  return pid;
}

int
hook_run (const struct hooks *h, enum hook which, const char *token, const char *reason,
          char **error)
{
  const char *option = names[which].option;
  int status;

  if (h->command[which] == NULL)
    return 0;
  pid_t pid = start (h, which, token, reason);
  if (pid == -1)
    return text_error (error, "%s: %s", option, strerror (errno));
  if (!child_ended (pid, HOOK_TIMEOUT_MS, &status)) {
    kill (-pid, SIGKILL);
    while (!child_ended (pid, 1000, &status))
      ;
    return text_error (error, "%s: not done within %d s, so it was killed", option,
                       HOOK_TIMEOUT_MS / 1000);
  }
  if (WIFSIGNALED (status))
    return text_error (error, "%s: the command was killed by signal %d", option, WTERMSIG (status));
  if (WEXITSTATUS (status) != 0)
    return text_error (error, "%s: the command failed with exit status %d", option,
                       WEXITSTATUS (status));
  return 0;
}

void
hook_run_warn (const struct hooks *h, enum hook which, const char *token, const char *reason)
{
  char *error = NULL;

  if (hook_run (h, which, token, reason, &error) == -1)
    cmd_warning ("%s", error);
  text_free (error);
}

void
hook_not_run (const struct hooks *h, enum hook which, const char *why)
{
  if (h->command[which] != NULL)
    cmd_warning ("%s: not run: %s", names[which].option, why);
}
