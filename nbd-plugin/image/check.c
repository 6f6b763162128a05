/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See check.h.
 */

#include "config.h"

#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>

#include <nbdkit-plugin.h>

#include "base/child.h"
#include "base/clock.h"
#include "base/text.h"
#include "nbd-plugin/image/check.h"

#define HAS_ERRORS 2 /* its exit status */
#define END_MS 1000

/* Its exit status, or -1. */
static int
check (const struct image_options *o, bool free_leaks, uint64_t end)
{
  CLEANUP_TEXT char *path = text_copy (o->path), *format = text_copy (o->format);
  char *words[9] = { (char *)"qemu-img", (char *)"check", (char *)"-q", (char *)"-f", format };
  const struct child_options options = { .output_to_stderr = true, .end_with_us = true };
  uint64_t now = clock_ms ();
  unsigned n = 5;
  int status;

  if (free_leaks) {
    words[n++] = (char *)"-r";
    words[n++] = (char *)"leaks";
  }
  words[n] = path;
  pid_t pid = child_start (words, &options);
  if (pid == -1)
    return -1;
  if (child_ended (pid, end > now ? (int)(end - now) : 0, &status))
    return WIFEXITED (status) ? WEXITSTATUS (status) : -1;
  kill (pid, SIGKILL); /* leaks are left then, and nothing worse */
  while (!child_ended (pid, END_MS, &status))
    ;
  nbdkit_error ("%s: qemu-img check takes too long", o->path);
  return -1;
}

bool
check_finds_errors (const struct image_options *o, uint64_t end)
{
  return check (o, false, end) == HAS_ERRORS;
}

void
check_frees_leaks (const struct image_options *o, uint64_t end)
{
  check (o, true, end);
}
