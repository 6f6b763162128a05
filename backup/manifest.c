/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A manifest as data and as JSON.  See manifest.h.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "backup/manifest.h"
#include "backup/names.h"
#include "base/text.h"

#define FORMAT "nbdmirror-backup"
#define MAX_SEQUENCE (UINT64_C (1) << 53) /* the next backup gets a larger one */

/* ---- data ---- */

static void
clear_disk (struct manifest_disk *d)
{
  text_free (d->id);
  text_free (d->reason);
  text_free (d->file);
  text_free (d->parent_backup);
  text_free (d->parent_file);
  text_free (d->control);
  text_free (d->checkpoint);
  text_free (d->checkpoint_uuid);
  text_free (d->digest);
  text_free (d->file_digest);
  text_free (d->digests_file);
  text_free (d->digests_own);
  text_free (d->error);
}

void
manifest_clear (struct manifest *m)
{
  text_free (m->name);
  text_free (m->repository);
  text_free (m->program);
  text_free (m->host);
  text_free (m->host_id);
  for (unsigned i = 0; i < m->nr_disks; i++)
    clear_disk (&m->disks[i]);
  for (unsigned i = 0; i < m->nr_includes; i++) {
    text_free (m->includes[i].source);
    text_free (m->includes[i].file);
    text_free (m->includes[i].digest);
  }
  for (unsigned i = 0; i < m->nr_hooks; i++) {
    text_free (m->hooks[i].event);
    text_free (m->hooks[i].command);
    text_free (m->hooks[i].error);
  }
  free (m->disks);
  free (m->includes);
  free (m->hooks);
  memset (m, 0, sizeof *m);
}

/* LIST has *NR elements of SIZE bytes: one more, of zeroes.  NULL: out of memory. */
static void *
one_more (void **list, unsigned *nr, size_t size)
{
  char *bigger = realloc (*list, (*nr + 1) * size);

  if (bigger == NULL)
    return NULL;
  *list = bigger;
  return memset (bigger + (*nr)++ * size, 0, size);
}

struct manifest_disk *
manifest_add_disk (struct manifest *m)
{
  void *list = m->disks;
  struct manifest_disk *d = one_more (&list, &m->nr_disks, sizeof *d);

  m->disks = list;
  if (d != NULL)
    d->pause_ms = -1;
  return d;
}

struct manifest_include *
manifest_add_include (struct manifest *m)
{
  void *list = m->includes;
  struct manifest_include *i = one_more (&list, &m->nr_includes, sizeof *i);

  m->includes = list;
  return i;
}

struct manifest_hook *
manifest_add_hook (struct manifest *m)
{
  void *list = m->hooks;
  struct manifest_hook *h = one_more (&list, &m->nr_hooks, sizeof *h);

  m->hooks = list;
  return h;
}

struct manifest_disk *
manifest_find_disk (const struct manifest *m, const char *id)
{
  for (unsigned i = 0; i < m->nr_disks; i++)
    if (strcmp (m->disks[i].id, id) == 0)
      return &m->disks[i];
  return NULL;
}

/* ---- to JSON ---- */

json_t *
manifest_text_to_json (const char *text)
{
  CLEANUP_TEXT char *clean = backup_make_utf8 (text);

  return json_string (clean);
}

json_t *
manifest_text_or_null (const char *text)
{
  return text != NULL ? manifest_text_to_json (text) : json_null ();
}

json_t *
manifest_disk_to_json (const struct manifest_disk *d)
{
  json_t *parent = d->parent_file != NULL ? json_pack ("{s:s, s:s}", "backup", d->parent_backup,
                                                       "file", d->parent_file)
                                          : json_null ();
  json_t *checkpoint = d->checkpoint != NULL ? json_pack ("{s:s, s:s}", "name", d->checkpoint,
                                                          "uuid", d->checkpoint_uuid)
                                             : json_null ();
  json_t *digests = d->digests_file != NULL ? json_pack ("{s:s, s:s}", "file", d->digests_file,
                                                         "digest", d->digests_own)
                                            : json_null ();

  return json_pack (
      "{s:s, s:s, s:o, s:o, s:o, s:o, s:n, s:o, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o}", "id",
      d->id, "kind", d->full ? "full" : "incremental", "reason", manifest_text_or_null (d->reason),
      "file", manifest_text_or_null (d->file), "parent", parent, "control",
      manifest_text_or_null (d->control), "tracker", "checkpoint", checkpoint, "size",
      (json_int_t)d->size, "file-bytes", (json_int_t)d->file_bytes, "copied-bytes",
      (json_int_t)d->copied_bytes, "digest", manifest_text_or_null (d->digest), "file-digest",
      manifest_text_or_null (d->file_digest), "digests", digests, "pause-ms",
      d->pause_ms >= 0 ? json_real (d->pause_ms) : json_null (), "error",
      manifest_text_or_null (d->error));
}

