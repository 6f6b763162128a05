/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the parts of the NBD endpoint share: nbd-export.c opens and describes an export,
 * nbd-connect.c makes and ends connections, nbd-tls.c and nbd-session.c are about whom one connects
 * to, nbd.c does requests, nbd-packed.c compresses what is written.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_NBD_H
#define NBDMIRROR_MIRROR_ENDPOINT_NBD_H

#include <libnbd.h>
#include <stdatomic.h>

#include "digest/hash.h"
#include "base/uuid.h"
#include "mirror/endpoint/internal.h"
#include "mirror/endpoint/nbd-ahead.h"
#include "mirror/endpoint/nbd-peer.h"
#include "mirror/endpoint/uri.h"

#define ALLOCATION "base:allocation"
/* Of QEMU's servers, where they were told to offer it.  It is a number for each extent: 0 if no
 * layer holds it, 1 if the top layer does, 2 or more if a layer below does. */
#define LAYERS "qemu:allocation-depth"
#define FIRST_LOWER_LAYER 2
/* While it flushes a connection may be silent for so many times the time limit of a request. */
#define NBD_FLUSH_TIMES 3

struct command;
struct option;

/* Where an export is: behind a URI, or served by a command that is run for us. */
struct nbd_place {
  const char *name; /* for messages */
  struct uri *uri;  /* of the kind URI_NBD, taken over; or NULL */
  /* Without a URI: */
  char *const *argv;  /* the command, NULL at the end */
  bool stdio;         /* its stdin and stdout are the only connection; else it gets a socket */
  const char *export; /* the name of the export, or NULL for "" */
  /* Why it ended with this exit status, as ssh_why_ended(); or NULL. */
  const char *(*why_ended) (int status, int *err);
};

struct nbd_endpoint {
  struct endpoint ep;
  struct uri *uri;                    /* NULL for a command */
  char session[2 * ENDPOINT_SESSION]; /* "": the export of the URI; else mirror@SESSION
                                         (nbd-session.c).  Set by endpoint_open()'s connection */
  bool unpacks; /* that one has seen that it is one, which can unpack what is compressed */
  bool packed;  /* so its exports for compressed writes are used: see compress/pack.h */
  struct compressor *compressor; /* if packed */
  bool is_plain; /* that one has seen that the server is none of `nbdmirror receive` */

  struct command *command; /* NULL for a URI */
  const char *export;      /* of the command's server, or NULL */
  const char *(*why_ended) (int status, int *err);
  bool has_stdio;    /* the command has one connection only */
  _Atomic int stdio; /* that connection until it is used; else -1 */

  char *layers_export;       /* opts.layers_export, for as long as this lives; owned */
  struct digest_key digests; /* opts.digests, for as long as this lives */
  uint64_t digests_of;       /* with that: the size of the disk */
  bool has_digests;          /* a connection has found some */

  struct endpoint_info offered;        /* what the first connection was told; constant */
  struct nbd_peer peer;                /* and by whom; constant */
  _Atomic (struct nbd_handle *) first; /* that connection, for the first channel; that
 of a command with one connection comes back */
  struct nbd_ahead ahead;              /* and those that are made beside it */
  _Atomic unsigned nr_taken;           /* connections that channels have now */
  _Atomic unsigned nr_admitted;        /* so many at most, where it took a wait to learn it; or 0 */
};

extern const struct endpoint_ops nbd_ops;

/* libnbd's last error in this thread, without the name of the function that was called. */
const char *nbd_reason (void);
/* The errno of the same error: ECONNRESET where the server hung up, EPROTO where it is unknown. */
int nbd_reason_errno (void);
/* The connection is closed or broken. */
bool nbd_is_over (struct nbd_handle *h);
/* Poll for H once.  0, or -1 when there is nothing to wait for any more. */
int nbd_poll_handle (struct nbd_handle *h, int timeout_ms);
/* What is to be done after each step of a handshake. */
typedef void nbd_step (void *opaque, struct nbd_handle *h);
/* Go on until H has negotiated all but the export, or all.  0; -1 where libnbd said so, or H is
 * over; or ETIMEDOUT.  UP is NULL where no call of libnbd's waits.  STEP may be NULL. */
int nbd_negotiate (struct nbd_handle *h, int64_t deadline, struct nbd_hang_up *up, nbd_step *step,
                   void *opaque);
/* The same where there may be a TLS handshake. */
int nbd_negotiate_tls (struct nbd_handle *h, bool tls, int64_t deadline, nbd_step *step,
                       void *opaque);
/* A connection that is ready for requests.  BESIDE is NULL, or which one it is of those that are
 * made ahead.  The endpoint's first connection begins these.  NULL with *ERRNUM and *ERROR. */
struct nbd_handle *nbd_connect (struct nbd_endpoint *nep, struct nbd_connecting *beside,
                                int *errnum, char **error);
/* Another connection for a channel: to the same export, as far as can be told.  NULL with *ERRNUM
 * and *ERROR. */
struct nbd_handle *nbd_connect_again (struct nbd_endpoint *nep, struct nbd_connecting *beside,
                                      int *errnum, char **error);
/* How many connections does a channel have? */
unsigned nbd_connections_each (const struct nbd_endpoint *nep);
/* How many connections are to be made beside the first one, with nr_channels?  MULTI_CONN: does the
 * server offer it? */
