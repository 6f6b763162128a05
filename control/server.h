/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The server side of the control protocol: a listening unix socket and its clients, driven by one
 * thread of the caller's through control_server_poll().  It knows the wire format, capabilities
 * negotiation, descriptor passing and the limits; what the commands mean is the caller's business.
 *
 * Everything here is called from the one thread that polls, callbacks included.  Nothing here waits
 * for a client.  Output that a client does not read is buffered up to CONTROL_MAX_OUTPUT; then the
 * client is dropped.
 *
 * Limits: a line has at most 64 KiB.  There are at most CONTROL_MAX_PEERS clients, and
 * CONTROL_RESERVED of their places are kept for uid 0 and for the peer that
 * control_peer_set_worker() has marked.  Where there is no place, the client that has been silent
 * for longest gives way, if that is 10 s or more and nothing hangs on its connection.  A client has
 * 5 s to finish a line that it has begun, and 5 s to take buffered output.  A peer whose uid
 * (SO_PEERCRED) is neither ours nor 0 is refused.
 */

#ifndef NBDMIRROR_CONTROL_SERVER_H
#define NBDMIRROR_CONTROL_SERVER_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <jansson.h>

#define CONTROL_MAX_PEERS 64
#define CONTROL_RESERVED 4
#define CONTROL_LINE_SECONDS 5
#define CONTROL_IDLE_SECONDS 10
#define CONTROL_MAX_OUTPUT (1024u * 1024)

struct control_server;
struct control_peer;

struct control_server_ops {
  /* A command arrived.  ARGS is an object, never NULL (borrowed); ID is the caller's id or NULL
   * (borrowed); FD is a passed descriptor or -1, owned by the callee.  Answer now or later, exactly
   * once, with control_reply() or control_error(). */
  void (*command) (void *opaque, struct control_peer *peer, const char *name, json_t *args,
                   json_t *id, int fd);
  /* The peer is gone (or being dropped): forget it, its pending answers too. */
  void (*closed) (void *opaque, struct control_peer *peer);
  /* Would something end with the connection of this peer, which has been silent for a while and
   * waits for no answer?  Then it keeps its place.  NULL: it never would. */
  bool (*needed) (void *opaque, const struct control_peer *peer);
};

/* Bind PATH (mode 0600, from the start) and listen.  A stale socket nobody listens on is replaced;
 * one in use, or a path that is no socket, is an error.  PACKAGE goes into the greeting (e.g.
 * "nbdmirror 0.1.0"). OPS and OPAQUE must outlive the server.  Returns NULL with *ERROR set (the
 * caller frees it with text_free()). */
struct control_server *control_server_new (const char *path, const char *package,
                                           const struct control_server_ops *ops, void *opaque,
                                           char **error);

/* Wait up to TIMEOUT_MS for something to do, and do it: accept, read, run commands, write, end what
 * has taken too long.  EXTRA are NR_EXTRA descriptors of the caller's to wait for as well; their
 * revents are filled in.  Returns 0, or -1 with errno on a fatal error.  EINTR is not an error. */
int control_server_poll (struct control_server *s, int timeout_ms, struct pollfd *extra,
                         unsigned nr_extra);

/* Write what can be written at once, close every peer (which calls `closed`) and the socket, and
 * unlink PATH. */
void control_server_free (struct control_server *s);

/* Answer a command.  The reference RET (an object or an array; NULL means {}) is taken over, and ID
 * is borrowed.  A copy of FD is passed along unless FD is -1; the caller keeps FD. */
void control_reply (struct control_peer *peer, json_t *id, json_t *ret, int fd);

/* Answer with an error.  CLASS is one of QMP's ("GenericError", "CommandNotFound", …) or of ours.
 */
void control_error (struct control_peer *peer, json_t *id, const char *class_, const char *fmt, ...)
    __attribute__ ((format (printf, 4, 5)));

/* Send an event to PEER or, if that is NULL, to all peers that have finished the negotiation.  The
 * reference DATA (which may be NULL) is taken over. */
void control_event (struct control_server *s, struct control_peer *peer, const char *name,
                    json_t *data);

/* Facts about a peer. */
pid_t control_peer_pid (const struct control_peer *peer);
uid_t control_peer_uid (const struct control_peer *peer);
uint64_t control_peer_serial (const struct control_peer *peer); /* never reused */

/* The worker's connection does not count against the common places. */
void control_peer_set_worker (struct control_peer *peer, bool worker);

/* Close this peer once its output is sent.  `closed` is called from the next poll. */
void control_peer_close (struct control_peer *peer);

/* The number of connected peers. */
unsigned control_server_peers (const struct control_server *s);

#endif
