/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Checkpoints: freezing the active recording and beginning the next one, and removing them.
 *
 * A checkpoint is an instant.  What the guest changes after it has to be in the next recording, and
 * what it changed before in the old one.  It is taken in two steps, and nobody is held meanwhile:
 *
 *   prepare   the next recording is marked as well as the active one
 *   (drain)   the caller waits until each write that began before has ended
 *   commit    the disk is flushed; the active recording is written and made durable, then the table
 *             that names the new checkpoint; then the old one is not marked any more
 *
 * The checkpoint is any instant between the drain and the commit.  A write that ended before it is
 * marked in the old recording; one that began before and ended after it, or came later, was counted
 * in after the prepare, so it is marked in the next one too.  Hence several disks have one common
 * instant if all of them are drained before the first one commits.  A crash finds the old table or
 * the new one, and with either no mark is missing, since both recordings have all of them.
 *
 * The control thread calls these, but for the flush; state_work() may run beside them.  0, or -1
 * with *ERROR (for text_free()).
 */

#ifndef NBDMIRROR_DIRTY_BITMAP_STATE_RECORDINGS_H
#define NBDMIRROR_DIRTY_BITMAP_STATE_RECORDINGS_H

#include "dirty-bitmap/state/state.h"

/* Begin the checkpoint NAME, UUID.  SLOTS are the mappings of the recordings' live maps (borrowed
 * until state_destroy).  If nothing was tracked, the tracking begins.  After 0 the caller owes
 * state_checkpoint_commit() or state_checkpoint_abort(). */
int state_checkpoint_prepare (struct state *s, const struct state_layout *layout,
                              _Atomic uint64_t *const slots[2], const uint8_t boot[16],
                              const char *name, const uint8_t uuid[16], char **error);

/* Each write that began before the last prepare has ended.  First the disk is flushed, which may
 * take long, on any thread: 0, or -1 with errno, and the tracking is lost.  After that the commit.
 * If it fails no checkpoint was added, and the tracking may be lost. */
int state_checkpoint_flush (struct state *s);
int state_checkpoint_commit (struct state *s, char **error);
void state_checkpoint_abort (struct state *s);

/* What was recorded since NAME is then recorded since its parent; without a parent it is
 * forgotten. */
int state_checkpoint_remove (struct state *s, const char *name, char **error);

/* ---- what was changed, changed.c ---- */

/* How recordings are read: as struct state_io's read. */
typedef int state_reader (void *opaque, void *data, size_t length, uint64_t offset);

/* OR the bits of C's frozen recording into BITS (nr_words).  A damaged page counts as changed; *BAD
 * is their number.  If pages are missing, so that fewer blocks are found than were recorded, it
 * fails. */
int state_read_recording (const struct state_layout *l, const struct state_checkpoint *c,
                          state_reader *read, void *opaque, uint64_t *bits, uint64_t *bad,
                          char **error);

/* What the frozen recordings of T from checkpoint FROM on have, ORed into BITS.  That of the active
 * one is the caller's to add.  Fails also if one from FROM on is inconsistent. */
int state_changed_since (const struct state_layout *l, const struct state_table *t, uint32_t from,
                         state_reader *read, void *opaque, uint64_t *bits, char **error);

/* The same for S, with the active recording.  It may take seconds, so io_lock is not held: a
 * guest's first touch of an extent would wait for it.  The control thread's. */
int state_changed_now (struct state *s, const char *since, uint64_t *bits, char **error);

/* Its two steps: the frozen recordings, which nobody changes; then the active one, which also fails
 * if the tracking was lost.  That one is quick. */
int state_frozen_since (struct state *s, const char *since, uint64_t *bits, char **error);
int state_add_active (struct state *s, const char *since, uint64_t *bits, char **error);

#endif
