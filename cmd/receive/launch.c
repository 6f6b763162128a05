/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Starting and ending the processes of a receive server.  See server.h.
 *
 * nbdkit writes its process id into a file once it listens, so nobody has to connect to find out.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/receive/server.h"
#include "cmd/serve/paths.h"
#include "cmd/serve/tidy.h"
#include "digest/export-name.h"

#define READY_MS 75000    /* for the server to listen; the image plugin waits 60 s for qemu-nbd */
#define QEMU_NBD_MS 10000 /* for the qemu-nbd of a server that has ended */
#define POLL_MS 5

/* ---- command lines --------------------------------------------------------------------------- */

struct words {
  char **word; /* NULL at the end */
  unsigned nr;
};

__attribute__ ((format (printf, 2, 3))) static void
add (struct words *w, const char *fmt, ...)
{
  va_list ap;

  w->word = realloc (w->word, (w->nr + 2) * sizeof *w->word);
  if (w->word == NULL)
    abort ();
  va_start (ap, fmt);
  w->word[w->nr++] = text_vprintf (fmt, ap);
  va_end (ap);
  w->word[w->nr] = NULL;
}

static void
free_words (struct words *w)
{
  for (unsigned i = 0; i < w->nr; i++)
    text_free (w->word[i]);
  free (w->word);
}

static void
add_listening (struct words *w, const struct receive_server *s)
{
  if (s->stdio)
    add (w, "-s");
  else {
    add (w, "-f");
    add (w, "-P");
    add (w, "%s/nbdkit.pid", s->dir);
  }
  if (s->socket != NULL) {
    add (w, "-U");
    add (w, "%s", s->socket);
  }
  if (s->port != NULL) {
    add (w, "-p");
    add (w, "%s", s->port);
  }
  if (s->address != NULL) {
    add (w, "-i");
    add (w, "%s", s->address);
  }
  if (s->disk->read_only)
    add (w, "-r");
  if (s->tls_certificates != NULL || s->tls_psk != NULL)
    add (w, "--tls=require");
  if (s->tls_certificates != NULL)
    add (w, "--tls-certificates=%s", s->tls_certificates);
  if (s->tls_psk != NULL)
    add (w, "--tls-psk=%s", s->tls_psk);
  if (s->tls_verify_peer)
    add (w, "--tls-verify-peer");
}

/* How a worker reaches the guest's export from this host. */
static void
add_guest_uri (struct words *w, const struct receive_server *s)
{
  const char *tls = s->tls_certificates != NULL || s->tls_psk != NULL ? "s" : "";
  const char *host = s->address != NULL ? s->address : "localhost";

  if (s->socket != NULL) {
    CLEANUP_TEXT char *path = server_escape (s->socket);
    add (w, "mirror-uri=nbd%s+unix:///?socket=%s", tls, path);
  } else
    add (w,
         strchr (host, ':') != NULL ? "mirror-uri=nbd%s://[%s]:%s/" : "mirror-uri=nbd%s://%s:%s/",
         tls, host, s->port);
}

static void
add_tracking (struct words *w, const struct receive_server *s)
{
  add (w, "receive-take-over-fd=%d", s->page_fd);
  add (w, "mirror-take-over-fd=%d", s->page_fd);
  if (s->fenced)
    add (w, "receive-fenced=true");
  add (w, "mirror-control=%s", s->control);
  if (s->state != NULL)
    add (w, "mirror-state=%s", s->state);
  if (!s->args->has_uri)
    add_guest_uri (w, s);
  /* With other filters between, the file's bytes need not be those that the guest sees. */
  if (!s->args->has_filter && !s->args->has_direct && !s->disk->qcow2)
    add (w, "mirror-direct=%s", s->disk->path);
  else
    add (w, "mirror-disk=%s", s->disk->path);
}

