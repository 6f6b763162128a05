/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * NBD exports, through libnbd.
 *
 * A channel has one or more connections (one libnbd handle each); a request goes to the one with
 * the fewest in flight.  libnbd calls back under the handle's lock: the callbacks only note the
 * result.  libnbd has no time limits, so all of them are kept here, on coarse monotonic time:
 *
 *   connecting     all of TCP, TLS and NBD negotiation within connect_timeout_ms;
 *   requests       a connection with requests in flight must answer one of them at least every
 *                  request_timeout_ms, and each of them within LATEST times that.  So a slow line
 *                  with a long queue is not taken for a dead one;
 *   disconnecting  at most GOODBYE_MS.
 *
 * The handles of a dead channel are closed before the requests are completed: nothing of
 * libnbd uses their buffers then.
 */

#include "config.h"

#include "mirror/endpoint-internal.h"
#include "mirror/endpoint-command.h"

#include <errno.h>
#include <libnbd.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define ALLOCATION "base:allocation"
#define LATEST 10
#define GOODBYE_MS 1000
#define SOCKET_BUFFER (1 << 20)

struct nbd_endpoint {
  struct endpoint ep;
  bool is_uri;
  struct command *command;              /* else */
  _Atomic (struct nbd_handle *) first; /* endpoint_open()'s connection, for the first channel */
};

struct conn {
  struct nbd_handle *h;
  unsigned in_flight;
  int64_t heard; /* now_ms() of the last reply, or of when it became busy */
  unsigned replies;
};

struct nbd_channel {
  struct channel ch;
  bool stopping;
  uint64_t status_ask; /* how much status to ask for: less where the answers are too long */
  unsigned nr_conns;
  struct conn conns[CHANNEL_MAX_FDS];
};

/* ---- Errors ----------------------------------------------------------------------------- */

/* Whether libnbd's last error in this thread is that the server hung up.  How that shows depends on what
 * was under way: end of file (which has no errno), ECONNRESET or EPIPE. */
static bool
hung_up (void)
{
  const char *s = nbd_get_error ();
  int err = nbd_get_errno ();

  return err == EPIPE || err == ECONNRESET || (err == 0 && (!s || strstr (s, "disconnected")));
}

/* The last error, without the name of the function that was called. */
static const char *
reason (void)
{
  const char *s = nbd_get_error ();
  const char *colon;

  if (hung_up ())
    return "the server closed the connection";
  colon = strstr (s, ": ");
  if (strncmp (s, "nbd_", 4) == 0 && colon)
    s = colon + 2;
  return s;
}

static int
reason_errno (void)
{
  int err = nbd_get_errno ();

  return hung_up () ? ECONNRESET : err ? err : EPROTO; /* 0: what came was no NBD */
}

/* ---- Connecting ------------------------------------------------------------------------- */

/* Poll for H once.  0, or -1 when there is nothing to wait for any more. */
static int
poll_handle (struct nbd_handle *h, int timeout_ms)
{
  unsigned dir = nbd_aio_get_direction (h);
  struct pollfd pfd = { .fd = nbd_aio_get_fd (h) };

  if (dir & LIBNBD_AIO_DIRECTION_READ)
    pfd.events |= POLLIN;
  if (dir & LIBNBD_AIO_DIRECTION_WRITE)
    pfd.events |= POLLOUT;
  if (poll (&pfd, 1, timeout_ms) <= 0)
    return 0;
  if ((dir & LIBNBD_AIO_DIRECTION_READ) && (pfd.revents & (POLLIN | POLLERR | POLLHUP | POLLNVAL)))
    return nbd_aio_notify_read (h);
  return nbd_aio_notify_write (h);
}

static bool
is_over (struct nbd_handle *h)
{
  return nbd_aio_is_dead (h) == 1 || nbd_aio_is_closed (h) == 1;
}

static int
start_connecting (struct nbd_endpoint *nep, struct nbd_handle *h)
{
  nbd_set_pread_initialize (h, false);
  /* Certificates are named in the URI.  nbds:// makes libnbd require TLS. */
  if (nbd_set_uri_allow_local_file (h, true) == -1 || nbd_add_meta_context (h, ALLOCATION) == -1)
    return -1;
  if (nep->is_uri)
    return nbd_aio_connect_uri (h, nep->ep.name);
  return nbd_aio_connect_unix (h, command_socket (nep->command));
}

