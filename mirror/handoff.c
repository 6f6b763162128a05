/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The coordinator of a hand-off (see handoff.h for the steps).
 *
 * Each disk has a thread for the two long calls, prepare and finalize, because a control client belongs
 * to one thread and the disks must be held at the same time: one after the other, the first guest would
 * wait for the last disk.  Nothing is shared between these threads but the decision word.
 *
 * The first prepare that fails turns the word to "abort" at once, so that no other filter goes on holding
 * its guest for a hand-off that cannot happen any more.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include <jansson.h>

#include "control/client.h"
#include "control/decision.h"
#include "mirror/handoff.h"

#define TOKEN_BYTES 16
#define CONNECT_MS 10000
#define CALL_MS 10000
#define FINALIZE_TRIES 3

struct disk {
  const char *control;
  struct control_client *client;
  struct decision *decision; /* shared by all disks */
  const char *token, *waiters, *successor;
  unsigned lease_ms, timeout_ms;
  pthread_t thread;
  bool started;
  json_int_t generation;
  double downtime_ms;
  char *error; /* owned; NULL: fine so far */
};

/* ---- messages ------------------------------------------------------------------------------- */

/* DISK's path, then MESSAGE (stolen, may be NULL), unless it names the path already. */
static void
set_error (struct disk *d, char *message)
{
  char *full = NULL;

  if (message != NULL && strstr (message, d->control) != NULL)
    full = message;
  else {
    if (asprintf (&full, "%s: %s", d->control, message != NULL ? message : "out of memory") == -1)
      full = NULL;
    free (message);
  }
  free (d->error);
  d->error = full != NULL ? full : strdup ("out of memory");
}

/* All errors in one message: which disks, and why. */
static char *
join_errors (const struct disk *disks, unsigned nr, const char *prefix)
{
  char *all = NULL, *next;
  unsigned i;

  for (i = 0; i < nr; i++)
    if (disks[i].error != NULL) {
      int r = asprintf (&next, "%s%s%s", all != NULL ? all : prefix, all != NULL ? "; " : "",
                        disks[i].error);

      free (all);
      if (r == -1)
        return NULL;
      all = next;
    }
  return all;
}

static bool
any_error (const struct disk *disks, unsigned nr)
{
  unsigned i;

  for (i = 0; i < nr; i++)
    if (disks[i].error != NULL)
      return true;
  return false;
}

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
                    HANDOFF_TOKEN_MAX) == -1)
        *error = NULL;
      return -1;
    }
    strcpy (token, chosen);
    return 0;
  }
  if (getrandom (bytes, sizeof bytes, 0) != (ssize_t) sizeof bytes) {
    if (asprintf (error, "getrandom: %s", strerror (errno)) == -1)
      *error = NULL;
    return -1;
  }
  for (i = 0; i < TOKEN_BYTES; i++)
    sprintf (token + 2 * i, "%02x", bytes[i]);
  return 0;
}

/* ---- what is done to one disk --------------------------------------------------------------- */

/* Connect, and learn max-downtime-ms (into *MAX_DOWNTIME, if it is larger). */
static int
connect_disk (struct disk *d, double *max_downtime)
{
  char *message = NULL;
  json_t *status = NULL, *value;

  d->client = control_client_connect (d->control, CONNECT_MS, &message);
  if (d->client == NULL
      || control_client_call (d->client, "query-mirror", NULL, -1, CALL_MS, &status, NULL, NULL,
                              &message) == -1) {
    set_error (d, message);
    return -1;
  }
  value = json_object_get (status, "max-downtime-ms");
  if (json_is_number (value) && json_number_value (value) > *max_downtime)
    *max_downtime = json_number_value (value);
  json_decref (status);
  return 0;
}

/* An answer was refused or never came. CLASS_ and MESSAGE are stolen. */
static void
set_prepare_error (struct disk *d, char *class_, char *message)
{
  char *full;

  if (class_ != NULL && strcmp (class_, "LeaseEnded") == 0
      && asprintf (&full, "the guest was let go after the lease of %u ms (%s)", d->lease_ms,
                   message != NULL ? message : class_) != -1) {
    free (message);
    message = full;
  }
  free (class_);
  set_error (d, message);
}

