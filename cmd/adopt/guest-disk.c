/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See guest-disk.h.
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "cmd/adopt/guest-disk.h"
#include "cmd/adopt/monitor.h"
#include "cmd/adopt/nodes.h"

static const char *
text_of (const json_t *o, const char *key)
{
  const char *text = json_string_value (json_object_get (o, key));
  return text != NULL ? text : "";
}

static bool
equal (const char *a, const char *b)
{
  return strcmp (a, b) == 0;
}

const char *
guest_disk_name (const struct guest_disk *d)
{
  return d->backend[0] != '\0' ? d->backend : d->device[0] != '\0' ? d->device : d->node;
}

/* Without dots and symbolic links, where there is such a file. */
static char *
plain_path (const char *path)
{
  char *real = realpath (path, NULL);
  char *plain = text_copy (real != NULL ? real : path);

  free (real);
  return plain;
}

char *
guest_disk_path (const struct machine *v, const char *its)
{
  pid_t qemu = monitor_process (v);

  if (its[0] == '/' || qemu == 0)
    return plain_path (its);
  CLEANUP_TEXT char *path = text_printf ("/proc/%ld/cwd/%s", (long)qemu, its);
  return plain_path (path);
}

/* ---- finding ---------------------------------------------------------------------------------*/

static struct guest_disk
describe (json_t *blocks, const json_t *row)
{
  const json_t *inserted = json_object_get (row, "inserted");

  return (struct guest_disk){ .blocks = blocks,
                              .device = text_of (row, "qdev"),
                              .backend = text_of (row, "device"),
                              .node = text_of (inserted, "node-name"),
                              .driver = text_of (inserted, "drv"),
                              .filename = text_of (inserted, "file"),
                              .inserted = inserted };
}

/* Is ID the device's id?  Its QOM path is /machine/peripheral/ID, perhaps with more behind it. */
static bool
has_id (const char *qom_path, const char *id)
{
  static const char parent[] = "/machine/peripheral/";
  size_t len = strlen (id);

  if (strncmp (qom_path, parent, sizeof parent - 1) != 0)
    return false;
  const char *its = qom_path + sizeof parent - 1;
  return strncmp (its, id, len) == 0 && (its[len] == '\0' || its[len] == '/');
}

bool
guest_disk_is_meant (const struct guest_disk *d, const struct disk_choice *c)
{
  if (c->node != NULL)
    return equal (d->node, c->node);
  if (c->device != NULL)
    return equal (d->backend, c->device) || equal (d->device, c->device)
           || has_id (d->device, c->device);
  return !json_is_true (json_object_get (d->inserted, "ro"));
}

/* "disk0 (device /machine/peripheral/vd0, /srv/vm1.img), disk1 (…)", or "none" */
static char *
list_disks (json_t *blocks)
{
  char *list = text_copy ("");
  json_t *row;
  size_t i;

  json_array_foreach (blocks, i, row)
  {
    struct guest_disk d = describe (blocks, row);
    if (d.inserted == NULL)
      continue;
    char *longer = text_printf ("%s%s%s (device %s, %s)", list, list[0] != '\0' ? ", " : "", d.node,
                                d.backend[0] != '\0' ? d.backend : d.device, d.filename);
    text_free (list);
    list = longer;
  }
  if (list[0] == '\0') {
    text_free (list);
    list = text_copy ("none");
  }
  return list;
}

int
guest_disk_choose (struct machine *v, const struct disk_choice *choice, struct guest_disk *d,
                   bool *refused, char **error)
{
  json_t *blocks = NULL, *row;
  unsigned found = 0;
  bool covered = false;
  size_t i;

  *refused = false;

  if (machine_call (v, "query-block", NULL, &blocks, NULL, error) == -1)
    return -1;
  json_array_foreach (blocks, i, row)
  {
    struct guest_disk it = describe (blocks, row);
    if (it.inserted != NULL && guest_disk_is_meant (&it, choice) && found++ == 0)
      *d = it;
  }
  if (found == 1)
    return 0;
  if (choice->node != NULL && nodes_exist (v, choice->node, &covered, error) == -1) {
    json_decref (blocks);
    return -1;
  }
  *refused = covered;
  const char *wanted = choice->node != NULL ? choice->node : choice->device;
  CLEANUP_TEXT char *list = list_disks (blocks);
  if (covered)
    text_error (
        error,
        "%s QEMU has a node '%s', which no device uses by itself: perhaps another node lies "
        "on top, of a job for instance; its disks: %s",
        v->name, wanted, list);
  else if (wanted != NULL)
    text_error (error, "%s QEMU has no disk '%s'; it has: %s", v->name, wanted, list);
  else if (found == 0)
    text_error (error, "%s QEMU has no disk that the guest can write to", v->name);
  else
    text_error (error, "%s QEMU has several disks, name one with --node or --device: %s", v->name,
                list);
  json_decref (blocks);
  return -1;
}