json_t *
manifest_to_json (const struct manifest *m)
{
  json_t *disks = json_array (), *includes = json_array (), *hooks = json_array ();
  bool good = true;

  for (unsigned i = 0; i < m->nr_disks; i++)
    good &= json_array_append_new (disks, manifest_disk_to_json (&m->disks[i])) == 0;
  for (unsigned i = 0; i < m->nr_includes; i++) {
    const struct manifest_include *f = &m->includes[i];
    good &= json_array_append_new (includes, json_pack ("{s:s, s:s, s:I, s:s}", "source", f->source,
                                                        "file", f->file, "bytes",
                                                        (json_int_t)f->bytes, "digest", f->digest))
            == 0;
  }
  for (unsigned i = 0; i < m->nr_hooks; i++) {
    const struct manifest_hook *h = &m->hooks[i];
    good &= json_array_append_new (hooks, json_pack ("{s:s, s:s, s:o}", "event", h->event,
                                                     "command", h->command, "error",
                                                     manifest_text_or_null (h->error)))
            == 0;
  }
  json_t *o = json_pack (
      "{s:s, s:i, s:[], s:s, s:I, s:s, s:s, s:s, s:s, s:I, s:I, s:s, s:b, s:b, s:o, s:o, s:o}",
      "format", FORMAT, "version", MANIFEST_VERSION, "requires", "name", m->name, "sequence",
      (json_int_t)m->sequence, "repository", m->repository, "program", m->program, "host", m->host,
      "host-id", m->host_id, "begun-us", (json_int_t)m->begun_us, "ended-us",
      (json_int_t)m->ended_us, "consistency", m->guest_frozen ? "guest-frozen" : "crash-consistent",
      "protected", m->is_protected, "dropped", m->is_dropped, "disks", disks, "includes", includes,
      "hooks", hooks);
  if (good || o == NULL)
    return o;
  json_decref (o);
  return NULL;
}

/* ---- from JSON ---- */

/* Reading stops at the first fault, which stands in *error. */
struct reading {
  char *error;
};

static void
fault (struct reading *r, const char *key, const char *what)
{
  if (r->error == NULL)
    r->error = text_printf ("\"%s\" %s", key, what);
}

/* A text, or NULL where NULL_OK and it is null. */
static char *
take_text (struct reading *r, const json_t *o, const char *key, bool null_ok)
{
  const json_t *v = json_object_get (o, key);

  if (json_is_string (v))
    return text_copy (json_string_value (v));
  if (!null_ok || !json_is_null (v))
    fault (r, key, "is missing, or no text");
  return NULL;
}

static uint64_t
take_number (struct reading *r, const json_t *o, const char *key)
{
  const json_t *v = json_object_get (o, key);

  if (json_is_integer (v) && json_integer_value (v) >= 0)
    return (uint64_t)json_integer_value (v);
  fault (r, key, "is missing, or no number");
  return 0;
}

/* One of two words: true for the first. */
static bool
take_word (struct reading *r, const json_t *o, const char *key, const char *yes, const char *no)
{
  const char *word = json_string_value (json_object_get (o, key));

  if (word == NULL || (strcmp (word, yes) != 0 && strcmp (word, no) != 0))
    fault (r, key, "is neither of its two words");
  return word != NULL && strcmp (word, yes) == 0;
}

/* The path of a file of DISK: prune may remove it, so it must be one that a backup has made. */
static void
check_disk_file (struct reading *r, const char *key, const char *file, const char *disk)
{
  if (file != NULL && disk != NULL && !backup_file_is_of_disk (file, disk))
    fault (r, key, "is no file of a backup of this disk");
}

/* The same for a file that was kept beside the disks of the backup NAME. */
static void
check_include (struct reading *r, const char *file, const char *name)
{
  CLEANUP_TEXT char *folder = text_printf ("backups/%s.files/", name);
  size_t n = strlen (folder);

  if (file == NULL)
    return;
  if (strncmp (file, folder, n) != 0 || file[n] == '\0' || file[n] == '.'
      || strchr (file + n, '/') != NULL)
    fault (r, "file", "is no file that was kept beside the disks of this backup");
}

static void
take_disk (struct reading *r, struct manifest_disk *d, const json_t *o)
{
  const json_t *parent = json_object_get (o, "parent"), *kept = json_object_get (o, "checkpoint");
  const json_t *pause = json_object_get (o, "pause-ms"), *list = json_object_get (o, "digests");

  d->id = take_text (r, o, "id", false);
  d->full = take_word (r, o, "kind", "full", "incremental");
  d->reason = take_text (r, o, "reason", true);
  d->file = take_text (r, o, "file", true);
  d->control = take_text (r, o, "control", true);
  d->size = take_number (r, o, "size");
  d->file_bytes = take_number (r, o, "file-bytes");
  d->copied_bytes = take_number (r, o, "copied-bytes");
  d->digest = take_text (r, o, "digest", true);
  d->file_digest = take_text (r, o, "file-digest", true);
  d->error = take_text (r, o, "error", true);
  d->pause_ms = json_is_number (pause) ? json_number_value (pause) : -1;
  if (json_is_object (parent)) {
    d->parent_backup = take_text (r, parent, "backup", false);
    d->parent_file = take_text (r, parent, "file", false);
  }
  if (json_is_object (kept)) {
    d->checkpoint = take_text (r, kept, "name", false);
    d->checkpoint_uuid = take_text (r, kept, "uuid", false);
  }
  if (json_is_object (list)) {
    d->digests_file = take_text (r, list, "file", false);
    d->digests_own = take_text (r, list, "digest", false);
  }
  if (d->id != NULL && backup_disk_id_fault (d->id) != NULL)
    fault (r, "id", backup_disk_id_fault (d->id));
  check_disk_file (r, "file", d->file, d->id);
  check_disk_file (r, "parent", d->parent_file, d->id);
  if (d->digests_file != NULL && d->id != NULL && !backup_is_digests (d->digests_file, d->id, NULL))
    fault (r, "digests", "is no list of digests of this disk");
  if (d->file == NULL && d->error == NULL)
    fault (r, "file", "is missing, and no error says why");
  if (d->file != NULL && (d->full ? d->parent_file != NULL : d->parent_file == NULL))
    fault (r, "parent", "does not fit the kind");
}

