/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Making connections to NBD exports, and ending them.
 *
 * libnbd has no time limits, so they are kept here.  TCP, TLS and NBD negotiation together may take
 * connect_timeout_ms (for TLS see nbd-hang-up.h), and saying goodbye GOODBYE_MS.  The C library
 * looks up names of hosts, and has limits of its own for that.
 */

#include "config.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "control/layers-export.h"
#include "control/receive-exports.h"
#include "mirror/endpoint/command.h"
#include "mirror/endpoint/nbd-hang-up.h"
#include "mirror/endpoint/nbd.h"

#define GOODBYE_MS 1000
#define SOCKET_BUFFER (1 << 20)
/* A TCP connection at rest is probed, so that a host which vanished is noticed within a minute. */
#define ALIVE_AFTER_S 30
#define ALIVE_AGAIN_S 10
#define ALIVE_TIMES 3
/* A server that takes longer than this to answer is far away. */
#define LONG_TRIP_NS (UINT64_C (5) * NS_PER_MS)

/* ---- Errors ----------------------------------------------------------------------------- */

/* Whether libnbd's last error in this thread is that the server hung up.  How that shows depends on
 * what was under way: end of file (which has no errno), ECONNRESET or EPIPE. */
static bool
hung_up (void)
{
  const char *s = nbd_get_error ();
  int err = nbd_get_errno ();

  return err == EPIPE || err == ECONNRESET || (err == 0 && (!s || strstr (s, "disconnected")));
}

const char *
nbd_reason (void)
{
  if (hung_up ())
    return "the server closed the connection";

  const char *s = nbd_get_error (), *colon = strstr (s, ": ");
  if (strncmp (s, "nbd_", 4) == 0 && colon)
    s = colon + 2;
  return s;
}

int
nbd_reason_errno (void)
{
  int err = nbd_get_errno ();

  return hung_up () ? ECONNRESET : err ? err : EPROTO; /* 0: what came was no NBD */
}

/* ---- Connecting ------------------------------------------------------------------------- */

int
nbd_poll_handle (struct nbd_handle *h, int timeout_ms)
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

bool
nbd_is_over (struct nbd_handle *h)
{
  return nbd_aio_is_dead (h) == 1 || nbd_aio_is_closed (h) == 1;
}

/* A server that runs for us is asked as well, where it is to unpack what we write. */
static bool
looks_for_receive (const struct nbd_endpoint *nep)
{
  if ((!nep->ep.opts.writable && !nep->ep.opts.will_write) || nep->is_plain)
    return false;
  return nep->uri ? nbd_uri_may_be_receive (nep->uri) || nbd_uri_may_be_guest (nep->uri)
                  : nep->has_stdio && nep->ep.opts.compress > 0;
}

/* Only the first connection asks for digests. */
static bool
looks_for_digests (const struct nbd_endpoint *nep)
{
  return nep->ep.opts.ask_digests && !nep->ep.info.is_nbd && (nep->uri || nep->has_stdio);
}

/* H is BESIDE the endpoint's first connection, or NULL.  Such a one always waits in option mode,
 * until the first one has found out which export it is to be. */
static int
start_connecting (struct nbd_endpoint *nep, struct nbd_handle *h,
                  const struct nbd_connecting *beside)
{
  nbd_set_pread_initialize (h, false);
  /* Certificates are named in the URI.  nbds:// makes libnbd require TLS. */
  if (nbd_set_uri_allow_local_file (h, true) == -1 || nbd_add_meta_context (h, ALLOCATION) == -1
      || (nep->ep.opts.layers && nbd_add_meta_context (h, LAYERS) == -1))
    return -1;
  bool named = nbd_wants_digests (nep) || nep->layers_export != NULL;
  bool asks_digests = beside == NULL && looks_for_digests (nep);
  if ((beside != NULL || asks_digests || named || looks_for_receive (nep))
      && nbd_set_opt_mode (h, true) == -1)
    return -1;
  /* The description is part of what is only told when it is asked for. */
  if ((asks_digests || named) && nbd_set_full_info (h, true) == -1)
    return -1;
  if (nep->uri)
    return nbd_aio_connect_uri (h, nep->ep.name);
  if (nep->export && nbd_set_export_name (h, nep->export) == -1)
    return -1;
  if (nep->has_stdio)
    return nbd_aio_connect_socket (h, atomic_exchange (&nep->stdio, -1));
  return nbd_aio_connect_unix (h, command_socket (nep->command));
}

