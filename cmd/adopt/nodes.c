/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See nodes.h.
 */

#include "config.h"

#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/adopt/nodes.h"

#define REMOVE_TRIES 50
#define REMOVE_PAUSE_MS 20

static const char *
text_of (const json_t *record, const char *key)
{
  return json_string_value (json_object_get (record, key));
}

int
nodes_add_server (struct machine *v, const struct adopt_names *names, const json_t *record,
                  unsigned reconnect_s, char **error)
{
  json_t *cache = json_pack ("{s:O, s:O}", "direct", json_object_get (record, "direct"), "no-flush",
                             json_object_get (record, "no-flush"));
  json_t *args = json_pack ("{s:s, s:s, s:{s:s, s:s}, s:s, s:i, s:s, s:s, s:o}", "driver", "nbd",
                            "node-name", names->node, "server", "type", "unix", "path",
                            text_of (record, "socket"), "export", "", "reconnect-delay",
                            (int)reconnect_s, "discard", text_of (record, "discard"),
                            "detect-zeroes", text_of (record, "detect-zeroes"), "cache", cache);
  return machine_call (v, "blockdev-add", args, NULL, NULL, error);
}

int
nodes_exist (struct machine *v, const char *node, bool *exists, char **error)
{
  json_t *nodes = NULL, *o;
  size_t i;

  *exists = false;
  if (machine_call (v, "query-named-block-nodes", json_pack ("{s:b}", "flat", 1), &nodes, NULL,
                    error)
      == -1)
    return -1;
  json_array_foreach (nodes, i, o)
  {
    const char *name = text_of (o, "node-name");
    *exists = *exists || (name != NULL && strcmp (name, node) == 0);
  }
  json_decref (nodes);
  return 0;
}

int
nodes_remove (struct machine *v, const char *node, char **error)
{
  for (int tries = 1;; tries++) {
    bool exists;
    if (nodes_exist (v, node, &exists, error) == -1)
      return -1;
    if (!exists)
      return 0;
    char *refusal = NULL;
    int r = machine_call (v, "blockdev-del", json_pack ("{s:s}", "node-name", node), NULL, NULL,
                          &refusal);
    if (r == 0 || tries == REMOVE_TRIES) {
      if (r == -1)
        text_error (error, "%s", refusal);
      text_free (refusal);
      return r;
    }
    text_free (refusal);
    clock_sleep_ms (REMOVE_PAUSE_MS);
  }
}

/* ---- the image ------------------------------------------------------------------------------ */

/* The name of the node that the guest uses. */
static const char *
guest_node (const struct adopt_names *names, const json_t *record)
{
  const char *node = text_of (record, "node");
  return node != NULL ? node : names->image;
}

static const char *
file_node (const struct adopt_names *names, const json_t *record)
{
  const char *node = text_of (record, "file-node");
  return node != NULL ? node : names->file;
}

/* What both nodes have. */
static json_t *
begin_node (const json_t *record, const char *driver, const char *node, bool of_guest)
{
  json_t *o = json_pack ("{s:s, s:s, s:s, s:{s:O, s:O}}", "driver", driver, "node-name", node,
                         "discard", text_of (record, "discard"), "cache", "direct",
                         json_object_get (record, "direct"), "no-flush",
                         json_object_get (record, "no-flush"));
  if (of_guest)
    json_object_set (o, "detect-zeroes", json_object_get (record, "detect-zeroes"));
  return o;
}

int
nodes_add_file (struct machine *v, const json_t *record, const char *node, bool locked,
                char **error)
{
  json_t *o = begin_node (record, text_of (record, "file-driver"), node, false);

  json_object_set (o, "filename", json_object_get (record, "filename"));
  json_object_set (o, "aio", json_object_get (record, "aio"));
  if (!locked)
    json_object_set_new (o, "locking", json_string ("off"));
  return machine_call (v, "blockdev-add", o, NULL, NULL, error);
}

int
nodes_add_image (struct machine *v, const struct adopt_names *names, const json_t *record,
                 const char **node, char **error)
{
  const char *driver = text_of (record, "driver"), *guest = guest_node (names, record);
  const char *file = driver != NULL ? file_node (names, record) : guest;
  json_t *o = begin_node (record, text_of (record, "file-driver"), file, driver == NULL);

  json_object_set (o, "filename", json_object_get (record, "filename"));
  json_object_set (o, "aio", json_object_get (record, "aio"));
  *node = guest;
  if (machine_call (v, "blockdev-add", o, NULL, NULL, error) == -1)
    return -1;
  if (driver == NULL)
    return 0;
  o = begin_node (record, driver, guest, true);
  json_object_set_new (o, "file", json_string (file));
  if (machine_call (v, "blockdev-add", o, NULL, NULL, error) == 0)
    return 0;
  char *ignored = NULL;
  nodes_remove (v, file, &ignored);
  text_free (ignored);
  return -1;
}

int
nodes_remove_image (struct machine *v, const struct adopt_names *names, const json_t *record,
                    char **error)
{
  if (nodes_remove (v, guest_node (names, record), error) == -1)
    return -1;
  return text_of (record, "driver") == NULL ? 0
                                            : nodes_remove (v, file_node (names, record), error);
}
