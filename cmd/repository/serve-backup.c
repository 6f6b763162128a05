/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror serve-backup: a backup as an NBD export, by a qemu-nbd of ours.  It is read-only; or,
 * with --overlay, what is written goes to a temporary file that is removed at the end.
 */

#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/child.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/control-query.h"
#include "cmd/repository/far-export.h"
#include "cmd/repository/repository.h"
#include "cmd/serve/paths.h"
#include "cmd/serve/tidy.h"
#include "cmd/worker.h"
#include "mirror/endpoint/endpoint.h"

#define START_MS 10000
#define FAR_MS 40000 /* the same through ssh, which has to log in */
#define POLL_MS 20
#define IDLE_MS 1000
#define ANSWER_MS 1000
#define END_MS 5000

enum { OPT_AT = 0x200, OPT_DISK, OPT_SOCKET, OPT_OVERLAY };

static const struct cmd_option options[] = {
  { "at", OPT_AT, "NAME|TIME",
    "which backup: its name, or the last one that had ended by TIME (default the last one)" },
  { "disk", OPT_DISK, "DISK", "which disk; not needed if the backup holds only one" },
  { "socket", OPT_SOCKET, "PATH", "serve it on this Unix socket; needed" },
  { "overlay", OPT_OVERLAY, NULL, "let clients write, to a place that is forgotten at the end" },
  { "json", 'j', NULL, "print a JSON object when it is ready, instead of the URI" },
  CMD_OPTIONS_END,
};

struct serving {
  const char *socket;
  bool overlay, json;
  _Atomic int *signal;
};

/* ---- overlays ----
 *
 * Each lies in a directory of its own, on which its process holds a lock.  So what a process has
 * left that was killed is known, and the next one removes it. */

#define OVERLAY "nbdmirror-overlay-"
#define TRIES 10

struct overlay {
  char *dir, *path;
  int lock; /* on the directory */
};

