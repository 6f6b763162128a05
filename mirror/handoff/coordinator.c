/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The steps of a hand-off, see coordinator.h.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/handoff/internal.h"

#define TOKEN_BYTES 16

/* ---- the token ------------------------------------------------------------------------------ */

static int
make_token (char token[ROLLBACK_TOKEN_MAX + 1], const char *chosen, char **error)
{
  if (chosen != NULL) {
    if (!rollback_token_valid (chosen))
      return text_error (error, "rollback token '%s': 1 to %d characters of A-Z a-z 0-9 . _ -",
                         chosen, ROLLBACK_TOKEN_MAX);
    strcpy (token, chosen);
    return 0;
  }
  unsigned char bytes[TOKEN_BYTES];
  if (getrandom (bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
    return text_error (error, "getrandom: %s", strerror (errno));
  for (unsigned i = 0; i < TOKEN_BYTES; i++)
    sprintf (token + 2 * i, "%02x", bytes[i]);
  return 0;
}

/* ---- making one ----------------------------------------------------------------------------- */

struct coordinator *
coordinator_alloc (char *const controls[], unsigned nr, char **error)
{
  struct coordinator *c = calloc (1, sizeof *c);

  if (c != NULL)
    c->disks = calloc (nr != 0 ? nr : 1, sizeof *c->disks);
  if (c == NULL || c->disks == NULL || nr == 0) {
    text_error (error, nr == 0 ? "no disk to hand over" : "out of memory");
    coordinator_free (c);
    return NULL;
  }
  c->nr = nr;
  for (unsigned i = 0; i < nr; i++) {
    c->disks[i].control = controls[i];
    c->disks[i].downtime_ms = -1;
  }
  return c;
}

void
coordinator_free (struct coordinator *c)
{
  if (c == NULL)
    return;
  for (unsigned i = 0; i < c->nr; i++) {
    control_client_free (c->disks[i].client);
    coordinator_disk_forget_error (&c->disks[i]);
  }
  free (c->disks);
  decision_free (c->decision);
  free (c);
}

/* Each disk's hold lasts until the last one is held, so the more there are the longer it takes. */
static unsigned
default_lease_ms (double max_downtime, unsigned nr)
{
  unsigned lease_ms = (unsigned)(2 * (max_downtime > 1e6 ? 1e6 : max_downtime));

  if (lease_ms < HANDOFF_MIN_LEASE_MS)
    lease_ms = HANDOFF_MIN_LEASE_MS;
  return lease_ms + (nr - 1) * HANDOFF_LEASE_PER_DISK_MS;
}

struct coordinator *
coordinator_new (char *const controls[], unsigned nr, const struct coordinator_options *opts,
                 char **error)
{
  struct coordinator *c = coordinator_alloc (controls, nr, error);
  double max_downtime = 0;

  if (c == NULL)
    return NULL;
  if (make_token (c->token, opts->token, error) == -1) {
    coordinator_free (c);
    return NULL;
  }
  for (unsigned i = 0; i < nr; i++)
    c->disks[i].timeout_ms = opts->timeout_ms != 0 ? opts->timeout_ms : HANDOFF_TIMEOUT_MS;
  for (unsigned i = 0; i < nr; i++)
    if (coordinator_disk_connect (&c->disks[i], &max_downtime) == -1) {
      *error = coordinator_join_errors (c->disks, nr, "");
      coordinator_free (c);
      return NULL;
    }
  for (unsigned i = 0; i < nr; i++) {
    c->disks[i].token = c->token;
    c->disks[i].waiters = opts->waiters != NULL ? opts->waiters : "error";
    c->disks[i].successor = opts->successor;
    c->disks[i].guest_stopped = opts->guest_stopped;
    c->disks[i].release = opts->release;
    c->disks[i].checkpoint
        = opts->checkpointed != NULL && opts->checkpointed[i] ? opts->checkpoint : NULL;
    c->disks[i].lease_ms
        = opts->lease_ms != 0 ? opts->lease_ms : default_lease_ms (max_downtime, nr);
    if (opts->timeout_ms == 0)
      c->disks[i].timeout_ms += c->disks[i].lease_ms;
  }
  return c;
}

bool
coordinator_has_word (const struct coordinator *c)
{
  return c->decision != NULL;
}

const char *
coordinator_token (const struct coordinator *c)
{
  return c->token;
}

long long
coordinator_generation (const struct coordinator *c, unsigned disk)
{
  return c->disks[disk].generation;
}

/* ---- the steps ------------------------------------------------------------------------------ */

/* Every prepare needs a word of its own: the last one may say "abort". */
static int
fresh_word (struct coordinator *c, char **error)
{
  decision_free (c->decision);
  c->decision = decision_create (error);
  for (unsigned i = 0; i < c->nr; i++) {
    c->disks[i].decision = c->decision;
    c->disks[i].generation = 0;
    coordinator_disk_forget_error (&c->disks[i]);
  }
  return c->decision != NULL ? 0 : -1;
}

/* Did it fail only because a job was not ready?  The others were then told to give up. */
static bool
only_not_ready (const struct coordinator *c)
{
  bool not_ready = false;

  for (unsigned i = 0; i < c->nr; i++) {
    const struct coordinator_disk *d = &c->disks[i];

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
coordinator_prepare (struct coordinator *c, bool *not_ready, char **error)
{
  if (not_ready != NULL)
    *not_ready = false;
  if (fresh_word (c, error) == -1)
    return -1;
  for (unsigned i = 0; i < c->nr; i++)
    c->disks[i].end_ms = clock_ms () + c->disks[i].timeout_ms;
  coordinator_all_disks (c->disks, c->nr, coordinator_disk_prepare);
  if (!coordinator_any_error (c->disks, c->nr))
    coordinator_checkpoint_prepare (c->disks, c->nr);
  if (!c->disks[0].guest_stopped && !coordinator_any_error (c->disks, c->nr))
    coordinator_prepare_now (c->disks, c->nr);
  if (!coordinator_any_error (c->disks, c->nr))
    return 0;
  *error = coordinator_join_errors (c->disks, c->nr, "");
  if (not_ready != NULL)
    *not_ready = only_not_ready (c);
  coordinator_release (c);
  return -1;
}

int
coordinator_keep (struct coordinator *c, char **error)
{
  coordinator_all_disks (c->disks, c->nr, coordinator_disk_keep);
  if (!coordinator_any_error (c->disks, c->nr))
    return 0;
  *error = coordinator_join_errors (c->disks, c->nr, "");
  coordinator_release (c);
  return -1;
}

enum decision_value
coordinator_decided (const struct coordinator *c)
{
  return c->decision != NULL ? decision_get (c->decision) : DECISION_UNDECIDED;
}

int
coordinator_commit (struct coordinator *c, char **error)
{
  /* No word to be had: the disks were all in doubt, and finalizing says how it ended. */
  if (c->decision == NULL || decision_try (c->decision, DECISION_COMMIT) == DECISION_COMMIT)
    return 0;
  if (c->disks[0].lease_ms == 0) /* another process chose it */
    text_error (error, "the lease ended before the commit: nothing was handed over");
  else
    text_error (error, "a lease of %u ms ended before the commit: %s", c->disks[0].lease_ms,
                c->disks[0].release ? "the disks have no common instant"
                                    : "nothing was handed over");
  coordinator_release (c);
  return -1;
}

int
coordinator_finalize (struct coordinator *c, struct coordinator_result *result, char **error)
{
  result->committed = true;
  strcpy (result->token, c->token);
  coordinator_finalize_all (c->disks, c->nr);
  for (unsigned i = 0; i < c->nr && result->downtime_ms != NULL; i++)
    result->downtime_ms[i] = c->disks[i].downtime_ms;
  if (!coordinator_any_error (c->disks, c->nr))
    return 0;
  *error = coordinator_join_errors (
      c->disks, c->nr, "the hand-over is committed, but not every filter confirmed it: ");
  return -1;
}

enum decision_value
coordinator_release (struct coordinator *c)
{
  enum decision_value v = DECISION_ABORT;

  if (c->decision != NULL)
    v = decision_try (c->decision, DECISION_ABORT);
  if (v != DECISION_COMMIT)
    coordinator_all_disks (c->disks, c->nr, coordinator_disk_release);
  return v;
}

/* ---- all of it ------------------------------------------------------------------------------ */

int
coordinator_result_init (struct coordinator_result *result, unsigned nr)
{
  *result = (struct coordinator_result){ .nr = nr };
  result->downtime_ms = calloc (nr != 0 ? nr : 1, sizeof *result->downtime_ms);
  for (unsigned i = 0; i < nr && result->downtime_ms != NULL; i++)
    result->downtime_ms[i] = -1;
  return result->downtime_ms != NULL ? 0 : -1;
}

void
coordinator_result_free (struct coordinator_result *result)
{
  free (result->downtime_ms);
  result->downtime_ms = NULL;
}

int
coordinator_run (char *const controls[], unsigned nr, const struct coordinator_options *opts,
                 struct coordinator_result *result, char **error)
{
  int r = -1;

  *error = NULL;
  if (coordinator_result_init (result, nr) == -1)
    return text_error (error, "out of memory");
  struct coordinator *c = coordinator_new (controls, nr, opts, error);
  if (c == NULL)
    return -1;
  if ((opts->before_hold == NULL || opts->before_hold (opts->opaque, error) == 0)
      && coordinator_prepare (c, NULL, error) == 0 && coordinator_commit (c, error) == 0)
    r = coordinator_finalize (c, result, error);
  coordinator_free (c);
  return r;
}
