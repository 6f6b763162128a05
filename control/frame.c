/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Framing: cut a byte stream into lines, each line into one JSON object.
 *
 * Only a newline separates messages.  So whatever a line holds, the stream is in step again at the
 * next newline.  The JSON library limits nesting (2048 levels), and refuses raw NULs, bytes that
 * are not UTF-8, and numbers out of range.  Here only the length of a line is limited.
 */

#include "config.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "control/frame.h"

/* A buffer that served one long line gives the memory back when it is empty again. */
#define KEEP_CAPACITY 8192u

void
frame_init (struct frame_buffer *b)
{
  memset (b, 0, sizeof *b);
  b->max_line = FRAME_MAX_LINE;
}

void
frame_free (struct frame_buffer *b)
{
  free (b->data);
  frame_init (b);
}

int
frame_append (struct frame_buffer *b, const void *data, size_t len)
{
  if (len == 0)
    return 0;
  if (len > SIZE_MAX / 2 - b->len) {
    errno = ENOMEM;
    return -1;
  }
  if (b->len + len > b->cap) {
    size_t cap = b->cap ? b->cap : 1024;

    while (cap < b->len + len)
      cap *= 2;
    char *bigger = realloc (b->data, cap);
    if (bigger == NULL) {
      errno = ENOMEM;
      return -1;
    }
    b->data = bigger;
    b->cap = cap;
  }
  memcpy (b->data + b->len, data, len);
  b->len += len;
  return 0;
}

static void
drop_front (struct frame_buffer *b, size_t n)
{
  b->len -= n;
  b->scanned = 0;
  if (b->len > 0)
    memmove (b->data, b->data + n, b->len);
  else if (b->cap > KEEP_CAPACITY)
    frame_free (b);
}

static bool
is_blank (const char *line, size_t len)
{
  for (size_t i = 0; i < len; i++) {
    if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r')
      return false;
  }
  return true;
}

static enum frame_result
parse_line (const char *line, size_t len, json_t **object, char **error)
{
  json_error_t e;
  json_t *j = json_loadb (line, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
  if (json_is_object (j)) {
    *object = j;
    return FRAME_OBJECT;
  }
  if (j != NULL) {
    json_decref (j);
    text_error (error, "QMP input must be a JSON object");
  } else if (json_error_code (&e) == json_error_out_of_memory)
    return FRAME_NOMEM;
  else
    text_error (error, "JSON parse error at column %d: %s", e.column, e.text);
  return FRAME_BAD;
}

enum frame_result
frame_next (struct frame_buffer *b, json_t **object, char **error)
{
  size_t start = 0; /* of the line that is looked at; blank ones before it are dropped */

  *object = NULL;
  *error = NULL;
  for (;;) {
    size_t from = b->scanned > start ? b->scanned : start;
    char *nl = b->len > from ? memchr (b->data + from, '\n', b->len - from) : NULL;
    size_t end = nl != NULL ? (size_t)(nl - b->data) : b->len;

    if (end - start > b->max_line)
      return FRAME_TOO_LONG;
    if (nl == NULL) {
      if (start > 0)
        drop_front (b, start);
      b->scanned = b->len;
      return FRAME_NONE;
    }
    if (is_blank (b->data + start, end - start)) {
      start = end + 1;
      continue;
    }
    enum frame_result r = parse_line (b->data + start, end - start, object, error);
    drop_front (b, end + 1);
    return r;
  }
}

bool
frame_partial (const struct frame_buffer *b)
{
  return b->len > 0 && memchr (b->data, '\n', b->len) == NULL;
}

char *
frame_encode (const json_t *object, size_t *len)
{
  size_t n = json_dumpb (object, NULL, 0, 0);
  if (n == 0)
    return NULL;
  char *line = malloc (n + 2);
  if (line == NULL)
    return NULL;
  size_t again = json_dumpb (object, line, n, 0);
  if (again != n) {
    free (line);
    return NULL;
  }
  line[n] = '\n';
  line[n + 1] = '\0'; /* for debuggers and tests; not counted */
  *len = n + 1;
  return line;
}
