/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See guardian.h.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/tracked/guardian.h"

#define CONT_TRIES 30
#define CONT_PAUSE_MS 1000
#define ANSWER_MS 10000

enum order { ORDER_HOLD, ORDER_RELEASE, ORDER_COMMIT };

struct message {
  enum order order;
  uint64_t lease_ms;
};

/* ---- the guardian --------------------------------------------------------------------------- */

/* The worker has ended.  Let the guest go on, if it was held, and remove what is left. */
static void
tidy_up (const char *qmp, const struct bitmaps *b, bool held)
{
  struct journal quiet = { .log = NULL };
  struct machine vm = { .name = "the guest's", .path = qmp, .journal = &quiet };
  char *error = NULL;

  for (int tries = 0; held && tries < CONT_TRIES; tries++) {
    if (machine_call (&vm, "cont", NULL, NULL, NULL, &error) == 0)
      held = false;
    else if (machine_is_dead (&vm))
      break;
    else
      clock_sleep_ms (CONT_PAUSE_MS);
    if (held && tries + 1 == CONT_TRIES)
      cmd_warning ("the guest is stopped, and does not go on: %s", error);
    text_free (error);
    error = NULL;
  }
  text_free (error);
  error = NULL;
  if (!machine_is_dead (&vm) && bitmaps_remove (b, &vm, false, &error) == -1) {
    cmd_warning ("left over in QEMU until the next run: %s", error);
    text_free (error);
  }
  machine_free (&vm);
}

/* How long poll() may wait, in ms. */
static int
time_left (bool held, uint64_t end_ms)
{
  uint64_t now = clock_ms ();

  return !held ? -1 : end_ms > now ? (int)(end_ms - now) : 0;
}

static void
watch_over (int fd, pid_t worker, const char *qmp, const struct bitmaps *b)
{
  bool held = false;
  uint64_t end_ms = 0;

  for (;;) {
    struct pollfd p = { .fd = fd, .events = POLLIN };
    struct message m;
    int r = poll (&p, 1, time_left (held, end_ms));
    if (r == -1 && errno == EINTR)
      continue;
    if (r == 0) {
      cmd_warning ("the worker holds the guest for too long: killing it");
      if (getppid () == worker)
        kill (worker, SIGKILL);
      break;
    }
    if (recv (fd, &m, sizeof m, 0) != sizeof m)
      break;
    held = m.order == ORDER_HOLD;
    end_ms = clock_ms () + m.lease_ms;
    if (send (fd, &m.order, sizeof m.order, MSG_NOSIGNAL) == -1 && m.order == ORDER_HOLD)
      break;
  }
  tidy_up (qmp, b, held);
}

/* ---- the worker ----------------------------------------------------------------------------- */

int
guardian_start (struct guardian *g, const char *qmp, const struct bitmaps *b, char **error)
{
  int fds[2];
  pid_t worker = getpid ();

  if (socketpair (AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == -1)
    return text_error (error, "socketpair: %s", strerror (errno));
  g->pid = fork ();
  if (g->pid == -1) {
    close (fds[0]);
    close (fds[1]);
    g->pid = 0;
    return text_error (error, "fork: %s", strerror (errno));
  }
  if (g->pid == 0) {
    close (fds[0]);
    setsid (); /* Ctrl-C is for the worker */
    signal (SIGTERM, SIG_IGN);
    signal (SIGHUP, SIG_IGN);
    signal (SIGUSR1, SIG_IGN);
    watch_over (fds[1], worker, qmp, b);
    _exit (0);
  }
  close (fds[1]);
  g->fd = fds[0];
  return 0;
}

static int
order (struct guardian *g, const struct message *m, char **error)
{
  struct pollfd p = { .fd = g->fd, .events = POLLIN };
  enum order answer;

  if (send (g->fd, m, sizeof *m, MSG_NOSIGNAL) == sizeof *m) {
    int r;
    while ((r = poll (&p, 1, ANSWER_MS)) == -1 && errno == EINTR)
      ;
    if (r == 1 && recv (g->fd, &answer, sizeof answer, 0) == sizeof answer && answer == m->order)
      return 0;
  }
  return text_error (error, "the process that looks after the guest (%ld) does not answer",
                     (long)g->pid);
}

int
guardian_hold (struct guardian *g, uint64_t lease_ms, char **error)
{
  const struct message m = { .order = ORDER_HOLD, .lease_ms = lease_ms };
  return order (g, &m, error);
}

int
guardian_release (struct guardian *g, char **error)
{
  const struct message m = { .order = ORDER_RELEASE };
  return order (g, &m, error);
}

int
guardian_commit (struct guardian *g, char **error)
{
  const struct message m = { .order = ORDER_COMMIT };
  return order (g, &m, error);
}

void
guardian_end (struct guardian *g)
{
  if (g->pid == 0)
    return;
  fd_close (&g->fd);
  while (waitpid (g->pid, NULL, 0) == -1 && errno == EINTR)
    ;
  g->pid = 0;
}
