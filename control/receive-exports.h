/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The exports of a server that `nbdmirror receive` started: what its filter
 * (nbd-plugin/receive/filter.c) and the clients that know it (mirror/endpoint/nbd-session.c) agree
 * on.
 *
 *   ""                the guest's.  Its first mutation seals the disk
 *   "mirror"          the mirror's; listed (NBD_OPT_LIST) with one of the descriptions below.  Each
 *                     connection is a session of its own, from its first mutation on.  Read-only
 * once sealed "mirror@ID"       the same for a client that makes several connections: all with one
 * ID, chosen at random, are one session, from the moment that the first one opens "mirror@ID.LAST"
 * the same for a client that had the session LAST before.  If another one has taken its place
 * since, it opens read-only: two mirrors have the same destination, and must not take it from one
 *                     another in turn
 *   "mirror@seal"     opening it ends the right of every mirror session to write, for good; it
 * opens when every request of theirs has ended "mirror@give-up"  opening it says that the migration
 * is given up: the server ends, and what it created is removed.  Refused once sealed
 *
 * A new session revokes the old one at once, and is let in when every request of the old one has
 * ended.
 */

#ifndef NBDMIRROR_CONTROL_RECEIVE_EXPORTS_H
#define NBDMIRROR_CONTROL_RECEIVE_EXPORTS_H

#define RECEIVE_MIRROR "mirror"
#define RECEIVE_SESSION_PREFIX "mirror@"
#define RECEIVE_SEAL "mirror@seal"
#define RECEIVE_GIVE_UP "mirror@give-up"
#define RECEIVE_ID_MAX 64 /* characters of ID, and of LAST */
#define RECEIVE_LAST '.'  /* between them: neither has one */

#define RECEIVE_DESCRIPTION "nbdmirror-receive 1"
#define RECEIVE_DESCRIPTION_SEALED "nbdmirror-receive 1 sealed"

/* An extended attribute of the disk's file, where it can have one: it was handed over to its guest.
 */
#define RECEIVE_ATTRIBUTE "user.nbdmirror.sealed"

/* One byte each, from the filter to the process that supervises the server (receive-notify-fd=). */
#define RECEIVE_NOTE_SEALED 'S'
#define RECEIVE_NOTE_WRITTEN 'W' /* by the guest, for the first time */
#define RECEIVE_NOTE_GIVEN_UP 'A'

#endif
