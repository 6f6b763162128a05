/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror receive: prepare a destination disk and serve it.  This file has the options, and what
 * is printed; disk.c prepares the disk, and server.c runs the server.
 */

#include "config.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <jansson.h>

#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/receive/server.h"
#include "cmd/serve/paths.h"
#include "cmd/units.h"
#include "cmd/worker.h"
#include "control/receive-exports.h"
#include "mirror/endpoint/seal.h"
#include "mirror/endpoint/uri.h"

enum {
  OPT_SIZE = 0x200,
  OPT_FORMAT,
  OPT_BACKING,
  OPT_BACKING_FORMAT,
  OPT_PREALLOCATE,
  OPT_OVERCOMMIT,
  OPT_OVERWRITE,
  OPT_RESUME,
  OPT_READ_ONLY,
  OPT_SOCKET,
  OPT_PORT,
  OPT_ADDRESS,
  OPT_STDIO,
  OPT_TLS_CERTIFICATES,
  OPT_TLS_PSK,
  OPT_TLS_VERIFY_PEER,
  OPT_KEEP,
  OPT_DETACH,
  OPT_SEALED,
  OPT_SEAL,
  OPT_CONTROL,
  OPT_STATE,
  OPT_GIVE_UP
};

static const struct cmd_option options[] = {
  { "size", OPT_SIZE, "SIZE", "the size of the disk; needed where it is new" },
  { "format", OPT_FORMAT, "raw|qcow2", "the format of the disk (default raw)" },
  { "backing", OPT_BACKING, "FILE", "qcow2: the base below the disk, which both hosts have" },
  { "backing-format", OPT_BACKING_FORMAT, "raw|qcow2",
    "the base's format (default: qcow2 if its name ends so, else raw)" },
  { "preallocate", OPT_PREALLOCATE, NULL, "take all the room at once, and keep it" },
  { "overcommit", OPT_OVERCOMMIT, NULL, "a thin disk may be larger than the room that is left" },
  { "overwrite", OPT_OVERWRITE, NULL, "give up what a file or device holds that is there already" },
  { "resume", OPT_RESUME, NULL, "go on with the disk that is there, as it is" },
  { "sealed", OPT_SEALED, NULL,
    "with --resume: the disk is its guest's already, and no mirror may write to it (a file that "
    "was sealed while it was served says so itself)" },
  { "keep", OPT_KEEP, NULL, "never remove the disk" },
  { "socket", OPT_SOCKET, "PATH", "serve on a Unix socket, or" },
  { "port", OPT_PORT, "N", "serve on TCP" },
  { "address", OPT_ADDRESS, "ADDRESS", "with --port: serve on this address only" },
  { "stdio", OPT_STDIO, NULL,
    "serve one connection, on standard input and output (for ssh://HOST/PATH)" },
  { "read-only", OPT_READ_ONLY, NULL, "with --stdio: nothing is written" },
  { "tls-certificates", OPT_TLS_CERTIFICATES, "DIR",
    "demand TLS, with the certificates in this directory, or" },
  { "tls-psk", OPT_TLS_PSK, "FILE", "demand TLS, with these pre-shared keys" },
  { "tls-verify-peer", OPT_TLS_VERIFY_PEER, NULL,
    "with --tls-certificates: demand a certificate of the clients too" },
  { "control", OPT_CONTROL, "PATH",
    "track the disk as 'serve' does, so that it can be mirrored on, or back; PATH is its control "
    "socket" },
  { "state", OPT_STATE, "FILE",
    "with --control: keep checkpoints in FILE, and begin one at the hand-over, so that the way "
    "back is short" },
  { "detach", OPT_DETACH, NULL, "return once the disk is served" },
  { "", 0, NULL, "For a server that runs; PATH is the URI of its mirror export:" },
  { "seal", OPT_SEAL, NULL,
    "let no mirror write there any more, and return when its last request has ended" },
  { "give-up", OPT_GIVE_UP, NULL, "end that server, and remove the disk that it created" },
  CMD_OPTIONS_END,
};

