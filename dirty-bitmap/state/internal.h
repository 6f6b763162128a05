/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the files of this folder share.  Where nothing else is said they are called under io_lock.
 */

#ifndef NBDMIRROR_DIRTY_BITMAP_STATE_INTERNAL_H
#define NBDMIRROR_DIRTY_BITMAP_STATE_INTERNAL_H

#include "dirty-bitmap/state/state.h"

/* ---- state.c ---- */

int state_allocate (struct state *s, const struct state_layout *l, char **error);

/* SUPER into both places, one after the other: so the file never holds an older one that promises
 * more than the newer one.  0, or -1 with errno. */
int state_write_super (struct state *s, struct state_super *super);

/* Before the page at OFFSET is written, which may be torn: a page that was torn by a power failure
 * has sectors of a version that nobody was told of.  If its next version were torn as well, both
 * together could make up that version, whole and with a good checksum.  So what is in its first
 * sector, which has the checksum, goes first.  0, or -1 with errno. */
int state_bury (struct state *s, uint64_t offset);

/* T likewise.  Then it is what s->table says. */
int state_write_table (struct state *s, struct state_table *t);

/* The active recording is inconsistent, and, unless GO_ON, not active any more.  0, or -1 with
 * errno. */
int state_break_recording (struct state *s, const char *fault, bool go_on);

/* What was recorded until the file was lost is inconsistent from now on, and a checkpoint that was
 * prepared then is given up: both have missed what was written since.  0, or -1 with errno. */
int state_write_off (struct state *s);

/* ---- begin.c ---- */

/* Begin to track where nothing was tracked: a new epoch of L1, in which every extent is cold.
 * SUPER is completed and written, after L1.  0, or -1 with errno. */
int state_begin_epoch (struct state *s, struct state_super *super, const uint8_t boot[16]);

/* ---- note.c ---- */

/* What has changed of the samples, and of the note.  *ANY: something was written, and is to be
 * synced.  0; or -1, and the tracking is lost. */
int state_write_samples (struct state *s, bool *any);
int state_write_note (struct state *s, bool *any);

/* ---- work.c, and cool.c ---- */

/* If blocks turned dirty in the region without a guest since the last time, they are dirty in the
 * live map from now on. */
void state_take_in (struct state *s);

/* Flush the source's disk; not under io_lock.  When it fails the tracking is lost: what was in its
 * caches may be gone, and another flush would prove nothing (R5).  0, or -1 with errno. */
int state_sync_disk (struct state *s);

/* Write every L1 page that changed, into the copy that does not hold what is durable now; then
 * sync.  Under l1_lock, and io_lock need not be held.  0; or -1, and the tracking is lost. */
int state_write_l1 (struct state *s);

/* Extent E is to become hot.  Under lock only. */
void state_ask (struct state *s, uint64_t e);

/* Is a loss to be written?  The file says INCONSISTENT then, which is as good as all dirty. */
void state_write_loss (struct state *s);

/* The tracking is lost because of errno, when WHAT was written.  -1. */
int state_write_failed (struct state *s, const char *what);

/* Page ID->number of LIVE's bits.  AREA_OFFSET is where page 0 stands.  How many bits are set, or
 * -1 with errno.  A page of which none is set is not written if SKIP_EMPTY. */
int64_t state_write_page (struct state *s, const struct state_page_id *id,
                          const _Atomic uint64_t *live, uint64_t area_offset, bool skip_empty);

#endif
