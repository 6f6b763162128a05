/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the coordinator does to one disk.  See disk.h.
 *
 * Each disk has a thread for the long calls, prepare and finalize, because a control client belongs
 * to one thread and the disks must be held at the same time: one after the other, the first guest
 * would wait for the last disk.  Nothing is shared between these threads but the decision word.
 *
 * The first prepare that fails turns the word to "abort" at once, so that no other filter goes on
 * holding its guest for a hand-off that cannot happen any more.
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/handoff/disk.h"

#define FINALIZE "job-finalize"
#define FINALIZE_TRIES 3
#define FINALIZE_PAUSE_MS 200

/* ---- messages ------------------------------------------------------------------------------- */

void
coordinator_disk_error (struct coordinator_disk *d, char *message)
{
  char *full = message;

  if (strstr (message, d->control) == NULL) {
    full = text_printf ("%s: %s", d->control, message);
    text_free (message);
  }
  text_free (d->error);
  d->error = full;
}

char *
coordinator_join_errors (const struct coordinator_disk *disks, unsigned nr, const char *prefix)
{
  char *all = text_copy (prefix);
  bool first = true;

  for (unsigned i = 0; i < nr; i++)
    if (disks[i].error != NULL) {
      char *next = text_printf ("%s%s%s", all, first ? "" : "; ", disks[i].error);

      text_free (all);
      all = next;
      first = false;
    }
  return all;
}

bool
coordinator_any_error (const struct coordinator_disk *disks, unsigned nr)
{
  for (unsigned i = 0; i < nr; i++)
    if (disks[i].error != NULL)
      return true;
  return false;
}

void
coordinator_disk_forget_error (struct coordinator_disk *d)
{
  text_free (d->error);
  text_free (d->class_);
  d->error = d->class_ = NULL;
}

/* ---- what is done to one disk --------------------------------------------------------------- */

bool
coordinator_disk_takes_part (const struct coordinator_disk *d)
{
  return d->standing != STANDING_NONE && d->standing != STANDING_ENDED;
}

int
coordinator_disk_limit (const struct coordinator_disk *d)
{
  bool hurry = d->timeout_ms != 0 && d->timeout_ms < HANDOFF_CONNECT_MS;
  return hurry ? (int)d->timeout_ms : HANDOFF_CONNECT_MS;
}

int
coordinator_disk_left (const struct coordinator_disk *d, unsigned limit)
{
  uint64_t now = clock_ms (), left = d->end_ms > now ? d->end_ms - now : 0;

  return (int)(left < limit ? left : limit);
}

int
coordinator_disk_connect (struct coordinator_disk *d, double *max_downtime)
{
  char *message = NULL;
  json_t *status = NULL;
  int timeout = coordinator_disk_limit (d);

  d->client = control_client_connect (d->control, timeout, &message);
  struct control_call call = { .command = "query-mirror", .timeout_ms = timeout, .ret = &status };
  if (d->client == NULL || control_client_call (d->client, &call, &message) == -1) {
    coordinator_disk_error (d, message);
    return -1;
  }
  const json_t *value = json_object_get (status, "max-downtime-ms");
  if (json_is_number (value) && json_number_value (value) > *max_downtime)
    *max_downtime = json_number_value (value);
  json_decref (status);
  return 0;
}

/* The disk was refused, or has not answered.  CLASS_ and MESSAGE are stolen. */
void
coordinator_disk_refused (struct coordinator_disk *d, char *class_, char *message)
{
  char *full = NULL;

  decision_try (d->decision, DECISION_ABORT);
  if (class_ != NULL && strcmp (class_, "LeaseEnded") == 0)
    full = text_printf ("the guest was let go after the lease of %u ms (%s)", d->lease_ms, message);
  /* It has no name of its own in the client. */
  else if (class_ == NULL && strstr (message, " in time (") != NULL && clock_ms () >= d->end_ms)
    full = text_printf ("not prepared within %u ms (--timeout); the guest goes on", d->timeout_ms);
  if (full != NULL) {
    text_free (message);
    message = full;
  }
  coordinator_disk_error (d, message);
  text_free (d->class_);
  d->class_ = class_;
}

