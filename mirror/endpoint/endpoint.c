/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What all kinds of endpoint share: the checks of requests, the pool of requests, and the list of
 * those that are done.  internal.h tells the life of a request.
 */

#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/text.h"
#include "mirror/endpoint/internal.h"

void
endpoint_fail (int *errnum, char **error, int err, const char *fmt, ...)
{
  va_list args;

  if (errnum)
    *errnum = err;
  if (!error)
    return;
  va_start (args, fmt);
  *error = text_vprintf (fmt, args);
  va_end (args);
}

/* ---- What an endpoint is ------------------------------------------------------------------ */

bool
endpoint_error_lasts (int err)
{
  return err == EINVAL || err == EOPNOTSUPP || err == ENOTSUP || err == EPERM || err == EROFS
         || err == EOVERFLOW || err == EFBIG || err == ENOSYS;
}

const struct endpoint_info *
endpoint_info (const struct endpoint *ep)
{
  return &ep->info;
}

bool
endpoint_is_full (const struct endpoint *ep)
{
  return atomic_load (&ep->full);
}

const char *
endpoint_name (const struct endpoint *ep)
{
  return ep->name;
}

void
endpoint_close (struct endpoint *ep)
{
  if (ep)
    ep->ops->close (ep);
}

/* ---- The pool --------------------------------------------------------------------------- */

int
channel_init (struct channel *ch, struct endpoint *ep, unsigned room)
{
  ch->ep = ep;
  ch->nr_ops = room + ENDPOINT_FLUSH_OPS;
  ch->room = room;
  ch->pool = calloc (ch->nr_ops, sizeof *ch->pool);
  if (!ch->pool)
    return -1;
  for (unsigned i = 0; i < ch->nr_ops; i++) {
    ch->pool[i].ch = ch;
    ch->pool[i].next = ch->free;
    ch->free = &ch->pool[i];
  }
  return 0;
}

void
channel_uninit (struct channel *ch)
{
  for (unsigned i = 0; ch->pool && i < ch->nr_ops; i++)
    free (ch->pool[i].extents);
  free (ch->pool);
  text_free (ch->error);
}

void
channel_die (struct channel *ch, const char *fmt, ...)
{
  va_list args;

  if (ch->error)
    return;
  va_start (args, fmt);
  ch->error = text_vprintf (fmt, args);
  va_end (args);
}

static void
list_append (struct op_list *list, struct op *op)
{
  op->next = NULL;
  op->prev = list->last;
  if (list->last)
    list->last->next = op;
  else
    list->first = op;
  list->last = op;
}

static void
list_remove (struct op_list *list, struct op *op)
{
  if (op->prev)
    op->prev->next = op->next;
  else
    list->first = op->next;
  if (op->next)
    op->next->prev = op->prev;
  else
    list->last = op->prev;
}

static void
op_free (struct op *op)
{
  struct channel *ch = op->ch;

  if (op->kind != OP_FLUSH)
    ch->room++;
  op->next = ch->free;
  ch->free = op;
}

void
op_done (struct op *op, int error)
{
  list_remove (&op->ch->in_flight, op);
  op->error = error;
  list_append (&op->ch->done, op);
}

bool
op_add_extent (struct op *op, struct endpoint_extent extent)
{
  struct endpoint_extent *last = op->nr_extents > 0 ? &op->extents[op->nr_extents - 1] : NULL;

  if (last != NULL && last->zero == extent.zero && last->allocated == extent.allocated
      && last->lower == extent.lower) {
    last->length += extent.length;
    return true;
  }
  if (op->nr_extents == ENDPOINT_MAX_EXTENTS)
    return false;
  op->extents[op->nr_extents++] = extent;
  return true;
}

/* Call back for OP and return it to the pool.  The place is free already when the callback
 * runs, so that it can start the next request. */
