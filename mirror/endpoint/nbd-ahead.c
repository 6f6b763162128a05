/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See nbd-ahead.h.
 */

#include "config.h"

#include "base/clock.h"
#include "base/text.h"
#include "mirror/endpoint/nbd-ahead.h"
#include "mirror/endpoint/nbd.h"

/* When a connection that goes on now has to be made. */
static uint64_t
limit_ns (const struct nbd_endpoint *nep)
{
  return clock_ns () + (uint64_t)nep->ep.opts.connect_timeout_ms * NS_PER_MS;
}

void
nbd_ahead_init (struct nbd_ahead *a)
{
  pthread_mutex_init (&a->lock, NULL);
  pthread_cond_init (&a->changed, NULL);
}

/* ---- one connection, in its thread ---- */

/* From now on the connection may be hung up.  False: it is not wanted any more. */
static bool
enter (struct nbd_ahead *a, struct nbd_connecting *c)
{
  pthread_mutex_lock (&a->lock);
  bool wanted = !a->over && (!a->decided || c->number < a->wanted);
  c->can_hang_up = wanted;
  if (wanted && a->decided)
    nbd_hang_up_limit (&c->hang_up, limit_ns (c->nep));
  pthread_mutex_unlock (&a->lock);
  return wanted;
}

static void
leave (struct nbd_ahead *a, struct nbd_connecting *c)
{
  pthread_mutex_lock (&a->lock);
  c->can_hang_up = false;
  pthread_mutex_unlock (&a->lock);
}

static void *
run (void *opaque)
{
  struct nbd_connecting *c = opaque;
  struct nbd_ahead *a = &c->nep->ahead;

  c->attempt.errnum = ENDPOINT_FULL;
  int err = nbd_hang_up_start (&c->hang_up, UINT64_MAX);
  if (err != 0) {
    text_error (&c->attempt.error, "%s: cannot start a thread", c->nep->ep.name);
    return NULL;
  }
  if (enter (a, c))
    c->attempt.h = nbd_connect_again (c->nep, c, &c->attempt.errnum, &c->attempt.error);
  leave (a, c);
  if (nbd_hang_up_end (&c->hang_up)) {
    if (c->attempt.h != NULL) /* at the last moment */
      nbd_close_handle (c->attempt.h, false);
    text_free (c->attempt.error); /* of libnbd's, which does not tell that it was us */
    c->attempt = (struct nbd_attempt){ .errnum = ENDPOINT_FULL };
    text_error (&c->attempt.error, "%s: a connection took too long", c->nep->ep.name);
  }
  return NULL;
}

bool
nbd_ahead_is_named (struct nbd_connecting *c)
{
  struct nbd_ahead *a = &c->nep->ahead;

  pthread_mutex_lock (&a->lock);
  c->waits = true;
  while (!a->named && !a->decided && !a->over)
    pthread_cond_wait (&a->changed, &a->lock);
  c->waits = false;
  bool only_named = !a->decided && !a->over;
  pthread_mutex_unlock (&a->lock);
  return only_named;
}

bool
nbd_ahead_is_wanted (struct nbd_connecting *c)
{
  struct nbd_ahead *a = &c->nep->ahead;

  pthread_mutex_lock (&a->lock);
  c->waits = true;
  while (!a->decided && !a->over)
    pthread_cond_wait (&a->changed, &a->lock);
  c->waits = false;
  bool wanted = !a->over && c->number < a->wanted;
  pthread_mutex_unlock (&a->lock);
  return wanted;
}

/* ---- all of them, in the endpoint's thread ---- */

void
nbd_ahead_begin (struct nbd_ahead *a, struct nbd_endpoint *nep, unsigned nr)
{
  if (a->nr > 0)
    return;
  for (; a->nr < nr; a->nr++) {
    struct nbd_connecting *c = &a->all[a->nr];

    *c = (struct nbd_connecting){ .nep = nep, .number = a->nr };
    c->started = pthread_create (&c->thread, NULL, run, c) == 0;
  }
}

void
nbd_ahead_name (struct nbd_ahead *a)
{
  pthread_mutex_lock (&a->lock);
  a->named = true;
  pthread_cond_broadcast (&a->changed);
  pthread_mutex_unlock (&a->lock);
}

void
nbd_ahead_decide (struct nbd_ahead *a, struct nbd_endpoint *nep, unsigned nr)
{
  nbd_ahead_begin (a, nep, nr);
  pthread_mutex_lock (&a->lock);
  a->decided = true;
  a->wanted = nr < a->nr ? nr : a->nr;
  /* Those that wait say goodbye. */
  for (unsigned i = 0; i < a->nr; i++)
    if (a->all[i].can_hang_up && (i < a->wanted || !a->all[i].waits))
      nbd_hang_up_limit (&a->all[i].hang_up, i < a->wanted ? limit_ns (nep) : 0);
  pthread_cond_broadcast (&a->changed);
  pthread_mutex_unlock (&a->lock);
}

bool
nbd_ahead_has (const struct nbd_ahead *a)
{
  return a->taken < a->wanted;
}

static void
join (struct nbd_connecting *c)
{
  if (c->started && !c->joined)
    pthread_join (c->thread, NULL);
  c->joined = true;
}

/* Wait until each connection that is wanted is made or has failed. */
static void
join_wanted (struct nbd_ahead *a)
{
  for (unsigned i = 0; i < a->wanted; i++) {
    if (!a->all[i].started)
      run (&a->all[i]);
    join (&a->all[i]);
  }
  for (unsigned i = 0; i < a->wanted; i++)
    if (a->all[i].attempt.h != NULL)
      a->made[a->nr_made++] = a->all[i].attempt;
  for (unsigned i = 0; i < a->wanted; i++)
    if (a->all[i].attempt.h == NULL)
      a->made[a->nr_made++] = a->all[i].attempt;
}

bool
nbd_ahead_take (struct nbd_ahead *a, struct nbd_attempt *attempt)
{
  if (!nbd_ahead_has (a))
    return false;
  if (a->nr_made == 0)
    join_wanted (a);
  *attempt = a->made[a->taken++];
  return true;
}

void
nbd_ahead_destroy (struct nbd_ahead *a)
{
  struct nbd_attempt attempt;

  pthread_mutex_lock (&a->lock);
  a->over = true;
  for (unsigned i = 0; i < a->nr; i++)
    if (a->all[i].can_hang_up)
      nbd_hang_up_limit (&a->all[i].hang_up, 0);
  pthread_cond_broadcast (&a->changed);
  pthread_mutex_unlock (&a->lock);
  while (nbd_ahead_take (a, &attempt)) {
    if (attempt.h != NULL)
      nbd_close_handle (attempt.h, true);
    text_free (attempt.error);
  }
  for (unsigned i = a->wanted; i < a->nr; i++) {
    join (&a->all[i]);
    text_free (a->all[i].attempt.error);
  }
  pthread_cond_destroy (&a->changed);
  pthread_mutex_destroy (&a->lock);
}
