/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * base/: the clock, texts that are never NULL, descriptors, and pid files.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/pid-file.h"
#include "base/stop-signals.h"
#include "base/text.h"
#include "tests/unit/unit.h"

/* ---- clock ---- */

/* Proves: a sleep takes its time on each clock, and their units are what their names say. */
Test (clock, units)
{
  uint64_t ns = clock_ns (), ms = clock_ms (), coarse = clock_coarse_ns ();
  int64_t date = clock_date_us ();

  clock_sleep_ms (50);
  cr_assert_geq (clock_ns () - ns, 50 * (uint64_t)NS_PER_MS);
  cr_assert_geq (clock_ms () - ms, 49);
  cr_assert_lt (clock_ms () - ms, 5000);
  cr_assert_geq (clock_coarse_ns () - coarse, 40 * (uint64_t)NS_PER_MS);
  cr_assert_geq (clock_date_us () - date, 40 * MS_PER_S);
  cr_assert_eq (date / US_PER_S / 86400 / 365 >= 2024 - 1970, 1);
}

/* Proves: nanoseconds are divided into seconds and the rest. */
Test (clock, timespec)
{
  struct timespec t = clock_timespec (3 * (uint64_t)NS_PER_S + 7);

  cr_assert_eq (t.tv_sec, 3);
  cr_assert_eq (t.tv_nsec, 7);
}

/* ---- signals ---- */

static volatile sig_atomic_t caught;

static void catch (int number)
{
  caught = number;
}

/* Proves: a hangup that is ignored asks nobody to stop; it is neither caught nor waited for. */
Test (stop_signals, nohup)
{
  struct sigaction hup;
  sigset_t set, before;

  signal (SIGHUP, SIG_DFL);
  stop_signals (&set);
  cr_assert (sigismember (&set, SIGHUP) == 1 && sigismember (&set, SIGINT) == 1
             && sigismember (&set, SIGTERM) == 1 && sigismember (&set, SIGCHLD) == 0);

  signal (SIGHUP, SIG_IGN);
  stop_signals (&set);
  cr_assert (sigismember (&set, SIGHUP) == 0 && sigismember (&set, SIGTERM) == 1);
  stop_signals_catch (catch);
  cr_assert (sigaction (SIGHUP, NULL, &hup) == 0 && hup.sa_handler == SIG_IGN);
  raise (SIGTERM);
  cr_assert_eq (caught, SIGTERM);

  sigprocmask (SIG_BLOCK, &set, &before);
  cr_assert_not (stop_signals_pending ());
  raise (SIGINT);
  cr_assert (stop_signals_pending ());
  cr_assert_eq (caught, SIGTERM);
  sigprocmask (SIG_SETMASK, &before, NULL);
  cr_assert_eq (caught, SIGINT);
  signal (SIGINT, SIG_DFL);
  signal (SIGTERM, SIG_DFL);
  signal (SIGHUP, SIG_DFL);
}

/* ---- texts ---- */

/* Proves: a text that cannot be made is "out of memory", and may be freed like any other. */
Test (text, failure)
{
  static const wchar_t no_ascii[] = { 0x20ac, 0 };

  /* In the "C" locale this cannot be converted, so vasprintf() fails. */
  char *text = text_printf ("%ls", no_ascii);
  cr_assert_str_eq (text, "out of memory");
  text_free (text);
  char *error = NULL;
  cr_assert_eq (text_error (&error, "%ls", no_ascii), -1);
  cr_assert_str_eq (error, "out of memory");
  text_free (error);
  text_free (NULL);
}

/* Proves: a text is formatted, copied, put where an error belongs, and freed at the end of its
 * scope; whoever does not want the error gets none. */
Test (text, success)
{
  CLEANUP_TEXT char *text = text_printf ("%s at %d", "error", 512);
  cr_assert_str_eq (text, "error at 512");
  CLEANUP_TEXT char *copy = text_copy (text);
  cr_assert_neq (copy, text);
  cr_assert_str_eq (copy, text);
  CLEANUP_TEXT char *error = NULL;
  cr_assert_eq (text_error (&error, "%s", text), -1);
  cr_assert_str_eq (error, text);
  cr_assert_eq (text_error (NULL, "%s", text), -1);
}

/* ---- descriptors ---- */

static void
close_two (int fds[2])
{
  fd_close (&fds[0]);
  fd_close (&fds[1]);
}

/* Proves: a descriptor is closed once, -1 is left alone, and errno is kept. */
Test (fd, close)
{
  int fds[2];

  cr_assert_eq (pipe2 (fds, O_CLOEXEC), 0);
  int old = fds[0];
  errno = ENOTDIR;
  fd_close (&fds[0]);
  cr_assert_eq (fds[0], -1);
  cr_assert_eq (fcntl (old, F_GETFD), -1);
  errno = ENOTDIR;
  close_two (fds);
  cr_assert_eq (errno, ENOTDIR);
  {
    CLEANUP_FD int scoped = open ("/dev/null", O_RDONLY | O_CLOEXEC);
    old = scoped;
    cr_assert_neq (fcntl (old, F_GETFD), -1);
  }
  cr_assert_eq (fcntl (old, F_GETFD), -1);
}