struct arguments {
  struct receive_disk disk;
  struct receive_server server;
  struct nbdkit_args args;
  const char *socket, *certificates, *psk, *control, *state; /* as given */
  bool detach, keep, seal, give_up;
};

/* ---- options --------------------------------------------------------------------------------- */

static int
take_disk_option (struct arguments *a, int c)
{
  const char *why;

  switch (c) {
  case OPT_SIZE:
    why = units_parse_size (optarg, &a->disk.size);
    if (why == NULL && a->disk.size > INT64_MAX)
      why = "too large";
    a->disk.have_size = true;
    return why == NULL ? 0 : cmd_usage_error ("--size %s: %s", optarg, why);
  case OPT_FORMAT:
    a->disk.qcow2 = strcmp (optarg, "qcow2") == 0;
    a->disk.format_said = true;
    return a->disk.qcow2 || strcmp (optarg, "raw") == 0
               ? 0
               : cmd_usage_error ("--format %s: must be raw or qcow2", optarg);
  case OPT_BACKING:
    a->disk.backing = optarg;
    return 0;
  case OPT_BACKING_FORMAT:
    a->disk.backing_format = optarg;
    return strcmp (optarg, "raw") == 0 || strcmp (optarg, "qcow2") == 0
               ? 0
               : cmd_usage_error ("--backing-format %s: must be raw or qcow2", optarg);
  case OPT_PREALLOCATE:
    a->disk.preallocate = true;
    return 0;
  case OPT_OVERCOMMIT:
    a->disk.overcommit = true;
    return 0;
  case OPT_OVERWRITE:
    a->disk.overwrite = true;
    return 0;
  case OPT_RESUME:
    a->disk.resume = true;
    return 0;
  case OPT_SEALED:
    a->disk.sealed = true;
    return 0;
  case OPT_READ_ONLY:
    a->disk.read_only = true;
    return 0;
  default:
    return EXIT_USAGE;
  }
}

static int
take_option (struct arguments *a, int c)
{
  struct receive_server *s = &a->server;
  char *end;

  switch (c) {
  case OPT_SOCKET:
    a->socket = optarg;
    return 0;
  case OPT_PORT:
    s->port = optarg;
    errno = 0;
    long port = strtol (optarg, &end, 10);
    return *optarg != '\0' && *end == '\0' && errno == 0 && port >= 1 && port <= 65535
               ? 0
               : cmd_usage_error ("--port %s: must be a number from 1 to 65535", optarg);
  case OPT_ADDRESS:
    s->address = optarg;
    return 0;
  case OPT_STDIO:
    s->stdio = true;
    return 0;
  case OPT_TLS_CERTIFICATES:
    a->certificates = optarg;
    return 0;
  case OPT_TLS_PSK:
    a->psk = optarg;
    return 0;
  case OPT_TLS_VERIFY_PEER:
    s->tls_verify_peer = true;
    return 0;
  case OPT_KEEP:
    a->keep = true;
    return 0;
  case OPT_DETACH:
    a->detach = true;
    return 0;
  case OPT_CONTROL:
    a->control = optarg;
    return 0;
  case OPT_STATE:
    a->state = optarg;
    return 0;
  case OPT_SEAL:
    a->seal = true;
    return 0;
  case OPT_GIVE_UP:
    a->give_up = true;
    return 0;
  default:
    return take_disk_option (a, c);
  }
}

