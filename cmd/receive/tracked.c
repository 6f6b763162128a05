/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * receive --control: the disk is tracked as one of `nbdmirror serve` is, so that it can go on, or
 * back, later.  This file has what the two filters share (control/take-over.h).
 */

#include "config.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>

#include "base/durable.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/receive/server.h"

/* Was the disk handed over from here, and not received back yet? */
static bool
is_fenced (const struct receive_server *s)
{
  CLEANUP_TEXT char *path = text_printf ("%s.fence", s->control);

  return access (path, F_OK) == 0;
}

int
receive_track_allowed (const struct receive_server *s)
{
  if (s->control == NULL || !is_fenced (s))
    return EXIT_DONE;
  if (s->disk->sealed) {
    cmd_say ("%s: it is sealed, but %s.fence says that it was handed over after that: 'nbdmirror"
             " serve' with that control socket makes it one that can be received back",
             s->disk->name, s->control);
    return EXIT_REFUSED;
  }
  if (s->disk->resume)
    return EXIT_DONE;
  cmd_say ("%s.fence is there: the disk behind this control socket was handed over.  --resume"
           " receives it back",
           s->control);
  return EXIT_REFUSED;
}

void
receive_track_tell (const struct receive_server *s)
{
  if (s->disk->sealed)
    cmd_say ("%s: sealed: it was handed over to its guest, and no mirror may write to it",
             s->disk->name);
  else if (s->control != NULL && is_fenced (s))
    cmd_say (
        "%s: %s.fence says that it was handed over: its guest's writes are refused until a"
        " mirror hands it back.  nbdmirror-receive(1) says what to do if both hosts refuse them",
        s->disk->name, s->control);
}

int
receive_track (struct receive_server *s)
{
  if (s->control == NULL)
    return 0;
  s->page_fd = memfd_create ("nbdmirror-take-over", MFD_CLOEXEC);
  s->wake_fd = fd_wake_new ();
  if (s->page_fd == -1 || s->wake_fd == -1
      || ftruncate (s->page_fd, sizeof (struct take_over_page)) == -1
      || (s->page = take_over_map (s->page_fd)) == NULL) {
    cmd_say ("%s", strerror (errno));
    return -1;
  }
  s->page->wake_fd = s->wake_fd;
  s->page->records = s->state != NULL;
  return 0;
}

/* The guest did not wait for the server to remove the fence, and that has ended before it came to
 * it.  The disk is the guest's: no later server must refuse what it writes. */
static void
remove_missed_fence (const struct receive_server *s)
{
  if (!s->sealed || atomic_load (&s->page->state) != TAKE_OVER_MISSED)
    return;
  CLEANUP_TEXT char *path = text_printf ("%s.fence", s->control), *error = NULL;
  CLEANUP_TEXT char *draft = text_printf ("%s.draft", path);
  if (durable_remove (path, &error) == -1 || durable_remove (draft, &error) == -1)
    cmd_warning ("this disk is its guest's again, but its fence record is left: %s", error);
}

void
receive_track_again (struct receive_server *s)
{
  if (s->page == NULL)
    return;
  remove_missed_fence (s);
  memset (s->page->uuid, 0, sizeof s->page->uuid);
  atomic_store (&s->page->state, (uint32_t)(s->sealed ? TAKE_OVER_DONE : TAKE_OVER_RECEIVING));
  s->fenced = !s->sealed && is_fenced (s);
}

void
receive_track_free (struct receive_server *s)
{
  if (s->page != NULL) {
    remove_missed_fence (s);
    munmap (s->page, sizeof *s->page);
  }
  fd_close (&s->page_fd);
  fd_close (&s->wake_fd);
}
