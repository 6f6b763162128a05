/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The manifest of a backup: what one run has made of all its disks.  nbdmirror-repository(5)
 * describes the JSON.  A struct manifest is plain data that belongs to its caller, and one thread
 * at a time uses it.
 *
 * Every text is owned, comes from malloc() or base/text.h, and may be NULL where it is said so.
 * Times are microseconds since 1970 (UTC), sizes are bytes.
 */

#ifndef NBDMIRROR_BACKUP_MANIFEST_H
#define NBDMIRROR_BACKUP_MANIFEST_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define MANIFEST_VERSION 1

struct manifest_disk {
  char *id;
  bool full;           /* else incremental */
  char *reason;        /* why it is full or incremental, in words */
  char *file;          /* relative to the repository; NULL where the disk has failed */
  char *parent_backup; /* NULL: full */
  char *parent_file;   /* relative to the repository; NULL: full */
  char *control;    /* absolute path of the control socket, or of the image that was not in use */
  char *checkpoint; /* name, NULL: none was added */
  char *checkpoint_uuid; /* the same */
  uint64_t size;         /* of the disk */
  uint64_t file_bytes;   /* of the file */
  uint64_t copied_bytes; /* that were sent into it */
  char *digest;          /* of the whole disk (digest/whole.h); NULL where the disk has failed */
  char *file_digest;     /* of the file, in the same way; NULL: the file is being rewritten, so
                            file_bytes may be wrong, too */
  /* A list of digests (backup/digests.h): its path, relative to the repository, and its own digest;
   * NULL: there is none. */
  char *digests_file, *digests_own;
  double pause_ms; /* for which the guest was held; -1: not known */
  char *error;     /* NULL, or why this disk has no backup */
  bool chain_good; /* as chain_fault_once() has found; not in the manifest */
};

/* A file that is kept beside the disks (--include). */
struct manifest_include {
  char *source; /* where it was */
  char *file;   /* relative to the repository */
  uint64_t bytes;
  char *digest; /* as for a disk's file */
};

struct manifest_hook {
  char *event, *command;
  char *error; /* NULL: it succeeded */
};

struct manifest {
  char *name;
  uint64_t sequence;    /* backups are ordered by it, and not by the clock */
  char *repository;     /* the repository's UUID */
  char *program;        /* name and version */
  char *host, *host_id; /* names of the host that has written it */
  int64_t begun_us, ended_us;
  bool guest_frozen; /* else crash-consistent */
  bool is_protected; /* it is not to be pruned */
  bool is_dropped;   /* it is being pruned, and cannot be restored any more */
  struct manifest_disk *disks;
  unsigned nr_disks;
  struct manifest_include *includes;
  unsigned nr_includes;
  struct manifest_hook *hooks;
  unsigned nr_hooks;
};

/* Free what M holds, and set it to zeroes. */
void manifest_clear (struct manifest *m);

/* One more of each, all zero and with pause_ms -1.  NULL: out of memory.  What was returned before
 * may have moved. */
struct manifest_disk *manifest_add_disk (struct manifest *m);
struct manifest_include *manifest_add_include (struct manifest *m);
struct manifest_hook *manifest_add_hook (struct manifest *m);

/* The disk ID in M, or NULL. */
struct manifest_disk *manifest_find_disk (const struct manifest *m, const char *id);

/* TEXT, of any bytes, as JSON: those that are no UTF-8 become `?`.  A new reference, or NULL. */
json_t *manifest_text_to_json (const char *text);
/* The same, and null for NULL.  A reason or an error may have the name of a file in it, in whatever
 * bytes. */
json_t *manifest_text_or_null (const char *text);

/* A new reference.  NULL: out of memory, or a text that is no reason and no error is not UTF-8. */
json_t *manifest_to_json (const struct manifest *m);
json_t *manifest_disk_to_json (const struct manifest_disk *d);

/* Read O, checking everything that others rely on: paths stay below the repository, names and disks
 * are valid.  NAME is what the file is called.  0, or -1 with *ERROR (base/text.h), and then M is
 * zero. */
int manifest_from_json (struct manifest *m, const json_t *o, const char *name, char **error);
/* The same for one disk: O replaces what D, all zero at first, holds.  After -1 D is as before. */
int manifest_disk_from_json (struct manifest_disk *d, const json_t *o, char **error);

#endif
