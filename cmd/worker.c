/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What `mirror` and `copy` share.  See worker.h.
 */

#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/stop-signals.h"
#include "base/text.h"
#include "budget/budget.h"
#include "cmd/control-query.h"
#include "cmd/show-progress.h"
#include "cmd/units.h"
#include "cmd/worker.h"
#include "compress/level.h"
#include "mirror/job/sampling.h"

#define COMPRESS_LEVEL 6
#define TRUST_BLOCKS_MAX 1000000

static _Atomic int asked;
static int signal_fd = -1;
static _Atomic uint64_t asked_ms[_NSIG]; /* when each signal came first; 0: not yet */
static _Atomic bool patient;

static void
on_signal (int sig)
{
  uint64_t now = clock_ms (), first = 0;

  if (!atomic_compare_exchange_strong (&asked_ms[sig], &first, now)
      && now - first >= WORKER_AGAIN_MS && !patient) {
    signal (sig, SIG_DFL);
    raise (sig);
    return;
  }
  atomic_store (&asked, sig == SIGINT ? JOB_SIGNAL_CANCEL : JOB_SIGNAL_DETACH);
  fd_wake (signal_fd);
}

int
worker_signals (_Atomic int **flag)
{
  signal_fd = fd_wake_new ();
  if (signal_fd == -1) {
    cmd_say ("eventfd: %s", strerror (errno));
    return -1;
  }
  stop_signals_catch (on_signal);
  *flag = &asked;
  return signal_fd;
}

void
worker_signals_never_kill (void)
{
  patient = true;
}

/* ---- options ---- */

bool
worker_parse_ms (const char *option, const char *text, uint64_t *ms)
{
  const char *why = units_parse_time (text, ms);
  if (why)
    cmd_usage_error ("%s %s: %s", option, text, why);
  return why == NULL;
}

static bool
parse_timeout (const char *option, const char *text, int *ms)
{
  uint64_t n;
  if (!worker_parse_ms (option, text, &n))
    return false;
  if (n < 1 || n > 24 * 3600 * 1000) {
    cmd_usage_error ("%s %s: must be between 1ms and 24h", option, text);
    return false;
  }
  *ms = (int)n;
  return true;
}

static bool
parse_connections (const char *text, unsigned *n)
{
  char *end;
  long v = strtol (text, &end, 10);
  if (*text == '\0' || *end != '\0' || v < 1 || v > 4) {
    cmd_usage_error ("--connections %s: must be a number from 1 to 4", text);
    return false;
  }
  *n = (unsigned)v;
  return true;
}

bool
worker_parse_level (const char *text, int *level)
{
  char *end;
  long v = text != NULL ? strtol (text, &end, 10) : COMPRESS_LEVEL;
  if (text != NULL && (*text == '\0' || *end != '\0' || v < 1 || v > LEVEL_MAX)) {
    cmd_usage_error ("--compress=%s: must be a number from 1 to %d", text, LEVEL_MAX);
    return false;
  }
  *level = (int)v;
  return true;
}

static bool
parse_sparse (const char *text, enum engine_sparse *sparse)
{
  static const char *const names[] = { [ENGINE_SPARSE_AUTO] = "auto",
                                       [ENGINE_SPARSE_ALWAYS] = "always",
                                       [ENGINE_SPARSE_NEVER] = "never" };

  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    if (strcmp (text, names[i]) == 0) {
      *sparse = (enum engine_sparse)i;
      return true;
    }
  cmd_usage_error ("--sparse %s: must be auto, always or never%s", text,
                   isdigit ((unsigned char)text[0])
                       ? " (zeroes are looked for in pieces of 4 KiB, of no other size)"
                       : "");
  return false;
}

/* NAME, or NAME:WEIGHT. */
static bool
parse_budget (char *text, struct worker_settings *s)
{
  char *colon = strchr (text, ':'), *end = NULL;
  long weight = colon != NULL ? strtol (colon + 1, &end, 10) : 1;

  if (colon != NULL
      && (colon[1] == '\0' || *end != '\0' || weight < 1 || weight > BUDGET_WEIGHT_MAX)) {
    cmd_usage_error ("--budget %s: the weight must be a number from 1 to %d", text,
                     BUDGET_WEIGHT_MAX);
    return false;
  }
  if (colon != NULL)
    *colon = '\0';
  const char *problem = budget_name_problem (text);
  if (problem != NULL) {
    cmd_usage_error ("--budget %s: %s", text, problem);
    return false;
  }
  s->budget = text;
  s->budget_weight = (unsigned)weight;
  return true;
}

