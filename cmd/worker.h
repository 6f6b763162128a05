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
#include "mirror/job/sync.h"

struct worker {
  bool json;          /* print the final status object on stdout, and no progress */
  const char *report; /* write it there as well */
  int ready_fd;       /* --detach: tell the waiting parent; else -1 */
  struct progress *progress;
  char last_error[256]; /* that was told; "" none */
};

/* Options that `mirror` and `copy` both have, for their tables. */
enum {
  WORKER_OPT_BANDWIDTH = 0x100,
  WORKER_OPT_CONNECTIONS,
  WORKER_OPT_REPORT,
  WORKER_OPT_ALLOW_UNSAFE,
  WORKER_OPT_CONNECT_TIMEOUT,
  WORKER_OPT_REQUEST_TIMEOUT,
  WORKER_OPT_GIVE_UP,
  WORKER_OPT_SYNC,
  WORKER_OPT_SPARSE,
  WORKER_OPT_BASE,
  WORKER_OPT_BASE_FORMAT,
  WORKER_OPT_SOURCE_FORMAT,
  WORKER_OPT_DEST_FORMAT,
  WORKER_OPT_TRUST_BASE,
  WORKER_OPT_SINCE,
  WORKER_OPT_TRUST_DEST,
  WORKER_OPT_COMPRESS,
  WORKER_OPT_BUDGET
};
#define WORKER_TIMEOUT_OPTIONS                                                                     \
  { "connect-timeout", WORKER_OPT_CONNECT_TIMEOUT, "TIME",                                         \
    "how long a server may take to accept a connection (default 10s, 20s for ssh://)" },           \
  {                                                                                                \
    "request-timeout", WORKER_OPT_REQUEST_TIMEOUT, "TIME",                                         \
        "how long a server may take to answer a request (default 30s; three times as long for a "  \
        "flush)"                                                                                   \
  }
#define WORKER_SYNC_OPTIONS                                                                        \
  { "sync", WORKER_OPT_SYNC, "full|top|base|compare|incremental|auto",                             \
    "what to send: everything (default), only what the source's top layer holds, only what "       \
    "differs from --base, only what differs from what the destination holds, only what was "       \
    "changed since a checkpoint, or that where it is proved to be enough and else everything" },   \
      { "since", WORKER_OPT_SINCE, "NAME",                                                         \
        "the checkpoint for --sync incremental (default: the one at which the destination "        \
        "stands, by what its server knows)" },                                                     \
      { "trust-destination", WORKER_OPT_TRUST_DEST, "[BLOCKS]",                                    \
        "whether the destination stands at that checkpoint, compare so many random blocks only "   \
        "(default 1,000)" },                                                                       \
      { "base", WORKER_OPT_BASE, "IMAGE",                                                          \
        "the base for --sync base and top: a local image or an NBD URI; the destination must "     \
        "hold the same, and nothing else" },                                                       \
      { "base-format", WORKER_OPT_BASE_FORMAT, "FORMAT",                                           \
        "the format of the base, for instance qcow2 (default raw)" },                              \
  {                                                                                                \
    "trust-base", WORKER_OPT_TRUST_BASE, NULL,                                                     \
        "where the destination does not tell the digest of its base, compare 1,000 random blocks " \
        "only"                                                                                     \
  }
#define WORKER_SOURCE_FORMAT_OPTION                                                                \
  {                                                                                                \
    "source-format", WORKER_OPT_SOURCE_FORMAT, "FORMAT",                                           \
        "the format of SOURCE, a local image: raw, or another one that qemu-nbd knows"             \
  }
#define WORKER_DEST_FORMAT_OPTION                                                                  \
  {                                                                                                \
    "dest-format", WORKER_OPT_DEST_FORMAT, "FORMAT",                                               \
        "the format of DEST, a local image: raw, or another one that qemu-nbd knows"               \
  }
#define WORKER_SPARSE_OPTION                                                                       \
  {                                                                                                \
    "sparse", WORKER_OPT_SPARSE, "auto|always|never",                                              \
        "may zeroes become holes at the destination: as they are at the source (default), "        \
        "always, or "                                                                              \
        "never"                                                                                    \
  }
#define WORKER_OPTIONS                                                                             \
  { "bandwidth", WORKER_OPT_BANDWIDTH, "RATE",                                                     \
    "send at most RATE bytes a second (k, M, G; 0 or none: no limit, the default)" },              \
      { "connections", WORKER_OPT_CONNECTIONS, "N",                                                \
        "open at most N connections to the destination, 1 to 4 (default 4)" },                     \
      { "budget", WORKER_OPT_BUDGET, "NAME[:WEIGHT]",                                              \
        "share the budget NAME with other jobs of this host (see 'nbdmirror budget'), with a "     \
        "weight of 1 to 100 (default 1)" },                                                        \
      { "compress", WORKER_OPT_COMPRESS, "[LEVEL]",                                                \
        "compress what is sent to a server of nbdmirror receive, where that is faster; at zstd's " \
        "LEVEL at most, 1 to 9 (default 6)" },                                                     \
      WORKER_SYNC_OPTIONS, WORKER_SPARSE_OPTION, WORKER_TIMEOUT_OPTIONS,                           \
      { "allow-unsafe-destination", WORKER_OPT_ALLOW_UNSAFE, NULL,                                 \
        "accept a destination that cannot flush: nothing that is written there is known to be "    \
        "safe" },                                                                                  \
      { "report", WORKER_OPT_REPORT, "FILE",                                                       \
        "write a JSON object about the whole job into FILE at the end" },                          \
  {                                                                                                \
    "json", 'j', NULL, "print that object on standard output, and no progress"                     \
  }

/* The values of these options.  All zero: the defaults, with give_up_ns set by the subcommand. */
struct worker_settings {
  uint64_t rate_limit;
  unsigned max_connections; /* --connections; 0: default */
  uint64_t give_up_ns;
  struct session_options dest;
  struct sync_options sync;
  char *budget; /* its name, in argv; NULL: none */
  unsigned budget_weight;
  const char *source_format, *dest_format; /* as for qemu-nbd; NULL: not said */
  enum engine_sparse sparse;
};

/* Handle option C with optarg.  Returns true if it is one of the options above.  *STATUS is set to
 * EXIT_USAGE if its value is bad, and is left alone otherwise. */
bool worker_option (int c, struct worker *w, struct worker_settings *s, int *status);

/* All options were read: do --sync and --base fit together?  0, or EXIT_USAGE after a message. */
int worker_check_sync (const struct sync_options *o);

/* Parse the value of --compress; NULL: the default.  False: a usage error was printed. */
bool worker_parse_level (const char *text, int *level);

/* Join the budget of --budget, if there is one; LABEL tells people what the job is.  False: it
 * could not be done, and a message was printed. */
bool worker_join_budget (const struct worker_settings *s, const char *label, struct budget **b);

/* Parse a time option; false: a usage error was printed. */
bool worker_parse_ms (const char *option, const char *text, uint64_t *ms);

/* A signal that comes again earlier than this is meant once: timeout(1) sends it to the process and
 * to its group, and a terminal that goes away sends SIGHUP as its shell does. */
#define WORKER_AGAIN_MS 500

/* SIGINT asks to cancel, SIGTERM and SIGHUP to detach; the same one again, WORKER_AGAIN_MS later or
 * more, kills.  Returns the descriptor to wait for, or -1. */
int worker_signals (_Atomic int **signal);
/* From now on no number of them kills. */
void worker_signals_never_kill (void);

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
