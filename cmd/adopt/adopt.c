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

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/adopt/guest-disk.h"
#include "cmd/adopt/monitor.h"
#include "cmd/adopt/names.h"
#include "cmd/adopt/nodes.h"
#include "cmd/adopt/pivot.h"
#include "cmd/adopt/record.h"
#include "cmd/adopt/same-image.h"
#include "cmd/adopt/served.h"
#include "cmd/cmd.h"
#include "cmd/serve/paths.h"
#include "cmd/units.h"

#define RECONNECT_S 60
#define RECONNECT_MAX_MS (UINT64_C (24) * 3600 * 1000)

struct adopt {
  const char *qmp, *socket_arg, *control_arg;
  struct disk_choice choice;
  const char *discard, *aio;
  unsigned reconnect_s;
  bool under_libvirt, json;
  char **nbdkit_args;
  unsigned nr_nbdkit_args;

  char *socket, *control; /* absolute */
  struct adopt_names names;
  struct journal quiet;
  struct machine vm;
  json_t *record;
  bool started; /* the server, by this run or by one that was killed */
  pid_t server; /* its process */
  uint64_t took_ns;
};

static const char *
text_of (const json_t *record, const char *key)
{
  const char *text = json_string_value (json_object_get (record, key));
  return text != NULL ? text : "";
}

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

/* *RECORD: how D is attached now. */
static int
make_record (const struct adopt *a, const struct guest_disk *d, const struct image_node *image,
             json_t **record, char **error)
{
  bool has_format = strcmp (d->driver, image->driver) != 0;
  json_t *cache = json_object_get (d->inserted, "cache");
  json_t *size = json_object_get (json_object_get (d->inserted, "image"), "virtual-size");
  char *path = realpath (d->filename, NULL);

  if (path == NULL)
    return text_error (error, "%s: %s: no such file here, as QEMU names it", guest_disk_name (d),
                       d->filename);
  *record = json_pack (
      "{s:s, s:s, s:o, s:o, s:o, s:s, s:s, s:O, s:O, s:s, s:s, s:s, s:O, s:s, s:b}", "device",
      d->device, "backend", d->backend, "node", given_name (d->node), "driver",
      has_format ? json_string (d->driver) : json_null (), "file-node", given_name (image->node),
      "file-driver", image->driver, "filename", path, "direct", json_object_get (cache, "direct"),
      "no-flush", json_object_get (cache, "no-flush"), "detect-zeroes",
      text_of (d->inserted, "detect_zeroes"), "discard", a->discard, "aio", a->aio, "size", size,
      "socket", a->socket, "started", a->started);
  free (path);
  return *record != NULL
             ? 0
             : text_error (error, "%s: QEMU does not tell enough of the disk", guest_disk_name (d));
}

/* The image is one that can be served, and QEMU's and ours. */
static int
check_image (struct adopt *a, const struct guest_disk *d, char **error)
{
  const char *path = text_of (a->record, "filename");
  pid_t qemu = monitor_process (&a->vm);

  if (qemu > 0 && image_is_open_in (qemu, path) == 0)
    return text_error (error, "%s: QEMU (process %ld) has another file open than %s",
                       guest_disk_name (d), (long)qemu, path);
  if (image_is_locked_by_others (path))
    return text_error (error, "%s: another program has locked %s", guest_disk_name (d), path);
  return 0;
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
  a->started
      = !served_is_there (a->control) || json_is_true (json_object_get (a->record, "started"));
  json_decref (a->record);
  a->record = NULL;
  if (make_record (a, d, &image, &a->record, &error) == -1 || check_image (a, d, &error) == -1)
    return fail (EXIT_REFUSED, error);
  return record_save (a->control, a->record, &error) == -1 ? fail (EXIT_ERROR, error) : EXIT_DONE;
}

/* ---- the way there ----------------------------------------------------------------------------
 */

