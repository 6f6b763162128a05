/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The durable fence record.  See fence.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>
#include <linux/magic.h>

#include "base/durable.h"
#include "base/fd.h"
#include "base/text.h"
#include "base/uuid.h"
#include "dirty-bitmap/state/state.h"
#include "nbd-plugin/mirror/fence.h"

#define FORMAT "nbdmirror-fence"
#define FORMAT_VERSION 1
#define MAX_RECORD 16384

/* The mark: both texts have the same length, and can stand nowhere else in the record. */
#define NOT_PREPARED "\"prepared\": false"
#define PREPARED "\"prepared\": true "

/* "" if it is not known. */
static void
boot_text (char text[UUID_TEXT_BYTES])
{
  static const uint8_t unknown[16];
  uint8_t boot[16];

  state_boot_id (boot);
  text[0] = '\0';
  if (memcmp (boot, unknown, sizeof boot) != 0)
    uuid_text (boot, text);
}

static bool
is_this_boot (const char *boot)
{
  char ours[UUID_TEXT_BYTES];

  boot_text (ours);
  return ours[0] != '\0' && strcmp (ours, boot) == 0;
}

static bool
parse (json_t *o, struct fence_record *r)
{
  const char *format, *token, *successor = "", *boot = "";
  json_int_t version, generation, size;
  int prepared = 1; /* a record of an earlier version does not tell */

  if (json_unpack (o, "{s:s, s:I, s:s, s:I, s:I, s?s, s?s, s?b}", "format", &format, "version",
                   &version, "rollback-token", &token, "generation", &generation, "size", &size,
                   "successor", &successor, "boot-id", &boot, "prepared", &prepared)
      == -1)
    return false;
  if (strcmp (format, FORMAT) != 0 || version != FORMAT_VERSION || generation < 1 || size < 0
      || !rollback_token_valid (token) || strlen (successor) > FENCE_SUCCESSOR_MAX)
    return false;
  snprintf (r->token, sizeof r->token, "%s", token);
  snprintf (r->successor, sizeof r->successor, "%s", successor);
  r->generation = (uint64_t)generation;
  r->disk_size = (uint64_t)size;
  r->prepared = prepared || !is_this_boot (boot);
  return true;
}

/* 1: it is there (*R filled in, or *WARNING set and the token empty); 0: it is not; -1: cannot
 * tell. An empty draft is one whose writer died before it was durable: its disk was never prepared.
 */
static int
read_record (const char *path, bool never_used_if_empty, struct fence_record *r, char **warning,
             char **error)
{
  char text[MAX_RECORD];
  json_error_t why;

  memset (r, 0, sizeof *r);
  int fd = open (path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd == -1 && errno == ENOENT)
    return 0;
  if (fd == -1 && (errno == ENOTDIR || errno == ENAMETOOLONG))
    return text_error (error, "%s: %s", path, strerror (errno));
  ssize_t n = -1;
  const char *reason = NULL;
  if (fd != -1)
    n = fd_read_text (fd, text, sizeof text);
  if (n == -1)
    reason = strerror (errno);
  else if (n == 0 && never_used_if_empty) {
    close (fd);
    return 0;
  } else {
    json_t *o = json_loadb (text, (size_t)n, 0, &why);
    if (o == NULL)
      reason = "not JSON";
    else if (!parse (o, r))
      reason = "not a fence record of a version that is known here";
    json_decref (o);
  }
  fd_close (&fd);
  if (reason != NULL)
    text_error (
        warning,
        "the fence record %s cannot be read (%s): writes are refused.  If this disk was not handed"
        " over, or the destination is stopped for good, remove that file by hand and restart the"
        " server",
        path, reason);
  return 1;
}

int
fence_open (struct fence *f, const char *control, const char *disk, char **warning, char **error)
{
  *warning = NULL;
  f->state = FENCE_NONE;
  f->superseded = false;
  f->path = text_printf ("%s.fence", control);
  f->draft_path = text_printf ("%s.fence.draft", control);

  int r = read_record (f->path, false, &f->record, warning, error);
  if (r == 1 && disk != NULL && strcmp (f->record.successor, disk) == 0) {
    f->superseded = true;
    r = 0;
  }
  if (r == 1)
    f->state = FENCE_COMMITTED;
  if (r == 0) {
    r = read_record (f->draft_path, true, &f->record, warning, error);
    if (r == 1)
      f->state = FENCE_DRAFT;
  }
  return r == -1 ? -1 : 0;
}