static bool
parse_give_up (const char *text, uint64_t *ns)
{
  uint64_t ms;

  if (strcmp (text, "never") == 0) {
    *ns = UINT64_MAX;
    return true;
  }
  if (!worker_parse_ms ("--give-up-after", text, &ms))
    return false;
  *ns = ms * NS_PER_MS;
  return true;
}

/* TEXT: how many blocks are compared; NULL: the default. */
static bool
parse_trusted (const char *text, struct sync_options *o)
{
  char *end = NULL;
  long blocks = text != NULL ? strtol (text, &end, 10) : SAMPLING_BLOCKS;

  o->trust_dest = true;
  o->trust_blocks = (unsigned)blocks;
  if (text == NULL || (end != text && *end == '\0' && blocks >= 1 && blocks <= TRUST_BLOCKS_MAX))
    return true;
  cmd_usage_error ("--trust-destination=%s: must be a number from 1 to %d", text, TRUST_BLOCKS_MAX);
  return false;
}

/* What to send.  False: C is another option. */
static bool
take_sync_option (int c, struct sync_options *o, bool *good)
{
  switch (c) {
  case WORKER_OPT_SYNC:
    *good = sync_take (optarg, o);
    if (!*good)
      cmd_usage_error ("--sync %s: must be full, top, base, compare, incremental or auto", optarg);
    return true;
  case WORKER_OPT_BASE:
    o->base = optarg;
    return true;
  case WORKER_OPT_TRUST_BASE:
    o->trust_base = true;
    return true;
  case WORKER_OPT_BASE_FORMAT:
    o->base_format = optarg;
    return true;
  case WORKER_OPT_SINCE:
    o->since = optarg;
    return true;
  case WORKER_OPT_TRUST_DEST:
    *good = parse_trusted (optarg, o);
    return true;
  default:
    return false;
  }
}

bool
worker_option (int c, struct worker *w, struct worker_settings *s, int *status)
{
  const char *why;
  bool good = true;

  switch (c) {
  case WORKER_OPT_BANDWIDTH:
    why = units_parse_rate (optarg, &s->rate_limit);
    if (why) {
      cmd_usage_error ("--bandwidth %s: %s", optarg, why);
      good = false;
    }
    break;
  case WORKER_OPT_BUDGET:
    good = parse_budget (optarg, s);
    break;
  case WORKER_OPT_COMPRESS:
    good = worker_parse_level (optarg, &s->dest.endpoint.compress);
    break;
  case WORKER_OPT_CONNECTIONS:
    good = parse_connections (optarg, &s->max_connections);
    break;
  case 'j':
    w->json = true;
    break;
  case WORKER_OPT_REPORT:
    w->report = optarg;
    good = report_possible ("--report", optarg);
    break;
  case WORKER_OPT_ALLOW_UNSAFE:
    s->dest.allow_no_flush = true;
    break;
  case WORKER_OPT_CONNECT_TIMEOUT:
    good = parse_timeout ("--connect-timeout", optarg, &s->dest.endpoint.connect_timeout_ms);
    break;
  case WORKER_OPT_REQUEST_TIMEOUT:
    good = parse_timeout ("--request-timeout", optarg, &s->dest.endpoint.request_timeout_ms);
    break;
  case WORKER_OPT_SPARSE:
    good = parse_sparse (optarg, &s->sparse);
    break;
  case WORKER_OPT_SOURCE_FORMAT:
    s->source_format = optarg;
    break;
  case WORKER_OPT_DEST_FORMAT:
    s->dest_format = optarg;
    break;
  case WORKER_OPT_GIVE_UP:
    good = parse_give_up (optarg, &s->give_up_ns);
    break;
  default:
    if (!take_sync_option (c, &s->sync, &good))
      return false;
  }
  if (!good)
    *status = EXIT_USAGE;
  return true;
}

