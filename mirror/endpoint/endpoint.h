/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Endpoints: the places that blocks are read from and written to.  An endpoint has one of these
 * names:
 *
 *   nbd://… nbd+unix://… nbds://…      an NBD URI (uri.h)
 *   [ COMMAND ARGS ]                   an NBD server that is run for us, by socket activation
 *   ssh://…                            a disk on another host (ssh.h)
 *   PATH                               a local regular file or block device
 *
 * This folder uses base/, libnbd, libaio, libxml2, compress/, digest/ (the names of exports of
 * digests) and control/receive-exports.h (the names of the exports of `nbdmirror receive`).  It
 * knows nothing of jobs.  Its parts, from the top down; none includes what stands above it:
 *
 *   seal.c blocking.c same-place.c     what can be done with an endpoint, or with its name
 *   open.c                             from a name to a kind; it opens all kinds but null:
 *   file*.c                            the kind for files (libaio)
 *   nbd*.c                             the kind for NBD exports (libnbd)
 *   ssh.c command*.c                   the command for an ssh URI; child processes that serve NBD
 *   endpoint.c internal.h              what is the same for all kinds
 *   uri.c buffers.c                    reading URIs; memory for data
 *
 * A struct endpoint is the place itself.  endpoint_open() describes it; after that it is constant,
 * and any thread may use it.  A struct channel is one way to it (an AIO context, or a few NBD
 * connections). It belongs to one thread, which drives it with poll().  The folder starts no
 * threads but those that compress (compress/compressor.h), and one that watches a TLS handshake
 * (nbd-hang-up.h).  It has one lock besides, inside command.c, under which nothing else is called
 * but waitpid() and a sleep.
 *
 * Requests are asynchronous.  A completion runs from channel_dispatch(), in the channel's thread.
 * It never runs from within the call that started the request, nor under a lock of a library, so it
 * may start further requests on any channel of its thread.  Its ERROR is 0 or a positive errno.
 *
 * Every wait has a limit.  A channel is dead when one of its NBD connections breaks, answers none
 * of its requests for request_timeout_ms (three times that while it has to flush), or leaves one
 * unanswered for ten times that while it answers others.  Then all requests of the channel are
 * completed with ESHUTDOWN, the silent one with ETIMEDOUT; after that channel_dispatch() returns
 * -1, and no request is accepted any more.  Requests on files have no limit, because the kernel
 * offers none.
 *
 * The texts of errors come from base/text.h: the caller frees them with text_free().
 *
 * The process must ignore SIGPIPE, because libnbd cannot suppress it where there is TLS.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_ENDPOINT_H
#define NBDMIRROR_MIRROR_ENDPOINT_ENDPOINT_H

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

struct digest_key;
struct endpoint;
struct channel;

#define ENDPOINT_SESSION 33

/* A client's sessions at a server of `nbdmirror receive`; all zero before the first. */
struct endpoint_session {
  char id[ENDPOINT_SESSION];   /* of the one that was tried last */
  char last[ENDPOINT_SESSION]; /* of the one before it, or "" */
  bool answered;               /* the server has let ID in, or refused it */
};

/* The errno of endpoint_open() where the name itself is wrong: no other one is EDESTADDRREQ. */
#define ENDPOINT_BAD_NAME EDESTADDRREQ
/* The errno of channel_open() where the server has closed, refused or not answered one connection
 * more: a caller that has a channel can do without another.  */
#define ENDPOINT_FULL EUSERS