/* Do the options go together?  0, or EXIT_USAGE. */
static int
check_options (const struct arguments *a)
{
  const struct receive_server *s = &a->server;
  const struct receive_disk *d = &a->disk;

  if ((a->socket != NULL) + (s->port != NULL) + s->stdio != 1)
    return cmd_usage_error ("give one of --socket, --port and --stdio");
  if (s->address != NULL && s->port == NULL)
    return cmd_usage_error ("--address goes with --port");
  if (s->stdio && (a->detach || a->certificates != NULL || a->psk != NULL))
    return cmd_usage_error ("--stdio goes with neither --detach nor TLS");
  if (a->certificates != NULL && a->psk != NULL)
    return cmd_usage_error ("--tls-certificates and --tls-psk exclude each other");
  if (s->tls_verify_peer && a->certificates == NULL)
    return cmd_usage_error ("--tls-verify-peer goes with --tls-certificates");
  if (d->read_only && !s->stdio)
    return cmd_usage_error ("--read-only goes with --stdio");
  if (s->stdio && a->control != NULL)
    return cmd_usage_error ("--control does not go with --stdio");
  if (a->state != NULL && a->control == NULL)
    return cmd_usage_error ("--state goes with --control");
  if (d->overwrite && d->resume)
    return cmd_usage_error ("--overwrite and --resume exclude each other");
  if (d->sealed && (!d->resume || s->stdio))
    return cmd_usage_error ("--sealed goes with --resume, and not with --stdio");
  if (d->backing != NULL && !d->qcow2)
    return cmd_usage_error ("--backing goes with --format qcow2");
  if (d->backing != NULL && d->preallocate)
    return cmd_usage_error ("--backing and --preallocate exclude each other");
  return 0;
}

/* ---- what is printed ------------------------------------------------------------------------- */

/* HOST:PORT for a URI. */
static void
network_place (const struct receive_server *s, char *text, size_t size)
{
  char host[HOST_NAME_MAX + 1] = "localhost";
  const char *address = s->address;

  if (address == NULL || strcmp (address, "0.0.0.0") == 0 || strcmp (address, "::") == 0) {
    if (gethostname (host, sizeof host) == -1)
      strcpy (host, "localhost");
    host[sizeof host - 1] = '\0';
    address = host;
  }
  snprintf (text, size, strchr (address, ':') != NULL ? "[%s]:%s" : "%s:%s", address, s->port);
}

static char *
make_uri (const struct arguments *a, const char *export)
{
  const struct receive_server *s = &a->server;
  bool tls = a->certificates != NULL || a->psk != NULL || a->args.tls_required;

  if (s->socket != NULL) {
    CLEANUP_TEXT char *path = server_escape (s->socket);
    return text_printf ("nbd%s+unix:///%s?socket=%s", tls ? "s" : "", export, path);
  }
  char place[HOST_NAME_MAX + 300];
  network_place (s, place, sizeof place);
  return text_printf ("nbd%s://%s/%s", tls ? "s" : "", place, export);
}

static bool
print_line (const struct arguments *a)
{
  const struct receive_disk *d = &a->disk;
  CLEANUP_TEXT char *uri = make_uri (a, RECEIVE_MIRROR);
  CLEANUP_TEXT char *guest_uri = make_uri (a, "");
  json_t *o = json_pack ("{s:s, s:s, s:s, s:s, s:I, s:b, s:b, s:I}", "uri", uri, "guest-uri",
                         guest_uri, "path", d->path, "format", d->qcow2 ? "qcow2" : "raw", "size",
                         (json_int_t)d->size, "created", d->created, "sealed", d->sealed, "pid",
                         (json_int_t)getpid ());

  if (a->server.control != NULL)
    json_object_set_new (o, "control", json_string (a->server.control));
  bool good = o != NULL && json_dumpf (o, stdout, JSON_COMPACT) == 0 && putchar ('\n') != EOF
              && fflush (stdout) == 0;
  if (!good)
    cmd_say ("cannot write to standard output: %s", strerror (errno));
  json_decref (o);
  return good;
}

/* ---- putting it together --------------------------------------------------------------------- */

/* Make a path absolute: the server may leave this directory.  NULL after an error message. */
static char *
existing_path (const char *option, const char *path)
{
  char *full = realpath (path, NULL);

  if (full == NULL)
    cmd_say ("%s %s: %s", option, path, strerror (errno));
  return full;
}

