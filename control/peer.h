/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * One client of the control server: its buffers, its state, its limits.  Internal to this folder
 * (and to the unit tests, which shorten the limits).
 *
 *     OPEN ──────────► CLOSING ──────────► LINGERING ──► (freed)
 *      commands are     output is flushed,   `closed` was called; our half is shut,
 *      read and run     nothing is read      input is thrown away for a moment
 *      └───────────────────┴──► GONE ──► `closed` is called, freed
 *
 * A peer is only marked while commands run; control_server_poll() frees it in one place, so
 * callbacks may close any peer, their own included.
 */

#ifndef NBDMIRROR_CONTROL_PEER_H
#define NBDMIRROR_CONTROL_PEER_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <jansson.h>

#include "control/frame.h"
#include "control/listen.h"
#include "control/server.h"

enum peer_state { PEER_OPEN, PEER_CLOSING, PEER_LINGERING, PEER_GONE };

struct control_limits {
  unsigned max_peers, reserved;
  int line_ms;       /* to finish a line */
  int idle_ms;       /* silent for so long: it gives way to another client */
  int output_ms;     /* without progress while output waits */
  int linger_ms;     /* after our half was shut */
  int turn_ms;       /* reading from all peers in one poll */
  size_t max_output; /* bytes waiting for one peer */
};

/* One line to send. */
struct peer_output {
  struct peer_output *next;
  size_t len, sent;
  int fd; /* goes with the first byte; ours; -1 none */
  char *line;
};

struct control_peer {
  struct control_server *server;
  enum peer_state state;
  int sock;
  pid_t pid;
  uid_t uid;
  uint64_t serial;
  bool negotiated, worker;
  bool eof;             /* sends no more, may still read */
  bool deaf;            /* see peer_go_deaf() */
  unsigned outstanding; /* commands not answered yet */
  int64_t last_input;   /* when it last sent something, or connected */

  struct frame_buffer in;
  int64_t line_start; /* when the unfinished line began; 0 none */
  int pending_fd;     /* came with the line being received; -1 none */
  bool fd_lost;       /* ... or should have come */

  struct peer_output *out, **out_end;
  size_t out_bytes;
  unsigned out_fds;
  int64_t out_progress; /* when output last moved, or began to wait */
  int64_t linger_until;
};

struct control_server {
  struct control_limits limits;
  const struct control_server_ops *ops;
  void *opaque;
  char *path, *package;
  struct listen_inode inode;
  int sock;
  int64_t accept_after; /* out of descriptors: do not accept before this */
  uint64_t last_serial;
  struct control_peer *peers[CONTROL_MAX_PEERS];
  unsigned nr_peers;
  unsigned turn; /* index of the peer that is read first */
  struct pollfd *pfds;
  size_t pfds_cap;
};

/* Take over SOCK and queue the greeting.  NULL when out of memory (SOCK is then still the
 * caller's). */
struct control_peer *peer_new (struct control_server *s, int sock, pid_t pid, uid_t uid);

/* Close the socket and free the peer, whatever it is doing. */
void peer_free (struct control_peer *p);

/* Which poll() events this peer waits for. */
short peer_events (const struct control_peer *p);

/* When peer_check() must look at it next: a time of clock_ms(), or INT64_MAX. */
int64_t peer_deadline (const struct control_peer *p);

/* Read and run commands: a bounded number, and none begun at or after UNTIL. */
void peer_serve (struct control_peer *p, short revents, int64_t until);

/* Queue MESSAGE (stolen; NULL means out of memory) if it fits into a line; FD (-1 none) is
 * stolen if it does. */
bool peer_queue (struct control_peer *p, json_t *message, int fd);

/* Queue an error; ID may be NULL when it answers no command in particular. */
void peer_queue_error (struct control_peer *p, json_t *id, const char *class_, const char *desc);

void peer_drop_output (struct control_peer *p);

/* The peer reads no more.  The commands that it sent before are run all the same, and their answers
 * are dropped. */
void peer_go_deaf (struct control_peer *p);

/* Send what the socket takes. */
void peer_flush (struct control_peer *p);

/* Is it silent for as long as the limits say, at NOW, and waits for nothing?  The worker never is.
 */
bool peer_is_idle (const struct control_peer *p, int64_t now);

/* Act on time limits, and on the end of the input. */
void peer_check (struct control_peer *p, int64_t now);

/* All output was sent.  Shut our half, so that the peer sees the end before it is cut off. */
void peer_linger (struct control_peer *p, int64_t now);

#endif