static void
connect_failed (struct nbd_endpoint *nep, int *errnum, char **error)
{
  char *ended = nep->command ? command_ended (nep->command) : NULL;
  int err = ended ? ECONNREFUSED : reason_errno ();

  endpoint_fail (errnum, error, err, "%s: %s", nep->ep.name, ended ? ended : reason ());
  free (ended);
}

/* A unix socket's default of 208 KiB does not hold one request: the rest of it waits for the server to
 * read, with two more switches between the processes.  TCP's buffers grow by themselves. */
static void
enlarge_buffer (int fd)
{
  int domain = AF_UNSPEC, size = SOCKET_BUFFER;
  socklen_t len = sizeof domain;

  if (getsockopt (fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX)
    (void) setsockopt (fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size); /* or what is allowed */
}

/* A connection that is ready for requests.  NULL with *ERRNUM and *ERROR. */
static struct nbd_handle *
connect_handle (struct nbd_endpoint *nep, int *errnum, char **error)
{
  int timeout_ms = nep->ep.opts.connect_timeout_ms;
  int64_t deadline = now_ms () + timeout_ms;
  struct nbd_handle *h = nbd_create ();
  int r;

  if (!h) {
    endpoint_fail (errnum, error, reason_errno (), "%s: %s", nep->ep.name, reason ());
    return NULL;
  }
  r = start_connecting (nep, h);
  while (r == 0 && !nbd_aio_is_ready (h) && !is_over (h)) {
    int64_t left = deadline - now_ms ();

    if (left <= 0) {
      endpoint_fail (errnum, error, ETIMEDOUT, "%s: no connection within %g s: %s", nep->ep.name,
                     timeout_ms / 1000.0,
                     nbd_aio_is_connecting (h) == 1 && nbd_get_protocol (h) == NULL
                         ? "the server does not answer"
                         : "the server does not answer as an NBD server does");
      nbd_close (h);
      return NULL;
    }
    r = poll_handle (h, (int) left);
  }
  if (r == -1 || !nbd_aio_is_ready (h)) {
    connect_failed (nep, errnum, error);
    nbd_close (h);
    return NULL;
  }
  if (nep->is_uri && strncmp (nep->ep.name, "nbds", 4) == 0 && nbd_get_tls_negotiated (h) != 1) {
    endpoint_fail (errnum, error, EPROTO, "%s: the connection is not encrypted", nep->ep.name);
    nbd_close (h);
    return NULL;
  }
  enlarge_buffer (nbd_aio_get_fd (h));
  return h;
}

/* ---- What the export is ----------------------------------------------------------------- */

static int
describe (struct nbd_endpoint *nep, struct nbd_handle *h, struct endpoint_info *info,
          int *errnum, char **error)
{
  int64_t size = nbd_get_size (h);
  int64_t min = nbd_get_block_size (h, LIBNBD_SIZE_MINIMUM);
  int64_t max = nbd_get_block_size (h, LIBNBD_SIZE_MAXIMUM);

  if (size < 0) {
    endpoint_fail (errnum, error, reason_errno (), "%s: %s", nep->ep.name, reason ());
    return -1;
  }
  if (min <= 0)
    min = 1;
  if (max <= 0 || max > ENDPOINT_MAX_REQUEST)
    max = ENDPOINT_MAX_REQUEST;
  max -= max % min;
  if (max == 0) {
    endpoint_fail (errnum, error, EPROTO, "%s: the server's smallest block, %lld bytes, is too large",
                   nep->ep.name, (long long) min);
    return -1;
  }
  *info = (struct endpoint_info){
    .size = (uint64_t) size,
    .min_block = (uint32_t) min,
    .max_request = (uint32_t) max,
    .is_nbd = true,
    .read_only = nbd_is_read_only (h) == 1,
    .can_flush = nbd_can_flush (h) == 1,
    .can_zero = nbd_can_zero (h) == 1,
    .can_multi_conn = nbd_can_multi_conn (h) == 1,
    .can_status = nbd_can_meta_context (h, ALLOCATION) == 1,
    .is_rotational = nbd_is_rotational (h) == 1,
  };
  if (nep->ep.opts.writable && info->read_only) {
    endpoint_fail (errnum, error, EROFS, "%s: the export is read-only", nep->ep.name);
    return -1;
  }
  return 0;
}

/* Another connection for a channel: to the same export, as far as can be told. */
static struct nbd_handle *
connect_again (struct nbd_endpoint *nep, int *errnum, char **error)
{
  const struct endpoint_info *first = &nep->ep.info;
  struct nbd_handle *h = connect_handle (nep, errnum, error);
  struct endpoint_info info;

  if (!h)
    return NULL;
  if (describe (nep, h, &info, errnum, error) == -1) {
    nbd_close (h);
    return NULL;
  }
  if (info.size != first->size)
    endpoint_fail (errnum, error, ESTALE, "%s: the export's size was %llu bytes and is %llu now",
                   nep->ep.name, (unsigned long long) first->size,
                   (unsigned long long) info.size);
  else if (info.min_block != first->min_block || info.max_request != first->max_request ||
           info.read_only != first->read_only || info.can_flush != first->can_flush ||
           info.can_zero != first->can_zero || info.can_multi_conn != first->can_multi_conn ||
           info.can_status != first->can_status)
    endpoint_fail (errnum, error, ESTALE,
                   "%s: another connection found an export with other capabilities",
                   nep->ep.name);
  else
    return h;
  nbd_close (h);
  return NULL;
}

/* ---- Requests --------------------------------------------------------------------------- */

static int
completed (void *opaque, int *error)
{
  struct op *op = opaque;
  struct nbd_channel *nc = (struct nbd_channel *) op->ch;
  struct conn *c = op->private;
  int err = *error;

  if (nc->stopping)
    return 1;
  c->in_flight--;
  c->replies++;
  if (op->kind == OP_STATUS && err == 0 && op->nr_extents == 0)
    err = EPROTO;
  /* What libnbd says of requests that were in flight when the connection broke. */
  if (err == ENOTCONN)
    err = ESHUTDOWN;
  op_done (op, err);
  return 1;
}

static int
got_extents (void *opaque, const char *context, uint64_t offset, uint32_t *entries,
             size_t nr_entries, int *error)
{
  struct op *op = opaque;
  struct nbd_channel *nc = (struct nbd_channel *) op->ch;
  uint64_t left = op->len;

  if (nc->stopping || strcmp (context, ALLOCATION) != 0 || op->nr_extents > 0)
    return 0;
  if (offset != op->offset) {
    *error = EPROTO;
    return -1;
  }
  for (size_t i = 0; i + 1 < nr_entries && left > 0; i += 2) {
    uint64_t length = entries[i] < left ? entries[i] : left;

    if (length == 0)
      break;
    if (!op_add_extent (op, length, (entries[i + 1] & LIBNBD_STATE_ZERO) != 0))
      break;
    left -= length;
  }
  /* A server that lists a fragmented disk does work for extents that have no room here. */
  if (left > 0 && op->nr_extents == ENDPOINT_MAX_EXTENTS)
    nc->status_ask = op->len / 2 > 1048576 ? op->len / 2 & ~UINT64_C (65535) : 1048576;
  else if (op->nr_extents < ENDPOINT_MAX_EXTENTS / 4 && nc->status_ask < ENDPOINT_MAX_STATUS)
    nc->status_ask = nc->status_ask > ENDPOINT_MAX_STATUS / 2 ? ENDPOINT_MAX_STATUS
                                                             : nc->status_ask * 2;
  return 0;
}

static struct conn *
least_busy (struct nbd_channel *nc)
{
  struct conn *best = &nc->conns[0];

  for (unsigned i = 1; i < nc->nr_conns; i++)
    if (nc->conns[i].in_flight < best->in_flight)
      best = &nc->conns[i];
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
    return nbd_aio_pwrite (c->h, op->buf, op->len, op->offset, done, 0);
  case OP_ZERO:
    return nbd_aio_zero (c->h, op->len, op->offset, done, 0);
  case OP_STATUS:
    if (op->len > nc->status_ask)
      op->len = nc->status_ask;
    return nbd_aio_block_status (c->h, op->len, op->offset, extents, done, 0);
  case OP_FLUSH:
    return nbd_aio_flush (c->h, done, 0);
  }
  return -1;
}

