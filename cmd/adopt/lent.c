/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * An image in a format like qcow2: QEMU locks it, and two programs must not have it open at a time.
 * So the guest is stopped for some ten milliseconds, while the server lets go of it and QEMU opens
 * it:
 *
 *   1. what the guest gets is written to CONTROL.adopted, and that it is we who stop it
 *   2. the guest is stopped, and QEMU flushes its disks
 *   3. the server ends its qemu-nbd, in order, and lets its clients wait (control/lend-export.h)
 *   4. QEMU opens the image, and the guest's device is put onto it (pivot.h).  No request is under
 *      way, so nothing reaches the server
 *   5. the guest goes on
 *
 * A failure takes the image out of QEMU again, gives it back to the server, which opens it at the
 * next request, and lets the guest go on there.  Who is killed meanwhile leaves that to another
 * process (stopped-guest.h), and to the next run if that is killed, too.
 */

#include "config.h"

#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/adopt/exchange.h"
#include "cmd/adopt/give-back.h"
#include "cmd/adopt/monitor.h"
#include "cmd/adopt/nodes.h"
#include "cmd/adopt/pivot.h"
#include "cmd/adopt/record.h"
#include "cmd/adopt/same-image.h"
#include "cmd/cmd.h"

#define CONNECT_PAUSE_MS 1000
#define CONNECT_TRIES 10

static int
failed (char *error)
{
  cmd_say ("%s", error);
  text_free (error);
  return -1;
}

int
lent_check (struct give_back *g, const char *format, char **error)
{
  const char *path = record_text (g->record, "filename");

  /* A server whose image was lent before has no qemu-nbd until somebody needs it. */
  if (image_wake (g->server.socket, error) == -1)
    return -1;
  if (g->server.pid == 0 || image_is_open_below (g->server.pid, path) != 1)
    return 0;
  if (!image_has_writer (path))
    return text_error (error,
                       "the server (process %ld) does not write to %s: it is the base of the image "
                       "that is served, or on a file system without locks",
                       (long)g->server.pid, path);
  g->lent = true;
  json_object_set_new (g->record, "driver", json_string (format));
  return 0;
}

/* ---- the guest ------------------------------------------------------------------------------- */

static void
settle (void *opaque)
{
  struct give_back *g = opaque;
  char *error = NULL;
  bool refused, done;

  /* These were the worker's, whose descriptors are closed. */
  g->vm.qmp = NULL;
  g->loan = NULL;
  g->guard.pid = 0;
  cmd_warning ("the process that gives the disk back has ended: looking where things stand");
  for (int tries = 0; tries < CONNECT_TRIES; tries++) {
    text_free (error);
    error = NULL;
    if (monitor_open (&g->vm, g->under_libvirt, &refused, &error) == 0
        && pivot_end_leftover (&g->vm, &g->names, &error) == 0) {
      if (give_back_go_on (g, &done) == EXIT_DONE)
        return;
    }
    clock_sleep_ms (CONNECT_PAUSE_MS);
  }
  cmd_say ("the guest may be stopped, and its disk half given back: run the same command again%s%s",
           error != NULL ? ": " : "", error != NULL ? error : "");
}

/* The record says whether the guest is stopped by us before it is, and which node it leaves.  QEMU
 * itself removes one that it has made up. */
static int
stop_guest (struct give_back *g, const char *old, char **error)
{
  char status[32];

  machine_status (&g->vm, status);
  if (status[0] == '\0')
    return text_error (error, "%s QEMU does not tell whether its guest runs", g->vm.name);
  bool runs = strcmp (status, "running") == 0;
  json_object_set_new (g->record, "lent", json_true ());
  json_object_set_new (g->record, "stopped", json_boolean (runs));
  if (old[0] != '#')
    json_object_set_new (g->record, "old", json_string (old));
  if (stopped_guest_start (&g->guard, settle, g, error) == -1
      || record_save (g->control, g->record, error) == -1)
    return -1;
  g->stop_ns = clock_ns ();
  return runs ? machine_call (&g->vm, "stop", NULL, NULL, NULL, error) : 0;
}

static void
continue_guest (struct give_back *g)
{
  CLEANUP_TEXT char *error = NULL;

  if (machine_continue (&g->vm, &error) == 0)
    g->stopped_ns = g->stop_ns > 0 ? clock_ns () - g->stop_ns : 0;
  else
    cmd_warning ("the guest is stopped, and does not go on: %s", error);
}

/* ---- the image ------------------------------------------------------------------------------- */

static int
borrow (struct give_back *g, char **error)
{
  const char *path = record_text (g->record, "filename");
  CLEANUP_TEXT char *format = NULL;

  g->loan = loan_take (g->server.socket, &format, error);
  if (g->loan == NULL)
    return -1;
  if (strcmp (format, record_text (g->record, "driver")) != 0)
    return text_error (error, "%s looks like %s, and the server has it open as %s", path,
                       record_text (g->record, "driver"), format);
  if (image_has_writer (path))
    return text_error (error, "another program has %s open as well", path);
  return 0;
}

/* The server does not answer, and QEMU waits for it with a request of a guest that somebody else
 * has let go on. */
static void
end_server (void *opaque, unsigned attempt)
{
  const struct give_back *g = opaque;

  if (attempt == 1)
    return;
  cmd_warning ("QEMU waits for a request to the server (process %ld), so it was killed: did "
               "somebody let the guest go on?",
               (long)g->server.pid);
  served_kill (g->server.pid);
}

int
lent_move (struct give_back *g, const struct guest_disk *d, const char **node)
{
  struct pivot p = { .names = &g->names, .from = d->node, .stuck = end_server, .opaque = g };
  char *error = NULL;

  if (nodes_remove_image (&g->vm, &g->names, g->record, &error) == -1 /* of an earlier run */
      || stop_guest (g, d->node, &error) == -1 || borrow (g, &error) == -1
      || nodes_add_image (&g->vm, &g->names, g->record, node, &error) == -1)
    return failed (error);
  p.to = *node;
  int r = g->kept ? exchange_for (&g->vm, g->record, *node, &error) : pivot (&g->vm, &p, &error);
  g->took_ns = p.took_ns;
  return r == 0 ? 0 : failed (error);
}

void
lent_go_on (struct give_back *g)
{
  if (json_is_true (json_object_get (g->record, "stopped")))
    continue_guest (g);
}

void
lent_undo (struct give_back *g)
{
  CLEANUP_TEXT char *error = NULL;

  loan_return (g->loan);
  g->loan = NULL;
  if (g->server.socket != NULL && image_wake (g->server.socket, &error) == -1)
    cmd_warning ("%s", error);
  lent_go_on (g);
}
