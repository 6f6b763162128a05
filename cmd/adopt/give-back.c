/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * give-back: a guest that uses its image through our server uses it by itself again, without a
 * stop; then the server ends.  The reverse of adopt.c, with the same care:
 *
 *   1. the server takes no mirror job any more (mirror-bypass), and there is none
 *   2. QEMU gets nodes on the image, as CONTROL.adopted has them, or usual ones on FILE
 *   3. the guest is put there (pivot.h), and the node with the connection is removed
 *   4. the server is ended, and CONTROL.adopted is removed
 *
 * CONTROL may also be the NBD socket of `nbdmirror receive`.  Then its disk is sealed as well, and
 * step 1 is left out where it is not tracked.
 *
 * Where the guest's node is a raw one on top of the connection, that one stays (exchange.h).
 *
 * Where the server has the image open through a qemu-nbd, lent.c does the steps 2 and 3, and the
 * guest is stopped meanwhile.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/adopt/exchange.h"
#include "cmd/adopt/give-back.h"
#include "cmd/adopt/guest-disk.h"
#include "cmd/adopt/monitor.h"
#include "cmd/adopt/names.h"
#include "cmd/adopt/nodes.h"
#include "cmd/adopt/pivot.h"
#include "cmd/adopt/received.h"
#include "cmd/adopt/record.h"
#include "cmd/adopt/revive.h"
#include "cmd/adopt/same-image.h"
#include "cmd/adopt/served.h"
#include "cmd/adopt/starting.h"
#include "cmd/cmd.h"
#include "cmd/container.h"
#include "cmd/serve/paths.h"
#include "control/receive-exports.h"
#include "mirror/endpoint/seal.h"

static int
fail (int status, char *error)
{
  cmd_say ("%s", error);
  text_free (error);
  return status;
}

/* ---- the server ------------------------------------------------------------------------------ */

/* MAY_BE_GONE: none is found, and that is no error, where it ends just now. */
static int
find_server (struct give_back *g, bool may_be_gone)
{
  char *error = NULL;

  g->is_receive = received_speaks_nbd (g->control);
  if (g->is_receive) {
    g->server = (struct served){ .pid = received_listener (g->control),
                                 .socket = text_copy (g->control) };
    g->tracked = received_control (g->server.pid);
    return EXIT_DONE;
  }
  if (served_look (g->control, &g->server, &error) == 0)
    return EXIT_DONE;
  if (!may_be_gone || served_is_there (g->control))
    return fail (EXIT_ERROR, error);
  text_free (error);
  return EXIT_DONE;
}

/* ---- what the guest gets ----------------------------------------------------------------------
 */

/* No record: usual nodes on FILE, with the cache mode of the guest's node. */
static int
make_record (struct give_back *g, const struct guest_disk *d, const char *file, char **error)
{
  json_t *cache = json_object_get (d->inserted, "cache");
  struct stat st;

  if (stat (file, &st) == -1)
    return text_error (error, "%s: %s", file, strerror (errno));
  g->record = json_pack ("{s:s, s:s, s:n, s:s, s:n, s:s, s:s, s:O, s:O, s:s, s:s, s:s, s:I, s:s}",
                         "device", d->device, "backend", d->backend, "node", "driver", "raw",
                         "file-node", "file-driver", record_file_driver (&st), "filename", file,
                         "direct", json_object_get (cache, "direct"), "no-flush",
                         json_object_get (cache, "no-flush"), "detect-zeroes",
                         record_text (d->inserted, "detect_zeroes"), "discard", "unmap", "aio",
                         "threads", "size", (json_int_t)0, "socket", g->server.socket);
  if (g->record == NULL)
    return text_error (error, "QEMU does not tell enough of the disk");
  if (g->kept)
    exchange_note (g->record, d, &g->below, g->discard);
  return 0;
}

/* The record says FILE, as the user does. */
static int
take_file (struct give_back *g, const struct guest_disk *d, char **error)
{
  char *file = g->file != NULL ? realpath (g->file, NULL) : NULL;

  if (g->file != NULL && file == NULL)
    return text_error (error, "%s: %s", g->file, strerror (errno));
  int r = 0;
  if (g->kept) { /* the record is of an older life of this guest's */
    json_decref (g->record);
    g->record = NULL;
  }
  if (g->record == NULL) {
    const char *its = file != NULL              ? file
                      : g->server.image != NULL ? g->server.image
                                                : g->server.container;
    if (its == NULL)
      r = text_error (error, "the server does not tell which image it serves: name it, as FILE");
    else
      r = make_record (g, d, its, error);
  } else if (file != NULL)
    json_object_set_new (g->record, "filename", json_string (file));
  else if (g->server.image != NULL)
    r = record_take_image (g->control, g->record, &g->server, error);
  free (file);
  if (r == 0 && g->discard != NULL)
    json_object_set_new (g->record, "discard", json_string (g->discard));
  if (r == 0 && g->aio != NULL)
    json_object_set_new (g->record, "aio", json_string (g->aio));
  return r;
}

