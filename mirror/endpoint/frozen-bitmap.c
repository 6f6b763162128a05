/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See frozen-bitmap.h.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <libnbd.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/endpoint/frozen-bitmap.h"

#define DIRTY 1u
#define MOST_ASKED (UINT64_C (1) << 31) /* bytes: the length of a request has 32 bits */

struct reader {
  struct nbd_handle *nbd;
  const char *context, *export;
  uint64_t offset; /* everything before it was told */
  int timeout_ms;
  void (*mark) (void *opaque, uint64_t offset, uint64_t length);
  void *opaque;
};

static int
take_extents (void *data, const char *context, uint64_t offset, uint32_t *entries, size_t nr,
              int *error)
{
  struct reader *r = data;

  (void)error;
  if (strcmp (context, r->context) != 0)
    return 0;
  for (size_t i = 0; i + 1 < nr; i += 2) {
    if (entries[i + 1] & DIRTY)
      r->mark (r->opaque, offset, entries[i]);
    offset += entries[i];
  }
  r->offset = offset;
  return 0;
}

static int
fail (const struct reader *r, char **error)
{
  return text_error (error, "cannot read QEMU's bitmap of %s: %s", r->export, nbd_get_error ());
}

/* libnbd's blocking calls have no time limit, so the reply is waited for here. */
static int
ask (struct reader *r, uint64_t length, char **error)
{
  int64_t cookie = nbd_aio_block_status (
      r->nbd, length, r->offset, (nbd_extent_callback){ .callback = take_extents, .user_data = r },
      NBD_NULL_COMPLETION, 0);
  if (cookie == -1)
    return fail (r, error);
  uint64_t end = clock_ms () + (uint64_t)r->timeout_ms;
  int done;
  while ((done = nbd_aio_command_completed (r->nbd, (uint64_t)cookie)) == 0) {
    uint64_t now = clock_ms ();
    if (now >= end)
      return text_error (error, "cannot read QEMU's bitmap of %s: no reply within %d ms", r->export,
                         r->timeout_ms);
    if (nbd_poll (r->nbd, (int)(end - now)) == -1)
      return fail (r, error);
  }
  return done == 1 ? 0 : fail (r, error);
}

static int
read_all (struct reader *r, const char *socket, uint64_t size, char **error)
{
  if (nbd_set_export_name (r->nbd, r->export) == -1
      || nbd_add_meta_context (r->nbd, r->context) == -1 || nbd_connect_unix (r->nbd, socket) == -1)
    return fail (r, error);
  if (nbd_can_meta_context (r->nbd, r->context) != 1)
    return text_error (error, "QEMU does not offer %s of %s", r->context, r->export);
  if ((uint64_t)nbd_get_size (r->nbd) != size)
    return text_error (error, "%s has another size now", r->export);
  while (r->offset < size) {
    uint64_t before = r->offset, length = size - before;
    if (ask (r, length < MOST_ASKED ? length : MOST_ASKED, error) == -1)
      return -1;
    if (r->offset <= before)
      return text_error (error, "QEMU tells nothing of %s at %llu", r->context,
                         (unsigned long long)before);
  }
  nbd_shutdown (r->nbd, 0);
  return 0;
}

int
frozen_bitmap_read (const char *socket, const char *export, const char *name, uint64_t size,
                    int timeout_ms, void (*mark) (void *opaque, uint64_t offset, uint64_t length),
                    void *opaque, char **error)
{
  CLEANUP_TEXT char *context = text_printf ("qemu:dirty-bitmap:%s", name);
  struct reader r = { .nbd = nbd_create (),
                      .context = context,
                      .export = export,
                      .timeout_ms = timeout_ms,
                      .mark = mark,
                      .opaque = opaque };

  if (r.nbd == NULL)
    return fail (&r, error);
  int result = read_all (&r, socket, size, error);
  nbd_close (r.nbd);
  return result;
}
