/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The functions of store.h where the repository is on another host: the calls to the agent.
 */

#ifndef NBDMIRROR_CMD_BACKUP_STORE_FAR_H
#define NBDMIRROR_CMD_BACKUP_STORE_FAR_H

#include "cmd/backup/store.h"

/* Bytes of a file in one message. */
#define STORE_PART 65536

int store_far_open (struct store *s, const char *place, bool look, char **error);
int store_far_make (struct store *s, char **error);
int store_far_lock (struct store *s, const char *id, int *status, char **error);
int store_far_list (struct store *s, struct backup_list *list, char **error);
char *store_far_chain_fault (struct store *s, const char *name, const char *id);
bool store_far_was_begun (struct store *s, const char *id);
int store_far_begin (struct store *s, int64_t us, char *const ids[], unsigned nr,
                     char name[BACKUP_NAME_MAX], char **error);
void store_far_tidy (struct store *s, void (*told) (void *opaque, const char *name), void *opaque);
void store_far_give_up (struct store *s, bool keep_mark);
int store_far_make_file (struct store *s, const char *file, const char *parent, uint64_t size,
                         bool compress, char **error);
void store_far_remove_file (struct store *s, const char *file);
int store_far_seal (struct store *s, struct manifest_disk *m, char **error);
int store_far_include (struct store *s, const char *from, struct manifest_include *m, char **error);
int store_far_write (struct store *s, struct manifest *m, bool keep_mark, char **error);
int store_far_fetch (struct store *s, const struct manifest_include *m, const char *to,
                     char **error);

/* Binary data in JSON: two hexadecimal digits for each byte.  The first returns a new text
 * (text_free()); the second the number of bytes, or -1 if TEXT is none, or of more than SIZE. */
char *store_hex (const void *data, size_t n);
ssize_t store_unhex (const char *text, void *data, size_t size);

#endif
