/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * adopt: a guest that runs already uses its image through our server from now on, without a stop.
 *
 * The order makes it safe to be killed anywhere:
 *
 *   1. what the guest's disk is like is written to CONTROL.adopted
 *   2. the server is started on the same image, and takes no mirror job yet (mirror-bypass)
 *   3. QEMU gets a node that is connected to it, and puts the guest there (pivot.h)
 *   4. the old nodes are removed, so QEMU has the image open no longer; then jobs are allowed
 *
 * A second run looks at which of the two nodes the guest uses, and begins there.  What fails before
 * the guest has moved is undone.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/adopt/adopt.h"
#include "cmd/adopt/monitor.h"
#include "cmd/adopt/nodes.h"
#include "cmd/adopt/own-server.h"
#include "cmd/adopt/pivot.h"
#include "cmd/adopt/record.h"
#include "cmd/adopt/revive.h"
#include "cmd/adopt/same-image.h"
#include "cmd/adopt/served.h"
#include "cmd/adopt/starting.h"
#include "cmd/cmd.h"

/* STATUS after the message ERROR, which is freed. */
static int
fail (int status, char *error)
{
  cmd_say ("%s", error);
  text_free (error);
  return status;
}

/* ---- what there is --------------------------------------------------------------------------- */

/* A name that QEMU has made up is not to be given again. */
static json_t *
given_name (const char *node)
{
  return node[0] == '#' ? json_null () : json_string (node);
}

static json_t *
nbdkit_args (const struct adopt *a)
{
  json_t *list = json_array ();

  for (unsigned i = 0; i < a->nr_nbdkit_args; i++)
    json_array_append_new (list, json_string (a->nbdkit_args[i]));
  return list;
}

/* *RECORD: how D is attached now. */
static int
make_record (const struct adopt *a, const struct guest_disk *d, const struct image_node *image,
             json_t **record, char **error)
{
  bool has_format = strcmp (d->driver, image->driver) != 0;
  json_t *cache = json_object_get (d->inserted, "cache");
  json_t *size = json_object_get (json_object_get (d->inserted, "image"), "virtual-size");
  CLEANUP_TEXT char *named = guest_disk_path (&a->vm, d->filename);
  char *path = realpath (named, NULL);

  if (path == NULL)
    return text_error (error, "%s: %s: no such file here, as QEMU names it", guest_disk_name (d),
                       d->filename);
  *record = json_pack (
      "{s:s, s:s, s:o, s:o, s:o, s:s, s:s, s:O, s:O, s:s, s:s, s:s, s:O, s:s, s:b, s:o, s:s?}",
      "device", d->device, "backend", d->backend, "node", given_name (d->node), "driver",
      has_format ? json_string (d->driver) : json_null (), "file-node", given_name (image->node),
      "file-driver", image->driver, "filename", path, "direct", json_object_get (cache, "direct"),
      "no-flush", json_object_get (cache, "no-flush"), "detect-zeroes",
      record_text (d->inserted, "detect_zeroes"), "discard", a->discard, "aio", a->aio, "size",
      size, "socket", a->socket, "started", a->started, "nbdkit-args", nbdkit_args (a), "state",
      a->state);
  free (path);
  return *record != NULL
             ? 0
             : text_error (error, "%s: QEMU does not tell enough of the disk", guest_disk_name (d));
}

/* The guest must find a disk of the same size: QEMU rounds up to sectors, and a raw node may be a
 * part of a file. */
static int
check_size (const struct adopt *a, const struct guest_disk *d, char **error)
{
  const char *path = record_text (a->record, "filename");
  json_int_t size = json_integer_value (json_object_get (a->record, "size"));
  CLEANUP_FD int fd = open (path, O_RDONLY | O_CLOEXEC);
  off_t its = fd != -1 ? lseek (fd, 0, SEEK_END) : -1;

  if (its == -1)
    return text_error (error, "%s: %s", path, strerror (errno));
  if (its == size)
    return 0;
  return text_error (error, "%s: %s has %jd bytes, and the guest's disk has %jd",
                     guest_disk_name (d), path, (intmax_t)its, (intmax_t)size);
}

/* The image is one that can be served, and QEMU's and ours. */
static int
check_image (struct adopt *a, const struct guest_disk *d, char **error)
{
  const char *path = record_text (a->record, "filename");
  pid_t qemu = monitor_process (&a->vm);

  if (qemu > 0 && image_is_open_in (qemu, path) == 0)
    return text_error (error, "%s: QEMU (process %ld) has another file open than %s",
                       guest_disk_name (d), (long)qemu, path);
  if (image_stays_locked (path, served_has_state (a->control)))
    return text_error (error, "%s: another program has locked %s", guest_disk_name (d), path);
  return check_size (a, d, error);
}

