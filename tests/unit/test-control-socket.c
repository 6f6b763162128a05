/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The control server's socket in the file system: its mode, what may be replaced there, and by whom
 * it is removed.
 */

#include "config.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/text.h"
#include "control/wire.h"
#include "tests/unit/control-fixture.h"
#include "tests/unit/unit.h"

static mode_t
socket_mode (void)
{
  struct stat st;

  cr_assert_eq (lstat (fx.path, &st), 0);
  cr_assert (S_ISSOCK (st.st_mode));
  return st.st_mode & 07777;
}

static void
expect_refusal (const char *path, const char *reason)
{
  static const struct control_server_ops none = { 0 };
  char *error;

  cr_assert_null (control_server_new (path, "x", &none, NULL, &error));
  cr_assert_eq (strncmp (error, path, strlen (path)), 0, "%s", error);
  cr_assert_not_null (strstr (error, reason), "%s", error);
  text_free (error);
}

/* Proves: the mode is 0600 whatever the umask, and the umask (shared by all threads) stays as
 * it was. */
control_test (control_socket, socket_mode)
{
  static const mode_t masks[] = { 0, 022, 077, 0777 };

  for (size_t i = 0; i < sizeof masks / sizeof masks[0]; i++) {
    umask (masks[i]);
    fixture_start (NULL);
    cr_assert_eq (socket_mode (), 0600, "umask %o: mode %o", masks[i], socket_mode ());
    cr_assert_eq (umask (022), masks[i]);
    fixture_stop ();
  }
}

/* Proves that there is no instant with another mode: the mode comes from bind() itself. */
control_test (control_socket, socket_mode_at_bind)
{
  struct sockaddr_un sa;
  char *error;
  int sock = socket (AF_UNIX, SOCK_STREAM, 0);

  umask (0);
  cr_assert_eq (wire_address (fx.path, &sa, &error), 0);
  cr_assert_eq (fchmod (sock, 0600), 0);
  cr_assert_eq (bind (sock, (struct sockaddr *)&sa, sizeof sa), 0);
  cr_assert_eq (socket_mode (), 0600);
  close (sock);
}

/* Proves: a socket left over from a server that died is replaced; a live one, and anything
 * else, is not. */
control_test (control_socket, stale_socket)
{
  char other[200];

  fixture_start (NULL);
  snprintf (other, sizeof other, "%s/link", fx.dir);
  cr_assert_eq (link (fx.path, other), 0);
  expect_refusal (fx.path, "another server is listening");
  fixture_stop ();
  cr_assert_eq (rename (other, fx.path), 0); /* a socket nobody listens on */
  fixture_start (NULL);
  close (raw_open ());
  fixture_stop ();

  int f = open (fx.path, O_CREAT | O_WRONLY, 0600);
  close (f);
  expect_refusal (fx.path, "not a socket");
  cr_assert_eq (access (fx.path, F_OK), 0);
  unlink (fx.path);
  cr_assert_eq (symlink ("elsewhere", fx.path), 0);
  expect_refusal (fx.path, "not a socket");
}

/* Take part in a race for the socket: wait for START to close, say on RESULT who won, stay
 * until END closes. */
static void
race_for_socket (int start, int result, int end)
{
  static const struct control_server_ops none = { 0 };
  char *error, c;

  (void)!read (start, &c, 1);
  struct control_server *s = control_server_new (fx.path, "x", &none, NULL, &error);
  char verdict = s != NULL ? 'w' : strstr (error, "another server") != NULL ? 'l' : '?';
  (void)!write (result, &verdict, 1);
  (void)!read (end, &c, 1);
  control_server_free (s);
  _exit (0);
}

/* Proves: of several servers that find the same stale socket one gets it, and can be reached. */
control_test (control_socket, race_for_a_stale_socket)
{
  enum { N = 6 };

  for (int round = 0; round < 100; round++) {
    int start[2], result[2], end[2], winners = 0;
    struct sockaddr_un sa;
    int stale = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char *error;

    cr_assert_eq (wire_address (fx.path, &sa, &error), 0);
    cr_assert_eq (bind (stale, (struct sockaddr *)&sa, sizeof sa), 0);
    close (stale);
    cr_assert (pipe (start) == 0 && pipe (result) == 0 && pipe (end) == 0);
    for (int i = 0; i < N; i++) {
      pid_t child = fork ();

      cr_assert_neq (child, -1);
      if (child == 0) {
        close (start[1]);
        close (end[1]);
        race_for_socket (start[0], result[1], end[0]);
      }
    }
    close (start[1]);
    for (int i = 0; i < N; i++) {
      char verdict = '?';

      cr_assert_eq (read (result[0], &verdict, 1), 1);
      cr_assert_neq (verdict, '?');
      winners += verdict == 'w';
    }
    cr_assert_eq (winners, 1, "%d servers think that the socket is theirs", winners);
    close (raw_connect ());
    close (end[1]);
    for (int i = 0; i < N; i++)
      cr_assert_gt (wait (NULL), 0);
    cr_assert_eq (access (fx.path, F_OK), -1);
    close (start[0]);
    close (result[0]);
    close (result[1]);
    close (end[0]);
  }
}

/* Proves: paths that cannot be bound are refused with the path and the reason. */
control_test (control_socket, bad_paths)
{
  char path[200];

  snprintf (path, sizeof path, "%s/none/s", fx.dir);
  expect_refusal (path, "No such file or directory");
  memset (path, 'x', sizeof path);
  memcpy (path, fx.dir, strlen (fx.dir));
  path[strlen (fx.dir)] = '/';
  path[sizeof path - 1] = '\0';
  expect_refusal (path, "too long");
  expect_refusal ("", "empty");
}

/* Proves: the server removes only the socket it bound itself, not one that took its place. */
control_test (control_socket, foreign_socket_stays)
{
  fixture_start (NULL);
  unlink (fx.path);
  int f = open (fx.path, O_CREAT | O_WRONLY, 0600);
  close (f);
  fixture_stop ();
  cr_assert_eq (access (fx.path, F_OK), 0, "removed a file that is not its own");
}

/* Proves: a relative path is still found after the process changed its directory. */
control_test (control_socket, relative_path)
{
  static const struct control_server_ops none = { 0 };
  char *error;

  cr_assert_eq (chdir (fx.dir), 0);
  struct control_server *s = control_server_new ("s", "x", &none, NULL, &error);
  cr_assert_not_null (s);
  cr_assert_eq (chdir ("/"), 0);
  cr_assert_eq (access (fx.path, F_OK), 0);
  control_server_free (s);
  cr_assert_eq (access (fx.path, F_OK), -1);
}
