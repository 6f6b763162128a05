/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves with which fence, and in which state, the next server of a disk that came back begins:
 * where the last one was killed before it had removed the fence of a disk that is its guest's
 * again, the guest may write all the same.
 */

#include "config.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/receive/server.h"
#include "tests/unit/unit.h"

/* The last server has ended in STATE.  Returns whether the fence is left; *NOW: the state. */
static bool
fence_is_left (bool sealed, enum take_over_state state, enum take_over_state *now)
{
  char dir[] = "/tmp/test-receive-tracked.XXXXXX";

  cr_assert (mkdtemp (dir) != NULL);
  CLEANUP_TEXT char *control = text_printf ("%s/control", dir);
  CLEANUP_TEXT char *fence = text_printf ("%s.fence", control);
  CLEANUP_TEXT char *draft = text_printf ("%s.draft", fence);
  const char *files[] = { fence, draft };
  for (unsigned i = 0; i < 2; i++) {
    int fd = open (files[i], O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    cr_assert (fd != -1);
    close (fd);
  }
  struct take_over_page page = { .state = (uint32_t)state };
  struct receive_server s = { .control = control, .page = &page, .sealed = sealed };

  receive_track_again (&s);
  *now = (enum take_over_state)atomic_load (&page.state);
  bool left = access (fence, F_OK) == 0;
  cr_expect (left == (access (draft, F_OK) == 0));
  cr_expect (s.fenced == (left && !sealed));
  unlink (fence);
  unlink (draft);
  rmdir (dir);
  return left;
}

Test (receive_tracked, the_guest_did_not_wait_for_it)
{
  enum take_over_state now;

  cr_expect (!fence_is_left (true, TAKE_OVER_MISSED, &now));
  cr_expect (now == TAKE_OVER_DONE);
}

/* A later hand-over from here has left it, or nothing was handed over to here yet. */
Test (receive_tracked, any_other_fence_stays)
{
  enum take_over_state now;

  cr_expect (fence_is_left (true, TAKE_OVER_DONE, &now));
  cr_expect (now == TAKE_OVER_DONE);
  cr_expect (fence_is_left (false, TAKE_OVER_MISSED, &now));
  cr_expect (now == TAKE_OVER_RECEIVING);
  cr_expect (fence_is_left (false, TAKE_OVER_RECEIVING, &now));
  cr_expect (now == TAKE_OVER_RECEIVING);
}
