/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See pid-file.h.
 */

#include "config.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/pid-file.h"

pid_t
pid_file_read (const char *path)
{
  FILE *fp = fopen (path, "re");
  int pid = 0;

  if (fp == NULL)
    return 0;
  if (fscanf (fp, "%d", &pid) != 1 || pid < 0)
    pid = 0;
  fclose (fp);
  return pid;
}

pid_t
pid_file_process (const char *path, const char *word)
{
  char cmdline[64], *its = NULL;
  size_t size = 0;
  pid_t pid = pid_file_read (path);
  bool found = false;

  snprintf (cmdline, sizeof cmdline, "/proc/%ld/cmdline", (long)pid);
  FILE *fp = pid > 0 ? fopen (cmdline, "re") : NULL;
  while (fp != NULL && !found && getdelim (&its, &size, '\0', fp) != -1)
    found = strcmp (its, word) == 0;
  if (fp != NULL)
    fclose (fp);
  free (its);
  return found ? pid : 0;
}
