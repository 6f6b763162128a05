/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See adopted.h.
 */

#include "config.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "base/clock.h"
#include "base/durable.h"
#include "base/text.h"
#include "cmd/adopt/guest-disk.h"
#include "cmd/adopt/record.h"
#include "cmd/adopt/revive.h"
#include "cmd/adopt/served.h"
#include "cmd/control-query.h"
#include "cmd/migrate/adopted.h"
#include "cmd/serve/paths.h"
#include "control/name.h"
#include "mirror/endpoint/uri.h"

#define WORDS 20

/* Run this program with WORDS, which use the monitor of V.  Its exit status; its messages go to our
 * standard error. */
static int
run_command (struct migrate *m, struct machine *v, const char *const words[], const char *disk)
{
  char path[4096];
  const struct child_options own = { .path = worker_program (path, sizeof path),
                                     .output_to_stderr = true,
                                     .own_group = true,
                                     .end_with_us = true };
  int status = 0;

  machine_close (v);
  journal_break (&m->journal);
  pid_t pid = child_start ((char *const *)words, &own);
  while (pid != -1 && !child_ended (pid, 1000, &status))
    ;
  int code = pid == -1 || !WIFEXITED (status) ? EXIT_ERROR : WEXITSTATUS (status);
  journal_event (&m->journal, words[1],
                 json_pack ("{s:s, s:s, s:i}", "side", v->name, "disk", disk, "exit-status", code));
  return code;
}

static unsigned
add_option (const char *words[], unsigned n, const char *option, const char *value)
{
  if (value == NULL)
    return n;
  words[n] = option;
  words[n + 1] = value;
  return n + 2;
}

/* ---- at the source --------------------------------------------------------------------------- */

/* The disk's name is that of its device, or of the node that it uses. */
static const char *
kind_of_name (struct migrate *m, const char *name)
{
  const struct disk_choice choice = { .device = name };
  struct guest_disk d;
  char *error = NULL;
  bool refused;

  if (guest_disk_choose (&m->machines.source, &choice, &d, &refused, &error) == 0) {
    guest_disk_free (&d);
    return "--device";
  }
  text_free (error);
  return "--node";
}

static int
adopt_one (struct migrate *m, const struct disk *d)
{
  const struct disk_option *o = d->option;
  CLEANUP_TEXT char *socket = text_printf ("%s/%s.nbd", m->options.adopt, o->name);
  const char *words[WORDS] = { "nbdmirror", "adopt" };
  unsigned n = 2;

  n = add_option (words, n, "--qmp", m->options.source_qmp);
  n = add_option (words, n, kind_of_name (m, o->name), o->name);
  n = add_option (words, n, "--socket", socket);
  n = add_option (words, n, "--control", d->control);
  n = add_option (words, n, "--discard", o->discard);
  n = add_option (words, n, "--aio", o->aio);
  words[n] = NULL;
  int status = run_command (m, &m->machines.source, words, o->name);
  return status == EXIT_DONE
             ? 0
             : journal_fail (&m->journal, status, "the disk %s could not be adopted", o->name);
}

int
adopted_begin (struct migrate *m)
{
  char *error = NULL;

  if (mkdir (m->options.adopt, 0700) == -1 && errno != EEXIST)
    return journal_fail (&m->journal, EXIT_ERROR, "--adopt=%s: %s", m->options.adopt,
                         strerror (errno));
  for (unsigned i = 0; i < m->disks.nr; i++) {
    if (atomic_load (m->machines.signal) != 0)
      return journal_fail (&m->journal, EXIT_CANCELLED, "cancelled");
    if (adopt_one (m, &m->disks.disk[i]) == -1)
      return -1;
  }
  return machine_connect (&m->machines.source, &error) == 0
             ? 0
             : journal_fail_with (&m->journal, EXIT_ERROR, error);
}

static bool
has_record (const struct disk *d)
{
  CLEANUP_TEXT char *path = text_printf ("%s.adopted", d->control);

  return access (path, F_OK) == 0;
}

bool
adopted_any (const struct migrate *m)
{
  for (unsigned i = 0; i < m->disks.nr; i++)
    if (has_record (&m->disks.disk[i]))
      return true;
  return false;
}

/* A server that found the draft would refuse the guest's writes until it is told how it ended. */
static void
drop_draft (const char *control)
{
  CLEANUP_TEXT char *path = text_printf ("%s.fence.draft", control), *error = NULL;

  if (durable_remove (path, &error) == -1)
    cmd_warning ("%s", error);
}

