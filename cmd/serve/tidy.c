/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Removing what a server leaves behind.
 *
 * The next server may use the same paths the moment the old one is gone, so only what the old one
 * made is removed: a socket is recognised by device, inode and time of creation, which the child
 * notes while the server runs.  Another server may have been started at the same time, and have won
 * the path, so only a socket that the server itself has open is noted.  One that was never noted
 * (the server ended at once) is removed only if nobody listens there; a pid file only if it still
 * holds that process id.
 */

#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/pid-file.h"
#include "base/text.h"
#include "cmd/serve/tidy.h"

#define LOOK_MS 20      /* how often to look for sockets that are not there yet */
#define LOOK_TIMES 3000 /* and how many times: a minute */

struct noted {
  bool seen;
  struct stat st;
};

enum tidy_socket
tidy_look (const char *path)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  struct stat st;

  if (lstat (path, &st) == -1)
    return TIDY_ABSENT;
  if (!S_ISSOCK (st.st_mode) || strlen (path) >= sizeof addr.sun_path)
    return TIDY_NO_SOCKET;
  strcpy (addr.sun_path, path);
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd == -1)
    return TIDY_IN_USE;
  /* EAGAIN: somebody listens, and is busy */
  int r = connect (fd, (struct sockaddr *)&addr, sizeof addr) == -1 ? errno : 0;
  close (fd);
  if (r == ENOENT) /* removed just now */
    return TIDY_ABSENT;
  return r == ECONNREFUSED ? TIDY_STALE : TIDY_IN_USE;
}

/* Is the socket with this inode, which is not the one of its path, among the descriptors DIR? */
static bool
is_open_in (DIR *dir, unsigned long inode)
{
  char wanted[64], link[64];
  const struct dirent *entry;

  snprintf (wanted, sizeof wanted, "socket:[%lu]", inode);
  rewinddir (dir);
  while ((entry = readdir (dir)) != NULL) {
    ssize_t n = readlinkat (dirfd (dir), entry->d_name, link, sizeof link - 1);
    if (n > 0 && (size_t)n == strlen (wanted) && strncmp (link, wanted, (size_t)n) == 0)
      return true;
  }
  return false;
}

bool
tidy_has_bound (pid_t server, const char *path)
{
  CLEANUP_TEXT char *folder = text_printf ("/proc/%ld/fd", (long)server);
  char line[512];
  bool found = false;

  DIR *dir = opendir (folder);
  if (dir == NULL)
    return true;
  FILE *fp = fopen ("/proc/net/unix", "re");
  while (fp != NULL && !found && fgets (line, sizeof line, fp) != NULL) {
    unsigned long inode;
    int at = 0;

    line[strcspn (line, "\n")] = '\0';
    if (sscanf (line, "%*s %*s %*s %*s %*s %*s %lu %n", &inode, &at) == 1 && at > 0)
      found = strcmp (line + at, path) == 0 && is_open_in (dir, inode);
  }
  if (fp != NULL)
    fclose (fp);
  closedir (dir);
  return found || fp == NULL;
}

static void
note_sockets (pid_t server, const struct tidy_path *paths, struct noted *noted, bool *all)
{
  *all = true;
  for (unsigned i = 0; i < TIDY_PATHS_MAX; i++) {
    const char *path = paths[i].path;
    if (path == NULL || !paths[i].is_socket || noted[i].seen)
      continue;
    if (lstat (path, &noted[i].st) == 0 && S_ISSOCK (noted[i].st.st_mode)
        && (paths[i].is_bound || tidy_has_bound (server, path)))
      noted[i].seen = true;
    else
      *all = false;
  }
}

/* The mode and the owner may have been changed since, the modification time has not. */
static bool
is_same (const struct stat *a, const struct stat *b)
{
  return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_mtim.tv_sec == b->st_mtim.tv_sec
         && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static void
remove_socket (const char *path, const struct noted *noted)
{
  struct stat st;

  if (noted->seen ? lstat (path, &st) == 0 && is_same (&st, &noted->st)
                  : tidy_look (path) == TIDY_STALE)
    unlink (path);
}

static void
remove_all (pid_t server, const struct tidy_path *paths, const struct noted *noted)
{
  for (unsigned i = 0; i < TIDY_PATHS_MAX; i++)
    if (paths[i].path == NULL)
      continue;
    else if (paths[i].is_socket)
      remove_socket (paths[i].path, &noted[i]);
    else if (pid_file_read (paths[i].path) == server)
      unlink (paths[i].path);
}

static void
wait_and_remove (int pidfd, pid_t server, const struct tidy_path *paths)
{
  struct noted noted[TIDY_PATHS_MAX] = { 0 };
  struct pollfd pfd = { .fd = pidfd, .events = POLLIN };
  bool all = false;
  int r, times = 0;

  do {
    if (!all && times++ < LOOK_TIMES) {
      struct noted looked[TIDY_PATHS_MAX];
      memcpy (looked, noted, sizeof looked);
      note_sockets (server, paths, looked, &all);
      /* If it has ended, the next server may have made what is there now. */
      if (poll (&pfd, 1, 0) == 1)
        break;
      memcpy (noted, looked, sizeof looked);
    }
    r = poll (&pfd, 1, all || times >= LOOK_TIMES ? -1 : LOOK_MS);
  } while (r == 0 || (r == -1 && errno == EINTR));
  remove_all (server, paths, noted);
}

void
tidy_now (pid_t server, const struct tidy_path paths[TIDY_PATHS_MAX])
{
  static const struct noted nothing[TIDY_PATHS_MAX];

  remove_all (server, paths, nothing);
}

/* The child must outlive a Ctrl-C on the terminal, and hold nothing that others wait to see closed.
 */
static void
become_quiet (int pidfd)
{
  int null = open ("/dev/null", O_RDWR | O_CLOEXEC), fd;

  setsid ();
  signal (SIGINT, SIG_IGN);
  signal (SIGTERM, SIG_IGN);
  signal (SIGHUP, SIG_IGN);
  prctl (PR_SET_NAME, "nbdmirror-tidy");
  for (fd = 0; fd < 3 && null != -1; fd++)
    dup2 (null, fd);
  for (fd = 3; fd < 1024; fd++)
    if (fd != pidfd)
      close (fd);
  if (chdir ("/") == -1)
    return; /* it only keeps a file system busy */
}

int
tidy_start (pid_t server, const struct tidy_path paths[TIDY_PATHS_MAX])
{
  int pidfd = (int)syscall (SYS_pidfd_open, server, 0);

  if (pidfd == -1)
    return -1;
  pid_t pid = fork ();
  if (pid == 0) {
    become_quiet (pidfd);
    wait_and_remove (pidfd, server, paths);
    _exit (0);
  }
  close (pidfd);
  return pid == -1 ? -1 : 0;
}