static void
connect_failed (struct nbd_endpoint *nep, int *errnum, char **error)
{
  char *ended = nep->command ? command_ended (nep->command) : NULL;
  int err = ended ? ECONNREFUSED : nbd_reason_errno ();
  const char *why = NULL;

  if (ended && nep->why_ended)
    why = nep->why_ended (command_exit_status (nep->command), &err);

  if (why != NULL)
    endpoint_fail (errnum, error, err, "%s: %s", nep->ep.name, why);
  else
    endpoint_fail (errnum, error, err, "%s: %s", nep->ep.name, ended ? ended : nbd_reason ());
  text_free (ended);
}

static void
keep_alive (int fd)
{
  static const struct {
    int level, option, value;
  } options[] = {
    { SOL_SOCKET, SO_KEEPALIVE, 1 },
    { IPPROTO_TCP, TCP_KEEPIDLE, ALIVE_AFTER_S },
    { IPPROTO_TCP, TCP_KEEPINTVL, ALIVE_AGAIN_S },
    { IPPROTO_TCP, TCP_KEEPCNT, ALIVE_TIMES },
  };

  for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
    (void)setsockopt (fd, options[i].level, options[i].option, &options[i].value,
                      sizeof options[i].value);
}

/* A unix socket's default of 208 KiB does not hold one request: the rest of it waits for the server
 * to read, with two more switches between the processes.  TCP's buffers grow by themselves.  But a
 * host that vanishes says nothing, and a job that is at rest asks nothing: the kernel does. */
static void
set_up_socket (int fd)
{
  int domain = AF_UNSPEC, size = SOCKET_BUFFER;
  socklen_t len = sizeof domain;

  if (getsockopt (fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) != 0)
    return;
  if (domain == AF_UNIX)
    (void)setsockopt (fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size); /* or what is allowed */
  else if (domain == AF_INET || domain == AF_INET6)
    keep_alive (fd);
}

static void
no_answer (struct nbd_endpoint *nep, struct nbd_handle *h, int *errnum, char **error)
{
  endpoint_fail (errnum, error, ETIMEDOUT, "%s: no connection within %g s: %s", nep->ep.name,
                 nep->ep.opts.connect_timeout_ms / 1000.0,
                 nbd_aio_is_connecting (h) == 1 && nbd_get_protocol (h) == NULL
                     ? "the server does not answer"
                     : "the server does not answer as an NBD server does");
}

static void
no_digests (struct nbd_endpoint *nep, int *errnum, char **error)
{
  endpoint_fail (errnum, error, ENOTSUP, "%s: the server does not serve %s", nep->ep.name,
                 nep->ep.opts.base_digest ? "the digest of a base image"
                                          : "digests of this export");
}

/* As choose_export(), where the export of digests is wanted. */
static int
choose_digests (struct nbd_endpoint *nep, struct nbd_handle *h, int64_t deadline, int *errnum,
                char **error)
{
  if (nbd_go_digests (nep, h, deadline) == 0)
    return 0;
  if (errno == ETIMEDOUT)
    no_answer (nep, h, errnum, error);
  else
    no_digests (nep, errnum, error);
  return -1;
}

/* Can the server unpack what we are to compress?  False with *ERRNUM and *ERROR. */
static bool
may_compress (const struct nbd_endpoint *nep, int *errnum, char **error)
{
  if (nep->unpacks || nbd_wants_digests (nep) || nep->ep.opts.compress == 0
      || !(nep->ep.opts.writable || nep->ep.opts.will_write))
    return true;
  endpoint_fail (errnum, error, EROFS,
                 "%s: this server takes no compressed data: only the export '" RECEIVE_MIRROR "' of"
                 " nbdmirror receive does, of a version that has --compress (leave --compress out,"
                 " or install the same version there)",
                 nep->ep.name);
  return false;
}

