/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * evacuate-disk: move the disk of a running guest to other storage of this host.
 *
 *   1. look at everything that could go wrong later, and try to start a server of the new disk
 *   2. mirror, in a child process (nbdmirror mirror), until it is ready
 *   3. hand over with the waiting writes kept; the fence record names the new disk as the successor
 *   4. takeover (server.c): a new server takes the socket's name, the old one is ended with
 * SIGKILL, and the guest's NBD client connects again and repeats what was not answered
 *
 * Up to 3, and between 3 and the new name, every failure leaves the guest with the old server.  Run
 * again after it was killed, the command goes on where it was.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cmd/cmd.h"
#include "cmd/evacuate/server.h"
#include "cmd/control-query.h"
#include "cmd/serve/nbdkit-args.h"
#include "cmd/serve/nbdkit-run.h"
#include "cmd/serve/paths.h"
#include "cmd/units.h"
#include "mirror/handoff/coordinator.h"
#include "mirror/endpoint/same-place.h"

#define POLL_MS 50
#define HAND_OVER_TRIES 20
#define WORKER_END_MS 5000

struct evacuate {
  const char *control, *disk_arg;
  char *disk, *pidfile; /* absolute; owned */
  char **worker_args;   /* options for `mirror`, nr_worker_args of them; the array is owned */
  unsigned nr_worker_args;
  unsigned lease_ms;
  bool overwrite, resume, json;
  bool created; /* the new disk is ours to remove */
  struct nbdkit_args args;
  struct old_server old;
  struct new_server new;
  pid_t worker;
};

static volatile sig_atomic_t asked; /* the signal that ends us */

static void
on_signal (int sig)
{
  asked = sig;
}

static void
nap (int ms)
{
  const struct timespec t = { ms / 1000, ms % 1000 * 1000000L };
  nanosleep (&t, NULL);
}

