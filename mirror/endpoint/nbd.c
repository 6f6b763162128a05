/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Requests to NBD exports, through libnbd.  (nbd-connect.c makes the connections.)
 *
 * A channel has one or more connections (one libnbd handle each); a request goes to the one with
 * the fewest in flight.  libnbd calls back under the handle's lock: the callbacks only note the
 * result.  libnbd has no time limits, so they are kept here, on coarse monotonic time: a
 * connection with requests in flight must answer one of them at least every request_timeout_ms, and
 * each of them within LATEST times that.  So a slow line with a long queue is not taken for a
 * dead one.  While it flushes it may be silent for NBD_FLUSH_TIMES as long: a server that wrote to
 * its page cache then waits for the disk, and many keep everything else waiting meanwhile.
 *
 * The handles of a dead channel are closed before the requests are completed: nothing of
 * libnbd uses their buffers then.
 */

#include "config.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/endpoint/nbd.h"

/* Requests of one connection that a server works on at a time: nbdkit and qemu-nbd take 16. */
#define SERVER_DEPTH 16
#define LATEST 10
#define DRAIN_MS 300  /* of what the server has to answer when it is not wanted any more */
#define AGAIN_MS 1000 /* so long a server is asked again that admits no more, with none open */
#define POLL_MS 100
#define WAITED_MS 500 /* who takes so long to refuse a connection has left it in its backlog */

struct conn {
  struct nbd_handle *h;
  unsigned in_flight;
  unsigned flushes; /* of those */
  int64_t heard;    /* endpoint_now_ms() of the last reply, or of when it became busy */
  unsigned replies;
};

struct nbd_channel {
  struct channel ch;
  bool stopping;
  uint64_t status_ask;         /* how much status to ask for: less where the answers are too long */
  struct squeeze_queue *queue; /* where writes are compressed; or NULL */
  unsigned nr_conns;
  unsigned turn; /* the next one, where they take turns */
  struct conn conns[CHANNEL_MAX_FDS];
};

/* ---- Requests --------------------------------------------------------------------------- */

static int
completed (void *opaque, int *error)
{
  struct op *op = opaque;
  struct nbd_channel *nc = (struct nbd_channel *)op->ch;
  struct conn *c = op->private;
  int err = *error;

  c->in_flight--;
  if (nc->stopping)
    return 1;
  if (op->kind == OP_FLUSH)
    c->flushes--;
  c->replies++;
  if (op->kind == OP_STATUS && err == 0 && op->nr_extents == 0)
    err = EPROTO;
  /* What libnbd says of requests that were in flight when the connection broke. */
  if (err == ENOTCONN)
    err = ESHUTDOWN;
  if (op->kind == OP_WRITE && nc->queue)
    squeeze_end (nc->queue, &op->squeeze, err == 0);
  op_done (op, err);
  return 1;
}

static int
got_extents (void *opaque, const char *context, uint64_t offset, uint32_t *entries,
             size_t nr_entries, int *error)
{
  struct op *op = opaque;
  struct nbd_channel *nc = (struct nbd_channel *)op->ch;

  return nc->stopping
             ? 0
             : nbd_take_extents (op, &nc->status_ask, context, offset, entries, nr_entries, error);
}

/* The first connection that has room for one more at its server, or else the least busy one.  On a
 * short line one connection is enough, and to spread few requests over many costs processor time at
 * both ends. */
static struct conn *
choose_connection (struct nbd_channel *nc)
{
  unsigned most = nc->ch.ep->opts.nr_in_flight, enough = most < SERVER_DEPTH ? most : SERVER_DEPTH;
  struct conn *best = &nc->conns[0];

  if (nc->ch.in_turn)
    return &nc->conns[nc->turn++ % nc->nr_conns];
  for (unsigned i = 0; i < nc->nr_conns; i++) {
    if (nc->conns[i].in_flight < enough)
      return &nc->conns[i];
    if (nc->conns[i].in_flight < best->in_flight)
      best = &nc->conns[i];
  }
  return best;
}

