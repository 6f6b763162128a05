/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What `mirror` and `copy` share: the options of a destination, signals, messages, progress, the
 * report, and how a job's result becomes an exit status.
 */

#ifndef NBDMIRROR_CMD_WORKER_H
#define NBDMIRROR_CMD_WORKER_H

#include <stdbool.h>
#include <stdint.h>
#include <jansson.h>

#include "cmd/cmd.h"
#include "mirror/job/job.h"

struct worker {
  bool json;          /* print the final status object on stdout, and no progress */
  const char *report; /* write it there as well */
  int ready_fd;       /* --detach: tell the waiting parent; else -1 */
  struct progress *progress;
  char last_error[256]; /* that was told; "" none */
};

/* Options that both know. */
#define WORKER_OPT_ALLOW_UNSAFE 0x100
#define WORKER_OPT_CONNECT_TIMEOUT 0x101
#define WORKER_OPT_REQUEST_TIMEOUT 0x102
#define WORKER_OPT_GIVE_UP 0x103
#define WORKER_LONG_OPTIONS                                                                        \
  { "bandwidth", required_argument, NULL, 'b' }, { "connections", required_argument, NULL, 'c' },  \
      { "json", no_argument, NULL, 'j' }, { "report", required_argument, NULL, 'r' },              \
      { "allow-unsafe-destination", no_argument, NULL, WORKER_OPT_ALLOW_UNSAFE },                  \
      { "connect-timeout", required_argument, NULL, WORKER_OPT_CONNECT_TIMEOUT },                  \
      { "request-timeout", required_argument, NULL, WORKER_OPT_REQUEST_TIMEOUT },                  \
  {                                                                                                \
    "give-up-after", required_argument, NULL, WORKER_OPT_GIVE_UP                                   \
  }
#define WORKER_OPTIONS_HELP                                                                        \
  "  --bandwidth RATE      send at most RATE bytes a second (k, M, G; 0: no limit)\n"              \
  "  --connections N       at most N connections to the destination, 1 to 4\n"                     \
  "  --connect-timeout T   give a server so long to answer a connection (10s)\n"                   \
  "  --request-timeout T   give it so long to answer a request (30s)\n"                            \
  "  --allow-unsafe-destination\n"                                                                 \
  "                        accept a destination that cannot flush: nothing written there is\n"     \
  "                        known to be safe\n"                                                     \
  "  --report FILE         write a JSON object about the whole job at the end\n"                   \
  "  --json                print that object instead of progress\n"

/* Values of those options; start with WORKER_SETTINGS. */
struct worker_settings {
  uint64_t rate_limit;
  unsigned nr_copiers;
  uint64_t give_up_ns;
  struct session_options dest;
};

/* Handle option C with optarg.  True: it was one of the above; *STATUS is EXIT_USAGE if its value
 * is bad, else left alone. */
bool worker_option (int c, struct worker *w, struct worker_settings *s, int *status);

/* Parse a time option; false: a usage error was printed. */
bool worker_parse_ms (const char *option, const char *text, uint64_t *ms);

/* SIGINT asks to cancel, SIGTERM and SIGHUP to detach; a second one kills.  Returns the descriptor
 * to wait for, or -1. */
int worker_signals (_Atomic int **signal);

/* Callbacks of job.h and copy.h; OPAQUE is the struct worker. */
void worker_message (void *opaque, enum job_message kind, const char *text);
void worker_progress (void *opaque, json_t *status);
void worker_started (void *opaque);

/* Print and write REPORT as asked (takes the reference, NULL allowed), end the progress line,
 * return the exit status. */
int worker_finish (struct worker *w, enum job_result result, json_t *report);

/* Go to the background: returns in the child only.  The parent waits until worker_started(), or
 * until the child ends, and exits.  False: it could not be done, a message was printed. */
bool worker_detach (struct worker *w);

#endif
