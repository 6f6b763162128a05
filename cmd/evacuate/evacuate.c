/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * evacuate-disk: the order of the steps.  See evacuate.h.
 */

#include "config.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/stop-signals.h"
#include "base/text.h"
#include "cmd/control-query.h"
#include "cmd/evacuate/evacuate.h"
#include "cmd/image.h"
#include "cmd/serve/nbdkit-run.h"
#include "cmd/units.h"
#include "mirror/handoff/coordinator.h"

#define HAND_OVER_TRIES 20
#define RETRY_MS 200

/* 0: committed, at *SINCE on the clock of clock_ns(); else an exit status after an error message.
 */
static int
hand_over (struct evacuate *e, char token[ROLLBACK_TOKEN_MAX + 1], uint64_t *since)
{
  const struct coordinator_options opts
      = { .lease_ms = e->lease_ms, .waiters = "keep", .successor = e->disk };
  struct coordinator_result result;
  char *error = NULL;
  int r;

  for (int tries = 0;; tries++) {
    r = evacuate_wait_ready (e);
    if (r != 0)
      return r;
    *since = clock_ns ();
    r = coordinator_run (&e->old.control, 1, &opts, &result, &error);
    strcpy (token, result.token);
    coordinator_result_free (&result);
    if (result.committed)
      break;
    if (tries == HAND_OVER_TRIES) {
      cmd_say ("%s", error);
      text_free (error);
      return evacuate_leave (e, SIGINT) == EXIT_DEST_FAILED ? EXIT_DEST_FAILED : EXIT_ERROR;
    }
    text_free (error);
    error = NULL;
    clock_sleep_ms (RETRY_MS);
  }
  if (r == -1) /* it holds all the same: the filter obeys the word */
    cmd_warning ("%s", error);
  text_free (error);
  return 0;
}

/* The new server cannot be had: nobody has reached it, so the guest may go on with the old one. */
static int
roll_back (struct evacuate *e, const char *token)
{
  takeover_undo (&e->old, &e->new);
  if (query_call (e->old.client, e->old.control, "mirror-rollback",
                  json_pack ("{s:s, s:b}", "rollback-token", token, "destination-stopped", 1), NULL,
                  NULL)
      == 0) {
    cmd_say ("the guest goes on with the old disk");
    evacuate_remove_disk (e);
  } else
    cmd_say ("the guest waits: try again, or let it go on with the old disk: nbdmirror rollback "
             "%s --token %s "
             "--destination-stopped",
             e->old.control, token);
  return EXIT_ERROR;
}

/* A new server that found only the draft of the fence record would refuse the guest's writes.
 * Confirmed once more, the answer is the same. */
static bool
is_recorded (struct evacuate *e)
{
  const char *control = e->old.aside ? e->old.control_aside : e->old.control;
  json_t *status = NULL;
  int r = query_call (e->old.client, control, "query-mirror", NULL, &status, NULL);

  if (r == 0)
    r = query_call (e->old.client, control, "job-finalize",
                    json_pack ("{s:O?}", "generation", json_object_get (status, "generation")),
                    NULL, NULL);
  json_decref (status);
  if (r == -1)
    cmd_say ("the hand-over is committed, and the guest's writes wait: run this again, or let "
             "them go on with the "
             "old disk: nbdmirror rollback");
  return r == 0;
}

static int
take_over (struct evacuate *e, const char *token, uint64_t since)
{
  bool taken;

  if (!is_recorded (e))
    return EXIT_ERROR;
  if (takeover (&e->old, &e->new, &taken) == -1)
    return taken ? EXIT_ERROR : roll_back (e, token);
  double stall = (double)(clock_ns () - since) / NS_PER_MS;
  if (e->json) {
    json_t *object
        = json_pack ("{s:s, s:o, s:s}", "disk", e->disk, "stall-ms",
                     since > 0 ? json_real (stall) : json_null (), "rollback-token", token);
    json_dumpf (object, stdout, JSON_INDENT (2) | JSON_REAL_PRECISION (6));
    printf ("\n");
    json_decref (object);
  } else {
    char text[UNITS_BUF];
    printf ("%s: the guest's disk is now %s; its writes waited %s\n", e->old.socket, e->disk,
            since > 0 ? units_format_time (text, stall) : "since the last run");
  }
  return EXIT_DONE;
}

static void
block_signals (void)
{
  sigset_t set;

  stop_signals (&set);
  sigprocmask (SIG_BLOCK, &set, NULL);
}

/* Was the hand-over never decided, as far as the old server knows?  It was restarted then, with no
 * more than the draft of a record.  Blocks may be left that were not copied, and the new server is
 * started only when the record is there: so the old disk is the guest's. */
static bool
take_back_undecided (struct evacuate *e)
{
  json_t *decision = NULL;
  int r = query_call (e->old.client, e->old.control, "mirror-decision", NULL, &decision, NULL);
  const char *word = status_text (decision, "decision");
  bool undecided = r == 0 && word != NULL && strcmp (word, "in-doubt") == 0;

  if (undecided
      && query_call (e->old.client, e->old.control, "mirror-release",
                     json_pack ("{s:O?}", "generation", json_object_get (decision, "generation")),
                     NULL, NULL)
             == 0)
    cmd_say ("the old server was killed before the hand-over was recorded: the guest goes on with "
             "the old disk; to move it, run this again with --overwrite");
  json_decref (decision);
  return undecided;
}