unsigned nbd_connections_beside (const struct nbd_endpoint *nep, bool multi_conn);
/* Say goodbye, if POLITE and if it can be done (nothing is in flight, or the export was not chosen
 * yet), and close. */
void nbd_close_handle (struct nbd_handle *h, bool polite);
/* ---- nbd-tls.c ---- */

/* May URI be connected to: no TLS, or a CA or key is there to tell the server by.  NAME is the URI
 * for messages.  False with *ERRNUM, *ERROR. */
bool nbd_tls_knows_server (const struct uri *uri, const char *name, int *errnum, char **error);

/* ---- nbd-session.c: servers of `nbdmirror receive` ---- */

enum nbd_receive { NBD_NO_RECEIVE, NBD_RECEIVE_OPEN, NBD_RECEIVE_SEALED };

/* Does its export bear the name of theirs? */
bool nbd_uri_may_be_receive (const struct uri *uri);
/* Or none, as their guest's has? */
bool nbd_uri_may_be_guest (const struct uri *uri);
/* What comes after mirror@ for the next session of S (may be NULL): a random ID and, if there was a
 * session before, that one's.  It is the same again as long as the server has not answered: whether
 * it has let the session in is not known then.  False with errno. */
bool nbd_session_name (char name[2 * ENDPOINT_SESSION], struct endpoint_session *s);
/* What its list of exports says of a server. */
struct nbd_server {
  enum nbd_receive is;
  bool unpacks;                   /* what is compressed */
  bool returns;                   /* it begins a checkpoint when the disk is sealed */
  char standing[UUID_TEXT_BYTES]; /* the checkpoint at which its disk stands; or
                                   * RECEIVE_STANDING_NOWHERE; or "": it does not tell */
};
/* H negotiates (option mode): ask what its server is, until DEADLINE (endpoint_now_ms()).  -1 with
 * errno. */
int nbd_look_for_receive (struct nbd_handle *h, int64_t deadline, struct nbd_server *server);
/* End option mode with the export NAME, or the URI's if NULL.  -1 with errno: if H is not over, the
 * server has refused. */
int nbd_go (struct nbd_handle *h, const char *name, int64_t deadline);
/* The same in two steps.  The first one only asks for meta contexts, which opens nothing, if the
 * answer cannot have come when it returns.  NULL with errno.  In between H waits. */
struct option *nbd_go_begin (struct nbd_handle *h, const char *name);
/* O (may be NULL, with errno) has ended. */
int nbd_go_end (struct nbd_handle *h, struct option *o, int64_t deadline);
/* Instead of nbd_go_end(), where H is to be closed. */
void nbd_go_forget (struct option *o);
/* H negotiates (option mode): ask about the export NAME.  0: libnbd's questions about the export
 * are about this one now.  -1 with errno. */
int nbd_ask_about (struct nbd_handle *h, const char *name, int64_t deadline);

/* ---- nbd-packed.c ---- */

/* Start the compressor of an endpoint that is open.  False with *ERRNUM and *ERROR. */
bool nbd_packed_start (struct nbd_endpoint *nep, int *errnum, char **error);
/* OP is a write.  True: it is being compressed, and comes back through nbd_packed_next(). */
bool nbd_packed_begin (struct squeeze_queue *queue, struct op *op);
/* The next write that may be sent now, or NULL. */
struct op *nbd_packed_next (struct squeeze_queue *queue);
/* Send OP, a write, over H, as a pack if it is one.  As libnbd's calls. */
int64_t nbd_packed_write (struct nbd_handle *h, struct op *op, nbd_completion_callback done);

/* ---- nbd-extents.c ---- */

/* A server has answered OP, a block status request, with these extents of CONTEXT.  Add them to
 * those of OP; of the ranges that another context has answered for, what both say.  *STATUS_ASK
 * becomes what the channel's next request should ask for.  As a callback of libnbd's: 0, or -1 with
 * *ERROR. */
int nbd_take_extents (struct op *op, uint64_t *status_ask, const char *context, uint64_t offset,
                      const uint32_t *entries, size_t nr_entries, int *error);

/* ---- nbd-digests.c ---- */

/* The name of the export that is meant, "" for the default one. */
const char *nbd_export_name (const struct nbd_endpoint *nep);
/* Is one of these exports to be opened instead of the endpoint's? */
bool nbd_wants_digests (const struct nbd_endpoint *nep);
/* H negotiates (option mode): does the server serve digests of the export?  Also false where it
 * does not answer.  The name of H's export is another one afterwards. */
bool nbd_look_for_digests (const struct nbd_endpoint *nep, struct nbd_handle *h, int64_t deadline);
/* End option mode with the export of digests.  -1 with errno: ENOTSUP if the server has opened
 * something else, another if it has refused. */
int nbd_go_digests (struct nbd_endpoint *nep, struct nbd_handle *h, int64_t deadline);

/* Connect to PLACE and describe it.  OPTS have their defaults filled in.  NULL with *ERRNUM and
 * *ERROR. */
struct endpoint *endpoint_nbd_open (const struct nbd_place *place,
                                    const struct endpoint_options *opts, int *errnum, char **error);
/* endpoint_close(). */
void nbd_endpoint_close (struct endpoint *ep);

#endif
