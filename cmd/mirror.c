/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror mirror: the worker of one live disk.
 */

#include "config.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "budget/budget.h"
#include "cmd/cmd.h"
#include "cmd/control-query.h"
#include "cmd/hooks.h"
#include "cmd/image.h"
#include "cmd/show-forecast.h"
#include "cmd/show-progress.h"
#include "cmd/tracked/mirror-qmp.h"
#include "cmd/units.h"
#include "cmd/worker.h"
#include "control/name.h"
#include "control/settings.h"
#include "mirror/job/job.h"

#define MEASURE_NS UINT64_C (5000000000)

enum {
  OPT_MAX_DOWNTIME = 0x200,
  OPT_MAX_WRITE_DELAY,
  OPT_POLICY,
  OPT_ON_READY,
  OPT_VERIFY,
  OPT_RESUME,
  OPT_RESTART,
  OPT_DETACH,
  OPT_GRACE,
  OPT_GIVE_UP_STALLED,
  OPT_UNLIMITED_HOLD,
  OPT_DRY_RUN,
  OPT_MEASURE
};

static const struct cmd_option options[] = {
  { "max-downtime", OPT_MAX_DOWNTIME, "TIME",
    "pause the guest for at most TIME at the hand-over (default 300ms)" },
  { "max-write-delay", OPT_MAX_WRITE_DELAY, "TIME",
    "delay one write of the guest by at most TIME, where the guest is slowed down or its writes "
    "wait for the destination (default 50ms)" },
  { "policy", OPT_POLICY, "sync|throttle|none|fail",
    "what to do when passes do not converge: let guest writes wait for the destination, or slow "
    "the guest down where the line is too long for that (default); slow the guest down; keep "
    "trying; or end with exit status 4" },
  { "on-ready", OPT_ON_READY, "wait|complete",
    "when ready, wait for 'nbdmirror complete' (default), or complete at once" },
  { "verify", OPT_VERIFY, NULL,
    "when ready, verify the copy while the guest writes; with --on-ready complete: before that" },
  { "resume", OPT_RESUME, NULL,
    "go on with the job that an earlier worker left over (exit status 7 if there is none)" },
  { "restart", OPT_RESTART, NULL,
    "start over, and drop the job that is left over; with --resume: go on with it, or begin if "
    "there is none" },
  { "detach", OPT_DETACH, NULL, "return once the job is attached and copying" },
  { "give-up-after", WORKER_OPT_GIVE_UP, "TIME",
    "end (exit status 3) when the destination has been away for TIME, or (1) the source could not "
    "be read for TIME (default never)" },
  { "give-up-if-stalled", OPT_GIVE_UP_STALLED, "TIME",
    "end (exit status 3; 1 if the source cannot be read) when nothing was copied for TIME though "
    "something is left (default never)" },
  { "dry-run", OPT_DRY_RUN, NULL,
    "check everything, measure, and print how the job would go; there is no job and nothing is "
    "written (exit status 4: it would not end)" },
  { "measure", OPT_MEASURE, "TIME", "with --dry-run: how long to measure (default 5s)" },
  { "quarantine-grace", OPT_GRACE, "TIME",
    "how long to wait before blocks of a lost session are copied again (default 2s)" },
  { "no-limit-while-holding", OPT_UNLIMITED_HOLD, NULL,
    "the bandwidth limit does not hold while the guest waits" },
  WORKER_DEST_FORMAT_OPTION,
  WORKER_OPTIONS,
  HOOK_READY_OPTION,
  HOOK_OPTIONS,
  CMD_OPTIONS_END,
};

struct arguments {
  struct worker worker; /* first: the callbacks of worker.h get this */
  struct worker_settings settings;
  struct job_options job;
  struct hooks hooks;
  pthread_t ready_thread; /* runs the hook: the job must not wait for it */
  bool detach, dry_run, was_ready, has_ready_thread;
  uint64_t measure_ns;     /* 0: not given */
  const char *only_served; /* the last option that is for a disk that is served by us, or NULL */
};