/* The disk is prepared; or only armed, which has no generation yet.  RET is stolen. */
static void
take_prepared (struct coordinator_disk *d, json_t *ret)
{
  const json_t *generation = json_object_get (ret, "generation");

  if (json_is_integer (generation))
    d->generation = json_integer_value (generation);
  else if (!json_is_true (json_object_get (ret, "armed")))
    coordinator_disk_refused (d, NULL, text_copy ("mirror-prepare answered without a generation"));
  json_decref (ret);
}

/* From now on the hand-off stands without our connection. */
void *
coordinator_disk_keep (void *opaque)
{
  struct coordinator_disk *d = opaque;
  char *message = NULL;

  struct control_call call = { .command = "mirror-decision",
                               .args = json_pack ("{s:b}", "keep", 1),
                               .timeout_ms = HANDOFF_CALL_MS };
  if (control_client_call (d->client, &call, &message) == -1)
    coordinator_disk_error (d, message);
  return NULL;
}

void *
coordinator_disk_prepare (void *opaque)
{
  struct coordinator_disk *d = opaque;
  char *message = NULL, *class_ = NULL;
  json_t *ret = NULL;

  if (d->client == NULL) { /* lost for good while an earlier hold was released */
    coordinator_disk_refused (d, NULL, text_printf ("%s: its server was lost", d->control));
    return NULL;
  }
  json_t *args
      = json_pack ("{s:I, s:s, s:s, s:s*}", "lease-ms", (json_int_t)d->lease_ms, "rollback-token",
                   d->token, "waiters", d->waiters, "successor", d->successor);

  json_object_set_new (args, d->guest_stopped ? "guest-stopped" : "arm", json_true ());
  if (d->release)
    json_object_set_new (args, "release", json_true ());

  struct control_call call = { .command = "mirror-prepare",
                               .args = args,
                               .pass_fd = &d->decision->fd,
                               .timeout_ms = coordinator_disk_left (d, d->timeout_ms),
                               .ret = &ret,
                               .class_ = &class_ };
  if (control_client_call (d->client, &call, &message) == -1)
    coordinator_disk_refused (d, class_, message);
  else
    take_prepared (d, ret);
  return NULL;
}

void
coordinator_prepare_now (struct coordinator_disk *disks, unsigned nr)
{
  struct control_call call = { .command = "mirror-prepare-now" };
  char *message = NULL, *class_ = NULL;
  json_t *ret = NULL;

  call.ret = &ret;
  call.class_ = &class_;
  for (unsigned i = 0; i < nr; i++) {
    call.timeout_ms = coordinator_disk_left (&disks[i], disks[i].lease_ms + HANDOFF_CALL_MS);
    disks[i].begun = control_client_begin (disks[i].client, &call, &message) == 0;
    if (!disks[i].begun)
      coordinator_disk_refused (&disks[i], NULL, message);
  }
  for (unsigned i = 0; i < nr; i++) {
    if (!disks[i].begun)
      continue;
    class_ = NULL; /* the last disk's, which it owns now */
    if (control_client_finish (disks[i].client, &call, &message) == 0)
      take_prepared (&disks[i], ret);
    else
      coordinator_disk_refused (&disks[i], class_, message);
  }
}

static struct control_call
finalize_call (const struct coordinator_disk *d, json_t **ret)
{
  return (struct control_call){ .command = FINALIZE,
                                .args = json_pack ("{s:I}", "generation", d->generation),
                                .timeout_ms = HANDOFF_CALL_MS,
                                .ret = ret };
}

/* RET is stolen. */
static void
take_downtime (struct coordinator_disk *d, json_t *ret)
{
  const json_t *value = json_object_get (ret, "downtime-ms");

  if (json_is_number (value))
    d->downtime_ms = json_number_value (value);
  json_decref (ret);
}

/* The commit stands already: a lost connection is made anew and the question repeated, which the
 * filter answers alike. */
