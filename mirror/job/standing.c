/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * At which checkpoint a destination stands.  See standing.h.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "dirty-bitmap/bitmap.h"
#include "mirror/endpoint/seal.h"
#include "mirror/endpoint/uri.h"
#include "mirror/job/standing.h"

#define ASK_MS 30000
#define LATEST_TRIED 8 /* each costs a map of the disk */

json_t *
standing_list (struct control_client *control, char **error)
{
  json_t *all = json_array (), *ret = NULL;
  size_t total = 1;

  while (json_array_size (all) < total) {
    const struct control_call call
        = { .command = "query-mirror-checkpoints",
            .args = json_pack ("{s:I}", "from", (json_int_t)json_array_size (all)),
            .timeout_ms = ASK_MS,
            .ret = &ret };
    if (control_client_call (control, &call, error) == -1) {
      json_decref (all);
      return NULL;
    }
    const json_t *part = json_object_get (ret, "checkpoints");
    total = json_array_size (part) != 0
                ? (size_t)json_integer_value (json_object_get (ret, "total"))
                : 0;
    json_array_extend (all, (json_t *)part);
    json_decref (ret);
    ret = NULL;
  }
  return all;
}

/* The position in LIST of the checkpoint whose KEY is VALUE; -1: there is none. */
static int
find (const json_t *list, const char *key, const char *value)
{
  for (size_t i = 0; i < json_array_size (list); i++) {
    const char *is = json_string_value (json_object_get (json_array_get (list, i), key));
    if (is != NULL && strcmp (is, value) == 0)
      return (int)i;
  }
  return -1;
}

const char *
standing_uuid (const json_t *list, const char *name)
{
  int i = find (list, "name", name);

  return i == -1 ? NULL : json_string_value (json_object_get (json_array_get (list, i), "uuid"));
}

enum job_result
standing_prove (const json_t *list, const char *since, const char *uri, char from[UUID_TEXT_BYTES],
                char **error)
{
  static const char advice[] = "--trust-destination goes on after a look at random blocks;"
                               " --sync compare needs no trust";
  CLEANUP_TEXT char *why = NULL;
  const char *wanted = standing_uuid (list, since);
  int r = uri != NULL && uri_kind (uri) != URI_NONE ? destination_standing (uri, from, &why) : 1;

  if (wanted == NULL) {
    text_error (error, "there is no checkpoint '%s'", since);
    return JOB_REFUSED;
  }
  if (r == -1) {
    text_error (error, "%s", why);
    return JOB_DEST_FAILED;
  }
  int at = r == 0 ? find (list, "uuid", from) : -1;
  if (at >= find (list, "name", since))
    return JOB_COMPLETED;
  if (r == 1)
    text_error (error,
                "refused: the destination does not tell whether it stands at checkpoint '%s' (%s),"
                " as nbdmirror receive does for a file; %s",
                since, wanted, advice);
  else
    text_error (error,
                "refused: the destination does not stand at checkpoint '%s' (%s) or a later one:"
                " it stands at %s%s%s; %s",
                since, wanted,
                from[0] == '\0' ? "none"
                : at >= 0 ? json_string_value (json_object_get (json_array_get (list, at), "name"))
                          : "one that this disk does not have",
                from[0] != '\0' ? ", " : "", from, advice);
  return JOB_REFUSED;
}

/* Was each block of the range changed? */
static bool
was_changed (const struct incremental *inc, uint64_t offset, uint64_t length)
{
  for (uint64_t b = offset / inc->block_size; b <= (offset + length - 1) / inc->block_size; b++)
    if (b < inc->nr_blocks && (inc->bits[b / 64] >> (b % 64) & 1) == 0)
      return false;
  return true;
}

uint64_t *
standing_left (const struct region *r)
{
  uint64_t *left = calloc (r->geo.nr_words + 1, 8);
  bool complete = left != NULL;

  for (int a = REGION_DIRTY; complete && a <= REGION_QUARANTINE; a++)
    complete = bitmap_or_words (r, (enum region_array)a, 0, r->geo.nr_words, left);
  if (complete)
    return left;
  free (left);
  return NULL;
}

bool
standing_left_since (struct control_client *control, const struct region *r, const uint64_t *left,
                     const char *name)
{
  const struct sync_options since = { .since = name };
  struct incremental inc = { .sync = &since, .control = control };
  CLEANUP_TEXT char *error = NULL;
  uint64_t size = r->geo.block_size;

  bool all = incremental_ask (&inc, &error) == JOB_COMPLETED;
  for (uint64_t b = 0; all && b < r->geo.nr_blocks; b++)
    if ((left[b / 64] >> (b % 64) & 1) != 0)
      all = was_changed (&inc, b * size, size);
  incremental_free (&inc);
  return all;
}

int
standing_latest (struct control_client *control, const json_t *list, const struct region *r,
                 const uint64_t *left, const char **name, const char **uuid)
{
  for (size_t i = json_array_size (list), tried = 0; i-- > 0 && tried < LATEST_TRIED; tried++) {
    const json_t *c = json_array_get (list, i);
    *name = json_string_value (json_object_get (c, "name"));
    *uuid = json_string_value (json_object_get (c, "uuid"));
    if (*name != NULL && *uuid != NULL && standing_left_since (control, r, left, *name))
      return 0;
  }
  return -1;
}