/* The first connection: find out what the server is.  -1 with errno, or 1 with *ERRNUM and *ERROR.
 */
static int
meet_server (struct nbd_endpoint *nep, struct nbd_handle *h, int64_t deadline, enum nbd_receive *is,
             int *errnum, char **error)
{
  struct nbd_server server;

  if (nbd_look_for_receive (h, deadline, &server) == -1)
    return -1;
  *is = server.is;
  nep->unpacks = server.unpacks;
  if (*is != NBD_NO_RECEIVE && nep->uri && nbd_uri_may_be_guest (nep->uri)) {
    endpoint_fail (errnum, error, EROFS,
                   "%s: this is the guest's export of a server of nbdmirror receive: a mirror"
                   " writes to the export '" RECEIVE_MIRROR "'",
                   nep->ep.name);
    return 1;
  }
  if (*is == NBD_RECEIVE_SEALED) {
    endpoint_fail (errnum, error, EROFS,
                   "%s: sealed: this disk was handed over to its guest, and no mirror may write to"
                   " it any more (to receive it anew: nbdmirror receive --overwrite)",
                   nep->ep.name);
    return 1;
  }
  nep->packed = nep->unpacks && nep->ep.opts.compress > 0 && nep->ep.opts.writable;
  if (*is == NBD_RECEIVE_OPEN && nep->uri && nep->ep.opts.writable
      && !nbd_session_name (nep->session, nep->ep.opts.session))
    return -1;
  nep->is_plain = *is == NBD_NO_RECEIVE;
  return 0;
}

/* Begin to leave option mode with the export of this session, or with the URI's. */
static struct option *
begin_export (struct nbd_endpoint *nep, struct nbd_handle *h)
{
  char name[sizeof nep->session + sizeof RECEIVE_PACKED_PREFIX];
  const char *prefix = nep->packed ? RECEIVE_PACKED_PREFIX : RECEIVE_SESSION_PREFIX;

  if (nep->session[0] == '\0')
    return nbd_go_begin (h, nep->packed ? RECEIVE_PACKED : nep->layers_export);
  snprintf (name, sizeof name, "%s%s", prefix, nep->session);
  return nbd_go_begin (h, name);
}

/* The answer to begin_export() has come for H, the endpoint's first connection, or ERR. */
static void
note_answer (struct nbd_endpoint *nep, struct nbd_handle *h, int err)
{
  struct endpoint_session *s = nep->ep.opts.session;

  if (s != NULL && nep->session[0] != '\0')
    s->answered = err == 0 || (err != ETIMEDOUT && !nbd_is_over (h));
}

/* H has negotiated all but the export, which took NEGOTIATION_NS, or, if BEGUN is not NULL, has
 * begun to choose it.  -1 with *ERRNUM and *ERROR. */
static int
choose_export (struct nbd_endpoint *nep, struct nbd_handle *h, uint64_t negotiation_ns,
               struct option *begun, int64_t deadline, int *errnum, char **error)
{
  enum nbd_receive is = looks_for_receive (nep) ? NBD_RECEIVE_OPEN : NBD_NO_RECEIVE;
  bool is_first = is == NBD_RECEIVE_OPEN && nep->session[0] == '\0';

  if (begun != NULL) {
    if (nbd_go_end (h, begun, deadline) == 0)
      return 0;
    goto failed;
  }

