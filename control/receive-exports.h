/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The exports of a server that `nbdmirror receive` has started.  Its filter (nbd-plugin/receive/)
 * and the clients that know it (mirror/endpoint/nbd-session.c, mirror/endpoint/seal.c) agree on
 * this.
 *
 *   ""
 *       The guest's export.  Its first mutation seals the disk.
 *   "mirror"
 *       The mirror's export.  Each connection is a session of its own, from its first mutation on.
 *       It is listed (NBD_OPT_LIST) with one of the descriptions below, and read-only once the disk
 *       is sealed.
 *   "mirror@ID"
 *       The same for a client that makes several connections.  All connections with one ID, which
 *       the client chooses at random, are one session.  It begins when the first of them opens.
 *   "mirror@ID.LAST"
 *       The same for a client that had the session LAST before.  If another session has taken its
 *       place since, this one is read-only: two mirrors have the same destination, and must not
 *       take it from each other in turn.
 *   "mirror+zstd", "mirror+zstd@ID", "mirror+zstd@ID.LAST"
 *       The same three, for a client that may compress what it writes (compress/pack.h).  The first
 *       is listed with its description, so that a client can tell beforehand.
 *   "mirror@seal"
 *       To open it ends the right of every mirror session to write, for good.  It opens when every
 *       request of theirs has ended.
 *   "mirror@give-up"
 *       To open it says that the migration is given up: the server ends, and what it created is
 *       removed.  It is refused once the disk is sealed.
 *
 *   "checkpoint"
 *       Only listed.  Its description is RECEIVE_DESCRIPTION_STANDING and the UUID of the
 *       checkpoint at which the disk stands, or "none".
 *   "checkpoint+since@ID.FROM.TO"
 *       To open it says: the session ID writes only what was changed since checkpoint TO, which is
 *       FROM or an earlier one.  It is refused unless the disk stands at FROM.
 *   "checkpoint+at@ID.UUID"
 *       To open it says: session ID has sent and flushed everything, and the disk stands at
 *       checkpoint UUID.  It opens when that is recorded.
 *   "checkpoint+return"
 *       Only listed, with RECEIVE_DESCRIPTION_RETURN, by a server that records what the guest
 *       changes once the disk is its own.
 *   "checkpoint+return@ID.UUID"
 *       To open it says: if the disk is sealed while session ID is the one that may write, what the
 *       guest changes from then on is recorded since checkpoint UUID.
 *
 * A new session revokes the old one at once.  It is let in when every request of the old one has
 * ended.
 */

#ifndef NBDMIRROR_CONTROL_RECEIVE_EXPORTS_H
#define NBDMIRROR_CONTROL_RECEIVE_EXPORTS_H

#define RECEIVE_MIRROR "mirror"
#define RECEIVE_SESSION_PREFIX "mirror@"
#define RECEIVE_PACKED "mirror+zstd"
#define RECEIVE_PACKED_PREFIX "mirror+zstd@"
#define RECEIVE_SEAL "mirror@seal"
#define RECEIVE_GIVE_UP "mirror@give-up"
#define RECEIVE_STANDING "checkpoint"
#define RECEIVE_SINCE_PREFIX "checkpoint+since@"
#define RECEIVE_AT_PREFIX "checkpoint+at@"
#define RECEIVE_RETURN "checkpoint+return"
#define RECEIVE_RETURN_PREFIX "checkpoint+return@"
#define RECEIVE_ID_MAX 64 /* characters of ID, and of LAST */
#define RECEIVE_LAST '.'  /* between them: neither has one */

#define RECEIVE_DESCRIPTION "nbdmirror-receive 1"
#define RECEIVE_DESCRIPTION_PACKED "nbdmirror-receive zstd 1"
#define RECEIVE_DESCRIPTION_STANDING "nbdmirror-receive checkpoint 1 "
#define RECEIVE_STANDING_NOWHERE "none"
#define RECEIVE_DESCRIPTION_RETURN "nbdmirror-receive return 1"
#define RECEIVE_DESCRIPTION_SEALED "nbdmirror-receive 1 sealed"

/* If the disk's file can have extended attributes, this one says that it was handed over to its
 * guest: "1", or "0" while nobody knows whether the attribute is durable. */
#define RECEIVE_ATTRIBUTE "user.nbdmirror.sealed"

/* The checkpoint at which the disk stands: "1 UUID SIZE INODE TIME", the time of modification in
 * nanoseconds since 1970.  All four must be as they are now. */
#define RECEIVE_STANDING_ATTRIBUTE "user.nbdmirror.checkpoint"

/* One byte each, from the filter to the process that supervises the server (receive-notify-fd=). */
#define RECEIVE_NOTE_SEALED 'S'
#define RECEIVE_NOTE_WRITTEN 'W' /* by the guest, for the first time */
#define RECEIVE_NOTE_GIVEN_UP 'A'

#endif