static int64_t
submit (struct nbd_channel *nc, struct conn *c, struct op *op)
{
  nbd_completion_callback done = { .callback = completed, .user_data = op };
  nbd_extent_callback extents = { .callback = got_extents, .user_data = op };

  switch (op->kind) {
  case OP_READ:
    return nbd_aio_pread (c->h, op->buf, op->len, op->offset, done, 0);
  case OP_WRITE:
    if (nc->queue)
      return nbd_packed_write (c->h, op, done);
    return nbd_aio_pwrite (c->h, op->buf, op->len, op->offset, done, 0);
  case OP_ZERO:
    return nbd_aio_zero (c->h, op->len, op->offset, done,
                         op->allocate ? LIBNBD_CMD_FLAG_NO_HOLE : 0);
  case OP_STATUS:
    if (op->len > nc->status_ask)
      op->len = nc->status_ask;
    op->nr_contexts = 0;
    return nbd_aio_block_status (c->h, op->len, op->offset, extents, done,
                                 op->first_only ? LIBNBD_CMD_FLAG_REQ_ONE : 0);
  case OP_FLUSH:
    return nbd_aio_flush (c->h, done, 0);
  }
  return -1;
}

/* Give OP to a connection.  -1 with errno. */
static int
send_op (struct nbd_channel *nc, struct op *op)
{
  struct channel *ch = &nc->ch;
  struct conn *c = choose_connection (nc);

  if (op->kind == OP_FLUSH && nc->nr_conns > 1 && !ch->ep->info.can_multi_conn) {
    errno = ENOTSUP; /* it would cover one connection of several */
    return -1;
  }
  if (c->in_flight >= ch->ep->opts.nr_in_flight && ch->ep->opts.nr_in_flight == 1) {
    errno = EAGAIN; /* a flush: one more is one too many */
    return -1;
  }
  op->private = c;
  if (c->in_flight++ == 0)
    c->heard = endpoint_now_ms (); /* OP may have been started long ago, and been compressed */
  if (op->kind == OP_FLUSH)
    c->flushes++;
  /* completed() may run within this, for this request and for others. */
  if (submit (nc, c, op) != -1) {
    /* It can break while it sends; then only libnbd's last error says why. */
    if (nbd_is_over (c->h))
      channel_die (ch, "%s: %s", ch->ep->name, nbd_reason ());
    return 0;
  }
  c->in_flight--;
  if (op->kind == OP_FLUSH)
    c->flushes--;

  int err = nbd_get_errno ();
  if (nbd_is_over (c->h)) {
    channel_die (ch, "%s: the connection is broken", ch->ep->name);
    err = ESHUTDOWN;
  }
  errno = err ? err : EIO;
  return -1;
}

static int
nbd_start (struct channel *ch, struct op *op)
{
  struct nbd_channel *nc = (struct nbd_channel *)ch;

  if (op->kind != OP_WRITE || !nc->queue)
    return send_op (nc, op);
  if (nbd_packed_begin (nc->queue, op))
    return 0;
  if (send_op (nc, op) == 0)
    return 0;
  int err = errno;
  squeeze_end (nc->queue, &op->squeeze, false);
  errno = err;
  return -1;
}

/* Send what the compressor is done with. */
static void
send_packed (struct nbd_channel *nc)
{
  struct op *op;

  while (!nc->ch.error && (op = nbd_packed_next (nc->queue)))
    if (send_op (nc, op) == -1) {
      int err = errno;
      squeeze_end (nc->queue, &op->squeeze, false);
      op_done (op, err);
    }
}

static const char *
describe_op (const struct op *op, char *buf, size_t size)
{
  static const char *const names[]
      = { "a read", "a write", "a write of zeroes", "a block status request", "a flush" };

  if (op->kind == OP_FLUSH)
    snprintf (buf, size, "%s", names[op->kind]);
  else
    snprintf (buf, size, "%s of %llu bytes at %llu", names[op->kind], (unsigned long long)op->len,
              (unsigned long long)op->offset);
  return buf;
}

/* How long this connection may be silent. */
static int64_t
patience (const struct nbd_channel *nc, const struct conn *c)
{
  return (c->flushes > 0 ? NBD_FLUSH_TIMES : 1) * (int64_t)nc->ch.ep->opts.request_timeout_ms;
}