struct endpoint_options {
  bool writable;
  /* It is only read now, and will be written to later.  It is refused where a writable endpoint
   * would be. */
  bool will_write;
  bool layers; /* ask a server of QEMU's to tell the image's layers apart (can_layers) */
  /* The same of a server that tells it in an export of its own (control/layers-export.h): open this
   * one instead, read-only.  ENOTSUP where it is none.  It need not live on. */
  const char *layers_export;
  /* A local file that is missing is created; one that is shorter than create_size bytes is
   * extended. */
  bool create;
  uint64_t create_size;
  /* A `[` command is a qemu-nbd that serves this local image: one that is missing is created, of
   * create_size bytes, but none is extended.  NULL: it serves anything else.  Borrowed for ever. */
  const char *image, *image_format;
  /* Of an NBD export: only so many bytes from its beginning are meant; 0: all of it. */
  uint64_t only;
  bool grows; /* a regular file may be written to behind its end, and grows then */
  /* An earlier endpoint has flushed there with success.  Else endpoint_open() does so once, if it
   * is writable, to see whether a flush that is offered is also done, and reads the beginning
   * meanwhile. */
  bool flush_tried;
  int connect_timeout_ms; /* 0: 10,000, for ssh 20,000 */
  int request_timeout_ms; /* 0: 30,000 */
  unsigned nr_in_flight;  /* requests on each NBD connection; 0: 64.  See endpoint_read_others() */
  /* NBD connections in each channel; 0: 1, or 4 where nr_in_flight is 1 and the server offers
   * multi-conn. */
  unsigned nr_connections;
  /* The same where the server offers multi-conn and nr_connections is 0; 0: as without it. */
  unsigned nr_multi;
  /* NBD, where the server offers multi-conn: so many channels will be opened.  endpoint_open()
   * begins to make all their connections at once, and does not wait for them: channel_open() and
   * channel_widen() do, and tell what went wrong.  endpoint_close() ends those that are not made
   * yet.  A server at a URI that does not offer it sees connections that leave before they open
   * its export.  0: each connection is made when its channel is opened. */
  unsigned nr_channels;
  /* With nr_channels, where the server offers multi-conn: it is known to admit only so many
   * connections at a time, and no more are tried.  0: not known. */
  unsigned nr_admitted;
  /* NULL, or the sessions so far at a server of `nbdmirror receive`.  The endpoint that is opened
   * begins another one there.  Only one endpoint with the same sessions may be opened at a time. */
  struct endpoint_session *session;
  /* Compress what is written, at zstd's level COMPRESS or a lower one; 0: do not.  Without a server
   * of `nbdmirror receive` that can unpack it, endpoint_open() fails with EROFS. */
  int compress;
  bool ask_digests; /* find out whether the server serves digests of this export as well */
  /* Not NULL: open that export of digests instead, read-only.  It need not live on.  ENOTSUP where
   * there is none. */
  const struct digest_key *digests;
  /* Open the text that tells the digest of the disk's base image instead (DIGEST_BASE in
   * digest/export-name.h).  ENOTSUP where there is none. */
  bool base_digest;
};

/* Somebody else's server is going to be read from.  With one request in flight on each connection a
 * client that dies does not take nbdkit 1.32.4 to 1.33.9 down, which abort when a client with
 * several in flight goes away. */
static inline void
endpoint_read_others (struct endpoint_options *o)
{
  o->nr_in_flight = 1;
}

/* What an endpoint can do; constant. */
struct endpoint_info {
  uint64_t size;        /* bytes */
  uint32_t min_block;   /* requests must be multiples of this (1 where there is no limit), but for
                           file endpoints, where any range is allowed */
  uint32_t max_request; /* largest read or write, bytes */
  bool is_nbd;
  bool is_receive; /* a writable session at a server of `nbdmirror receive`: another one would end
                      it */
  bool read_only;
  bool can_flush;
  int flush_error; /* 0, or the errno of a flush that the server offers and refuses: then can_flush
                      is false */
  bool can_zero;   /* false with a flush_error, too: no offer of that server is believed */
  bool can_multi_conn; /* several channels may write, one flush covers all (files: true) */
  bool can_status;     /* ZERO can be asked for */
  bool can_layers;     /* what lies in a lower layer can be asked for as well */
  bool is_rotational;
  bool has_digests; /* with ask_digests: it can be opened with `digests` as well */
  /* NBD: no round trip is longer, as far as the handshake and the first requests tell; 0: unknown.
   */
  uint64_t rtt_ns;
  bool was_read;       /* NBD: when it was opened, its beginning could be read */
  uint64_t digests_of; /* of an export of digests: the size of the disk, bytes */
  bool direct;         /* files: O_DIRECT is in use */
  char *note;          /* something worth telling the user once, or NULL (O_DIRECT refused …) */
};

/* LENGTH bytes from a block's beginning, rounded up to the endpoint's smallest blocks. */
static inline uint64_t
endpoint_round_up (const struct endpoint_info *info, uint64_t length)
{
  return (length + info->min_block - 1) / info->min_block * info->min_block;
}

/* One extent of a block status answer. */
struct endpoint_extent {
  uint64_t length; /* bytes, > 0 */
  bool zero;       /* reads as zero (never merely a hole, R8) */
  bool allocated;  /* reads as zero, and takes up room all the same.  Only a hint */
  bool lower;      /* the image's top layer does not hold it, and a layer below it does; false
                      where can_layers is false */
};

typedef void (*channel_done) (void *opaque, int error);
/* EXTENTS (borrowed, only valid during the call) cover from the asked offset on; they may end
 * before the asked length, but hold at least one unless ERROR. */
typedef void (*channel_status_done) (void *opaque, int error, const struct endpoint_extent *extents,
                                     unsigned nr);

/* Open and describe.  The name is as above; a `[` `COMMAND` … `]` is given as ARGV with NR_ARGS > 1
 * (including the brackets), else ARGV[0] is the name and NR_ARGS is 1.  Blocks up to
 * connect_timeout_ms. NULL with *ERROR (caller frees) naming the endpoint and the reason, and
 * *ERRNUM (if not NULL) an errno: ENOENT, EACCES, ECONNREFUSED, ETIMEDOUT, EPROTO (spoke no NBD) …
 */
