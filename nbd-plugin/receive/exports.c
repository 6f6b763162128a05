/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The exports of a received disk: what each name means when it is opened, and the seal.  See
 * filter.h and control/receive-exports.h.
 */

#include "config.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "base/clock.h"
#include "control/lend-export.h"
#include "nbd-plugin/receive/filter.h"

#define PAUSE_NS (1 * NS_PER_MS)

/* nbdmirror receive --resume reads it, and then seals the disk from the beginning.  The value says
 * whether it is durable; a "1" that is lost only costs a flush. */
void
export_record_seal (const struct receive *r)
{
  struct stat st;

  if (r->config.disk_fd == -1 || fstat (r->config.disk_fd, &st) == -1 || !S_ISREG (st.st_mode))
    return;
  if (fsetxattr (r->config.disk_fd, RECEIVE_ATTRIBUTE, "0", 1, 0) == -1
      || fsync (r->config.disk_fd) == -1
      || fsetxattr (r->config.disk_fd, RECEIVE_ATTRIBUTE, "1", 1, 0) == -1)
    nbdkit_error ("that this disk was handed over cannot be recorded in its file: %m; another "
                  "server of it will need"
                  " --sealed");
}

void
export_notify (const struct receive *r, char note)
{
  ssize_t n = r->config.notify_fd != -1 ? write (r->config.notify_fd, &note, 1) : 1;

  if (n != 1)
    nbdkit_error ("the process that supervises this server is gone: %m");
}

int
export_pause (void *opaque)
{
  (void)opaque;
  return nbdkit_nanosleep (0, (unsigned)PAUSE_NS) == -1 ? errno : 0;
}

static void
record_and_tell (struct receive *r, const char *who)
{
  pthread_mutex_lock (&r->record_lock);
  if (!atomic_load (&r->seal_recorded)) {
    export_record_seal (r);
    export_notify (r, RECEIVE_NOTE_SEALED);
    nbdkit_debug ("sealed by %s", who);
    atomic_store (&r->seal_recorded, true);
  }
  pthread_mutex_unlock (&r->record_lock);
}

/* If the disk was handed over from here before, its fence record has to go first: a disk with both
 * is one that was handed over after it had been sealed. */
int
export_seal (struct receive *r, int64_t limit_ms, const char *who)
{
  if (!admission_seal (&r->admission) && atomic_load (&r->admission.given_up))
    return ESHUTDOWN;
  if (!r->config.fenced)
    record_and_tell (r, who);
  int err = admission_drain (&r->admission, atomic_load (&r->admission.generation), limit_ms,
                             export_pause, NULL);
  if (err != 0)
    return err;
  hand_over_begin (&r->hand_over, &r->admission);
  if (!r->config.fenced)
    return 0;
  err = hand_over_wait (&r->hand_over, &r->admission, export_pause, NULL);
  if (err == 0)
    record_and_tell (r, who);
  return err;
}

/* Divide NAME, which has three parts at most, at its dots.  Parts that are missing are "".  False
 * if there are more, one is too long, or the last one is empty. */
static bool
divide (const char *name, char parts[3][RECEIVE_ID_MAX + 1])
{
  for (unsigned i = 0; i < 3; i++) {
    size_t len = strcspn (name, (char[]){ RECEIVE_LAST, '\0' });
    if (len > RECEIVE_ID_MAX)
      return false;
    memcpy (parts[i], name, len);
    parts[i][len] = '\0';
    name += len;
    if (name[0] != '\0' && *++name == '\0')
      return false;
  }
  return name[0] == '\0';
}

static int
open_session (struct receive *r, struct handle *h, const char *name)
{
  char part[3][RECEIVE_ID_MAX + 1];
  uint64_t generation;

  if (!divide (name, part) || part[0][0] == '\0' || part[2][0] != '\0') {
    nbdkit_error ("a session's ID has 1 to %d characters", RECEIVE_ID_MAX);
    return -1;
  }
  const char *id = part[0], *last = part[1][0] != '\0' ? part[1] : NULL;
  int err = admission_join (&r->admission, id, last, &generation, export_pause, NULL);
  switch (err) {
  case 0:
    atomic_store (&h->generation, generation);
    if (last != NULL)
      standing_follow (&r->standing, id, last, generation);
    return 0;
  case EBUSY:
    nbdkit_error (
        "mirror session %s may not write: another mirror has taken the place of its last one", id);
    h->kind = EXPORT_SUPERSEDED;
    return 0;
  case EPERM:
    nbdkit_error ("a mirror session is refused: the disk was handed over to its guest");
    break;
  case ESTALE:
    nbdkit_error ("mirror session %s is refused: a newer one has taken its place", id);
    break;
  case ETIMEDOUT:
    nbdkit_error (
        "mirror session %s is refused: requests of the one before it have not ended in %d s", id,
        ADMISSION_LIMIT_MS / 1000);
    break;
  default:
    nbdkit_error ("mirror session %s: %s", id, strerror (err));
  }
  return -1;
}

static int
open_seal (struct receive *r, struct handle *h, const char *rest)
{
  (void)h, (void)rest;
  int err = export_seal (r, ADMISSION_LIMIT_MS, "the mirror");

  if (err == 0)
    return 0;
  if (atomic_load (&r->admission.given_up))
    nbdkit_error ("it is too late to seal: the disk was given up");
  else
    nbdkit_error ("sealed, but requests of the mirror are still in flight: %s", strerror (err));
  return -1;
}

static bool
is_uuid (const char *text)
{
  uint8_t uuid[16];

  return uuid_parse (text, uuid);
}

