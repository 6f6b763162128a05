/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See own-server.h.
 */

#include "config.h"

#include <unistd.h>

#include "base/text.h"
#include "cmd/adopt/own-server.h"
#include "cmd/adopt/revive.h"
#include "cmd/adopt/served.h"
#include "cmd/cmd.h"

int
own_server_start (struct adopt *a)
{
  char *error = NULL;

  a->launched = true;
  /* From its first moment on, so that nobody relies on it if we are killed, nor on its state file.
   */
  if (served_bypass_next (a->control, &error) == -1) {
    cmd_say ("%s", error);
    text_free (error);
    return -1;
  }
  return revive_start (a->control, a->record);
}

/* False: it is still there. */
static bool
end_server (struct adopt *a)
{
  if (!served_kill (a->server))
    return false;
  if (a->server != 0)
    cmd_warning ("the server (process %ld) does not answer, so the guest would wait for it: it was "
                 "killed%s",
                 (long)a->server, a->started ? "" : "; start it again yourself");
  a->server = 0;
  return true;
}

static void
start_anew (struct adopt *a)
{
  struct served s;
  bool refused;
  char *ignored = NULL;

  if (own_server_start (a) == 0 && served_look (a->control, &s, &ignored) == 0) {
    a->server = s.pid;
    served_free (&s);
    served_bypass (a->control, true, &refused, &ignored);
  }
  text_free (ignored);
}

void
own_server_stuck (void *opaque, unsigned attempt)
{
  struct adopt *a = opaque;

  /* A user's server gets more time, since we cannot start it anew. */
  if (!a->started && attempt == 1)
    return;
  if (end_server (a) && attempt == 1)
    start_anew (a);
}

/* Then the guest is to get no answer of a server of this disk. */
static bool
was_handed_over (const struct adopt *a)
{
  CLEANUP_TEXT char *fence = text_printf ("%s.fence", a->control);

  return access (fence, F_OK) == 0;
}

void
own_server_stuck_later (void *opaque, unsigned attempt)
{
  struct adopt *a = opaque;
  struct served s;
  CLEANUP_TEXT char *ignored = NULL;

  (void)attempt;
  if (!a->started || was_handed_over (a))
    return;
  if (served_look (a->control, &s, &ignored) == 0) {
    a->server = s.pid;
    served_free (&s);
    return;
  }
  if (a->server == 0) /* an earlier run has started it */
    a->server = served_process (a->control, a->record);
  if (a->server == 0 && served_is_there (a->control))
    return; /* a new one could not listen there */
  if (end_server (a))
    start_anew (a);
}