static int
nbd_start (struct channel *ch, struct op *op)
{
  struct nbd_channel *nc = (struct nbd_channel *) ch;
  struct conn *c = least_busy (nc);
  int err;

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
    c->heard = op->started;
  /* completed() may run within this, for this request and for others. */
  if (submit (nc, c, op) != -1) {
    /* It can break while it sends; then only libnbd's last error says why. */
    if (is_over (c->h))
      channel_die (ch, "%s: %s", ch->ep->name, reason ());
    return 0;
  }
  c->in_flight--;
  err = nbd_get_errno ();
  if (is_over (c->h)) {
    channel_die (ch, "%s: the connection is broken", ch->ep->name);
    err = ESHUTDOWN;
  }
  errno = err ? err : EIO;
  return -1;
}

static const char *
describe_op (const struct op *op, char *buf, size_t size)
{
  static const char *const names[] = { "a read", "a write", "a write of zeroes",
                                       "a block status request", "a flush" };

  if (op->kind == OP_FLUSH)
    snprintf (buf, size, "%s", names[op->kind]);
  else
    snprintf (buf, size, "%s of %llu bytes at %llu", names[op->kind],
              (unsigned long long) op->len, (unsigned long long) op->offset);
  return buf;
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
    if (nc->conns[i].in_flight > 0 && nc->conns[i].heard + timeout < first)
      first = nc->conns[i].heard + timeout;
  return first;
}