static void
op_call (struct op *op)
{
  struct op copy = *op;

  if (op->kind == OP_STATUS) {
    /* The extents are lent to the callback: the op must not be used again meanwhile. */
    op->status_done (op->opaque, op->error, op->error ? NULL : op->extents,
                     op->error ? 0 : op->nr_extents);
    op_free (op);
    return;
  }
  op_free (op);
  copy.done (copy.opaque, copy.error);
}

/* ---- Channels --------------------------------------------------------------------------- */

struct channel *
channel_open (struct endpoint *ep, int *errnum, char **error)
{
  return ep->ops->channel_open (ep, errnum, error);
}

int
channel_widen (struct channel *ch, int *errnum, char **error)
{
  return ch->ep->ops->widen != NULL ? ch->ep->ops->widen (ch, errnum, error) : 0;
}

unsigned
channel_connections (const struct channel *ch)
{
  return ch->nr_connections > 0 ? ch->nr_connections : 1;
}

void
channel_in_turn (struct channel *ch, bool in_turn)
{
  ch->in_turn = in_turn;
}

/* Stop the I/O of a dead channel and complete what was in flight. */
static void
bury (struct channel *ch)
{
  ch->ep->ops->stop (ch);
  ch->stopped = true;
  while (ch->in_flight.first)
    op_done (ch->in_flight.first,
             ch->in_flight.first->error ? ch->in_flight.first->error : ESHUTDOWN);
}

static void
run_done (struct channel *ch)
{
  struct op *last = ch->done.last;
  struct op *op;

  /* Only what is there now: callbacks start requests that may be done at once, and the other
   * channels of this thread must have their turn. */
  while ((op = ch->done.first)) {
    list_remove (&ch->done, op);
    op_call (op);
    if (op == last)
      break;
  }
}

bool
channel_run (struct channel *ch)
{
  if (ch->error || !ch->done.first)
    return false;
  run_done (ch);
  return true;
}

void
channel_close (struct channel *ch)
{
  if (!ch)
    return;
  ch->was_alive = ch->error == NULL;
  channel_die (ch, "%s: closed", ch->ep->name);
  if (!ch->stopped)
    bury (ch);
  while (ch->done.first)
    run_done (ch);
  ch->ep->ops->channel_free (ch);
}

unsigned
channel_room (const struct channel *ch)
{
  return ch->error ? 0 : ch->room;
}

uint64_t
channel_take_saved (struct channel *ch)
{
  uint64_t saved = ch->saved;

  ch->saved = 0;
  return saved;
}

const char *
channel_error (const struct channel *ch)
{
  return ch->error;
}

unsigned
channel_pollfds (struct channel *ch, struct pollfd *fds, unsigned max, int *timeout_ms)
{
  if (ch->error || ch->done.first)
    lower_timeout (timeout_ms, 0);
  return ch->stopped ? 0 : ch->ep->ops->pollfds (ch, fds, max, endpoint_now_ms (), timeout_ms);
}

int
channel_dispatch (struct channel *ch, const struct pollfd *fds, unsigned nr)
{
  if (!ch->error)
    ch->ep->ops->dispatch (ch, fds, nr, endpoint_now_ms ());
  if (ch->error && !ch->stopped)
    bury (ch);
  if (!ch->error) {
    run_done (ch);
    return 0;
  }
  while (ch->done.first)
    run_done (ch);
  return -1;
}

/* ---- Requests --------------------------------------------------------------------------- */

static struct op *
op_new (struct channel *ch, enum op_kind kind, uint64_t len, uint64_t offset, uint64_t max_len,
        void *opaque)
{
  const struct endpoint *ep = ch->ep;
  struct op *op = ch->free;

  if (ch->error) {
    errno = ESHUTDOWN;
    return NULL;
  }
  if (!op || (kind != OP_FLUSH && ch->room == 0)) {
    errno = EAGAIN;
    return NULL;
  }
  if (kind != OP_FLUSH
      && (len == 0 || len > max_len || offset > ep->info.size || len > ep->info.size - offset)) {
    errno = EINVAL;
    return NULL;
  }
  if ((kind == OP_WRITE || kind == OP_ZERO) && !ep->opts.writable) {
    errno = EROFS;
    return NULL;
  }
  ch->free = op->next;
  if (kind != OP_FLUSH)
    ch->room--;
  op->kind = kind;
  op->error = 0;
  op->offset = offset;
  op->len = len;
  op->opaque = opaque;
  op->started = endpoint_now_ms ();
  list_append (&ch->in_flight, op);
  return op;
}