unsigned
adopted_revive (struct migrate *m, bool aborted, bool fenced_too)
{
  unsigned nr = 0;

  for (unsigned i = 0; m->options.adopt != NULL && i < m->disks.nr; i++) {
    const struct disk *d = &m->disks.disk[i];
    CLEANUP_TEXT char *error = NULL;
    json_t *record;

    if (served_is_there (d->control) || record_load (d->control, &record, &error) == -1
        || record == NULL)
      continue;
    /* As adopt has named it to the server: the folder may be a link. */
    CLEANUP_TEXT char *control = server_absolute_path ("control", d->control);
    if (aborted)
      drop_draft (d->control);
    if (control != NULL && revive (control, record, m->options.source_qmp, fenced_too)) {
      cmd_warning ("%s: its server was lost, and was started again", d->option->name);
      journal_text (&m->journal, "server-started", d->option->name);
      nr++;
    }
    json_decref (record);
  }
  return nr;
}

bool
adopted_end (struct migrate *m)
{
  bool all = true;

  for (unsigned i = 0; i < m->disks.nr; i++) {
    struct disk *d = &m->disks.disk[i];
    const char *words[]
        = { "nbdmirror", "give-back", "--qmp", m->options.source_qmp, d->control, NULL };

    if (!has_record (d)) {
      record_remove (d->control); /* what an adopt that was killed had begun to write */
      continue;
    }
    if (m->options.recover && served_is_there (d->control))
      disk_end_job (&m->journal, d);
    if (run_command (m, &m->machines.source, words, d->option->name) == EXIT_DONE)
      journal_rolled_back (&m->journal, "%s: off the tracked path again", d->option->name);
    else {
      cmd_say ("the disk %s is still on the tracked path: 'nbdmirror give-back --qmp %s %s' takes "
               "it off",
               d->option->name, m->options.source_qmp, d->control);
      all = false;
    }
  }
  return all;
}

void
adopted_forget (struct migrate *m)
{
  for (unsigned i = 0; i < m->disks.nr; i++) {
    const char *control = m->disks.disk[i].control;
    struct served s;
    char *ignored = NULL;

    if (served_look (control, &s, &ignored) == 0) {
      served_stop (s.pid);
      served_free (&s);
    }
    text_free (ignored);
    record_remove (control);
  }
}

/* ---- at the destination ---------------------------------------------------------------------- */

static bool
give_back_one (struct migrate *m, const struct disk *d, const char *socket)
{
  const struct disk_option *o = d->option;
  const char *words[WORDS] = { "nbdmirror", "give-back" };
  unsigned n = 2;

  n = add_option (words, n, "--qmp", m->options.dest_qmp);
  n = add_option (words, n, "--discard", o->discard);
  n = add_option (words, n, "--aio", o->aio);
  words[n++] = socket;
  words[n++] = o->image;
  words[n] = NULL;
  if (run_command (m, &m->machines.dest, words, d->dest) == EXIT_DONE)
    return true;
  cmd_say ("the guest runs at the destination and still uses %s through %s: 'nbdmirror give-back "
           "--qmp %s %s %s' takes it off that",
           o->image, socket, m->options.dest_qmp, socket, o->image);
  return false;
}

/* The socket on which D's destination is served, if it is THERE, or if it is not: the server
 * removes it at its end, which is the last step of a give-back.  For text_free(), or NULL. */
static char *
socket_of (const struct disk *d, bool there)
{
  struct uri *uri = uri_read (d->dest, NULL);
  const char *socket = uri != NULL ? uri_parameter (uri, "socket") : NULL;
  bool good = socket != NULL && (access (socket, F_OK) == 0) == there;
  char *copy = good ? text_copy (socket) : NULL;

  uri_free (uri);
  return copy;
}

bool
adopted_was_given_back (struct migrate *m, const struct disk *d)
{
  CLEANUP_TEXT char *gone = control_is_of_qemu (d->control) ? socket_of (d, false) : NULL;
  CLEANUP_TEXT char *ignored = NULL;
  struct guest_disk on_it;

  if (gone == NULL)
    return false;
  int r = guest_disk_of_socket (&m->machines.dest, gone, &on_it, &ignored);
  if (r == 1) /* the server has died with the guest's disk */
    guest_disk_free (&on_it);
  return r == 0;
}

bool
adopted_give_back (struct migrate *m)
{
  bool all = true;

  for (unsigned i = 0; i < m->disks.nr; i++) {
    const struct disk *d = &m->disks.disk[i];
    CLEANUP_TEXT char *socket = socket_of (d, true);

    if (socket != NULL)
      all = give_back_one (m, d, socket) && all;
  }
  return all;
}

void
adopted_tell_give_back (const struct migrate *m)
{
  for (unsigned i = 0; i < m->disks.nr; i++) {
    const struct disk *d = &m->disks.disk[i];
    CLEANUP_TEXT char *socket = socket_of (d, true);

    if (socket != NULL && d->option->image != NULL)
      cmd_say ("if the guest is right to run at the destination, 'nbdmirror give-back --qmp %s %s "
               "%s' lets it use that image by itself",
               m->options.dest_qmp, socket, d->option->image);
  }
}