/* QEMU itself tracks its own disks: what our filter does is not to be had there. */
static void
note_only_served (struct arguments *a, int c)
{
  if (c == OPT_MAX_DOWNTIME || c == OPT_ON_READY
      || (c == OPT_POLICY && a->job.policy != POLICY_SYNC && a->job.policy != POLICY_THROTTLE))
    return;
  for (const struct cmd_option *o = options; o->name != NULL; o++)
    if (o->key == c)
      a->only_served = o->name;
}

/* One option of ours.  0, or EXIT_USAGE. */
static int
take_option (struct arguments *a, int c)
{
  uint64_t ms;

  switch (c) {
  case OPT_MAX_DOWNTIME:
    if (!worker_parse_ms ("--max-downtime", optarg, &a->job.max_downtime_ms))
      return EXIT_USAGE;
    if (a->job.max_downtime_ms < 1 || a->job.max_downtime_ms > 24 * 3600 * 1000)
      return cmd_usage_error ("--max-downtime %s: must be between 1ms and 24h", optarg);
    return 0;
  case OPT_MAX_WRITE_DELAY:
    if (!worker_parse_ms ("--max-write-delay", optarg, &a->job.max_write_delay_ms))
      return EXIT_USAGE;
    if (a->job.max_write_delay_ms < 1 || a->job.max_write_delay_ms > SETTINGS_MAX_WRITE_DELAY_MS)
      return cmd_usage_error ("--max-write-delay %s: must be between 1ms and 10s", optarg);
    return 0;
  case OPT_POLICY:
    if (!job_policy_parse (optarg, &a->job.policy))
      return cmd_usage_error ("--policy %s: must be sync, throttle, none or fail", optarg);
    return 0;
  case OPT_ON_READY:
    if (strcmp (optarg, "wait") != 0 && strcmp (optarg, "complete") != 0)
      return cmd_usage_error ("--on-ready %s: must be wait or complete", optarg);
    a->job.complete_when_ready = !strcmp (optarg, "complete");
    return 0;
  case OPT_VERIFY:
    a->job.verify = true;
    return 0;
  case OPT_RESUME:
  case OPT_RESTART:
    if (a->job.start == (c == OPT_RESUME ? JOB_RESTART : JOB_RESUME))
      a->job.start = JOB_RESUME_OR_RESTART;
    else if (a->job.start == JOB_NEW)
      a->job.start = c == OPT_RESUME ? JOB_RESUME : JOB_RESTART;
    return 0;
  case OPT_DETACH:
    a->detach = true;
    return 0;
  case OPT_GRACE:
    if (!worker_parse_ms ("--quarantine-grace", optarg, &ms))
      return EXIT_USAGE;
    a->job.grace_ns = ms * 1000000 + 1; /* 0 would mean the default */
    return 0;
  case OPT_GIVE_UP_STALLED:
    if (!worker_parse_ms ("--give-up-if-stalled", optarg, &ms))
      return EXIT_USAGE;
    if (ms < 1)
      return cmd_usage_error ("--give-up-if-stalled %s: must be at least 1ms", optarg);
    a->job.give_up_stalled_ns = ms * NS_PER_MS;
    return 0;
  case OPT_DRY_RUN:
    a->dry_run = true;
    return 0;
  case OPT_MEASURE:
    if (!worker_parse_ms ("--measure", optarg, &ms))
      return EXIT_USAGE;
    if (ms < 100 || ms > 3600 * 1000)
      return cmd_usage_error ("--measure %s: must be between 100ms and 1h", optarg);
    a->measure_ns = ms * 1000000;
    return 0;
  case OPT_UNLIMITED_HOLD:
    a->job.unlimited_hold = true;
    return 0;
  default:
    return hook_option (&a->hooks, c) ? 0 : EXIT_USAGE;
  }
}

/* ---- callbacks ---- */

