/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A repository on another host.  See store-far.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/text.h"
#include "cmd/backup/store-far.h"
#include "cmd/far/far.h"

char *
store_hex (const void *data, size_t n)
{
  static const char digits[] = "0123456789abcdef";
  const unsigned char *bytes = data;
  char *text = malloc (2 * n + 1);

  if (text == NULL)
    return text_copy ("out of memory"); /* which is no data, so the other end refuses it */
  for (size_t i = 0; i < n; i++) {
    text[2 * i] = digits[bytes[i] >> 4];
    text[2 * i + 1] = digits[bytes[i] & 15];
  }
  text[2 * n] = '\0';
  return text;
}

static int
digit (char c)
{
  return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

ssize_t
store_unhex (const char *text, void *data, size_t size)
{
  size_t n = text != NULL ? strlen (text) : 1;
  unsigned char *bytes = data;

  if (n % 2 != 0 || n / 2 > size)
    return -1;
  for (size_t i = 0; i < n / 2; i++) {
    int high = digit (text[2 * i]), low = digit (text[2 * i + 1]);
    if (high == -1 || low == -1)
      return -1;
    bytes[i] = (unsigned char)(high << 4 | low);
  }
  return (ssize_t)(n / 2);
}

/* The text KEY of O, or NULL. */
static const char *
text_in (const json_t *o, const char *key)
{
  return json_string_value (json_object_get (o, key));
}

/* Have the agent open the repository, as WHAT says. */
static int
open_there (struct store *s, const char *what, char **error)
{
  json_t *ret = NULL;

  if (far_call (s->far, what, json_object (), &ret, NULL, error) == -1)
    return -1;
  const char *uuid = text_in (ret, "uuid");
  bool good = uuid != NULL && strlen (uuid) == UUID_TEXT_BYTES - 1;
  s->missing = json_is_true (json_object_get (ret, "missing"));
  if (good)
    memcpy (s->repo.uuid, uuid, UUID_TEXT_BYTES);
  json_decref (ret);
  if (good || s->missing)
    return 0;
  return text_error (error, "%s: the agent there does not tell the UUID", s->repo.path);
}

int
store_far_open (struct store *s, const char *place, bool look, char **error)
{
  s->repo.path = text_copy (place);
  s->far = far_open (place, s->go_on, s->opaque, error);
  return s->far != NULL ? open_there (s, look ? "look" : "open", error) : -1;
}

int
store_far_make (struct store *s, char **error)
{
  return open_there (s, "make", error);
}

int
store_far_lock (struct store *s, const char *id, int *status, char **error)
{
  return far_call (s->far, "lock", json_pack ("{s:s}", "disk", id), NULL, status, error);
}

int
store_far_list (struct store *s, struct backup_list *list, char **error)
{
  json_t *ret = NULL, *one;
  size_t i;

  memset (list, 0, sizeof *list);
  if (far_call (s->far, "list", json_object (), &ret, NULL, error) == -1)
    return -1;
  const json_t *all = json_object_get (ret, "backups");
  list->list = calloc (json_array_size (all) + 1, sizeof *list->list);
  json_array_foreach (all, i, one)
  {
    const char *name = text_in (one, "name"), *fault = text_in (one, "fault");
    struct backup_entry *e = list->list != NULL && name != NULL ? &list->list[list->nr++] : NULL;
    if (e == NULL)
      continue;
    e->name = text_copy (name);
    if (fault != NULL)
      e->fault = text_copy (fault);
    else
      manifest_from_json (&e->manifest, json_object_get (one, "manifest"), name, &e->fault);
  }
  json_decref (ret);
  return list->list != NULL ? 0 : text_error (error, "out of memory");
}

char *
store_far_chain_fault (struct store *s, const char *name, const char *id)
{
  json_t *ret = NULL;
  char *error = NULL;

  if (far_call (s->far, "chain", json_pack ("{s:s, s:s}", "backup", name, "disk", id), &ret, NULL,
                &error)
      == -1)
    return error;
  const char *fault = text_in (ret, "fault");
  char *text = fault != NULL ? text_copy (fault) : NULL;
  json_decref (ret);
  return text;
}

bool
store_far_was_begun (struct store *s, const char *id)
{
  json_t *ret = NULL;

  far_call (s->far, "was-begun", json_pack ("{s:s}", "disk", id), &ret, NULL, NULL);
  bool begun = json_is_true (json_object_get (ret, "begun"));
  json_decref (ret);
  return begun;
}

int
store_far_begin (struct store *s, int64_t us, char *const ids[], unsigned nr,
                 char name[BACKUP_NAME_MAX], char **error)
{
  json_t *disks = json_array (), *ret = NULL;

  for (unsigned i = 0; i < nr; i++)
    json_array_append_new (disks, json_string (ids[i]));
  if (far_call (s->far, "begin", json_pack ("{s:I, s:o}", "us", (json_int_t)us, "disks", disks),
                &ret, NULL, error)
      == -1)
    return -1;
  const char *text = text_in (ret, "name");
  bool good = text != NULL && backup_name_ok (text);
  if (good)
    strcpy (name, text);
  json_decref (ret);
  return good ? 0 : text_error (error, "%s: the agent there names no backup", s->repo.path);
}

void
store_far_tidy (struct store *s, void (*told) (void *opaque, const char *name), void *opaque)
{
  json_t *ret = NULL, *one;
  size_t i;

  far_call (s->far, "tidy", json_object (), &ret, NULL, NULL);
  json_array_foreach (json_object_get (ret, "tidied"), i, one) if (json_is_string (one))
      told (opaque, json_string_value (one));
  json_decref (ret);
}

void
store_far_give_up (struct store *s, bool keep_mark)
{
  far_call (s->far, "give-up", json_pack ("{s:b}", "keep-mark", keep_mark), NULL, NULL, NULL);
}

int
store_far_make_file (struct store *s, const char *file, const char *parent, uint64_t size,
                     bool compress, char **error)
{
  json_t *args = json_pack ("{s:s, s:s?, s:I, s:b}", "file", file, "parent", parent, "size",
                            (json_int_t)size, "compress", compress);

  return far_call (s->far, "make-file", args, NULL, NULL, error);
}

void
store_far_remove_file (struct store *s, const char *file)
{
  far_call (s->far, "remove-file", json_pack ("{s:s}", "file", file), NULL, NULL, NULL);
}

int
store_far_seal (struct store *s, struct manifest_disk *m, char **error)
{
  json_t *ret = NULL;

  if (far_call (s->far, "seal", manifest_disk_to_json (m), &ret, NULL, error) == -1)
    return -1;
  int r = manifest_disk_from_json (m, json_object_get (ret, "disk"), error);
  json_decref (ret);
  return r;
}

int
store_far_include (struct store *s, const char *from, struct manifest_include *m, char **error)
{
  CLEANUP_FD int in = store_open_include (from, error);
  char data[STORE_PART];
  json_t *ret = NULL;
  ssize_t n = 0;

  if (in == -1)
    return -1;
  if (far_call (s->far, "include", json_pack ("{s:s}", "file", m->file), NULL, NULL, error) == -1)
    return -1;
  m->bytes = 0;
  while ((n = read (in, data, sizeof data)) > 0) {
    CLEANUP_TEXT char *text = store_hex (data, (size_t)n);
    if (far_call (s->far, "include-part", json_pack ("{s:s}", "data", text), NULL, NULL, error)
        == -1)
      return -1;
    m->bytes += (uint64_t)n;
  }
  if (n == -1)
    return text_error (error, "--include %s: %s", from, strerror (errno));
  if (far_call (s->far, "include-end", json_object (), &ret, NULL, error) == -1)
    return -1;
  const char *digest = text_in (ret, "digest");
  if (digest != NULL)
    m->digest = text_copy (digest);
  json_decref (ret);
  return m->digest != NULL ? 0 : text_error (error, "%s has no digest there", m->file);
}

int
store_far_write (struct store *s, struct manifest *m, bool keep_mark, char **error)
{
  json_t *ret = NULL, *o = manifest_to_json (m);

  if (o == NULL)
    return text_error (error, "%s: a name in it is not UTF-8", m->name);
  if (far_call (s->far, "write", json_pack ("{s:o, s:b}", "manifest", o, "keep-mark", keep_mark),
                &ret, NULL, error)
      == -1)
    return -1;
  m->sequence = (uint64_t)json_integer_value (json_object_get (ret, "sequence"));
  json_decref (ret);
  return 0;
}

int
store_far_fetch (struct store *s, const struct manifest_include *m, const char *to, char **error)
{
  CLEANUP_FD int out = open (to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  char data[STORE_PART];
  ssize_t n = 1;
  int r = 0;

  if (out == -1)
    return text_error (error, "%s: %s", to, strerror (errno));
  for (uint64_t done = 0; r == 0 && n > 0; done += (uint64_t)n) {
    json_t *ret = NULL;
    r = far_call (s->far, "fetch",
                  json_pack ("{s:s, s:I}", "file", m->file, "from", (json_int_t)done), &ret, NULL,
                  error);
    n = r == 0 ? store_unhex (text_in (ret, "data"), data, sizeof data) : 0;
    json_decref (ret);
    if (n == -1)
      r = text_error (error, "%s cannot be read there", m->file);
    else if (r == 0 && fd_write_all (out, data, (size_t)n) == -1)
      r = text_error (error, "%s: %s", to, strerror (errno));
  }
  if (r == 0 && fsync (out) == -1)
    r = text_error (error, "%s: %s", to, strerror (errno));
  if (r == -1)
    unlink (to);
  return r;
}