/* A server that runs already must be one of this image. */
static int
check_server (struct adopt *a)
{
  const char *image = text_of (a->record, "filename");
  struct served s;
  char *error = NULL;

  if (served_look (a->control, &s, &error) == -1)
    return fail (EXIT_ERROR, error);
  if (!a->started && (s.image == NULL || strcmp (s.image, image) != 0))
    text_error (&error, "the server at %s serves %s, not %s", a->control,
                s.image != NULL ? s.image : "another disk", image);
  else if (image_compare (image, a->socket, 0, &error) == 0) {
    a->server = s.pid;
    served_free (&s);
    return EXIT_DONE;
  }
  served_free (&s);
  return fail (EXIT_REFUSED, error);
}

static int
launch_server (struct adopt *a)
{
  return served_start (text_of (a->record, "filename"), a->socket, a->control, a->nbdkit_args,
                       a->nr_nbdkit_args);
}

static int
start_server (struct adopt *a)
{
  bool refused;
  char *error = NULL;

  if (!served_is_there (a->control)) {
    if (launch_server (a) == -1)
      return EXIT_ERROR;
  }
  int status = check_server (a);
  if (status == EXIT_DONE && served_bypass (a->control, true, &refused, &error) == -1)
    status = fail (refused ? EXIT_REFUSED : EXIT_ERROR, error);
  return status;
}

