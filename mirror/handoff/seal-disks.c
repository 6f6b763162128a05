/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The coordinator seals the destinations.  See seal-disks.h.
 */

#include "config.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <jansson.h>

#include "base/clock.h"
#include "base/text.h"
#include "control/client.h"
#include "mirror/endpoint/seal.h"
#include "mirror/endpoint/uri.h"
#include "mirror/handoff/seal-disks.h"

#define CALL_MS 5000
#define POLL_MS 50
#define SSH_WORKER_MS 3000

struct sealing {
  pthread_t thread;
  bool started;
  const char *control;
  struct coordinator_seal *seal;
};

static void
set_error (struct coordinator_seal *s, enum handoff_seal_state state, char *error)
{
  s->state = state;
  text_free (s->error);
  s->error = error;
}

/* The disk's status; NULL with *ERROR. */
static json_t *
ask (const char *control, char **error)
{
  struct control_client *c = control_client_connect (control, CALL_MS, error);
  json_t *status = NULL;

  struct control_call call = { .command = "query-mirror", .timeout_ms = CALL_MS, .ret = &status };
  if (c != NULL && control_client_call (c, &call, error) == -1)
    status = NULL;
  control_client_free (c);
  return status;
}

/* The same, again and again: a server that is busy may be late, and where there is none nobody will
 * ever answer. */
static json_t *
ask_until (const char *control, uint64_t deadline, char **error)
{
  json_t *status;

  while ((status = ask (control, error)) == NULL && clock_ms () < deadline
         && !control_nobody_listens (control)) {
    text_free (*error);
    *error = NULL;
    clock_sleep_ms (POLL_MS);
  }
  return status;
}

static bool
is_sealed (const json_t *status)
{
  return json_is_true (json_object_get (status, "sealed"));
}

/* Does TARGET mean the same to us as to the worker, which may have another working directory?  A
 * socket's relative path could even be another server's here. */
static bool
is_absolute (const char *target)
{
  struct uri *uri = uri_read (target, NULL);
  const char *socket = uri != NULL ? uri_parameter (uri, "socket") : NULL;
  bool absolute = socket == NULL || socket[0] == '/';

  uri_free (uri);
  return absolute;
}

/* Until the worker says that it has done it.  False: it has ended, or does not come to it. */
static bool
worker_did (const char *control, uint64_t deadline)
{
  for (;;) {
    char *error = NULL;
    json_t *status = ask (control, &error);
    const char *worker = json_string_value (json_object_get (status, "worker"));
    bool sealed = is_sealed (status), attached = worker != NULL && strcmp (worker, "attached") == 0;

    json_decref (status);
    text_free (error);
    if (sealed || !attached || clock_ms () >= deadline)
      return sealed;
    clock_sleep_ms (POLL_MS);
  }
}

static void
seal_target (const char *control, struct coordinator_seal *s, uint64_t deadline)
{
  bool ssh = uri_kind (s->target) == URI_SSH;
  char *error = NULL;
  int r = -1;

  /* Through ssh the worker's own end is all that is needed, and quicker than logging in. */
  if (ssh && worker_did (control, clock_ms () + SSH_WORKER_MS))
    r = 0;
  else if (ssh || is_absolute (s->target))
    r = destination_seal (s->target, &error);
  else
    error = text_copy ("the path of its socket is relative: only its worker knows where that is");
  if (r == -1 && !ssh && worker_did (control, deadline))
    r = 0;
  s->state = r == 0 ? HANDOFF_SEAL_DONE : HANDOFF_SEAL_NONE;
  if (r == -1)
    set_error (s, HANDOFF_SEAL_FAILED, error);
  else
    text_free (error);
}

static void *
seal_one (void *opaque)
{
  struct sealing *w = opaque;
  struct coordinator_seal *s = w->seal;
  uint64_t deadline = clock_ms () + HANDOFF_SEAL_MS;
  char *error = NULL;
  json_t *status = ask_until (w->control, deadline, &error);
  const char *target = json_string_value (json_object_get (status, "target"));

  if (target != NULL)
    s->target = text_copy (target);
  if (status == NULL)
    set_error (s, HANDOFF_SEAL_UNKNOWN, error);
  else if (is_sealed (status))
    s->state = HANDOFF_SEAL_DONE;
  else if (s->target == NULL)
    set_error (s, HANDOFF_SEAL_UNKNOWN,
               text_copy ("the server does not know any more where it was mirrored to"));
  else if (destination_may_be_sealed (s->target))
    seal_target (w->control, s, deadline);
  json_decref (status);
  return NULL;
}

void
coordinator_seal_all (char *const controls[], unsigned nr, struct coordinator_seal *seals)
{
  struct sealing *all = calloc (nr, sizeof *all);

  for (unsigned i = 0; i < nr; i++) {
    seals[i] = (struct coordinator_seal){ .state = HANDOFF_SEAL_NONE };
    if (all == NULL) {
      set_error (&seals[i], HANDOFF_SEAL_FAILED, text_copy ("out of memory"));
      continue;
    }
    all[i].control = controls[i];
    all[i].seal = &seals[i];
    all[i].started = pthread_create (&all[i].thread, NULL, seal_one, &all[i]) == 0;
    if (!all[i].started)
      seal_one (&all[i]);
  }
  for (unsigned i = 0; i < nr && all != NULL; i++)
    if (all[i].started)
      pthread_join (all[i].thread, NULL);
  free (all);
}

void
coordinator_seal_free (struct coordinator_seal *seals, unsigned nr)
{
  for (unsigned i = 0; i < nr; i++) {
    text_free (seals[i].target);
    text_free (seals[i].error);
  }
}
