/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The table of protocol commands.  commands.c checks the arguments against the table's
 * specification, so a handler finds every argument present (if mandatory) and of its type.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_COMMANDS_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_COMMANDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "control/server.h"

struct mirror;

struct call {
  struct mirror *m;
  struct control_peer *peer;
  const char *name;
  json_t *args; /* borrowed */
  json_t *id;   /* borrowed, may be NULL */
  int fd;       /* passed descriptor or -1; a handler that takes it sets it to -1 */
};

struct command {
  const char *name;
  /* "NAME:TYPE ..." with TYPE i (integer, not negative), n (number, not negative), s (string), b
   * (boolean), o (object), "!" behind it where it is mandatory.  `id` is allowed everywhere. */
  const char *arguments;
  void (*run) (struct call *c);
  bool worker; /* for the attached worker only */
};

/* What control_server_new() is to call; its opaque pointer is the struct mirror. */
extern const struct control_server_ops mirror_server_ops;

extern const struct command worker_commands[]; /* commands-worker.c; ends with a NULL name */

const char *call_string (struct call *c, const char *name);                 /* or NULL */
int64_t call_integer (struct call *c, const char *name, int64_t otherwise); /* of type i */

/* Check a lease-ms argument; answers with an error and returns false if it is out of range. */
bool call_lease_ok (struct call *c);

#endif