static void *
prepare_disk (void *opaque)
{
  struct disk *d = opaque;
  char *message = NULL, *class_ = NULL;
  json_t *ret = NULL, *generation;
  json_t *args = json_pack ("{s:I, s:s, s:s, s:s*}", "lease-ms", (json_int_t) d->lease_ms,
                            "rollback-token", d->token, "waiters", d->waiters, "successor", d->successor);

  if (control_client_call (d->client, "mirror-prepare", args, d->decision->fd, (int) d->timeout_ms,
                           &ret, NULL, &class_, &message) == -1) {
    decision_try (d->decision, DECISION_ABORT);
    /* It has no name of its own in the client. */
    if (class_ == NULL && message != NULL && strstr (message, " in time (") != NULL) {
      free (message);
      if (asprintf (&message, "not prepared within %u ms (--timeout); the guest goes on", d->timeout_ms) == -1)
        message = NULL;
    }
    set_prepare_error (d, class_, message);
    return NULL;
  }
  generation = json_object_get (ret, "generation");
  if (json_is_integer (generation))
    d->generation = json_integer_value (generation);
  else {
    decision_try (d->decision, DECISION_ABORT);
    set_error (d, strdup ("mirror-prepare answered without a generation"));
  }
  json_decref (ret);
  return NULL;
}

/* The commit stands already: a lost connection is made anew and the question repeated, which the
 * filter answers alike. */
static void *
finalize_disk (void *opaque)
{
  static const struct timespec pause = { 0, 200 * 1000000L };
  struct disk *d = opaque;
  char *message = NULL;
  json_t *ret = NULL, *value;
  int try;

  for (try = 0; try < FINALIZE_TRIES; try++) {
    if (try > 0) {
      control_client_free (d->client);
      nanosleep (&pause, NULL);
      free (message);
      message = NULL;
      d->client = control_client_connect (d->control, CONNECT_MS, &message);
      if (d->client == NULL)
        continue;
    }
    if (control_client_call (d->client, "job-finalize",
                             json_pack ("{s:I}", "generation", d->generation), -1, CALL_MS, &ret,
                             NULL, NULL, &message) == 0) {
      value = json_object_get (ret, "downtime-ms");
      if (json_is_number (value))
        d->downtime_ms = json_number_value (value);
      json_decref (ret);
      return NULL;
    }
  }
  set_error (d, message);
  return NULL;
}

/* Whose hand-off is given up: over a new connection only its generation tells. */
static json_t *
release_args (const struct disk *d)
{
  return d->generation > 0 ? json_pack ("{s:I}", "generation", d->generation) : NULL;
}

/* The word says "abort" already, so every filter opens its gate by itself; this makes it at once.  A
 * connection that was lost, or whose prepare is not answered, is made anew. */
static void *
release_disk (void *opaque)
{
  struct disk *d = opaque;
  char *message = NULL;

  if (d->client == NULL
      || control_client_call (d->client, "mirror-release", release_args (d), -1, CALL_MS, NULL, NULL,
                              NULL, &message) == 0)
    return NULL;
  free (message); /* often: nothing is held there any more */
  control_client_free (d->client);
  d->client = control_client_connect (d->control, CONNECT_MS, &message);
  if (d->client != NULL)
    control_client_call (d->client, "mirror-release", release_args (d), -1, CALL_MS, NULL, NULL, NULL,
                         &message);
  free (message); /* the first error is the one to report */
  return NULL;
}

/* Run STEP for all disks at the same time and wait for all. */
static void
for_all_disks (struct disk *disks, unsigned nr, void *(*step) (void *))
{
  unsigned i;

  for (i = 1; i < nr; i++)
    disks[i].started = pthread_create (&disks[i].thread, NULL, step, &disks[i]) == 0;
  step (&disks[0]);
  for (i = 1; i < nr; i++)
    if (disks[i].started)
      pthread_join (disks[i].thread, NULL);
    else
      step (&disks[i]); /* no thread to be had: late, but not left out */
}

