/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup-verify --boot: start a guest from a backup, on throw-away overlays, and wait until it says
 * that it is up.  The user's command starts it; we look for a text in what that prints.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/child.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/private-dir.h"
#include "base/text.h"
#include "cmd/repository/boot.h"

#define SERVE_MS 10000
#define POLL_MS 50
#define END_MS 6000 /* serve-backup gives its qemu-nbd 5 s */

struct booting {
  const struct boot *b;
  char dir[PRIVATE_DIR_SIZE];
  int lock; /* of the directory; -1: there is none */
  pid_t *servers;
  char **sockets;
  unsigned nr;
};

/* A socket is named after its disk's number. */
static bool
is_socket (const char *name)
{
  return name[strspn (name, "0123456789")] == '\0';
}

static bool
clear (int fd, const char *path)
{
  (void)path;
  private_dir_unlink (fd, is_socket);
  return true;
}

/* Serve disk I of the backup.  False: *ERROR says why. */
static bool
serve_disk (struct booting *x, const struct backup_entry *e, unsigned i, char **error)
{
  const char *disk = e->manifest.disks[i].id;
  char *socket = text_printf ("%s/%u", x->dir, i);
  char *const words[] = { (char *)"nbdmirror",
                          (char *)"serve-backup",
                          (char *)x->b->repository,
                          (char *)"--at",
                          e->name,
                          (char *)"--disk",
                          (char *)disk,
                          (char *)"--overlay",
                          (char *)"--socket",
                          socket,
                          NULL };
  const struct child_options how = { .path = "/proc/self/exe", .end_with_us = true };
  uint64_t begin = clock_ms ();
  int status;

  x->sockets[x->nr] = socket;
  x->servers[x->nr] = child_start (words, &how);
  if (x->servers[x->nr++] == -1)
    return text_error (error, "serve-backup: %s", strerror (errno)) == 0;
  while (access (socket, F_OK) == -1)
    if (child_ended (x->servers[x->nr - 1], POLL_MS, &status) || clock_ms () - begin > SERVE_MS)
      return text_error (error, "disk '%s' cannot be served", disk) == 0;
  return true;
}

/* The environment of the command: where the disks are. */
static void
tell_command (const struct booting *x)
{
  CLEANUP_TEXT char *all = text_copy ("");

  for (unsigned i = 0; i < x->nr; i++) {
    CLEANUP_TEXT char *uri = text_printf ("nbd+unix:///?socket=%s", x->sockets[i]);
    char *longer = text_printf ("%s%s%s", all, i > 0 ? " " : "", uri);
    text_free (all);
    all = longer;
    if (i == 0)
      setenv ("NBDMIRROR_URI", uri, 1);
  }
  setenv ("NBDMIRROR_URIS", all, 1);
}

/* Read what comes from FD until the mark is in it.  False: *ERROR says why it is not. */
static bool
wait_for_mark (const struct boot *b, int fd, char **error)
{
  size_t length = strlen (b->mark), have = 0, room = length + 4096;
  uint64_t end = clock_ms () + b->limit_ms;
  char *text = malloc (room);
  bool found = false;

  while (text != NULL && !found) {
    uint64_t now = clock_ms ();
    struct pollfd p = { .fd = fd, .events = POLLIN };
    if (now >= end || atomic_load (b->signal) != 0)
      break;
    if (poll (&p, 1, end - now < 1000 ? (int)(end - now) : 1000) <= 0)
      continue;
    ssize_t n = read (fd, text + have, room - have);
    if (n <= 0) {
      text_error (error, "the command has ended without it");
      break;
    }
    have += (size_t)n;
    found = memmem (text, have, b->mark, length) != NULL;
    if (have >= length) { /* its beginning may be there */
      memmove (text, text + have - (length - 1), length - 1);
      have = length - 1;
    }
  }
  free (text);
  if (!found && *error == NULL)
    text_error (error, "it did not come within %llu s", (unsigned long long)b->limit_ms / 1000);
  return found;
}

/* Run the command.  False: *ERROR. */
static bool
run_command (const struct boot *b, char **error)
{
  char *const words[] = { (char *)"/bin/sh", (char *)"-c", (char *)b->command, NULL };
  int fds[2], status;

  if (socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == -1)
    return text_error (error, "socketpair: %s", strerror (errno)) == 0;
  const struct child_options how = { .stdio_fd = fds[1], .own_group = true, .end_with_us = true };
  pid_t pid = child_start (words, &how);
  fd_close (&fds[1]);
  bool found = false;
  if (pid == -1)
    text_error (error, "/bin/sh: %s", strerror (errno));
  else {
    found = wait_for_mark (b, fds[0], error);
    kill (-pid, SIGKILL);
    child_ended (pid, END_MS, &status);
  }
  fd_close (&fds[0]);
  return found;
}

static void
end_servers (struct booting *x)
{
  int status;

  for (unsigned i = 0; i < x->nr; i++)
    if (x->servers[i] > 0)
      kill (x->servers[i], SIGTERM);
  for (unsigned i = 0; i < x->nr; i++) {
    if (x->servers[i] > 0 && !child_ended (x->servers[i], END_MS, &status)) {
      kill (x->servers[i], SIGKILL);
      child_ended (x->servers[i], END_MS, &status);
    }
    text_free (x->sockets[i]);
  }
  if (x->lock == -1)
    return;
  rmdir (x->dir);
  close (x->lock);
}

char *
boot_backup (const struct boot *b, const struct backup_entry *e)
{
  static const struct private_dir_kind kind = { "nbdmirror-boot-", clear };
  struct booting x = { .b = b };
  char *error = NULL;

  x.servers = calloc (e->manifest.nr_disks + 1, sizeof *x.servers);
  x.sockets = calloc (e->manifest.nr_disks + 1, sizeof *x.sockets);
  x.lock = private_dir_make (&kind, x.dir);
  bool good = x.servers != NULL && x.sockets != NULL && x.lock != -1;
  if (!good)
    text_error (&error, "%s: %s", x.dir, strerror (errno));
  for (unsigned i = 0; good && i < e->manifest.nr_disks; i++)
    if (e->manifest.disks[i].file != NULL)
      good = serve_disk (&x, e, i, &error);
  if (good) {
    tell_command (&x);
    good = run_command (b, &error);
  }
  end_servers (&x);
  free (x.servers);
  free (x.sockets);
  if (good)
    return NULL;
  char *fault = text_printf ("it was booted, and '%s' was not seen: %s", b->mark, error);
  text_free (error);
  return fault;
}
