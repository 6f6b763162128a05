/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The control server: descriptors that come with commands belong to the right one, do not leak, and
 * may run out.
 */

#include "config.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/unit/control-fixture.h"
#include "tests/unit/unit.h"

static int
open_file (const char *name, ino_t *ino)
{
  char path[160];
  struct stat st;

  snprintf (path, sizeof path, "%s/%s", fx.dir, name);
  int fd = open (path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  cr_assert_neq (fd, -1);
  unlink (path);
  fstat (fd, &st);
  *ino = st.st_ino;
  return fd;
}

/* The next answer must be that of "fd" with this inode (0: no descriptor came). */
static void
expect_fd (int sock, ino_t ino)
{
  struct stat st;
  int got;
  json_t *m = raw_read (sock, &got), *ret = json_object_get (m, "return");

  cr_assert_not_null (ret);
  if (ino == 0) {
    cr_assert_not_null (json_object_get (ret, "none"), "got another command's descriptor");
    cr_assert_eq (got, -1);
  } else {
    cr_assert_eq ((ino_t)json_integer_value (json_object_get (ret, "inode")), ino);
    cr_assert_neq (got, -1, "the descriptor did not come back");
    fstat (got, &st);
    cr_assert_eq (st.st_ino, ino);
    cr_assert (fcntl (got, F_GETFD) & FD_CLOEXEC);
    close (got);
  }
  json_decref (m);
}

#define FD_LINE "{\"execute\": \"fd\"}\n"

/* Proves: a descriptor goes to the command whose bytes it came with, also when the kernel glues
 * the messages together because the server is late. */
control_test (control_fds, fd_belongs_to_its_line)
{
  ino_t ino1, ino2;

  fixture_start (NULL);
  int f1 = open_file ("1", &ino1);
  int f2 = open_file ("2", &ino2);
  int a = raw_open ();
  int b = raw_open ();
  for (int round = 0; round < 20; round++) {
    /* Makes sure that all of the following is there before the server reads it. */
    raw_send (b, "{\"execute\": \"stall\", \"arguments\": {\"ms\": 30}}\n");
    raw_send (a, FD_LINE);
    raw_send_fds (a, FD_LINE, &f1, 1);
    raw_send (a, FD_LINE FD_LINE);
    raw_send_fds (a, FD_LINE FD_LINE, &f2, 1); /* with the first byte, so the first one's */
    raw_send (a, "{\"execute\": ");
    raw_send_fds (a, "\"fd\"", &f1, 1); /* in the middle of a line */
    raw_send (a, "}\n" FD_LINE);
    raw_send_fds (a, "\n", &f2, 1); /* with a blank line before its command */
    raw_send (a, FD_LINE);
    expect_fd (a, 0);
    expect_fd (a, ino1);
    expect_fd (a, 0);
    expect_fd (a, 0);
    expect_fd (a, ino2);
    expect_fd (a, 0);
    expect_fd (a, ino1);
    expect_fd (a, 0);
    expect_fd (a, ino2);
    json_decref (raw_read (b, NULL));
  }
  close (a);
  close (b);
  close (f1);
  close (f2);
}

/* Proves: no descriptor leaks: surplus ones, those of bad lines, of commands that want none, of
 * lines never finished. */
control_test (control_fds, no_fd_leaks)
{
  ino_t ino;
  int many[12];

  fixture_start (NULL);
  int f = open_file ("f", &ino);
  for (int i = 0; i < 12; i++)
    many[i] = f;
  int sock = raw_open ();
  json_decref (raw_call (sock, "{\"execute\": \"echo\"}\n"));
  unsigned before = count_fds ();
  for (int round = 0; round < 50; round++) {
    raw_send_fds (sock, FD_LINE, many, 3);
    expect_fd (sock, ino);
    raw_send_fds (sock, FD_LINE, many, 12); /* more than there is room for */
    expect_fd (sock, ino);
    raw_send_fds (sock, "nonsense\n", many, 3);
    json_decref (raw_read (sock, NULL));
    raw_send (sock, FD_LINE); /* must not get that one's */
    expect_fd (sock, 0);
    raw_send_fds (sock, "{\"execute\": 1}\n", many, 1);
    json_decref (raw_read (sock, NULL));
    raw_send (sock, FD_LINE);
    expect_fd (sock, 0);
    raw_send_fds (sock, "{\"execute\": \"echo\"}\n", many, 2);
    json_decref (raw_read (sock, NULL));
    raw_send (sock, FD_LINE); /* nothing was left over for it */
    expect_fd (sock, 0);
  }
  wait_until (count_fds () == before);
  raw_send_fds (sock, "\n", many, 1);
  raw_send_fds (sock, "{\"execute\"", many, 5);
  close (sock);
  wait_until (atomic_load (&fx.closed) == 1);
  wait_until (count_fds () == before - 2);
  close (f);
}

/* Proves: when the server cannot take a descriptor in, the command is told so and does not run
 * without it; when it cannot accept, it neither spins nor forgets the client. */
control_test (control_fds, out_of_descriptors)
{
  struct rlimit old;
  ino_t ino;

  fixture_start (NULL);
  int f = open_file ("f", &ino);
  int sock = raw_open ();
  int waiting = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  cr_assert_neq (waiting, -1);
  int highest = dup (f); /* the lowest free number; everything below is in use */
  close (highest);
  getrlimit (RLIMIT_NOFILE, &old);
  struct rlimit tight = old;
  tight.rlim_cur = (rlim_t)highest;
  setrlimit (RLIMIT_NOFILE, &tight);

  raw_send_fds (sock, "{\"execute\": \"fd\", \"id\": 7}\n", &f, 1);
  json_t *m = raw_read (sock, NULL);
  cr_assert_not_null (error_desc (m), "ran without its descriptor");
  cr_assert_not_null (strstr (error_desc (m), "could not be received"), "%s", error_desc (m));
  json_decref (m);

  {
    struct sockaddr_un sa = { .sun_family = AF_UNIX };

    memcpy (sa.sun_path, fx.path, strlen (fx.path) + 1);
    cr_assert_eq (connect (waiting, (struct sockaddr *)&sa, sizeof sa), 0);
  }
  unsigned polls = atomic_load (&fx.polls);
  fixture_sleep_ms (500);
  /* The thread wakes every 20 ms by itself. */
  cr_assert_lt (atomic_load (&fx.polls) - polls, 60, "spins: %u polls",
                atomic_load (&fx.polls) - polls);
  m = raw_call (sock, "{\"execute\": \"echo\"}\n");
  cr_assert_not_null (json_object_get (m, "return"));
  json_decref (m);

  setrlimit (RLIMIT_NOFILE, &old);
  m = raw_read (waiting, NULL);
  cr_assert_not_null (json_object_get (m, "QMP"));
  json_decref (m);
  close (waiting);
  close (sock);
  close (f);
}
