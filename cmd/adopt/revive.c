/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See revive.h.
 */

#include "config.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/adopt/received.h"
#include "cmd/adopt/record.h"
#include "cmd/adopt/revive.h"
#include "cmd/adopt/same-image.h"
#include "cmd/adopt/served.h"
#include "cmd/cmd.h"
#include "cmd/migrate/libvirt-monitor.h"

#define TRIES 5
#define PAUSE_MS 500

int
revive_start (const char *control, const json_t *record)
{
  const json_t *list = json_object_get (record, "nbdkit-args");
  unsigned nr = (unsigned)json_array_size (list);
  char **args = calloc (nr + 1, sizeof *args);

  if (args == NULL)
    abort ();
  for (unsigned i = 0; i < nr; i++)
    args[i] = (char *)json_string_value (json_array_get (list, i)); /* exec leaves them alone */
  int r = served_start (record_text (record, "filename"), record_text (record, "socket"), control,
                        json_string_value (json_object_get (record, "state")), args, nr);
  free (args);
  return r;
}

/* May the guest be using the image by itself, and the server would not know?  A program that stands
 * between us and QEMU has no image open. */
static bool
may_be_elsewhere (const char *control, const json_t *record, const char *qmp)
{
  CLEANUP_TEXT char *bypass = text_printf ("%s.bypass", control);

  if (qmp == NULL || access (bypass, F_OK) == 0)
    return false;
  pid_t qemu = libvirt_is_meant (qmp) ? libvirt_process (qmp) : received_listener (qmp);
  return qemu > 0 && image_is_open_in (qemu, record_text (record, "filename")) == 1;
}

/* One that was told to end would keep its socket.  False: it is still there. */
static bool
end_ending (const char *control, const json_t *record)
{
  pid_t pid = served_ending (control, record);

  if (pid == 0)
    return true;
  cmd_warning ("the server (process %ld) was told to end, and waits for its clients: it is ended "
               "now, and another one takes its place",
               (long)pid);
  return served_stop (pid);
}

bool
revive (const char *control, const json_t *record, const char *qmp, bool fenced_too)
{
  CLEANUP_TEXT char *fence = text_printf ("%s.fence", control);

  if (!json_is_true (json_object_get (record, "started")) || served_is_there (control)
      || (!fenced_too && access (fence, F_OK) == 0) || may_be_elsewhere (control, record, qmp))
    return false;
  if (!end_ending (control, record))
    return false;
  for (int tries = 0; tries < TRIES && !served_is_there (control); tries++)
    if (revive_start (control, record) == 0)
      return true;
    else
      clock_sleep_ms (PAUSE_MS);
  return false;
}
