/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * serve: put together an nbdkit command line for one disk with the mirror filter, and become it
 * (nbdkit-run.c).
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/qemu-lock.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/image.h"
#include "cmd/serve/nbdkit-args.h"
#include "cmd/serve/nbdkit-run.h"
#include "cmd/serve/paths.h"
#include "control/layers-export.h"

#define LOCK_TRIES 20u
#define LOCK_PAUSE_MS 50

struct serve {
  const char *disk;   /* as given */
  const char *format; /* as for qemu-nbd; NULL: raw, and not said */
  char *disk_path;    /* absolute, links resolved; owned, as all char * here */
  const char *socket_arg, *control_arg, *state_arg, *pidfile_arg, *export_name;
  char *socket, *control, *state, *pidfile;
  char *filter; /* a path, or "mirror" for nbdkit to find */
  char *plugin; /* a path, or "image" for nbdkit to find; NULL where DISK is raw */
  bool detach, print, force_share;
  struct nbdkit_args args;
  char **words; /* the command line, NULL at the end; each owned */
  unsigned nr_words, room;
};

static int
check_disk (struct serve *s)
{
  struct stat st;

  s->disk_path = realpath (s->disk, NULL);
  if (s->disk_path == NULL || stat (s->disk_path, &st) == -1) {
    if (strstr (s->disk, "://") != NULL)
      cmd_say ("%s: DISK is a file or a block device; to track what another nbdkit plugin serves, "
               "see nbdkit-mirror-filter(1)",
               s->disk);
    else
      cmd_say ("%s: %s", s->disk, strerror (errno));
    return -1;
  }
  if (!S_ISREG (st.st_mode) && !S_ISBLK (st.st_mode)) {
    cmd_say ("%s: neither a regular file nor a block device", s->disk);
    return -1;
  }
  if (access (s->disk_path, s->args.read_only ? R_OK : R_OK | W_OK) == -1) {
    cmd_say ("%s: %s", s->disk, strerror (errno));
    return -1;
  }
  return 0;
}

static bool
is_raw (const struct serve *s)
{
  return s->format == NULL || strcmp (s->format, "raw") == 0;
}

/* Our servers lock the file.  One that was killed a moment ago may have it for some time yet.  It
 * is no error: a disk that was handed over keeps its server, which writes no more. */
static void
warn_of_server (const struct serve *s, int fd)
{
  for (unsigned tries = 0; flock (fd, LOCK_EX | LOCK_NB) == -1; tries++) {
    if (errno != EWOULDBLOCK)
      return;
    if (tries == LOCK_TRIES) {
      cmd_warning ("%s: another server of nbdmirror has this disk as well: what is written there "
                   "is not tracked here, and two guests would damage the disk",
                   s->disk);
      return;
    }
    clock_sleep_ms (LOCK_PAUSE_MS);
  }
  flock (fd, LOCK_UN);
}

/* A file has no other guard: nbdkit's file plugin asks for no lock.  EXIT_DONE, or an exit status
 * after a message. */