static void
nbdkit_words (struct words *w, const struct receive_server *s)
{
  add (w, "nbdkit");
  add_listening (w, s);
  /* The outermost filter is named first: this one gives the exports' names on to the other. */
  add (w, "--filter=%s", s->digest_filter);
  add (w, "--filter=%s", s->filter);
  if (s->control != NULL)
    add (w, "--filter=%s", s->mirror_filter);
  for (unsigned i = 0; i < s->args->nr_options; i++)
    add (w, "%s", s->args->options[i]);
  if (s->disk->qcow2) {
    add (w, "%s", s->image_plugin);
    add (w, "image=%s", s->disk->path);
    add (w, "image-format=qcow2");
    if (s->disk->read_only)
      add (w, "image-read-only=yes");
  } else {
    add (w, "file");
    add (w, "file=%s", s->disk->path);
  }
  for (unsigned i = 0; i < s->args->nr_parameters; i++)
    add (w, "%s", s->args->parameters[i]);
  add (w, "receive-notify-fd=%d", s->note_write_fd);
  add (w, "receive-disk-fd=%d", s->disk->fd);
  add (w, "receive-disk-path=%s", s->disk->path);
  if (s->disk->preallocate)
    add (w, "receive-keep-allocated=true");
  if (s->sealed)
    add (w, "receive-sealed=true");
  if (s->base_fd != -1)
    add (w, "digest-base-fd=%d", s->base_fd);
  if (s->control != NULL)
    add_tracking (w, s);
}

/* ---- children -------------------------------------------------------------------------------- */

/* It has told its result itself, unless somebody killed it. */
static void
digest_ended (struct receive_server *s, int status)
{
  char text[DIGEST_BASE_SIZE] = "failed it was killed\n";

  s->digest = 0;
  if (WIFSIGNALED (status) && pwrite (s->base_fd, text, sizeof text, 0) == -1)
    cmd_warning ("the digest of %s: %s", s->disk->backing, strerror (errno));
}

void
receive_reap (struct receive_server *s)
{
  int status;
  pid_t pid;

  while ((pid = waitpid (-1, &status, WNOHANG)) > 0)
    if (pid == s->nbdkit) {
      s->nbdkit = 0;
      s->nbdkit_status = status;
    } else if (pid == s->digest)
      digest_ended (s, status);
}

static void
pid_file (const struct receive_server *s, char path[RECEIVE_PID_FILE])
{
  snprintf (path, RECEIVE_PID_FILE, "%s/nbdkit.pid", s->dir);
}

/* Until nbdkit writes its file.  -1 after an error message, or because a signal has come. */
static int
wait_until_ready (struct receive_server *s)
{
  char path[RECEIVE_PID_FILE];
  struct stat st;

  pid_file (s, path);
  for (int waited = 0; waited < READY_MS; waited += POLL_MS) {
    if (stat (path, &st) == 0 && st.st_size > 0)
      return 0;
    receive_read_signals (s);
    if (s->stopped_by != 0)
      return -1;
    if (s->nbdkit == 0) {
      cmd_say ("nbdkit ended before it served the disk");
      return -1;
    }
    clock_sleep_ms (POLL_MS);
  }
  cmd_say ("nbdkit does not serve the disk after %d s", READY_MS / 1000);
  return -1;
}

static pid_t
start (struct receive_server *s, struct words *w)
{
  const struct child_options o = {
    .our_stdio = s->stdio,
    .keep = { s->disk->fd, s->dir_fd, s->note_write_fd, s->base_fd, s->page_fd, s->wake_fd },
    .end_with_us = s->stdio,
  };
  pid_t pid = child_start (w->word, &o);

  if (pid == -1)
    cmd_say ("%s cannot be run: %s", w->word[0], strerror (errno));
  free_words (w);
  return pid == -1 ? 0 : pid;
}

/* Remove the socket of the last server, which has ended.  Returns true if the next socket must get
 * its OWNER and mode, because somebody may have given it to the guest's user. */
