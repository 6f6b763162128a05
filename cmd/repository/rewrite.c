/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See rewrite.h.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "backup/lock.h"
#include "backup/repository.h"
#include "base/child.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/repository/rewrite.h"

#define POLL_MS 1000
#define READER_MS 10000 /* a reader that was killed, or has just ended */

static const char *
name_of (const char *path)
{
  const char *slash = strrchr (path, '/');

  return slash != NULL ? slash + 1 : path;
}

/* Run WORDS; it is killed if we are, since our lock ends with us.  As child_run(). */
static int
run_locked (const char *const *words)
{
  const struct child_options how = { .output_to_stderr = true, .end_with_us = true };
  int status = 0;
  pid_t pid = child_start ((char *const *)words, &how);

  if (pid == -1)
    return -1;
  while (!child_ended (pid, POLL_MS, &status))
    ;
  return WIFEXITED (status) ? WEXITSTATUS (status) : 128 + WTERMSIG (status);
}

/* Run WORDS, which write into PATH and look at OTHER, and make that durable. */
static int
run (const char *const *words, const char *path, const char *other)
{
  char *error = NULL;

  repository_wait_unused (path, READER_MS);
  repository_wait_unused (other, READER_MS);
  int r = run_locked (words);

  if (r == 0 && repository_sync (path, &error) == 0)
    return EXIT_DONE;
  if (error != NULL)
    cmd_say ("%s", error);
  else if (r == -1 || r == 127)
    cmd_say ("qemu-img cannot be run: is qemu-utils installed?");
  else
    cmd_say ("%s: qemu-img %s has failed (%d); every backup reads as before, and the next"
             " backup-prune goes on",
             path, words[1], r);
  text_free (error);
  return EXIT_ERROR;
}

/* Left to itself, qemu-img writes the new name into the head of TOP first and the tables that lead
 * to what was written at its end, and ignores an error there.  So whoever was killed in between had
 * left a TOP that lacks data.  With each write flushed the name comes last. */
int
rewrite_rebase (const char *top, const char *base)
{
  const char *const words[]
      = { "qemu-img", "rebase",       "-q", "-t", "writethrough", "-f", "qcow2", "-F", "qcow2",
          "-b",       name_of (base), top,  NULL };

  return run (words, top, base);
}

int
rewrite_commit (const char *top, const char *base)
{
  const char *const words[]
      = { "qemu-img", "commit", "-q", "-d", "-f", "qcow2", "-b", base, top, NULL };

  return run (words, base, top);
}

int
rewrite_relink (const char *top, const char *base)
{
  const char *const words[] = { "qemu-img", "rebase", "-q", "-u",           "-f", "qcow2",
                                "-F",       "qcow2",  "-b", name_of (base), top,  NULL };

  return run (words, top, base);
}