/* Take the lock of DIR, if it is the directory that the name means, and a user's own. */
static bool
lock_overlay (const char *dir, int *fd)
{
  struct stat ours, its;

  *fd = open (dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (*fd != -1 && flock (*fd, LOCK_EX | LOCK_NB) == 0 && fstat (*fd, &ours) == 0
      && lstat (dir, &its) == 0 && ours.st_ino == its.st_ino && ours.st_dev == its.st_dev
      && ours.st_uid == geteuid ())
    return true;
  fd_close (fd);
  return false;
}

static void
remove_overlay (struct overlay *v)
{
  if (v->path != NULL)
    unlink (v->path);
  if (v->dir != NULL)
    rmdir (v->dir);
  fd_close (&v->lock);
  text_free (v->path);
  text_free (v->dir);
}

/* Remove what killed processes have left in WHERE. */
static void
tidy_overlays (const char *where)
{
  DIR *d = opendir (where);
  const struct dirent *e;

  while (d != NULL && (e = readdir (d)) != NULL) {
    if (strncmp (e->d_name, OVERLAY, strlen (OVERLAY)) != 0)
      continue;
    struct overlay v = { .dir = text_printf ("%s/%s", where, e->d_name) };
    v.path = text_printf ("%s/overlay.qcow2", v.dir);
    if (lock_overlay (v.dir, &v.lock))
      remove_overlay (&v);
    else {
      text_free (v.path);
      text_free (v.dir);
    }
  }
  if (d != NULL)
    closedir (d);
}

/* An overlay on IMAGE, in FORMAT, in a new directory below $TMPDIR.  False after a message; to be
 * removed in either case. */
static bool
make_overlay (struct overlay *v, const char *image, const char *format)
{
  const char *tmp = getenv ("TMPDIR"), *where = tmp != NULL && *tmp ? tmp : "/var/tmp";

  *v = (struct overlay){ .lock = -1 };
  tidy_overlays (where);
  /* Another process may have tidied it up before it was locked. */
  for (unsigned i = 0; v->lock == -1; i++) {
    text_free (v->dir);
    v->dir = text_printf ("%s/" OVERLAY "XXXXXX", where);
    if (i == TRIES || mkdtemp (v->dir) == NULL) {
      cmd_say ("%s: %s", v->dir, i == TRIES ? "it cannot be locked" : strerror (errno));
      text_free (v->dir);
      v->dir = NULL;
      return false;
    }
    lock_overlay (v->dir, &v->lock);
  }
  v->path = text_printf ("%s/overlay.qcow2", v->dir);
  const char *const words[]
      = { "qemu-img", "create", "-q", "-f", "qcow2", "-F", format, "-b", image, v->path, NULL };
  int r = child_run (words, NULL);
  if (r != 0)
    cmd_say ("%s: qemu-img cannot make an overlay (%d)", v->path, r);
  return r == 0;
}

/* ---------------------------------------------------------------------------------------------- */

/* The image, or NULL as long as qemu-nbd does not serve it: it makes the socket before it opens the
 * files. */
static struct endpoint *
connect_to (const char *socket, bool far)
{
  struct stat st;

  if (stat (socket, &st) == -1 || !S_ISSOCK (st.st_mode))
    return NULL;
  CLEANUP_TEXT char *escaped = server_escape (socket);
  CLEANUP_TEXT char *uri = text_printf ("nbd+unix:///?socket=%s", escaped);
  const struct endpoint_options eo = { .connect_timeout_ms = far ? FAR_MS : ANSWER_MS };
  return endpoint_open (&uri, 1, &eo, NULL, NULL);
}

static void
say_ready (const struct serving *s, const struct selected *which)
{
  CLEANUP_TEXT char *socket = server_escape (s->socket);

  if (s->json)
    printf ("{\"uri\": \"nbd+unix:///?socket=%s\", \"backup\": \"%s\", \"size\": %llu,"
            " \"read-only\": %s, \"pid\": %ld}\n",
            socket, which->entry->name, (unsigned long long)which->disk->size,
            s->overlay ? "false" : "true", (long)getpid ());
  else
    printf ("nbd+unix:///?socket=%s\n", socket);
  fflush (stdout);
}

/* Start a qemu-nbd that serves IMAGE.  -1 with errno. */
static pid_t
start_qemu_nbd (const struct serving *s, const char *image)
{
  char *socket_word = text_printf ("--socket=%s", s->socket);
  char *words[] = { (char *)"qemu-nbd",
                    (char *)"--format=qcow2",
                    (char *)"--persistent",
                    (char *)"--shared=0",
                    socket_word,
                    (char *)(s->overlay ? "--discard=unmap" : "--read-only"),
                    (char *)image,
                    NULL };
  const struct child_options how = { .own_group = true, .end_with_us = true };

  pid_t pid = child_start (words, &how);
  text_free (socket_word);
  return pid;
}

static void
end_server (pid_t pid)
{
  int ended;

  kill (-pid, SIGTERM);
  if (!child_ended (pid, END_MS, &ended)) {
    kill (-pid, SIGKILL);
    child_ended (pid, END_MS, &ended);
  }
}

/* PID serves the disk: wait until we are told to end, or it ends. */
static int
serve (const struct serving *s, struct opened *o, const struct selected *which, pid_t pid)
{
  /* Kept: on another host nothing else holds the files between two clients, so that a prune could
   * rewrite or remove them, and the next client would get another backup. */
  struct endpoint *ep = NULL;
  uint64_t begin = clock_ms (), limit_ms = o->store.far != NULL ? FAR_MS : START_MS;
  bool ready = false, has_ended = false;
  int ended = 0;

  while (atomic_load (s->signal) == 0) {
    has_ended = child_ended (pid, ready ? IDLE_MS : POLL_MS, &ended);
    if (has_ended) {
      cmd_say ("the server has ended");
      ready = false;
      break;
    }
    if (!ready && (ep = connect_to (s->socket, o->store.far != NULL)) != NULL) {
      if (!opened_still_good (o, which))
        break;
      ready = true;
      say_ready (s, which);
    }
    if (!ready && clock_ms () - begin > limit_ms) {
      cmd_say ("the disk is not served within %" PRIu64 " s", limit_ms / 1000);
      break;
    }
  }
  if (ep != NULL)
    endpoint_close (ep);
  if (!has_ended)
    end_server (pid);
  unlink (s->socket);
  return ready ? EXIT_DONE : EXIT_ERROR;
}

/* With the overlay, or without one, IMAGE in FORMAT.  An exit status. */
static int
serve_image (const struct serving *s, struct opened *o, const struct selected *which,
             const char *image, const char *format)
{
  struct overlay overlay = { .lock = -1 };
  int status = EXIT_ERROR;

  if (!s->overlay || make_overlay (&overlay, image, format)) {
    pid_t pid = start_qemu_nbd (s, s->overlay ? overlay.path : image);
    if (pid == -1)
      cmd_say ("qemu-nbd: %s", strerror (errno));
    else
      status = serve (s, o, which, pid);
  }
  remove_overlay (&overlay);
  return status;
}

/* A disk on another host: each client gets a connection of its own there; an overlay is here. */
static int
serve_far (const struct serving *s, struct opened *o, const struct selected *which)
{
  struct far_export x;
  int status = EXIT_ERROR;

  if (far_export_start (&x, o->store.repo.path, which->disk->file, s->overlay ? NULL : s->socket)
      == -1)
    return EXIT_ERROR;
  if (s->overlay) {
    CLEANUP_TEXT char *escaped = server_escape (x.socket);
    CLEANUP_TEXT char *uri = text_printf ("nbd+unix:///?socket=%s", escaped);
    status = serve_image (s, o, which, uri, "raw");
    end_server (x.pid);
  } else
    status = serve (s, o, which, x.pid);
  far_export_tidy (&x);
  return status;
}

static int
serve_selected (const struct serving *s, struct opened *o, const struct selected *which)
{
  CLEANUP_TEXT char *fault
      = store_chain_fault (&o->store, &o->list, which->entry->name, which->disk->id);
  CLEANUP_TEXT char *path = repository_path (&o->store.repo, which->disk->file);

  if (fault != NULL) {
    cmd_say ("backup %s is broken: %s", which->entry->name, fault);
    return EXIT_ERROR;
  }
  return o->store.far != NULL ? serve_far (s, o, which) : serve_image (s, o, which, path, "qcow2");
}

static int
run (struct cmd_line *line)
{
  struct serving s = { .socket = NULL };
  const char *at = NULL, *disk = NULL;
  struct selected which;
  struct opened o;
  int c;

  while ((c = cmd_getopt (line)) != -1)
    switch (c) {
    case OPT_AT:
      at = optarg;
      break;
    case OPT_DISK:
      disk = optarg;
      break;
    case OPT_SOCKET:
      s.socket = optarg;
      break;
    case OPT_OVERLAY:
      s.overlay = true;
      break;
    case 'j':
      s.json = true;
      break;
    default:
      return line->status;
    }
  if (!cmd_operands_ok (line, 1, 1, "REPO"))
    return line->status;
  if (s.socket == NULL)
    return cmd_usage_error ("--socket PATH is needed");
  /* qemu-nbd takes no relative one. */
  CLEANUP_TEXT char *here = s.socket[0] != '/' ? getcwd (NULL, 0) : NULL;
  CLEANUP_TEXT char *absolute = here != NULL ? text_printf ("%s/%s", here, s.socket) : NULL;
  if (absolute != NULL)
    s.socket = absolute;
  if (tidy_look (s.socket) == TIDY_STALE)
    unlink (s.socket); /* of a process that was killed */
  if (access (s.socket, F_OK) == 0) {
    cmd_say (query_is_control (s.socket) ? "%s exists: another server may use it"
                                         : "%s exists and is not a socket",
             s.socket);
    return EXIT_ERROR;
  }
  if (worker_signals (&s.signal) == -1)
    return EXIT_ERROR;
  int status = opened_open (&o, line->operands[0].argv[0]);
  if (status == EXIT_DONE)
    status = opened_select (&o, at, disk, &which);
  if (status == EXIT_DONE)
    status = serve_selected (&s, &o, &which);
  opened_close (&o);
  return status;
}

const struct subcommand subcommand_serve_backup = {
  "serve-backup",
  "REPO --socket PATH [OPTIONS]",
  "Serve a backup as an NBD export.",
  "Serves a disk of a backup in REPO read-only, so that a file can be taken out of it, or with\n"
  "--overlay so that a guest can be started from it at once.  The URI is printed when it is "
  "ready.\n"
  "It ends with SIGTERM or Ctrl-C.\n",
  options,
  NULL,
  "Examples:\n"
  "  nbdmirror serve-backup /srv/backup --socket /run/backup.sock\n"
  "  nbdmirror serve-backup /srv/backup --at 2026-01-31 --socket /run/vm.sock --overlay\n",
  run,
};
