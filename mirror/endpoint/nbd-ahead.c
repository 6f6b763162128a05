/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See nbd-ahead.h.
 */

#include "config.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/text.h"
#include "mirror/endpoint/nbd-ahead.h"
#include "mirror/endpoint/nbd.h"

struct connecting {
  struct nbd_endpoint *nep;
  struct nbd_attempt attempt;
  pthread_t thread;
  bool started;
};

static void *
run (void *opaque)
{
  struct connecting *c = opaque;

  c->attempt.h = nbd_connect_again (c->nep, &c->attempt.errnum, &c->attempt.error);
  return NULL;
}

void
nbd_ahead_connect (struct nbd_endpoint *nep, unsigned nr)
{
  struct connecting all[CHANNEL_MAX_FDS];
  struct nbd_ahead *a = &nep->ahead;

  for (unsigned i = 0; i < nr; i++) {
    all[i] = (struct connecting){ .nep = nep };
    all[i].started = pthread_create (&all[i].thread, NULL, run, &all[i]) == 0;
  }
  for (unsigned i = 0; i < nr; i++)
    if (all[i].started)
      pthread_join (all[i].thread, NULL);
    else
      run (&all[i]);
  for (unsigned i = 0; i < nr; i++)
    if (all[i].attempt.h != NULL)
      a->attempts[a->nr++] = all[i].attempt;
  for (unsigned i = 0; i < nr; i++)
    if (all[i].attempt.h == NULL)
      a->attempts[a->nr++] = all[i].attempt;
}

bool
nbd_ahead_take (struct nbd_ahead *a, struct nbd_attempt *attempt)
{
  unsigned taken = atomic_load (&a->taken);

  do
    if (taken >= a->nr)
      return false;
  while (!atomic_compare_exchange_weak (&a->taken, &taken, taken + 1));
  *attempt = a->attempts[taken];
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
