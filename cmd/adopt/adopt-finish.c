/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The last part of adopt.c: the guest uses our node.  What it has used before is removed, and
 * mirror jobs are allowed.
 */

#include "config.h"

#include <stdio.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/adopt/adopt.h"
#include "cmd/adopt/monitor.h"
#include "cmd/adopt/nodes.h"
#include "cmd/adopt/own-server.h"
#include "cmd/adopt/record.h"
#include "cmd/adopt/revive.h"
#include "cmd/adopt/same-image.h"
#include "cmd/adopt/served.h"
#include "cmd/adopt/stuck.h"
#include "cmd/cmd.h"

static int
failed (char *error)
{
  cmd_say ("%s", error);
  text_free (error);
  return EXIT_ERROR;
}

/* Remove what the guest has used before.  QEMU waits for the requests that are under way then, and
 * with them for the server. */
static int
remove_nodes (struct adopt *a, char **error)
{
  const char *nodes[] = { json_string_value (json_object_get (a->record, "node")),
                          json_string_value (json_object_get (a->record, "file-node")) };
  struct stuck_watch w = { .stuck = own_server_stuck_later, .opaque = a };
  int r = stuck_watch_start (&w, error);

  if (r == -1)
    return -1;
  for (unsigned i = 0; i < 2 && r == 0; i++)
    if (nodes[i] != NULL)
      r = nodes_remove (&a->vm, nodes[i], error);
  stuck_watch_end (&w);
  return r;
}

/* The same, and see that it is gone. */
static int
remove_old (struct adopt *a)
{
  const char *path = record_text (a->record, "filename");
  pid_t qemu = monitor_process (&a->vm);
  char *error = NULL;

  if (remove_nodes (a, &error) == -1)
    return failed (error);
  if (qemu > 0 && image_is_open_in (qemu, path) == 1) {
    cmd_say ("the guest uses %s, but QEMU (process %ld) still has %s open; what holds it?",
             a->socket, (long)qemu, path);
    return EXIT_ERROR;
  }
  return EXIT_DONE;
}

static void
report (const struct adopt *a, const struct served *s)
{
  const char *device = record_text (a->record, "backend");

  if (device[0] == '\0')
    device = record_text (a->record, "device");
  if (a->json) {
    json_t *o = json_pack ("{s:s, s:s, s:s, s:s, s:s, s:i, s:f}", "device", device, "image",
                           record_text (a->record, "filename"), "node", a->names.node, "socket",
                           a->socket, "control", a->control, "server-pid", (int)s->pid, "pivot-ms",
                           (double)a->took_ns / NS_PER_MS);
    json_dumpf (o, stdout, JSON_COMPACT | JSON_REAL_PRECISION (6));
    putchar ('\n');
    json_decref (o);
  } else
    cmd_say ("%s uses %s through %s now (%.1f ms)", device, record_text (a->record, "filename"),
             a->socket, (double)a->took_ns / NS_PER_MS);
}

/* The server has what the guest had, and may take jobs from now on.  The caller calls served_free()
 * after 0. */
static int
open_server (struct adopt *a, struct served *s, char **error)
{
  bool refused;

  own_server_stuck_later (a, 1); /* else the guest waits for it from now on */
  if (served_look (a->control, s, error) == -1)
    return -1;
  if ((s->image == NULL || record_take_image (a->control, a->record, s, error) == 0)
      && image_compare (record_text (a->record, "filename"), a->socket, 0, error) == 0
      && served_bypass (a->control, false, &refused, error) == 0)
    return 0;
  served_free (s);
  return -1;
}

int
adopt_finish (struct adopt *a)
{
  struct served s;
  char *error = NULL;

  /* It may have been killed: by us, or since an earlier run. */
  revive (a->control, a->record, NULL, false);
  int status = remove_old (a);
  if (status != EXIT_DONE)
    return status;
  int r = open_server (a, &s, &error);
  pid_t asked = a->server;
  if (r == -1)
    own_server_stuck_later (a, 2);
  if (a->server != asked) { /* it stopped while it was asked */
    text_free (error);
    error = NULL;
    r = open_server (a, &s, &error);
  }
  if (r == -1)
    return failed (error);
  report (a, &s);
  served_free (&s);
  return EXIT_DONE;
}
