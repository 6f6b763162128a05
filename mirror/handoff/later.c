/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Finishing a hand-off that another process prepared.  Each filter is asked where it stands; those
 * that hold their guests hand out the decision word again, so that committing stays one
 * compare-and-swap.
 *
 *   every disk prepared                          undecided, or as the word says
 *   any disk committed, or the word says so      committed: the others are finalized
 *   prepared or in doubt, none committed         undecided: nothing was written to a disk in doubt
 * since it was prepared, its server refuses writes some are not in it (released), none committed
 * broken: the word can only go to "abort"
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mirror/handoff/internal.h"

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

/* Ask; a word that was received goes to d->decision. */
static void *
ask (void *opaque)
{
  struct handoff_disk *d = opaque;
  char *message = NULL, *class_ = NULL;
  const char *token;
  json_t *ret = NULL;
  double ignored = 0;
  int fd = -1;

  if (handoff_disk_connect (d, &ignored) == -1)
    return NULL;
  struct control_call call = { .command = "mirror-decision",
                               .timeout_ms = HANDOFF_CALL_MS,
                               .ret = &ret,
                               .got_fd = &fd,
                               .class_ = &class_ };
  if (control_client_call (d->client, &call, &message) == -1) {
    if (class_ != NULL && strcmp (class_, "DeviceNotActive") == 0)
      d->standing = STANDING_NONE;
    else
      handoff_disk_error (d, strdup (message != NULL ? message : "out of memory"));
    free (message);
    free (class_);
    return NULL;
  }
  d->standing = standing_of (json_string_value (json_object_get (ret, "decision")), fd != -1);
  d->generation = json_integer_value (json_object_get (ret, "generation"));
  token = json_string_value (json_object_get (ret, "rollback-token"));
  snprintf (d->its_token, sizeof d->its_token, "%s", token != NULL ? token : "");
  if (fd != -1) {
    d->decision = decision_map (fd, &message);
    if (d->decision == NULL)
      handoff_disk_error (d, message);
    close (fd);
  }
  json_decref (ret);
  return NULL;
}

/* Keep one word; all must be the same. */
static int
share_word (struct handoff *h, char **error)
{
  struct stat ours, its;
  const char *owner = NULL;
  unsigned i;
  int r = 0;

  for (i = 0; i < h->nr; i++) {
    struct handoff_disk *d = &h->disks[i];

    if (d->decision == NULL)
      continue;
    if (h->decision == NULL) {
      h->decision = d->decision;
      owner = d->control;
      continue;
    }
    if (fstat (h->decision->fd, &ours) == -1 || fstat (d->decision->fd, &its) == -1
        || ours.st_ino != its.st_ino || ours.st_dev != its.st_dev)
      r = -1;
    if (r == -1 && *error == NULL
        && asprintf (error, "%s and %s belong to different hand-offs", owner, d->control) == -1)
      *error = NULL;
    decision_free (d->decision);
  }
  for (i = 0; i < h->nr; i++)
    h->disks[i].decision = h->decision;
  return r;
}

/* All in it have one token, the one that was asked for. */
static int
share_token (struct handoff *h, const char *token, char **error)
{
  const char *want = token;
  unsigned i;

  for (i = 0; i < h->nr; i++) {
    const struct handoff_disk *d = &h->disks[i];

    if (d->standing == STANDING_NONE)
      continue;
    if (want == NULL)
      want = d->its_token;
    if (strcmp (want, d->its_token) != 0) {
      if (asprintf (error, "%s: its hand-off has another token than %s", d->control,
                    token != NULL ? "the one given" : "the other disks'")
          == -1)
        *error = NULL;
      return -1;
    }
  }
  snprintf (h->token, sizeof h->token, "%s", want != NULL ? want : "");
  for (i = 0; i < h->nr; i++)
    h->disks[i].token = h->token;
  return 0;
}

static enum handoff_found
judge (const struct handoff *h, char **error)
{
  unsigned i, in = 0, done = 0;
  bool committed = h->decision != NULL && decision_get (h->decision) == DECISION_COMMIT;
  const char *missing = NULL;

  for (i = 0; i < h->nr; i++) {
    done += h->disks[i].standing == STANDING_COMMITTED;
    if (h->disks[i].standing == STANDING_NONE)
      missing = h->disks[i].control;
    else
      in++;
  }
  if (in == 0)
    return HANDOFF_FOUND_NONE;
  if (done == h->nr)
    return HANDOFF_FOUND_DONE;
  if (missing != NULL
      && asprintf (error, "%s takes no part in the hand-off (any more)", missing) == -1)
    *error = NULL;
  if (committed || done > 0)
    return HANDOFF_FOUND_COMMITTED;
  return missing != NULL ? HANDOFF_FOUND_BROKEN : HANDOFF_FOUND_UNDECIDED;
}

struct handoff *
handoff_find (char *const controls[], unsigned nr, const char *token, enum handoff_found *found,
              char **error)
{
  struct handoff *h;
  bool ok;

  *error = NULL;
  *found = HANDOFF_FOUND_NONE;
  h = handoff_alloc (controls, nr, error);
  if (h == NULL)
    return NULL;
  handoff_all_disks (h->disks, nr, ask);
  ok = share_word (h, error) == 0;
  if (handoff_any_error (h->disks, nr)) {
    free (*error);
    *error = handoff_join_errors (h->disks, nr, "");
    ok = false;
  }
  if (ok && share_token (h, token, error) == 0) {
    *found = judge (h, error);
    return h;
  }
  handoff_free (h);
  return NULL;
}
