/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A repository of backups: a directory of qcow2 files and manifests.  nbdmirror-repository(5)
 * describes the layout.  The folder:
 *
 *   names.h       names of disks, backups, files and checkpoints (pure)
 *   manifest.h    the manifest of one backup as data and as JSON
 *   repository.h  the directory: make or open it, list its backups, write a manifest
 *   lock.h        who may write
 *   begun.h       what an interrupted run has left, and its removal
 *   chain.h       which files a backup needs, and are they there?
 *   digests.h     digests of the disks' blocks, so that not all is read each time
 *   plan.h        full or incremental, and why? (pure)
 *   qcow2-head.h  which files does a qcow2 file name?
 *
 * Readers take no lock.  They see each manifest whole, as it was before or after a change, since it
 * is replaced by a rename.  A file that a manifest names is complete and durable before the
 * manifest is.
 *
 * Nothing here is shared between threads.  Functions return 0, or -1 with *ERROR (base/text.h).
 */

#ifndef NBDMIRROR_BACKUP_REPOSITORY_H
#define NBDMIRROR_BACKUP_REPOSITORY_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "backup/manifest.h"
#include "base/uuid.h"

#define REPOSITORY_VERSION 1

struct repository {
  char *path; /* absolute; owned */
  char uuid[UUID_TEXT_BYTES];
};

/* Is there no repository at PATH, but a place for one: a directory that is empty, or one in which a
 * directory PATH can be made? */
bool repository_is_missing (const char *path);

/* Open the repository at PATH.  With MAKE one that is missing is made there: PATH is then missing
 * too, or an empty directory. */
int repository_open (struct repository *r, const char *path, bool make, char **error);
void repository_close (struct repository *r);

/* The path of NAME, which is relative to the repository.  For text_free(). */
char *repository_path (const struct repository *r, const char *name);

/* Make the folder of the disk ID, if it is missing. */
int repository_make_disk (const struct repository *r, const char *id, char **error);

/* Replace the file at PATH by O, so that a crash leaves the old one or the new one. */
int repository_write_json (const char *path, const json_t *o, char **error);

/* Make the names in the directory PATH durable, or the contents of the file PATH. */
int repository_sync (const char *path, char **error);

/* ---- backups -------------------------------------------------------------------------------- */

/* A backup of which there is a manifest. */
struct backup_entry {
  char *name;               /* owned */
  struct manifest manifest; /* all zero where it cannot be read */
  char *fault;              /* owned; NULL, or why it cannot be read */
};

struct backup_list {
  struct backup_entry *list; /* owned; by sequence, those that cannot be read come first */
  unsigned nr;
};

int repository_list (const struct repository *r, struct backup_list *list, char **error);
void repository_list_free (struct backup_list *list);

/* Read the manifest of the backup NAME only; one that is missing is a fault, too. */
void repository_read (const struct repository *r, const char *name, struct backup_entry *e);
void repository_entry_clear (struct backup_entry *e);

/* The backup NAME, or NULL. */
struct backup_entry *repository_find (const struct backup_list *list, const char *name);

/* Write M, whose files are durable.  A manifest with sequence 0 is new and gets the next one; else
 * it replaces the one of its name.  After an error its sequence is as before.  The caller holds the
 * lock of the index. */
int repository_write (const struct repository *r, struct manifest *m, char **error);

#endif