/* When the requests of a channel are too late at the latest; INT64_MAX if there are none. */
static int64_t
deadline (const struct nbd_channel *nc)
{
  int64_t timeout = nc->ch.ep->opts.request_timeout_ms;
  int64_t first = INT64_MAX;

  if (nc->ch.in_flight.first)
    first = nc->ch.in_flight.first->started + LATEST * timeout;
  for (unsigned i = 0; i < nc->nr_conns; i++)
    if (nc->conns[i].in_flight > 0 && nc->conns[i].heard + patience (nc, &nc->conns[i]) < first)
      first = nc->conns[i].heard + patience (nc, &nc->conns[i]);
  return first;
}

/* The request that made the deadline pass. */
static struct op *
late_op (const struct nbd_channel *nc, int64_t now)
{
  int64_t timeout = nc->ch.ep->opts.request_timeout_ms;

  for (struct op *op = nc->ch.in_flight.first; op; op = op->next) {
    const struct conn *c = op->private;

    if (now >= op->started + LATEST * timeout || (c && now >= c->heard + patience (nc, c)))
      return op;
  }
  return NULL;
}

static void
check_time (struct nbd_channel *nc, int64_t now)
{
  int64_t timeout = nc->ch.ep->opts.request_timeout_ms;
  struct op *op;
  char what[100];

  if (now < deadline (nc) || !(op = late_op (nc, now)))
    return;
  if (now >= op->started + LATEST * timeout)
    timeout *= LATEST;
  else
    timeout = patience (nc, op->private);
  channel_die (&nc->ch, "%s: no reply to %s within %g s", nc->ch.ep->name,
               describe_op (op, what, sizeof what), (double)timeout / 1000.0);
  op->error = ETIMEDOUT;
}

/* ---- Channels --------------------------------------------------------------------------- */

static unsigned
nbd_pollfds (struct channel *ch, struct pollfd *fds, unsigned max, int64_t now, int *timeout_ms)
{
  struct nbd_channel *nc = (struct nbd_channel *)ch;
  int64_t last = deadline (nc);
  unsigned nr = 0;

  /* One more than is left: endpoint_now_ms() is coarse, and a poll() too short would be repeated.
   */
  if (last != INT64_MAX)
    lower_timeout (timeout_ms, last - now + 1);
  for (; nr < nc->nr_conns && nr < max; nr++) {
    unsigned dir = nbd_aio_get_direction (nc->conns[nr].h);

    fds[nr] = (struct pollfd){ .fd = nbd_aio_get_fd (nc->conns[nr].h) };
    if (dir & LIBNBD_AIO_DIRECTION_READ)
      fds[nr].events |= POLLIN;
    if (dir & LIBNBD_AIO_DIRECTION_WRITE)
      fds[nr].events |= POLLOUT;
    if (fds[nr].fd == -1)
      lower_timeout (timeout_ms, 0); /* it broke while a request was started */
  }
  if (nc->queue && nr < max)
    fds[nr++] = (struct pollfd){ .fd = squeeze_queue_fd (nc->queue), .events = POLLIN };
  return nr;
}

/* -1 if the connection is broken. */
static int
handle_events (struct conn *c, short revents)
{
  if ((revents & (POLLIN | POLLERR | POLLHUP | POLLNVAL))
      && (nbd_aio_get_direction (c->h) & LIBNBD_AIO_DIRECTION_READ)) {
    /* Once only, though more replies may be there: with nothing to read libnbd would stop sending
     * until the next reply, which may need what is not sent yet. */
    if (nbd_aio_notify_read (c->h) == -1)
      return -1;
    revents &= ~(POLLERR | POLLHUP | POLLNVAL);
  }
  if ((revents & (POLLOUT | POLLERR | POLLHUP | POLLNVAL))
      && (nbd_aio_get_direction (c->h) & LIBNBD_AIO_DIRECTION_WRITE))
    return nbd_aio_notify_write (c->h);
  return 0;
}

