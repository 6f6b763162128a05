/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What an NBD export can do, and the endpoints that stand for exports.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "compress/pack.h"
#include "mirror/endpoint/command.h"
#include "mirror/endpoint/nbd.h"

/* Round trips of a handshake, at least: connecting, the greeting, three options. */
#define HANDSHAKE_TRIPS 5
#define FIRST_BYTES 4096u

/* ---- What the export is ----------------------------------------------------------------- */

static int
describe (struct nbd_endpoint *nep, struct nbd_handle *h, struct endpoint_info *info, int *errnum,
          char **error)
{
  int64_t size = nbd_get_size (h);
  int64_t min = nbd_get_block_size (h, LIBNBD_SIZE_MINIMUM);
  int64_t max = nbd_get_block_size (h, LIBNBD_SIZE_MAXIMUM);

  if (size < 0) {
    endpoint_fail (errnum, error, nbd_reason_errno (), "%s: %s", nep->ep.name, nbd_reason ());
    return -1;
  }
  if (nep->packed && (uint64_t)size < PACK_OFFSET) {
    endpoint_fail (errnum, error, EPROTO, "%s: the server's export for compressed writes is none",
                   nep->ep.name);
    return -1;
  }
  if (nep->packed)
    size -= (int64_t)PACK_OFFSET;
  if (nep->ep.opts.only > 0 && (uint64_t)size > nep->ep.opts.only)
    size = (int64_t)nep->ep.opts.only;
  if (min <= 0)
    min = 1;
  if (max <= 0 || max > ENDPOINT_MAX_REQUEST)
    max = ENDPOINT_MAX_REQUEST;
  max -= max % min;
  if (max == 0) {
    endpoint_fail (errnum, error, EPROTO,
                   "%s: the server's smallest block, %lld bytes, is too large", nep->ep.name,
                   (long long)min);
    return -1;
  }
  *info = (struct endpoint_info){
    .size = (uint64_t)size,
    .min_block = (uint32_t)min,
    .max_request = (uint32_t)max,
    .is_nbd = true,
    .is_receive = nep->session[0] != '\0' || (nep->has_stdio && nep->ep.opts.writable),
    .read_only = nbd_is_read_only (h) == 1,
    .can_flush = nbd_can_flush (h) == 1,
    .can_zero = nbd_can_zero (h) == 1,
    .can_multi_conn = nbd_can_multi_conn (h) == 1,
    .can_status = nbd_can_meta_context (h, ALLOCATION) == 1,
    .can_layers = nbd_can_meta_context (h, ALLOCATION) == 1
                  && (nep->layers_export != NULL
                      || (nep->ep.opts.layers && nbd_can_meta_context (h, LAYERS) == 1)),
    .is_rotational = nbd_is_rotational (h) == 1,
    .has_digests = nep->has_digests,
    .digests_of = nep->digests_of,
  };
  if (nep->session[0] != '\0' && info->read_only) {
    endpoint_fail (errnum, error, EROFS,
                   "%s: another mirror writes there now, or did: it has taken our place, and what"
                   " the disk holds is not what we have sent (two mirrors with one destination?)",
                   nep->ep.name);
    return -1;
  }
  if (nep->ep.opts.writable && info->read_only) {
    endpoint_fail (errnum, error, EROFS, "%s: the export is read-only", nep->ep.name);
    return -1;
  }
  return 0;
}

/* Is that how a server behaves that takes no more connections?  It may also have gone: its other
 * connections will tell.  A server that has taken the connection may refuse the export, which the
 * first connection has: nbdkit 1.42 with a limit says ENOENT, and a policy is EPERM; of an export
 * of digests it is always ENOTSUP.  `receive` refuses one where it refuses the session, which is no
 * matter of their number. */
static bool
is_not_admitted (const struct nbd_endpoint *nep, int err)
{
  if (nep->session[0] == '\0' && (err == ENOENT || err == EPERM))
    return true;
  if (nbd_wants_digests (nep) && err == ENOTSUP)
    return true;
  return err == ECONNREFUSED || err == ECONNRESET || err == ETIMEDOUT || err == EAGAIN;
}

