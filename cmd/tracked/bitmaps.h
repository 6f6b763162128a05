/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a job makes in a guest's QEMU to learn what the guest changes: an export to read the disk
 * from, two bitmaps in turn, an export for the one that is read, and a server for these exports.
 * All names begin alike and end with the node's, so a second run finds what a killed one has left;
 * and each run has names of its own, so that none takes the bitmap of another for its own.
 *
 * The jobs of several disks share the server.  QEMU serves one client of a monitor at a time, so
 * what is done with one connection is done before another job sees it: nobody ends the server
 * between its start and the first export.
 *
 * Functions return 0, or -1 with *ERROR (text_free()).  They block as machine_call() does.
 */

#ifndef NBDMIRROR_CMD_TRACKED_BITMAPS_H
#define NBDMIRROR_CMD_TRACKED_BITMAPS_H

#include <stdbool.h>
#include <stdint.h>

#include "cmd/migrate/machine.h"

#define BITMAPS_NODE_BYTES 64
#define BITMAPS_ID_BYTES 160

struct bitmaps {
  const char *node;                                       /* borrowed */
  char *socket;                                           /* of QEMU's NBD server; text_free() */
  char data[BITMAPS_ID_BYTES], changes[BITMAPS_ID_BYTES]; /* the IDs of both exports */
  char bitmap[2][BITMAPS_ID_BYTES];
  char end[BITMAPS_NODE_BYTES]; /* the node's name as these end with it */
  uint32_t granularity;         /* bytes */
  unsigned current;             /* the bitmap that the guest marks */
};

/* B is for NODE of the QEMU whose monitor is at QMP.  Free B->socket at the end. */
void bitmaps_init (struct bitmaps *b, const char *qmp, const char *node);

/* Is ID the name of an export or a bitmap that such a job makes, whichever one? */
bool bitmaps_is_ours (const char *id);

/* Start QEMU's NBD server, unless it runs.  One that listens at another address than ours is
 * refused
 * (*REFUSED). */
int bitmaps_start_server (const struct bitmaps *b, struct machine *vm, bool *refused, char **error);

/* Export the node for reading; starts the server as well. */
int bitmaps_export (struct bitmaps *b, struct machine *vm, bool *refused, char **error);

/* Begin to mark what the guest changes, in blocks of GRANULARITY bytes, a power of two. */
int bitmaps_start (struct bitmaps *b, struct machine *vm, uint32_t granularity, char **error);

/* At one instant the guest begins to mark the other bitmap.  Then tell MARK what the old one holds,
 * of a disk of SIZE bytes, and remove it. */
int bitmaps_turn (struct bitmaps *b, struct machine *vm, uint64_t size,
                  void (*mark) (void *opaque, uint64_t offset, uint64_t length), void *opaque,
                  char **error);

/* *CHANGED: how many bytes the guest has changed since the last turn, as the present bitmap has
 * them. */
int bitmaps_count (const struct bitmaps *b, struct machine *vm, uint64_t *changed, char **error);

/* Remove all that this job has made, with EARLIER also what earlier ones have for this node; and
 * the server if nobody else uses it.  It is no error if there is nothing. */
int bitmaps_remove (const struct bitmaps *b, struct machine *vm, bool earlier, char **error);

#endif
