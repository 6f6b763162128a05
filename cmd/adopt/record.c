/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See record.h.
 */

#include "config.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/durable.h"
#include "base/text.h"
#include "cmd/adopt/record.h"
#include "cmd/adopt/starting.h"

static char *
path_of (const char *control)
{
  return text_printf ("%s.adopted", control);
}

/* Texts that have to be there. */
static bool
is_complete (const json_t *r)
{
  static const char *const texts[] = { "device",        "backend", "file-driver", "filename",
                                       "detect-zeroes", "discard", "aio",         "socket" };

  for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
    if (!json_is_string (json_object_get (r, texts[i])))
      return false;
  return json_is_integer (json_object_get (r, "size"));
}

int
record_load (const char *control, json_t **record, char **error)
{
  CLEANUP_TEXT char *path = path_of (control);
  json_error_t e;

  *record = NULL;
  if (access (path, F_OK) == -1 && errno == ENOENT)
    return 0;
  json_t *r = json_load_file (path, JSON_REJECT_DUPLICATES, &e);
  if (r == NULL)
    return text_error (error, "%s: %s", path, e.text);
  if (!is_complete (r)) {
    json_decref (r);
    return text_error (error, "%s: this is not a record of 'nbdmirror adopt'", path);
  }
  *record = r;
  return 0;
}

int
record_save (const char *control, const json_t *record, char **error)
{
  CLEANUP_TEXT char *path = path_of (control);
  char *text = json_dumps (record, JSON_INDENT (1));
  int r = text != NULL ? durable_replace (path, text, error)
                       : text_error (error, "%s: out of memory", path);

  free (text);
  return r;
}

const char *
record_text (const json_t *record, const char *key)
{
  const char *text = json_string_value (json_object_get (record, key));
  return text != NULL ? text : "";
}

const char *
record_file_driver (const struct stat *st)
{
  return S_ISBLK (st->st_mode) ? "host_device" : "file";
}

int
record_take_image (const char *control, json_t *record, const struct served *server, char **error)
{
  const char *image = server->image;
  struct stat st;

  if (strcmp (image, record_text (record, "filename")) == 0)
    return 0;
  if (stat (image, &st) == -1)
    return text_error (error, "%s: %s", image, strerror (errno));
  json_object_set_new (record, "filename", json_string (image));
  json_object_set_new (record, "state",
                       server->state != NULL ? json_string (server->state) : json_null ());
  json_object_set_new (record, "file-driver", json_string (record_file_driver (&st)));
  return record_save (control, record, error);
}

void
record_remove (const char *control)
{
  CLEANUP_TEXT char *path = path_of (control);
  CLEANUP_TEXT char *draft = text_printf ("%s" DURABLE_DRAFT, path); /* of one that was killed */

  unlink (path);
  unlink (draft);
  starting_forget (control);
}
