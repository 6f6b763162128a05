/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup: the digests of the new file and of the disk as the file holds it, and the list of the
 * digests of the disk's blocks.
 *
 * The file is read once, which gives both (backup/qcow2-digests.h).  A file that was compressed is
 * read a second time, through a qemu-nbd, for the digest of the disk.  An incremental file holds
 * only what was changed, and the lists of the earlier backups tell the rest.  What they tell is
 * what was backed up then: if a file below has been damaged since, backup-verify finds out. Without
 * lists the whole disk is read, through the chain.
 */

#include "config.h"

#include "backup/digests.h"
#include "backup/names.h"
#include "backup/qcow2-digests.h"
#include "base/text.h"
#include "cmd/backup/store.h"
#include "cmd/cmd.h"
#include "mirror/endpoint/endpoint.h"
#include "mirror/verify/image-digest.h"

struct reading {
  struct store *store;
  struct digest_list *list;   /* NULL: none is made */
  struct digest_whole *whole; /* the same */
};

static bool
go_on (void *opaque)
{
  const struct store *s = ((const struct reading *)opaque)->store;

  return s->go_on == NULL || s->go_on (s->opaque);
}

static bool
on_progress (void *opaque, uint64_t done, uint64_t size)
{
  (void)done, (void)size;
  return go_on (opaque);
}

static void
on_blocks (void *opaque, uint64_t first, const uint8_t *digests, uint64_t nr)
{
  const struct reading *r = opaque;

  digest_list_add (r->list, first, digests, nr);
  if (r->whole != NULL && digests != NULL)
    digest_whole_add (r->whole, digests, nr);
  else if (r->whole != NULL)
    digest_whole_add_zeroes (r->whole, nr);
}

char *
store_digest_of_file (struct store *s, const char *path, char **error)
{
  struct reading reading = { .store = s };
  const struct endpoint_options opts = { .writable = false };
  const struct image_digest_options o = { .opaque = &reading, .progress = on_progress };
  char *word = text_copy (path);
  struct endpoint *ep = endpoint_open (&word, 1, &opts, NULL, error);
  char text[DIGEST_WHOLE_TEXT];
  bool kept;
  int r = -1;

  if (ep != NULL) {
    r = image_digest (ep, &o, text, &kept, error);
    endpoint_close (ep);
  }
  text_free (word);
  return r == 0 ? text_copy (text) : NULL;
}

/* Read the new file of M, for which FD is open, and put the digests of the blocks that it holds
 * into a new list of the backup NAME.  M gets the list and the file's digest, and TEXT the disk's,
 * if the file is a full one.  1; 0: the file has to be read in another way; -1 with *ERROR. */
static int
read_file (struct store *s, int fd, const char *name, struct manifest_disk *m,
           char text[DIGEST_WHOLE_TEXT], char **error)
{
  CLEANUP_TEXT char *path = repository_path (&s->repo, m->file);
  struct reading reading = { .store = s, .whole = digest_whole_new () };
  const struct qcow2_digests o = {
    .size = m->size, .complete = m->full, .blocks = on_blocks, .go_on = go_on, .opaque = &reading
  };
  struct digests_new new;
  char file[DIGEST_WHOLE_TEXT];

  if (reading.whole == NULL)
    return text_error (error, "out of memory");
  uint64_t blocks = digest_count (&digest_whole_key, m->size);
  int r = digests_begin (&new, &s->repo, m->id, name, m->full, blocks, error);
  if (r == 0) {
    reading.list = new.list;
    r = qcow2_digests (fd, path, &o, file, error);
    if (r == 1 && digests_end (&new, m, error) == -1)
      r = -1;
    digests_drop (&new);
  }
  if (r == 1) {
    m->file_digest = text_copy (file);
    digest_whole_text (reading.whole, text);
  }
  digest_whole_free (reading.whole);
  return r;
}

