/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A received disk goes over to its guest.  See hand-over.h.
 */

#include "config.h"

#include <errno.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "base/clock.h"
#include "base/fd.h"
#include "nbd-plugin/receive/hand-over.h"

#define LIMIT_MS (10 * MS_PER_S)

void
hand_over_init (struct hand_over *h)
{
  memset (h, 0, sizeof *h);
  pthread_mutex_init (&h->lock, NULL);
}

void
hand_over_destroy (struct hand_over *h)
{
  pthread_mutex_destroy (&h->lock);
}

bool
hand_over_records (const struct hand_over *h)
{
  return h->page != NULL && h->page->records != 0;
}

int
hand_over_tell (struct hand_over *h, struct admission *a, const char *id, const char *uuid)
{
  uint8_t bytes[16];
  uint64_t generation;
  int err = 0;

  if (!hand_over_records (h))
    return ENOTSUP;
  if (!uuid_parse (uuid, bytes))
    return EINVAL;
  pthread_mutex_lock (&h->lock);
  if (admission_is_current (a, id, &generation)) {
    memcpy (h->uuid, bytes, sizeof h->uuid);
    h->generation = generation;
  } else
    err = ESHUTDOWN;
  pthread_mutex_unlock (&h->lock);
  return err;
}

void
hand_over_begin (struct hand_over *h, struct admission *a)
{
  struct take_over_page *p = h->page;

  if (p == NULL || atomic_load (&p->state) != TAKE_OVER_RECEIVING)
    return;
  pthread_mutex_lock (&h->lock);
  if (atomic_load (&p->state) == TAKE_OVER_RECEIVING) {
    /* The seal has raised the generation by one, and nobody does so after it. */
    if (h->generation != 0 && h->generation + 1 == atomic_load (&a->generation))
      memcpy (p->uuid, h->uuid, sizeof p->uuid);
    atomic_store (&p->state, TAKE_OVER_ASKED);
    fd_wake (p->wake_fd);
  }
  pthread_mutex_unlock (&h->lock);
}

int
hand_over_wait (struct hand_over *h, struct admission *a, admission_pause pause, void *opaque)
{
  struct take_over_page *p = h->page;
  uint64_t begun = clock_ms ();

  hand_over_begin (h, a); /* who has sealed may not have come so far yet */
  while (atomic_load (&p->state) < TAKE_OVER_DONE) {
    if (clock_ms () - begun >= LIMIT_MS) {
      if (take_over_change (p, TAKE_OVER_ASKED, TAKE_OVER_MISSED))
        nbdkit_error ("what the guest changes from now on is not recorded, since that could not be"
                      " begun in %d s: the way back will be a whole copy",
                      (int)(LIMIT_MS / MS_PER_S));
      break;
    }
    int err = pause (opaque);
    if (err != 0)
      return err;
  }
  return 0;
}
