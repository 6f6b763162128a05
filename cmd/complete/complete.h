/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * complete: hand over one or several disks at one instant.  The work is in mirror/handoff/.
 *
 *   complete.c  the command line, and a hand-off from its beginning
 *   older.c     a hand-off that is there already
 *   tell.c      its end: sealing, hooks, and what is printed
 *
 * An orchestrator may take the steps apart: --prepare-only, and later --commit or --release in
 * another process.  In between the filters alone keep the hand-off, until its lease ends.
 *
 * One thread, but for those that the coordinator starts.
 */

#ifndef NBDMIRROR_CMD_COMPLETE_COMPLETE_H
#define NBDMIRROR_CMD_COMPLETE_COMPLETE_H

#include <stdbool.h>

#include "cmd/cmd.h"
#include "cmd/hooks.h"
#include "mirror/handoff/coordinator.h"
#include "mirror/handoff/seal-disks.h"

enum complete_mode { COMPLETE_ALL, COMPLETE_PREPARE_ONLY, COMPLETE_COMMIT, COMPLETE_RELEASE };

struct complete {
  char **controls;
  unsigned nr;
  enum complete_mode mode;
  struct coordinator_options opts;
  struct hooks hooks;
  bool json;
  struct coordinator_seal *seals; /* of each disk; NULL before the commit */
};

/* Go on with the hand-off that is there, as the mode says.  Returns the exit status. */
int complete_older (struct complete *c);

/* Seal every destination, and warn where that failed.  EXIT_DONE, or EXIT_DEST_FAILED. */
int complete_seal (struct complete *c);
/* Seal, run the hooks, and tell how it ended.  R is what coordinator_finalize() returned, with
 * REASON.  Returns the exit status. */
int complete_finish (struct complete *c, const struct coordinator_result *result, int r,
                     const char *reason);
/* The object that --json prints where nothing was handed over, because of REASON. */
void complete_print_refusal (const struct complete *c, const char *reason);
/* The same where all was handed over earlier, with this rollback token. */
void complete_print_done (const struct complete *c, const char *token, const char *reason);
void complete_print_prepared (const struct complete *c, const struct coordinator *h);

#endif