int
guest_disk_find (struct machine *v, const char *device, const char *backend, struct guest_disk *d,
                 char **error)
{
  json_t *blocks = NULL, *row;
  size_t i;

  if (machine_call (v, "query-block", NULL, &blocks, NULL, error) == -1)
    return -1;
  json_array_foreach (blocks, i, row)
  {
    *d = describe (blocks, row);
    if (d->inserted != NULL && equal (d->device, device) && equal (d->backend, backend))
      return 1;
  }
  json_decref (blocks);
  return 0;
}

/* QEMU writes nbd+unix:///EXPORT?socket=PATH, for a raw node on top as well, and json:{…} for one
 * that shows a part of what is below. */
static bool
uses_socket (const struct machine *v, const struct guest_disk *d, const char *path)
{
  static const char key[] = "?socket=";
  const char *query = strstr (d->filename, key);
  CLEANUP_TEXT char *member = text_printf ("path\": \"%s\"", path); /* or server.path */

  if (equal (d->driver, "raw") && strncmp (d->filename, "json:", 5) == 0)
    return strstr (d->filename, member) != NULL;
  if ((!equal (d->driver, "nbd") && !equal (d->driver, "raw")) || query == NULL)
    return false;
  const char *named = query + sizeof key - 1;
  CLEANUP_TEXT char *its = guest_disk_path (v, named), *ours = plain_path (path);
  return equal (named, path) || equal (its, ours);
}

int
guest_disk_of_socket (struct machine *v, const char *path, struct guest_disk *d, char **error)
{
  json_t *blocks = NULL, *row;
  size_t i;

  if (machine_call (v, "query-block", NULL, &blocks, NULL, error) == -1)
    return -1;
  json_array_foreach (blocks, i, row)
  {
    *d = describe (blocks, row);
    if (d->inserted != NULL && uses_socket (v, d, path))
      return 1;
  }
  CLEANUP_TEXT char *list = list_disks (blocks);
  json_decref (blocks);
  text_error (error, "%s QEMU has no disk that uses %s; its disks: %s", v->name, path, list);
  return 0;
}

void
guest_disk_free (struct guest_disk *d)
{
  json_decref (d->blocks);
  d->blocks = NULL;
}

/* ---- may it be adopted? --------------------------------------------------------------------- */

/* The row of query-named-block-nodes for NODE, or NULL. */
static json_t *
find_node (json_t *nodes, const char *node)
{
  json_t *o;
  size_t i;

  json_array_foreach (nodes, i, o) if (equal (text_of (o, "node-name"), node)) return o;
  return NULL;
}

static json_int_t
virtual_size (const json_t *inserted)
{
  return json_integer_value (json_object_get (json_object_get (inserted, "image"), "virtual-size"));
}

/* All nodes, and who uses whom. */
struct graph {
  json_t *nodes, *graph;
};

static void
graph_free (struct graph *g)
{
  json_decref (g->graph);
  json_decref (g->nodes);
}

static int
graph_take (struct machine *v, struct graph *g, char **error)
{
  *g = (struct graph){ .nodes = NULL };
  if (machine_call (v, "query-named-block-nodes", json_pack ("{s:b}", "flat", 1), &g->nodes, NULL,
                    error)
          == 0
      && machine_call (v, "x-debug-query-block-graph", NULL, &g->graph, NULL, error) == 0)
    return 0;
  graph_free (g);
  return -1;
}

static json_int_t
graph_id (json_t *graph, const char *name)
{
  json_t *o;
  size_t i;

  json_array_foreach (json_object_get (graph, "nodes"), i,
                      o) if (equal (text_of (o, "type"), "block-driver")
                             && equal (text_of (o, "name"),
                                       name)) return json_integer_value (json_object_get (o, "id"));
  return -1;
}

/* What stands at the other end of the only edge from or to node ID; -1 if there is none, -2 if
 * there are several.  KEY and OTHER are "parent" and "child", or the other way round. */
static json_int_t
only_neighbour (json_t *graph, json_int_t id, const char *key, const char *other)
{
  json_int_t found = -1;
  json_t *o;
  size_t i;

  json_array_foreach (json_object_get (graph, "edges"), i, o)
  {
    if (json_integer_value (json_object_get (o, key)) != id)
      continue;
    if (found != -1)
      return -2;
    found = json_integer_value (json_object_get (o, other));
  }
  return found;
}

static const char *
graph_name (json_t *graph, json_int_t id)
{
  json_t *o;
  size_t i;

  json_array_foreach (json_object_get (graph, "nodes"), i,
                      o) if (json_integer_value (json_object_get (o, "id"))
                             == id) return text_of (o, "name");
  return "";
}

static bool
is_file_driver (const char *driver)
{
  return equal (driver, "file") || equal (driver, "host_device");
}