/* The request that made the deadline pass. */
static struct op *
late_op (const struct nbd_channel *nc, int64_t now)
{
  int64_t timeout = nc->ch.ep->opts.request_timeout_ms;

  for (struct op *op = nc->ch.in_flight.first; op; op = op->next) {
    const struct conn *c = op->private;

    if (now >= op->started + LATEST * timeout || now >= c->heard + timeout)
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
  channel_die (&nc->ch, "%s: no reply to %s within %g s", nc->ch.ep->name,
               describe_op (op, what, sizeof what), (double) timeout / 1000.0);
  op->error = ETIMEDOUT;
}

/* ---- Channels --------------------------------------------------------------------------- */

static unsigned
nbd_pollfds (struct channel *ch, struct pollfd *fds, unsigned max, int64_t now, int *timeout_ms)
{
  struct nbd_channel *nc = (struct nbd_channel *) ch;
  int64_t last = deadline (nc);
  unsigned nr = 0;

  /* One more than is left: now_ms() is coarse, and a poll() too short would be repeated. */
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
  return nr;
}

/* -1 if the connection is broken. */
static int
handle_events (struct conn *c, short revents)
{
  if ((revents & (POLLIN | POLLERR | POLLHUP | POLLNVAL)) &&
      (nbd_aio_get_direction (c->h) & LIBNBD_AIO_DIRECTION_READ)) {
    /* Once only, though more replies may be there: with nothing to read libnbd would stop sending
     * until the next reply, which may need what is not sent yet. */
    if (nbd_aio_notify_read (c->h) == -1)
      return -1;
    revents &= ~(POLLERR | POLLHUP | POLLNVAL);
  }
  if ((revents & (POLLOUT | POLLERR | POLLHUP | POLLNVAL)) &&
      (nbd_aio_get_direction (c->h) & LIBNBD_AIO_DIRECTION_WRITE))
    return nbd_aio_notify_write (c->h);
  return 0;
}

static void
nbd_dispatch (struct channel *ch, const struct pollfd *fds, unsigned nr, int64_t now)
{
  struct nbd_channel *nc = (struct nbd_channel *) ch;

  for (unsigned i = 0; i < nr && i < nc->nr_conns; i++) {
    struct conn *c = &nc->conns[i];
    unsigned before = c->replies;
    int r = handle_events (c, fds[i].revents);

    if (c->replies != before)
      c->heard = now;
    if (r == -1 || is_over (c->h)) {
      channel_die (ch, "%s: %s", ch->ep->name, r == -1 ? reason () : "the server closed the connection");
      return;
    }
  }
  check_time (nc, now);
}

/* Say goodbye, if that can be done politely, and close. */
static void
close_handle (struct nbd_handle *h, bool polite)
{
  int64_t until = now_ms () + GOODBYE_MS;

  if (polite && nbd_aio_is_ready (h) == 1 && nbd_aio_disconnect (h, 0) == 0)
    while (!is_over (h) && now_ms () < until)
      if (poll_handle (h, GOODBYE_MS) == -1)
        break;
  nbd_close (h);
}

static void
nbd_stop (struct channel *ch)
{
  struct nbd_channel *nc = (struct nbd_channel *) ch;
  bool idle = true;

  nc->stopping = true;
  for (unsigned i = 0; i < nc->nr_conns; i++)
    if (nc->conns[i].in_flight > 0)
      idle = false;
  for (unsigned i = 0; i < nc->nr_conns; i++)
    close_handle (nc->conns[i].h, idle);
  nc->nr_conns = 0;
}

static void
nbd_channel_free (struct channel *ch)
{
  channel_uninit (ch);
  free (ch);
}

static struct channel *
nbd_channel_open (struct endpoint *ep, int *errnum, char **error)
{
  struct nbd_endpoint *nep = (struct nbd_endpoint *) ep;
  struct nbd_channel *nc = calloc (1, sizeof *nc);
  unsigned nr = ep->opts.nr_connections;

  if (nr == 0)
    nr = ep->opts.nr_in_flight == 1 && ep->info.can_multi_conn ? 4 : 1;
  if (!nc || channel_init (&nc->ch, ep, nr * ep->opts.nr_in_flight) == -1) {
    free (nc);
    endpoint_fail (errnum, error, ENOMEM, "%s: %s", ep->name, strerror (ENOMEM));
    return NULL;
  }
  nc->status_ask = ENDPOINT_MAX_STATUS - ENDPOINT_MAX_STATUS % ep->info.min_block;
  while (nc->nr_conns < nr) {
    struct nbd_handle *h = atomic_exchange (&nep->first, NULL);

    if (!h)
      h = connect_again (nep, errnum, error);
    if (!h) {
      nbd_stop (&nc->ch);
      nbd_channel_free (&nc->ch);
      return NULL;
    }
    nc->conns[nc->nr_conns++].h = h;
  }
  return &nc->ch;
}

static void
nbd_endpoint_close (struct endpoint *ep)
{
  struct nbd_endpoint *nep = (struct nbd_endpoint *) ep;
  struct nbd_handle *h = atomic_exchange (&nep->first, NULL);

  if (h)
    close_handle (h, true);
  if (nep->command)
    command_stop (nep->command);
  free (ep->name);
  free (nep);
}

static const struct endpoint_ops nbd_ops = {
  .close = nbd_endpoint_close,
  .channel_open = nbd_channel_open,
  .stop = nbd_stop,
  .channel_free = nbd_channel_free,
  .start = nbd_start,
  .pollfds = nbd_pollfds,
  .dispatch = nbd_dispatch,
};

struct endpoint *
endpoint_nbd_open (const char *name, char *const *argv, const struct endpoint_options *opts,
                   int *errnum, char **error)
{
  struct nbd_endpoint *nep = calloc (1, sizeof *nep);
  struct nbd_handle *h;

  if (!nep || !(nep->ep.name = strdup (name))) {
    free (nep);
    endpoint_fail (errnum, error, ENOMEM, "%s: %s", name, strerror (ENOMEM));
    return NULL;
  }
  nep->ep.ops = &nbd_ops;
  nep->ep.opts = *opts;
  nep->is_uri = argv == NULL;
  if (argv && !(nep->command = command_start (name, argv, errnum, error)))
    goto fail;
  h = connect_handle (nep, errnum, error);
  if (!h)
    goto fail;
  atomic_store (&nep->first, h);
  if (describe (nep, h, &nep->ep.info, errnum, error) == -1)
    goto fail;
  return &nep->ep;

fail:
  nbd_endpoint_close (&nep->ep);
  return NULL;
}
