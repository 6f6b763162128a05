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
#include "control/decision.h"

#define ANSWER_MS 10000
#define GUARDIAN_FD 3

enum order { ORDER_HOLD, ORDER_RELEASE, ORDER_COMMIT };

struct message {
  enum order order;
  uint64_t lease_ms;
  bool stopped; /* by somebody else: it is not ours to let it go on */
};

/* What is held now. */
struct held {
  bool is, stopped;
  uint64_t end_ms;
  struct decision *decision; /* owned; NULL: the worker alone commits */
};

#define FD_SPACE CMSG_SPACE (sizeof (int))

/* ---- the guardian --------------------------------------------------------------------------- */

/* The worker has ended.  Let the guest go on, if it was held, and remove what is left. */
static void
tidy_up (const char *qmp, const struct bitmaps *b, bool held)
{
  struct journal quiet = { .log = NULL };
  struct machine vm = { .name = "the guest's", .path = qmp, .journal = &quiet };
  char *error = NULL;

  if (held && machine_continue (&vm, &error) == -1 && !machine_is_dead (&vm))
    cmd_warning ("the guest is stopped, and does not go on: %s", error);
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
time_left (const struct held *h)
{
  uint64_t now = clock_ms ();

  return !h->is ? -1 : h->end_ms > now ? (int)(h->end_ms - now) : 0;
}

/* Is the guest handed over, by the word that several disks share?  If not, it never will be. */
static bool
is_committed (struct held *h)
{
  return h->is && h->decision != NULL
         && decision_try (h->decision, DECISION_ABORT) == DECISION_COMMIT;
}

/* False: the worker is gone. */
static bool
receive (int fd, struct message *m, int *word)
{
  union {
    char buf[FD_SPACE];
    struct cmsghdr align;
  } control;
  struct iovec iov = { .iov_base = m, .iov_len = sizeof *m };
  struct msghdr msg = { .msg_iov = &iov,
                        .msg_iovlen = 1,
                        .msg_control = control.buf,
                        .msg_controllen = sizeof control.buf };

  *word = -1;
  if (recvmsg (fd, &msg, MSG_CMSG_CLOEXEC) != sizeof *m)
    return false;
  const struct cmsghdr *c = CMSG_FIRSTHDR (&msg);
  if (c != NULL && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
    memcpy (word, CMSG_DATA (c), sizeof *word);
  return true;
}

/* Take in an order.  False: it cannot be obeyed, and the worker learns that by our end. */
static bool
obey (struct held *h, const struct message *m, int word)
{
  CLEANUP_TEXT char *error = NULL;

  decision_free (h->decision);
  *h = (struct held){ .is = m->order == ORDER_HOLD,
                      .stopped = m->stopped,
                      .end_ms = clock_ms () + m->lease_ms };
  if (word != -1)
    h->decision = decision_map (word, &error);
  return word == -1 || h->decision != NULL;
}

static void
watch_over (int fd, pid_t worker, const char *qmp, const struct bitmaps *b)
{
  struct held held = { .is = false };

  for (;;) {
    struct pollfd p = { .fd = fd, .events = POLLIN };
    struct message m;
    int r = poll (&p, 1, time_left (&held));
    if (r == -1 && errno == EINTR)
      continue;
    if (r == 0 && is_committed (&held)) {
      held.is = false;
      continue;
    }
    if (r == 0) {
      cmd_warning ("the worker holds the guest for too long: killing it");
      if (getppid () == worker)
        kill (worker, SIGKILL);
      break;
    }
    CLEANUP_FD int word = -1;
    if (!receive (fd, &m, &word) || !obey (&held, &m, word)
        || (send (fd, &m.order, sizeof m.order, MSG_NOSIGNAL) == -1 && held.is))
      break;
  }
  tidy_up (qmp, b, held.is && !is_committed (&held) && !held.stopped);
  decision_free (held.decision);
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
    /* The worker's sockets are to close when it ends. */
    dup2 (fds[1], GUARDIAN_FD);
    close_range (GUARDIAN_FD + 1, ~0U, 0);
    setsid (); /* Ctrl-C is for the worker */
    signal (SIGTERM, SIG_IGN);
    signal (SIGHUP, SIG_IGN);
    signal (SIGUSR1, SIG_IGN);
    watch_over (GUARDIAN_FD, worker, qmp, b);
    _exit (0);
  }
  close (fds[1]);
  g->fd = fds[0];
  return 0;
}

static int
order (struct guardian *g, const struct message *m, int word, char **error)
{
  struct pollfd p = { .fd = g->fd, .events = POLLIN };
  enum order answer;

  if (fd_send (g->fd, m, sizeof *m, word, 0) == sizeof *m) {
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
guardian_hold (struct guardian *g, const struct tracker_hold *hold, bool stopped, char **error)
{
  const struct message m = { .order = ORDER_HOLD, .lease_ms = hold->lease_ms, .stopped = stopped };
  return order (g, &m, hold->decision != NULL ? hold->decision->fd : -1, error);
}

int
guardian_release (struct guardian *g, char **error)
{
  const struct message m = { .order = ORDER_RELEASE };
  return order (g, &m, -1, error);
}

int
guardian_commit (struct guardian *g, char **error)
{
  const struct message m = { .order = ORDER_COMMIT };
  return order (g, &m, -1, error);
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
