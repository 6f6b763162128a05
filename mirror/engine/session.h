/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A session: one set of connections to the destination, from connecting to the loss of any of them
 * (rule R5).  Connecting checks that the destination may be written to at all, and that it is the
 * one this bitmap was counting against (R13).
 *
 *   session_connect()   blocks, bounded by the time limits: run it in a thread of its own
 *   session_start()     the copiers' threads begin
 *   session_lost()      has it ended by itself, and why
 *   session_end()       stops and joins the threads, closes the connections, revokes the claims
 *
 * All but session_connect() and session_fail() are for the job's thread.  session.lock protects
 * `error` and is a leaf.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_SESSION_H
#define NBDMIRROR_MIRROR_ENGINE_SESSION_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "mirror/endpoint/endpoint.h"
#include "mirror/engine/copier.h"
#include "mirror/engine/engine.h"

enum session_problem {
  SESSION_UNREACHABLE, /* try again later */
  SESSION_REFUSED,     /* it must not be written to: exit 7 */
  SESSION_SOURCE       /* the source side failed */
};

struct session_options {
  char *const *dest; /* as for endpoint_open(), borrowed for ever */
  unsigned nr_dest;
  struct endpoint_options endpoint; /* writable */
  struct endpoint *opened; /* the destination if it is open already, else NULL: taken over by the
                              next session_connect() */
  bool proved; /* it holds what the job leaves out (--sync base, top and incremental), if nothing
                  was sent yet: for that session_connect() only */
  /* An incremental job's destination is back before anything that was sent is durable: look at more
   * of DEST than is kept of it.  NULL; or why it cannot be written to, with *PROBLEM. */
  char *(*look_again) (void *opaque, struct endpoint *dest, enum session_problem *problem);
  void *opaque;
  bool allow_no_flush; /* --allow-unsafe-destination (R9) */
  /* Set by session_connect() where it had to wait to learn it (endpoint.nr_admitted as well): how
   * many channels there can be at most.  0: not known. */
  unsigned most_channels;
};

struct session {
  struct engine *engine;
  struct target target;
  struct engine_copiers wakers;
  struct copier *copiers;
  unsigned nr_copiers;
  unsigned nr_started;
  bool begun;    /* the engine knows of it */
  bool proved;   /* as in the options */
  char *warning; /* for the user, once, or NULL: a larger destination … */
  char *news;    /* for the user, each time, or NULL: all is copied again */

  pthread_mutex_t lock;
  char *error; /* why it was lost; NULL while it is not */
};

/* May a disk of DISK_SIZE bytes, tracked in blocks of BLOCK_SIZE, be written to DEST at all?  NULL,
 * or why not (base/text.h, the caller frees it): exit 7.  Pure. */
char *session_refusal (const struct endpoint *dest, uint64_t disk_size, uint32_t block_size,
                       bool allow_no_flush);

/* How many connections to the destination each copier makes where the server offers multi-conn, so
 * that there are LIMIT in all (0: four).  A server works on a few requests of each connection at a
 * time, so one that takes long for each gets more done over more of them. */
unsigned session_connections_each (unsigned limit);

/* How many channels to the destination a session opens where the server offers multi-conn and LIMIT
 * is as above: the caller's endpoint_options.nr_channels.  OFFLINE_SOURCE is the source where no
 * filter of ours serves it, else NULL.  BASE is the base image (engine_options.base), or NULL. */
unsigned session_channels (unsigned limit, const struct endpoint *offline_source,
                           const struct endpoint *base);

/* Returns NULL with *PROBLEM and *ERROR (base/text.h, the caller frees it). */
struct session *session_connect (struct engine *e, struct session_options *o,
                                 enum session_problem *problem, char **error);

/* Begin to copy.  0, or -1 with *ERROR. */
int session_start (struct session *s, char **error);

/* NULL, or why the session was lost.  The text is valid until session_end(). */
const char *session_lost (struct session *s);

/* Was it lost because of the source? */
bool session_lost_source (const struct session *s);

/* 0, or the errno of a request that the destination refused and would refuse again
 * (endpoint_error_lasts()). */
int session_refused_with (const struct session *s);

/* The session is lost.  Takes a copy of WHY; the first reason counts.  Any thread. */
void session_fail (struct session *s, const char *why);

/* Stop, join, close, and free; then the claims are revoked.  Also for a session that was never
 * started.  Unless it is lost, what was sent is waited for, up to 2 s: a client that leaves with
 * requests in flight takes nbdkit 1.32.4 to 1.33.9 down. */
void session_end (struct session *s);

#endif
