/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Compressed writes to a server of `nbdmirror receive`.
 *
 *   begin ──> with the compressor ──> next: sent as a pack ──> answered
 *     └──(not worth it)─────────────> sent as it is ─────────┘
 *
 * Only the order of writes that are in flight together may change by that, and an engine never has
 * two for one block in flight (R6).  A flush covers what was answered before it was asked for, so
 * it need not wait for writes that are still being compressed (R4).
 */

#include "config.h"

#include <errno.h>
#include <string.h>

#include "compress/pack.h"
#include "mirror/endpoint/nbd.h"

bool
nbd_packed_start (struct nbd_endpoint *nep, int *errnum, char **error)
{
  if (!nep->packed)
    return true;
  nep->compressor = compressor_new (nep->ep.opts.compress, nep->ep.info.min_block, 0);
  if (nep->compressor != NULL)
    return true;
  endpoint_fail (errnum, error, errno, "%s: the threads that compress cannot be started: %s",
                 nep->ep.name, strerror (errno));
  return false;
}

bool
nbd_packed_begin (struct squeeze_queue *queue, struct op *op)
{
  op->private = NULL; /* no connection has it yet */
  op->squeeze.data = op->buf;
  op->squeeze.length = op->len;
  op->squeeze.opaque = op;
  return squeeze_begin (queue, &op->squeeze);
}

struct op *
nbd_packed_next (struct squeeze_queue *queue)
{
  struct squeeze *s = squeeze_next (queue);

  return s != NULL ? s->opaque : NULL;
}

int64_t
nbd_packed_write (struct nbd_handle *h, struct op *op, nbd_completion_callback done)
{
  const struct squeeze *s = &op->squeeze;

  if (s->pack == NULL)
    return nbd_aio_pwrite (h, op->buf, op->len, op->offset, done, 0);
  op->ch->saved += op->len - s->pack_length;
  return nbd_aio_pwrite (h, s->pack, s->pack_length, PACK_OFFSET + op->offset, done, 0);
}