static void *
ready_hook (void *opaque)
{
  struct arguments *a = opaque;

  hook_run_warn (&a->hooks, HOOK_READY, NULL, NULL);
  return NULL;
}

static void
on_progress (void *opaque, json_t *status)
{
  struct arguments *a = opaque;
  const char *state = json_string_value (json_object_get (status, "state"));

  worker_progress (&a->worker, status);
  if (!a->was_ready && a->hooks.command[HOOK_READY] != NULL && state != NULL
      && strcmp (state, "ready") == 0) {
    a->was_ready = true;
    a->has_ready_thread = pthread_create (&a->ready_thread, NULL, ready_hook, a) == 0;
    if (!a->has_ready_thread)
      cmd_warning ("--on-ready-exec: cannot start a thread");
  }
}

static int
before_hold (void *opaque, char **error)
{
  struct arguments *a = opaque;

  return hook_run (&a->hooks, HOOK_BEFORE_HOLD, NULL, NULL, error);
}

static void
run_last_hook (struct arguments *a, enum job_result result, const json_t *report)
{
  static const char *const reasons[] = { [JOB_FAILED] = "failed",
                                         [JOB_DEST_FAILED] = "destination failed",
                                         [JOB_NOT_CONVERGED] = "did not converge",
                                         [JOB_CANCELLED] = "cancelled",
                                         [JOB_REFUSED] = "refused",
                                         [JOB_DIFFERENT] = "the copy differs",
                                         [JOB_DETACHED] = "stopped" };
  bool by_user = result == JOB_CANCELLED || result == JOB_DETACHED;
  char reason[300];

  if (a->has_ready_thread)
    pthread_join (a->ready_thread, NULL);
  if (result == JOB_COMPLETED)
    hook_run_warn (&a->hooks, HOOK_AFTER_COMMIT,
                   json_string_value (json_object_get (report, "rollback-token")), NULL);
  else if (result == JOB_NOT_SEALED)
    hook_not_run (&a->hooks, HOOK_AFTER_COMMIT, "the destination is not sealed");
  else {
    snprintf (reason, sizeof reason, "%s%s%s", reasons[result],
              by_user || a->worker.last_error[0] == '\0' ? "" : ": ",
              by_user ? "" : a->worker.last_error);
    hook_run_warn (&a->hooks, HOOK_ABORT, NULL, reason);
  }
}

/* The last line: what has become of it, and what can be done now.  Errors were told already. */
static void
say_end (struct arguments *a, enum job_result result, const json_t *report)
{
  char sent[UNITS_BUF], took[UNITS_BUF];

  if (a->worker.progress)
    progress_break (a->worker.progress);
  const char *token = json_string_value (json_object_get (report, "rollback-token"));
  if (result == JOB_COMPLETED && report && token == NULL)
    cmd_say ("completed: the copy stands at one instant, and the guest goes on at the source");
  else if ((result == JOB_COMPLETED || result == JOB_NOT_SEALED) && report)
    cmd_say (
        "completed: %s sent in %s, pause %.1f ms, rollback token %s",
        units_format_size (sent,
                           (uint64_t)json_integer_value (json_object_get (report, "sent-bytes"))),
        units_format_time (took, 1000 * json_number_value (json_object_get (report, "total-s"))),
        json_number_value (json_object_get (report, "downtime-ms")),
        token != NULL ? token : "unknown");
  else if (result == JOB_CANCELLED)
    cmd_say ("cancelled: the guest goes on at the source; the destination is %s",
             json_object_get (report, "stands-at") != NULL ? "good for --sync incremental"
                                                           : "incomplete");
  else if (result == JOB_DETACHED)
    cmd_say ("stopped: changes go on being tracked; --resume goes on from here");
  else if (result == JOB_DEST_FAILED && report) /* no report: there was no job yet */
    cmd_say (
        "gave up: changes go on being tracked; once the destination is well, --resume goes on");
}

/* ---- --dry-run ---- */

