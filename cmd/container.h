/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Files that hold a disk inside a container format, such as qcow2.  The format of a disk is never
 * guessed, because the first block of a raw disk is its guest's, who can write there what looks
 * like a container.  But a container that is taken for a raw disk would be served, or overwritten,
 * as if its own structure were the guest's data.  So such a file is refused until the user says
 * which it is.
 */

#ifndef NBDMIRROR_CMD_CONTAINER_H
#define NBDMIRROR_CMD_CONTAINER_H

#include <stddef.h>
#include <stdint.h>

#define CONTAINER_HEAD 512 /* so many bytes are enough to tell */

/* The format, as qemu-nbd calls it, of a container that begins with the LEN bytes at HEAD; NULL if
 * it is none that we know.  Pure. */
const char *container_format (const uint8_t *head, size_t len);

#endif
