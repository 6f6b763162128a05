/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a live job tells its destination of checkpoints.  See standing.h.
 *
 * At the beginning: which blocks it leaves alone, so that the destination goes on to stand where it
 * stands.  At the end: where it stands then.  Two things are needed for the second.  What the
 * region does not have as left has to be equal, and not by trust (dest_proved, which a resumed job
 * takes over).  And what it has as left has to be changed since that checkpoint.
 *
 * In between: which checkpoint begins there if the disk is handed over.  The filter gets its
 * identity as well, with the status, and keeps it in the source's disk after the commit.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/endpoint/seal.h"
#include "mirror/endpoint/uri.h"
#include "mirror/job/internal.h"
#include "mirror/job/standing.h"

#define FLUSH_MS 1000 /* the end of a job waits no longer for each of two flushes */

/* The destination, if its server can know checkpoints; else NULL. */
static const char *
keeper (const struct job *j)
{
  bool can = j->is_receive && j->dest.nr_dest == 1 && j->dest_session.id[0] != '\0'
             && uri_kind (j->dest.dest[0]) != URI_SSH;

  return can ? j->dest.dest[0] : NULL;
}

static bool
is_proved (const struct job *j, const json_t *old)
{
  const struct sync_options *s = &j->o->sync;

  if (j->dest.allow_no_flush)
    return false;
  if (old != NULL)
    return json_is_true (json_object_get (old, "destination-proved"));
  return s->mode == ENGINE_SYNC_INCREMENTAL ? j->incremental.proved : !s->trust_base;
}

/* A resumed job, or one by trust: if the destination stands anywhere, and only what was changed
 * since is left, then say so. */
static void
declare_if_true (struct job *j, const char *uri)
{
  CLEANUP_TEXT char *error = NULL;
  char from[UUID_TEXT_BYTES];

  if (destination_standing (uri, from, &error) != 0 || from[0] == '\0')
    return;
  json_t *list = standing_list (j->control, &error);
  uint64_t *left = standing_left (j->region);
  const json_t *c;
  size_t i;
  json_array_foreach (list, i, c)
  {
    const char *uuid = json_string_value (json_object_get (c, "uuid"));
    const char *name = json_string_value (json_object_get (c, "name"));
    if (left != NULL && strcmp (uuid, from) == 0
        && standing_left_since (j->control, j->region, left, name))
      destination_say_since (uri, j->dest_session.id, from, from, &error);
  }
  free (left);
  json_decref (list);
}

int
job_checkpoint_begin (struct job *j, const json_t *old)
{
  const char *uri = keeper (j);
  const struct incremental *inc = &j->incremental;
  CLEANUP_TEXT char *error = NULL;

  j->dest_proved = is_proved (j, old);
  /* What an earlier worker may still send makes every block dirty. */
  if (old != NULL || !inc->proved || j->unknown_past) {
    if (uri != NULL)
      declare_if_true (j, uri);
    return 0;
  }
  /* The proof was another connection's.  Only the server that is written to knows the session, and
   * it agrees only if its disk stands there (R13). */
  int r = uri != NULL
              ? destination_say_since (uri, j->dest_session.id, inc->from,
                                       standing_uuid (inc->checkpoints, j->o->sync.since), &error)
              : 1;
  if (r == 0)
    return 0;
  job_say (j, JOB_ERROR, "refused: the destination does not stand at checkpoint '%s' any more: %s",
           j->o->sync.since, r == 1 ? "it is no server of nbdmirror receive any more" : error);
  j->result = JOB_REFUSED;
  return -1;
}

/* Each job has an identity of its own, and each session tells it anew: the destination forgets it
 * when another session begins. */
void
job_checkpoint_session (struct job *j)
{
  const char *uri = keeper (j);
  CLEANUP_TEXT char *error = NULL;
  uint8_t uuid[16];

  j->return_uuid[0] = '\0';
  if (uri == NULL || !j->dest_proved)
    return;
  uuid_make (uuid);
  uuid_text (uuid, j->return_uuid);
  int r = destination_say_return (uri, j->dest_session.id, j->return_uuid, &error);
  if (r != 0)
    j->return_uuid[0] = '\0';
  if (r == -1)
    job_say (j, JOB_WARNING, "%s begins no checkpoint at the hand-over: %s", uri, error);
}

void
job_checkpoint_flush (struct job *j)
{
  struct engine *e = &j->engine;

  if (keeper (j) == NULL || !j->dest_proved || !j->ready)
    return;
  for (unsigned round = 0; round < 2 && !engine_clean (e); round++) {
    uint64_t begun = clock_ms (), before = atomic_load (&e->counters.flushes);
    engine_flush (e);
    while (atomic_load (&e->counters.flushes) == before && clock_ms () - begun < FLUSH_MS)
      clock_sleep_ms (1);
  }
}

void
job_checkpoint_end (struct job *j, json_t *report)
{
  const char *uri = keeper (j), *name, *uuid;
  CLEANUP_TEXT char *error = NULL;

  if (uri == NULL || !j->dest_proved || j->engine.unanswered || !j->supervisor.ever_copied)
    return;
  /* No list: its server has no state file, or has gone. */
  json_t *list = standing_list (j->control, &error);
  uint64_t *left = list != NULL ? standing_left (j->region) : NULL;
  if (left != NULL && standing_latest (j->control, list, j->region, left, &name, &uuid) == 0) {
    int r = destination_say_at (uri, j->dest_session.id, uuid, &error);
    if (r == 0) {
      json_object_set_new (report, "stands-at", json_string (name));
      job_say (j, JOB_NOTICE, "%s stands at checkpoint '%s'", uri, name);
    } else
      job_say (j, JOB_WARNING, "%s cannot keep that it stands at checkpoint '%s': %s", uri, name,
               r == 1 ? "it is no server of nbdmirror receive any more" : error);
  }
  free (left);
  json_decref (list);
}
