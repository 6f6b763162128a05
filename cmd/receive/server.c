/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Supervising the servers of `receive`.  See server.h.
 *
 * One thread and one poll(): signals through a signalfd, the filter's notes through a pipe, and in
 * the background what the servers say through another.  The notes are read before it is decided
 * what a server's end means.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <syslog.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/stop-signals.h"
#include "cmd/cmd.h"
#include "cmd/receive/server.h"
#include "cmd/serve/tidy.h"
#include "control/receive-exports.h"

#define PATIENCE_MS 3000        /* for nbdkit to end: it waits for its clients to leave */
#define SESSION_PATIENCE_MS 100 /* the same with --stdio: nobody else needs it */
#define SHORT_LIFE_MS 5000      /* a server that lived for less ... */
#define SHORT_LIVES_MAX 10      /* ... so many times running is not started again */

/* ---- messages in the background -------------------------------------------------------------- */

/* From now on our standard error and that of the servers is a pipe, which we read ourselves. */
static int
take_stderr (struct receive_server *s)
{
  int fds[2];

  if (pipe2 (fds, O_CLOEXEC | O_NONBLOCK) == -1)
    return -1; /* never blocks: what does not fit is lost */
  s->log_to = fcntl (STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
  s->log_fd = fds[0];
  dup2 (fds[1], STDERR_FILENO);
  close (fds[1]);
  return s->log_to == -1 ? -1 : 0;
}

static void
pass_on (struct receive_server *s)
{
  char text[4097], *save = NULL;
  ssize_t n;

  if (s->log_fd == -1)
    return;
  while ((n = read (s->log_fd, text, sizeof text - 1)) > 0) {
    if (s->log_to != -1) {
      if (write (s->log_to, text, (size_t)n) == -1)
        continue;
      continue;
    }
    text[n] = '\0';
    for (char *line = strtok_r (text, "\n", &save); line != NULL;
         line = strtok_r (NULL, "\n", &save))
      syslog (LOG_NOTICE, "%s", line);
  }
}

void
receive_server_quiet (struct receive_server *s)
{
  int null = open ("/dev/null", O_RDWR | O_CLOEXEC);

  pass_on (s);
  if (null == -1)
    return;
  fflush (stdout);
  dup2 (null, STDIN_FILENO);
  dup2 (null, STDOUT_FILENO);
  close (null);
  close (s->log_to);
  s->log_to = -1;
  openlog ("nbdmirror-receive", LOG_PID, LOG_DAEMON);
  if (chdir ("/") == -1)
    return; /* it only keeps a file system busy */
}

/* ---- events ---------------------------------------------------------------------------------- */

static void
read_notes (struct receive_server *s)
{
  char note;

  while (read (s->note_fd, &note, 1) == 1)
    if (note == RECEIVE_NOTE_SEALED && !s->sealed) {
      s->sealed = true;
      cmd_say ("%s: handed over to its guest: the mirror may not write any more", s->disk->name);
    } else if (note == RECEIVE_NOTE_WRITTEN)
      s->written = true;
    else if (note == RECEIVE_NOTE_GIVEN_UP)
      s->given_up = true;
}

int
receive_server_prepare (struct receive_server *s)
{
  sigset_t set;

  s->nbdkit = 0;
  s->stopped_by = 0;
  s->note_fd = s->note_write_fd = s->log_fd = s->log_to = s->dir_fd = s->base_fd = s->page_fd
      = s->wake_fd = -1;
  stop_signals (&set);
  sigaddset (&set, SIGCHLD);
  s->signal_fd = sigprocmask (SIG_BLOCK, &set, NULL) == 0
                     ? signalfd (-1, &set, SFD_CLOEXEC | SFD_NONBLOCK)
                     : -1;
  if (s->signal_fd != -1)
    return 0;
  cmd_say ("signals: %s", strerror (errno));
  return -1;
}

void
receive_read_signals (struct receive_server *s)
{
  struct signalfd_siginfo info;

  while (read (s->signal_fd, &info, sizeof info) == sizeof info)
    if (info.ssi_signo != SIGCHLD && s->stopped_by == 0)
      s->stopped_by = (int)info.ssi_signo;
  receive_reap (s);
}

static void
wait_for_events (struct receive_server *s)
{
  struct pollfd fds[3] = {
    { .fd = s->signal_fd, .events = POLLIN },
    { .fd = s->note_fd, .events = POLLIN },
    { .fd = s->log_fd, .events = POLLIN }, /* -1 is passed over */
  };

  /* There is a time limit, so that a lost wake-up cannot stop us for ever. */
  if (poll (fds, 3, 10000) == -1 && errno != EINTR)
    cmd_say ("poll: %s", strerror (errno));
  receive_read_signals (s);
  read_notes (s);
  pass_on (s);
}

/* ---- the life of it -------------------------------------------------------------------------- */

static int
make_channels (struct receive_server *s, bool background)
{
  int fds[2];

  s->sealed = s->disk->sealed;
  if (pipe2 (fds, O_CLOEXEC | O_NONBLOCK) == -1) {
    cmd_say ("%s", strerror (errno));
    return -1;
  }
  s->note_fd = fds[0];
  s->note_write_fd = fds[1];
  if (receive_dir_make (s) == -1 || receive_track (s) == -1)
    return -1;
  if (background && take_stderr (s) == -1) {
    cmd_say ("pipe: %s", strerror (errno));
    return -1;
  }
  return 0;
}

int
receive_server_start (struct receive_server *s, bool background)
{
  if (make_channels (s, background) == 0 && receive_start_digest (s) == 0
      && receive_launch (s) == 0)
    return 0;
  receive_end_children (s, 0);
  pass_on (s);
  return -1;
}

static void
describe_end (const struct receive_server *s, char *text, size_t size)
{
  int status = s->nbdkit_status;

  if (WIFSIGNALED (status))
    snprintf (text, size, "the server was ended by signal %d (%s)", WTERMSIG (status),
              strsignal (WTERMSIG (status)));
  else
    snprintf (text, size, "the server ended with status %d", WEXITSTATUS (status));
}

/* The server has ended by itself.  Returns true if it serves again. */
static bool
start_again (struct receive_server *s, uint64_t *started, unsigned *short_lives)
{
  char why[100];

  describe_end (s, why, sizeof why);
  /* With its qemu-nbd, so that no request of the old server can come late. */
  receive_end_children (s, SESSION_PATIENCE_MS);
  read_notes (s);
  if (s->written) {
    cmd_say ("%s: %s while the guest uses the disk: it is not started again by itself; "
             "'nbdmirror receive"
             " --resume' serves it",
             s->disk->name, why);
    return false;
  }
  *short_lives = clock_ms () - *started < SHORT_LIFE_MS ? *short_lives + 1 : 0;
  if (*short_lives >= SHORT_LIVES_MAX) {
    cmd_say ("%s: %s, %u times within a few seconds: not started again", s->disk->name, why,
             *short_lives);
    return false;
  }
  cmd_say ("%s: %s; started again", s->disk->name, why);
  *started = clock_ms ();
  return receive_launch (s) == 0;
}

static enum receive_end
end_of_session (struct receive_server *s)
{
  receive_end_children (s, SESSION_PATIENCE_MS);
  if (s->stopped_by != 0 || (WIFEXITED (s->nbdkit_status) && WEXITSTATUS (s->nbdkit_status) == 0))
    return RECEIVE_STOPPED;
  return RECEIVE_FAILED; /* nbdkit has said why */
}

enum receive_end
receive_server_run (struct receive_server *s)
{
  uint64_t started = clock_ms ();
  unsigned short_lives = 0;
  enum receive_end end = RECEIVE_STOPPED;

  for (;;) {
    bool running = s->nbdkit != 0;
    if (s->stopped_by != 0 || s->given_up)
      break;
    if (!running && s->stdio)
      return end_of_session (s);
    if (!running && !start_again (s, &started, &short_lives)) {
      if (s->stopped_by != 0)
        break;
      end = RECEIVE_FAILED;
      break;
    }
    wait_for_events (s);
  }
  /* A guest may just have begun to write.  (If it was given up through the filter, that has
   * decided.) */
  if (s->stopped_by == SIGINT && !s->given_up && !s->sealed) {
    receive_end_children (s, 0);
    read_notes (s);
  }
  if (end != RECEIVE_FAILED && (s->given_up || s->stopped_by == SIGINT) && !s->sealed)
    end = RECEIVE_GIVEN_UP;
  if (end == RECEIVE_GIVEN_UP)
    return end; /* the caller removes the disk before whoever waits for us sees the end */
  receive_end_children (s, s->stdio ? SESSION_PATIENCE_MS : PATIENCE_MS);
  pass_on (s);
  return end;
}

void
receive_server_free (struct receive_server *s)
{
  if (s->nbdkit != 0)
    receive_end_children (s, 0);
  if (s->socket != NULL && tidy_look (s->socket) == TIDY_STALE)
    unlink (s->socket);
  receive_dir_remove (s);
  fd_close (&s->base_fd);
  receive_track_free (s);
  pass_on (s);
  if (s->log_to != -1)
    dup2 (s->log_to, STDERR_FILENO);
}
