/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See peer.h.
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "cmd/migrate/peer.h"

static bool
is_qemu_name (const char *name)
{
  const char *slash = strrchr (name, '/');

  if (slash != NULL)
    name = slash + 1;
  return strncmp (name, "qemu", 4) == 0 || strncmp (name, "kvm", 3) == 0;
}

/* Does PID call itself so?  (QEMU's -name can change that.) */
static bool
has_qemu_comm (pid_t pid)
{
  char path[64], name[32] = "";

  snprintf (path, sizeof path, "/proc/%ld/comm", (long)pid);
  FILE *fp = fopen (path, "re");
  if (fp == NULL)
    return false;
  if (fgets (name, sizeof name, fp) == NULL)
    name[0] = '\0';
  fclose (fp);
  return is_qemu_name (name);
}

/* QEMU takes one dash or two. */
static bool
is_option (const char *word, const char *name)
{
  return word[0] == '-' && strcmp (word + (word[1] == '-' ? 2 : 1), name) == 0;
}

/* PID's command line: is it a QEMU's, that waits for a migration (*WAITS), and does it hold -S
 * (*STOPPED)? */
static bool
has_qemu_arguments (pid_t pid, bool *waits, bool *stopped)
{
  char path[64];

  *waits = *stopped = false;
  snprintf (path, sizeof path, "/proc/%ld/cmdline", (long)pid);
  FILE *fp = fopen (path, "re");
  if (fp == NULL)
    return false;
  char *word = NULL;
  size_t size = 0;
  bool qemu = false;
  for (bool first = true; getdelim (&word, &size, '\0', fp) > 0; first = false) {
    if (first)
      qemu = is_qemu_name (word);
    *waits = *waits || is_option (word, "incoming");
    *stopped = *stopped || is_option (word, "S");
  }
  free (word);
  fclose (fp);
  return qemu;
}

void
peer_look (int fd, struct peer *peer)
{
  struct ucred cred;
  socklen_t len = sizeof cred;

  *peer = (struct peer){ .start = PEER_START_UNKNOWN };
  if (getsockopt (fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == -1 || cred.pid <= 0)
    return;
  bool waits, stopped;
  bool qemu = has_qemu_arguments (cred.pid, &waits, &stopped);
  peer->is_qemu = qemu || has_qemu_comm (cred.pid);
  peer->pid = cred.pid;
  if (qemu && waits)
    peer->start = stopped ? PEER_START_PAUSED : PEER_START_RUNS;
}