/* Proves: the flag is set and taken away. */
Test (fd, close_on_exec)
{
  int fds[2];

  cr_assert_eq (pipe (fds), 0);
  cr_assert_eq (fcntl (fds[0], F_GETFD), 0);
  cr_assert_eq (fd_close_on_exec (fds[0], true), 0);
  cr_assert_eq (fcntl (fds[0], F_GETFD), FD_CLOEXEC);
  cr_assert_eq (fd_close_on_exec (fds[0], false), 0);
  cr_assert_eq (fcntl (fds[0], F_GETFD), 0);
  close_two (fds);
  cr_assert_eq (fd_close_on_exec (fds[0], true), -1);
  cr_assert_eq (errno, EBADF);
}

#define MUCH (1u << 20)

static void *
write_much (void *arg)
{
  char *data = malloc (MUCH);

  memset (data, 'x', MUCH);
  cr_assert_eq (fd_write_all (*(int *)arg, data, MUCH), 0);
  free (data);
  fd_close (arg);
  return NULL;
}

static void
interrupt (int sig)
{
  (void)sig;
}

/* Proves: what does not fit into a pipe is written and read whole, also when a signal interrupts
 * the writing, and a NUL follows it. */
Test (fd, whole)
{
  struct sigaction sa = { .sa_handler = interrupt };
  char *text = malloc (MUCH + 2);
  pthread_t thread;
  int fds[2];

  cr_assert_eq (pipe2 (fds, O_CLOEXEC), 0);
  cr_assert_eq (pthread_create (&thread, NULL, write_much, &fds[1]), 0);
  cr_assert_eq (sigaction (SIGUSR1, &sa, NULL), 0);
  clock_sleep_ms (20); /* the pipe is full by now */
  pthread_kill (thread, SIGUSR1);
  clock_sleep_ms (20);
  text[MUCH] = 'y';
  cr_assert_eq (fd_read_text (fds[0], text, MUCH + 2), MUCH);
  cr_assert_eq (text[MUCH - 1], 'x');
  cr_assert_eq (text[MUCH], '\0');
  pthread_join (thread, NULL);
  close_two (fds);
  free (text);
}

/* Proves: a text that is too long for the buffer is cut off, and one that cannot be read is "". */
Test (fd, text_limits)
{
  char text[4] = "abc";
  int fds[2];

  cr_assert_eq (pipe2 (fds, O_CLOEXEC), 0);
  cr_assert_eq (fd_write_all (fds[1], "12345", 5), 0);
  cr_assert_eq (fd_read_text (fds[0], text, sizeof text), 3);
  cr_assert_str_eq (text, "123");
  cr_assert_eq (fd_read_text (fds[1], text, sizeof text), -1);
  cr_assert_eq (errno, EBADF);
  cr_assert_str_eq (text, "");
  close_two (fds);
  cr_assert_eq (fd_write_all (fds[1], "x", 1), -1);
}

static int
is_readable (int fd)
{
  struct pollfd p = { .fd = fd, .events = POLLIN };

  return poll (&p, 1, 0);
}

/* Proves: several wake-ups are one, and clearing waits for nothing and leaves errno alone. */
Test (fd, wake)
{
  int fd = fd_wake_new ();

  cr_assert_neq (fd, -1);
  cr_assert_eq (fcntl (fd, F_GETFD), FD_CLOEXEC);
  cr_assert_eq (is_readable (fd), 0);
  errno = ENOTDIR;
  fd_wake (fd);
  fd_wake (fd);
  cr_assert_eq (errno, ENOTDIR);
  cr_assert_eq (is_readable (fd), 1);
  fd_wake_clear (fd);
  cr_assert_eq (is_readable (fd), 0);
  fd_wake_clear (fd);
  fd_close (&fd);
}

/* ---- process ids in files ---- */

/* Proves: only a whole process id counts; no file, an empty one and other texts are 0. */
Test (pid_file, read)
{
  char path[] = "/tmp/nbdmirror-pid-XXXXXX";
  static const struct {
    const char *text;
    pid_t pid;
  } files[] = { { "", 0 }, { "4711\n", 4711 }, { "4711", 4711 }, { "x\n", 0 }, { "-5\n", 0 } };
  int fd = mkstemp (path);

  cr_assert_neq (fd, -1);
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
    cr_assert_eq (ftruncate (fd, 0), 0);
    cr_assert_eq (pwrite (fd, files[i].text, strlen (files[i].text), 0),
                  (ssize_t)strlen (files[i].text));
    cr_assert_eq (pid_file_read (path), files[i].pid, "\"%s\"", files[i].text);
  }
  close (fd);
  unlink (path);
  cr_assert_eq (pid_file_read (path), 0);
}
