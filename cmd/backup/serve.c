/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup: a disk that nobody serves, because its guest is off.  We start a server with its state
 * file for the time of the backup, so that its recordings tell what was changed, and a checkpoint
 * is added.
 */

#include "config.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "base/clock.h"
#include "base/text.h"
#include "cmd/backup/backup.h"
#include "mirror/endpoint/file.h"

#define START_MS 30000
#define END_MS 30000
#define LOOK_MS 20

/* Wait until the server listens. */
static void
wait_for_server (struct backup_disk *d)
{
  uint64_t end = clock_ms () + START_MS;
  int status;

  while (access (d->control, F_OK) == -1) {
    if (child_ended (d->server, 0, &status)) {
      d->server = 0;
      backup_fail (
          d, WIFEXITED (status) && WEXITSTATUS (status) != 0 ? WEXITSTATUS (status) : EXIT_ERROR,
          "no server could be started for %s", d->place);
      return;
    }
    if (clock_ms () >= end) {
      backup_fail (d, EXIT_ERROR, "the server of %s did not start in time", d->place);
      return;
    }
    clock_sleep_ms (LOOK_MS);
  }
}

void
backup_serve (struct backup_run *run, struct backup_disk *d, unsigned nr)
{
  CLEANUP_TEXT char *socket = text_printf ("%s/%u.sock", run->folder, nr);
  char *words[12] = { (char *)"nbdmirror", (char *)"serve", d->place, (char *)"--socket", socket,
                      (char *)"--control", d->control };
  const struct child_options o = {
    .path = "/proc/self/exe", .output_to_stderr = true, .own_group = true, .end_with_us = true
  };

  if (d->state != NULL) {
    words[7] = (char *)"--state";
    words[8] = (char *)d->state;
  }
  const char *who = file_used_by (d->place);
  if (who != NULL) {
    backup_fail (d, EXIT_REFUSED,
                 "%s is in use by %s: a backup would be no instant of it (name the control socket"
                 " of its server, or shut its guest down)",
                 d->place, who);
    return;
  }
  pid_t pid = child_start (words, &o);
  if (pid == -1) {
    backup_fail (d, EXIT_ERROR, "no server can be started: %s", strerror (errno));
    return;
  }
  d->server = pid;
  wait_for_server (d);
}

void
backup_stop_server (struct backup_disk *d)
{
  int status;

  if (d->server == 0)
    return;
  kill (d->server, SIGTERM);
  if (!child_ended (d->server, END_MS, &status)) {
    kill (d->server, SIGKILL);
    while (!child_ended (d->server, 1000, &status))
      ;
  }
  d->server = 0;
}
