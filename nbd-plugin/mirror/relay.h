/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Requests of users that only the worker can answer.  The filter passes each one on as an event
 * (MIRROR_REQUEST), remembers who asked, and answers when the worker does, or with an error when
 * the request's time limit has passed or the worker is gone.
 *
 * Control thread only.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_RELAY_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_RELAY_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "control/server.h"

struct relay {
  struct relay *next;
  uint64_t number;           /* names the request in MIRROR_REQUEST and mirror-reply */
  struct control_peer *peer; /* who asked; borrowed */
  json_t *id;                /* owned, or NULL */
  bool prepare;              /* it is the hand-off's: the participant checks the answer */
  int64_t limit_ns;          /* clock_ns() at which it is given up */
};

struct relays {
  struct relay *first;
  uint64_t last_number;
};

/* What to ask, and for whom. */
struct relay_request {
  struct control_server *server;
  struct control_peer *worker; /* must be attached */
  struct control_peer *peer;   /* who gets the answer */
  json_t *id;                  /* borrowed, or NULL */
  const char *execute;         /* both go into MIRROR_REQUEST */
  json_t *args;                /* borrowed */
  int64_t limit_ms;
};

/* Ask the worker.  PEER is answered later, or now if memory has run out. */
void relay_ask (struct relays *list, const struct relay_request *request);

/* Take a request out of the list: the one of that NUMBER, or the hand-off's.  The caller frees it
 * with relay_free().  NULL if there is none. */
struct relay *relay_take (struct relays *list, uint64_t number);
struct relay *relay_take_prepare (struct relays *list);
void relay_free (struct relay *r);

/* Answer those whose time limit has passed with an error.  True if the hand-off's was one of
 * them. */
bool relay_expire (struct relays *list);

/* The worker is gone: answer all with an error. */
void relay_fail_all (struct relays *list);

/* PEER is gone: forget what it asked. */
void relay_peer_closed (struct relays *list, struct control_peer *peer);

void relay_free_all (struct relays *list);

#endif