static int
run_dry (struct arguments *a)
{
  json_t *report;

  a->job.signal_fd = worker_signals (&a->job.signal);
  if (a->job.signal_fd == -1)
    return EXIT_ERROR;
  a->job.opaque = &a->worker;
  a->job.message = worker_message;
  enum job_result result
      = job_dry_run (&a->job, a->measure_ns ? a->measure_ns : MEASURE_NS, &report);
  if (report && !a->worker.json)
    forecast_print (report);
  return worker_finish (&a->worker, result, report);
}

static int
run_job (struct arguments *a)
{
  struct worker *w = &a->worker;
  json_t *report;

  if (a->detach && !worker_detach (w))
    return EXIT_ERROR;
  a->job.signal_fd = worker_signals (&a->job.signal);
  if (a->job.signal_fd == -1)
    return EXIT_ERROR;
  if (!worker_join_budget (&a->settings, a->job.control, &a->job.budget))
    return EXIT_ERROR;
  if (!w->json && !a->detach)
    w->progress = progress_new (stderr, NULL);

  a->job.opaque = a;
  a->job.message = worker_message;
  if (w->progress != NULL || a->hooks.command[HOOK_READY] != NULL)
    a->job.progress = on_progress;
  a->job.progress_is_watched = w->progress != NULL && progress_is_on_terminal (w->progress);
  a->job.started = worker_started;
  a->job.before_hold = before_hold;
  enum job_result result = job_run (&a->job, &report);
  budget_leave (a->job.budget);
  run_last_hook (a, result, report);
  if (!w->json)
    say_end (a, result, report);
  return worker_finish (w, result, report);
}

/* A disk that QEMU has open by itself. */
static int
run_qmp (struct arguments *a, const char *source)
{
  struct copy_options o = { .dest = a->job.dest,
                            .sync = a->settings.sync,
                            .sparse = a->settings.sparse,
                            .rate_limit = a->settings.rate_limit,
                            .max_connections = a->settings.max_connections,
                            .give_up_ns = a->settings.give_up_ns,
                            .max_downtime_ms = a->job.max_downtime_ms,
                            .complete_when_ready = a->job.complete_when_ready,
                            .fail_if_slow = a->job.policy == POLICY_FAIL };
  return mirror_qmp_run (source, &a->worker, &a->settings, &o);
}

/* --sync top of an image whose format its server tells: its own header names the base that is to be
 * proved. */
static int
find_base (const char *control, struct sync_options *sync, char **base, char **base_format)
{
  json_t *disk = NULL;

  if (sync->mode != ENGINE_SYNC_TOP || sync->base != NULL)
    return 0;
  struct control_client *c = query_connect (control);
  if (c == NULL)
    return EXIT_ERROR;
  int status = query_call (c, control, "query-mirror", NULL, &disk, NULL) == 0 ? 0 : EXIT_ERROR;
  control_client_free (c);
  const char *path = status_text (disk, "disk"), *format = status_text (disk, "disk-format");
  if (path != NULL && format != NULL) {
    status = image_base (path, format, base, base_format);
    sync->base = *base;
    sync->base_format = *base_format;
    sync->base_is_known = true;
  }
  json_decref (disk);
  return status;
}

