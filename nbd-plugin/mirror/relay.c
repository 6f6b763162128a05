/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Requests that wait for the worker's answer.  See relay.h.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "nbd-plugin/mirror/relay.h"

void
relay_free (struct relay *r)
{
  if (r != NULL)
    json_decref (r->id);
  free (r);
}

void
relay_ask (struct relays *list, const struct relay_request *request)
{
  struct relay *r = calloc (1, sizeof *r);

  if (r == NULL) {
    control_error (request->peer, request->id, "GenericError", "no memory");
    return;
  }
  r->number = ++list->last_number;
  r->peer = request->peer;
  r->id = json_incref (request->id);
  r->prepare = strcmp (request->execute, "prepare") == 0;
  r->limit_ns = (int64_t)clock_ns () + request->limit_ms * NS_PER_MS;
  r->next = list->first;
  list->first = r;
  control_event (request->server, request->worker, "MIRROR_REQUEST",
                 json_pack ("{s:I, s:s, s:O}", "request", (json_int_t)r->number, "execute",
                            request->execute, "arguments", request->args));
}

static struct relay *
unlink_relay (struct relay **at)
{
  struct relay *r = *at;
  if (r != NULL)
    *at = r->next;
  return r;
}

struct relay *
relay_take (struct relays *list, uint64_t number)
{
  struct relay **at = &list->first;
  while (*at != NULL && (*at)->number != number)
    at = &(*at)->next;
  return unlink_relay (at);
}

struct relay *
relay_take_prepare (struct relays *list)
{
  struct relay **at = &list->first;
  while (*at != NULL && !(*at)->prepare)
    at = &(*at)->next;
  return unlink_relay (at);
}

bool
relay_expire (struct relays *list)
{
  int64_t now = (int64_t)clock_ns ();
  struct relay **at = &list->first;
  bool prepare = false;

  while (*at != NULL) {
    if (now < (*at)->limit_ns) {
      at = &(*at)->next;
      continue;
    }
    struct relay *r = unlink_relay (at);
    control_error (r->peer, r->id, "GenericError", "the worker did not answer in time");
    prepare |= r->prepare;
    relay_free (r);
  }
  return prepare;
}

void
relay_fail_all (struct relays *list)
{
  while (list->first != NULL) {
    struct relay *r = unlink_relay (&list->first);
    control_error (r->peer, r->id, "DeviceNotActive", "the worker was lost");
    relay_free (r);
  }
}

void
relay_peer_closed (struct relays *list, struct control_peer *peer)
{
  struct relay **at = &list->first;

  while (*at != NULL)
    if ((*at)->peer == peer)
      relay_free (unlink_relay (at));
    else
      at = &(*at)->next;
}

void
relay_free_all (struct relays *list)
{
  while (list->first != NULL)
    relay_free (unlink_relay (&list->first));
}
