/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The directory of a repository.  See repository.h.
 */

#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/lock.h"
#include "backup/names.h"
#include "backup/repository.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"

#define INDEX "nbdmirror-repository.json"
#define FORMAT "nbdmirror-repository"

char *
repository_path (const struct repository *r, const char *name)
{
  return text_printf ("%s/%s", r->path, name);
}

int
repository_sync (const char *path, char **error)
{
  CLEANUP_FD int fd = open (path, O_RDONLY | O_CLOEXEC);

  if (fd == -1 || fsync (fd) == -1)
    return text_error (error, "%s: %s", path, strerror (errno));
  return 0;
}

/* The directory in which PATH is. */
static int
sync_parent (const char *path, char **error)
{
  CLEANUP_TEXT char *parent = text_copy (path);
  char *slash = strrchr (parent, '/');

  if (slash == NULL)
    return repository_sync (".", error);
  slash[slash == parent ? 1 : 0] = '\0';
  return repository_sync (parent, error);
}

int
repository_write_json (const char *path, const json_t *o, char **error)
{
  CLEANUP_TEXT char *temporary = text_printf ("%s.tmp", path);
  char *text = json_dumps (o, JSON_INDENT (2));
  int r = -1;

  if (text == NULL)
    return text_error (error, "%s: what is to be written is no valid text", path);
  CLEANUP_FD int fd = open (temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd != -1 && fd_write_all (fd, text, strlen (text)) == 0 && fd_write_all (fd, "\n", 1) == 0
      && fsync (fd) == 0 && rename (temporary, path) == 0)
    r = sync_parent (path, error);
  else
    text_error (error, "%s: %s", temporary, strerror (errno));
  if (r == -1)
    unlink (temporary);
  free (text);
  return r;
}

/* ---- making and opening it ---- */

static int
read_index (struct repository *r, const char *path, char **error)
{
  json_error_t why;
  json_t *o = json_load_file (path, JSON_REJECT_DUPLICATES, &why);
  const char *format = json_string_value (json_object_get (o, "format"));
  const char *uuid = json_string_value (json_object_get (o, "uuid"));
  int result = -1;

  if (o == NULL)
    text_error (error, "%s: %s", path, why.text);
  else if (format == NULL || strcmp (format, FORMAT) != 0 || uuid == NULL
           || strlen (uuid) != UUID_TEXT_BYTES - 1)
    text_error (error, "%s does not describe a repository of backups", path);
  else if (json_integer_value (json_object_get (o, "version")) != REPOSITORY_VERSION
           || json_array_size (json_object_get (o, "requires")) != 0)
    text_error (error, "%s was written by a later version of nbdmirror", path);
  else {
    memcpy (r->uuid, uuid, UUID_TEXT_BYTES);
    result = 0;
  }
  json_decref (o);
  return result;
}

/* Is there nothing in PATH but what we make before the index? */
static bool
is_empty (const char *path)
{
  DIR *d = opendir (path);
  const struct dirent *e;
  bool empty = d != NULL;

  while (empty && (e = readdir (d)) != NULL)
    empty = e->d_name[0] == '.' || strcmp (e->d_name, "backups") == 0
            || strcmp (e->d_name, "lost+found") == 0 || strcmp (e->d_name, INDEX ".tmp") == 0;
  if (d != NULL)
    closedir (d);
  return empty;
}

/* Two runs may make the same repository: the lock lets one of them do it. */
static int
make (const struct repository *r, const char *index, char **error)
{
  CLEANUP_TEXT char *backups = repository_path (r, "backups");
  char uuid[UUID_TEXT_BYTES];
  CLEANUP_FD int lock = -1;
  uint8_t bytes[16];

  if (!is_empty (r->path))
    return text_error (error, "%s is no repository of backups, and not empty", r->path);
  if (repository_lock (r, NULL, &lock, error) == -1)
    return -1;
  if (access (index, F_OK) == 0)
    return 0;
  if (mkdir (backups, 0777) == -1 && errno != EEXIST)
    return text_error (error, "%s: %s", backups, strerror (errno));
  uuid_make (bytes);
  uuid_text (bytes, uuid);
  json_t *o
      = json_pack ("{s:s, s:i, s:[], s:s, s:I}", "format", FORMAT, "version", REPOSITORY_VERSION,
                   "requires", "uuid", uuid, "created-us", (json_int_t)clock_date_us ());
  int result = repository_write_json (index, o, error);
  json_decref (o);
  return result == 0 ? sync_parent (r->path, error) : -1;
}

bool
repository_is_missing (const char *path)
{
  CLEANUP_TEXT char *index = text_printf ("%s/" INDEX, path), *copy = text_copy (path);
  struct stat st;

  if (stat (path, &st) == 0)
    return S_ISDIR (st.st_mode) && access (index, F_OK) == -1 && errno == ENOENT && is_empty (path);
  return errno == ENOENT && stat (dirname (copy), &st) == 0 && S_ISDIR (st.st_mode);
}