static int
run (struct cmd_line *line)
{
  struct arguments a = {
    .worker = { .ready_fd = -1 },
    .settings = { .give_up_ns = UINT64_MAX },
    .job = { .max_downtime_ms = 300,
             .max_write_delay_ms = JOB_MAX_WRITE_DELAY_MS,
             .policy = POLICY_SYNC },
  };
  struct image dest_image;
  int c, status = 0;

  while ((c = cmd_getopt (line)) != -1) {
    if (c == CMD_OPT_STOP)
      return line->status;
    if (!worker_option (c, &a.worker, &a.settings, &status)) {
      status = take_option (&a, c);
      note_only_served (&a, c);
    }
    if (status)
      return status;
  }
  if (!cmd_operands_ok (line, 2, 2, "CONTROL DEST"))
    return line->status;
  if (line->operands[0].nr_args != 1)
    return cmd_usage_error ("CONTROL is the path of a control socket, not a command");
  bool of_qemu = control_is_of_qemu (line->operands[0].argv[0]);
  if (of_qemu && a.only_served != NULL && strcmp (a.only_served, "policy") == 0)
    return cmd_usage_error ("--policy: of a disk that QEMU has open by itself only none and fail "
                            "are possible, since QEMU delays no write of the guest");
  if (of_qemu && a.only_served != NULL)
    return cmd_usage_error ("--%s: not for a disk that QEMU has open by itself", a.only_served);
  if (of_qemu && a.settings.sync.mode == ENGINE_SYNC_INCREMENTAL)
    return cmd_usage_error (
        "--sync incremental needs a server that keeps checkpoints, and QEMU has "
        "this disk open by itself");
  if (!cmd_place_ok (line, &line->operands[1])
      || !image_place (line, &line->operands[1], "--dest-format", a.settings.dest_format, true,
                       &dest_image))
    return line->status;
  if (a.job.verify && line->operands[1].nr_args > 1)
    return cmd_usage_error (
        "--verify needs a second connection to DEST, and the server that is run "
        "for %s has one only",
        a.settings.dest_format != NULL ? "--dest-format" : "[ COMMAND ]");
  a.job.control = line->operands[0].argv[0];
  a.hooks.controls = line->operands[0].argv;
  a.hooks.nr_controls = 1;
  CLEANUP_TEXT char *base = NULL, *base_format = NULL;
  status = of_qemu ? 0 : find_base (a.job.control, &a.settings.sync, &base, &base_format);
  if (status != 0)
    return status;
  if (worker_check_sync (&a.settings.sync) != 0)
    return EXIT_USAGE;
  a.job.sync = a.settings.sync;
  a.job.sparse = a.settings.sparse;
  a.job.dest = a.settings.dest;
  image_to_create (&dest_image, a.settings.dest_format, &a.job.dest.endpoint);
  a.job.dest.dest = line->operands[1].argv;
  a.job.dest.nr_dest = line->operands[1].nr_args;
  a.job.rate_limit = a.settings.rate_limit;
  a.job.max_connections = a.settings.max_connections;
  a.job.give_up_ns = a.settings.give_up_ns;
  if (of_qemu)
    return run_qmp (&a, line->operands[0].argv[0]);
  if (a.measure_ns && !a.dry_run)
    return cmd_usage_error ("--measure goes with --dry-run");
  if (a.dry_run && a.detach)
    return cmd_usage_error ("--dry-run and --detach exclude each other");
  return a.dry_run ? run_dry (&a) : run_job (&a);
}

const struct subcommand subcommand_mirror = {
  "mirror",
  "CONTROL DEST [OPTIONS]",
  "Mirror a disk that is in use, and hand it over.",
  "The disk behind CONTROL is copied to DEST while its guest keeps writing, pass after pass, "
  "until\n"
  "what is left can be copied within the allowed downtime; then the job stays ready, or hands "
  "over.\n\n"
  "DEST is an NBD URI, a local file or block device, ssh://HOST/PATH, or [ COMMAND ARGS ] that\n"
  "serves NBD.  In place of CONTROL, qmp:SOCKET/NODE is a disk that a running QEMU has open by\n"
  "itself.\n",
  options,
  NULL,
  "Ctrl-C cancels the job.  SIGTERM ends this worker only (exit status 3): --resume goes on "
  "later.\n\n"
  "Examples:\n"
  "  nbdmirror mirror /var/lib/nbdmirror/vm1.control nbd://hostb/ --on-ready complete\n"
  "  nbdmirror mirror /var/lib/nbdmirror/vm1.control nbds://hostb:10809/vm1 \\\n"
  "            --bandwidth 100M --detach\n"
  "  nbdmirror mirror qmp:/run/vm1.qmp/disk0 nbd://hostb/ --on-ready complete\n",
  run,
};
