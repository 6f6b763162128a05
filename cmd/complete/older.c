/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * `complete` finds a hand-off of these disks that is there already: one that --prepare-only has
 * left, or one whose coordinator was killed.
 */

#include "config.h"

#include <string.h>

#include "base/text.h"
#include "cmd/complete/complete.h"

/* Commit H if that is still to be done, and finalize it. */
static int
finish_older (struct complete *c, struct coordinator *h, bool decide)
{
  struct coordinator_result result;
  char *reason = NULL;
  int r = -1;

  if (coordinator_result_init (&result, c->nr) == -1) {
    cmd_say ("out of memory");
    return EXIT_ERROR;
  }
  if (!decide || coordinator_commit (h, &reason) == 0)
    r = coordinator_finalize (h, &result, &reason);
  r = complete_finish (c, &result, r, reason);
  coordinator_result_free (&result);
  text_free (reason);
  return r;
}

static void
say_rollback_only (const struct complete *c)
{
  cmd_say ("%s: handed over already: only a rollback makes the source writable again",
           c->controls[0]);
}

/* Nothing is done.  MESSAGE is stolen. */
static int
refuse (const struct complete *c, int status, char *message)
{
  cmd_say ("%s", message);
  complete_print_refusal (c, message);
  text_free (message);
  return status;
}

static int
release_older (struct complete *c, struct coordinator *h, const char *reason)
{
  if (coordinator_release (h) == DECISION_COMMIT) {
    say_rollback_only (c);
    return EXIT_REFUSED;
  }
  bool released = true;
  for (unsigned i = 0; i < c->nr; i++)
    if (coordinator_disk_fault (h, i) != NULL) {
      cmd_say ("%s: its guest cannot write yet, so release it once more",
               coordinator_disk_fault (h, i));
      released = false;
    }
  if (!released)
    return EXIT_ERROR;
  cmd_say ("released: every guest goes on at the source");
  hook_run_warn (&c->hooks, HOOK_ABORT, NULL, reason);
  return EXIT_DONE;
}

static int
commit_found (struct complete *c, struct coordinator *h, enum handoff_found found,
              const char *error)
{
  switch (found) {
  case HANDOFF_FOUND_NONE:
    return refuse (
        c, EXIT_ERROR,
        text_printf ("no hand-over of %s is prepared: it was released, or its lease has ended",
                     c->controls[0]));
  case HANDOFF_FOUND_BROKEN:
    release_older (c, h, error);
    return refuse (c, EXIT_ERROR,
                   text_printf ("%s: nothing can be handed over",
                                error != NULL ? error : "a disk is missing"));
  default:
    return finish_older (c, h, found == HANDOFF_FOUND_UNDECIDED);
  }
}

static int
release_found (struct complete *c, struct coordinator *h, enum handoff_found found)
{
  if (found == HANDOFF_FOUND_NONE) {
    cmd_say ("no hand-over of these disks is prepared: nothing to release");
    return EXIT_DONE;
  }
  if (found == HANDOFF_FOUND_COMMITTED || found == HANDOFF_FOUND_DONE) {
    say_rollback_only (c);
    return EXIT_REFUSED;
  }
  return release_older (c, h, "released");
}

/* A coordinator was killed, perhaps: finish what it had decided.  What it had not needs --commit or
 * --release. */
static int
rerun_found (struct complete *c, struct coordinator *h, enum handoff_found found)
{
  if (found == HANDOFF_FOUND_COMMITTED) {
    cmd_say ("this hand-over was decided already; finishing it");
    return finish_older (c, h, false);
  }
  if (found == HANDOFF_FOUND_DONE) {
    int sealed = complete_seal (c);
    cmd_say ("%s: it was handed over already, rollback token %s", c->controls[0],
             coordinator_token (h));
    complete_print_done (c, coordinator_token (h), "it was handed over already");
    return sealed != EXIT_DONE ? sealed : EXIT_ERROR;
  }
  const char *what
      = found == HANDOFF_FOUND_NONE
            ? "a hand-over was prepared, and has just ended"
            : "a hand-over is prepared, or in doubt: end it with --commit --token TOKEN,"
              " or with --release";
  return refuse (c, EXIT_ERROR, text_printf ("%s: %s", c->controls[0], what));
}

int
complete_older (struct complete *c)
{
  enum handoff_found found;
  char *error = NULL;
  struct coordinator *h
      = coordinator_find (c->controls, c->nr, c->opts.token, c->opts.timeout_ms, &found, &error);
  int r = EXIT_ERROR;

  if (found == HANDOFF_FOUND_ENDED) /* nothing is left here to be done */
    found = HANDOFF_FOUND_NONE;
  if (h == NULL)
    r = refuse (c, EXIT_ERROR, text_copy (error));
  else if (found == HANDOFF_FOUND_COMMITTED && error != NULL)
    /* The guest of the one that takes no part may run: nothing may be sealed or started. */
    r = refuse (c, EXIT_REFUSED,
                text_printf ("%s: nothing was done; name the disks of one hand-over only", error));
  else if (c->mode == COMPLETE_COMMIT)
    r = commit_found (c, h, found, error);
  else if (c->mode == COMPLETE_RELEASE)
    r = release_found (c, h, found);
  else
    r = rerun_found (c, h, found);
  coordinator_free (h);
  text_free (error);
  return r;
}