struct nbd_handle *
nbd_connect_again (struct nbd_endpoint *nep, struct nbd_connecting *beside, int *errnum,
                   char **error)
{
  const struct endpoint_info *first = &nep->offered;
  struct nbd_handle *h = NULL;
  struct endpoint_info info;
  struct nbd_peer peer;

  if (nep->has_stdio)
    endpoint_fail (errnum, error, EBUSY, "%s: has one connection only", nep->ep.name);
  else
    h = nbd_connect (nep, beside, errnum, error);
  if (!h) {
    if (errnum && is_not_admitted (nep, *errnum))
      *errnum = ENDPOINT_FULL;
    return NULL;
  }
  if (describe (nep, h, &info, errnum, error) == -1) {
    nbd_close (h);
    return NULL;
  }
  nbd_peer_of (nbd_aio_get_fd (h), &peer);
  /* That the two have one disk is not known, and to do without the second is no loss of data. */
  if (!nbd_peer_equal (&peer, &nep->peer))
    endpoint_fail (errnum, error, ENDPOINT_FULL, "%s: another server answers", nep->ep.name);
  else if (info.size != first->size)
    endpoint_fail (errnum, error, ESTALE, "%s: the export's size was %llu bytes and is %llu now",
                   nep->ep.name, (unsigned long long)first->size, (unsigned long long)info.size);
  else if (info.min_block != first->min_block || info.max_request != first->max_request
           || info.read_only != first->read_only || info.can_flush != first->can_flush
           || info.can_zero != first->can_zero || info.can_multi_conn != first->can_multi_conn
           || info.can_status != first->can_status || info.can_layers != first->can_layers)
    endpoint_fail (errnum, error, ESTALE,
                   "%s: another connection found an export with other capabilities", nep->ep.name);
  else
    return h;
  nbd_close (h);
  return NULL;
}

/* ---- The requests that are tried ----------------------------------------------------------- */

/* Wait for the answer to the request COOKIE, which is -1 if it could not be sent.  0 or an errno.
 */
static int
wait_for (struct nbd_handle *h, int64_t cookie, int64_t deadline)
{
  int done = 0;

  if (cookie == -1)
    return nbd_reason_errno ();
  while ((done = nbd_aio_command_completed (h, (uint64_t)cookie)) == 0) {
    int64_t left = deadline - endpoint_now_ms ();

    if (left <= 0)
      return ETIMEDOUT;
    if (nbd_poll_handle (h, (int)left) == -1)
      return nbd_reason_errno ();
  }
  if (done != -1)
    return 0;
  /* That is what libnbd says of a request whose connection broke. */
  return nbd_get_errno () == ENOTCONN ? ECONNRESET : nbd_reason_errno ();
}

/* A request was answered that was sent at BEGIN. */
static void
note_trip (struct endpoint_info *info, uint64_t begin)
{
  uint64_t took = clock_ns () - begin;

  if (info->rtt_ns == 0 || took < info->rtt_ns)
    info->rtt_ns = took;
}

/* Some servers offer a flush and refuse each one: nbdkit 1.32 with --oldstyle, which refuses to
 * write zeroes as well.  That shows only when it is tried, and is to be known before anything is
 * written.  The beginning is read in the
 * same round trip.  If that cannot be done, others will ask again.  0 or an errno; if that one does
 * not last, the connection is of no use.  *WHAT is the request that has failed. */
static int
flush_and_read (struct nbd_handle *h, struct endpoint_info *info, void *buf, uint32_t length,
                int timeout_ms, const char **what)
{
  int64_t deadline = endpoint_now_ms () + timeout_ms;
  uint64_t begin = clock_ns ();
  int64_t flush = nbd_aio_flush (h, NBD_NULL_COMPLETION, 0), read = -1;

  if (flush != -1 && length > 0)
    read = nbd_aio_pread (h, buf, length, 0, NBD_NULL_COMPLETION, 0);
  *what = "flush";
  int err = wait_for (h, flush, deadline);
  if (err == 0)
    note_trip (info, begin);
  if (read == -1 || (err != 0 && !endpoint_error_lasts (err)))
    return err;
  int read_err = wait_for (h, read, deadline);
  info->was_read = read_err == 0;
  if (read_err != ETIMEDOUT)
    return err;
  *what = "read"; /* its answer would come into memory that is no more */
  return ETIMEDOUT;
}

/* How much of the beginning is read: 4 KiB where that can be done. */
static uint32_t
first_length (const struct endpoint_info *info)
{
  uint64_t n = endpoint_round_up (info, info->size < FIRST_BYTES ? info->size : FIRST_BYTES);

  return n > info->size || n > info->max_request ? 0 : (uint32_t)n;
}

/* -1 with *ERRNUM and *ERROR. */
static int
try_requests (struct nbd_endpoint *nep, struct nbd_handle *h, int *errnum, char **error)
{
  const struct endpoint_options *o = &nep->ep.opts;
  struct endpoint_info *info = &nep->ep.info;

  if (!info->can_flush || o->flush_tried || !(o->writable || o->will_write))
    return 0;

  int timeout_ms = NBD_FLUSH_TIMES * o->request_timeout_ms;
  uint32_t length = first_length (info);
  void *buf = malloc (length);
  const char *what;
  int err = flush_and_read (h, info, buf, buf != NULL ? length : 0, timeout_ms, &what);
  bool lasts = err != 0 && endpoint_error_lasts (err);
  if (lasts) {
    info->can_flush = info->can_zero = false;
    info->flush_error = err;
  }
  if (err != 0 && !lasts)
    nbd_close_handle (atomic_exchange (&nep->first, NULL), false);
  free (buf);
  if (err == 0 || lasts)
    return 0;
  if (err == ETIMEDOUT)
    endpoint_fail (errnum, error, err, "%s: no reply to a %s within %g s", nep->ep.name, what,
                   timeout_ms / 1000.0);
  else
    endpoint_fail (errnum, error, err, "%s: %s: %s", nep->ep.name, what,
                   err == ECONNRESET ? "the server closed the connection" : strerror (err));
  return -1;
}

