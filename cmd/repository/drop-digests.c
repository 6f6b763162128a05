/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See drop-digests.h.
 */

#include "config.h"

#include <stdbool.h>
#include <string.h>

#include "backup/digests.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/repository/drop-digests.h"

static void
on_blocks (void *opaque, uint64_t first, const uint8_t *digests, uint64_t nr)
{
  digest_list_add (opaque, first, digests, nr);
}

/* Make the new list; D gets it instead of what it has. */
static int
make (const struct repository *r, const char *name, const struct digests_chain *c, bool complete,
      uint64_t blocks, struct manifest_disk *d, char **error)
{
  CLEANUP_TEXT char *folder = repository_path (r, d->id);
  struct manifest_disk made = { .digests_file = NULL };
  struct digests_new list;

  if (digests_begin (&list, r, d->id, name, complete, blocks, error) == -1)
    return -1;
  int result = digest_list_combine (c->lists, c->nr, on_blocks, list.list, error);
  if (result == 0)
    result = digests_end (&list, &made, error);
  digests_drop (&list);
  if (result == 0)
    result = repository_sync (folder, error);
  d->digests_file = made.digests_file;
  d->digests_own = made.digests_own;
  return result;
}

void
drop_digests (const struct repository *r, const char *name, struct manifest_disk *const *disks,
              size_t nr, bool becomes_full, char **old)
{
  struct manifest_disk *d = disks[nr - 1];
  struct digests_chain c = { .nr = 0 };
  CLEANUP_TEXT char *error = NULL;
  uint64_t blocks = 0;
  bool complete;

  int result = digests_chain_of_links (r, disks, nr, &c, &complete, &blocks, &error);
  if (result == 0 && becomes_full && !complete)
    result = text_error (&error, "the lists before it are not complete");
  *old = d->digests_file;
  text_free (d->digests_own);
  d->digests_file = d->digests_own = NULL;
  if (result == 0)
    result = make (r, name, &c, complete, blocks, d, &error);
  if (d->digests_file != NULL && *old != NULL && strcmp (d->digests_file, *old) == 0) {
    text_free (*old); /* it is the same list */
    *old = NULL;
  }
  if (result == -1 && *old != NULL)
    cmd_warning ("backup %s of '%s' loses its list of digests, so that the next backup reads the"
                 " whole disk: %s",
                 name, d->id, error);
  digests_chain_free (&c);
}