void
fence_close (struct fence *f)
{
  text_free (f->path);
  text_free (f->draft_path);
  f->path = f->draft_path = NULL;
}

static int
write_durably (const char *path, const char *text, char **error)
{
  int fd = open (path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd == -1)
    return text_error (error, "cannot create the fence record %s: %s", path, strerror (errno));
  bool ok = fd_write_all (fd, text, strlen (text)) == 0 && fsync (fd) == 0;
  fd_close (&fd);
  if (ok && durable_folder (path, error) == 0)
    return 0;
  if (!ok)
    text_error (error, "cannot write the fence record %s: %s", path, strerror (errno));
  unlink (path);
  return -1;
}

int
fence_draft (struct fence *f, const struct fence_record *record, char **error)
{
  char boot[UUID_TEXT_BYTES];

  boot_text (boot);
  json_t *o
      = json_pack ("{s:s, s:i, s:b, s:s, s:s, s:I, s:I, s:I, s:s*}", "format", FORMAT, "version",
                   FORMAT_VERSION, "prepared", 0, "boot-id", boot, "rollback-token", record->token,
                   "generation", (json_int_t)record->generation, "size",
                   (json_int_t)record->disk_size, "time", (json_int_t)time (NULL), "successor",
                   record->successor[0] != '\0' ? record->successor : NULL);
  char *text = o == NULL ? NULL : json_dumps (o, JSON_INDENT (2) | JSON_PRESERVE_ORDER);
  json_decref (o);
  if (text == NULL)
    return text_error (error, "no memory");
  int r = write_durably (f->draft_path, text, error);
  if (r == 0) {
    f->record = *record;
    f->record.prepared = false;
    f->state = FENCE_DRAFT;
    f->mark_offset = strstr (text, NOT_PREPARED) - text;
  }
  free (text);
  return r;
}

int
fence_mark_prepared (struct fence *f, char **error)
{
  if (f->record.prepared)
    return 0;
  int fd = open (f->draft_path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
  ssize_t n = fd == -1 ? -1 : pwrite (fd, PREPARED, strlen (PREPARED), f->mark_offset);
  if (n != (ssize_t)strlen (PREPARED)) {
    text_error (error, "cannot write the fence record %s: %s", f->draft_path,
                n == -1 ? strerror (errno) : "it is incomplete");
    fd_close (&fd);
    return -1;
  }
  fd_close (&fd);
  f->record.prepared = true;
  return 0;
}

int
fence_commit (struct fence *f, char **error)
{
  if (f->state == FENCE_COMMITTED)
    return 0;
  /* A retry after a failed fsync of the directory finds the draft renamed already. */
  if (rename (f->draft_path, f->path) == -1 && !(errno == ENOENT && access (f->path, F_OK) == 0))
    return text_error (error, "cannot rename %s to %s: %s", f->draft_path, f->path,
                       strerror (errno));
  if (durable_folder (f->path, error) == -1)
    return -1;
  f->state = FENCE_COMMITTED;
  f->superseded = false; /* the new record took the old one's place */
  return 0;
}

bool
fence_in_memory (const struct fence *f)
{
  struct statfs fs;

  return statfs (f->path, &fs) == 0 && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
}

int
fence_remove (struct fence *f, char **error)
{
  if (f->state == FENCE_NONE)
    return 0;
  bool draft_only
      = f->superseded && f->state == FENCE_DRAFT; /* the record fences the predecessor */
  if ((!draft_only && unlink (f->path) == -1 && errno != ENOENT)
      || (unlink (f->draft_path) == -1 && errno != ENOENT))
    return text_error (error, "cannot remove the fence record %s: %s", f->path, strerror (errno));
  if (durable_folder (f->path, error) == -1)
    return -1;
  f->state = FENCE_NONE;
  memset (&f->record, 0, sizeof f->record);
  return 0;
}
