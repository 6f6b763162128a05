/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A run that has begun, and what is left of one that was interrupted.  See begun.h.
 */

#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/begun.h"
#include "backup/digests.h"
#include "backup/lock.h"
#include "backup/repository.h"
#include "base/fd.h"
#include "base/text.h"

#define FORMAT "nbdmirror-backup-begun"
#define SUFFIX ".begun"
#define NAMES_MAX 10000 /* backups that begin in one second */

static char *
path_of (const struct repository *r, const char *name, const char *suffix)
{
  return text_printf ("%s/backups/%s%s", r->path, name, suffix);
}

/* Is NAME used by a run that has ended, or by one that has not? */
static bool
is_used (const struct repository *r, const char *name)
{
  static const char *const suffixes[] = { ".json", SUFFIX, ".files" };
  bool used = false;

  for (unsigned i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++) {
    CLEANUP_TEXT char *path = path_of (r, name, suffixes[i]);
    used |= access (path, F_OK) == 0 || errno != ENOENT;
  }
  return used;
}

/* Has the disk ID a file of a backup NAME?  There may be one whose manifest was lost. */
static bool
has_file (const struct repository *r, const char *name, const char *id)
{
  bool found = false;

  for (int full = 0; full < 2; full++) {
    CLEANUP_TEXT char *file = backup_file_path (id, name, full != 0);
    CLEANUP_TEXT char *path = repository_path (r, file);
    found |= access (path, F_OK) == 0;
  }
  return found;
}

int
backup_begin (const struct repository *r, int64_t us, char *const ids[], unsigned nr,
              char name[BACKUP_NAME_MAX], char **error)
{
  CLEANUP_FD int lock = -1;
  unsigned i = 0;

  if (repository_lock (r, NULL, &lock, error) == -1)
    return -1;
  for (bool used = true; used; i++) {
    if (i == NAMES_MAX)
      return text_error (error, "%s: no name is free for a backup", r->path);
    backup_name_make (name, us, i);
    used = is_used (r, name);
    for (unsigned d = 0; d < nr; d++)
      used |= has_file (r, name, ids[d]);
  }
  CLEANUP_TEXT char *path = path_of (r, name, SUFFIX), *host = repository_host (),
                    *host_id = repository_host_id ();
  json_t *disks = json_array ();
  for (unsigned d = 0; d < nr; d++)
    json_array_append_new (disks, json_string (ids[d]));
  json_t *o = json_pack ("{s:s, s:i, s:s, s:s, s:I, s:o}", "format", FORMAT, "version", 1, "host",
                         host, "host-id", host_id, "pid", (json_int_t)getpid (), "disks", disks);
  int result = repository_write_json (path, o, error);
  json_decref (o);
  return result;
}

bool
backup_is_marked (const struct repository *r, const char *name)
{
  CLEANUP_TEXT char *path = path_of (r, name, SUFFIX);

  return access (path, F_OK) == 0 || errno != ENOENT;
}

void
backup_begun_end (const struct repository *r, const char *name)
{
  CLEANUP_TEXT char *path = path_of (r, name, SUFFIX);

  unlink (path);
}

/* Remove the folder of included files, in which there are no others. */
static void
remove_files (const struct repository *r, const char *name)
{
  CLEANUP_TEXT char *path = path_of (r, name, ".files");
  DIR *d = opendir (path);
  const struct dirent *e;

  while (d != NULL && (e = readdir (d)) != NULL) {
    CLEANUP_TEXT char *file = text_printf ("%s/%s", path, e->d_name);
    if (strcmp (e->d_name, ".") != 0 && strcmp (e->d_name, "..") != 0)
      unlink (file);
  }
  if (d != NULL) {
    closedir (d);
    rmdir (path);
  }
}

/* Is it not known which files the backups need? */
static bool
is_unknown (const struct backup_list *list)
{
  bool unknown = false;

  for (unsigned i = 0; i < list->nr; i++)
    unknown |= list->list[i].fault != NULL;
  return unknown;
}

/* Does a manifest name FILE?  A later backup may have become the full one, in the file of an
 * earlier one that was pruned.  A manifest that cannot be read may name any file. */
static bool
is_named (const struct backup_list *list, const char *file)
{
  for (unsigned i = 0; i < list->nr; i++) {
    const struct manifest *m = &list->list[i].manifest;
    if (list->list[i].fault != NULL)
      return true;
    for (unsigned d = 0; d < m->nr_disks; d++)
      if ((m->disks[d].file != NULL && strcmp (m->disks[d].file, file) == 0)
          || (m->disks[d].parent_file != NULL && strcmp (m->disks[d].parent_file, file) == 0))
        return true;
  }
  return false;
}

