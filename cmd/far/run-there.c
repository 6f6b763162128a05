/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See run-there.h.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "cmd/cmd.h"
#include "cmd/far/run-there.h"

#define LOOK_MS 100

/* Has the other end closed the line?  It sends nothing before. */
static bool
is_closed (void)
{
  struct pollfd p = { .fd = STDIN_FILENO, .events = POLLIN };
  char data[256];

  return poll (&p, 1, 0) == 1 && read (STDIN_FILENO, data, sizeof data) <= 0;
}

int
run_there (char *const *words)
{
  const struct child_options how = { .path = "/proc/self/exe", .our_stdio = true };
  size_t nr = 0;
  int status = 0;
  bool told = false;

  while (words[nr] != NULL)
    nr++;
  char **all = calloc (nr + 2, sizeof *all);
  if (all == NULL) {
    cmd_say ("out of memory");
    return EXIT_ERROR;
  }
  all[0] = (char *)"nbdmirror";
  memcpy (all + 1, words, nr * sizeof *all);
  pid_t pid = child_start (all, &how);
  int err = errno;
  free (all);
  if (pid == -1) {
    cmd_say ("%s", strerror (err));
    return EXIT_ERROR;
  }
  while (!child_ended (pid, LOOK_MS, &status))
    if (!told && is_closed ())
      told = kill (pid, SIGTERM) == 0;
  return WIFEXITED (status) ? WEXITSTATUS (status) : EXIT_ERROR;
}
