/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The repository that a backup writes to, and all that is done in it.
 *
 * Files are flushed and locks are held on the host that holds the directory: so all of this happens
 * there.  If that is another host, each function asks an agent to call the same function there
 * (cmd/far/).  If the line to it is lost, what was not finished is removed there.
 *
 * One thread.  Functions return 0, or -1 with *ERROR (base/text.h).
 */

#ifndef NBDMIRROR_CMD_BACKUP_STORE_H
#define NBDMIRROR_CMD_BACKUP_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "backup/names.h"
#include "backup/repository.h"

struct far;

/* A new file of a disk, relative to the repository.  Owned. */
struct store_file {
  char *file;
  int fd;
};

struct store {
  struct repository repo;
  int *locks; /* of disks, owned */
  unsigned nr_locks;
  struct store_file *files; /* that were made, owned */
  unsigned nr_files;
  struct far *far; /* NULL: it is here; else on the host that repo.path, a URI, names */
  bool missing;    /* there is none yet: see store_look() */
  /* NULL, or called with OPAQUE now and then by what takes long; false: stop. */
  bool (*go_on) (void *);
  void *opaque;
};

/* Open the repository at PLACE, a directory or an ssh URI.  To be closed in either case, which
 * gives up the locks. */
int store_open (struct store *s, const char *place, char **error);
/* The same; or, where there is none yet but could be one, S is `missing`: no backup is in it, and
 * it may be made, or closed. */
int store_look (struct store *s, const char *place, char **error);
/* Make the one that is missing, unless somebody else has made it meanwhile. */
int store_make (struct store *s, char **error);
void store_close (struct store *s);

/* Take the lock of the disk ID, whose folder is made if it is missing.  *STATUS: the exit status
 * that fits the error. */
int store_lock (struct store *s, const char *id, int *status, char **error);

/* As repository_list(), chain_fault(), and the functions of backup/begun.h. */
int store_list (struct store *s, struct backup_list *list, char **error);
char *store_chain_fault (struct store *s, const struct backup_list *list, const char *name,
                         const char *id);
bool store_was_begun (struct store *s, const char *id);
int store_begin (struct store *s, int64_t us, char *const ids[], unsigned nr,
                 char name[BACKUP_NAME_MAX], char **error);
void store_tidy (struct store *s, const char *ours, char *const held[], unsigned nr_held,
                 void (*told) (void *opaque, const char *name), void *opaque);
void store_give_up (struct store *s, const char *name, char *const ids[], unsigned nr,
                    bool keep_mark);

/* Make the empty qcow2 file FILE for a disk of SIZE bytes, on PARENT (NULL: none). */
int store_make_file (struct store *s, const char *file, const char *parent, uint64_t size,
                     bool compress, char **error);
void store_remove_file (struct store *s, const char *file);
/* What FILE is as an endpoint: its path, or a URI.  For text_free(). */
char *store_endpoint (const struct store *s, const char *file);

/* Nobody writes to the file of M any more: make it durable, and read it.  M has what it has but the
 * digests, the list of digests, and file_bytes; it gets these. */
int store_seal (struct store *s, struct manifest_disk *m, char **error);

/* Make the file FD of a local repository durable, in pieces, so that a slow repository is no silent
 * one.  -1 with errno, which is EINTR where go_on() says so.  Errors are returned once: by this, or
 * by the next call of the kind. */
int store_write_out (const struct store *s, int fd);

/* compress.c: was the file FD made to be compressed? */
bool store_will_compress (int fd);
/* If the file of M, for which FD is open, was made to be compressed, do it.  Nobody
 * writes to it.  1: there is another file in its place, which is durable; 0: it is the same. */
int store_compress (const struct store *s, const struct manifest_disk *m, int fd, char **error);

/* digests.c: for text_free(), or NULL with *ERROR. */
char *store_digest_of_file (struct store *s, const char *path, char **error);
/* The digests of the new file of M, for which FD is open, and of the disk as the file holds it.  M
 * gets both, and the list of the digests of the disk's blocks. */
int store_digests (struct store *s, int fd, struct manifest_disk *m, char **error);

/* A descriptor of FROM, a regular file of this host that is to be included, or -1 with *ERROR. */
int store_open_include (const char *from, char **error);
/* Copy FROM, a file of this host, into the repository as M->file, whose folder is made if it is
 * missing.  M gets its bytes and digest. */
int store_include (struct store *s, const char *from, struct manifest_include *m, char **error);
/* The same for M->file of a local repository, whose data is there already. */
int store_include_end (struct store *s, struct manifest_include *m, char **error);

/* Write the manifest of the run, which has thereby ended.  With KEEP_MARK it still counts as begun,
 * as for store_give_up(), until the next backup of its disks. */
int store_write (struct store *s, struct manifest *m, bool keep_mark, char **error);

/* Copy M->file, which a backup has kept, to the file TO of this host, which must not be there.  Its
 * digest is not looked at. */
int store_fetch (struct store *s, const struct manifest_include *m, const char *to, char **error);

#endif
