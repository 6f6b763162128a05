/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * evacuate-disk: the server that has the guest's disk now, and the one that takes its place.
 *
 * Paths, for a server on SOCKET and CONTROL:
 *
 *   SOCKET.new          where the new server binds, until it is renamed to SOCKET
 *   CONTROL.evacuated   the old server's control socket while both live.  The new one needs the
 *                       name, because the fence record is found by it.
 *
 * Each step can be repeated, so a command that was killed half-way is finished by running it again.
 */

#ifndef NBDMIRROR_CMD_EVACUATE_SERVER_H
#define NBDMIRROR_CMD_EVACUATE_SERVER_H

#include <stdbool.h>
#include <sys/types.h>
#include <jansson.h>

#include "control/client.h"

struct old_server {
  char *socket, *control; /* absolute; all owned */
  char *control_aside;    /* CONTROL.evacuated */
  char *uri, *export_name;
  char *disk; /* NULL: not known */
  pid_t pid;
  int pidfd;
  bool aside; /* it is at control_aside already: an earlier run got so far */
  struct control_client *client;
};

/* Find the server behind CONTROL; *STATUS is its status object (new reference).  0, or an exit
 * status after an error message.  Free with old_server_free() in either case. */
int old_server_find (struct old_server *o, const char *control, json_t **status);
void old_server_free (struct old_server *o);

struct new_server {
  const char *disk;    /* absolute, links resolved */
  const char *format;  /* as for qemu-nbd; NULL: raw, and not said */
  const char *pidfile; /* absolute */
  const char *state;   /* absolute; NULL: it keeps no state file */
  char **args;         /* NBDKIT-ARGS, with a NULL at the end */
};

/* Can such a server be started at all?  Starts one on other paths and ends it.  0, or -1 after an
 * error message. */
int new_server_try (const struct old_server *o, const struct new_server *n);

/* The hand-off is committed, with waiters kept: start the new server, let it take the socket's
 * name, end the old one. *TAKEN tells whether the name was taken: until then nobody reached the new
 * server, and the old one may be rolled back, after takeover_undo().  0, or -1 after an error
 * message. */
int takeover (struct old_server *o, const struct new_server *n, bool *taken);
void takeover_undo (struct old_server *o, const struct new_server *n);

#endif
