/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See server.h.
 */

#include "config.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <libnbd.h>

#include "base/child.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/private-socket.h"
#include "base/text.h"
#include "nbd-plugin/image/server.h"

/* Before qemu-nbd begins: where nbdkit is killed, it would stay behind with the image's lock. */
static int
guard (void *opaque, pid_t pid)
{
  struct image_server *s = opaque;

  return child_guard_start (&s->guard, pid, "", "");
}

/* Run qemu-nbd with LISTEN_FD, and set s->pid.  0, or -1 with errno. */
static int
run (struct image_server *s, const struct image_options *o, int listen_fd)
{
  CLEANUP_TEXT char *format = text_printf ("--format=%s", o->format);
  CLEANUP_TEXT char *path = text_copy (o->path);
  char *const words[] = { (char *)"qemu-nbd",
                          (char *)"--shared=0",
                          format,
                          (char *)(o->read_only ? "--read-only" : "--discard=unmap"),
                          path,
                          (char *)(o->layers ? "--allocation-depth" : NULL),
                          NULL };
  /* A group of its own, so that a Ctrl-C reaches nbdkit alone. */
  const struct child_options options = { .listen_fd = listen_fd,
                                         .output_to_stderr = true,
                                         .own_group = true,
                                         .before = guard,
                                         .opaque = s };

  pid_t pid = child_start (words, &options);
  s->pid = pid == -1 ? 0 : pid;
  return pid == -1 ? -1 : 0;
}

/* Connect, wherever FDS are, and run the server.  0, or -1 with errno. */
static int
connect_and_run (struct image_server *s, const struct image_options *o, int fds[SERVER_CONNECTIONS])
{
  struct private_socket socket = { .dir = "" };
  CLEANUP_FD int listen_fd = private_socket_listen (&socket);
  int r = listen_fd == -1 ? -1 : 0;

  for (unsigned i = 0; r == 0 && i < SERVER_CONNECTIONS; i++) {
    fds[i] = fd_connect (socket.path);
    if (fds[i] == -1)
      r = -1;
  }
  private_socket_remove (&socket);
  return r == 0 ? run (s, o, listen_fd) : -1;
}

/* Until END on base/clock.h's clock in ms.  0 or -1. */
static int
finish_handshake (struct nbd_handle *h, uint64_t end)
{
  while (nbd_aio_is_connecting (h) == 1) {
    uint64_t now = clock_ms ();
    if (now >= end || nbd_poll (h, (int)(end - now)) == -1)
      return -1;
  }
  return nbd_aio_is_ready (h) == 1 ? 0 : -1;
}

static struct nbd_handle *
shake_hands (const struct image_options *o, int *fd, uint64_t end)
{
  struct nbd_handle *h = nbd_create ();

  if (h == NULL)
    return NULL;
  int taken = *fd;
  *fd = -1; /* libnbd closes it in every case */
  if (nbd_add_meta_context (h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0
      && (!o->layers || nbd_add_meta_context (h, SERVER_DEPTH_CONTEXT) == 0)
      && nbd_aio_connect_socket (h, taken) == 0 && finish_handshake (h, end) == 0)
    return h;
  nbd_close (h);
  return NULL;
}

static uint32_t
block_size (struct nbd_handle *h, int which)
{
  int64_t size = nbd_get_block_size (h, which);

  return size > 0 && size <= UINT32_MAX ? (uint32_t)size : 0;
}

static void
ask (struct nbd_handle *h, struct image_facts *f)
{
  *f = (struct image_facts){
    .size = nbd_get_size (h),
    .read_only = nbd_is_read_only (h) == 1,
    .flush = nbd_can_flush (h) == 1,
    .trim = nbd_can_trim (h) == 1,
    .zero = nbd_can_zero (h) == 1,
    .fast_zero = nbd_can_fast_zero (h) == 1,
    .fua = nbd_can_fua (h) == 1,
    .cache = nbd_can_cache (h) == 1,
    .extents = nbd_can_meta_context (h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1,
    .layers = nbd_can_meta_context (h, SERVER_DEPTH_CONTEXT) == 1,
    .rotational = nbd_is_rotational (h) == 1,
    .minimum = block_size (h, LIBNBD_SIZE_MINIMUM),
    .preferred = block_size (h, LIBNBD_SIZE_PREFERRED),
    .maximum = block_size (h, LIBNBD_SIZE_MAXIMUM),
  };
}

int
server_start (struct image_server *s, const struct image_options *o, uint64_t end, char **error)
{
  int fds[SERVER_CONNECTIONS];

  *s = (struct image_server){ 0 };
  for (unsigned i = 0; i < SERVER_CONNECTIONS; i++)
    fds[i] = -1;
  int r = connect_and_run (s, o, fds);
  if (r == -1)
    text_error (error, "%s: qemu-nbd cannot be started: %s", o->path, strerror (errno));
  for (unsigned i = 0; r == 0 && i < SERVER_CONNECTIONS; i++) {
    struct nbd_handle *h = shake_hands (o, &fds[i], end);
    if (h == NULL)
      r = text_error (error, "%s: qemu-nbd does not serve it: %s", o->path,
                      clock_ms () >= end ? "it does not answer" : nbd_get_error ());
    else
      s->connection[s->nr_connections++] = h;
    /* Without this promise a flush covers only the connection on which it is sent. */
    if (h != NULL && i == 0 && nbd_can_multi_conn (h) != 1)
      break;
  }
  for (unsigned i = 0; i < SERVER_CONNECTIONS; i++)
    fd_close (&fds[i]);
  if (r == 0)
    ask (s->connection[0], &s->facts);
  if (r == 0 && s->facts.size < 0)
    r = text_error (error, "%s: qemu-nbd does not tell its size", o->path);
  if (r == 0 && !s->facts.read_only && !s->facts.flush)
    r = text_error (error, "%s: qemu-nbd offers no flush", o->path);
  if (r == -1) {
    server_kill (s);
    server_bury (s);
  }
  return r;
}

static void
close_connections (struct image_server *s)
{
  for (unsigned i = 0; i < s->nr_connections; i++)
    nbd_close (s->connection[i]);
  s->nr_connections = 0;
}

void
server_kill (const struct image_server *s)
{
  if (s->pid > 0)
    kill (s->pid, SIGKILL);
}

void
server_bury (struct image_server *s)
{
  close_connections (s);
  while (s->pid > 0 && waitpid (s->pid, &s->end_status, 0) == -1 && errno == EINTR)
    ;
  s->pid = 0;
  child_guard_stop (&s->guard);
}

bool
server_leave (struct image_server *s, int timeout_ms)
{
  for (unsigned i = 0; i < s->nr_connections; i++)
    nbd_shutdown (s->connection[i], 0); /* a server that is dead is closed all the same */
  close_connections (s);
  bool ended = s->pid == 0 || child_ended (s->pid, timeout_ms, &s->end_status);
  if (ended)
    s->pid = 0;
  child_guard_stop (&s->guard);
  return ended;
}

bool
server_is_lost (struct nbd_handle *connection, int err)
{
  return err == ESHUTDOWN || nbd_aio_is_dead (connection) == 1
         || nbd_aio_is_closed (connection) == 1;
}
