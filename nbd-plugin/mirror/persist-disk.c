/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The disk's own file.  See persist-disk.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <nbdkit-filter.h>

#include "base/clock.h"
#include "base/text.h"
#include "base/uuid.h"
#include "nbd-plugin/mirror/persist-disk.h"

#define LOCK_TRIES 20u /* a server that was killed a moment ago may not have ended yet */
#define LOCK_PAUSE_MS 50u
#define LOOK_TRIES 2u /* who only looks for a server has the lock for an instant */

static const uint8_t no_mark[16];

void
persist_disk_open (struct persist *p, const char *direct)
{
  struct stat st;
  int *fd = &p->file.disk_fd;

  if (direct != NULL)
    *fd = open (direct, O_RDONLY | O_CLOEXEC);
  if (*fd == -1 || fstat (*fd, &st) == -1 || !S_ISREG (st.st_mode))
    return;
  bool tracked = p->path != NULL;
  int how = tracked ? LOCK_EX : LOCK_SH;
  for (unsigned tries = 0; flock (*fd, how | LOCK_NB) == -1; tries++) {
    if (errno != EWOULDBLOCK || (!tracked && tries == LOOK_TRIES))
      return;
    if (tries == LOCK_TRIES) {
      nbdkit_error ("%s is served by another server as well: what it changes is not tracked, so no"
                    " checkpoint is to be believed",
                    direct);
      p->shared = true;
      return;
    }
    clock_sleep_ms (LOCK_PAUSE_MS);
  }
}

int
persist_disk_mark (struct persist *p, struct state_found *f, const struct state_identity *now,
                   char **why)
{
  uint8_t mark[16];

  if (!now->known)
    return 0;
  p->state.disk.inode = now->inode;
  p->state.disk.size = now->size; /* known while the file is in use, too */
  uuid_make (mark);
  /* The state file knows it first: a server that is killed in between leaves no wrong mark. */
  if (f->tracked && state_announce_mark (&p->state, f, now, mark) == -1)
    return text_error (why, "it cannot be written: %s", strerror (errno));
  if (state_file_mark_disk (p->file.disk_fd, mark))
    memcpy (p->state.disk.mark, mark, sizeof mark);
  return 0;
}

void
persist_disk_note_size (struct persist *p, const struct region_geometry *geo)
{
  struct state_identity now;

  if (atomic_load (&p->state.active))
    return; /* what is tracked has the size that was noted */
  state_identity_of (p->file.disk_fd, &now);
  /* A guest may have opened it at our start, and is not told that it was resized since. */
  if (now.size == geo->disk_size || p->state.disk.size != geo->disk_size)
    p->state.disk.size = now.size;
}

void
persist_disk_unmark (const struct persist *p, const char *direct)
{
  struct state_identity id;

  if (p->file.disk_fd == -1)
    return;
  state_identity_of (p->file.disk_fd, &id);
  if (id.known && memcmp (id.mark, no_mark, 16) != 0
      && !state_file_mark_disk (p->file.disk_fd, NULL))
    nbdkit_error ("%s: it was tracked with a state file, which cannot be told that this server"
                  " does not: remove that file: %s",
                  direct, strerror (errno));
}

bool
persist_disk_is_ours (const struct persist *p)
{
  struct state_identity now;

  if (p->shared)
    return false;
  if (memcmp (p->state.disk.mark, no_mark, 16) == 0)
    return true;
  state_identity_of (p->file.disk_fd, &now);
  return memcmp (now.mark, p->state.disk.mark, 16) == 0;
}
