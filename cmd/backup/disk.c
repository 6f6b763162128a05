/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror backup: what every step uses: a disk that fails, and the signal.  See backup.h.
 */

#include "config.h"

#include <stdarg.h>

#include "base/stop-signals.h"
#include "base/text.h"
#include "cmd/backup/backup.h"

volatile sig_atomic_t backup_signal;

static void
on_signal (int sig)
{
  backup_signal = sig;
}

void
backup_catch_signals (void)
{
  stop_signals_catch (on_signal);
}

void
backup_fail (struct backup_disk *d, int status, const char *fmt, ...)
{
  va_list ap;

  if (d->error != NULL)
    return;
  va_start (ap, fmt);
  d->error = text_vprintf (fmt, ap);
  va_end (ap);
  d->status = status;
}

char *
backup_absolute (const char *path)
{
  char *full = realpath (path, NULL);
  char *here = full == NULL && path[0] != '/' ? getcwd (NULL, 0) : NULL;
  char *text = full != NULL   ? text_copy (full)
               : here != NULL ? text_printf ("%s/%s", here, path)
                              : text_copy (path);

  free (full);
  free (here);
  return text;
}
