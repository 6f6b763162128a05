/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Who listens at a monitor's socket: a QEMU, or somebody who forwards it?
 *
 * A forwarded monitor (ssh -L) ends with the network, and that says nothing about the QEMU behind
 * it.  A launcher that has made the socket for its QEMU (libvirt) is no QEMU either.
 */

#ifndef NBDMIRROR_CMD_MIGRATE_PEER_H
#define NBDMIRROR_CMD_MIGRATE_PEER_H

#include <stdbool.h>
#include <sys/types.h>

/* What a QEMU that waits for a migration does when that has come. */
enum peer_start {
  PEER_START_UNKNOWN, /* it is behind a tunnel, or its arguments cannot be seen */
  PEER_START_PAUSED,  /* -S */
  PEER_START_RUNS
};

struct peer {
  bool is_qemu; /* it is a QEMU for certain, */
  pid_t pid;    /* this process */
  enum peer_start start;
};

/* Look at the process that listens at the other end of the connected Unix socket FD. */
void peer_look (int fd, struct peer *peer);

#endif