static int
open_checkpoint (struct receive *r, const char *name, bool at)
{
  char part[3][RECEIVE_ID_MAX + 1];

  if (!divide (name, part) || !is_uuid (part[1]) || is_uuid (part[2]) == at) {
    nbdkit_error ("\"%s\" is no session and checkpoint", name);
    return -1;
  }
  int err = at ? standing_record (&r->standing, part[0], part[1])
               : standing_declare (&r->standing, part[0], part[1], part[2]);
  if (err == 0)
    return 0;
  nbdkit_error ("checkpoint %s: %s", part[1],
                err == ESHUTDOWN ? "the session is not the one that may write"
                : err == ESTALE  ? "the disk does not stand there"
                : err == ENOTSUP ? "only a regular file that can have extended attributes keeps at"
                                   " which checkpoint it stands"
                                 : strerror (err));
  return -1;
}

static int
open_since (struct receive *r, struct handle *h, const char *rest)
{
  (void)h;
  return open_checkpoint (r, rest, false);
}

static int
open_at (struct receive *r, struct handle *h, const char *rest)
{
  (void)h;
  return open_checkpoint (r, rest, true);
}

static int
open_return (struct receive *r, struct handle *h, const char *name)
{
  char part[3][RECEIVE_ID_MAX + 1];
  (void)h;

  int err = divide (name, part) && part[2][0] == '\0'
                ? hand_over_tell (&r->hand_over, &r->admission, part[0], part[1])
                : EINVAL;
  if (err == 0)
    return 0;
  nbdkit_error ("the checkpoint of a hand-over: %s",
                err == ESHUTDOWN ? "the session is not the one that may write"
                : err == ENOTSUP ? "there is no state file here"
                                 : strerror (err));
  return -1;
}

/* Nobody but the guest may write to an image that is lent. */
static int
open_lend (struct receive *r, struct handle *h, const char *rest)
{
  (void)h, (void)rest;
  if (admission_is_over (&r->admission))
    return 0;
  nbdkit_error ("the image cannot be lent: the disk was not handed over to its guest yet");
  return -1;
}

static int
open_give_up (struct receive *r, struct handle *h, const char *rest)
{
  (void)h, (void)rest;
  if (r->config.notify_fd != -1)
    return 0;
  nbdkit_error ("nobody supervises this server: end it by hand");
  return -1;
}

int
export_give_up (struct receive *r)
{
  if (!admission_give_up (&r->admission)) {
    nbdkit_error ("it is too late to give up: the disk was handed over to its guest");
    return -1;
  }
  export_notify (r, RECEIVE_NOTE_GIVEN_UP);
  return 0;
}

bool
export_is_packed (const char *name)
{
  return strcmp (name, RECEIVE_PACKED) == 0
         || strncmp (name, RECEIVE_PACKED_PREFIX, strlen (RECEIVE_PACKED_PREFIX)) == 0;
}

/* A name that ends with '@' has more behind it, which is for OPEN.  The first that fits counts. */
static const struct {
  const char *name;
  enum export_kind kind;
  int (*open) (struct receive *r, struct handle *h, const char *rest); /* or NULL */
} exports[] = {
  { "", EXPORT_GUEST, NULL },
  { RECEIVE_MIRROR, EXPORT_ALONE, NULL },
  { RECEIVE_PACKED, EXPORT_ALONE, NULL },
  { RECEIVE_SEAL, EXPORT_SEAL, open_seal },
  { RECEIVE_GIVE_UP, EXPORT_GIVE_UP, open_give_up },
  { LEND_EXPORT, EXPORT_LEND, open_lend },
  { RECEIVE_SINCE_PREFIX, EXPORT_CHECKPOINT, open_since },
  { RECEIVE_AT_PREFIX, EXPORT_CHECKPOINT, open_at },
  { RECEIVE_RETURN_PREFIX, EXPORT_CHECKPOINT, open_return },
  { RECEIVE_SESSION_PREFIX, EXPORT_SESSION, open_session },
  { RECEIVE_PACKED_PREFIX, EXPORT_SESSION, open_session },
};

int
export_open (struct receive *r, struct handle *h, const char *name)
{
  for (size_t i = 0; i < sizeof exports / sizeof exports[0]; i++) {
    size_t len = strlen (exports[i].name);
    bool is_prefix = len > 0 && exports[i].name[len - 1] == '@';
    if (strncmp (name, exports[i].name, len) != 0 || (!is_prefix && name[len] != '\0'))
      continue;
    h->kind = exports[i].kind;
    return exports[i].open != NULL ? exports[i].open (r, h, name + len) : 0;
  }
  nbdkit_error ("no export \"%s\": \"" RECEIVE_MIRROR "\" is the mirror's, \"\" the guest's", name);
  return -1;
}

/* The path must not lead to somebody else's file: that one is neither locked nor ours to write. */
int
export_check_disk (const struct receive *r)
{
  struct stat ours, its;

  if (r->config.disk_fd == -1 || r->config.disk_path == NULL)
    return 0;
  if (fstat (r->config.disk_fd, &ours) == 0 && stat (r->config.disk_path, &its) == 0
      && (S_ISBLK (ours.st_mode) ? S_ISBLK (its.st_mode) && its.st_rdev == ours.st_rdev
                                 : its.st_dev == ours.st_dev && its.st_ino == ours.st_ino))
    return 0;
  nbdkit_error ("%s: this is another file now: it is not served", r->config.disk_path);
  return -1;
}
