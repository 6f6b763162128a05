/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Names in a repository.  See names.h.
 */

#include "config.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "backup/names.h"
#include "base/clock.h"
#include "base/text.h"

#define TIME_LENGTH 16 /* 20260131T235959Z */
#define OWN_PART 16    /* characters of a list's own digest in its name */
#define UUID_PART 8    /* characters of a repository's UUID in the names of its checkpoints */

/* How many bytes the UTF-8 character at S has; 0: it is none. */
static unsigned
utf8_length (const unsigned char *s)
{
  unsigned n = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;

  if (s[0] > 0xf4)
    return 0;
  for (unsigned i = 1; i < n; i++)
    if ((s[i] & 0xc0) != 0x80)
      return 0;
  /* Longer forms than needed, surrogates, and what lies beyond Unicode. */
  if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] >= 0xa0)
      || (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] >= 0x90))
    return 0;
  return n;
}

bool
backup_is_utf8 (const char *text)
{
  const unsigned char *s = (const unsigned char *)text;

  for (unsigned n; *s != '\0'; s += n)
    if ((n = utf8_length (s)) == 0)
      return false;
  return true;
}

char *
backup_make_utf8 (const char *text)
{
  char *copy = text_copy (text);

  for (char *s = copy; *s != '\0';) {
    unsigned n = utf8_length ((const unsigned char *)s);
    if (n == 0)
      *s = '?';
    s += n > 0 ? n : 1;
  }
  return copy;
}

const char *
backup_disk_id_fault (const char *id)
{
  if (id[0] == '\0')
    return "it is empty";
  if (strlen (id) > BACKUP_DISK_ID_MAX)
    return "it has more than 200 bytes";
  if (id[0] == '.')
    return "it begins with a dot";
  if (strcmp (id, "backups") == 0 || strncmp (id, "nbdmirror-repository", 20) == 0)
    return "the repository itself uses that name";
  if (!backup_is_utf8 (id))
    return "it is not UTF-8";
  for (const char *s = id; *s != '\0'; s++) {
    if (*s == '/')
      return "it has a slash";
    if ((unsigned char)*s < 0x20 || *s == 0x7f)
      return "it has a control character";
  }
  return NULL;
}

bool
backup_name_ok (const char *name)
{
  static const char form[] = "00000000T000000Z";

  if (strlen (name) >= BACKUP_NAME_MAX)
    return false;
  for (unsigned i = 0; i < TIME_LENGTH; i++)
    if (form[i] == '0' ? name[i] < '0' || name[i] > '9' : name[i] != form[i])
      return false;
  name += TIME_LENGTH;
  if (*name == '\0')
    return true;
  size_t digits = strspn (name + 1, "0123456789");
  return *name == '-' && digits > 0 && name[1] != '0' && name[1 + digits] == '\0';
}

void
backup_name_make (char name[BACKUP_NAME_MAX], int64_t us, unsigned nr)
{
  time_t s = (time_t)(us / US_PER_S);
  struct tm tm;

  gmtime_r (&s, &tm);
  size_t n = strftime (name, BACKUP_NAME_MAX, "%Y%m%dT%H%M%SZ", &tm);
  if (nr > 0)
    snprintf (name + n, BACKUP_NAME_MAX - n, "-%u", nr);
}

char *
backup_file_path (const char *disk, const char *name, bool full)
{
  return text_printf ("%s/%s-%s.qcow2", disk, name, full ? "full" : "inc");
}

char *
backup_name_of_file (const char *file)
{
  const char *slash = strrchr (file, '/'), *begin = slash != NULL ? slash + 1 : file;
  const char *end = strrchr (begin, '-');

  return text_printf ("%.*s", end != NULL ? (int)(end - begin) : 0, begin);
}

bool
backup_file_is_of (const char *file, const char *disk, const char *name)
{
  CLEANUP_TEXT char *full = backup_file_path (disk, name, true);
  CLEANUP_TEXT char *inc = backup_file_path (disk, name, false);

  return strcmp (file, full) == 0 || strcmp (file, inc) == 0;
}

bool
backup_target_is_backup (const char *target)
{
  static const char *const local[] = { "-full.qcow2 ]", "-inc.qcow2 ]" };
  static const char *const far[] = { "-full.qcow2", "-inc.qcow2" };
  bool is_far = strncmp (target, "ssh://", 6) == 0;
  const char *const *ends = is_far ? far : local;
  size_t n = is_far ? strcspn (target, "?") : strlen (target);
  const char *slash = memrchr (target, '/', n);

  if ((!is_far && strncmp (target, "[ qemu-nbd ", 11) != 0) || slash == NULL)
    return false;
  for (unsigned i = 0; i < 2; i++) {
    size_t end = strlen (ends[i]);
    if (n <= end || strncmp (target + n - end, ends[i], end) != 0 || target + n - end <= slash)
      continue;
    CLEANUP_TEXT char *name = text_printf ("%.*s", (int)(target + n - end - slash - 1), slash + 1);
    return backup_name_ok (name);
  }
  return false;
}

bool
backup_file_is_of_disk (const char *file, const char *disk)
{
  size_t n = strlen (disk), length = strlen (file);
  const char *end = strrchr (file, '-');

  if (end == NULL || length <= n || strncmp (file, disk, n) != 0 || file[n] != '/'
      || end < file + n + 1)
    return false;
  CLEANUP_TEXT char *name
      = text_printf ("%.*s", (int)(end - file - (ptrdiff_t)n - 1), file + n + 1);
  return backup_name_ok (name) && backup_file_is_of (file, disk, name);
}

char *
backup_digests_path (const char *disk, const char *name, const char *own)
{
  return own != NULL ? text_printf ("%s/%s.%.*s.digests", disk, name, OWN_PART, own)
                     : text_printf ("%s/%s.digests.tmp", disk, name);
}

bool
backup_is_digests (const char *file, const char *disk, const char *name)
{
  size_t n = strlen (disk);
  const char *begin = file + n + 1, *dot;

  if (strncmp (file, disk, n) != 0 || file[n] != '/' || (dot = strchr (begin, '.')) == NULL)
    return false;
  CLEANUP_TEXT char *of = text_printf ("%.*s", (int)(dot - begin), begin);
  if (!backup_name_ok (of) || (name != NULL && strcmp (of, name) != 0))
    return false;
  if (strcmp (dot, ".digests.tmp") == 0)
    return true;
  return strspn (dot + 1, "0123456789abcdef") == OWN_PART
         && strcmp (dot + 1 + OWN_PART, ".digests") == 0;
}

char *
backup_disk_id_from_path (const char *path)
{
  const char *slash = strrchr (path, '/');
  const char *last = slash != NULL ? slash + 1 : path;
  const char *dot = strrchr (last, '.');
  int length = dot != NULL && dot != last ? (int)(dot - last) : (int)strlen (last);

  return text_printf ("%.*s", length, last);
}

char *
backup_checkpoint_name (const char *uuid, const char *name)
{
  return text_printf ("backup-%.*s-%s", UUID_PART, uuid, name);
}

bool
backup_checkpoint_is_ours (const char *checkpoint, const char *uuid)
{
  CLEANUP_TEXT char *prefix = backup_checkpoint_name (uuid, "");
  size_t n = strlen (prefix);

  return strncmp (checkpoint, prefix, n) == 0 && backup_name_ok (checkpoint + n);
}