static double
now_ms (void)
{
  struct timespec ts;
  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

/* ---- the new disk -----------------------------------------------------------------------------
 */

static bool
has_room (const struct evacuate *e, double size)
{
  char *folder = strdup (e->disk);
  struct statvfs fs;
  struct stat st;
  bool ok = true;

  if (folder == NULL)
    abort ();
  *strrchr (folder, '/') = '\0';
  if (e->old.disk != NULL && stat (e->old.disk, &st) == 0 && S_ISREG (st.st_mode)
      && (double)st.st_blocks * 512 < size)
    size = (double)st.st_blocks * 512; /* holes stay holes */
  if (statvfs (folder[0] != '\0' ? folder : "/", &fs) == 0
      && (double)fs.f_bavail * (double)fs.f_frsize < size) {
    char need[UNITS_BUF], have[UNITS_BUF];
    cmd_error ("%s: %s are needed, and %s are free", e->disk,
               units_format_size (need, (uint64_t)size),
               units_format_size (have, (uint64_t)fs.f_bavail * fs.f_frsize));
    ok = false;
  }
  free (folder);
  return ok;
}

/* Made like the old one: the same size, owner and mode. */
static int
create_disk (struct evacuate *e, double size)
{
  struct stat st;
  int fd;

  if (!has_room (e, size))
    return -1;
  fd = open (e->disk, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd == -1) {
    cmd_error ("%s: %s", e->disk, strerror (errno));
    return -1;
  }
  e->created = true;
  if (ftruncate (fd, (off_t)size) == -1) {
    cmd_error ("%s: %s", e->disk, strerror (errno));
    close (fd);
    return -1;
  }
  if (e->old.disk != NULL && stat (e->old.disk, &st) == 0 && S_ISREG (st.st_mode)
      && (fchown (fd, st.st_uid, st.st_gid) == -1 || fchmod (fd, st.st_mode & 07777) == -1))
    cmd_warning ("%s: owner and mode are not those of %s: %s", e->disk, e->old.disk,
                 strerror (errno));
  close (fd);
  return 0;
}

/* 0, or an exit status after an error message. */
static int
check_disk (struct evacuate *e, double size)
{
  struct stat st;

  if (same_place (e->disk, e->old.disk)) {
    cmd_notice ("%s: this is the guest's disk already, nothing to do", e->disk);
    return -1;
  }
  if (lstat (e->disk, &st) == -1) {
    if (errno != ENOENT) {
      cmd_error ("%s: %s", e->disk, strerror (errno));
      return EXIT_ERROR;
    }
    return create_disk (e, size) == 0 ? 0 : EXIT_ERROR;
  }
  if (!S_ISREG (st.st_mode) && !S_ISBLK (st.st_mode)) {
    cmd_error ("%s: neither a regular file nor a block device", e->disk);
    return EXIT_ERROR;
  }
  if ((S_ISBLK (st.st_mode) || st.st_size > 0) && !e->overwrite && !e->resume) {
    cmd_error ("%s: exists and %s: with --overwrite it is used", e->disk,
               S_ISBLK (st.st_mode) ? "is a block device" : "is not empty");
    return EXIT_REFUSED;
  }
  return 0;
}

/* A job that is over leaves nothing of ours behind, unless it can be resumed. */
static void
remove_disk (struct evacuate *e)
{
  if (e->created && unlink (e->disk) == -1)
    cmd_warning ("%s is left over: %s", e->disk, strerror (errno));
}

/* ---- the worker -------------------------------------------------------------------------------
 */

static int
start_worker (struct evacuate *e)
{
  unsigned i, n = 0;
  char **argv = calloc (e->nr_worker_args + 6, sizeof *argv);
  pid_t parent = getpid ();

  if (argv == NULL)
    abort ();
  argv[n++] = (char *)"nbdmirror";
  argv[n++] = (char *)"mirror";
  argv[n++] = e->old.control;
  argv[n++] = e->disk;
  for (i = 0; i < e->nr_worker_args; i++)
    argv[n++] = e->worker_args[i];
  fflush (NULL);
  e->worker = fork ();
  if (e->worker == 0) {
    prctl (PR_SET_PDEATHSIG, SIGTERM); /* it leaves, and the job can be resumed */
    if (getppid () != parent)
      _exit (EXIT_ERROR);
    dup2 (STDERR_FILENO, STDOUT_FILENO);
    execv ("/proc/self/exe", argv);
    _exit (127);
  }
  free (argv);
  if (e->worker == -1) {
    cmd_error ("fork: %s", strerror (errno));
    return -1;
  }
  return 0;
}

/* Has the worker ended?  Its exit status, or -1. */
static int
worker_ended (struct evacuate *e)
{
  int status;

  if (waitpid (e->worker, &status, WNOHANG) != e->worker)
    return -1;
  e->worker = 0;
  return WIFEXITED (status) ? WEXITSTATUS (status) : EXIT_ERROR;
}

static int
end_worker (struct evacuate *e, int sig)
{
  int waited, r = -1;

  if (e->worker == 0)
    return EXIT_ERROR;
  if (sig != 0)
    kill (e->worker, sig);
  for (waited = 0; waited < WORKER_END_MS && (r = worker_ended (e)) == -1; waited += 10)
    nap (10);
  if (r == -1) {
    kill (e->worker, SIGKILL);
    waitpid (e->worker, NULL, 0);
    e->worker = 0;
  }
  return r;
}

/* Until it can be handed over.  0, or the exit status of the worker, which has said why it ended.
 */
static int
wait_until_ready (struct evacuate *e)
{
  json_t *status = NULL;
  bool ready = false;
  int r;

  while (!ready) {
    nap (POLL_MS);
    if (asked != 0) {
      r = end_worker (e, asked == SIGINT ? SIGINT : SIGTERM);
      return r > 0 ? r : EXIT_ERROR;
    }
    r = worker_ended (e);
    if (r != -1)
      return r != 0 ? r : EXIT_ERROR;
    if (job_call (e->old.client, e->old.control, "query-mirror", NULL, &status, NULL) == -1) {
      end_worker (e, SIGTERM);
      return EXIT_ERROR;
    }
    const char *state = job_text (status, "state");
    ready = job_number (status, "worker-pid", 0) == e->worker
            && ((state != NULL && strcmp (state, "ready") == 0)
                || job_is_true (status, "synchronised"));
    json_decref (status);
    status = NULL;
  }
  return 0;
}

/* ---- the hand-over ----------------------------------------------------------------------------
 */

/* 0: committed, at *SINCE; else an exit status after an error message. */
static int
hand_over (struct evacuate *e, char token[HANDOFF_TOKEN_MAX + 1], double *since)
{
  const struct coordinator_options opts
      = { .lease_ms = e->lease_ms, .waiters = "keep", .successor = e->disk };
  struct coordinator_result result;
  char *error = NULL;
  int tries, r;

  for (tries = 0;; tries++) {
    r = wait_until_ready (e);
    if (r != 0)
      return r;
    *since = now_ms ();
    r = coordinator_run (&e->old.control, 1, &opts, &result, &error);
    strcpy (token, result.token);
    coordinator_result_free (&result);
    if (result.committed)
      break;
    if (tries == HAND_OVER_TRIES) {
      cmd_error ("%s", error != NULL ? error : "out of memory");
      free (error);
      end_worker (e, SIGINT);
      return EXIT_ERROR;
    }
    free (error);
    error = NULL;
    nap (200);
  }
  if (r == -1) /* it holds all the same: the filter obeys the word */
    cmd_warning ("%s", error != NULL ? error : "out of memory");
  free (error);
  return 0;
}

/* The new server cannot be had: nobody has reached it, so the guest may go on with the old one. */
static int
roll_back (struct evacuate *e, const char *token)
{
  takeover_undo (&e->old, &e->new);
  if (job_call (e->old.client, e->old.control, "mirror-rollback",
                json_pack ("{s:s, s:b}", "rollback-token", token, "destination-stopped", 1), NULL,
                NULL)
      == 0) {
    cmd_notice ("the guest goes on with the old disk");
    remove_disk (e);
  } else
    cmd_error ("the guest waits: try again, or let it go on with the old disk: nbdmirror rollback "
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
  int r = job_call (e->old.client, control, "query-mirror", NULL, &status, NULL);

  if (r == 0)
    r = job_call (e->old.client, control, "job-finalize",
                  json_pack ("{s:O?}", "generation", json_object_get (status, "generation")), NULL,
                  NULL);
  json_decref (status);
  if (r == -1)
    cmd_error ("the hand-over is committed, and the guest's writes wait: run this again, or let "
               "them go on with the "
               "old disk: nbdmirror rollback");
  return r == 0;
}

static int
take_over (struct evacuate *e, const char *token, double since)
{
  bool taken;
  char text[UNITS_BUF];
  json_t *object;

  if (!is_recorded (e))
    return EXIT_ERROR;
  if (takeover (&e->old, &e->new, &taken) == -1)
    return taken ? EXIT_ERROR : roll_back (e, token);
  double stall = now_ms () - since;
  if (e->json) {
    object = json_pack ("{s:s, s:o, s:s}", "disk", e->disk, "stall-ms",
                        since > 0 ? json_real (stall) : json_null (), "rollback-token", token);
    json_dumpf (object, stdout, JSON_INDENT (2) | JSON_REAL_PRECISION (6));
    printf ("\n");
    json_decref (object);
  } else
    printf ("%s: the guest's disk is now %s; its writes waited %s\n", e->old.socket, e->disk,
            since > 0 ? units_format_time (text, stall) : "since the last run");
  return EXIT_DONE;
}

static void
block_signals (int how)
{
  sigset_t set;

  sigemptyset (&set);
  sigaddset (&set, SIGINT);
  sigaddset (&set, SIGTERM);
  sigaddset (&set, SIGHUP);
  sigprocmask (how, &set, NULL);
}

/* The disk was handed over by a run that did not get to the end. */
static int
finish_earlier (struct evacuate *e, const json_t *status)
{
  const char *successor = job_text (status, "successor"),
             *token = job_text (status, "rollback-token");

  if (successor == NULL || strcmp (successor, e->disk) != 0) {
    cmd_error ("%s: this disk was handed over already%s%s", e->control,
               successor != NULL ? ", to " : "", successor != NULL ? successor : "");
    return EXIT_REFUSED;
  }
  cmd_notice ("the hand-over was committed already; going on from there");
  block_signals (SIG_BLOCK);
  return take_over (e, token != NULL ? token : "", 0);
}

/* It was not us who handed it over, or we could not.  Somebody else may have, at the same time:
 * then the new disk is the guest's, and must not be removed. */
static void
give_up (struct evacuate *e)
{
  json_t *status = NULL;
  int r = job_call (e->old.client, e->old.control, "query-mirror", NULL, &status, NULL);
  const char *gate = job_text (status, "gate");

  if (r == 0 && gate != NULL && strcmp (gate, "fenced") != 0)
    remove_disk (e);
  else if (r == 0)
    cmd_error ("%s: another command has handed this disk over: %s stays.  If nothing uses that, "
               "let the guest go on with"
               " the old disk: nbdmirror rollback",
               e->old.control, e->disk);
  else
    cmd_notice ("%s stays", e->disk);
  json_decref (status);
}

static int
evacuate (struct evacuate *e, const json_t *status)
{
  const char *gate = job_text (status, "gate");
  char token[HANDOFF_TOKEN_MAX + 1] = "";
  double since = 0, size = job_number (status, "size", -1);
  int r;

  if (gate != NULL && strcmp (gate, "fenced") == 0)
    return finish_earlier (e, status);
  if (size < 0) {
    cmd_error ("%s: no guest has opened this disk yet: move the file while it is not in use",
               e->control);
    return EXIT_ERROR;
  }
  r = check_disk (e, size);
  if (r != 0)
    return r == -1 ? EXIT_DONE : r;
  if (nbdkit_check () == -1 || new_server_try (&e->old, &e->new) == -1 || start_worker (e) == -1) {
    remove_disk (e);
    return EXIT_ERROR;
  }
  r = hand_over (e, token, &since);
  if (r != 0) {
    if (r != EXIT_DEST_FAILED)
      give_up (e);
    return r;
  }
  block_signals (SIG_BLOCK);
  end_worker (e, 0);
  return take_over (e, token, since);
}

/* ---- the command line -------------------------------------------------------------------------
 */

enum {
  OPT_OVERWRITE = 0x100,
  OPT_LEASE,
  OPT_PIDFILE,
  OPT_RESUME,
  OPT_RESTART,
  OPT_BANDWIDTH,
  OPT_DOWNTIME,
  OPT_POLICY
};

static void
pass_on (struct evacuate *e, const char *option, char *value)
{
  e->worker_args[e->nr_worker_args++] = (char *)option;
  if (value != NULL)
    e->worker_args[e->nr_worker_args++] = value;
}

/* 0, or EXIT_USAGE. */
static int
take_option (struct evacuate *e, int opt)
{
  const char *reason;
  uint64_t ms;

  switch (opt) {
  case 'j':
    e->json = true;
    break;
  case OPT_OVERWRITE:
    e->overwrite = true;
    break;
  case OPT_RESUME:
    e->resume = true;
    pass_on (e, "--resume", NULL);
    break;
  case OPT_RESTART:
    e->resume = true;
    pass_on (e, "--restart", NULL);
    break;
  case OPT_BANDWIDTH:
    pass_on (e, "--bandwidth", optarg);
    break;
  case OPT_DOWNTIME:
    pass_on (e, "--max-downtime", optarg);
    break;
  case OPT_POLICY:
    pass_on (e, "--policy", optarg);
    break;
  case OPT_PIDFILE:
    free (e->pidfile);
    e->pidfile = server_absolute_path ("--pidfile", optarg);
    return e->pidfile != NULL ? 0 : EXIT_USAGE;
  case OPT_LEASE:
    reason = units_parse_time (optarg, &ms);
    if (reason == NULL && (ms == 0 || ms > 3600 * 1000))
      reason = "must be between 1ms and 1h";
    if (reason != NULL)
      return cmd_usage_error ("--lease %s: %s", optarg, reason);
    e->lease_ms = (unsigned)ms;
    break;
  }
  return 0;
}

/* False: return *STATUS. */
static bool
parse (struct cmd_line *line, struct evacuate *e, int *status)
{
  static const struct option longopts[]
      = { { "json", no_argument, NULL, 'j' },
          { "overwrite", no_argument, NULL, OPT_OVERWRITE },
          { "lease", required_argument, NULL, OPT_LEASE },
          { "pidfile", required_argument, NULL, OPT_PIDFILE },
          { "resume", no_argument, NULL, OPT_RESUME },
          { "restart", no_argument, NULL, OPT_RESTART },
          { "bandwidth", required_argument, NULL, OPT_BANDWIDTH },
          { "max-downtime", required_argument, NULL, OPT_DOWNTIME },
          { "policy", required_argument, NULL, OPT_POLICY },
          CMD_LONG_OPTIONS_END };
  int opt;

  line->keep_rest = true;
  while ((opt = cmd_getopt (line, "j", longopts)) != -1) {
    *status = opt == CMD_OPT_STOP ? line->status : take_option (e, opt);
    if (opt == CMD_OPT_STOP || *status != 0)
      return false;
  }
  *status = EXIT_USAGE;
  if (!cmd_operands_ok (line, 2, 2, "CONTROL NEWDISK"))
    return false;
  e->control = line->operands[0].argv[0];
  e->disk_arg = line->operands[1].argv[0];
  if (line->operands[0].nr_args != 1 || line->operands[1].nr_args != 1)
    cmd_usage_error ("CONTROL is a control socket and NEWDISK a file or block device");
  else if (nbdkit_args_parse (&e->args, line->rest, line->nr_rest) == 0) {
    if (!e->args.has_filter && !e->args.has_direct && !e->args.has_uri)
      return true;
    cmd_usage_error (
        "NBDKIT-ARGS: further filters, mirror-direct= and mirror-uri= cannot be taken over");
  }
  return false;
}

/* With its links resolved, if it is there: the fence record and the new server must name it alike.
 */
static char *
resolve (const char *path)
{
  char *full = realpath (path, NULL);

  if (full == NULL)
    full = server_absolute_path ("NEWDISK", path);
  if (full != NULL) {
    json_t *text = json_string (full);
    if (text == NULL || strlen (full) > 1023) {
      cmd_error ("%s: the path must be UTF-8, and have 1023 bytes at most", full);
      free (full);
      full = NULL;
    }
    json_decref (text);
  }
  return full;
}

static int
run (struct cmd_line *line)
{
  struct sigaction sa = { .sa_handler = on_signal };
  struct evacuate e = { .old.pidfd = -1 };
  char *no_args[] = { NULL };
  json_t *status = NULL;
  int r = 0;

  e.worker_args = calloc ((size_t)line->argc * 2, sizeof *e.worker_args);
  if (e.worker_args == NULL)
    abort ();
  bool go = parse (line, &e, &r);
  if (go) {
    e.disk = resolve (e.disk_arg);
    r = e.disk != NULL ? old_server_find (&e.old, e.control, &status) : EXIT_ERROR;
  }
  if (go && r == 0) {
    if (e.pidfile == NULL && asprintf (&e.pidfile, "%s.pid", e.old.socket) == -1)
      abort ();
    e.new = (struct new_server){ .disk = e.disk,
                                 .pidfile = e.pidfile,
                                 .args = line->nr_rest > 0 ? line->rest : no_args };
    sigaction (SIGINT, &sa, NULL);
    sigaction (SIGTERM, &sa, NULL);
    sigaction (SIGHUP, &sa, NULL);
    r = evacuate (&e, status);
  }
  json_decref (status);
  old_server_free (&e.old);
  nbdkit_args_free (&e.args);
  free (e.worker_args);
  free (e.disk);
  free (e.pidfile);
  return r;
}

const struct subcommand subcommand_evacuate = {
  "evacuate-disk", "CONTROL NEWDISK [OPTIONS] [-- NBDKIT-ARGS]",
  "Move a running guest's disk to other storage of this host.",
  "CONTROL is the disk's control socket, NEWDISK a file or block device on the other storage.\n"
  "The disk is mirrored; then a new server takes the place of the old one, on the same\n"
  "sockets.  The guest's NBD client must connect again by itself and repeat what was not\n"
  "answered (QEMU: reconnect-delay); then the guest sees a short stall and no error.\n"
  "  --overwrite           use a NEWDISK that is not empty, or a block device\n"
  "  --bandwidth RATE, --max-downtime TIME, --policy POLICY, --resume, --restart\n"
  "                        as for mirror\n"
  "  --lease TIME          how long the guest's writes may wait before it is decided (default:\n"
  "                        2 x max-downtime, at least 200ms)\n"
  "  --pidfile FILE        the new server's (default: the socket's path with .pid)\n"
  "  --json                print a JSON object at the end\n"
  "NBDKIT-ARGS are those that the old server was started with: they are not taken over.\n\n"
  "On any failure before the new server has its place, the guest goes on with the old disk.\n"
  "The old disk is kept, and fenced.  Run it again if it was killed half-way.\n\n"
  "Example:\n"
  "  nbdmirror evacuate-disk /run/vm1.control /mnt/new/vm1.img\n",
  run
};
