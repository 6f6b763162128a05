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

/* The four options, for a table. */
#define HOOK_OPT 0x700
#define HOOK_READY_OPTION                                                                          \
  {                                                                                                \
    "on-ready-exec", HOOK_OPT + HOOK_READY, "COMMAND",                                             \
        "run COMMAND with /bin/sh once everything is ready to be handed over"                      \
  }
#define HOOK_OPTIONS                                                                               \
  { "before-hold-exec", HOOK_OPT + HOOK_BEFORE_HOLD, "COMMAND",                                    \
    "run COMMAND before guest writes are held; if it fails nothing is handed over" },              \
      { "after-commit-exec", HOOK_OPT + HOOK_AFTER_COMMIT, "COMMAND",                              \
        "run COMMAND after the hand-over" },                                                       \
  {                                                                                                \
    "on-abort-exec", HOOK_OPT + HOOK_ABORT, "COMMAND",                                             \
        "run COMMAND when the job ends without a hand-over"                                        \
  }

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
