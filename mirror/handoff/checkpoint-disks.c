/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Checkpoints at the instant of a commit.  They share the hand-off's decision word, so a lease that
 * ends gives both up.  What is written by the guest between "prepared" and the commit is in both
 * recordings, and nothing is written while the guests are held.
 */

#include "config.h"

#include <stdio.h>

#include "base/text.h"
#include "mirror/handoff/internal.h"

#define LIMIT_MS 30000 /* for writes that began before, and for the hold */

void
coordinator_checkpoint_prepare (struct coordinator_disk *disks, unsigned nr)
{
  char *message = NULL, *class_ = NULL;

  for (unsigned i = 0; i < nr; i++) {
    struct coordinator_disk *d = &disks[i];
    d->begun = false;
    d->checkpoint_uuid[0] = '\0';
    if (d->checkpoint == NULL)
      continue;
    if (d->client == NULL) { /* lost for good */
      coordinator_disk_refused (d, NULL, text_printf ("%s: its server was lost", d->control));
      continue;
    }
    const struct control_call call
        = { .command = "mirror-checkpoint-prepare",
            .args = json_pack ("{s:s, s:i}", "name", d->checkpoint, "lease-ms", LIMIT_MS),
            .pass_fd = &d->decision->fd,
            .timeout_ms = coordinator_disk_left (d, LIMIT_MS) };
    d->begun = control_client_begin (d->client, &call, &message) == 0;
    if (!d->begun)
      coordinator_disk_refused (d, NULL, message);
  }
  for (unsigned i = 0; i < nr; i++) {
    const struct control_call call = { .command = "mirror-checkpoint-prepare", .class_ = &class_ };
    class_ = NULL; /* the last disk's, which it owns now */
    if (disks[i].begun && control_client_finish (disks[i].client, &call, &message) == -1)
      coordinator_disk_refused (&disks[i], class_, message);
  }
}

/* The filter writes its state file, which may take long on a busy disk. */
static void *
finish_one (void *opaque)
{
  struct coordinator_disk *d = opaque;
  char *message = NULL;
  json_t *ret = NULL;

  if (d->checkpoint == NULL)
    return NULL;
  if (d->client == NULL) { /* lost for good while the hand-off was finalized */
    coordinator_disk_error (d, text_printf ("%s: its server was lost", d->control));
    return NULL;
  }
  const struct control_call call
      = { .command = "mirror-checkpoint-finish", .timeout_ms = LIMIT_MS, .ret = &ret };
  if (control_client_call (d->client, &call, &message) == -1) {
    coordinator_disk_error (d, message);
    return NULL;
  }
  const char *uuid = json_string_value (json_object_get (ret, "uuid"));
  snprintf (d->checkpoint_uuid, sizeof d->checkpoint_uuid, "%s", uuid != NULL ? uuid : "");
  json_decref (ret);
  return NULL;
}

int
coordinator_checkpoint_finish (struct coordinator *c, char **error)
{
  for (unsigned i = 0; i < c->nr; i++)
    coordinator_disk_forget_error (&c->disks[i]);
  coordinator_all_disks (c->disks, c->nr, finish_one);
  if (!coordinator_any_error (c->disks, c->nr))
    return 0;
  *error = coordinator_join_errors (c->disks, c->nr, "");
  return -1;
}

const char *
coordinator_checkpoint_uuid (const struct coordinator *c, unsigned disk)
{
  return c->disks[disk].checkpoint_uuid;
}

const char *
coordinator_disk_fault (const struct coordinator *c, unsigned disk)
{
  return c->disks[disk].error;
}
