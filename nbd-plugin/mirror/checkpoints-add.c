/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Adding a checkpoint: for users, and for a disk that is handed over.  See checkpoints.h.
 */

#include "config.h"

#include <errno.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "base/uuid.h"
#include "dirty-bitmap/state/recordings.h"
#include "nbd-plugin/mirror/checkpoints.h"
#include "nbd-plugin/mirror/filter.h"
#include "nbd-plugin/mirror/persist-disk.h"
#include "nbd-plugin/mirror/receiving.h"
#include "nbd-plugin/own-thread.h"

#define DEFAULT_LIMIT_MS 10000

static void
finish (struct checkpointing *c)
{
  json_decref (c->id);
  json_decref (c->finish_id);
  decision_free (c->decision);
  memset (c, 0, sizeof *c);
}

static void
give_up (struct mirror *m, const char *class_, const char *reason)
{
  struct checkpointing *c = &m->checkpointing;

  state_checkpoint_abort (&m->persist.state);
  if (c->peer != NULL && c->id != NULL)
    control_error (c->peer, c->id, class_, "the checkpoint was given up: %s", reason);
  finish (c);
}

/* Begin to mark the next recording.  0, or -1 with *ERROR. */
static int
begin (struct mirror *m, const char *name, const uint8_t uuid[16],
       const struct region_geometry *geo, char **error)
{
  struct persist *p = &m->persist;
  struct checkpointing *c = &m->checkpointing;
  struct state_layout layout;
  struct state_view before;
  uint8_t boot[16];

  state_look (&p->state, &before);
  state_boot_id (boot);
  memcpy (c->uuid, uuid, sizeof c->uuid);
  if (state_layout_init (&layout, geo->disk_size, geo->block_size) == -1)
    return text_error (error, "%s", strerror (errno));
  persist_disk_note_size (p, geo);
  if (persist_map_again (p, error) == -1
      || state_file_map_recordings (&p->file, &layout, error) == -1
      || state_checkpoint_prepare (&p->state, &layout, p->file.slots, boot, name, c->uuid, error)
             == -1)
    return -1;
  if (!before.job)
    persist_tracks (m);
  return 0;
}

void
checkpoints_prepare (struct mirror *m, struct control_peer *peer, json_t *id, json_t *args, int fd)
{
  struct checkpointing *c = &m->checkpointing;
  const char *name = json_string_value (json_object_get (args, "name"));
  json_t *limit = json_object_get (args, "lease-ms");
  CLEANUP_TEXT char *error = NULL;
  struct decision *word = NULL;
  struct region_geometry geo;
  uint8_t uuid[16];

  uuid_make (uuid);
  if (!m->persist.open)
    control_error (peer, id, "NoStateFile", "%s", NO_STATE_FILE);
  else if (fd == -1)
    control_error (peer, id, "GenericError", "no descriptor of a decision word was passed");
  else if (c->decision != NULL)
    control_error (peer, id, "Busy", "a checkpoint is being added already");
  else if (receiving_is (m))
    control_error (peer, id, "Receiving", "%s", RECEIVING_REFUSAL);
  else if (m->bypass.on)
    control_error (peer, id, "Bypassed", BYPASSED, m->bypass.path);
  else if (!tracker_geometry (&m->tracker, &geo))
    control_error (peer, id, "NoDisk",
                   "the disk's size is not known: open an NBD connection to the export first");
  else if ((word = decision_map (fd, &error)) == NULL)
    control_error (peer, id, "GenericError", "%s", error);
  else if (begin (m, name, uuid, &geo, &error) == -1)
    control_error (peer, id, "GenericError", "%s", error);
  else {
    c->peer = peer;
    c->id = json_incref (id);
    c->decision = word;
    word = NULL;
    int64_t ms = limit != NULL ? json_integer_value (limit) : DEFAULT_LIMIT_MS;
    c->limit_ns = (int64_t)clock_ns () + ms * NS_PER_MS;
  }
  decision_free (word);
  fd_close (&fd);
}

static void *
flush_disk (void *opaque)
{
  struct mirror *m = opaque;
  int failed = state_checkpoint_flush (&m->persist.state) == -1 ? errno : 0;

  atomic_store (&m->checkpointing.flush_errno, failed);
  gate_wake (&m->gate);
  return NULL;
}

/* The word says "commit", and everybody was prepared then.  ID is NULL if nobody waits for it. */
static void
begin_commit (struct mirror *m, json_t *id)
{
  struct checkpointing *c = &m->checkpointing;

  c->committing = true;
  c->finish_id = id != NULL ? json_incref (id) : NULL;
  atomic_store (&c->flush_errno, CHECKPOINT_FLUSHES);
  c->has_flusher = own_thread_start (&c->flusher, flush_disk, m) == 0;
  if (!c->has_flusher)
    flush_disk (m);
}

