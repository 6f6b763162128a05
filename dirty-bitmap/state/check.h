/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Checking what a state file holds beside that which recovery reads: the recordings of earlier
 * checkpoints, and the samples of a job.
 *
 * FD is the file, and F what state_find() found in it.  Nothing is written.  A server may use the
 * file meanwhile, but it must not remove checkpoints then.
 */

#ifndef NBDMIRROR_DIRTY_BITMAP_STATE_CHECK_H
#define NBDMIRROR_DIRTY_BITMAP_STATE_CHECK_H

#include "dirty-bitmap/state/state.h"

/* How many samples of the job there are, and how many pages that should have one are damaged.  0,
 * or -1 with *ERROR (text_free()): they cannot be read.  Without a job there are none. */
int state_check_samples (int fd, const struct state_found *f, unsigned *good, unsigned *bad,
                         char **error);

/* The frozen recording of checkpoint I: the blocks that it names, with all of those of damaged
 * pages; and how many pages are damaged.  0, or -1 with *ERROR (text_free()): it cannot be read, or
 * a page is missing. */
int state_check_recording (int fd, const struct state_found *f, uint32_t i, uint64_t *blocks,
                           uint64_t *bad, char **error);

#endif