static const json_t *
take_array (struct reading *r, const json_t *o, const char *key)
{
  const json_t *list = json_object_get (o, key);

  if (!json_is_array (list))
    fault (r, key, "is no array");
  return list;
}

static void
take_lists (struct reading *r, struct manifest *m, const json_t *o)
{
  const json_t *disks = take_array (r, o, "disks"), *files = take_array (r, o, "includes"),
               *hooks = take_array (r, o, "hooks");

  for (size_t i = 0; r->error == NULL && i < json_array_size (disks); i++) {
    struct manifest_disk *d = manifest_add_disk (m);
    if (d == NULL)
      fault (r, "disks", "is too long for the memory");
    else
      take_disk (r, d, json_array_get (disks, i));
    if (r->error == NULL && manifest_find_disk (m, d->id) != d)
      fault (r, "disks", "has one disk twice");
  }
  for (size_t i = 0; r->error == NULL && i < json_array_size (files); i++) {
    const json_t *f = json_array_get (files, i);
    struct manifest_include *x = manifest_add_include (m);
    if (x == NULL) {
      fault (r, "includes", "is too long for the memory");
      break;
    }
    x->source = take_text (r, f, "source", false);
    x->file = take_text (r, f, "file", false);
    x->bytes = take_number (r, f, "bytes");
    x->digest = take_text (r, f, "digest", false);
    check_include (r, x->file, m->name);
  }
  for (size_t i = 0; r->error == NULL && i < json_array_size (hooks); i++) {
    const json_t *h = json_array_get (hooks, i);
    struct manifest_hook *x = manifest_add_hook (m);
    if (x == NULL) {
      fault (r, "hooks", "is too long for the memory");
      break;
    }
    x->event = take_text (r, h, "event", false);
    x->command = take_text (r, h, "command", false);
    x->error = take_text (r, h, "error", true);
  }
}

int
manifest_disk_from_json (struct manifest_disk *d, const json_t *o, char **error)
{
  struct manifest_disk found = { .id = NULL };
  struct reading r = { NULL };

  take_disk (&r, &found, o);
  if (r.error != NULL) {
    clear_disk (&found);
    text_error (error, "%s", r.error);
    text_free (r.error);
    return -1;
  }
  clear_disk (d);
  *d = found;
  return 0;
}

int
manifest_from_json (struct manifest *m, const json_t *o, const char *name, char **error)
{
  const char *format = json_string_value (json_object_get (o, "format"));
  const json_t *version = json_object_get (o, "version"), *needs = json_object_get (o, "requires");
  struct reading r = { NULL };

  memset (m, 0, sizeof *m);
  if (format == NULL || strcmp (format, FORMAT) != 0)
    return text_error (error, "it is no manifest of a backup");
  if (!json_is_integer (version) || json_integer_value (version) != MANIFEST_VERSION
      || json_array_size (needs) != 0)
    return text_error (error, "it was written by a later version of nbdmirror");
  m->name = take_text (&r, o, "name", false);
  m->sequence = take_number (&r, o, "sequence");
  if (m->sequence > MAX_SEQUENCE)
    fault (&r, "sequence", "is too large");
  m->repository = take_text (&r, o, "repository", false);
  m->program = take_text (&r, o, "program", false);
  m->host = take_text (&r, o, "host", false);
  m->host_id = take_text (&r, o, "host-id", false);
  m->begun_us = (int64_t)take_number (&r, o, "begun-us");
  m->ended_us = (int64_t)take_number (&r, o, "ended-us");
  m->guest_frozen = take_word (&r, o, "consistency", "guest-frozen", "crash-consistent");
  m->is_protected = json_is_true (json_object_get (o, "protected"));
  m->is_dropped = json_is_true (json_object_get (o, "dropped"));
  if (m->name != NULL && strcmp (m->name, name) != 0)
    fault (&r, "name", "is not the file's");
  if (r.error == NULL)
    take_lists (&r, m, o);
  if (r.error == NULL)
    return 0;
  text_error (error, "%s", r.error);
  text_free (r.error);
  manifest_clear (m);
  return -1;
}