  if (nbd_wants_digests (nep))
    return choose_digests (nep, h, deadline, errnum, error);
  if (looks_for_digests (nep)) {
    nep->has_digests = nbd_look_for_digests (nep, h, deadline);
    /* The question has changed the name. */
    if (!nbd_is_over (h) && nbd_set_export_name (h, nbd_export_name (nep)) == -1)
      goto failed;
  }
  if (is_first) {
    uint64_t asked = clock_ns ();
    int r = meet_server (nep, h, deadline, &is, errnum, error);
    if (r == -1)
      goto failed;
    if (r == 1 || !may_compress (nep, errnum, error))
      return -1;
    /* The negotiation was a trip as well: a pause of the machine lengthens one of them. */
    if (clock_ns () - asked > LONG_TRIP_NS && negotiation_ns > LONG_TRIP_NS)
      nbd_ahead_name (&nep->ahead);
  }
  int err = nbd_go_end (h, begin_export (nep, h), deadline) == 0 ? 0 : errno;
  if (is_first)
    note_answer (nep, h, err);
  if (err == 0)
    return 0;
  errno = err;

failed:
  if (errno == ETIMEDOUT)
    no_answer (nep, h, errnum, error);
  else if (nbd_is_over (h) || is == NBD_NO_RECEIVE)
    connect_failed (nep, errnum, error);
  else
    endpoint_fail (errnum, error, errno,
                   "%s: the server refuses this session: another one has come since, the disk"
                   " was handed over, or requests of an older session do not end",
                   nep->ep.name);
  return -1;
}

/* The server has answered H, the endpoint's first connection: the others may come.  Were they
 * earlier, then a server that serves one client after another could take one of them first. */
static void
begin_others (void *opaque, struct nbd_handle *h)
{
  struct nbd_endpoint *nep = opaque;

  if (!nep->ep.info.is_nbd && nep->uri != NULL && nbd_get_protocol (h) != NULL)
    nbd_ahead_begin (&nep->ahead, nep, nbd_connections_beside (nep, true));
}

int
nbd_negotiate (struct nbd_handle *h, int64_t deadline, struct nbd_hang_up *up, nbd_step *step,
               void *opaque)
{
  while (nbd_aio_is_negotiating (h) != 1 && nbd_aio_is_ready (h) != 1) {
    int64_t left = deadline - endpoint_now_ms ();

    if (nbd_is_over (h))
      return -1;
    if (left <= 0)
      return ETIMEDOUT;
    if (up != NULL)
      nbd_hang_up_watch (up, nbd_aio_get_fd (h));
    if (nbd_poll_handle (h, (int)left) == -1)
      return -1;
    if (step != NULL)
      step (opaque, h);
  }
  return 0;
}

int
nbd_negotiate_tls (struct nbd_handle *h, bool tls, int64_t deadline, nbd_step *step, void *opaque)
{
  struct nbd_hang_up up;
  int64_t left = deadline - endpoint_now_ms ();

  if (!tls
      || nbd_hang_up_start (&up, clock_ns () + (uint64_t)(left > 0 ? left : 0) * NS_PER_MS) != 0)
    return nbd_negotiate (h, deadline, NULL, step, opaque);
  int r = nbd_negotiate (h, deadline, &up, step, opaque);
  return nbd_hang_up_end (&up) ? ETIMEDOUT : r;
}

/* H is ready: is its export what opts.layers_export wants, if that wants any? */
static bool
is_layers (const struct nbd_endpoint *nep, struct nbd_handle *h)
{
  if (nep->layers_export == NULL)
    return true;
  char *description = nbd_get_export_description (h);
  bool is = description != NULL && strcmp (description, LAYERS_DESCRIPTION) == 0;
  free (description);
  return is;
}

/* H has negotiated all but the export, BESIDE the first connection.  Wait until that one has opened
 * it.  *BEGUN is what nbd_go_begin() says, or NULL.  False: H is not wanted. */
static bool
wait_beside (struct nbd_endpoint *nep, struct nbd_handle *h, struct nbd_connecting *beside,
             struct option **begun)
{
  /* Without structured replies there are no meta contexts, and libnbd opens the export at once. */
  if (nbd_aio_is_negotiating (h) == 1 && nbd_get_structured_replies_negotiated (h) == 1
      && nbd_ahead_is_named (beside))
    *begun = begin_export (nep, h);
  if (nbd_ahead_is_wanted (beside))
    return true;
  nbd_go_forget (*begun);
  return false;
}

