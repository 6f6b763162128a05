/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A subcommand that looks at a repository, or tends it, and needs nothing of this host: it is run
 * on the host of the repository, with its output here.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/far/far.h"
#include "mirror/endpoint/ssh.h"
#include "mirror/endpoint/uri.h"

#define LOOK_MS 1000

/* What is run there: the words of LINE, with PATH in the place of the URI.  To be freed. */
static const char **
remote_words (const struct cmd_line *line, const char *path)
{
  const char **words = calloc ((size_t)line->argc + 4, sizeof *words);
  unsigned n = 0;

  if (words == NULL)
    return NULL;
  words[n++] = "backup-agent";
  words[n++] = "--";
  for (int i = 0; i < line->argc; i++)
    words[n++] = &line->argv[i] == line->operands[0].argv ? path : line->argv[i];
  return words;
}

/* Run WORDS, whose standard input is open for as long as this process lives.  They are about the
 * repository at PLACE. */
static int
run (const char *place, char *const *words)
{
  const struct child_options how = { .our_stdio = true };
  int ends[2], status = 0, err = 0;

  if (pipe2 (ends, O_CLOEXEC) == -1 || dup2 (ends[0], STDIN_FILENO) == -1) {
    cmd_say ("%s", strerror (errno));
    return EXIT_ERROR;
  }
  fd_close (&ends[0]);
  pid_t pid = child_start (words, &how);
  if (pid == -1) {
    cmd_say ("%s: %s", words[0], strerror (errno));
    return EXIT_ERROR;
  }
  while (!child_ended (pid, LOOK_MS, &status))
    ;
  if (!WIFEXITED (status))
    return EXIT_ERROR;
  const char *why = ssh_why_ended (WEXITSTATUS (status), &err);
  if (why == NULL || WEXITSTATUS (status) <= EXIT_REFUSED)
    return WEXITSTATUS (status);
  cmd_say ("%s: %s", place, why);
  return EXIT_ERROR;
}

bool
far_pass_on (const struct cmd_line *line, int *status)
{
  const char *place = line->operands[0].argv[0];

  if (line->operands[0].nr_args != 1 || !far_is_meant (place))
    return false;
  *status = far_check (place);
  if (*status != EXIT_DONE)
    return true;
  struct uri *uri = uri_read (place, NULL);
  const char **remote = uri != NULL ? remote_words (line, uri->path) : NULL;
  if (remote == NULL) {
    cmd_say ("out of memory");
    *status = EXIT_ERROR;
  } else {
    char **words = ssh_command_for (uri, remote);
    *status = run (place, words);
    ssh_command_free (words);
  }
  free (remote);
  uri_free (uri);
  return true;
}
