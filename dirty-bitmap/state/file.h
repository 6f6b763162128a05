/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The state file itself: opened, locked, mapped and written.  For the server, and for the commands
 * that work on the file of a server that is stopped.
 *
 * Functions that have an *ERROR: 0, or -1 with *ERROR (for text_free()), which does not name the
 * file.
 */

#ifndef NBDMIRROR_DIRTY_BITMAP_STATE_FILE_H
#define NBDMIRROR_DIRTY_BITMAP_STATE_FILE_H

#include "dirty-bitmap/state/state.h"

struct state_file {
  int fd;                            /* owned, or -1 */
  int disk_fd;                       /* of the disk itself, owned, or -1: it cannot be flushed */
  _Atomic uint64_t *live, *slots[2]; /* mappings, or NULL */
  size_t live_bytes;                 /* of each */
  _Atomic bool lost_page;            /* one of a mapping was lost (lost-pages.h) */
  void *l1;                          /* mapping of the file up to the end of L1, or NULL */
  size_t l1_bytes;
};

/* Nothing is open. */
#define STATE_FILE_INIT                                                                            \
  {                                                                                                \
    .fd = -1, .disk_fd = -1                                                                        \
  }

/* Nobody else has it while it is open.  *BUSY (may be NULL): somebody has. */
int state_file_lock (struct state_file *f, bool *busy, char **error);

/* Map the job's live map; the two of recordings; and L1 with either.  The file gets the room for
 * it first: a copy of it may have holes.  What is mapped already stays. */
int state_file_map_job (struct state_file *f, const struct state_layout *l, char **error);
int state_file_map_recordings (struct state_file *f, const struct state_layout *l, char **error);

/* A page was lost, and with it all that was tracked.  What is mapped is mapped anew, in the same
 * place, where a guest may still mark. */
int state_file_map_again (struct state_file *f, const struct state_layout *l, char **error);

/* Allocate LENGTH bytes at OFFSET, which may be behind the end.  0, or -1 with errno. */
int state_file_allocate (struct state_file *f, uint64_t offset, uint64_t length);

/* Mark the disk's file with MARK, or (NULL) take the mark away, after which the state file of no
 * earlier server is believed.  False: it cannot have one. */
bool state_file_mark_disk (int disk_fd, const uint8_t mark[16]);

/* How to write it, once it is open; F is borrowed. */
struct state_io state_file_io (struct state_file *f);

/* Unmap, and close both. */
void state_file_close (struct state_file *f);

#endif