/* The disk was flushed, or that is waited for. */
static void
end_commit (struct mirror *m)
{
  struct checkpointing *c = &m->checkpointing;
  CLEANUP_TEXT char *error = NULL;
  char uuid[UUID_TEXT_BYTES];
  int r = -1;

  if (c->has_flusher)
    pthread_join (c->flusher, NULL);
  int failed = atomic_load (&c->flush_errno);
  if (failed == 0)
    r = state_checkpoint_commit (&m->persist.state, &error);
  else {
    text_error (&error, "the disk cannot be flushed: %s", strerror (failed));
    state_checkpoint_abort (&m->persist.state);
  }
  if (r == -1 && c->of_hand_over)
    nbdkit_error (RECEIVING_NO_CHECKPOINT, error);
  else if (r == -1)
    nbdkit_error ("mirror-state=%s: the checkpoint was not added: %s", m->persist.path, error);
  uuid_text (c->uuid, uuid);
  if (c->peer != NULL && c->finish_id != NULL && r == -1)
    control_error (c->peer, c->finish_id, "GenericError", "%s", error);
  else if (c->peer != NULL && c->finish_id != NULL)
    control_reply (c->peer, c->finish_id, json_pack ("{s:s}", "uuid", uuid), -1);
  finish (c);
}

void
checkpoints_finish (struct mirror *m, struct control_peer *peer, json_t *id)
{
  struct checkpointing *c = &m->checkpointing;

  if (c->decision == NULL || c->peer != peer || !c->prepared)
    control_error (peer, id, "DeviceNotActive", "no checkpoint of this connection's is prepared");
  else if (decision_get (c->decision) != DECISION_COMMIT)
    control_error (peer, id, "NotDecided", "the decision word does not say commit");
  else if (c->committing)
    control_error (peer, id, "Busy", "the checkpoint is being made durable already");
  else
    begin_commit (m, id);
}

void
checkpoints_tick (struct mirror *m)
{
  struct checkpointing *c = &m->checkpointing;

  if (c->committing && atomic_load (&c->flush_errno) != CHECKPOINT_FLUSHES)
    end_commit (m);
  if (c->decision == NULL || c->committing)
    return;
  if (!c->prepared && gate_all_passed (&m->gate, &c->shards_seen)) {
    char uuid[UUID_TEXT_BYTES];
    uuid_text (c->uuid, uuid);
    c->prepared = true;
    if (c->peer != NULL)
      control_reply (c->peer, c->id, json_pack ("{s:s}", "uuid", uuid), -1);
    json_decref (c->id);
    c->id = NULL;
  }
  bool gone = c->peer == NULL, late = (int64_t)clock_ns () >= c->limit_ns;
  if (!c->prepared && decision_get (c->decision) == DECISION_COMMIT) {
    nbdkit_error ("mirror: a checkpoint was committed before this disk was prepared: it has none");
    give_up (m, "GenericError", "it was committed too early");
  } else if (gone || late || decision_get (c->decision) == DECISION_ABORT) {
    if (decision_try (c->decision, DECISION_ABORT) == DECISION_COMMIT)
      begin_commit (m, NULL);
    else
      give_up (m, late ? "LeaseEnded" : "GenericError",
               late ? "writes that began before it did not end in time" : "it was aborted");
  }
}

void
checkpoints_peer_closed (struct mirror *m, struct control_peer *peer)
{
  if (m->checkpointing.peer == peer)
    m->checkpointing.peer = NULL;
}

void
checkpoints_shutdown (struct mirror *m)
{
  struct checkpointing *c = &m->checkpointing;

  if (c->committing)
    end_commit (m);
  else if (c->decision == NULL)
    return;
  else if (c->prepared && decision_try (c->decision, DECISION_ABORT) == DECISION_COMMIT) {
    begin_commit (m, NULL);
    end_commit (m);
  } else {
    decision_try (c->decision, DECISION_ABORT);
    give_up (m, "GenericError", "the server stops");
  }
}

/* ---- the checkpoint of a hand-over ---- */

int
checkpoints_replace (struct mirror *m, const char *name, const uint8_t uuid[16], char **error)
{
  struct region_geometry geo;
  const struct state_table *t = m->persist.state.table;

  if (!m->persist.open)
    return text_error (error, "%s", NO_STATE_FILE);
  if (m->bypass.on)
    return text_error (error, BYPASSED, m->bypass.path);
  if (!tracker_geometry (&m->tracker, &geo))
    return text_error (error, "the disk's size is not known");
  persist_check_disk (m);
  if (t != NULL && state_table_find (t, name) != -1
      && state_checkpoint_remove (&m->persist.state, name, error) == -1)
    return -1;
  return begin (m, name, uuid, &geo, error);
}

void
checkpoints_replaced (struct mirror *m, bool commit)
{
  m->checkpointing.of_hand_over = commit;
  if (commit)
    begin_commit (m, NULL);
  else
    state_checkpoint_abort (&m->persist.state);
}

void
checkpoints_settle (struct mirror *m)
{
  if (m->checkpointing.of_hand_over)
    end_commit (m);
}
