/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup: what the servers of the disks say, and what follows from it: full or incremental.
 */

#include "config.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "backup/chain.h"
#include "base/clock.h"
#include "base/text.h"
#include "cmd/backup/backup.h"
#include "cmd/checkpoint/checkpoint.h"
#include "cmd/control-query.h"

#define ASK_MS 30000
#define LEAVE_MS 10000 /* a worker gives its destination a moment to end */
#define LOOK_MS 50

/* Call COMMAND of D's server.  0 with *RET (NULL allowed), or -1 with an error in D, but where the
 * server keeps no state file. */
static int
ask (struct backup_disk *d, const char *command, json_t *args, json_t **ret)
{
  CLEANUP_TEXT char *class_ = NULL, *error = NULL;
  const struct control_call call
      = { .command = command, .args = args, .timeout_ms = ASK_MS, .ret = ret, .class_ = &class_ };

  if (control_client_call (d->client, &call, &error) == 0)
    return 0;
  if (class_ != NULL && strcmp (class_, "NoStateFile") == 0)
    d->has_state = false;
  else
    backup_fail (d, EXIT_ERROR, "%s", error);
  return -1;
}

/* A job of an interrupted backup may be taken away; one of somebody else may not.  Its target tells
 * whose it is.  A server that was killed as well, within a second, does not know it any more: then
 * the mark of an interrupted backup of this disk has to tell. */
static void
look_at_job (struct backup_run *run, struct backup_disk *d, const json_t *status)
{
  const char *worker = status_text (status, "worker"), *target = status_text (status, "target");
  const char *state = status_text (status, "state"), *gate = status_text (status, "gate");
  bool attached = worker != NULL && strcmp (worker, "attached") == 0;
  bool left = state != NULL
              && (strcmp (state, "detached") == 0 || strcmp (state, "failed") == 0
                  || strcmp (state, "in-doubt") == 0);

  d->restart = false;
  if (gate != NULL && strcmp (gate, "fenced") == 0)
    backup_fail (d, EXIT_REFUSED, "the disk was handed over, so the guest does not run on it");
  else if (attached)
    backup_fail (d, EXIT_REFUSED, "another job is under way: it copies the disk to %s",
                 target != NULL ? target : "another place");
  else if (left
           && (target != NULL ? backup_target_is_backup (target)
                              : store_was_begun (&run->store, d->id)))
    d->restart = true;
  else if (left)
    backup_fail (d, EXIT_REFUSED,
                 "a job to %s is left over: end it with 'nbdmirror cancel', or let it go on",
                 target != NULL ? target : "another place");
}

/* Is there a worker at D's disk that is about to leave, since its backup was killed?  We hold that
 * one's lock, and its mark is there. */
static bool
is_leaving (struct backup_run *run, const struct backup_disk *d, const json_t *status)
{
  const char *worker = status_text (status, "worker"), *target = status_text (status, "target");

  return d->locked && worker != NULL && strcmp (worker, "attached") == 0
         && (target == NULL || backup_target_is_backup (target))
         && store_was_begun (&run->store, d->id);
}

void
backup_ask (struct backup_run *run, struct backup_disk *d)
{
  CLEANUP_TEXT char *error = NULL;
  json_t *status = NULL;

  if (access (d->control, F_OK) == -1 && errno == ENOENT) {
    backup_fail (d, EXIT_ERROR,
                 "%s: there is no such control socket (is the server running?), and"
                 " no such image",
                 d->operand);
    return;
  }
  if (d->client == NULL)
    d->client = control_client_connect (d->control, QUERY_MS, &error);
  if (d->client == NULL) {
    backup_fail (d, EXIT_ERROR, "%s", error);
    return;
  }
  if (checkpoint_open_export (d->control, d->client) == -1) {
    backup_fail (d, EXIT_ERROR, "its server cannot be reached");
    return;
  }
  uint64_t end = clock_ms () + LEAVE_MS;
  while (ask (d, "query-mirror", NULL, &status) == 0 && is_leaving (run, d, status)
         && clock_ms () < end && backup_signal == 0) {
    json_decref (status);
    status = NULL;
    clock_sleep_ms (LOOK_MS);
  }
  if (status == NULL)
    return;
  d->size = (uint64_t)status_number (status, "size", 0);
  look_at_job (run, d, status);
  json_decref (status);
}

