/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The disk's own file, as a state file needs to know it: is it the one that the state file is of,
 * and does nobody else serve it?
 *
 * Two things tell.  Each server that tracks gives the file a new mark
 * (dirty-bitmap/state/format.h), and a server that does not takes it away.  So a server notices who
 * came after it, and a state file who came after the server that wrote it, be that with an older
 * copy of the state file.  And every server locks the file with flock(), so a server that tracks
 * notices who was there before it.
 *
 * A block device has no mark and is not locked.  Control thread, or before it runs.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_PERSIST_DISK_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_PERSIST_DISK_H

#include <stdbool.h>

#include "nbd-plugin/mirror/persist.h"

/* Open the file DIRECT (NULL: it is not known) as p->file.disk_fd, and lock it for as long as it is
 * open.  p->shared says whether another server has it. */
void persist_disk_open (struct persist *p, const char *direct);

/* Give it a new mark, and say so in the state file, of which F was read.  NOW is its identity.  0,
 * or -1 with *WHY (text_free()). */
int persist_disk_mark (struct persist *p, struct state_found *f, const struct state_identity *now,
                       char **why);

/* Tracking of GEO is about to begin, perhaps: the state notes the size that the disk has now, or
 * had at our start if GEO is of that size. */
void persist_disk_note_size (struct persist *p, const struct region_geometry *geo);

/* This server does not track: what an earlier one's state file says of the disk is not to be
 * believed from now on, also if that server was killed. */
void persist_disk_unmark (const struct persist *p, const char *direct);

/* Has nobody else served it since we began?  True where nobody can tell. */
bool persist_disk_is_ours (const struct persist *p);

#endif