/* The disk was handed over by a run that did not get to the end. */
static int
finish_earlier (struct evacuate *e, const json_t *status)
{
  const char *successor = status_text (status, "successor"),
             *token = status_text (status, "rollback-token");

  if (successor == NULL || strcmp (successor, e->disk) != 0) {
    cmd_say ("%s: this disk was handed over already%s%s", e->control,
             successor != NULL ? ", to " : "", successor != NULL ? successor : "");
    return EXIT_REFUSED;
  }
  if (!e->old.aside && take_back_undecided (e))
    return EXIT_ERROR;
  cmd_say ("the hand-over was committed already; going on from there");
  block_signals ();
  return take_over (e, token != NULL ? token : "", 0);
}

/* It was not us who handed it over, or we could not.  Somebody else may have, at the same time, or
 * be about to: then the new disk is the guest's, and must not be removed. */
static void
give_up (struct evacuate *e)
{
  json_t *status = NULL;
  int r = query_call (e->old.client, e->old.control, "query-mirror", NULL, &status, NULL);
  const char *gate = status_text (status, "gate");
  bool fenced = gate != NULL && strcmp (gate, "fenced") == 0;

  if (r == 0 && gate != NULL && !fenced && strcmp (gate, "held") != 0)
    evacuate_remove_disk (e);
  else if (fenced)
    cmd_say ("%s: another command has handed this disk over: %s stays.  If nothing uses that, "
             "let the guest go on with"
             " the old disk: nbdmirror rollback",
             e->old.control, e->disk);
  else
    cmd_say ("%s stays", e->disk);
  json_decref (status);
}

/* What a file says that is there is about another disk. */
static bool
state_is_new (const struct evacuate *e)
{
  struct stat st;

  if (e->state == NULL || stat (e->state, &st) == -1 || st.st_size == 0)
    return true;
  cmd_say ("--state %s: not empty: what it says is of another disk; name a new file", e->state);
  return false;
}

static int
evacuate (struct evacuate *e, const json_t *status)
{
  const char *gate = status_text (status, "gate");
  char token[ROLLBACK_TOKEN_MAX + 1] = "";
  double size = status_number (status, "size", -1);

  if (gate != NULL && strcmp (gate, "fenced") == 0)
    return finish_earlier (e, status);
  if (size < 0) {
    cmd_say ("%s: no guest has opened this disk yet: move the file while it is not in use",
             e->control);
    return EXIT_ERROR;
  }
  if (!state_is_new (e))
    return EXIT_REFUSED;
  int r = evacuate_prepare_disk (e, size);
  if (r != 0)
    return r == -1 ? EXIT_DONE : r;
  if (nbdkit_check () == -1 || new_server_try (&e->old, &e->new) == -1
      || evacuate_start_worker (e) == -1) {
    evacuate_remove_disk (e);
    return EXIT_ERROR;
  }
  uint64_t since = 0;
  r = hand_over (e, token, &since);
  if (r != 0) {
    if (r != EXIT_DEST_FAILED)
      give_up (e);
    return r;
  }
  block_signals ();
  evacuate_end_worker (e, 0);
  return take_over (e, token, since);
}

static void
on_signal (int sig)
{
  evacuate_signal = sig;
}

/* The exit status. */
static int
look_and_evacuate (struct evacuate *e, struct cmd_line *line)
{
  static char *no_args[] = { NULL };
  json_t *status = NULL;

  e->disk = evacuate_resolve (e->disk_arg);
  int r = e->disk != NULL ? old_server_find (&e->old, e->control, &status) : EXIT_ERROR;
  if (r == 0) {
    if (e->pidfile == NULL)
      e->pidfile = text_printf ("%s.pid", e->old.socket);
    e->new.disk = e->disk;
    e->new.pidfile = e->pidfile;
    e->new.state = e->state;
    e->new.args = line->nr_rest > 0 ? line->rest : no_args;
    stop_signals_catch (on_signal);
    /* Also where an earlier run has handed over: the new server must not guess the format. */
    r = e->new.format == NULL ? image_refuse_container (e->disk, "--format") : EXIT_DONE;
    if (r == EXIT_DONE)
      r = evacuate (e, status);
  }
  json_decref (status);
  return r;
}

static int
run (struct cmd_line *line)
{
  struct evacuate e = { .old.pidfd = -1 };
  int r = 0;

  e.worker_args = calloc ((size_t)line->argc * 2, sizeof *e.worker_args);
  if (e.worker_args == NULL)
    abort ();
  if (evacuate_parse (line, &e, &r))
    r = look_and_evacuate (&e, line);
  old_server_free (&e.old);
  nbdkit_args_free (&e.args);
  free (e.worker_args);
  free (e.disk);
  text_free (e.pidfile);
  text_free (e.state);
  return r;
}

const struct subcommand subcommand_evacuate = {
  "evacuate-disk",
  "CONTROL NEWDISK [OPTIONS] [-- NBDKIT-ARGS]",
  "Move a running guest's disk to other storage of this host.",
  "CONTROL is the disk's control socket, NEWDISK a file or block device on the other storage.\n"
  "The disk is mirrored; then a new server takes the place of the old one, on the same\n"
  "sockets.  The guest's NBD client must connect again by itself and repeat what was not\n"
  "answered (QEMU: reconnect-delay); then the guest sees a short stall and no error.\n",
  evacuate_options,
  NULL,
  "NBDKIT-ARGS are those that the old server was started with: they are not taken over.\n\n"
  "On any failure before the new server has its place, the guest goes on with the old disk.\n"
  "The old disk is kept, and fenced.  Run it again if it was killed half-way.\n\n"
  "Example:\n"
  "  nbdmirror evacuate-disk /var/lib/nbdmirror/vm1.control /mnt/new/vm1.img\n",
  run
};