/* End the job to D's file, which its worker has left.  What it had still to copy stays recorded.
 * False: there may be one. */
static bool
end_job (const struct backup_disk *d, struct control_client *c, const json_t *status)
{
  CLEANUP_TEXT char *error = NULL;
  const char *state = status_text (status, "state"), *target = status_text (status, "target");
  const struct control_call cancel = { .command = "block-job-cancel",
                                       .args = json_pack ("{s:s}", "device", "mirror"),
                                       .timeout_ms = QUERY_MS };

  bool over = state != NULL && (strcmp (state, "detached") == 0 || strcmp (state, "failed") == 0);
  if (over && target != NULL && strstr (target, strrchr (d->file, '/')) != NULL)
    return control_client_call (c, &cancel, &error) == 0;
  json_decref (cancel.args);
  return false;
}

static bool
has_job_left (const struct backup_disk *d)
{
  CLEANUP_TEXT char *error = NULL;
  struct control_client *c = control_client_connect (d->control, QUERY_MS, &error);
  json_t *status = NULL;
  const struct control_call call
      = { .command = "query-mirror", .timeout_ms = QUERY_MS, .ret = &status };
  bool left = true;

  if (c != NULL && control_client_call (c, &call, &error) == 0) {
    const char *state = status_text (status, "state");
    left = state == NULL
           || (strcmp (state, "idle") != 0 && strcmp (state, "cancelled") != 0
               && strcmp (state, "completed") != 0);
    left = left && !end_job (d, c, status);
  }
  json_decref (status);
  control_client_free (c);
  return left;
}

bool
backup_job_is_left (const struct backup_run *run)
{
  bool left = false;

  for (unsigned i = 0; i < run->nr_disks && !left; i++)
    left = run->disks[i].file != NULL && run->disks[i].error != NULL
           && has_job_left (&run->disks[i]);
  return left;
}

json_t *
backup_checkpoints (struct backup_disk *d)
{
  json_t *all = json_array (), *ret = NULL;
  size_t total = 1;

  d->has_state = true;
  while (json_array_size (all) < total) {
    json_t *args = json_pack ("{s:I}", "from", (json_int_t)json_array_size (all));
    if (ask (d, "query-mirror-checkpoints", args, &ret) == -1) {
      json_decref (all);
      return NULL;
    }
    json_t *part = json_object_get (ret, "checkpoints");
    total = json_array_size (part) != 0 ? (size_t)status_number (ret, "total", 0) : 0;
    json_array_extend (all, part);
    json_decref (ret);
  }
  return all;
}

/* What is recorded at D of the checkpoint that the last backup has added. */
static void
look_at_checkpoint (struct backup_disk *d, const json_t *all, const struct manifest_disk *last,
                    struct backup_facts *facts, char **reason)
{
  size_t i;
  json_t *c;

  facts->checkpoint = CHECKPOINT_MISSING;
  json_array_foreach (all, i, c)
  {
    const char *name = status_text (c, "name"), *uuid = status_text (c, "uuid");
    const char *status = status_text (c, "status");
    if (name == NULL || uuid == NULL || strcmp (name, last->checkpoint) != 0)
      continue;
    bool good = status != NULL && strcmp (status, "consistent") == 0;
    facts->checkpoint = strcmp (uuid, last->checkpoint_uuid) != 0 ? CHECKPOINT_OTHER
                        : good                                    ? CHECKPOINT_GOOD
                                                                  : CHECKPOINT_INCONSISTENT;
    if (!good && status_text (c, "reason") != NULL)
      *reason = text_copy (status_text (c, "reason"));
    d->changed = (int64_t)status_number (c, "changed-bytes", -1);
  }
}