struct endpoint *endpoint_open (char *const *argv, unsigned nr_args,
                                const struct endpoint_options *opts, int *errnum, char **error);
/* Will a request that failed with ERR fail in the same way at each try, on each connection?  Pure.
 */
bool endpoint_error_lasts (int err);
const struct endpoint_info *endpoint_info (const struct endpoint *ep);
/* Did its server admit fewer connections than it had offered to take?  Any thread. */
bool endpoint_is_full (const struct endpoint *ep);
const char *endpoint_name (const struct endpoint *ep); /* for messages */
/* False: another server answers at B than at A, or at another address; or one is no NBD export. */
bool endpoint_same_server (const struct endpoint *a, const struct endpoint *b);
void endpoint_close (
    struct endpoint *ep); /* after all its channels; ends a command, which may take seconds */

/* Open a channel for the calling thread.  The first channel of an NBD endpoint takes over the
 * connection that endpoint_open() made, the others connect (blocking up to connect_timeout_ms);
 * each new connection must find the same size and flags.  A channel of several connections has
 * fewer where the server admits no more.  NULL with *ERROR and *ERRNUM. */
struct channel *channel_open (struct endpoint *ep, int *errnum, char **error);
/* With nr_channels the first channel has one connection only until this is called: wait for its
 * other ones, and add them.  Nothing else may be done with the channel meanwhile.  -1 with *ERROR
 * and *ERRNUM. */
int channel_widen (struct channel *ch, int *errnum, char **error);
/* How many connections does the channel have now?  1 where there are none. */
unsigned channel_connections (const struct channel *ch);
/* From now on each request goes to the connection after the one that had the last request, whatever
 * they are doing; or, with false, to one that has time again. */
void channel_in_turn (struct channel *ch, bool in_turn);
/* Closes; requests still in flight are completed with ESHUTDOWN first (file endpoints wait for the
 * kernel, because their buffers are in use).  NBD: disconnects politely only if idle and alive. */
void channel_close (struct channel *ch);

/* How many more requests the channel takes now (reads, writes, zeroes, status together). */
unsigned channel_room (const struct channel *ch);

/* Start a request.  LEN > 0, within the endpoint's size, at most max_request for read and write
 * (any length up to 1 GiB for zero; status: at most 2 GiB is asked for, the rest is not answered);
 * BUF must be aligned to 4096 and, for reads, have room for LEN rounded up to 4096 (direct reads of
 * a tail).  BUF stays in use until completion. Return 0, or -1 with errno if nothing was started
 * (EAGAIN: no room; ESHUTDOWN: dead). */
int channel_read (struct channel *ch, void *buf, uint32_t len, uint64_t offset, channel_done done,
                  void *opaque);
int channel_write (struct channel *ch, const void *buf, uint32_t len, uint64_t offset,
                   channel_done done, void *opaque);
/* Make a range read as zero; it may become a hole (no NO_HOLE flag), thin stays thin. */
int channel_zero (struct channel *ch, uint64_t len, uint64_t offset, channel_done done,
                  void *opaque);
/* The same, and the range takes up room afterwards (NO_HOLE): a thick disk stays thick. */
int channel_zero_allocated (struct channel *ch, uint64_t len, uint64_t offset, channel_done done,
                            void *opaque);
int channel_status (struct channel *ch, uint64_t len, uint64_t offset, channel_status_done done,
                    void *opaque);
/* The same where the first extent will do: the answer may end after it.  This saves both sides the
 * work of a long list. */
int channel_first_extent (struct channel *ch, uint64_t len, uint64_t offset,
                          channel_status_done done, void *opaque);
/* Everything answered on this channel (with can_multi_conn: on every channel) before this call is
 * durable when it completes without error. */
int channel_flush (struct channel *ch, channel_done done, void *opaque);

/* Fill FDS (room for MAX, at most CHANNEL_MAX_FDS used) with what to poll for; returns how many.
 * *TIMEOUT_MS is lowered to when channel_dispatch() wants to be called at the latest (0 if
 * completions are ready now). */
#define CHANNEL_MAX_FDS 16
unsigned channel_pollfds (struct channel *ch, struct pollfd *fds, unsigned max, int *timeout_ms);
/* Handle what poll() returned for exactly those FDS, and run completions.  0, or -1 when the
 * channel is dead (see above). */
int channel_dispatch (struct channel *ch, const struct pollfd *fds, unsigned nr);
/* How many bytes less than it was given to write the channel has sent since the last call, because
 * they were compressed. */
uint64_t channel_take_saved (struct channel *ch);
/* Run the completions of what is done already, as channel_dispatch() would.  Were there any? */
bool channel_run (struct channel *ch);
/* Why it is dead, or NULL. */
const char *channel_error (const struct channel *ch);

#endif
