/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Finishing a hand-off that another process prepared.  Each filter is asked where its disk stands.
 * Those that hold their guests hand out the decision word again, so that the commit stays one
 * compare-and-swap, whoever makes it.
 *
 *   the disks                                          found
 *   ------------------------------------------------   -------------------------------------------
 *   every one is prepared, or in doubt                 UNDECIDED, or COMMITTED if the word says so
 *   one has committed, or the word says "commit"       COMMITTED: the others are finalized; one
 *                                                      that takes no part in it is told
 *   every one has committed, but for disks that QEMU   DONE: their workers end after the commit,
 *   has open by itself                                 and nothing records it
 *   one takes no part (any more), none has committed   BROKEN: the word can only go to "abort"
 *   none takes part                                    NONE
 *   QEMU has every one open by itself, and their       ENDED: after the commit, or without one
 *   workers have ended
 *
 * A disk is in doubt when its server was restarted after it was prepared.  That server refuses
 * writes, so nothing was written to the disk since, and it may still be committed.  After a restart
 * of the host a disk that was not prepared yet looks the same.  So whoever commits must know that
 * all disks were prepared: --commit needs the token, which is told only then, and `migrate` looks
 * at the destination.
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "control/name.h"
#include "mirror/handoff/internal.h"

#define END_MS 1000
#define END_LOOK_MS 20

static enum handoff_standing
standing_of (const char *decision, bool has_word)
{
  if (decision == NULL)
    return STANDING_UNKNOWN;
  if (strcmp (decision, "commit") == 0)
    return STANDING_COMMITTED;
  if (strcmp (decision, "in-doubt") == 0)
    return STANDING_IN_DOUBT;
  if (strcmp (decision, "undecided") == 0 && has_word)
    return STANDING_PREPARED;
  return STANDING_NONE; /* abort */
}

/* The worker of a disk that QEMU has open by itself ends soon after its job, perhaps while it is
 * asked.  Nothing else keeps such a disk. */
static bool
has_no_worker (const struct coordinator_disk *d, int limit_ms)
{
  bool none = false;

  for (int waited = 0; control_is_of_qemu (d->control); waited += END_LOOK_MS) {
    none = control_nobody_listens (d->control);
    if (none || waited >= limit_ms)
      break;
    clock_sleep_ms (END_LOOK_MS);
  }
  return none;
}

static void
ask_server (struct coordinator_disk *d)
{
  char *message = NULL, *class_ = NULL;
  json_t *ret = NULL;
  double ignored = 0;
  int fd = -1;

  if (coordinator_disk_connect (d, &ignored) == -1)
    return;
  struct control_call call = { .command = "mirror-decision",
                               .timeout_ms = coordinator_disk_limit (d),
                               .ret = &ret,
                               .got_fd = &fd,
                               .class_ = &class_ };
  if (control_client_call (d->client, &call, &message) == -1) {
    if (class_ != NULL && strcmp (class_, "DeviceNotActive") == 0)
      d->standing = STANDING_NONE;
    else
      coordinator_disk_error (d, text_copy (message));
    text_free (message);
    text_free (class_);
    return;
  }
  d->standing = standing_of (json_string_value (json_object_get (ret, "decision")), fd != -1);
  d->generation = json_integer_value (json_object_get (ret, "generation"));
  const char *token = json_string_value (json_object_get (ret, "rollback-token"));
  snprintf (d->its_token, sizeof d->its_token, "%s", token != NULL ? token : "");
  if (fd != -1) {
    d->decision = decision_map (fd, &message);
    if (d->decision == NULL)
      coordinator_disk_error (d, message);
    close (fd);
  }
  json_decref (ret);
}

/* Ask; a word that was received goes to d->decision. */
static void *
ask (void *opaque)
{
  struct coordinator_disk *d = opaque;

  if (has_no_worker (d, 0))
    d->standing = STANDING_ENDED;
  else
    ask_server (d);
  if (d->error != NULL && has_no_worker (d, END_MS)) {
    text_free (d->error);
    d->error = NULL;
    d->standing = STANDING_ENDED;
  }
  return NULL;
}

