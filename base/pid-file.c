/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See pid-file.h.
 */

#include "config.h"

#include <stdio.h>

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
