/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup: the digest of the disk as the new file holds it, and the list of its blocks' digests.
 *
 * A full file is read whole.  Of an incremental one only what it holds itself is read, through the
 * whole chain, and the lists of the earlier backups tell the rest.  What they tell is what was
 * backed up then: if a file below has been damaged since, backup-verify finds out.
 */

#include "config.h"

#include "backup/digests.h"
#include "backup/names.h"
#include "base/text.h"
#include "cmd/backup/store.h"
#include "cmd/cmd.h"
#include "mirror/endpoint/endpoint.h"
#include "mirror/verify/image-digest.h"

struct reading {
  struct store *store;
  struct digest_list *list; /* NULL: none is made */
};

static bool
on_progress (void *opaque, uint64_t done, uint64_t size)
{
  const struct store *s = ((const struct reading *)opaque)->store;

  (void)done, (void)size;
  return s->go_on == NULL || s->go_on (s->opaque);
}

static void
on_blocks (void *opaque, uint64_t first, const uint8_t *digests, uint64_t nr)
{
  digest_list_add (((struct reading *)opaque)->list, first, digests, nr);
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

char *
store_digest_of_disk (struct store *s, struct manifest_disk *m, char **error)
{
  CLEANUP_TEXT char *path = repository_path (&s->repo, m->file);
  CLEANUP_TEXT char *name = backup_name_of_file (m->file);
  struct digests_chain chain = { .nr = 0 };
  char text[DIGEST_WHOLE_TEXT];

  bool top_only = !m->full && find_lists (s, m, &chain);
  int r = read_image (s, path, name, top_only, m, text, error);
  if (r == 0 && top_only)
    r = combine (s, &chain, m, text, error);
  digests_chain_free (&chain);
  return r == 0 ? text_copy (text) : NULL;
}
