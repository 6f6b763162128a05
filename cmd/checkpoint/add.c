/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Add a checkpoint to several disks at one instant.
 *
 * All filters get the same decision word.  When the last one is prepared, each of them records for
 * both sides of the instant, and one compare-and-swap of the word is the instant.  If anything goes
 * wrong before, the word goes to "abort" and no disk gets a checkpoint.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "cmd/checkpoint/checkpoint.h"
#include "cmd/cmd.h"
#include "cmd/control-query.h"
#include "control/decision.h"
#include "mirror/endpoint/endpoint.h"

#define LEASE_MS 10000 /* for writes that began before, and for the other disks */

struct disk {
  const char *control;
  struct control_client *client;
  bool begun;
};

int
checkpoint_open_export (const char *control, struct control_client *client)
{
  CLEANUP_TEXT char *error = NULL;
  json_t *status = NULL;

  if (query_call (client, control, "query-mirror", NULL, &status, NULL) == -1)
    return -1;
  char *uri = (char *)status_text (status, "uri");
  if (status_has_number (status, "size")) {
    json_decref (status);
    return 0;
  }
  const struct endpoint_options opts = { .writable = false };
  struct endpoint *ep = NULL;
  if (uri == NULL)
    cmd_say ("%s: no client has opened the disk yet, and the server does not say how to reach it"
             " (mirror-uri=)",
             control);
  else if ((ep = endpoint_open (&uri, 1, &opts, NULL, &error)) == NULL)
    cmd_say ("%s", error);
  json_decref (status);
  if (ep == NULL)
    return -1;
  endpoint_close (ep);
  return 0;
}

/* All at the same time.  0, or -1 after messages. */
static int
prepare_all (struct disk *disks, unsigned nr, const char *name, const struct decision *word)
{
  int r = 0;

  for (unsigned i = 0; i < nr; i++) {
    CLEANUP_TEXT char *error = NULL;
    const struct control_call call
        = { .command = "mirror-checkpoint-prepare",
            .args = json_pack ("{s:s, s:i}", "name", name, "lease-ms", LEASE_MS),
            .pass_fd = &word->fd,
            .timeout_ms = 2 * LEASE_MS };
    disks[i].begun = control_client_begin (disks[i].client, &call, &error) == 0;
    if (!disks[i].begun) {
      query_failed (disks[i].control, error);
      r = -1;
    }
  }
  for (unsigned i = 0; i < nr; i++) {
    CLEANUP_TEXT char *error = NULL;
    const struct control_call call
        = { .command = "mirror-checkpoint-prepare", .timeout_ms = 2 * LEASE_MS };
    if (!disks[i].begun)
      continue;
    if (control_client_finish (disks[i].client, &call, &error) == -1) {
      query_failed (disks[i].control, error);
      r = -1;
    }
  }
  return r;
}

static int
finish_all (const struct disk *disks, unsigned nr, json_t *uuids)
{
  int status = EXIT_DONE;

  for (unsigned i = 0; i < nr; i++) {
    json_t *ret = NULL;
    if (query_call (disks[i].client, disks[i].control, "mirror-checkpoint-finish", NULL, &ret, NULL)
        == -1)
      status = EXIT_ERROR;
    else
      json_object_set (uuids, disks[i].control, json_object_get (ret, "uuid"));
    json_decref (ret);
  }
  return status;
}

static int
add (struct disk *disks, unsigned nr, const char *name, json_t *uuids)
{
  CLEANUP_TEXT char *error = NULL;
  struct decision *word = decision_create (&error);
  int status = EXIT_ERROR;

  if (word == NULL)
    cmd_say ("%s", error);
  else if (prepare_all (disks, nr, name, word) == -1)
    decision_try (word, DECISION_ABORT);
  else if (decision_try (word, DECISION_COMMIT) == DECISION_COMMIT)
    status = finish_all (disks, nr, uuids);
  else
    cmd_say ("a disk gave up before all of them were prepared: no checkpoint was added");
  decision_free (word);
  return status;
}

int
checkpoint_add (char *const *controls, unsigned nr, const char *name, json_t **uuids)
{
  struct disk *disks = calloc (nr, sizeof *disks);
  int status = EXIT_ERROR;
  unsigned ready = 0;

  *uuids = json_object ();
  for (; disks != NULL && ready < nr; ready++) {
    disks[ready].control = controls[ready];
    disks[ready].client = query_connect (controls[ready]);
    if (disks[ready].client == NULL
        || checkpoint_open_export (controls[ready], disks[ready].client) == -1)
      break;
  }
  if (disks == NULL)
    cmd_say ("out of memory");
  else if (ready == nr)
    status = add (disks, nr, name, *uuids);
  for (unsigned i = 0; disks != NULL && i < nr; i++)
    control_client_free (disks[i].client);
  free (disks);
  return status;
}