void
backup_give_up (const struct repository *r, const char *name, char *const ids[], unsigned nr,
                bool keep_mark)
{
  CLEANUP_TEXT char *half = path_of (r, name, ".json.tmp"), *manifest = path_of (r, name, ".json");
  struct backup_list list;

  /* Its manifest is in place, though nobody knows whether that is durable: it is a backup. */
  if (access (manifest, F_OK) == 0) {
    if (!keep_mark)
      backup_begun_end (r, name);
    return;
  }
  if (errno != ENOENT || repository_list (r, &list, NULL) == -1)
    return; /* the next run tries it again */
  bool unknown = is_unknown (&list);
  for (unsigned i = 0; i < nr; i++)
    for (int full = 0; full < 2; full++) {
      CLEANUP_TEXT char *file = backup_file_path (ids[i], name, full != 0);
      CLEANUP_TEXT char *path = repository_path (r, file);
      CLEANUP_TEXT char *compressed = text_printf ("%s.tmp", path);
      if (!is_named (&list, file))
        unlink (path);
      else
        keep_mark |= unknown && access (path, F_OK) == 0; /* until that is known */
      unlink (compressed);
    }
  for (unsigned i = 0; i < nr; i++)
    digests_tidy (r, &list, ids[i], name, false);
  repository_list_free (&list);
  remove_files (r, name);
  unlink (half);
  if (!keep_mark)
    backup_begun_end (r, name);
}

/* ---- tidying up ---- */

/* The disks of the run NAME: a new array of NR texts that live as long as O.  NULL: it cannot be
 * read. */
static char **
read_begun (const struct repository *r, const char *name, json_t **o, unsigned *nr)
{
  CLEANUP_TEXT char *path = path_of (r, name, SUFFIX);

  *o = json_load_file (path, 0, NULL);
  const char *format = json_string_value (json_object_get (*o, "format"));
  const json_t *disks = json_object_get (*o, "disks");
  if (format == NULL || strcmp (format, FORMAT) != 0 || !json_is_array (disks))
    return NULL;
  *nr = (unsigned)json_array_size (disks);
  char **ids = calloc (*nr + 1, sizeof *ids);
  for (unsigned i = 0; ids != NULL && i < *nr; i++) {
    ids[i] = (char *)json_string_value (json_array_get (disks, i));
    if (ids[i] == NULL || backup_disk_id_fault (ids[i]) != NULL) {
      free (ids);
      return NULL;
    }
  }
  return ids;
}

static bool
is_in (const char *id, char *const held[], unsigned nr)
{
  for (unsigned i = 0; i < nr; i++)
    if (strcmp (held[i], id) == 0)
      return true;
  return false;
}

/* Is the run NAME over?  Then remove what it has left.  The locks show that it is. */
static bool
tidy_one (const struct repository *r, const char *name, char *const held[], unsigned nr_held)
{
  json_t *o;
  unsigned nr = 0;
  char **ids = read_begun (r, name, &o, &nr);
  int *locks = ids != NULL ? calloc (nr + 1, sizeof *locks) : NULL;
  bool over = locks != NULL;
  CLEANUP_TEXT char *manifest = path_of (r, name, ".json");

  for (unsigned i = 0; locks != NULL && i < nr; i++) {
    locks[i] = -1;
    over = over
           && (is_in (ids[i], held, nr_held) || repository_lock (r, ids[i], &locks[i], NULL) == 0);
  }
  bool done = access (manifest, F_OK) == 0;
  if (over && done)
    backup_begun_end (r, name);
  else if (over && errno == ENOENT) {
    backup_give_up (r, name, ids, nr, false);
    over = !backup_is_marked (r, name); /* else it is tried again */
  }
  for (unsigned i = 0; locks != NULL && i < nr; i++)
    fd_close (&locks[i]);
  free (locks);
  free (ids);
  json_decref (o);
  return over && !done;
}

/* The name of the run whose mark is E.  For text_free(); NULL: it is no mark. */
static char *
name_of_mark (const struct dirent *e)
{
  size_t n = strlen (e->d_name), suffix = strlen (SUFFIX);

  if (n <= suffix || strcmp (e->d_name + n - suffix, SUFFIX) != 0)
    return NULL;
  char *name = text_printf ("%.*s", (int)(n - suffix), e->d_name);
  if (backup_name_ok (name))
    return name;
  text_free (name);
  return NULL;
}

bool
backup_was_begun (const struct repository *r, const char *id)
{
  CLEANUP_TEXT char *path = repository_path (r, "backups");
  DIR *d = opendir (path);
  const struct dirent *e;
  bool found = false;

  while (d != NULL && !found && (e = readdir (d)) != NULL) {
    CLEANUP_TEXT char *name = name_of_mark (e);
    unsigned nr = 0;
    json_t *o = NULL;
    char **ids = name != NULL ? read_begun (r, name, &o, &nr) : NULL;
    found = ids != NULL && is_in (id, ids, nr);
    free (ids);
    json_decref (o);
  }
  if (d != NULL)
    closedir (d);
  return found;
}

void
backup_tidy (const struct repository *r, const char *ours, char *const held[], unsigned nr_held,
             void (*told) (void *opaque, const char *name), void *opaque)
{
  CLEANUP_TEXT char *path = repository_path (r, "backups");
  DIR *d = opendir (path);
  const struct dirent *e;

  while (d != NULL && (e = readdir (d)) != NULL) {
    CLEANUP_TEXT char *name = name_of_mark (e);
    if (name != NULL && strcmp (name, ours) != 0 && tidy_one (r, name, held, nr_held))
      told (opaque, name);
  }
  if (d != NULL)
    closedir (d);
}
