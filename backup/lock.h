/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Who may write to a repository.  There is a lock for each disk, held for as long as its backup
 * takes, and one for the index, held while manifests are written or removed.  A lock ends with the
 * process that holds it, however that ends.
 *
 * Whoever takes backups out of a repository holds a second lock for each disk (`.prune`), so that
 * readers can tell his work from that of a backup, which changes no file that is there.
 *
 * They are locks of open file descriptions on files that stay (`.lock`).  They hold between hosts
 * as far as the file system passes them on: NFS version 4 does, and version 3 does with its lock
 * daemon, but not when mounted with `nolock` or `local_lock`.  What the file says of its holder is
 * only for people.
 */

#ifndef NBDMIRROR_BACKUP_LOCK_H
#define NBDMIRROR_BACKUP_LOCK_H

#include <stdbool.h>
#include <stdint.h>

struct repository;

/* Take the lock of DISK, whose folder exists, or of the index (NULL) into *FD; to be closed with
 * fd_close().  The index is waited for, for at most 30 s; a disk is not.  0, or -1 with *ERROR
 * (base/text.h), which names the holder. */
int repository_lock (const struct repository *r, const char *disk, int *fd, char **error);

/* The same for the second lock of DISK, by somebody who has the first one. */
int repository_lock_prune (const struct repository *r, const char *disk, int *fd, char **error);

/* Has anybody the second lock of DISK? */
bool repository_is_pruned (const struct repository *r, const char *disk);

/* This host, in a way that does not change with its name.  For text_free(). */
char *repository_host_id (void);
char *repository_host (void); /* its name; the same */

/* Wait until no program has the image PATH open with QEMU's locks, for at most LIMIT_MS.  False:
 * one still has.  A file that cannot be looked at counts as unused. */
bool repository_wait_unused (const char *path, uint64_t limit_ms);

#endif