static void
nbd_dispatch (struct channel *ch, const struct pollfd *fds, unsigned nr, int64_t now)
{
  struct nbd_channel *nc = (struct nbd_channel *)ch;

  for (unsigned i = 0; i < nr && i < nc->nr_conns; i++) {
    struct conn *c = &nc->conns[i];
    unsigned before = c->replies;
    int r = handle_events (c, fds[i].revents);

    if (c->replies != before)
      c->heard = now;
    if (r == -1 || nbd_is_over (c->h)) {
      channel_die (ch, "%s: %s", ch->ep->name,
                   r == -1 ? nbd_reason () : "the server closed the connection");
      return;
    }
  }
  if (nr > nc->nr_conns && fds[nc->nr_conns].revents)
    send_packed (nc);
  check_time (nc, now);
}

/* A command's stdin and stdout are its only connection, so the next channel needs it again. */
static bool
hand_back (struct nbd_channel *nc)
{
  struct nbd_endpoint *nep = (struct nbd_endpoint *)nc->ch.ep;
  struct nbd_handle *none = NULL;

  return nep->has_stdio && nc->nr_conns == 1 && nc->ch.was_alive && !nbd_is_over (nc->conns[0].h)
         && atomic_compare_exchange_strong (&nep->first, &none, nc->conns[0].h);
}

/* Wait for the answers that are on their way, so that the server is not left in the middle of one:
 * qemu-nbd complains of each.  They are dropped.  False: not all have come. */
static bool
drain (struct nbd_channel *nc)
{
  int64_t until = endpoint_now_ms () + DRAIN_MS;

  for (unsigned i = 0; i < nc->nr_conns; i++) {
    struct conn *c = &nc->conns[i];
    while (c->in_flight > 0) {
      int64_t left = until - endpoint_now_ms ();
      if (left <= 0 || nbd_is_over (c->h) || nbd_poll_handle (c->h, (int)left) == -1)
        return false;
    }
  }
  return true;
}

static void
nbd_stop (struct channel *ch)
{
  struct nbd_channel *nc = (struct nbd_channel *)ch;
  struct nbd_endpoint *nep = (struct nbd_endpoint *)ch->ep;
  unsigned nr_taken = nc->nr_conns;
  bool idle = true, ours = nep->command != NULL && !nep->has_stdio, packs = nc->queue != NULL;

  nc->stopping = true;
  for (unsigned i = 0; i < nc->nr_conns; i++)
    if (nc->conns[i].in_flight > 0)
      idle = false;
  /* Only what is read: a channel that was given up may write nothing more, unless its server is a
   * command of ours, which ends with us. */
  if (!idle && ch->was_alive && (!ch->ep->opts.writable || ours))
    idle = drain (nc);
  if (idle && hand_back (nc))
    nc->nr_conns = 0;
  for (unsigned i = 0; i < nc->nr_conns; i++)
    nbd_close_handle (nc->conns[i].h, idle);
  nc->nr_conns = 0;
  atomic_fetch_sub (&nep->nr_taken, nr_taken);
  /* What the compressor and libnbd had of them is in use no more. */
  squeeze_queue_free (nc->queue);
  nc->queue = NULL;
  for (struct op *op = packs ? ch->in_flight.first : NULL; op; op = op->next)
    if (op->kind == OP_WRITE)
      squeeze_drop (&op->squeeze);
}

static void
nbd_channel_free (struct channel *ch)
{
  channel_uninit (ch);
  free (ch);
}

