/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See nbd-ahead.h.
 */

#include "config.h"

#include "base/text.h"
#include "mirror/endpoint/nbd-ahead.h"
#include "mirror/endpoint/nbd.h"

static void *
run (void *opaque)
{
  struct nbd_connecting *c = opaque;

  c->attempt.h = nbd_connect_again (c->nep, &c->attempt.errnum, &c->attempt.error);
  return NULL;
}

void
nbd_ahead_begin (struct nbd_endpoint *nep, unsigned nr)
{
  struct nbd_ahead *a = &nep->ahead;

  for (a->nr = 0; a->nr < nr; a->nr++) {
    struct nbd_connecting *c = &a->all[a->nr];

    *c = (struct nbd_connecting){ .nep = nep };
    c->started = pthread_create (&c->thread, NULL, run, c) == 0;
  }
}

bool
nbd_ahead_has (const struct nbd_ahead *a)
{
  return a->taken < a->nr;
}

/* Wait until each connection is made or has failed. */
static void
join_all (struct nbd_ahead *a)
{
  for (unsigned i = 0; i < a->nr; i++)
    if (a->all[i].started)
      pthread_join (a->all[i].thread, NULL);
    else
      run (&a->all[i]);
  for (unsigned i = 0; i < a->nr; i++)
    if (a->all[i].attempt.h != NULL)
      a->made[a->nr_made++] = a->all[i].attempt;
  for (unsigned i = 0; i < a->nr; i++)
    if (a->all[i].attempt.h == NULL)
      a->made[a->nr_made++] = a->all[i].attempt;
}

bool
nbd_ahead_take (struct nbd_ahead *a, struct nbd_attempt *attempt)
{
  if (!nbd_ahead_has (a))
    return false;
  if (a->nr_made == 0)
    join_all (a);
  *attempt = a->made[a->taken++];
  return true;
}

void
nbd_ahead_close (struct nbd_ahead *a)
{
  struct nbd_attempt attempt;

  while (nbd_ahead_take (a, &attempt)) {
    if (attempt.h != NULL)
      nbd_close_handle (attempt.h, true);
    text_free (attempt.error);
  }
}