static void
clean_up (struct arguments *a)
{
  if (a->keep || !a->disk.created)
    cmd_say ("given up: %s stays%s", a->disk.path, a->keep ? "" : ": it was there before");
  else if (receive_disk_remove (&a->disk))
    cmd_say ("given up: %s was removed", a->disk.path);
}

static int
serve (struct arguments *a, struct worker *w)
{
  struct receive_server *s = &a->server;

  if (receive_server_start (s, a->detach) == -1) {
    if (s->stopped_by != 0)
      clean_up (a);
    else if (!a->keep)
      receive_disk_remove (&a->disk);
    return s->stopped_by != 0 ? EXIT_CANCELLED : EXIT_ERROR;
  }
  if (!s->stdio && !print_line (a)) {
    receive_end_children (s, 0);
    if (!a->keep)
      receive_disk_remove (&a->disk);
    return EXIT_ERROR;
  }
  if (a->detach) {
    receive_server_quiet (s);
    if (write (w->ready_fd, "", 1) == 1)
      close (w->ready_fd);
  }
  switch (receive_server_run (s)) {
  case RECEIVE_STOPPED:
    return EXIT_DONE;
  case RECEIVE_GIVEN_UP:
    clean_up (a);
    return EXIT_CANCELLED;
  case RECEIVE_FAILED:
    break;
  }
  return EXIT_ERROR;
}

/* What an older disk holds is given up last.  By then it is known that it can be served, and the
 * server that had it has left its port. */
static int
prepare_disk (struct arguments *a)
{
  struct receive_disk *d = &a->disk;
  int status = receive_disk_open (d);

  if (status == EXIT_DONE && (status = receive_place_is_free (&a->server)) != EXIT_DONE) {
    receive_disk_remove (d);
    receive_disk_close (d);
  }
  if (status == EXIT_DONE)
    status = receive_disk_make (d);
  if (status == EXIT_DONE && (status = receive_track_allowed (&a->server)) != EXIT_DONE)
    receive_disk_close (d);
  return status;
}

static int
prepare_and_serve (struct arguments *a)
{
  struct worker w = { .ready_fd = -1 };
  struct receive_server *s = &a->server;
  char *socket = NULL, *certificates = NULL, *psk = NULL, *control = NULL, *state = NULL;
  int status = EXIT_ERROR;

  s->filter = server_find_filter ("mirror-receive", "NBDMIRROR_RECEIVE_FILTER");
  s->digest_filter = server_find_filter ("digest", "NBDMIRROR_DIGEST_FILTER");
  s->mirror_filter = server_find_filter ("mirror", "NBDMIRROR_FILTER");
  s->image_plugin = server_find_plugin ("image", "NBDMIRROR_IMAGE_PLUGIN");
  if (s->filter == NULL || s->digest_filter == NULL || s->mirror_filter == NULL
      || s->image_plugin == NULL
      || (a->control != NULL
          && (control = server_socket_path ("--control", a->control, false)) == NULL)
      || (a->state != NULL && (state = server_absolute_path ("--state", a->state)) == NULL)
      || (a->socket != NULL && (socket = server_socket_path ("--socket", a->socket, false)) == NULL)
      || (a->certificates != NULL
          && (certificates = existing_path ("--tls-certificates", a->certificates)) == NULL)
      || (a->psk != NULL && (psk = existing_path ("--tls-psk", a->psk)) == NULL)
      || (a->detach && !worker_detach (&w)))
    goto out;
  s->socket = socket;
  s->control = control;
  a->disk.tracked = state != NULL;
  a->disk.tracked_directly
      = state != NULL && !a->disk.qcow2 && (!a->args.has_filter || a->args.has_direct);
  s->state = state;
  s->tls_certificates = certificates;
  s->tls_psk = psk;
  s->disk = &a->disk;
  s->args = &a->args;
  a->disk.displace = s->stdio && !a->disk.read_only;
  /* This comes after --detach, because the lock must belong to the process that stays. */
  status = receive_track_allowed (s);
  if (status == EXIT_DONE && receive_server_prepare (s) == -1)
    status = EXIT_ERROR;
  if (status == EXIT_DONE)
    status = prepare_disk (a);
  if (status == EXIT_DONE) {
    receive_track_tell (s);
    status = serve (a, &w);
    receive_server_free (s);
    receive_disk_close (&a->disk);
  }

out:
  text_free (s->filter);
  text_free (s->digest_filter);
  text_free (s->mirror_filter);
  text_free (s->image_plugin);
  text_free (socket);
  text_free (control);
  text_free (state);
  free (certificates);
  free (psk);
  return status;
}

