/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Names in a repository of backups: of disks, backups, files and checkpoints.
 * nbdmirror-repository(5) describes them.  All functions are pure, and any thread may call them.
 */

#ifndef NBDMIRROR_BACKUP_NAMES_H
#define NBDMIRROR_BACKUP_NAMES_H

#include <stdbool.h>
#include <stdint.h>

#define BACKUP_DISK_ID_MAX 200 /* bytes */
#define BACKUP_NAME_MAX 32     /* bytes of a backup's name */

/* May TEXT be in a manifest, which is JSON? */
bool backup_is_utf8 (const char *text);

/* A copy of TEXT that may be: bytes that are no UTF-8 become `?`.  For text_free(). */
char *backup_make_utf8 (const char *text);

/* NULL, or what is wrong with ID as a disk's name (a constant).  It is the name of a folder, in
 * UTF-8. */
const char *backup_disk_id_fault (const char *id);

/* Is NAME the name of a backup: a UTC time, 20260131T235959Z, and perhaps "-" and a number? */
bool backup_name_ok (const char *name);

/* The name of a backup that begins at US, microseconds since 1970, and is the NR-th of its second,
 * counted from 0. */
void backup_name_make (char name[BACKUP_NAME_MAX], int64_t us, unsigned nr);

/* The path of a disk's file below the repository.  For text_free(). */
char *backup_file_path (const char *disk, const char *name, bool full);

/* The name of the backup that has made FILE, the path of a disk's file.  For text_free(). */
char *backup_name_of_file (const char *file);

/* Is FILE the path of a file that a backup NAME of DISK may have made? */
bool backup_file_is_of (const char *file, const char *disk, const char *name);

/* Is TARGET, the destination of a job as its status tells it, a file that a backup writes?  No
 * other program has a reason to end a job that copies there. */
bool backup_target_is_backup (const char *target);

/* The same for any backup. */
bool backup_file_is_of_disk (const char *file, const char *disk);

/* The path of a list of the disk's digests, which has the digest OWN itself; NULL: it is being
 * written.  For text_free(). */
char *backup_digests_path (const char *disk, const char *name, const char *own);

/* Is FILE the path of such a list of DISK, in the backup NAME or (NULL) any? */
bool backup_is_digests (const char *file, const char *disk, const char *name);

/* A name for a disk that the user has not named: the last part of its control socket's path,
 * without what follows the last dot.  For text_free(). */
char *backup_disk_id_from_path (const char *path);

/* The checkpoint that a backup adds to its disks.  Each repository has names of its own, so that
 * two of them do not disturb each other.  UUID is the repository's.  For text_free(). */
char *backup_checkpoint_name (const char *uuid, const char *name);

/* Is CHECKPOINT one of the repository UUID's? */
bool backup_checkpoint_is_ours (const char *checkpoint, const char *uuid);

#endif
