/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See null.h.  Every request is done at once.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "mirror/endpoint/internal.h"
#include "mirror/endpoint/null.h"

#define NULL_ROOM 64u

static void
null_close (struct endpoint *ep)
{
  text_free (ep->name);
  free (ep);
}

static int
null_start (struct channel *ch, struct op *op)
{
  (void)ch;
  if (op->kind == OP_READ)
    memset (op->buf, 0, op->len);
  op_done (op, 0);
  return 0;
}

static unsigned
null_pollfds (struct channel *ch, struct pollfd *fds, unsigned max, int64_t now, int *timeout_ms)
{
  (void)ch;
  (void)fds;
  (void)max;
  (void)now;
  (void)timeout_ms;
  return 0;
}

static void
null_dispatch (struct channel *ch, const struct pollfd *fds, unsigned nr, int64_t now)
{
  (void)ch;
  (void)fds;
  (void)nr;
  (void)now;
}

static void
null_stop (struct channel *ch)
{
  (void)ch; /* nothing is ever in flight */
}

static void
null_channel_free (struct channel *ch)
{
  channel_uninit (ch);
  free (ch);
}

static struct channel *
null_channel_open (struct endpoint *ep, int *errnum, char **error)
{
  struct channel *ch = calloc (1, sizeof *ch);

  if (ch != NULL && channel_init (ch, ep, NULL_ROOM) == 0)
    return ch;
  free (ch);
  endpoint_fail (errnum, error, ENOMEM, "%s: %s", ep->name, strerror (ENOMEM));
  return NULL;
}

static const struct endpoint_ops null_ops = {
  .close = null_close,
  .channel_open = null_channel_open,
  .stop = null_stop,
  .channel_free = null_channel_free,
  .start = null_start,
  .pollfds = null_pollfds,
  .dispatch = null_dispatch,
};

struct endpoint *
endpoint_null_open (const struct endpoint_options *opts, int *errnum, char **error)
{
  struct endpoint *ep = calloc (1, sizeof *ep);

  if (ep == NULL) {
    endpoint_fail (errnum, error, ENOMEM, "%s %s", ENDPOINT_NULL, strerror (ENOMEM));
    return NULL;
  }
  *ep = (struct endpoint){
    .ops = &null_ops,
    .name = text_copy (ENDPOINT_NULL),
    .opts = *opts,
    .info = { .size = opts->create_size,
              .min_block = 1,
              .max_request = ENDPOINT_MAX_REQUEST,
              .read_only = !opts->writable,
              .can_flush = true,
              .can_zero = true,
              .can_multi_conn = true },
  };
  return ep;
}