/* Does the server have the image that the record says? */
static int
check_image (struct give_back *g, char **error)
{
  const char *path = record_text (g->record, "filename");
  uint8_t head[CONTAINER_HEAD];
  CLEANUP_FD int fd = open (path, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd != -1 ? read (fd, head, sizeof head) : -1;

  if (n == -1)
    return text_error (error, "%s: %s", path, strerror (errno));
  /* A raw disk may begin so, too: its guest has written that. */
  const char *format = container_format (head, (size_t)n);
  if (format != NULL && lent_check (g, format, error) == -1)
    return -1;
  return g->lent ? 0 : image_compare (path, g->server.socket, g->server.pid, error);
}

/* Find the guest's disk, and what it is to be. */
static int
look (struct give_back *g, struct guest_disk *d)
{
  char *error = NULL;

  if (g->server.socket == NULL) {
    cmd_say ("%s: the server does not tell its socket (mirror-uri)", g->control);
    return EXIT_REFUSED;
  }
  int r = guest_disk_of_socket (&g->vm, g->server.socket, d, &error);
  if (r == -1)
    return fail (EXIT_ERROR, error);
  if (r == 0) {
    cmd_say ("%s", error);
    text_free (error);
    if (g->revived) /* the record is an old one, and another guest may use the image */
      served_stop (g->server.pid);
    return EXIT_REFUSED;
  }
  bool refused = true, is_raw = strcmp (d->driver, "raw") == 0;
  g->kept
      = is_raw && d->node[0] != '#'; /* else QEMU has made it up, and opens it anew for nobody */
  if ((!is_raw || guest_disk_check_below (&g->vm, d, &g->below, &refused, &error) == 0)
      && take_file (g, d, &error) == 0 && check_image (g, &error) == 0)
    return EXIT_DONE;
  guest_disk_free (d);
  return fail (refused ? EXIT_REFUSED : EXIT_ERROR, error);
}

/* The server of `nbdmirror receive` lets no mirror write any more: the guest is going to write to
 * the image without passing it.  Any other NBD server may have a mirror job that relies on every
 * write passing there. */
static int
seal_received (struct give_back *g)
{
  CLEANUP_TEXT char *escaped = server_escape (g->server.socket);
  CLEANUP_TEXT char *uri = text_printf ("nbd+unix:///" RECEIVE_MIRROR "?socket=%s", escaped);
  char status[32], *error = NULL;

  machine_status (&g->vm, status);
  if (status[0] == '\0') {
    cmd_say ("%s QEMU does not tell whether its guest has arrived", g->vm.name);
    return EXIT_ERROR;
  }
  if (strcmp (status, "inmigrate") == 0) {
    cmd_say ("%s guest has not arrived yet (%s): wait for the end of its migration", g->vm.name,
             status);
    return EXIT_REFUSED;
  }
  int r = destination_seal (uri, &error);
  if (r == -1)
    return fail (EXIT_ERROR, error);
  if (r == 0)
    return EXIT_DONE;
  cmd_say ("%s is no server of 'nbdmirror receive': name the control socket of its server",
           g->control);
  return EXIT_REFUSED;
}

/* ---- the way back -----------------------------------------------------------------------------
 */

static int
bypass (struct give_back *g, bool on)
{
  bool refused;
  char *error = NULL;

  const char *control = g->is_receive ? g->tracked : g->control;

  if (control == NULL || served_bypass (control, on, &refused, &error) == 0)
    return EXIT_DONE;
  return fail (refused ? EXIT_REFUSED : EXIT_ERROR, error);
}

/* A guest of `receive` was never adopted, so nothing else tells the next run which node is left.
 * QEMU itself removes one whose name it has made up. */
static int
note_old_node (struct give_back *g, const struct guest_disk *d, char **error)
{
  json_object_set_new (g->record, "old", d->node[0] == '#' ? json_null () : json_string (d->node));
  return record_save (g->control, g->record, error);
}

/* Is the record one of give-back's own, and not of adopt's? */
static bool
is_own_record (const struct give_back *g)
{
  return g->lent || g->kept || json_object_get (g->record, "old") != NULL;
}

/* 0, or -1 after an error message: the guest may have moved all the same. */
static int
move (struct give_back *g, const struct guest_disk *d, const char **node)
{
  struct pivot p = { .names = &g->names, .from = d->node };
  char *error = NULL;

  int r = nodes_remove_image (&g->vm, &g->names, g->record, &error); /* of an earlier run */
  if (r == 0 && g->is_receive)
    r = note_old_node (g, d, &error);
  if (r == 0)
    r = nodes_add_image (&g->vm, &g->names, g->record, node, &error);
  if (r == 0) {
    p.to = *node;
    r = pivot (&g->vm, &p, &error);
    g->took_ns = p.took_ns;
  }
  return r == 0 ? 0 : fail (-1, error);
}

/* The same where the guest's node stays. */
static int
exchange (struct give_back *g, const char **node)
{
  char *error = NULL;

  if (record_save (g->control, g->record, &error) == -1)
    return fail (-1, error);
  *node = exchange_kept (g->record);
  uint64_t start = clock_ns ();
  int r = exchange_for_image (&g->vm, &g->names, g->record, &error);
  g->took_ns = clock_ns () - start;
  return r == 0 ? 0 : fail (-1, error);
}

/* 1 if the guest's node is NODE, 0 if not, -1 after an error message. */
static int
guest_uses (struct give_back *g, const char *node)
{
  struct guest_disk d;
  char *error = NULL;
  bool away = false;

  if (g->kept) {
    if (exchange_is_away (&g->vm, &g->names, g->record, &away, &error) == -1)
      return fail (-1, error);
    return away;
  }
  int r = guest_disk_find (&g->vm, record_text (g->record, "device"),
                           record_text (g->record, "backend"), &d, &error);

  if (r == 1) {
    r = strcmp (d.node, node) == 0;
    guest_disk_free (&d);
  }
  return r == -1 ? fail (-1, error) : r;
}

/* The guest has moved from the node OLD: nothing but the server and the record is left. */
static int
finish (struct give_back *g, const char *old, const char *node)
{
  const char *control = g->is_receive ? g->tracked : g->control;
  char *error = NULL;

  if (g->lent)
    lent_go_on (g);
  if (old != NULL && nodes_remove (&g->vm, old, &error) == -1)
    return fail (EXIT_ERROR, error);
  loan_return (g->loan); /* nobody asks the server for anything any more */
  g->loan = NULL;
  if (!g->keep_server) {
    served_stop (g->is_receive ? received_keeper (g->server.pid) : g->server.pid);
    if (control != NULL)
      served_forget_bypass (control);
  }
  record_remove (g->control);
  stopped_guest_end (&g->guard);
  give_back_report (g, node);
  return EXIT_DONE;
}

/* The same where a guest of `receive` had moved: there is no record, but the node has our name. */
static int
go_on_received (struct give_back *g, bool *done)
{
  const struct disk_choice choice = { .node = g->names.image };
  struct guest_disk d;
  char *error = NULL;
  bool refused;

  *done = guest_disk_choose (&g->vm, &choice, &d, &refused, &error) == 0;
  text_free (error);
  if (!*done)
    return EXIT_DONE;
  int status = take_file (g, &d, &error) == 0 ? finish (g, NULL, g->names.image)
                                              : fail (EXIT_ERROR, error);
  guest_disk_free (&d);
  return status;
}

/* Where does the guest go, as the record has it?  The name of a node. */
static const char *
node_of_guest (const struct give_back *g)
{
  const char *node = json_string_value (json_object_get (g->record, "node"));

  if (g->kept)
    return exchange_kept (g->record);
  return node != NULL ? node : g->names.image;
}

/* The guest has not moved, and everything is as it was before.  False: not so yet.  The server
 * waits for the image then, and the next run repairs it.  A guest that we have stopped is let go on
 * by the process that looks after it, when it sees our end. */
static bool
undo (struct give_back *g)
{
  char *error = NULL;

  if (nodes_remove_image (&g->vm, &g->names, g->record, &error) == -1)
    return fail (0, error);
  if (g->lent)
    lent_undo (g);
  bypass (g, false);
  if (is_own_record (g))
    record_remove (g->control);
  stopped_guest_end (&g->guard);
  return true;
}

/* The guest has moved, and OLD was its node.  Where that stays, there may be steps left. */
static int
finish_move (struct give_back *g, const char *old)
{
  char *error = NULL;

  if (g->kept && !g->lent && exchange_for_image (&g->vm, &g->names, g->record, &error) == -1) {
    fail (0, error);
    cmd_say ("the guest uses %s by itself; run the same command again, for what is left",
             record_text (g->record, "filename"));
    return EXIT_ERROR;
  }
  if (g->kept)
    old = g->lent ? json_string_value (json_object_get (g->record, "below")) : NULL;
  return finish (g, old, node_of_guest (g));
}

int
give_back_go_on (struct give_back *g, bool *done)
{
  *done = false;
  if (g->record == NULL && g->is_receive)
    return go_on_received (g, done);
  if (g->record == NULL)
    return EXIT_DONE;
  g->lent = json_is_true (json_object_get (g->record, "lent"));
  g->kept = exchange_kept (g->record) != NULL;
  int r = guest_uses (g, node_of_guest (g));
  if (r == -1)
    return EXIT_ERROR;
  *done = r == 1;
  const char *old = record_text (g->record, "old");
  if (*done)
    return finish_move (g, old[0] != '\0' ? old : g->names.node);
  if (is_own_record (g)) {
    if (!undo (g))
      return EXIT_ERROR;
    json_decref (g->record);
    g->record = NULL;
    g->lent = g->kept = false;
  }
  return EXIT_DONE;
}

/* The server takes no mirror job any more. */
static int
close_server (struct give_back *g)
{
  int status = bypass (g, true);

  if (status == EXIT_DONE && g->is_receive) {
    status = seal_received (g);
    if (status != EXIT_DONE)
      bypass (g, false);
  }
  return status;
}

static int
go (struct give_back *g)
{
  struct guest_disk d;
  const char *node = NULL;

  int status = look (g, &d);
  if (status != EXIT_DONE)
    return status;
  char *old = text_copy (d.node);
  status = close_server (g);
  if (status == EXIT_DONE) {
    int r = g->lent   ? lent_move (g, &d, &node)
            : g->kept ? exchange (g, &node)
                      : move (g, &d, &node);
    /* A job whose start or end QEMU could not tell goes on, and would move the guest later on. */
    char *error = NULL;
    bool over = r == 0 || pivot_end_leftover (&g->vm, &g->names, &error) == 0;
    if (!over)
      fail (-1, error);
    int moved = !over ? -1 : node != NULL ? guest_uses (g, node) : 0;
    if (moved == 1)
      status = finish_move (g, old);
    else {
      status = EXIT_ERROR;
      if (moved == 0)
        undo (g);
      if (r == 0)
        cmd_say ("QEMU's job ended, and the guest still uses %s", old);
    }
  }
  text_free (old);
  guest_disk_free (&d);
  return status;
}

/* The server, as far as there is one: without it there is nothing to end, but perhaps something to
 * tidy. */
static int
find_recorded (struct give_back *g)
{
  bool recorded = g->record != NULL;

  return !recorded || served_is_there (g->control) ? find_server (g, recorded) : EXIT_DONE;
}

/* The guest is on the tracked path, and waits there. */
static int
restart_server (struct give_back *g)
{
  if (revive (g->control, g->record, NULL, false))
    return find_server (g, false);
  cmd_say ("%s: no server runs; start it again first: the guest's writes wait for it", g->control);
  return EXIT_ERROR;
}

int
give_back (struct give_back *g)
{
  bool refused = false, done;
  char *error = NULL;

  if (record_load (g->control, &g->record, &error) == -1)
    return fail (EXIT_ERROR, error);
  /* QEMU may answer again only when its guest gets an answer. */
  if (g->record != NULL) {
    starting_wait (g->control, g->record);
    g->revived = revive (g->control, g->record, g->qmp, false);
  }
  if (monitor_open (&g->vm, g->under_libvirt, &refused, &error) == -1)
    return fail (refused ? EXIT_REFUSED : EXIT_ERROR, error);
  if (pivot_end_leftover (&g->vm, &g->names, &error) == -1)
    return fail (EXIT_ERROR, error);
  int status = find_recorded (g);
  if (status == EXIT_DONE)
    status = give_back_go_on (g, &done);
  if (status != EXIT_DONE || done)
    return status;
  if (g->server.pid == 0)
    status = restart_server (g);
  return status == EXIT_DONE ? go (g) : status;
}