void *
coordinator_disk_finalize (void *opaque)
{
  struct coordinator_disk *d = opaque;
  char *message = NULL;

  if (!coordinator_disk_takes_part (d)) {
    if (d->standing == STANDING_NONE)
      coordinator_disk_error (d, text_copy ("it takes no part in the hand-over"));
    return NULL;
  }
  for (int try = 0; try < FINALIZE_TRIES; try++) {
    if (try > 0 || d->client == NULL) { /* an earlier call may have lost it for good */
      control_client_free (d->client);
      if (try > 0)
        clock_sleep_ms (FINALIZE_PAUSE_MS);
      text_free (message);
      message = NULL;
      d->client = control_client_connect (d->control, HANDOFF_CONNECT_MS, &message);
      if (d->client == NULL)
        continue;
    }
    json_t *ret = NULL;
    const struct control_call call = finalize_call (d, &ret);
    if (control_client_call (d->client, &call, &message) == 0) {
      take_downtime (d, ret);
      return NULL;
    }
  }
  coordinator_disk_error (d, message);
  return NULL;
}

/* For those that could not be told at the first attempt. */
static void *
finalize_again (void *opaque)
{
  struct coordinator_disk *d = opaque;

  return d->finalized ? NULL : coordinator_disk_finalize (d);
}

void
coordinator_finalize_all (struct coordinator_disk *disks, unsigned nr)
{
  char *message = NULL;
  json_t *ret = NULL;
  unsigned done = 0;

  for (unsigned i = 0; i < nr; i++) {
    struct coordinator_disk *d = &disks[i];

    d->begun = d->finalized = false;
    if (!coordinator_disk_takes_part (d) || d->client == NULL)
      continue;
    const struct control_call call = finalize_call (d, &ret);
    d->begun = control_client_begin (d->client, &call, &message) == 0;
    if (!d->begun)
      text_free (message);
  }
  for (unsigned i = 0; i < nr; i++) {
    const struct control_call call = { .command = FINALIZE, .ret = &ret };
    struct coordinator_disk *d = &disks[i];

    if (!d->begun)
      continue;
    d->finalized = control_client_finish (d->client, &call, &message) == 0;
    if (d->finalized)
      take_downtime (d, ret);
    else
      text_free (message);
    done += d->finalized;
  }
  if (done < nr)
    coordinator_all_disks (disks, nr, finalize_again);
}

/* Whose hand-off is given up: over a new connection only its generation tells. */
static json_t *
release_args (const struct coordinator_disk *d)
{
  return d->generation > 0 ? json_pack ("{s:I}", "generation", d->generation) : NULL;
}

/* The word says "abort" already, so every filter opens its gate by itself; this makes it at once. A
 * connection that was lost, or whose prepare is not answered, is made anew.  A disk in doubt knows
 * of no word: nothing else opens its gate. */
static int
call_release (struct coordinator_disk *d, char **message)
{
  struct control_call call
      = { .command = "mirror-release", .args = release_args (d), .timeout_ms = HANDOFF_CALL_MS };

  return control_client_call (d->client, &call, message);
}

void *
coordinator_disk_release (void *opaque)
{
  struct coordinator_disk *d = opaque;
  char *message = NULL;

  if (d->client == NULL || !coordinator_disk_takes_part (d) || call_release (d, &message) == 0)
    return NULL;
  text_free (message); /* often: nothing is held there any more */
  control_client_free (d->client);
  d->client = control_client_connect (d->control, HANDOFF_CONNECT_MS, &message);
  if (d->client != NULL && call_release (d, &message) == 0)
    return NULL;
  if (d->standing == STANDING_IN_DOUBT)
    coordinator_disk_error (d, message);
  else
    text_free (message); /* the first error is the one to report */
  return NULL;
}

void
coordinator_all_disks (struct coordinator_disk *disks, unsigned nr, void *(*step) (void *))
{
  for (unsigned i = 1; i < nr; i++)
    disks[i].started = pthread_create (&disks[i].thread, NULL, step, &disks[i]) == 0;
  step (&disks[0]);
  for (unsigned i = 1; i < nr; i++)
    if (disks[i].started)
      pthread_join (disks[i].thread, NULL);
    else
      step (&disks[i]); /* no thread to be had: late, but not left out */
}
