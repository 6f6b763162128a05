/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See requests.h.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbd-plugin/image/requests.h"

/* libnbd's callback. */
static int
take_extents (void *opaque, const char *context, uint64_t offset, uint32_t *entries, size_t nr,
              int *error)
{
  (void)offset, (void)error;
  if (strcmp (context, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0)
    extents_take (opaque, EXTENTS_ALLOCATION, entries, nr);
  else if (strcmp (context, SERVER_DEPTH_CONTEXT) == 0)
    extents_take (opaque, EXTENTS_DEPTH, entries, nr);
  return 0;
}

static int
ask_status (struct nbd_handle *h, struct image_request *r)
{
  /* Anew: a server may have told something that has died since. */
  extents_begin (r->extents, r->offset, r->offset + r->count);
  return nbd_block_status (
      h, r->count, r->offset,
      (nbd_extent_callback){ .callback = take_extents, .user_data = r->extents }, r->flags);
}

static int
send_request (struct nbd_handle *h, struct image_request *r)
{
  switch (r->action) {
  case IMAGE_READ:
    return nbd_pread (h, r->buf, r->count, r->offset, r->flags);
  case IMAGE_WRITE:
    return nbd_pwrite (h, r->data, r->count, r->offset, r->flags);
  case IMAGE_ZERO:
    return nbd_zero (h, r->count, r->offset, r->flags);
  case IMAGE_TRIM:
    return nbd_trim (h, r->count, r->offset, r->flags);
  case IMAGE_FLUSH:
    return nbd_flush (h, r->flags);
  case IMAGE_STATUS:
    return ask_status (h, r);
  case IMAGE_CACHE:
    return nbd_cache (h, r->count, r->offset, r->flags);
  }
  abort ();
}

int
request_send (struct nbd_handle *connection, struct image_request *r)
{
  if (send_request (connection, r) == 0)
    return 0;
  int err = nbd_get_errno ();
  return err != 0 ? err : EIO;
}

int
request_repeat (struct nbd_handle *connection, const struct change *c)
{
  struct image_request r = { .action = c->kind == CHANGE_WRITE  ? IMAGE_WRITE
                                       : c->kind == CHANGE_ZERO ? IMAGE_ZERO
                                                                : IMAGE_TRIM,
                             .flags = c->flags,
                             .count = c->count,
                             .offset = c->offset,
                             .data = c->data };

  return request_send (connection, &r);
}

struct change *
request_change (const struct image_request *r)
{
  enum change_kind kind = r->action == IMAGE_WRITE  ? CHANGE_WRITE
                          : r->action == IMAGE_ZERO ? CHANGE_ZERO
                                                    : CHANGE_TRIM;
  bool durable = (r->flags & LIBNBD_CMD_FLAG_FUA) != 0;

  /* A zero that was fast once may not be so again. */
  uint32_t flags = r->flags & ~(uint32_t)(LIBNBD_CMD_FLAG_FUA | LIBNBD_CMD_FLAG_FAST_ZERO);
  return change_new (kind, r->offset, r->count, flags, durable ? NULL : r->data);
}
