/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Borrowing an image from the server that has it open (control/lend-export.h), so that a guest's
 * QEMU can open it.
 *
 * One thread uses a loan.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_LEND_H
#define NBDMIRROR_MIRROR_ENDPOINT_LEND_H

/* What a server takes to write down what it has in memory, and more. */
#define LEND_TIMEOUT_MS 20000

struct loan;

/* Borrow the image behind the NBD server at the Unix socket SOCKET.  When this returns, all that
 * the server has acknowledged is durable, it has the image open no longer, and its clients'
 * requests wait.  *FORMAT (text_free()) is the image's format, as for qemu-nbd.
 *
 * NULL with *ERROR (text_free()): the server refuses, and has logged why; or it is none that lends.
 * It goes on as before then. */
struct loan *loan_take (const char *socket, char **format, char **error);

/* The server opens the image again at its clients' next request, and waits for that while another
 * program has it open.  So does it when this process ends.  L may be NULL. */
void loan_return (struct loan *l);

#endif
