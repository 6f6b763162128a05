/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A run that has begun.  Before it makes any file it writes backups/NAME.begun, which names its
 * disks, and it removes that again when its manifest is there.  So the files of a run that was
 * interrupted are known, by whoever tidies up: there is a NAME.begun, no NAME.json, and nobody
 * holds the disks' locks.  A file that belongs to no such run is never removed.
 *
 *   lock the disks; NAME.begun; the files; NAME.json; remove NAME.begun; unlock
 *
 * Where a job may be left over at the server of a disk that has failed, NAME.begun stays for the
 * next run: it says whose job that is.
 */

#ifndef NBDMIRROR_BACKUP_BEGUN_H
#define NBDMIRROR_BACKUP_BEGUN_H

#include <stdbool.h>
#include <stdint.h>

#include "backup/names.h"

struct repository;

/* Choose a name for a backup that begins at US, and write NAME.begun for the disks IDS, whose locks
 * the caller holds.  Takes the lock of the index meanwhile.  0, or -1 with *ERROR (base/text.h). */
int backup_begin (const struct repository *r, int64_t us, char *const ids[], unsigned nr,
                  char name[BACKUP_NAME_MAX], char **error);

/* Is NAME.begun still there?  False: another run has taken this one for interrupted. */
bool backup_is_marked (const struct repository *r, const char *name);

/* The manifest of NAME is written: remove NAME.begun.  A failure harms nothing. */
void backup_begun_end (const struct repository *r, const char *name);

/* Remove the files that the run NAME has made of the disks IDS; it has no manifest, and the caller
 * holds the locks of these disks.  NAME.begun is removed too, unless KEEP_MARK: a job of the run
 * may be left over at a server that cannot be asked. */
void backup_give_up (const struct repository *r, const char *name, char *const ids[], unsigned nr,
                     bool keep_mark);

/* Has a run with the disk ID begun that has not ended?  If the caller holds the disk's lock, it was
 * interrupted. */
bool backup_was_begun (const struct repository *r, const char *id);

/* Remove what interrupted runs have left, but not the run OURS.  The caller holds the locks of the
 * disks HELD and of no other one.  TOLD is called for each run that was tidied up. */
void backup_tidy (const struct repository *r, const char *ours, char *const held[],
                  unsigned nr_held, void (*told) (void *opaque, const char *name), void *opaque);

#endif