/* Look at the guest's disk, and write down what it is like. */
static int
look (struct adopt *a, const struct guest_disk *d)
{
  struct image_node image;
  char *error = NULL;
  bool refused;

  if (guest_disk_check (&a->vm, d, &image, &refused, &error) == -1)
    return fail (refused ? EXIT_REFUSED : EXIT_ERROR, error);
  a->started = !served_is_there (a->control) || a->started;
  json_decref (a->record);
  a->record = NULL;
  if (make_record (a, d, &image, &a->record, &error) == -1 || check_image (a, d, &error) == -1)
    return fail (EXIT_REFUSED, error);
  return record_save (a->control, a->record, &error) == -1 ? fail (EXIT_ERROR, error) : EXIT_DONE;
}

/* ---- the way there --------------------------------------------------------------------------- */

/* A server that runs already must be one of this image. */
static int
check_server (struct adopt *a)
{
  const char *image = record_text (a->record, "filename");
  struct served s;
  char *error = NULL;

  if (served_look (a->control, &s, &error) == -1)
    return fail (EXIT_ERROR, error);
  /* A copy of the image would look the same. */
  if (s.image != NULL ? strcmp (s.image, image) != 0 : !a->started)
    text_error (&error, "the server at %s serves %s, not %s", a->control,
                s.image != NULL ? s.image : "another disk", image);
  else if (s.socket != NULL && strcmp (s.socket, a->socket) != 0)
    text_error (&error, "the server at %s listens at %s, not at %s", a->control, s.socket,
                a->socket);
  else if (a->state != NULL && (s.state == NULL || strcmp (s.state, a->state) != 0))
    text_error (&error, "the server at %s keeps %s, not the state file %s", a->control,
                s.state != NULL ? s.state : "no state file", a->state);
  else if (image_compare (image, a->socket, s.image == NULL ? s.pid : 0, &error) == 0) {
    a->server = s.pid;
    served_free (&s);
    return EXIT_DONE;
  }
  served_free (&s);
  return fail (EXIT_REFUSED, error);
}

static int
start_server (struct adopt *a)
{
  bool refused;
  char *error = NULL;

  if (!served_is_there (a->control) && own_server_start (a) == -1)
    return EXIT_ERROR;
  int status = check_server (a);
  if (status == EXIT_DONE && served_bypass (a->control, true, &refused, &error) == -1)
    status = fail (refused ? EXIT_REFUSED : EXIT_ERROR, error);
  return status;
}

/* The guest stays where it was: so must everything else.  A server that was refused is not ours to
 * end.  One that the user had started goes on, and stays bypassed, because the guest still writes
 * past it. */
static void
undo (struct adopt *a)
{
  struct served s;
  char *ignored = NULL;

  if (!a->launched && a->server == 0) {
    if (!a->had_record)
      record_remove (a->control);
    return;
  }
  nodes_remove (&a->vm, a->names.node, &ignored);
  if (a->started) {
    if (served_look (a->control, &s, &ignored) == 0) {
      served_stop (s.pid);
      served_free (&s);
    }
    served_forget_bypass (a->control);
  }
  record_remove (a->control);
  text_free (ignored);
}

/* 1 if the guest uses our node now, 0 if not, -1 after an error message. */
static int
guest_has_moved (struct adopt *a, const char *device, const char *backend)
{
  struct guest_disk d;
  char *error = NULL;
  int r = guest_disk_find (&a->vm, device, backend, &d, &error);

  if (r == 1) {
    r = strcmp (d.node, a->names.node) == 0;
    guest_disk_free (&d);
  } else if (r == 0)
    text_error (&error, "%s QEMU has lost the device %s", a->vm.name,
                device[0] != '\0' ? device : backend);
  if (error != NULL) {
    fail (0, error);
    return -1;
  }
  return r;
}

static int
add_server_node (void *opaque, char **error)
{
  struct adopt *a = opaque;

  return nodes_add_server (&a->vm, &a->names, a->record, a->reconnect_s, error);
}

static int
move (struct adopt *a, const struct guest_disk *d)
{
  char *error = NULL;
  struct pivot p = { .names = &a->names,
                     .from = d->node,
                     .to = a->names.node,
                     .add_node = add_server_node,
                     .stuck = own_server_stuck,
                     .opaque = a };
  int r = nodes_remove (&a->vm, a->names.node, &error); /* of an earlier run */
  if (r == 0)
    r = pivot (&a->vm, &p, &error);
  a->took_ns = p.took_ns;
  if (r == -1)
    return fail (EXIT_ERROR, error);
  return EXIT_DONE;
}

/* A job whose start or end QEMU could not tell goes on, and would move the guest after we have
 * looked where it is.  -1 after an error message: so it may be. */
static int
end_job (struct adopt *a)
{
  char *error = NULL;

  if (pivot_end_leftover (&a->vm, &a->names, &error) == 0)
    return 0;
  fail (0, error);
  return -1;
}

/* ---- putting it together --------------------------------------------------------------------- */