static bool
remove_socket (const struct receive_server *s, struct stat *owner)
{
  bool keep = false;

  if (s->socket != NULL && tidy_look (s->socket) == TIDY_STALE) {
    keep = s->launched && lstat (s->socket, owner) == 0;
    unlink (s->socket);
  }
  return keep;
}

static void
give_socket (const struct receive_server *s, const struct stat *owner)
{
  if (lchown (s->socket, owner->st_uid, owner->st_gid) == -1
      || chmod (s->socket, owner->st_mode & 07777) == -1)
    cmd_warning ("%s: its owner and mode cannot be set again: %s", s->socket, strerror (errno));
}

int
receive_start_digest (struct receive_server *s)
{
  struct words w = { 0 };

  s->base_fd = s->disk->backing != NULL ? memfd_create ("nbdmirror-base", MFD_CLOEXEC) : -1;
  if (s->disk->backing == NULL)
    return 0;
  if (s->base_fd == -1 || ftruncate (s->base_fd, DIGEST_BASE_SIZE + 1) == -1
      || (s->disk->resume && pwrite (s->base_fd, "w", 1, DIGEST_BASE_SIZE) == -1)) {
    cmd_say ("%s", strerror (errno));
    return -1;
  }
  add (&w, "nbdmirror");
  add (&w, "digest");
  add (&w, "%s", s->disk->backing);
  add (&w, "--format=%s", s->disk->backing_format);
  add (&w, "--status-fd=%d", s->base_fd);
  const struct child_options o
      = { .path = "/proc/self/exe", .keep = { s->base_fd }, .end_with_us = true };
  s->digest = child_start (w.word, &o);
  int err = errno;
  free_words (&w);
  if (s->digest != -1)
    return 0;
  s->digest = 0;
  cmd_say ("the digest of %s cannot be computed: %s", s->disk->backing, strerror (err));
  return -1;
}

int
receive_launch (struct receive_server *s)
{
  struct words w = { 0 };
  char path[RECEIVE_PID_FILE];
  struct stat owner;

  if (!receive_disk_is_there (s->disk)) {
    cmd_say ("%s: this is another file now: it is not served", s->disk->path);
    return -1;
  }
  pid_file (s, path);
  unlink (path);
  bool keep = remove_socket (s, &owner);
  if (s->control != NULL && tidy_look (s->control) == TIDY_STALE)
    unlink (s->control);
  receive_track_again (s);
  nbdkit_words (&w, s);
  s->nbdkit = start (s, &w);
  if (s->nbdkit == 0)
    return -1;
  if (!s->stdio && wait_until_ready (s) == -1)
    return -1;
  if (keep)
    give_socket (s, &owner);
  s->launched = true;
  return 0;
}

void
receive_end_children (struct receive_server *s, int patience_ms)
{
  receive_reap (s);
  bool ran = s->nbdkit != 0;
  if (ran)
    kill (s->nbdkit, SIGTERM);
  for (int waited = 0; s->nbdkit != 0 && waited < patience_ms; waited += POLL_MS) {
    clock_sleep_ms (POLL_MS);
    receive_reap (s);
  }
  if (s->nbdkit != 0)
    kill (s->nbdkit, SIGKILL);
  while (s->nbdkit != 0) { /* its last system calls, however long they take */
    clock_sleep_ms (POLL_MS);
    receive_reap (s);
  }
  /* An nbdkit that ends in order has waited for its qemu-nbd, and a guest's QEMU may have the image
   * by now.  The qemu-nbd of one that was killed outlives it, and writes what it has in memory. */
  bool in_order = ran && WIFEXITED (s->nbdkit_status) && WEXITSTATUS (s->nbdkit_status) == 0;
  if (s->disk->qcow2 && !in_order && !receive_disk_wait_unused (s->disk, QEMU_NBD_MS))
    cmd_warning ("%s: a qemu-nbd still has it open after %d s", s->disk->name, QEMU_NBD_MS / 1000);
}
