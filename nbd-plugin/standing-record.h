/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The attribute of a disk's file that says at which checkpoint the disk stands
 * (control/receive-exports.h).  A server of `nbdmirror receive` keeps it of what it has received,
 * and the mirror filter of a disk that was handed over.
 *
 * The attribute also has the file's size, inode and time of modification, so that it is not
 * believed of a file that somebody has changed since.  It stays on the disk, so whoever is about to
 * change the disk has to remove it before.
 *
 * FD is the disk's file.  Functions that return int: 0 or an errno.  They make system calls that
 * may take long, and may be called from any thread.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_STANDING_RECORD_H
#define NBDMIRROR_NBD_PLUGIN_STANDING_RECORD_H

#include <stdbool.h>

#include "base/uuid.h"

/* Is there a record, and is it true of the file as it is now? */
bool standing_record_read (int fd, char uuid[UUID_TEXT_BYTES]);

/* Nobody changes the file meanwhile: make its contents durable, then the record.  After an error
 * the record may be there or not.  ETIME: the file's time of modification is in the future. */
int standing_record_write (int fd, const char *uuid);

/* Remove it for good.  0 as well if there is none. */
int standing_record_erase (int fd);

#endif
