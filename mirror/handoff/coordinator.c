/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The coordinator of a hand-off (see handoff.h for the steps).  What is done to one disk is in
 * disk.c; to finish what another process prepared, in later.c.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "mirror/handoff/internal.h"

#define TOKEN_BYTES 16

/* ---- the token ------------------------------------------------------------------------------ */

bool
handoff_token_ok (const char *token)
{
  size_t len = strspn (token, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");

  return len >= 1 && len <= HANDOFF_TOKEN_MAX && token[len] == '\0';
}

static int
make_token (char token[HANDOFF_TOKEN_MAX + 1], const char *chosen, char **error)
{
  unsigned char bytes[TOKEN_BYTES];
  unsigned i;

  if (chosen != NULL) {
    if (!handoff_token_ok (chosen)) {
      if (asprintf (error, "rollback token '%s': 1 to %d characters of A-Z a-z 0-9 . _ -", chosen,
                    HANDOFF_TOKEN_MAX)
          == -1)
        *error = NULL;
      return -1;
    }
    strcpy (token, chosen);
    return 0;
  }
  if (getrandom (bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes) {
    if (asprintf (error, "getrandom: %s", strerror (errno)) == -1)
      *error = NULL;
    return -1;
  }
  for (i = 0; i < TOKEN_BYTES; i++)
    sprintf (token + 2 * i, "%02x", bytes[i]);
  return 0;
}

/* ---- making one ----------------------------------------------------------------------------- */

struct handoff *
handoff_alloc (char *const controls[], unsigned nr, char **error)
{
  struct handoff *h = calloc (1, sizeof *h);
  unsigned i;

  if (h != NULL)
    h->disks = calloc (nr != 0 ? nr : 1, sizeof *h->disks);
  if (h == NULL || h->disks == NULL || nr == 0) {
    *error = strdup (nr == 0 ? "no disk to hand over" : "out of memory");
    handoff_free (h);
    return NULL;
  }
  h->nr = nr;
  for (i = 0; i < nr; i++) {
    h->disks[i].control = controls[i];
    h->disks[i].downtime_ms = -1;
  }
  return h;
}

void
handoff_free (struct handoff *h)
{
  unsigned i;

  if (h == NULL)
    return;
  for (i = 0; i < h->nr; i++) {
    control_client_free (h->disks[i].client);
    handoff_disk_forget_error (&h->disks[i]);
  }
  free (h->disks);
  decision_free (h->decision);
  free (h);
}

static unsigned
default_lease_ms (double max_downtime)
{
  unsigned lease_ms = (unsigned)(2 * (max_downtime > 1e6 ? 1e6 : max_downtime));

  return lease_ms < HANDOFF_MIN_LEASE_MS ? HANDOFF_MIN_LEASE_MS : lease_ms;
}

struct handoff *
handoff_new (char *const controls[], unsigned nr, const struct handoff_options *opts, char **error)
{
  struct handoff *h = handoff_alloc (controls, nr, error);
  double max_downtime = 0;
  unsigned i;

  if (h == NULL)
    return NULL;
  if (make_token (h->token, opts->token, error) == -1) {
    handoff_free (h);
    return NULL;
  }
  for (i = 0; i < nr; i++)
    if (handoff_disk_connect (&h->disks[i], &max_downtime) == -1) {
      *error = handoff_join_errors (h->disks, nr, "");
      handoff_free (h);
      return NULL;
    }
  for (i = 0; i < nr; i++) {
    h->disks[i].token = h->token;
    h->disks[i].waiters = opts->waiters != NULL ? opts->waiters : "error";
    h->disks[i].successor = opts->successor;
    h->disks[i].guest_stopped = opts->guest_stopped;
    h->disks[i].timeout_ms = opts->timeout_ms != 0 ? opts->timeout_ms : HANDOFF_TIMEOUT_MS;
    h->disks[i].lease_ms = opts->lease_ms != 0 ? opts->lease_ms : default_lease_ms (max_downtime);
  }
  return h;
}

bool
handoff_has_word (const struct handoff *h)
{
  return h->decision != NULL;
}

const char *
handoff_token (const struct handoff *h)
{
  return h->token;
}

long long
handoff_generation (const struct handoff *h, unsigned disk)
{
  return h->disks[disk].generation;
}

/* ---- the steps ------------------------------------------------------------------------------ */

/* Every prepare needs a word of its own: the last one may say "abort". */
static int
fresh_word (struct handoff *h, char **error)
{
  unsigned i;

  decision_free (h->decision);
  h->decision = decision_create (error);
  for (i = 0; i < h->nr; i++) {
    h->disks[i].decision = h->decision;
    h->disks[i].generation = 0;
    handoff_disk_forget_error (&h->disks[i]);
  }
  return h->decision != NULL ? 0 : -1;
}

/* Did it fail only because a job was not ready?  The others were then told to give up. */
static bool
only_not_ready (const struct handoff *h)
{
  bool not_ready = false;
  unsigned i;

  for (i = 0; i < h->nr; i++) {
    const struct handoff_disk *d = &h->disks[i];

    if (d->error == NULL)
      continue;
    if (d->class_ == NULL)
      return false;
    if (strcmp (d->class_, "NotReady") == 0)
      not_ready = true;
    else if (strcmp (d->class_, "GenericError") != 0)
      return false;
  }
  return not_ready;
}

int
handoff_prepare (struct handoff *h, bool *not_ready, char **error)
{
  if (not_ready != NULL)
    *not_ready = false;
  if (fresh_word (h, error) == -1)
    return -1;
  handoff_all_disks (h->disks, h->nr, handoff_disk_prepare);
  if (!handoff_any_error (h->disks, h->nr))
    return 0;
  *error = handoff_join_errors (h->disks, h->nr, "");
  if (not_ready != NULL)
    *not_ready = only_not_ready (h);
  handoff_release (h);
  return -1;
}

int
handoff_keep (struct handoff *h, char **error)
{
  handoff_all_disks (h->disks, h->nr, handoff_disk_keep);
  if (!handoff_any_error (h->disks, h->nr))
    return 0;
  *error = handoff_join_errors (h->disks, h->nr, "");
  handoff_release (h);
  return -1;
}

enum decision_value
handoff_decided (const struct handoff *h)
{
  return h->decision != NULL ? decision_get (h->decision) : DECISION_UNDECIDED;
}

int
handoff_commit (struct handoff *h, char **error)
{
  /* No word to be had: the disks were all in doubt, and finalizing says how it ended. */
  if (h->decision == NULL || decision_try (h->decision, DECISION_COMMIT) == DECISION_COMMIT)
    return 0;
  if (h->disks[0].lease_ms == 0) /* another process chose it */
    *error = strdup ("the lease ended before the commit: nothing was handed over");
  else if (asprintf (error, "a lease of %u ms ended before the commit: nothing was handed over",
                     h->disks[0].lease_ms)
           == -1)
    *error = NULL;
  handoff_release (h);
  return -1;
}

int
handoff_finalize (struct handoff *h, struct handoff_result *result, char **error)
{
  unsigned i;

  result->committed = true;
  strcpy (result->token, h->token);
  handoff_all_disks (h->disks, h->nr, handoff_disk_finalize);
  for (i = 0; i < h->nr && result->downtime_ms != NULL; i++)
    result->downtime_ms[i] = h->disks[i].downtime_ms;
  if (!handoff_any_error (h->disks, h->nr))
    return 0;
  *error = handoff_join_errors (h->disks, h->nr,
                                "the hand-off is committed, but not every filter confirmed it: ");
  return -1;
}

enum decision_value
handoff_release (struct handoff *h)
{
  enum decision_value v = DECISION_ABORT;

  if (h->decision != NULL)
    v = decision_try (h->decision, DECISION_ABORT);
  if (v != DECISION_COMMIT)
    handoff_all_disks (h->disks, h->nr, handoff_disk_release);
  return v;
}

/* ---- all of it ------------------------------------------------------------------------------ */

int
handoff_result_init (struct handoff_result *result, unsigned nr)
{
  unsigned i;

  *result = (struct handoff_result){ .nr = nr };
  result->downtime_ms = calloc (nr != 0 ? nr : 1, sizeof *result->downtime_ms);
  for (i = 0; i < nr && result->downtime_ms != NULL; i++)
    result->downtime_ms[i] = -1;
  return result->downtime_ms != NULL ? 0 : -1;
}

void
handoff_result_free (struct handoff_result *result)
{
  free (result->downtime_ms);
  result->downtime_ms = NULL;
}

int
handoff_run (char *const controls[], unsigned nr, const struct handoff_options *opts,
             struct handoff_result *result, char **error)
{
  struct handoff *h;
  int r = -1;

  *error = NULL;
  if (handoff_result_init (result, nr) == -1) {
    *error = strdup ("out of memory");
    return -1;
  }
  h = handoff_new (controls, nr, opts, error);
  if (h == NULL)
    return -1;
  if ((opts->before_hold == NULL || opts->before_hold (opts->opaque, error) == 0)
      && handoff_prepare (h, NULL, error) == 0 && handoff_commit (h, error) == 0)
    r = handoff_finalize (h, result, error);
  handoff_free (h);
  return r;
}