/* Read the image at PATH, all of it or only its own layer, and put its digests into a new list of
 * the backup NAME.  M gets the list, and TEXT the digest if all was read. */
static int
read_image (struct store *s, const char *path, const char *name, bool top_only,
            struct manifest_disk *m, char text[DIGEST_WHOLE_TEXT], char **error)
{
  char *const words[] = { (char *)"[",
                          (char *)"qemu-nbd",
                          (char *)"--format=qcow2",
                          (char *)"--persistent",
                          (char *)"--shared=0",
                          (char *)"--read-only",
                          (char *)"--allocation-depth",
                          (char *)path,
                          (char *)"]" };
  const struct endpoint_options opts = { .layers = true };
  struct endpoint *ep = endpoint_open (words, sizeof words / sizeof words[0], &opts, NULL, error);
  struct digests_new new;
  bool kept;

  if (ep == NULL)
    return -1;
  uint64_t blocks = digest_count (&digest_whole_key, endpoint_info (ep)->size);
  int r = digests_begin (&new, &s->repo, m->id, name, !top_only, blocks, error);
  if (r == 0) {
    struct reading reading = { .store = s, .list = new.list };
    const struct image_digest_options o = {
      .opaque = &reading, .progress = on_progress, .blocks = on_blocks, .top_only = top_only
    };
    r = image_digest (ep, &o, text, &kept, error);
    if (r == 0)
      r = digests_end (&new, m, error);
    digests_drop (&new);
  }
  endpoint_close (ep);
  return r;
}

static void
on_combined (void *opaque, uint64_t first, const uint8_t *digests, uint64_t nr)
{
  (void)first;
  digest_whole_add (opaque, digests, nr);
}

/* The digest of the disk after an incremental backup, whose own list M names, from the lists of the
 * chain C. */
static int
combine (const struct store *s, struct digests_chain *c, const struct manifest_disk *m,
         char text[DIGEST_WHOLE_TEXT], char **error)
{
  struct digest_whole *w = digest_whole_new ();
  int r = -1;

  if (w == NULL)
    text_error (error, "out of memory");
  else if (digests_chain_add (&s->repo, m, c, error) == 0)
    r = digest_list_combine (c->lists, c->nr, on_combined, w, error);
  if (r == 0)
    digest_whole_text (w, text);
  digest_whole_free (w);
  return r;
}

/* The lists of the chain below M, or none, after a message. */
static bool
find_lists (const struct store *s, const struct manifest_disk *m, struct digests_chain *c)
{
  CLEANUP_TEXT char *error = NULL;
  struct backup_list list;

  if (repository_list (&s->repo, &list, &error) == 0) {
    int r = digests_chain_find (&s->repo, &list, m->parent_backup, m->id, c, &error);
    repository_list_free (&list);
    if (r == 0)
      return true;
  }
  cmd_say ("%s: the whole disk is read for its digest this time: %s", m->id, error);
  return false;
}

int
store_digests (struct store *s, int fd, struct manifest_disk *m, char **error)
{
  CLEANUP_TEXT char *path = repository_path (&s->repo, m->file);
  CLEANUP_TEXT char *name = backup_name_of_file (m->file);
  struct digests_chain chain = { .nr = 0 };
  char text[DIGEST_WHOLE_TEXT];

  bool top_only = !m->full && find_lists (s, m, &chain);
  int r = m->full || top_only ? read_file (s, fd, name, m, text, error) : 0;
  if (r == 0 && (r = read_image (s, path, name, top_only, m, text, error)) == 0) {
    m->file_digest = store_digest_of_file (s, path, error);
    r = m->file_digest != NULL ? 1 : -1;
  }
  if (r == 1 && top_only && combine (s, &chain, m, text, error) == -1)
    r = -1;
  digests_chain_free (&chain);
  if (r == 1)
    m->digest = text_copy (text);
  return r == 1 ? 0 : -1;
}
