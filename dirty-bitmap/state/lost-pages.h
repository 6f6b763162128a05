/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Pages of a mapped file that are not there any more: the file was made shorter; or the file system
 * is full, and a page needs room of its own when it is first written; or it cannot be read.  Who
 * touches such a page gets SIGBUS, which would be the end of a server and of its guest's disk.
 *
 * So while a map is watched, a page of it that is lost is replaced by one in memory with all bits
 * set: every block is dirty.  It appears at once, so nobody ever sees a bit clear there that was
 * set.  What is written to it stays in memory.  SIGBUS for any other reason goes to the handler
 * that was there before.  A thread that touches a map must not block SIGBUS.
 */

#ifndef NBDMIRROR_DIRTY_BITMAP_STATE_LOST_PAGES_H
#define NBDMIRROR_DIRTY_BITMAP_STATE_LOST_PAGES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

/* Watch the BYTES at MAP, both multiples of a page, before anybody touches them.  *LOST becomes
 * true before a page is replaced.  0, or -1 with errno: too many maps are watched. */
int lost_pages_watch (void *map, size_t bytes, _Atomic bool *lost);

/* When nobody touches MAP any more, and before it is unmapped. */
void lost_pages_unwatch (void *map);

#endif