/* The connection that endpoint_open() made, one that was made ahead, or a new one. */
static struct nbd_handle *
take_connection (struct nbd_endpoint *nep, int *errnum, char **error)
{
  /* Counted before it is there: two threads that want the last one must not both get it. */
  unsigned have = atomic_fetch_add (&nep->nr_taken, 1), most = nep->ep.opts.nr_admitted;
  uint64_t begin_ms = clock_ms (), end_ms = begin_ms + AGAIN_MS;
  struct nbd_handle *h = atomic_exchange (&nep->first, NULL);
  struct nbd_attempt attempt;

  if (h != NULL)
    return h;
  if (most == 0)
    most = atomic_load (&nep->nr_admitted);
  if (nbd_ahead_take (&nep->ahead, &attempt)) {
    h = attempt.h;
    *errnum = attempt.errnum;
    *error = attempt.error;
  } else if (most > 0 && have >= most && nep->offered.can_multi_conn)
    endpoint_fail (errnum, error, ENDPOINT_FULL, "%s: it admits no more", nep->ep.name);
  else
    h = nbd_connect_again (nep, NULL, errnum, error);
  /* With none open it was refused beside one that is closed now, or that the server has not seen
   * closed yet. */
  while (h == NULL && have == 0 && *errnum == ENDPOINT_FULL && clock_ms () < end_ms) {
    text_free (*error);
    *error = NULL;
    clock_sleep_ms (POLL_MS);
    h = nbd_connect_again (nep, NULL, errnum, error);
  }
  if (h == NULL)
    atomic_fetch_sub (&nep->nr_taken, 1);
  if (h == NULL && *errnum == ENDPOINT_FULL) {
    atomic_store (&nep->ep.full, true);
    /* It would leave every other channel waiting as well, now and at each reconnection. */
    if (clock_ms () - begin_ms >= WAITED_MS)
      atomic_store (&nep->nr_admitted, have);
  }
  return h;
}

/* Connect NR times, or less often where the server admits no more.  -1 with *ERRNUM and *ERROR. */
static int
connect_all (struct nbd_endpoint *nep, struct nbd_channel *nc, unsigned nr, int *errnum,
             char **error)
{
  char *why = NULL;
  int err = 0;

  while (nc->nr_conns < nr) {
    struct nbd_handle *h = take_connection (nep, &err, &why);
    if (!h)
      break;
    nc->conns[nc->nr_conns++].h = h;
  }
  nc->ch.nr_connections = nc->nr_conns;
  if (nc->nr_conns == nr || (nc->nr_conns > 0 && err == ENDPOINT_FULL)) {
    text_free (why);
    return 0;
  }
  endpoint_fail (errnum, error, err, "%s", why);
  text_free (why);
  return -1;
}

static int
nbd_widen (struct channel *ch, int *errnum, char **error)
{
  struct nbd_channel *nc = (struct nbd_channel *)ch;
  struct nbd_endpoint *nep = (struct nbd_endpoint *)ch->ep;
  unsigned have = nc->nr_conns;
  int r = connect_all (nep, nc, nbd_connections_each (nep), errnum, error);

  ch->room += (nc->nr_conns - have) * ch->ep->opts.nr_in_flight;
  return r;
}

static struct channel *
nbd_channel_open (struct endpoint *ep, int *errnum, char **error)
{
  struct nbd_endpoint *nep = (struct nbd_endpoint *)ep;
  struct nbd_channel *nc = calloc (1, sizeof *nc);
  unsigned nr = nbd_connections_each (nep);

  if (!nc) {
    endpoint_fail (errnum, error, ENOMEM, "%s: %s", ep->name, strerror (ENOMEM));
    return NULL;
  }
  nc->ch.ep = ep;
  nc->status_ask = ENDPOINT_MAX_STATUS - ENDPOINT_MAX_STATUS % ep->info.min_block;
  /* The others are being made: there is no need to wait for them. */
  bool narrow = atomic_load (&nep->first) != NULL && nbd_ahead_has (&nep->ahead);
  if (connect_all (nep, nc, narrow ? 1 : nr, errnum, error) == 0) {
    nc->queue = nep->compressor ? squeeze_queue_new (nep->compressor) : NULL;
    if ((nc->queue || !nep->compressor)
        && channel_init (&nc->ch, ep, nr * ep->opts.nr_in_flight) == 0) {
      nc->ch.room = nc->nr_conns * ep->opts.nr_in_flight;
      return &nc->ch;
    }
    endpoint_fail (errnum, error, ENOMEM, "%s: %s", ep->name, strerror (ENOMEM));
  }
  nbd_stop (&nc->ch);
  nbd_channel_free (&nc->ch);
  return NULL;
}

const struct endpoint_ops nbd_ops = {
  .close = nbd_endpoint_close,
  .channel_open = nbd_channel_open,
  .widen = nbd_widen,
  .stop = nbd_stop,
  .channel_free = nbd_channel_free,
  .start = nbd_start,
  .pollfds = nbd_pollfds,
  .dispatch = nbd_dispatch,
};