static int
check_unused (const struct serve *s)
{
  CLEANUP_FD int fd = open (s->disk_path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

  if (fd == -1)
    return EXIT_DONE;
  if (!qemu_lock_excludes_writers (fd)) {
    warn_of_server (s, fd);
    return EXIT_DONE;
  }
  if (qemu_lock_is_written (fd))
    cmd_say (
        "%s: in use by QEMU or one of its tools: what is written there past this server would not "
        "be tracked ('nbdmirror adopt' takes the disk over from a running QEMU)",
        s->disk);
  else
    cmd_say ("%s: in use by QEMU or one of its tools, which reads it and lets nobody write",
             s->disk);
  return EXIT_REFUSED;
}

/* EXIT_DONE, or an exit status after a message. */
static int
check_format (const struct serve *s)
{
  if (s->format == NULL) {
    int status = image_refuse_container (s->disk_path, "--format");
    if (status != EXIT_DONE)
      return status;
  }
  if (is_raw (s))
    return s->print || s->force_share ? EXIT_DONE : check_unused (s);
  int status = image_check (s->disk_path, s->format);
  /* qemu-nbd would find it, but only when nbdkit is in the background. */
  return status == EXIT_DONE && !s->print ? image_unused (s->disk_path, s->format) : status;
}

/* ---- the command line ----------------------------------------------------------------------- */

__attribute__ ((format (printf, 2, 3))) static void
add_word (struct serve *s, const char *fmt, ...)
{
  va_list ap;

  if (s->nr_words + 2 > s->room) {
    s->room = 2 * s->room + 32;
    s->words = reallocarray (s->words, s->room, sizeof *s->words);
    if (s->words == NULL)
      abort ();
  }
  va_start (ap, fmt);
  s->words[s->nr_words++] = text_vprintf (fmt, ap);
  va_end (ap);
  s->words[s->nr_words] = NULL;
}

/* With other filters between, what the image's layers hold need not be what the guest sees. */
static bool
tells_layers (const struct serve *s)
{
  return !is_raw (s) && !s->args.has_filter;
}

static void
add_mirror_parameters (struct serve *s)
{
  char *name = server_escape (s->export_name), *path = server_escape (s->socket);

  add_word (s, "mirror-control=%s", s->control);
  if (s->state != NULL)
    add_word (s, "mirror-state=%s", s->state);
  if (s->export_name[0] != '\0')
    add_word (s, "mirror-export=%s", s->export_name);
  if (!s->args.has_uri)
    add_word (s, "mirror-uri=nbd%s+unix:///%s?socket=%s", s->args.tls_required ? "s" : "", name,
              path);
  /* With other filters between, the file's bytes need not be those that the guest sees. */
  if (!s->args.has_filter && !s->args.has_direct && is_raw (s))
    add_word (s, "mirror-direct=%s", s->disk_path);
  else
    add_word (s, "mirror-disk=%s", s->disk_path);
  if (!is_raw (s))
    add_word (s, "mirror-disk-format=%s", s->format);
  if (tells_layers (s))
    add_word (s, "mirror-layers=%s" LAYERS_SUFFIX, s->export_name);
  text_free (name);
  text_free (path);
}

/* The plugin: the file itself, or our plugin, which runs qemu-nbd.  The worker reads through this
 * server, too: where a qemu-nbd has died, the plugin lets nobody read before all is there again. */
static void
add_plugin (struct serve *s)
{
  if (is_raw (s)) {
    add_word (s, "file");
    add_word (s, "file=%s", s->disk_path);
    return;
  }
  add_word (s, "%s", s->plugin);
  add_word (s, "image=%s", s->disk_path);
  add_word (s, "image-format=%s", s->format);
  if (s->args.read_only)
    add_word (s, "image-read-only=yes");
  if (tells_layers (s))
    add_word (s, "image-layers=%s" LAYERS_SUFFIX, s->export_name);
}

static void
build_command_line (struct serve *s)
{
  unsigned i;

  add_word (s, "nbdkit");
  if (s->detach) {
    add_word (s, "-P");
    add_word (s, "%s", s->pidfile);
  } else {
    add_word (s, "-f");
    if (s->pidfile != NULL) {
      add_word (s, "-P");
      add_word (s, "%s", s->pidfile);
    }
  }
  add_word (s, "-U");
  add_word (s, "%s", s->socket);
  if (s->export_name[0] != '\0') {
    add_word (s, "-e");
    add_word (s, "%s", s->export_name);
  }
  add_word (s, "--filter=%s", s->filter);
  for (i = 0; i < s->args.nr_options; i++)
    add_word (s, "%s", s->args.options[i]);
  add_plugin (s);
  for (i = 0; i < s->args.nr_parameters; i++)
    add_word (s, "%s", s->args.parameters[i]);
  add_mirror_parameters (s);
}

/* Print a word quoted so that a shell reads the same word again. */
static void
print_command_line (const struct serve *s)
{
  for (unsigned i = 0; i < s->nr_words; i++) {
    const char *w = s->words[i];
    size_t plain = strspn (w, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
                              "-_./=+:,@%");

    if (i > 0)
      putchar (' ');
    if (w[0] != '\0' && w[plain] == '\0')
      fputs (w, stdout);
    else {
      putchar ('\'');
      for (; *w != '\0'; w++)
        if (*w == '\'')
          fputs ("'\\''", stdout);
        else
          putchar (*w);
      putchar ('\'');
    }
  }
  putchar ('\n');
}

/* Is the fence record about the disk that was here before DISK took its place (evacuate-disk)? */
static bool
is_successor (const char *path, const char *disk)
{
  json_t *o = json_load_file (path, 0, NULL);
  const char *successor = json_string_value (json_object_get (o, "successor"));
  bool r = successor != NULL && strcmp (successor, disk) == 0;

  json_decref (o);
  return r;
}

/* The filter obeys the record by itself.  The warning tells the user why the guest cannot write.
 * (Of a hand-off that was not decided, the filter tells.) */
static void
warn_of_fence (const char *control, const char *disk)
{
  CLEANUP_TEXT char *path = text_printf ("%s.fence", control);

  if (access (path, F_OK) == 0 && !is_successor (path, disk))
    cmd_warning ("%s is there: the disk was handed over, and its writes are refused until "
                 "'nbdmirror rollback'; remove the file only if it is about another disk",
                 path);
}

/* ---- putting it together ------------------------------------------------------------------- */

static int
serve (struct serve *s)
{
  if (check_disk (s) == -1)
    return EXIT_ERROR;
  int status = check_format (s);
  if (status != EXIT_DONE)
    return status;
  if ((s->socket = server_socket_path ("--socket", s->socket_arg, s->print)) == NULL
      || (s->control = server_socket_path ("--control", s->control_arg, s->print)) == NULL)
    return EXIT_ERROR;
  if (strcmp (s->socket, s->control) == 0)
    return cmd_usage_error ("--socket and --control are the same path");
  if (s->state_arg != NULL && (s->state = server_absolute_path ("--state", s->state_arg)) == NULL)
    return EXIT_ERROR;
  if (s->pidfile_arg != NULL) {
    if ((s->pidfile = server_absolute_path ("--pidfile", s->pidfile_arg)) == NULL)
      return EXIT_ERROR;
  } else if (s->detach)
    s->pidfile = text_printf ("%s.pid", s->socket);
  if ((s->filter = server_find_filter ("mirror", "NBDMIRROR_FILTER")) == NULL)
    return EXIT_ERROR;
  if (!is_raw (s) && (s->plugin = server_find_plugin ("image", "NBDMIRROR_IMAGE_PLUGIN")) == NULL)
    return EXIT_ERROR;
  build_command_line (s);
  if (s->print) {
    print_command_line (s);
    return EXIT_DONE;
  }
  if (nbdkit_check () == -1)
    return EXIT_ERROR;
  if (s->args.tls_required && !s->args.has_uri)
    cmd_warning ("with --tls=require the worker needs TLS here too: give mirror-uri= with what it "
                 "needs to connect (tls-certificates=, tls-psk-file=)");
  warn_of_fence (s->control, s->disk_path);
  const struct nbdkit_run run
      = { .words = s->words, .socket = s->socket, .control = s->control, .pidfile = s->pidfile };
  return s->detach ? nbdkit_run_detached (&run) : nbdkit_become (&run);
}

enum {
  OPT_SOCKET = 0x100,
  OPT_FORMAT,
  OPT_CONTROL,
  OPT_STATE,
  OPT_DETACH,
  OPT_EXPORT,
  OPT_PRINT,
  OPT_PIDFILE,
  OPT_FORCE_SHARE
};

static const struct cmd_option options[] = {
  { "socket", OPT_SOCKET, "PATH", "the Unix socket on which the disk is served" },
  { "control", OPT_CONTROL, "PATH", "the control socket, for the other subcommands" },
  { "format", OPT_FORMAT, "FORMAT",
    "the format of DISK: raw (default), or another one that qemu-nbd knows, for instance qcow2" },
  { "export", OPT_EXPORT, "NAME", "the name of the export (default: the empty name)" },
  { "detach", OPT_DETACH, NULL, "go to the background, and return when both sockets are ready" },
  { "pidfile", OPT_PIDFILE, "FILE",
    "write the server's process id into FILE (with --detach the default is the socket's path with "
    ".pid)" },
  { "force-share", OPT_FORCE_SHARE, NULL,
    "serve a raw DISK that QEMU has open as well; what that QEMU writes is not tracked" },
  { "print", OPT_PRINT, NULL, "print the nbdkit command line and do nothing" },
  { "dry-run", OPT_PRINT, NULL, NULL },
  { "state", OPT_STATE, "FILE",
    "keep the mirror job and checkpoints in FILE, so that they survive a crash; checkpoints, and "
    "so incremental backups, need it" },
  CMD_OPTIONS_END,
};

/* Fill in S.  False: return line->status. */
static bool
parse (struct cmd_line *line, struct serve *s)
{
  int opt;

  line->status = EXIT_USAGE;
  line->keep_rest = true;
  s->export_name = "";
  while ((opt = cmd_getopt (line)) != -1)
    switch (opt) {
    case OPT_SOCKET:
      s->socket_arg = optarg;
      break;
    case OPT_CONTROL:
      s->control_arg = optarg;
      break;
    case OPT_STATE:
      s->state_arg = optarg;
      break;
    case OPT_FORMAT:
      s->format = optarg;
      break;
    case OPT_DETACH:
      s->detach = true;
      break;
    case OPT_EXPORT:
      s->export_name = optarg;
      break;
    case OPT_PIDFILE:
      s->pidfile_arg = optarg;
      break;
    case OPT_FORCE_SHARE:
      s->force_share = true;
      break;
    case OPT_PRINT:
      s->print = true;
      break;
    default:
      return false;
    }
  if (!cmd_operands_ok (line, 1, 1, "DISK"))
    return false;
  s->disk = line->operands[0].argv[0];
  if (s->disk[0] == '\0')
    cmd_usage_error ("an empty name, where a disk is wanted");
  else if (s->socket_arg == NULL)
    cmd_usage_error ("--socket is missing");
  else if (s->control_arg == NULL)
    cmd_usage_error ("--control is missing");
  else if (strlen (s->export_name) > 4096)
    cmd_usage_error ("--export: the name has more than 4096 bytes");
  else
    return nbdkit_args_parse (&s->args, line->rest, line->nr_rest) == 0;
  return false;
}

static int
run (struct cmd_line *line)
{
  struct serve s = { 0 };
  int r = parse (line, &s) ? serve (&s) : line->status;

  for (unsigned i = 0; i < s.nr_words; i++)
    text_free (s.words[i]);
  free (s.words);
  nbdkit_args_free (&s.args);
  free (s.disk_path);
  text_free (s.socket);
  text_free (s.control);
  text_free (s.state);
  text_free (s.pidfile);
  text_free (s.filter);
  text_free (s.plugin);
  return r;
}

const struct subcommand subcommand_serve = {
  "serve",
  "DISK --socket PATH --control PATH [OPTIONS] [-- NBDKIT-ARGS]",
  "Serve a disk over NBD with its changes tracked.",
  "DISK is a file or a block device with the guest's disk, raw unless --format is given.\n"
  "The guest connects to the socket; mirroring is started and watched through the control\n"
  "socket.\n",
  options,
  NULL,
  "NBDKIT-ARGS are further options of nbdkit and KEY=VALUE parameters for it, its file plugin\n"
  "or its filters, e.g. --threads 64, mirror-block-size=64k.\n\n"
  "The server is nbdkit; stop it with SIGTERM.  The sockets are removed when it ends.  The\n"
  "filter is looked for in $NBDMIRROR_FILTER (a path), beside this program when it runs\n"
  "from its build directory, and where it was installed.\n\n"
  "Let the control socket's directory outlive a restart of the host: the record of a hand-over is\n"
  "beside it.\n\n"
  "Examples:\n"
  "  nbdmirror serve vm1.img --socket /run/vm1.nbd --detach \\\n"
  "            --control /var/lib/nbdmirror/vm1.control\n"
  "  nbdmirror serve /dev/vg0/vm1 --socket /run/vm1.nbd \\\n"
  "            --control /var/lib/nbdmirror/vm1.control -- --threads 64\n",
  run
};