/* H is being connected: do all the rest.  -1 with *ERRNUM and *ERROR. */
static int
finish_connecting (struct nbd_endpoint *nep, struct nbd_handle *h, struct nbd_connecting *beside,
                   int64_t deadline, int *errnum, char **error)
{
  struct option *begun = NULL;
  bool tls = nep->uri != NULL && nep->uri->tls;
  uint64_t began = clock_ns ();
  int r = beside != NULL ? nbd_negotiate (h, deadline, &beside->hang_up, NULL, NULL)
                         : nbd_negotiate_tls (h, tls, deadline, begin_others, nep);
  uint64_t negotiation_ns = clock_ns () - began;

  if (r == ETIMEDOUT) {
    no_answer (nep, h, errnum, error);
    return -1;
  }
  if (r == 0 && beside != NULL && !wait_beside (nep, h, beside, &begun)) {
    endpoint_fail (errnum, error, ECANCELED, "%s: one connection less is used", nep->ep.name);
    return -1;
  }
  if (r == 0 && (begun != NULL || nbd_aio_is_negotiating (h) == 1)
      && choose_export (nep, h, negotiation_ns, begun, deadline, errnum, error) == -1)
    return -1;
  if (r == -1 || !nbd_aio_is_ready (h)) {
    connect_failed (nep, errnum, error);
    return -1;
  }
  if (tls && nbd_get_tls_negotiated (h) != 1) {
    endpoint_fail (errnum, error, EPROTO, "%s: the connection is not encrypted", nep->ep.name);
    return -1;
  }
  if (nbd_wants_digests (nep) && !nep->has_digests) { /* a server that was not asked for a name */
    no_digests (nep, errnum, error);
    return -1;
  }
  if (!is_layers (nep, h)) {
    endpoint_fail (errnum, error, ENOTSUP, "%s: the export %s does not tell layers apart",
                   nep->ep.name, nep->layers_export);
    return -1;
  }
  return 0;
}

struct nbd_handle *
nbd_connect (struct nbd_endpoint *nep, struct nbd_connecting *beside, int *errnum, char **error)
{
  /* Beside the first one it is nbd-ahead.c that keeps the time. */
  int64_t deadline
      = endpoint_now_ms () + (beside != NULL ? INT32_MAX : nep->ep.opts.connect_timeout_ms);

  if (nep->uri && !nbd_tls_knows_server (nep->uri, nep->ep.name, errnum, error))
    return NULL;

  struct nbd_handle *h = nbd_create ();
  if (!h) {
    endpoint_fail (errnum, error, nbd_reason_errno (), "%s: %s", nep->ep.name, nbd_reason ());
    return NULL;
  }
  int r = start_connecting (nep, h, beside);
  if (r == -1)
    connect_failed (nep, errnum, error);
  else
    r = finish_connecting (nep, h, beside, deadline, errnum, error);
  if (r == -1) {
    nbd_close_handle (h, beside != NULL);
    return NULL;
  }
  if (!may_compress (nep, errnum, error)) { /* one that was not asked what it is */
    nbd_close (h);
    return NULL;
  }
  set_up_socket (nbd_aio_get_fd (h));
  return h;
}

/* ---- Ending ----------------------------------------------------------------------------- */

void
nbd_close_handle (struct nbd_handle *h, bool polite)
{
  int64_t until = endpoint_now_ms () + GOODBYE_MS;

  if (polite
      && ((nbd_aio_is_ready (h) == 1 && nbd_aio_disconnect (h, 0) == 0)
          || (nbd_aio_is_negotiating (h) == 1 && nbd_aio_opt_abort (h) == 0)))
    while (!nbd_is_over (h) && endpoint_now_ms () < until)
      if (nbd_poll_handle (h, GOODBYE_MS) == -1)
        break;
  nbd_close (h);
}