static int
op_start (struct op *op)
{
  struct channel *ch = op->ch;

  if (ch->ep->ops->start (ch, op) == 0)
    return 0;
  list_remove (&ch->in_flight, op);
  op_free (op);
  return -1;
}

int
channel_read (struct channel *ch, void *buf, uint32_t len, uint64_t offset, channel_done done,
              void *opaque)
{
  struct op *op = op_new (ch, OP_READ, len, offset, ch->ep->info.max_request, opaque);

  if (!op)
    return -1;
  op->buf = buf;
  op->done = done;
  return op_start (op);
}

int
channel_write (struct channel *ch, const void *buf, uint32_t len, uint64_t offset,
               channel_done done, void *opaque)
{
  struct op *op = op_new (ch, OP_WRITE, len, offset, ch->ep->info.max_request, opaque);

  if (!op)
    return -1;
  op->buf = (void *)(uintptr_t)buf;
  op->done = done;
  return op_start (op);
}

static int
start_zero (struct channel *ch, uint64_t len, uint64_t offset, bool allocate, channel_done done,
            void *opaque)
{
  if (!ch->ep->info.can_zero) {
    errno = ENOTSUP;
    return -1;
  }

  struct op *op = op_new (ch, OP_ZERO, len, offset, UINT64_C (1) << 30, opaque);
  if (!op)
    return -1;
  op->allocate = allocate;
  op->done = done;
  return op_start (op);
}

int
channel_zero (struct channel *ch, uint64_t len, uint64_t offset, channel_done done, void *opaque)
{
  return start_zero (ch, len, offset, false, done, opaque);
}

int
channel_zero_allocated (struct channel *ch, uint64_t len, uint64_t offset, channel_done done,
                        void *opaque)
{
  return start_zero (ch, len, offset, true, done, opaque);
}

static int
start_status (struct channel *ch, uint64_t len, uint64_t offset, bool first_only,
              channel_status_done done, void *opaque)
{
  if (!ch->ep->info.can_status) {
    errno = ENOTSUP;
    return -1;
  }

  struct op *op = op_new (ch, OP_STATUS, len, offset, UINT64_MAX, opaque);
  if (!op)
    return -1;
  op->status_done = done;
  op->first_only = first_only;
  op->nr_extents = 0;
  if (op->len > ENDPOINT_MAX_STATUS)
    op->len = ENDPOINT_MAX_STATUS;
  if (!op->extents)
    op->extents = calloc (ENDPOINT_MAX_EXTENTS, sizeof *op->extents);
  if (!op->extents) {
    list_remove (&ch->in_flight, op);
    op_free (op);
    errno = ENOMEM;
    return -1;
  }
  return op_start (op);
}

int
channel_status (struct channel *ch, uint64_t len, uint64_t offset, channel_status_done done,
                void *opaque)
{
  return start_status (ch, len, offset, false, done, opaque);
}

int
channel_first_extent (struct channel *ch, uint64_t len, uint64_t offset, channel_status_done done,
                      void *opaque)
{
  return start_status (ch, len, offset, true, done, opaque);
}

int
channel_flush (struct channel *ch, channel_done done, void *opaque)
{
  if (!ch->ep->info.can_flush) {
    errno = ENOTSUP;
    return -1;
  }

  struct op *op = op_new (ch, OP_FLUSH, 0, 0, 0, opaque);
  if (!op)
    return -1;
  op->done = done;
  return op_start (op);
}
