/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * --sync incremental and --sync auto without --since: at which checkpoint of this disk does the
 * destination stand, by what its server knows?  What is chosen here is proved once more when the
 * job begins (incremental.h).
 */

#include "config.h"

#include <string.h>

#include "base/text.h"
#include "mirror/endpoint/seal.h"
#include "mirror/endpoint/uri.h"
#include "mirror/job/internal.h"
#include "mirror/job/standing.h"

/* The checkpoint of LIST whose UUID is FROM, or NULL. */
static const json_t *
find_checkpoint (const json_t *list, const char *from)
{
  const json_t *c;
  size_t i;

  json_array_foreach (list, i, c)
  {
    const char *uuid = json_string_value (json_object_get (c, "uuid"));
    if (uuid != NULL && strcmp (uuid, from) == 0)
      return c;
  }
  return NULL;
}

/* NULL with *CHECKPOINT, LIST's; or why there is none that can be used (text_free()). */
static char *
look (struct job *j, const json_t *list, const json_t **checkpoint)
{
  const char *uri = j->o->dest.nr_dest == 1 ? j->o->dest.dest[0] : NULL;
  char from[UUID_TEXT_BYTES] = "", *why = NULL;
  int r = uri != NULL && uri_kind (uri) != URI_NONE ? destination_standing (uri, from, &why) : 1;

  if (r == -1)
    return why;
  if (r == 1)
    return text_copy ("the destination does not tell at which checkpoint it stands, as nbdmirror"
                      " receive does for a file");
  if (from[0] == '\0')
    return text_copy ("the destination stands at no checkpoint: it is new, or was written to, or"
                      " its server did not end in order");
  *checkpoint = find_checkpoint (list, from);
  if (*checkpoint == NULL)
    return text_printf ("the destination stands at checkpoint %s, which this disk does not have",
                        from);
  const char *status = json_string_value (json_object_get (*checkpoint, "status"));
  const char *reason = json_string_value (json_object_get (*checkpoint, "reason"));
  if (status == NULL || strcmp (status, "consistent") != 0)
    return text_printf ("checkpoint '%s' is inconsistent: %s",
                        json_string_value (json_object_get (*checkpoint, "name")),
                        reason != NULL ? reason : "no reason is known");
  return NULL;
}

/* A job is left over, and we go on with it: how was it begun? */
static void
go_on (struct job *j, const json_t *status)
{
  const char *old = json_string_value (json_object_get (status, "sync"));

  if (j->o->sync.automatic && (old == NULL || strcmp (old, sync_name (j->o->sync.mode)) != 0))
    j->options.sync.mode = ENGINE_SYNC_FULL;
}

int
job_choose_since (struct job *j, const json_t *status)
{
  const json_t *checkpoint = NULL;

  if (j->o->sync.mode != ENGINE_SYNC_INCREMENTAL || j->o->sync.since != NULL)
    return 0;
  if (json_is_integer (json_object_get (status, "dirty-bytes")) && job_resumes (j)) {
    go_on (j, status);
    return 0;
  }
  CLEANUP_TEXT char *why = NULL;
  json_t *list = standing_list (j->control, &why);
  if (list != NULL)
    why = look (j, list, &checkpoint);
  if (why == NULL) {
    j->since = text_copy (json_string_value (json_object_get (checkpoint, "name")));
    j->options.sync.since = j->since;
    job_say (j, JOB_NOTICE,
             "incremental: the destination stands at checkpoint '%s', and gets what was changed"
             " since",
             j->since);
  } else if (j->o->sync.automatic) {
    j->options.sync.mode = ENGINE_SYNC_FULL;
    job_say (j, JOB_NOTICE, "full: %s", why);
  } else {
    job_say (j, JOB_ERROR, "refused: %s; --sync compare needs no checkpoint", why);
    j->result = JOB_REFUSED;
  }
  json_decref (list);
  return why == NULL || j->o->sync.automatic ? 0 : -1;
}
