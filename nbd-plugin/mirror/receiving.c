/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A disk that is received goes over to its guest.  See receiving.h.
 */

#include "config.h"

#include <string.h>

#include <nbdkit-filter.h>

#include "base/fd.h"
#include "base/text.h"
#include "nbd-plugin/mirror/filter.h"
#include "nbd-plugin/mirror/receiving.h"

int
receiving_open (struct mirror *m, int fd)
{
  m->take_over = take_over_map (fd);
  return m->take_over != NULL && fd_close_on_exec (m->take_over->wake_fd, true) == 0 ? 0 : -1;
}

bool
receiving_is (const struct mirror *m)
{
  return m->take_over != NULL && atomic_load (&m->take_over->state) < TAKE_OVER_DONE;
}

int
receiving_wake_fd (const struct mirror *m)
{
  return receiving_is (m) ? m->take_over->wake_fd : -1;
}

/* Begin the checkpoint, of which the guest's first mutation must know, and have it made durable,
 * for which nobody waits.  0, or -1 with *ERROR. */
static int
begin_checkpoint (struct mirror *m, char **error)
{
  static const uint8_t none[16];
  struct take_over_page *p = m->take_over;

  if (memcmp (p->uuid, none, sizeof none) == 0)
    return text_error (error, "the mirror has told no identity for it, or another one came after"
                              " the mirror that did");
  if (checkpoints_replace (m, TAKE_OVER_CHECKPOINT, p->uuid, error) == -1)
    return -1;
  bool waited = take_over_change (p, TAKE_OVER_ASKED, TAKE_OVER_DONE);
  checkpoints_replaced (m, waited);
  return waited ? 0 : text_error (error, "the guest did not wait for it any longer");
}

void
receiving_tick (struct mirror *m)
{
  struct take_over_page *p = m->take_over;
  CLEANUP_TEXT char *error = NULL;

  if (p == NULL)
    return;
  /* The guest may not have waited for us: its disk is no less its own.  Once: a later fence is that
   * of a hand-off from here.  If this server is killed before the fence is gone, `receive` finds
   * the state, and removes it. */
  bool asked = atomic_load (&p->state) == TAKE_OVER_ASKED;
  bool missed = !asked && atomic_load (&p->state) == TAKE_OVER_MISSED;
  if (!asked && !missed)
    return;
  fd_wake_clear (p->wake_fd);
  if (fence_remove (&m->fence, &error) == -1) {
    nbdkit_error ("this disk is its guest's again, but its fence record is left: %s: remove it"
                  " before the next start",
                  error);
    text_free (error);
    error = NULL;
  }
  if (missed) {
    take_over_change (p, TAKE_OVER_MISSED, TAKE_OVER_DONE);
    return;
  }
  if (p->records != 0 && begin_checkpoint (m, &error) == -1)
    nbdkit_error (RECEIVING_NO_CHECKPOINT, error);
  take_over_change (p, TAKE_OVER_ASKED, TAKE_OVER_DONE);
}
