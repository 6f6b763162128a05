/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the two halves of the NBD endpoint share: endpoint-nbd-connect.c makes and ends connections
 * and describes the export, endpoint-nbd.c does requests.
 */

#ifndef NBDMIRROR_ENDPOINT_NBD_H
#define NBDMIRROR_ENDPOINT_NBD_H

#include "mirror/endpoint-internal.h"

#include <libnbd.h>
#include <stdatomic.h>

#define ALLOCATION "base:allocation"

struct command;

struct nbd_endpoint {
  struct endpoint ep;
  bool is_uri;
  struct command *command;              /* else */
  _Atomic (struct nbd_handle *) first; /* endpoint_open()'s connection, for the first channel */
};

extern const struct endpoint_ops nbd_ops;

/* libnbd's last error in this thread, without the name of the function that was called. */
const char *nbd_reason (void);
/* The connection is closed or broken. */
bool nbd_is_over (struct nbd_handle *h);
/* Another connection for a channel: to the same export, as far as can be told.  NULL with *ERRNUM and
 * *ERROR. */
struct nbd_handle *nbd_connect_again (struct nbd_endpoint *nep, int *errnum, char **error);
/* Say goodbye, if POLITE and if it can be done (nothing is in flight), and close. */
void nbd_close_handle (struct nbd_handle *h, bool polite);
/* endpoint_close(). */
void nbd_endpoint_close (struct endpoint *ep);

#endif