/* The guest's disk, when nothing has been done yet, or was undone. */
static int
go (struct adopt *a, const struct guest_disk *d)
{
  int status = look (a, d);
  if (status == EXIT_DONE) {
    status = start_server (a);
    if (status == EXIT_DONE) {
      status = move (a, d);
      if (status != EXIT_DONE && end_job (a) == -1)
        return status;
    }
    /* QEMU itself says what has become of it. */
    int moved = guest_has_moved (a, d->device, d->backend);
    if (moved == 1)
      status = EXIT_DONE;
    else if (moved == 0) {
      undo (a);
      if (status == EXIT_DONE)
        status = EXIT_ERROR;
    } else
      status = EXIT_ERROR;
  }
  return status != EXIT_DONE ? status : adopt_finish (a);
}

/* Is D what the record is about?  The control socket may be another disk's, or another guest's,
 * which goes on through the server there. */
static bool
is_recorded (struct adopt *a, const struct guest_disk *d)
{
  const char *recorded = record_text (a->record, "filename");
  CLEANUP_TEXT char *named = guest_disk_path (&a->vm, d->filename);
  char *path = realpath (named, NULL);
  bool same = path != NULL && strcmp (path, recorded) == 0;

  free (path);
  if (!same)
    cmd_say ("%s.adopted says that %s is in use for another disk, %s: name another --control and "
             "--socket; or, if no guest uses that disk through %s any more, remove %s.adopted",
             a->control, a->control, recorded, record_text (a->record, "socket"), a->control);
  return same;
}

/* The guest's disk D was adopted.  Is it the one that the user means? */
static bool
is_wanted (struct adopt *a, const struct guest_disk *d)
{
  const char *node = a->choice.node, *before = record_text (a->record, "node");
  struct disk_choice device = { .device = a->choice.device };

  /* A name that QEMU had made up is gone. */
  bool is_node = node != NULL
                 && (strcmp (node, before) == 0 || strcmp (node, d->node) == 0
                     || (before[0] == '\0' && node[0] == '#'));
  if (is_node || (node == NULL && guest_disk_is_meant (d, &device)))
    return true;
  cmd_say ("%s is in use for another disk of this guest, %s: name another --control and --socket",
           a->control, record_text (a->record, "filename"));
  return false;
}

/* What an earlier run has left.  *DONE: the guest had moved, and the exit status is returned. */
static int
go_on (struct adopt *a, bool *done)
{
  struct guest_disk d;
  char *error = NULL;
  int r = guest_disk_find (&a->vm, record_text (a->record, "device"),
                           record_text (a->record, "backend"), &d, &error);

  *done = true;
  if (r == -1)
    return fail (EXIT_ERROR, error);
  *done = r == 1 && strcmp (d.node, a->names.node) == 0;
  int status = *done && !is_wanted (a, &d) ? EXIT_REFUSED : EXIT_DONE;
  if (r == 1)
    guest_disk_free (&d);
  if (!*done || status != EXIT_DONE)
    return status;
  /* That is where the guest looks for its server. */
  text_free (a->socket);
  a->socket = text_copy (record_text (a->record, "socket"));
  return adopt_finish (a);
}

/* QEMU's monitor may wait for the server that an earlier run has started.  True: there is another
 * one now. */
static bool
wake (struct adopt *a)
{
  if (!a->had_record || !a->started)
    return false;
  if (!a->under_libvirt && control_nobody_listens (a->vm.path))
    return false; /* QEMU has ended: a server would be nobody's */
  starting_wait (a->control, a->record);
  if (revive (a->control, a->record, a->vm.path, false))
    return true;
  if (served_is_there (a->control))
    own_server_stuck_later (a, 1);
  return a->launched;
}

static int
open_monitor (struct adopt *a)
{
  char *error = NULL;
  bool refused = false;
  int r = monitor_open (&a->vm, a->under_libvirt, &refused, &error);

  if (r == -1 && !refused && wake (a)) {
    text_free (error);
    error = NULL;
    r = monitor_open (&a->vm, a->under_libvirt, &refused, &error);
  }
  if (r == 0 && pivot_end_leftover (&a->vm, &a->names, &error) == -1)
    r = -1;
  return r == 0 ? EXIT_DONE : fail (refused ? EXIT_REFUSED : EXIT_ERROR, error);
}

int
adopt_disk (struct adopt *a)
{
  struct guest_disk d;
  char *error = NULL;
  bool refused = false, done = false;

  if (record_load (a->control, &a->record, &error) == -1)
    return fail (EXIT_ERROR, error);
  a->had_record = a->record != NULL;
  a->started = json_is_true (json_object_get (a->record, "started"));
  int status = open_monitor (a);
  if (status == EXIT_DONE && a->had_record) {
    starting_wait (a->control, a->record);
    status = go_on (a, &done);
  }
  if (status != EXIT_DONE || done)
    return status;
  if (guest_disk_choose (&a->vm, &a->choice, &d, &refused, &error) == -1)
    return fail (refused ? EXIT_REFUSED : EXIT_ERROR, error);
  status = a->had_record && !is_recorded (a, &d) ? EXIT_REFUSED : go (a, &d);
  guest_disk_free (&d);
  return status;
}