/* --seal or --give-up, for a server that runs. */
static int
tell_server (const char *uri, bool seal)
{
  char *problem = uri_kind (uri) != URI_NONE ? uri_problem (uri) : NULL;
  if (problem != NULL) {
    int status = cmd_usage_error ("%s: %s", uri, problem);
    text_free (problem);
    return status;
  }

  char *error = NULL;
  int r = seal ? destination_seal (uri, &error) : destination_give_up (uri, &error);

  if (r == 1)
    cmd_say ("%s: this is not the mirror's export of a server that nbdmirror receive started", uri);
  else if (r == -1)
    cmd_say ("%s", error);
  text_free (error);
  return r == 0 ? EXIT_DONE : EXIT_ERROR;
}

static int
run (struct cmd_line *line)
{
  struct arguments a = { .detach = false };
  int c, status = 0;

  line->keep_rest = true;
  while ((c = cmd_getopt (line)) != -1) {
    if (c == CMD_OPT_STOP)
      return line->status;
    status = take_option (&a, c);
    if (status)
      return status;
  }
  if (!cmd_operands_ok (line, 1, 1, "PATH"))
    return line->status;
  if (line->operands[0].nr_args != 1 || line->operands[0].argv[0][0] == '\0')
    return cmd_usage_error ("PATH is that of a file or a block device");
  a.disk.name = line->operands[0].argv[0];
  if (a.seal && a.give_up)
    return cmd_usage_error ("--seal and --give-up exclude each other");
  if (a.seal || a.give_up)
    return tell_server (a.disk.name, a.seal);
  status = check_options (&a);
  if (status)
    return status;
  status = nbdkit_args_parse (&a.args, line->rest, line->nr_rest) == 0 ? prepare_and_serve (&a)
                                                                       : EXIT_USAGE;
  nbdkit_args_free (&a.args);
  return status;
}

const struct subcommand subcommand_receive = {
  "receive",
  "PATH --socket PATH | --port N | --stdio [OPTIONS] [-- NBDKIT-ARGS]",
  "Prepare a destination disk, and serve it.",
  "PATH, a new file or a block device, is prepared and served as a destination: the export "
  "`mirror` is\n"
  "for nbdmirror mirror, the export with the empty name for the guest.  One line of JSON says how "
  "to\n"
  "reach them.  One mirror session at a time may write, and none any more once the guest has "
  "written,\n"
  "or the hand-over is complete.\n",
  options,
  NULL,
  "The server is restarted when it ends, until the guest has written.  SIGTERM stops it.  SIGINT\n"
  "(Ctrl-C) gives up: a disk that was created here, and not handed over, is removed.\n"
  "NBDKIT-ARGS are further options of nbdkit and KEY=VALUE parameters.\n\n"
  "Examples:\n"
  "  nbdmirror receive /srv/vm1.img --size 20G --port 10810 --detach\n"
  "  nbdmirror receive /srv/vm1.qcow2 --format qcow2 --backing /srv/base.qcow2 --size 20G \\\n"
  "            --port 10810 --tls-certificates /etc/pki/nbd\n",
  run,
};
