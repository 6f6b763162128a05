/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What is said to a destination of `nbdmirror receive` at the end of a mirror, and about
 * checkpoints.  Each call makes a connection of its own, where nothing else is said, and waits for
 * the answer, for SEAL_TIMEOUT_MS at most (for ssh: the limit of its connection).  It may be made
 * from any thread.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_SEAL_H
#define NBDMIRROR_MIRROR_ENDPOINT_SEAL_H

#include <stdbool.h>

#include "base/uuid.h"

struct nbd_handle;

/* A server waits 10 s at most for the last requests of a mirror's. */
#define SEAL_TIMEOUT_MS 12000

/* What users are told when it fails: the disk, the destination, why, the destination. */
#define DESTINATION_UNSEALED                                                                       \
  "%s: handed over, but %s could not be sealed: %s.  A request that is late could still be "       \
  "written there: do not start the"                                                                \
  " guest before 'nbdmirror receive --seal %s' succeeds"

/* Can there be anything to seal at DEST, a name as for endpoint_open()?  Pure. */
bool destination_may_be_sealed (const char *dest);

/* Between the commit and the start of the guest: no mirror session may write to the disk behind URI
 * any more, and every request of the old ones has ended.  URI is the mirror's (nbd…/mirror), as the
 * worker was given it.  Doing it again is fine.  ssh://…: the session of the mirror's there, if
 * any, has ended.
 *
 * 0: done.  1: this is no server of `nbdmirror receive`, there is nothing to seal (*ERROR is
 * untouched): a late request of the worker's is fought by rule R12 alone.  -1 with *ERROR (caller
 * frees): it is one, or may be, and it could not be done. */
int destination_seal (const char *uri, char **error);

/* The same in three steps, so that a stopped guest waits for one round trip only.  A connection of
 * { NULL } is none; each may be used from any thread, by one at a time. */
struct seal_connection {
  struct nbd_handle *h;
};

/* Before the guest is stopped: connect to URI's server, and ask what it is.  That changes nothing
 * there.  *C stays none if it does not work, or if there is nothing to seal.  An open one keeps the
 * server from ending. */
void destination_seal_connect (const char *uri, struct seal_connection *c);
/* As destination_seal().  Without a connection, or if it was lost meanwhile, a new one is made. */
int destination_seal_over (const char *uri, struct seal_connection *c, char **error);
/* POLITE: wait until the server has closed it, too. */
void destination_seal_close (struct seal_connection *c, bool polite);

/* Before the commit, when the migration is given up: the server is to end, and to remove the disk
 * if it has created it.  Returns when that is done.  As above; -1 if it is sealed. */
int destination_give_up (const char *uri, char **error);

/* ---- checkpoints, control/receive-exports.h ---- */

/* At which checkpoint of its source does the disk stand?  0 with its UUID, or "" for none.  1 and
 * -1 as above; 1 also for ssh and for a server that does not tell. */
int destination_standing (const char *uri, char standing[UUID_TEXT_BYTES], char **error);

/* SESSION, which is open, writes only what was changed since checkpoint TO.  The disk stands at
 * FROM, which is TO or a later checkpoint.  As above. */
int destination_say_since (const char *uri, const char *session, const char *from, const char *to,
                           char **error);

/* SESSION has sent and flushed everything, and sends nothing more: the disk stands at UUID. */
int destination_say_at (const char *uri, const char *session, const char *uuid, char **error);

/* If the disk is sealed while SESSION is the one that may write there, it begins the checkpoint
 * UUID.  As above; 1 also if the server cannot begin one. */
int destination_say_return (const char *uri, const char *session, const char *uuid, char **error);

#endif