int
repository_open (struct repository *r, const char *path, bool make_it, char **error)
{
  memset (r, 0, sizeof *r);
  if (make_it && mkdir (path, 0777) == -1 && errno != EEXIST)
    return text_error (error, "%s: cannot make the repository: %s", path, strerror (errno));
  char *full = realpath (path, NULL);
  if (full == NULL)
    return text_error (error, "%s: %s", path, strerror (errno));
  r->path = full;
  CLEANUP_TEXT char *index = repository_path (r, INDEX);
  int result = 0;
  if (access (index, F_OK) == -1) {
    if (errno != ENOENT && errno != ENOTDIR)
      result = text_error (error, "%s: %s", index, strerror (errno));
    else if (!make_it)
      result = text_error (error, "%s is no repository of backups: there is no %s", path, INDEX);
    else
      result = make (r, index, error);
  }
  if (result == 0)
    result = read_index (r, index, error);
  if (result == -1)
    repository_close (r);
  return result;
}

void
repository_close (struct repository *r)
{
  text_free (r->path);
  r->path = NULL;
}

int
repository_make_disk (const struct repository *r, const char *id, char **error)
{
  CLEANUP_TEXT char *path = repository_path (r, id);

  if (mkdir (path, 0777) == 0)
    return repository_sync (r->path, error);
  struct stat st;
  if (errno != EEXIST || lstat (path, &st) == -1)
    return text_error (error, "%s: %s", path, strerror (errno));
  return S_ISDIR (st.st_mode) ? 0 : text_error (error, "%s is no directory of its own", path);
}

/* ---- backups ---- */

/* Read the manifest of E. */
static void
read_manifest (const struct repository *r, struct backup_entry *e)
{
  CLEANUP_TEXT char *path = text_printf ("%s/backups/%s.json", r->path, e->name);
  json_error_t why;
  json_t *o = json_load_file (path, JSON_REJECT_DUPLICATES, &why);

  if (o == NULL)
    e->fault = text_printf ("the manifest cannot be read: %s", why.text);
  else if (manifest_from_json (&e->manifest, o, e->name, &e->fault) == 0
           && strcmp (e->manifest.repository, r->uuid) != 0) {
    manifest_clear (&e->manifest);
    e->fault = text_copy ("it belongs to another repository");
  }
  json_decref (o);
}

static int
by_sequence (const void *a, const void *b)
{
  const struct backup_entry *x = a, *y = b;
  uint64_t s = x->manifest.sequence, t = y->manifest.sequence;

  return s != t ? (s < t ? -1 : 1) : strcmp (x->name, y->name);
}

int
repository_list (const struct repository *r, struct backup_list *list, char **error)
{
  CLEANUP_TEXT char *path = repository_path (r, "backups");
  const struct dirent *entry;
  DIR *d = opendir (path);

  memset (list, 0, sizeof *list);
  if (d == NULL)
    return text_error (error, "%s: %s", path, strerror (errno));
  errno = 0;
  while ((entry = readdir (d)) != NULL) {
    size_t n = strlen (entry->d_name);
    if (n <= 5 || strcmp (entry->d_name + n - 5, ".json") != 0)
      continue;
    CLEANUP_TEXT char *name = text_printf ("%.*s", (int)(n - 5), entry->d_name);
    if (!backup_name_ok (name))
      continue; /* somebody else's file */
    struct backup_entry *more = realloc (list->list, (list->nr + 1) * sizeof *more);
    if (more == NULL)
      break; /* with errno */
    list->list = more;
    struct backup_entry *e = &list->list[list->nr++];
    *e = (struct backup_entry){ .name = name };
    name = NULL;
    read_manifest (r, e);
    errno = 0;
  }
  int err = errno;
  closedir (d);
  if (err != 0) {
    repository_list_free (list);
    return text_error (error, "%s: %s", path, strerror (err));
  }
  if (list->nr > 0)
    qsort (list->list, list->nr, sizeof *list->list, by_sequence);
  return 0;
}

void
repository_read (const struct repository *r, const char *name, struct backup_entry *e)
{
  *e = (struct backup_entry){ .name = text_copy (name) };
  read_manifest (r, e);
}

void
repository_entry_clear (struct backup_entry *e)
{
  text_free (e->name);
  manifest_clear (&e->manifest);
  text_free (e->fault);
}

void
repository_list_free (struct backup_list *list)
{
  for (unsigned i = 0; i < list->nr; i++)
    repository_entry_clear (&list->list[i]);
  free (list->list);
  memset (list, 0, sizeof *list);
}

struct backup_entry *
repository_find (const struct backup_list *list, const char *name)
{
  for (unsigned i = 0; i < list->nr; i++)
    if (strcmp (list->list[i].name, name) == 0)
      return &list->list[i];
  return NULL;
}

static int
next_sequence (const struct repository *r, uint64_t *sequence, char **error)
{
  struct backup_list list;

  if (repository_list (r, &list, error) == -1)
    return -1;
  *sequence = (list.nr > 0 ? list.list[list.nr - 1].manifest.sequence : 0) + 1;
  repository_list_free (&list);
  return 0;
}

int
repository_write (const struct repository *r, struct manifest *m, char **error)
{
  CLEANUP_TEXT char *path = text_printf ("%s/backups/%s.json", r->path, m->name);
  uint64_t before = m->sequence;

  if (before == 0 && next_sequence (r, &m->sequence, error) == -1)
    return -1;
  json_t *o = manifest_to_json (m);
  int result = o != NULL ? repository_write_json (path, o, error)
                         : text_error (error, "%s: a name in it is not UTF-8", path);
  json_decref (o);
  if (result == -1)
    m->sequence = before; /* only one that was written has a number */
  return result;
}
