/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See received.h.
 */

#include "config.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/text.h"
#include "cmd/adopt/received.h"

#define LISTENER_S 2

/* Is it `nbdmirror receive`?  Another program of ours may be the parent of a server that was left
 * over. */
static bool
is_receive (long pid)
{
  char path[64], text[512];

  snprintf (path, sizeof path, "/proc/%ld/cmdline", pid);
  CLEANUP_FD int fd = open (path, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd != -1 ? fd_read_text (fd, text, sizeof text) : -1;
  if (n <= 0)
    return false;
  const char *name = strrchr (text, '/'), *second = text + strlen (text) + 1;
  return strcmp (name != NULL ? name + 1 : text, "nbdmirror") == 0 && second < text + n
         && strcmp (second, "receive") == 0;
}

pid_t
received_listener (const char *path)
{
  struct sockaddr_un sa = { .sun_family = AF_UNIX };
  const struct timeval limit = { .tv_sec = LISTENER_S };
  struct ucred cred;
  socklen_t len = sizeof cred;

  if (strlen (path) >= sizeof sa.sun_path)
    return 0;
  strcpy (sa.sun_path, path);
  int sock = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (sock == -1)
    return 0;
  /* One that accepts nobody keeps us waiting as soon as some wait already. */
  setsockopt (sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  if (connect (sock, (struct sockaddr *)&sa, sizeof sa) == -1
      || getsockopt (sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) == -1)
    cred.pid = 0;
  fd_close (&sock);
  return cred.pid;
}

char *
received_control (pid_t pid)
{
  static const char key[] = "mirror-control=";
  char path[64], text[8192];

  snprintf (path, sizeof path, "/proc/%ld/cmdline", (long)pid);
  CLEANUP_FD int fd = open (path, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd != -1 ? fd_read_text (fd, text, sizeof text) : -1;
  for (const char *word = text; n > 0 && word < text + n; word += strlen (word) + 1)
    if (strncmp (word, key, sizeof key - 1) == 0)
      return text_copy (word + sizeof key - 1);
  return NULL;
}

pid_t
received_parent (pid_t pid)
{
  char path[64], text[512];
  long parent = 0;

  snprintf (path, sizeof path, "/proc/%ld/stat", (long)pid);
  CLEANUP_FD int fd = open (path, O_RDONLY | O_CLOEXEC);
  if (fd == -1 || fd_read_text (fd, text, sizeof text) == -1)
    return 0;
  const char *behind = strrchr (text, ')'); /* the name may have any character in it */
  return behind != NULL && sscanf (behind, ") %*c %ld", &parent) == 1 ? (pid_t)parent : 0;
}

pid_t
received_keeper (pid_t pid)
{
  pid_t parent = received_parent (pid);

  return parent != 0 && is_receive (parent) ? parent : pid;
}

bool
received_speaks_nbd (const char *path)
{
  struct sockaddr_un sa = { .sun_family = AF_UNIX };
  const struct timeval limit = { .tv_sec = 2 };
  char greeting[8] = "";

  if (strlen (path) >= sizeof sa.sun_path)
    return false;
  strcpy (sa.sun_path, path);
  int sock = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (sock == -1)
    return false;
  setsockopt (sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  bool nbd = connect (sock, (struct sockaddr *)&sa, sizeof sa) == 0
             && recv (sock, greeting, sizeof greeting, MSG_WAITALL) == sizeof greeting
             && memcmp (greeting, "NBDMAGIC", sizeof greeting) == 0;
  fd_close (&sock);
  return nbd;
}
