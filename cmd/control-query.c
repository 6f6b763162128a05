/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See control-query.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/control-query.h"

bool
query_is_control (const char *path)
{
  struct stat st;

  return stat (path, &st) != 0 || S_ISSOCK (st.st_mode);
}

void
query_failed (const char *control, const char *message)
{
  if (strstr (message, control) != NULL)
    cmd_say ("%s", message);
  else
    cmd_say ("%s: %s", control, message);
}

struct control_client *
query_connect_within (const char *control, int timeout_ms)
{
  char *message = NULL;
  struct control_client *c = control_client_connect (control, timeout_ms, &message);

  if (c == NULL)
    query_failed (control, message);
  text_free (message);
  return c;
}

struct control_client *
query_connect (const char *control)
{
  return query_connect_within (control, QUERY_MS);
}

int
query_call (struct control_client *c, const char *control, const char *name, json_t *args,
            json_t **ret, char **class_)
{
  char *message = NULL;
  struct control_call call
      = { .command = name, .args = args, .timeout_ms = QUERY_MS, .ret = ret, .class_ = class_ };
  int r = control_client_call (c, &call, &message);

  if (r == -1)
    query_failed (control, message);
  text_free (message);
  return r;
}

/* ---- status objects ------------------------------------------------------------------------- */

bool
status_has_number (const json_t *status, const char *key)
{
  return json_is_number (json_object_get (status, key));
}

double
status_number (const json_t *status, const char *key, double fallback)
{
  const json_t *v = json_object_get (status, key);

  return json_is_number (v) ? json_number_value (v) : fallback;
}

const char *
status_text (const json_t *status, const char *key)
{
  return json_string_value (json_object_get (status, key));
}

bool
status_is_true (const json_t *status, const char *key)
{
  return json_is_true (json_object_get (status, key));
}

bool
status_handed_over (const json_t *status)
{
  const char *state = status_text (status, "state"), *gate = status_text (status, "gate");

  return state != NULL && strcmp (state, "completed") == 0
         && (gate == NULL || strcmp (gate, "open") != 0);
}

double
status_left (const json_t *status)
{
  double dirty = status_number (status, "dirty-bytes", -1),
         size = status_number (status, "size", -1);
  const char *state = status_text (status, "state");
  double left = dirty;

  /* When ready, what is claimed was written, and only waits for the next flush. */
  if (state == NULL || strcmp (state, "ready") != 0)
    left += status_number (status, "claimed-bytes", 0);
  /* A block that is written to while it is copied is in both. */
  return dirty < 0 ? -1 : size >= 0 && left > size ? size : left;
}

double
status_percent (const json_t *status)
{
  double size = status_number (status, "size", -1), left = status_left (status), percent;

  if (size < 0 || left < 0)
    return -1;
  if (left <= 0)
    return 100;
  if (left >= size)
    return 0;
  percent = 100 * (size - left) / size;
  return percent > 99.9 ? 99.9 : percent;
}

bool
report_possible (const char *option, const char *path)
{
  struct stat st;
  bool exists = lstat (path, &st) == 0; /* a link to a file that is not there yet stays, too */
  /* Who reads a fifo would take our closing it for the end of the report. */
  bool fifo = stat (path, &st) == 0 && S_ISFIFO (st.st_mode);
  CLEANUP_FD int fd = fifo ? -1 : open (path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOCTTY, 0666);

  if (fd == -1 && (!fifo || access (path, W_OK) == -1)) {
    cmd_say ("%s %s: %s", option, path, strerror (errno));
    return false;
  }
  if (!exists)
    unlink (path);
  return true;
}

int
report_write (const char *path, const json_t *o)
{
  FILE *f = fopen (path, "we");

  if (f == NULL)
    return -1;
  int r
      = json_dumpf (o, f, JSON_INDENT (2) | JSON_REAL_PRECISION (12)) == 0 && fputc ('\n', f) != EOF
            ? 0
            : -1;
  return fclose (f) == 0 ? r : -1;
}
