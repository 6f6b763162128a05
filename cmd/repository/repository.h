/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the subcommands share that read and tend a repository of backups: backup-list,
 * backup-verify, backup-prune, backup-merge, backup-protect, restore and serve-backup.
 */

#ifndef NBDMIRROR_CMD_REPOSITORY_REPOSITORY_H
#define NBDMIRROR_CMD_REPOSITORY_REPOSITORY_H

#include <stdbool.h>
#include <stdint.h>

#include "cmd/backup/store.h"
#include "cmd/cmd.h"
#include "digest/whole.h"

/* A repository that is open, and its backups as they were then. */
struct opened {
  struct store store;
  struct backup_list list;
};

/* Open the repository at PATH, a directory or an ssh URI, and read its manifests.  EXIT_DONE, or an
 * exit status after a message.  To be closed in either case. */
int opened_open (struct opened *o, const char *path);
void opened_close (struct opened *o);

/* Which backup, and which of its disks. */
struct selected {
  const struct backup_entry *entry;
  const struct manifest_disk *disk;
};

/* AT: a backup's name, a time (the last backup that had ended by then), or NULL for the last one.
 * DISK: NULL if the backup holds only one.  Backups that cannot be read, are being pruned, or have
 * not got the disk are passed over.  EXIT_DONE, or an exit status after a message. */
int opened_select (const struct opened *o, const char *at, const char *disk, struct selected *s);
/* The same where the backup as a whole is meant: it may hold several disks. */
int opened_select_any (const struct opened *o, const char *at, const char *disk,
                       struct selected *s);

/* Is S still what it was?  A prune may have begun between the choice and the opening of the files,
 * and then they may hold something else; once qemu-nbd has them open no prune writes into them.
 * False after a message. */
bool opened_still_good (struct opened *o, const struct selected *s);

/* The time US in local time: 2026-01-31 23:59:59 */
#define BACKUP_TIME_TEXT 32
void format_backup_time (char text[BACKUP_TIME_TEXT], int64_t us);

/* The digest of the contents of the image at PATH, in FORMAT ("raw": of the file itself), newly
 * computed.  Shows progress if SHOW.  EXIT_DONE, or an exit status after a message; EXIT_CANCELLED
 * if SIGNAL was set. */
int digest_of (const char *path, const char *format, bool show, _Atomic int *signal,
               char text[DIGEST_WHOLE_TEXT]);

/* ---- drop.c ---- */

/* Take the backups NAMES out of the repository, and finish what an interrupted call had begun.  All
 * other backups read the same at every instant.  o->list is read again.  *FREED: how many bytes the
 * files take up less.  An exit status, after messages. */
int drop_backups (struct opened *o, char *const *names, size_t nr_names, _Atomic int *signal,
                  int64_t *freed);

#endif
