/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * An image behind a qemu-nbd that may die: it is started again, what it had acknowledged and not
 * made durable is repeated, and then the requests that failed are.
 *
 *   RUNS --a connection fails--> RECOVERS --replayed and flushed--> RUNS
 *                                    |
 *                                    +--not within RECOVERY_MS,
 *                                       or the image is damaged--> LOST (every request gets EIO)
 *
 * Why this is exact:
 *   - A server's connections all lead to one process (server.h).  When one of them fails, that
 *     process is killed, and the recovery waits for its end and for the end of all requests on its
 *     connections.  So no old request can reach the image during the replay or after it.
 *   - While the image recovers, no request, read or change, goes to the new server before the
 *     replay is flushed.  So nobody sees that the image went back for a moment, neither the guest
 *     nor a mirror's worker, who reads through the same plugin.
 *   - A change is put into the log in the same critical section in which its connection is given
 *     back.  So the recovery, which waits for all connections, finds every change in the log that
 *     has been or will be acknowledged.
 *   - Changes that overlap wait for each other, so the log has them in the order in which they were
 *     applied (log.h).
 *   - A change with FUA is durable when it ends, and is not kept.  A replay must not put an older
 *     change over it, not even for a moment, because a power cut could come then.  So where a kept
 *     change overlaps it, it is made without FUA and followed by a flush, which empties the log.
 *   - A change that failed may have changed a part of its range, which somebody may have seen.  So
 *     it is followed by a flush before its error is told.  If the server dies before that flush,
 *     the change is tried again.
 *
 * Nothing is repeated on an image in which qemu-img check finds errors (check.h): parts of the disk
 * may have changed that the log knows nothing of, and each change could damage more.
 *
 * Where there is no room for the replay, the clusters that the dead server had allocated and not
 * made durable are freed (qemu-img check -r leaks), since the replay needs just as many again.
 *
 * The image may be lent to another program, which has it open meanwhile:
 *
 *   RUNS --image_lend()--> LENDING --flushed, the server has ended--> LENT
 *    ^                                                                 | image_take_back()
 *    +--RECOVERS <--the next request; it waits--RETURNED <-------------+
 *                   as long as the image is locked
 *
 * While it is lent all requests wait but flushes, which have nothing to do: QEMU sends one when it
 * takes a node away.  Nothing is kept in the log then, so nothing is put over what the other
 * program has written.
 *
 * The log takes LOG_LIMIT bytes at most.  When it is half full, the next change that ends flushes
 * before it is told; when it is full, changes wait for that flush.  If a flush fails that the guest
 * has not asked for, the guest's next flush fails.
 *
 * All functions may be called from any thread, but for image_open() and image_close().
 */

#ifndef NBDMIRROR_NBD_PLUGIN_IMAGE_IMAGE_H
#define NBDMIRROR_NBD_PLUGIN_IMAGE_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nbd-plugin/image/extents.h"
#include "nbd-plugin/image/server.h"

#define LOG_LIMIT ((size_t)32 << 20)
#define RECOVERY_MS 30000 /* how long it is tried to start the server again */

struct image;

enum image_action {
  IMAGE_READ,
  IMAGE_WRITE,
  IMAGE_ZERO,
  IMAGE_TRIM,
  IMAGE_FLUSH,
  IMAGE_STATUS,
  IMAGE_CACHE
};

struct image_request {
  enum image_action action;
  uint32_t flags; /* as libnbd has them */
  uint32_t count; /* bytes */
  uint64_t offset;
  void *buf;                     /* IMAGE_READ */
  const void *data;              /* IMAGE_WRITE */
  struct image_extents *extents; /* IMAGE_STATUS */
};

/* Start the server.  NULL with *ERROR (base/text.h).  The strings of O must live as long as the
 * image. */
struct image *image_open (const struct image_options *o, char **error);

/* Make all that was acknowledged durable, and end the server in order.  No request is under way. */
void image_close (struct image *i);

const struct image_facts *image_facts (const struct image *i);

/* Let go of the image: everything is durable, and no process of ours has it open when this returns
 * 0.  EBUSY: it is lent already.  Another errno: it is not lent, and requests go on. */
int image_lend (struct image *i);

/* After image_lend() was successful. */
void image_take_back (struct image *i);

/* Do it, however many servers that takes.  0 or an errno.  COUNT is at most facts.maximum, where
 * that is told. */
int image_do (struct image *i, struct image_request *r);

#endif
