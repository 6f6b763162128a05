/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Memory for the data of requests.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_BUFFERS_H
#define NBDMIRROR_MIRROR_ENDPOINT_BUFFERS_H

#include <stddef.h>

/* SIZE bytes (not 0), aligned for direct I/O, in huge pages where the system has them: a direct
 * read into small pages is a list of 4 KiB pieces for the disk.  2 GiB cold from a virtio disk, 256
 * KiB at a time, 32 in flight: 0.6 to 1.1 GB/s so, 1.1 to 1.9 GB/s into huge pages, for less than
 * half the processor time. To be freed with free(). NULL: out of memory. */
void *buffers_new (size_t size);

/* Nothing is kept in the buffers P of SIZE bytes: the system gets their memory back until they are
 * used again. */
void buffers_rest (void *p, size_t size);

#endif