/* ---- all together --------------------------------------------------------------------------- */

static int
connect_all (struct disk *disks, unsigned nr, const struct handoff_options *opts, char **error)
{
  double max_downtime = 0;
  unsigned i, lease_ms = opts->lease_ms;

  for (i = 0; i < nr; i++)
    if (connect_disk (&disks[i], &max_downtime) == -1) {
      *error = join_errors (disks, nr, "");
      return -1;
    }
  if (lease_ms == 0) {
    if (max_downtime > 1e6)
      max_downtime = 1e6;
    lease_ms = (unsigned) (2 * max_downtime);
    if (lease_ms < HANDOFF_MIN_LEASE_MS)
      lease_ms = HANDOFF_MIN_LEASE_MS;
  }
  for (i = 0; i < nr; i++)
    disks[i].lease_ms = lease_ms;
  return 0;
}

/* Prepare and decide.  Returns whether it was committed; if not, *ERROR says why, and every disk was released. */
static bool
prepare_and_decide (struct disk *disks, unsigned nr, struct decision *decision, char **error)
{
  for_all_disks (disks, nr, prepare_disk);
  if (!any_error (disks, nr)) {
    if (decision_try (decision, DECISION_COMMIT) == DECISION_COMMIT)
      return true;
    if (asprintf (error,
                  "a lease of %u ms ended before every disk was prepared: nothing was handed over",
                  disks[0].lease_ms) == -1)
      *error = NULL;
  }
  else {
    decision_try (decision, DECISION_ABORT);
    *error = join_errors (disks, nr, "");
  }
  for_all_disks (disks, nr, release_disk);
  return false;
}

static int
run_with (struct disk *disks, unsigned nr, const struct handoff_options *opts,
          struct decision *decision, struct handoff_result *result, char **error)
{
  unsigned i;

  if (connect_all (disks, nr, opts, error) == -1)
    return -1;
  result->committed = prepare_and_decide (disks, nr, decision, error);
  if (!result->committed)
    return -1;

  for_all_disks (disks, nr, finalize_disk);
  for (i = 0; i < nr; i++)
    result->downtime_ms[i] = disks[i].downtime_ms;
  if (any_error (disks, nr)) {
    *error = join_errors (disks, nr, "the hand-off is committed, but not every filter confirmed it: ");
    return -1;
  }
  return 0;
}

int
handoff_run (char *const controls[], unsigned nr, const struct handoff_options *opts,
             struct handoff_result *result, char **error)
{
  char token[HANDOFF_TOKEN_MAX + 1];
  struct decision *decision;
  struct disk *disks;
  unsigned i;
  int r = -1;

  *error = NULL;
  *result = (struct handoff_result){ .nr = nr };
  if (nr == 0) {
    *error = strdup ("no disk to hand over");
    return -1;
  }
  if (make_token (token, opts->token, error) == -1)
    return -1;
  decision = decision_create (error);
  if (decision == NULL)
    return -1;
  disks = calloc (nr, sizeof *disks);
  result->downtime_ms = calloc (nr, sizeof *result->downtime_ms);
  if (disks != NULL && result->downtime_ms != NULL) {
    for (i = 0; i < nr; i++) {
      result->downtime_ms[i] = -1;
      disks[i] = (struct disk){
        .control = controls[i],
        .decision = decision,
        .token = token,
        .waiters = opts->waiters != NULL ? opts->waiters : "error",
        .successor = opts->successor,
        .timeout_ms = opts->timeout_ms != 0 ? opts->timeout_ms : HANDOFF_TIMEOUT_MS,
        .downtime_ms = -1,
      };
    }
    r = run_with (disks, nr, opts, decision, result, error);
    if (result->committed)
      strcpy (result->token, token);
    for (i = 0; i < nr; i++) {
      control_client_free (disks[i].client);
      free (disks[i].error);
    }
  }
  free (disks);
  decision_free (decision);
  return r;
}

void
handoff_result_free (struct handoff_result *result)
{
  free (result->downtime_ms);
  result->downtime_ms = NULL;
}