/* ---- Endpoints -------------------------------------------------------------------------- */

void
nbd_endpoint_close (struct endpoint *ep)
{
  struct nbd_endpoint *nep = (struct nbd_endpoint *)ep;
  struct nbd_handle *h = atomic_exchange (&nep->first, NULL);

  if (h)
    nbd_close_handle (h, true);
  nbd_ahead_destroy (&nep->ahead);
  if (atomic_load (&nep->stdio) != -1)
    close (atomic_load (&nep->stdio));
  if (nep->command)
    command_stop (nep->command);
  compressor_free (nep->compressor);
  uri_free (nep->uri);
  text_free (nep->layers_export);
  free (ep->name);
  free (nep);
}

bool
endpoint_same_server (const struct endpoint *a, const struct endpoint *b)
{
  return a->info.is_nbd && b->info.is_nbd
         && nbd_peer_equal (&((const struct nbd_endpoint *)a)->peer,
                            &((const struct nbd_endpoint *)b)->peer);
}

/* Start the command of PLACE.  False with *ERRNUM and *ERROR. */
static bool
start_command (struct nbd_endpoint *nep, const struct nbd_place *place, int *errnum, char **error)
{
  int fd = -1;

  nep->export = place->export;
  nep->why_ended = place->why_ended;
  nep->has_stdio = place->stdio;
  if (place->stdio)
    nep->command = command_start_stdio (place->name, place->argv, &fd, errnum, error);
  else
    nep->command = command_start (place->name, place->argv, errnum, error);
  atomic_store (&nep->stdio, fd);
  return nep->command != NULL;
}

static unsigned
connections_each (const struct nbd_endpoint *nep, bool multi_conn)
{
  const struct endpoint_options *o = &nep->ep.opts;
  unsigned nr = o->nr_connections;

  if (nr == 0 && multi_conn)
    nr = o->nr_multi;
  if (nr == 0)
    nr = o->nr_in_flight == 1 && multi_conn ? 4 : 1;
  /* The compressor's descriptor needs a place as well. */
  return nep->packed && nr == CHANNEL_MAX_FDS ? nr - 1 : nr;
}

unsigned
nbd_connections_each (const struct nbd_endpoint *nep)
{
  return connections_each (nep, nep->offered.can_multi_conn);
}

unsigned
nbd_connections_beside (const struct nbd_endpoint *nep, bool multi_conn)
{
  unsigned nr = nep->ep.opts.nr_channels * connections_each (nep, multi_conn);

  if (nr <= 1 || !multi_conn || nep->has_stdio)
    return 0;
  if (nep->ep.opts.nr_admitted > 0 && nr > nep->ep.opts.nr_admitted)
    nr = nep->ep.opts.nr_admitted;
  return (nr > CHANNEL_MAX_FDS ? CHANNEL_MAX_FDS : nr) - 1;
}

struct endpoint *
endpoint_nbd_open (const struct nbd_place *place, const struct endpoint_options *opts, int *errnum,
                   char **error)
{
  struct nbd_endpoint *nep = calloc (1, sizeof *nep);

  if (!nep || !(nep->ep.name = strdup (place->name))) {
    free (nep);
    uri_free (place->uri);
    endpoint_fail (errnum, error, ENOMEM, "%s: %s", place->name, strerror (ENOMEM));
    return NULL;
  }
  nep->ep.ops = &nbd_ops;
  nep->ep.opts = *opts;
  nep->uri = place->uri;
  if (opts->digests) {
    nep->digests = *opts->digests;
    nep->ep.opts.digests = &nep->digests;
  }
  if (opts->layers_export)
    nep->ep.opts.layers_export = nep->layers_export = text_copy (opts->layers_export);
  atomic_store (&nep->stdio, -1);
  nbd_ahead_init (&nep->ahead);
  if (!nep->uri && !start_command (nep, place, errnum, error))
    goto fail;
  uint64_t begin = clock_ns ();
  atomic_store (&nep->first, nbd_connect (nep, NULL, errnum, error));
  struct nbd_handle *h = atomic_load (&nep->first);
  bool described = h && describe (nep, h, &nep->ep.info, errnum, error) == 0;
  /* A command has to start first. */
  if (nep->uri)
    nep->ep.info.rtt_ns = (clock_ns () - begin) / HANDSHAKE_TRIPS;
  nep->offered = nep->ep.info;
  if (described)
    nbd_peer_of (nbd_aio_get_fd (h), &nep->peer);
  if (described)
    nbd_ahead_decide (&nep->ahead, nep, nbd_connections_beside (nep, nep->offered.can_multi_conn));
  if (described && try_requests (nep, h, errnum, error) == 0
      && nbd_packed_start (nep, errnum, error))
    return &nep->ep;

fail:
  nbd_endpoint_close (&nep->ep);
  return NULL;
}