/* Has ALL, the checkpoints of a disk, one that a backup of the disk ID in LIST by CONTROL has
 * added?
 */
static bool
is_known (const json_t *all, const struct backup_list *list, const char *id, const char *control)
{
  size_t i;
  json_t *c;

  for (unsigned b = 0; b < list->nr; b++) {
    const struct manifest_disk *m = manifest_find_disk (&list->list[b].manifest, id);
    if (m == NULL || m->checkpoint_uuid == NULL || m->control == NULL
        || strcmp (m->control, control) != 0)
      continue;
    json_array_foreach (all, i, c)
    {
      const char *uuid = status_text (c, "uuid");
      if (uuid != NULL && strcmp (uuid, m->checkpoint_uuid) == 0)
        return true;
    }
  }
  return false;
}

/* Two guests may call their disks alike.  If both were one disk of the repository, a restore would
 * give one guest the other's disk, and a prune would take one's backups for older ones of the
 * other's. */
static bool
is_of_another (const struct backup_run *run, const struct backup_disk *d, const json_t *all,
               const struct backup_list *list, const struct manifest_disk *last)
{
  return run->mode != BACKUP_FULL && last->control != NULL && strcmp (last->control, d->place) != 0
         && !is_known (all, list, d->id, last->control);
}

/* Is the state file of a disk of another size?  Then its server begins no job. */
static bool
of_other_size (const struct backup_disk *d, const json_t *all)
{
  const json_t *c = json_array_get (all, 0);

  return c != NULL && (uint64_t)status_number (c, "size", (double)d->size) != d->size;
}

void
backup_decide (struct backup_run *run, struct backup_disk *d, const struct backup_list *list)
{
  CLEANUP_TEXT char *why = NULL;
  CLEANUP_TEXT char *fault = NULL;
  struct backup_facts facts = { .mode = run->mode, .size = d->size };
  const struct manifest_disk *last = NULL;

  d->changed = -1;
  json_t *all = backup_checkpoints (d);
  const struct backup_entry *e = chain_newest (list, d->id, &last);
  facts.checkpoint = d->has_state ? CHECKPOINT_MISSING : CHECKPOINT_NO_STATE;
  if (e != NULL) {
    fault = store_chain_fault (&run->store, list, e->name, d->id);
    facts.parent = e->name;
    facts.chain_fault = fault;
    facts.chain_files = chain_files (list, e->name, d->id);
    facts.parent_size = last->size;
    facts.parent_checkpoint = last->checkpoint;
  }
  if (e != NULL && last->checkpoint != NULL && all != NULL)
    look_at_checkpoint (d, all, last, &facts, &why);
  facts.checkpoint_reason = why;
  bool other_size = of_other_size (d, all);
  bool of_another = e != NULL && is_of_another (run, d, all, list, last);
  json_decref (all);
  if (of_another) {
    backup_fail (d, EXIT_REFUSED,
                 "the last backup with this name is that of %s: give this disk another name with"
                 " --disk-name, or say --full if it is the same disk",
                 last->control);
    return;
  }
  if (other_size) {
    backup_fail (d, EXIT_ERROR,
                 "its state file is of another size than the disk: stop its server, remove that"
                 " file, and start the server again; the next backup is full then");
    return;
  }
  d->has_state &= d->size > 0; /* a server adds no checkpoint to a disk without blocks */
  d->full = !backup_plan (&facts, &d->reason);
  if (d->full && run->mode == BACKUP_INCREMENTAL)
    backup_fail (d, EXIT_REFUSED, "it cannot be incremental: %s", d->reason);
  if (d->full)
    return;
  d->parent_backup = text_copy (e->name);
  d->parent_file = text_copy (last->file);
  d->since = text_copy (last->checkpoint);
}