bool
worker_join_budget (const struct worker_settings *s, const char *label, struct budget **b)
{
  CLEANUP_TEXT char *error = NULL;

  *b = NULL;
  if (s->budget == NULL)
    return true;
  *b = budget_join (s->budget, s->budget_weight, label, &error);
  if (*b == NULL)
    cmd_say ("%s", error);
  return *b != NULL;
}

int
worker_check_sync (const struct sync_options *o)
{
  const char *fault = sync_fault (o);

  return fault != NULL ? cmd_usage_error ("%s", fault) : 0;
}

/* ---- callbacks ---- */

void
worker_message (void *opaque, enum job_message kind, const char *text)
{
  struct worker *w = opaque;
  if (w->progress)
    progress_break (w->progress);
  if (kind == JOB_ERROR) {
    snprintf (w->last_error, sizeof w->last_error, "%s", text);
    cmd_say ("%s", text);
  } else if (kind == JOB_WARNING)
    cmd_warning ("%s", text);
  else
    cmd_say ("%s", text);
}

void
worker_progress (void *opaque, json_t *status)
{
  struct worker *w = opaque;
  if (w->progress && status)
    progress_print (w->progress, status, clock_ms ());
}

/* ---- to the background ---- */

bool
worker_detach (struct worker *w)
{
  int fds[2];
  if (pipe2 (fds, O_CLOEXEC) == -1) {
    cmd_say ("pipe: %s", strerror (errno));
    return false;
  }
  pid_t pid = fork ();
  if (pid == -1) {
    cmd_say ("fork: %s", strerror (errno));
    return false;
  }
  if (pid == 0) {
    close (fds[0]);
    w->ready_fd = fds[1];
    setsid ();
    return true;
  }
  close (fds[1]);
  char c;
  ssize_t n;
  while ((n = read (fds[0], &c, 1)) == -1 && errno == EINTR)
    ;
  if (n == 1)
    _exit (EXIT_DONE);
  /* The child ended before it began to copy, and has said why. */
  int status;
  if (waitpid (pid, &status, 0) == pid && WIFEXITED (status))
    _exit (WEXITSTATUS (status));
  _exit (EXIT_ERROR);
}

void
worker_started (void *opaque)
{
  struct worker *w = opaque;
  if (w->ready_fd == -1)
    return;
  int null = open ("/dev/null", O_RDWR | O_CLOEXEC);
  if (null != -1) {
    fflush (NULL);
    for (int fd = 0; fd <= 2; fd++)
      dup2 (null, fd);
    close (null);
  }
  while (write (w->ready_fd, "", 1) == -1 && errno == EINTR)
    ;
  close (w->ready_fd);
  w->ready_fd = -1;
}

/* ---- the end ---- */

static int
exit_status (enum job_result result)
{
  switch (result) {
  case JOB_COMPLETED:
    return EXIT_DONE;
  case JOB_NOT_SEALED:
  case JOB_DEST_FAILED:
  case JOB_DETACHED:
    return EXIT_DEST_FAILED;
  case JOB_NOT_CONVERGED:
    return EXIT_NOT_CONVERGED;
  case JOB_CANCELLED:
    return EXIT_CANCELLED;
  case JOB_REFUSED:
    return EXIT_REFUSED;
  case JOB_DIFFERENT:
    return EXIT_DIFFERENT;
  case JOB_FAILED:
    break;
  }
  return EXIT_ERROR;
}

int
worker_finish (struct worker *w, enum job_result result, json_t *report)
{
  int status = exit_status (result);

  if (w->progress) {
    progress_free (w->progress);
    w->progress = NULL;
  }
  if (report) {
    json_object_set_new (report, "exit-status", json_integer (status));
    if (w->json) {
      json_dumpf (report, stdout, JSON_INDENT (2));
      putchar ('\n');
    }
    if (w->report && report_write (w->report, report) == -1) {
      cmd_say ("cannot write the report to %s: %s", w->report, strerror (errno));
      if (status == EXIT_DONE)
        status = EXIT_ERROR;
    }
    json_decref (report);
  }
  return status;
}
