/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Putting a running guest from one node of its QEMU's to another one on the same image.
 *
 * A mirror job of QEMU's copies nothing (sync=none) and sends each write of the guest to both nodes
 * (copy-mode=write-blocking).  When it is completed the guest uses the other node.  A job in
 * background mode would not do: it writes later what it has read before, and on one image that is
 * old data over new.
 */

#ifndef NBDMIRROR_CMD_ADOPT_PIVOT_H
#define NBDMIRROR_CMD_ADOPT_PIVOT_H

#include <stdint.h>

#include "cmd/adopt/names.h"
#include "cmd/migrate/machine.h"

struct pivot {
  const struct adopt_names *names;
  const char *from, *to; /* names of nodes */
  uint64_t took_ns;      /* from the start of the job to its end */

  /* Adds the node TO, at the beginning.  0, or -1 with *ERROR.  NULL: it is there. */
  int (*add_node) (void *opaque, char **error);

  /* For stuck.h: while QEMU connects to a server, the guest and the monitor wait for its greeting;
   * while it completes the job, for the writes that are under way at both nodes.  NULL: nobody can
   * help. */
  void (*stuck) (void *opaque, unsigned attempt);
  void *opaque;
};

/* 0, or -1 with *ERROR (text_free()): then the guest uses the same node as before, unless QEMU is
 * lost.  Takes about twice PIVOT_LIMIT_MS at most, or what QEMU's monitor takes. */
#define PIVOT_LIMIT_MS 10000
int pivot (struct machine *v, struct pivot *p, char **error);

/* End the job that a killed process may have left: the guest stays where it is, or, if the job was
 * being completed, goes where it was going to.  0, also if there is none; or -1 with *ERROR. */
int pivot_end_leftover (struct machine *v, const struct adopt_names *names, char **error);

#endif