/* The guest stays where it was: so must everything else. */
static void
undo (struct adopt *a)
{
  struct served s;
  char *ignored = NULL;
  bool refused;

  nodes_remove (&a->vm, a->names.node, &ignored);
  if (a->started && served_look (a->control, &s, &ignored) == 0) {
    served_stop (s.pid);
    served_free (&s);
  } else if (!a->started)
    served_bypass (a->control, false, &refused, &ignored);
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

/* The guest's writes wait for the server, which does not answer.  A new one gets them again, since
 * QEMU's node connects again.  If that does not help, the job fails without a server, and the guest
 * stays where it was. */
static void
replace_server (void *opaque, unsigned attempt)
{
  struct adopt *a = opaque;
  bool refused;
  char *ignored = NULL;

  if (!a->started)
    return;
  served_kill (a->server);
  cmd_warning ("the server (process %ld) does not answer and was killed", (long)a->server);
  a->server = 0;
  struct served s;
  if (attempt == 1 && launch_server (a) == 0 && served_look (a->control, &s, &ignored) == 0) {
    a->server = s.pid;
    served_free (&s);
    served_bypass (a->control, true, &refused, &ignored);
  }
  text_free (ignored);
}

static int
move (struct adopt *a, const struct guest_disk *d)
{
  char *error = NULL;
  struct pivot p = {
    .names = &a->names, .from = d->node, .to = a->names.node, .stuck = replace_server, .opaque = a
  };
  int r = nodes_remove (&a->vm, a->names.node, &error); /* of an earlier run */
  if (r == 0)
    r = nodes_add_server (&a->vm, &a->names, a->record, a->reconnect_s, &error);
  if (r == 0)
    r = pivot (&a->vm, &p, &error);
  a->took_ns = p.took_ns;
  if (r == -1)
    return fail (EXIT_ERROR, error);
  return EXIT_DONE;
}

/* ---- the guest is there -----------------------------------------------------------------------
 */

/* Remove what the guest has used before, and see that it is gone. */
static int
remove_old (struct adopt *a)
{
  const char *nodes[] = { json_string_value (json_object_get (a->record, "node")),
                          json_string_value (json_object_get (a->record, "file-node")) };
  const char *path = text_of (a->record, "filename");
  pid_t qemu = monitor_process (&a->vm);
  char *error = NULL;

  for (unsigned i = 0; i < 2; i++)
    if (nodes[i] != NULL && nodes_remove (&a->vm, nodes[i], &error) == -1)
      return fail (EXIT_ERROR, error);
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
  const char *device = text_of (a->record, "backend");

  if (device[0] == '\0')
    device = text_of (a->record, "device");
  if (a->json) {
    json_t *o = json_pack ("{s:s, s:s, s:s, s:s, s:s, s:i, s:f}", "device", device, "image",
                           text_of (a->record, "filename"), "node", a->names.node, "socket",
                           a->socket, "control", a->control, "server-pid", (int)s->pid, "pivot-ms",
                           (double)a->took_ns / NS_PER_MS);
    json_dumpf (o, stdout, JSON_COMPACT | JSON_REAL_PRECISION (6));
    putchar ('\n');
    json_decref (o);
  } else
    cmd_say ("%s uses %s through %s now (%.1f ms)", device, text_of (a->record, "filename"),
             a->socket, (double)a->took_ns / NS_PER_MS);
}

static int
finish (struct adopt *a)
{
  struct served s;
  bool refused;
  char *error = NULL;

  int status = remove_old (a);
  if (status != EXIT_DONE)
    return status;
  if (served_look (a->control, &s, &error) == -1
      || image_compare (text_of (a->record, "filename"), a->socket, 0, &error) == -1
      || served_bypass (a->control, false, &refused, &error) == -1)
    return fail (EXIT_ERROR, error);
  report (a, &s);
  served_free (&s);
  return EXIT_DONE;
}

/* ---- putting it together ----------------------------------------------------------------------
 */

/* The guest's disk, when nothing has been done yet, or was undone. */
static int
go (struct adopt *a, const struct guest_disk *d)
{
  int status = look (a, d);
  if (status == EXIT_DONE) {
    status = start_server (a);
    if (status == EXIT_DONE)
      status = move (a, d);
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
  return status != EXIT_DONE ? status : finish (a);
}

static int
adopt (struct adopt *a)
{
  struct guest_disk d;
  char *error = NULL;
  bool refused = false;

  if (monitor_open (&a->vm, a->under_libvirt, &refused, &error) == -1)
    return fail (refused ? EXIT_REFUSED : EXIT_ERROR, error);
  if (record_load (a->control, &a->record, &error) == -1
      || pivot_end_leftover (&a->vm, &a->names, &error) == -1)
    return fail (EXIT_ERROR, error);
  if (a->record != NULL) {
    int r = guest_disk_find (&a->vm, text_of (a->record, "device"), text_of (a->record, "backend"),
                             &d, &error);
    if (r == -1)
      return fail (EXIT_ERROR, error);
    bool moved = r == 1 && strcmp (d.node, a->names.node) == 0;
    if (r == 1)
      guest_disk_free (&d);
    if (moved)
      return finish (a);
  }
  if (guest_disk_choose (&a->vm, &a->choice, &d, &refused, &error) == -1)
    return fail (refused ? EXIT_REFUSED : EXIT_ERROR, error);
  int status = go (a, &d);
  guest_disk_free (&d);
  return status;
}

enum {
  OPT_QMP = 0x100,
  OPT_NODE,
  OPT_DEVICE,
  OPT_SOCKET,
  OPT_CONTROL,
  OPT_DISCARD,
  OPT_AIO,
  OPT_RECONNECT,
  OPT_LIBVIRT
};

static const struct cmd_option options[] = {
  { "qmp", OPT_QMP, "SOCKET", "the guest's QEMU monitor" },
  { "device", OPT_DEVICE, "ID", "the guest's disk: the id of its device, or of its -drive" },
  { "node", OPT_NODE, "NODE", "the same, by the name of the block node that it uses" },
  { "socket", OPT_SOCKET, "PATH", "the Unix socket on which the disk will be served" },
  { "control", OPT_CONTROL, "PATH", "the control socket, for the other subcommands" },
  { "discard", OPT_DISCARD, "ignore|unmap",
    "how the disk handles the guest's TRIM now, which QEMU does not tell (default ignore, as "
    "QEMU's)" },
  { "aio", OPT_AIO, "threads|native|io_uring",
    "how QEMU does the image's I/O now, for give-back (default threads, as QEMU's)" },
  { "reconnect-delay", OPT_RECONNECT, "TIME",
    "how long the guest waits for a server that is restarted (default 60s)" },
  { "libvirt", OPT_LIBVIRT, NULL,
    "go on although libvirt manages this guest and will not know of the change" },
  { "json", 'j', NULL, "print a JSON object" },
  CMD_OPTIONS_END,
};

/* False: return line->status. */
static bool
read_option (struct cmd_line *line, struct adopt *a, int opt)
{
  const char *problem;
  uint64_t ms;

  switch (opt) {
  case OPT_QMP:
    a->qmp = optarg;
    break;
  case OPT_NODE:
    a->choice.node = optarg;
    break;
  case OPT_DEVICE:
    a->choice.device = optarg;
    break;
  case OPT_SOCKET:
    a->socket_arg = optarg;
    break;
  case OPT_CONTROL:
    a->control_arg = optarg;
    break;
  case OPT_DISCARD:
    a->discard = optarg;
    break;
  case OPT_AIO:
    a->aio = optarg;
    break;
  case OPT_RECONNECT:
    problem = units_parse_time (optarg, &ms);
    if (problem == NULL && ms > RECONNECT_MAX_MS)
      problem = "more than a day";
    if (problem != NULL) {
      line->status = cmd_usage_error ("--reconnect-delay '%s': %s", optarg, problem);
      return false;
    }
    a->reconnect_s = (unsigned)((ms + MS_PER_S - 1) / MS_PER_S);
    break;
  case OPT_LIBVIRT:
    a->under_libvirt = true;
    break;
  case 'j':
    a->json = true;
    break;
  default:
    return false;
  }
  return true;
}

/* False: return line->status. */
static bool
parse (struct cmd_line *line, struct adopt *a)
{
  int opt;

  line->keep_rest = true;
  while ((opt = cmd_getopt (line)) != -1)
    if (!read_option (line, a, opt))
      return false;
  line->status = EXIT_USAGE;
  a->nbdkit_args = line->rest;
  a->nr_nbdkit_args = line->nr_rest;
  if (line->nr_operands > 0)
    cmd_usage_error ("'%s' is no option of adopt", line->operands[0].argv[0]);
  else if (a->qmp == NULL)
    cmd_usage_error ("--qmp is missing");
  else if (a->socket_arg == NULL)
    cmd_usage_error ("--socket is missing");
  else if (a->control_arg == NULL)
    cmd_usage_error ("--control is missing");
  else if (a->choice.node != NULL && a->choice.device != NULL)
    cmd_usage_error ("--node and --device name the same thing: give one of them");
  else
    return adopt_word_ok ("--discard", a->discard, "ignore|unmap")
           && adopt_word_ok ("--aio", a->aio, "threads|native|io_uring");
  return false;
}

static int
run (struct cmd_line *line)
{
  struct adopt a = { .discard = "ignore", .aio = "threads", .reconnect_s = RECONNECT_S };

  if (!parse (line, &a))
    return line->status;
  int status = EXIT_ERROR;
  a.socket = server_absolute_path ("--socket", a.socket_arg);
  if (a.socket != NULL && (a.control = server_absolute_path ("--control", a.control_arg)) != NULL) {
    adopt_names_make (&a.names, a.control);
    a.vm = (struct machine){ .name = "the guest's", .path = a.qmp, .journal = &a.quiet };
    status = adopt (&a);
  }
  machine_free (&a.vm);
  json_decref (a.record);
  text_free (a.socket);
  text_free (a.control);
  return status;
}

const struct subcommand subcommand_adopt = {
  "adopt",
  "--qmp SOCKET --socket PATH --control PATH [OPTIONS] [-- NBDKIT-ARGS]",
  "Put a running guest's disk onto the tracked path.",
  "The guest's raw image is served by `nbdmirror serve`, and QEMU uses that server from then on,\n"
  "without a stop of the guest.  Then it can be mirrored and migrated as any other disk.\n"
  "`nbdmirror give-back` is the way back.\n",
  options,
  NULL,
  "What fails before the guest has moved leaves everything as it was.  If it was killed, run it\n"
  "again with the same arguments, or run give-back.\n\n"
  "Example:\n"
  "  nbdmirror adopt --qmp /run/vm1.qmp --socket /run/vm1.nbd --control /run/vm1.control\n",
  run,
};
