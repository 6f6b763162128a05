/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See exchange.h.
 */

#include "config.h"

#include <string.h>

#include "cmd/adopt/exchange.h"
#include "cmd/adopt/nodes.h"

/* What is below the kept node.  FIRST: the image, under our name; LAST: as it is to stay. */
enum below { SERVER, FIRST, LAST };

static const char *
text_of (const json_t *record, const char *key)
{
  return json_string_value (json_object_get (record, key));
}

void
exchange_note (json_t *record, const struct guest_disk *d, const struct image_node *below,
               const char *discard)
{
  json_object_set_new (record, "kept", json_string (d->node));
  json_object_set_new (record, "below",
                       below->node[0] == '#' ? json_null () : json_string (below->node));
  json_object_set_new (record, "kept-discard",
                       discard != NULL ? json_string (discard) : json_null ());
}

const char *
exchange_kept (const json_t *record)
{
  return text_of (record, "kept");
}

static int
look (struct machine *v, const struct adopt_names *names, const json_t *record, enum below *it,
      char **error)
{
  const char *last = text_of (record, "below");
  struct image_node below;

  if (guest_disk_below (v, exchange_kept (record), &below, error) == -1)
    return -1;
  if (strcmp (below.node, names->file) == 0)
    *it = last != NULL ? FIRST : LAST;
  else if (strcmp (below.node, names->image) == 0)
    *it = LAST;
  else
    *it = last != NULL && strcmp (below.node, last) == 0 && strcmp (below.driver, "nbd") != 0
              ? LAST
              : SERVER;
  return 0;
}

int
exchange_is_away (struct machine *v, const struct adopt_names *names, const json_t *record,
                  bool *away, char **error)
{
  enum below below;

  if (look (v, names, record, &below, error) == -1)
    return -1;
  *away = below != SERVER;
  return 0;
}

int
exchange_for (struct machine *v, const json_t *record, const char *node, char **error)
{
  /* What is not named here is set to its default, but for discard, which then stays as it is. */
  json_t *o = json_pack ("{s:s, s:s, s:s, s:b, s:O, s:{s:O, s:O}}", "driver", "raw", "node-name",
                         exchange_kept (record), "file", node, "read-only", 0, "detect-zeroes",
                         json_object_get (record, "detect-zeroes"), "cache", "direct",
                         json_object_get (record, "direct"), "no-flush",
                         json_object_get (record, "no-flush"));
  const char *discard = text_of (record, "kept-discard");

  if (discard != NULL)
    json_object_set_new (o, "discard", json_string (discard));
  return machine_call (v, "blockdev-reopen", json_pack ("{s:[o]}", "options", o), NULL, NULL,
                       error);
}

static int
put_image (struct machine *v, const json_t *record, const char *node, bool locked, char **error)
{
  if (nodes_remove (v, node, error) == -1 /* of an earlier run; or the connection */
      || nodes_add_file (v, record, node, locked, error) == -1)
    return -1;
  return exchange_for (v, record, node, error);
}

int
exchange_for_image (struct machine *v, const struct adopt_names *names, const json_t *record,
                    char **error)
{
  const char *last = text_of (record, "below");
  enum below below;

  if (look (v, names, record, &below, error) == -1
      || (below == SERVER && put_image (v, record, names->file, last == NULL, error) == -1))
    return -1;
  if (last == NULL)
    return 0;
  if (below != LAST && put_image (v, record, last, true, error) == -1)
    return -1;
  return nodes_remove (v, names->file, error);
}
