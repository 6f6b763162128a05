/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Framing of the control protocol: one JSON object a line (QMP's wire format), with limits.  There
 * are no sockets here, so that it is tested and fuzzed alone.
 */

#ifndef NBDMIRROR_CONTROL_FRAME_H
#define NBDMIRROR_CONTROL_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <jansson.h>

#define FRAME_MAX_LINE (64u * 1024) /* bytes of one line, without the newline */

/* Bytes received and not yet cut into lines. */
struct frame_buffer {
  char *data; /* owned */
  size_t len, cap;
  size_t scanned;  /* no newline before this index */
  size_t max_line; /* FRAME_MAX_LINE, unless the owner trusts its peer with more */
};

enum frame_result {
  FRAME_NONE,     /* no complete line yet */
  FRAME_OBJECT,   /* *OBJECT holds a new reference */
  FRAME_BAD,      /* a line that is not a JSON object: *ERROR says why; it was consumed */
  FRAME_TOO_LONG, /* more than max_line bytes without a newline: cut the peer off */
  FRAME_NOMEM
};

void frame_init (struct frame_buffer *b);
void frame_free (struct frame_buffer *b);

/* Append LEN received bytes.  0, or -1 with errno ENOMEM. */
int frame_append (struct frame_buffer *b, const void *data, size_t len);

/* Take the next line out.  Empty lines are skipped.  On FRAME_BAD *ERROR is a message that the
 * caller frees with text_free(). */
enum frame_result frame_next (struct frame_buffer *b, json_t **object, char **error);

/* Has a line been begun and not finished? */
bool frame_partial (const struct frame_buffer *b);

/* Encode OBJECT as one line with a newline.  Returns a malloc'd buffer (the caller
 * frees it) and its length, or NULL on ENOMEM. */
char *frame_encode (const json_t *object, size_t *len);

#endif
