/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Commands that the user has given for the turns of a hand-off: --on-ready-exec,
 * --before-hold-exec, --after-commit-exec, --on-abort-exec.  /bin/sh -c runs them, with standard
 * input from /dev/null, standard output on our standard error, and these variables in addition to
 * our own environment:
 *
 *   NBDMIRROR_EVENT     ready, before-hold, after-commit or abort
 *   NBDMIRROR_CONTROLS  the control sockets, one a line
 *   NBDMIRROR_CONTROL   the first of them
 *   NBDMIRROR_TOKEN     the rollback token (after-commit)
 *   NBDMIRROR_REASON    why (abort), in words
 */

#ifndef NBDMIRROR_CMD_HOOKS_H
#define NBDMIRROR_CMD_HOOKS_H

#include <stdbool.h>

#define HOOK_TIMEOUT_MS 30000

enum hook { HOOK_READY, HOOK_BEFORE_HOLD, HOOK_AFTER_COMMIT, HOOK_ABORT, HOOKS };

struct hooks {
  const char *command[HOOKS]; /* NULL: none */
  char *const *controls;
  unsigned nr_controls;
};

/* The four options, for a getopt table. */
#define HOOK_OPT 0x700
#define HOOK_LONG_OPTION(name, hook)                                                               \
  {                                                                                                \
    name, required_argument, NULL, HOOK_OPT + (hook)                                               \
  }
#define HOOK_LONG_OPTIONS                                                                          \
  HOOK_LONG_OPTION ("before-hold-exec", HOOK_BEFORE_HOLD),                                         \
      HOOK_LONG_OPTION ("after-commit-exec", HOOK_AFTER_COMMIT),                                   \
      HOOK_LONG_OPTION ("on-abort-exec", HOOK_ABORT)
#define HOOK_READY_OPTION HOOK_LONG_OPTION ("on-ready-exec", HOOK_READY)
#define HOOK_READY_HELP                                                                            \
  "  --on-ready-exec CMD      run CMD with /bin/sh once everything is ready to be handed over\n"
#define HOOK_OPTIONS_HELP                                                                          \
  "  --before-hold-exec CMD   run CMD before guest writes are held; if it fails nothing is\n"      \
  "                           handed over\n"                                                       \
  "  --after-commit-exec CMD  run CMD after the hand-over\n"                                       \
  "  --on-abort-exec CMD      run CMD when it ends without a hand-over\n"

/* True: C is one of them, and its command was taken. */
bool hook_option (struct hooks *h, int c);

/* Run the command and wait for it.  After HOOK_TIMEOUT_MS it is killed, with all that it started.
 * TOKEN and REASON may be NULL.  0: there is no command, or it succeeded.  -1 with *ERROR, for
 * text_free().  May be called from any thread. */
int hook_run (const struct hooks *h, enum hook which, const char *token, const char *reason,
              char **error);

/* The same, but a failure is only warned about. */
void hook_run_warn (const struct hooks *h, enum hook which, const char *token, const char *reason);

/* Warn that the command is not run, and WHY.  Does nothing if there is no command. */
void hook_not_run (const struct hooks *h, enum hook which, const char *why);

#endif