/* Keep one word; all must be the same. */
static int
share_word (struct coordinator *c, char **error)
{
  struct stat ours, its;
  const char *owner = NULL;
  int r = 0;

  for (unsigned i = 0; i < c->nr; i++) {
    struct coordinator_disk *d = &c->disks[i];

    if (d->decision == NULL)
      continue;
    if (c->decision == NULL) {
      c->decision = d->decision;
      owner = d->control;
      continue;
    }
    if (fstat (c->decision->fd, &ours) == -1 || fstat (d->decision->fd, &its) == -1
        || ours.st_ino != its.st_ino || ours.st_dev != its.st_dev)
      r = -1;
    if (r == -1 && *error == NULL)
      text_error (error, "%s and %s belong to different hand-overs", owner, d->control);
    decision_free (d->decision);
  }
  for (unsigned i = 0; i < c->nr; i++)
    c->disks[i].decision = c->decision;
  return r;
}

/* All in it have one token, the one that was asked for. */
static int
share_token (struct coordinator *c, const char *token, char **error)
{
  const char *want = token;

  for (unsigned i = 0; i < c->nr; i++) {
    const struct coordinator_disk *d = &c->disks[i];

    if (!coordinator_disk_takes_part (d))
      continue;
    if (want == NULL)
      want = d->its_token;
    if (strcmp (want, d->its_token) != 0)
      return text_error (error, "%s: its hand-over has another token than %s", d->control,
                         token != NULL ? "the one given" : "the other disks'");
  }
  snprintf (c->token, sizeof c->token, "%s", want != NULL ? want : "");
  for (unsigned i = 0; i < c->nr; i++)
    c->disks[i].token = c->token;
  return 0;
}

static enum handoff_found
judge (const struct coordinator *c, char **error)
{
  unsigned done = 0, ended = 0;
  bool committed = c->decision != NULL && decision_get (c->decision) == DECISION_COMMIT;
  const char *in = NULL, *missing = NULL, *gone = NULL;

  for (unsigned i = 0; i < c->nr; i++) {
    const struct coordinator_disk *d = &c->disks[i];

    done += d->standing == STANDING_COMMITTED;
    ended += d->standing == STANDING_ENDED;
    if (d->standing == STANDING_NONE)
      missing = d->control;
    else if (d->standing == STANDING_ENDED)
      gone = d->control;
    else
      in = d->control;
  }
  if (in == NULL)
    return ended == c->nr ? HANDOFF_FOUND_ENDED : HANDOFF_FOUND_NONE;
  if (done > 0 && done + ended == c->nr)
    return HANDOFF_FOUND_DONE;
  if (missing == NULL && !committed && done == 0)
    missing = gone; /* after the commit it has ended as it should */
  if (missing != NULL)
    text_error (error, "%s takes no part in the hand-over of %s (any more)", missing, in);
  if (committed || done > 0)
    return HANDOFF_FOUND_COMMITTED;
  return missing != NULL ? HANDOFF_FOUND_BROKEN : HANDOFF_FOUND_UNDECIDED;
}

struct coordinator *
coordinator_find (char *const controls[], unsigned nr, const char *token, unsigned timeout_ms,
                  enum handoff_found *found, char **error)
{
  *error = NULL;
  *found = HANDOFF_FOUND_NONE;
  struct coordinator *c = coordinator_alloc (controls, nr, error);
  if (c == NULL)
    return NULL;
  for (unsigned i = 0; i < nr; i++)
    c->disks[i].timeout_ms = timeout_ms;
  coordinator_all_disks (c->disks, nr, ask);
  bool ok = share_word (c, error) == 0;
  if (coordinator_any_error (c->disks, nr)) {
    text_free (*error);
    *error = coordinator_join_errors (c->disks, nr, "");
    ok = false;
  }
  if (ok && share_token (c, token, error) == 0) {
    *found = judge (c, error);
    return c;
  }
  coordinator_free (c);
  return NULL;
}
