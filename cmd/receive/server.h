/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The server of `nbdmirror receive`: nbdkit with the mirror-receive filter, on the raw disk or, for
 * qcow2, on our image plugin, which has a qemu-nbd of its own; and this process, which supervises
 * it.
 *
 *   starting → serving → stopped by a signal: the disk stays
 *                    └→ given up by SIGINT or by the mirror: the caller removes the disk
 *
 * A server that ends is started again as long as no guest has written, and sealed if it was sealed.
 * Once the guest has written (control/receive-exports.h) a server that ends is not started again:
 * what it wrote and did not flush may be lost with the server, and the guest must not go on as if
 * it were not.
 */

#ifndef NBDMIRROR_CMD_RECEIVE_SERVER_H
#define NBDMIRROR_CMD_RECEIVE_SERVER_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/private-dir.h"
#include "cmd/serve/nbdkit-args.h"
#include "cmd/receive/disk.h"
#include "control/take-over.h"

#define RECEIVE_PID_FILE 60 /* bytes of its path */

struct receive_server {
  struct receive_disk *disk;      /* prepared */
  const struct nbdkit_args *args; /* what the user adds */
  const char *socket;             /* absolute; or NULL, and then */
  const char *port, *address;     /* PORT, and ADDRESS or NULL for all; or */
  bool stdio;                     /* one connection, on stdin and stdout */
  const char *control, *state;    /* absolute, or NULL: the disk is tracked */
  const char *tls_certificates;   /* absolute directory, or NULL */
  const char *tls_psk;            /* absolute file, or NULL */
  bool tls_verify_peer;
  char *filter;        /* our filter, for --filter= */
  char *digest_filter; /* the one in front of it */
  char *mirror_filter; /* the one behind it, with CONTROL */
  char *image_plugin;  /* for qcow2 */

  /* The rest is the server's own. */
  char dir[PRIVATE_DIR_SIZE];  /* private: the pid file; */
  int dir_fd;                  /* locked (flock) by us and the server, as long as one of us lives */
  pid_t nbdkit;                /* 0: does not run */
  pid_t digest;                /* of the base image: computed meanwhile; 0 */
  struct take_over_page *page; /* with CONTROL: what both filters share, */
  int page_fd, wake_fd;        /* its memory file, and an eventfd; -1 */
  int base_fd;                 /* a memory file with what it tells; -1: there is no base */
  int nbdkit_status;           /* of the last one that ended */
  int signal_fd, note_fd, note_write_fd;
  int log_fd, log_to; /* background: what the servers say, and the stderr of before; -1 */
  bool launched;      /* it has served */
  bool sealed, written, given_up;
  bool fenced;    /* only the mirror can seal it */
  int stopped_by; /* the signal, or 0 */
};

enum receive_end {
  RECEIVE_FAILED,  /* a message was printed */
  RECEIVE_STOPPED, /* by a signal; or --stdio: its client has gone */
  RECEIVE_GIVEN_UP
};

/* From now on a signal that asks this process to stop is noted, and does not end it.  -1 after an
 * error message. */
int receive_server_prepare (struct receive_server *s);
/* Start it and wait until it listens, or until a signal comes (STOPPED_BY): that is a failure as
 * well, without a message.  With BACKGROUND the messages of this process and its servers
 * go to the system log from receive_server_quiet() on.  -1 after an error message, everything is
 * stopped then. */
int receive_server_start (struct receive_server *s, bool background);
/* The terminal is left to others from now on. */
void receive_server_quiet (struct receive_server *s);
/* Supervise until the end; nothing runs any more then. */
enum receive_end receive_server_run (struct receive_server *s);
/* After either: remove sockets and the private directory. */
void receive_server_free (struct receive_server *s);

/* dir.c: make s->dir, and remove those that nobody uses any more.  -1 after an error message. */
int receive_dir_make (struct receive_server *s);
void receive_dir_remove (struct receive_server *s);

/* tracked.c: may the disk, which is prepared or about to be, be received behind this CONTROL?  An
 * exit status, after a message. */
int receive_track_allowed (const struct receive_server *s);
/* Who may write to the disk, where that is not the mirror first and then the guest. */
void receive_track_tell (const struct receive_server *s);
/* With CONTROL: make what the filters share.  -1 after an error message. */
int receive_track (struct receive_server *s);
/* A server is about to be started, or none will be any more; none runs. */
void receive_track_again (struct receive_server *s);
void receive_track_free (struct receive_server *s);

/* place.c: can it listen at its port?  EXIT_DONE, or EXIT_ERROR after an error message. */
int receive_place_is_free (const struct receive_server *s);

/* launch.c: begin to compute the digest of the base image, if there is one.  -1 after an error
 * message. */
int receive_start_digest (struct receive_server *s);
/* Start it.  -1 after an error message. */
int receive_launch (struct receive_server *s);
/* server.c: take note of signals, and of children that have ended. */
void receive_read_signals (struct receive_server *s);
/* Take note of children that have ended. */
void receive_reap (struct receive_server *s);
/* End the server, kindly for at most PATIENCE_MS, and wait until it is gone, with its qemu-nbd. */
void receive_end_children (struct receive_server *s, int patience_ms);

#endif
