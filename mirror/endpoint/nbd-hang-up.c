/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See nbd-hang-up.h.
 */

#include "config.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "mirror/endpoint/nbd-hang-up.h"

static void *
wait_for_limit (void *opaque)
{
  struct nbd_hang_up *u = opaque;

  pthread_mutex_lock (&u->lock);
  while (!u->over && clock_ns () < u->limit_ns) {
    struct timespec limit = clock_timespec (u->limit_ns);
    pthread_cond_timedwait (&u->changed, &u->lock, &limit);
  }
  if (!u->over) {
    u->done = true;
    if (u->fd != -1)
      shutdown (u->fd, SHUT_RDWR);
  }
  pthread_mutex_unlock (&u->lock);
  return NULL;
}

int
nbd_hang_up_start (struct nbd_hang_up *u, uint64_t limit_ns)
{
  pthread_condattr_t attr;

  *u = (struct nbd_hang_up){ .fd = -1, .limit_ns = limit_ns };
  pthread_mutex_init (&u->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&u->changed, &attr);
  pthread_condattr_destroy (&attr);
  int err = pthread_create (&u->thread, NULL, wait_for_limit, u);
  if (err != 0) {
    pthread_cond_destroy (&u->changed);
    pthread_mutex_destroy (&u->lock);
  }
  return err;
}

void
nbd_hang_up_limit (struct nbd_hang_up *u, uint64_t limit_ns)
{
  pthread_mutex_lock (&u->lock);
  u->limit_ns = limit_ns;
  pthread_cond_signal (&u->changed);
  pthread_mutex_unlock (&u->lock);
}

void
nbd_hang_up_watch (struct nbd_hang_up *u, int fd)
{
  struct stat st;

  if (fd == -1 || fstat (fd, &st) == -1)
    return;
  pthread_mutex_lock (&u->lock);
  if (u->fd == -1 || u->socket != st.st_ino) {
    fd_close (&u->fd);
    u->fd = fcntl (fd, F_DUPFD_CLOEXEC, 0);
    u->socket = st.st_ino;
  }
  if (u->done && u->fd != -1)
    shutdown (u->fd, SHUT_RDWR);
  pthread_mutex_unlock (&u->lock);
}

bool
nbd_hang_up_end (struct nbd_hang_up *u)
{
  pthread_mutex_lock (&u->lock);
  u->over = true;
  pthread_cond_signal (&u->changed);
  pthread_mutex_unlock (&u->lock);
  pthread_join (u->thread, NULL);
  fd_close (&u->fd);
  pthread_cond_destroy (&u->changed);
  pthread_mutex_destroy (&u->lock);
  return u->done;
}