/* The kind of disk: *ERROR and -1 if it is none that we can serve. */
static int
check_kind (const struct guest_disk *d, char **error)
{
  const char *name = guest_disk_name (d);

  if (json_is_true (json_object_get (d->inserted, "ro")))
    return text_error (error, "%s: the guest's disk is read-only: there is nothing to track", name);
  if (json_is_true (json_object_get (d->inserted, "encrypted")))
    return text_error (error, "%s: its image is encrypted by QEMU", name);
  if (equal (d->driver, "raw") || is_file_driver (d->driver))
    return 0;
  if (equal (d->driver, "qcow2") || equal (d->driver, "vmdk") || equal (d->driver, "vdi")
      || equal (d->driver, "vpc") || equal (d->driver, "vhdx") || equal (d->driver, "qed"))
    return text_error (error,
                       "%s: its format is %s, and two programs must not open such an image at a "
                       "time; 'nbdmirror mirror qmp:SOCKET/%s DEST' mirrors it as it is",
                       name, d->driver, d->node);
  if (equal (d->driver, "nbd"))
    return text_error (error,
                       "%s: the guest uses a server already, %s: a disk that was adopted is found "
                       "by the --control and the --socket that it was adopted with",
                       name, d->filename);
  return text_error (error,
                     "%s: on top of the disk there is a node '%s' of the driver '%s', which "
                     "would be lost",
                     name, d->node, d->driver);
}

static bool
is_connection (const char *driver)
{
  return equal (driver, "nbd");
}

/* What has to be below the guest's node. */
struct lowest {
  bool (*is_it) (const char *driver);
  const char *what;
};

static const struct lowest on_image = { is_file_driver, "file or block device" };
static const struct lowest on_server = { is_connection, "connection to a server" };

/* The lowest node, and that nobody else uses it or the guest's node. */
static int
check_users (const struct graph *g, const struct guest_disk *d, const struct lowest *wanted,
             struct image_node *image, char **error)
{
  const char *name = guest_disk_name (d), *lowest = d->node;
  json_int_t id = graph_id (g->graph, d->node);

  if (id == -1)
    return text_error (error, "%s: QEMU does not tell who uses the node '%s'", name, d->node);
  if (only_neighbour (g->graph, id, "child", "parent") < 0)
    return text_error (error,
                       "%s: something else in QEMU uses the node '%s', too (an export, a job, a "
                       "second device)",
                       name, d->node);
  if (!wanted->is_it (d->driver)) {
    json_int_t child = only_neighbour (g->graph, id, "parent", "child");
    lowest = child < 0 ? "" : graph_name (g->graph, child);
    if (child < 0 || only_neighbour (g->graph, child, "child", "parent") != id)
      return text_error (error, "%s: something else in QEMU uses the %s below the node '%s'", name,
                         wanted->what, d->node);
  }
  const char *driver = text_of (find_node (g->nodes, lowest), "drv");
  if (!wanted->is_it (driver))
    return text_error (error,
                       "%s: below the node '%s' there is no %s, but a node '%s' of the driver '%s'",
                       name, d->node, wanted->what, lowest, driver);
  snprintf (image->node, sizeof image->node, "%s", lowest);
  snprintf (image->driver, sizeof image->driver, "%s", driver);
  return 0;
}

/* The node on top may be a part of what is below. */
static int
check_whole (const struct graph *g, const struct guest_disk *d, const struct image_node *below,
             char **error)
{
  const json_t *node = find_node (g->nodes, below->node);
  json_int_t size = virtual_size (d->inserted), whole = virtual_size (node);

  if (size == whole)
    return 0;
  return text_error (error,
                     "%s: the guest's disk has %jd bytes, which is a part of the server's disk "
                     "only: that has %jd",
                     guest_disk_name (d), (intmax_t)size, (intmax_t)whole);
}

int
guest_disk_check (struct machine *v, const struct guest_disk *d, struct image_node *image,
                  bool *refused, char **error)
{
  struct graph g;

  *refused = true;
  if (check_kind (d, error) == -1)
    return -1;
  *refused = false;
  if (graph_take (v, &g, error) == -1)
    return -1;
  *refused = true;
  int r = check_users (&g, d, &on_image, image, error);
  graph_free (&g);
  return r;
}

int
guest_disk_check_below (struct machine *v, const struct guest_disk *d, struct image_node *below,
                        bool *refused, char **error)
{
  struct graph g;

  *refused = false;
  if (graph_take (v, &g, error) == -1)
    return -1;
  *refused = true;
  int r = check_users (&g, d, &on_server, below, error);
  if (r == 0)
    r = check_whole (&g, d, below, error);
  graph_free (&g);
  return r;
}

int
guest_disk_below (struct machine *v, const char *node, struct image_node *below, char **error)
{
  struct graph g;

  *below = (struct image_node){ .node = "" };
  if (graph_take (v, &g, error) == -1)
    return -1;
  json_int_t id = graph_id (g.graph, node);
  json_int_t child = id != -1 ? only_neighbour (g.graph, id, "parent", "child") : -1;
  if (child >= 0) {
    snprintf (below->node, sizeof below->node, "%s", graph_name (g.graph, child));
    snprintf (below->driver, sizeof below->driver, "%s",
              text_of (find_node (g.nodes, below->node), "drv"));
  }
  graph_free (&g);
  return 0;
}
