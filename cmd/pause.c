/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * pause, resume, cancel: one command of the protocol each.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cmd/cmd.h"
#include "cmd/control-query.h"

#define CANCEL_MS 30000 /* how long the worker may take to end the job */
#define CANCEL_POLL_MS 50

/* Read a command line of one CONTROL and connect.  NULL: return line->status. */
static struct control_client *
parse_and_connect (struct cmd_line *line, const char **control)
{

  if (cmd_getopt (line) != -1)
    return NULL;
  if (!cmd_operands_ok (line, 1, 1, "CONTROL"))
    return NULL;
  *control = line->operands[0].argv[0];
  struct control_client *c = query_connect (*control);
  if (c == NULL)
    line->status = EXIT_ERROR;
  return c;
}

static int
run_one (struct cmd_line *line, const char *command)
{
  const char *control;
  struct control_client *c = parse_and_connect (line, &control);

  if (c == NULL)
    return line->status;
  int r = query_call (c, control, command, NULL, NULL, NULL);
  control_client_free (c);
  return r == 0 ? EXIT_DONE : EXIT_ERROR;
}

static int
run_pause (struct cmd_line *line)
{
  return run_one (line, "block-job-pause");
}

static int
run_resume (struct cmd_line *line)
{
  return run_one (line, "block-job-resume");
}

/* ---- cancel --------------------------------------------------------------------------------- */

static bool
has_ended (const json_t *status)
{
  static const char *const ended[] = { "idle", "cancelled", "failed", "completed" };
  const char *state = status_text (status, "state");

  for (size_t i = 0; state != NULL && i < sizeof ended / sizeof ended[0]; i++)
    if (strcmp (state, ended[i]) == 0)
      return true;
  return false;
}

/* The command is answered when the worker has received it.  Wait until the job has ended. */
static int
wait_until_ended (struct control_client *c, const char *control)
{
  const char *state;
  json_t *status = NULL;

  for (int waited = 0; waited <= CANCEL_MS; waited += CANCEL_POLL_MS) {
    json_decref (status);
    if (query_call (c, control, "query-mirror", NULL, &status, NULL) == -1)
      return EXIT_ERROR;
    state = status_text (status, "state");
    if (has_ended (status)) {
      int r = EXIT_DONE;

      if (state != NULL && strcmp (state, "completed") == 0) {
        cmd_say ("%s: the job was completed before it could be cancelled", control);
        r = EXIT_ERROR;
      }
      json_decref (status);
      return r;
    }
    /* The worker has died meanwhile.  Then the filter drops the job by itself. */
    if (state != NULL && strcmp (state, "detached") == 0
        && query_call (c, control, "block-job-cancel", NULL, NULL, NULL) == -1) {
      json_decref (status);
      return EXIT_ERROR;
    }
    clock_sleep_ms (CANCEL_POLL_MS);
  }
  state = status_text (status, "state");
  cmd_say ("%s: the job was told to end, but is still %s after %d s", control,
           state != NULL ? state : "there", CANCEL_MS / 1000);
  json_decref (status);
  return EXIT_ERROR;
}

static int
run_cancel (struct cmd_line *line)
{
  const char *control;
  struct control_client *c = parse_and_connect (line, &control);

  if (c == NULL)
    return line->status;
  int r = query_call (c, control, "block-job-cancel", NULL, NULL, NULL) == 0
              ? wait_until_ended (c, control)
              : EXIT_ERROR;
  control_client_free (c);
  return r;
}

const struct subcommand subcommand_pause
    = { "pause",
        "CONTROL",
        "Stop copying for a while; changes go on being tracked.",
        "CONTROL is the disk's control socket (serve --control).  Nothing is sent until\n"
        "'nbdmirror resume'; what is left grows meanwhile with what the guest writes.\n",
        NULL,
        NULL,
        "Example:\n"
        "  nbdmirror pause /var/lib/nbdmirror/vm1.control\n",
        run_pause };

const struct subcommand subcommand_resume
    = { "resume",
        "CONTROL",
        "Go on copying after 'pause'.",
        "CONTROL is the disk's control socket.  To go on after the worker has ended (a lost\n"
        "network, a kill), start a new one: nbdmirror mirror CONTROL DEST --resume\n",
        NULL,
        NULL,
        "Example:\n"
        "  nbdmirror resume /var/lib/nbdmirror/vm1.control\n",
        run_resume };

const struct subcommand subcommand_cancel = {
  "cancel",
  "CONTROL",
  "End the job; the guest goes on at the source.",
  "CONTROL is the disk's control socket.  Returns when the job has ended.  Tracking stops, so\n"
  "the next job sends everything, or what was changed since a checkpoint; what is at the\n"
  "destination is incomplete.  Works without a worker too: then it drops what a killed worker\n"
  "has left over.\n",
  NULL,
  NULL,
  "Example:\n"
  "  nbdmirror cancel /var/lib/nbdmirror/vm1.control\n",
  run_cancel
};
