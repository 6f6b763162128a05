/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Writing a list of digests.  See list.h; list-read.c reads it.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/text.h"
#include "digest/list-format.h"
#include "digest/list.h"

#define RUN_MAX 4096 /* blocks of data in one run */

static const uint8_t zero_digest[DIGEST_SIZE];

struct digest_list {
  char *path;
  int fd, error;
  bool complete;
  uint8_t buffer[DIGEST_LIST_PIECE]; /* not written yet: whole pieces but for the last */
  size_t used;
  struct digest_whole *own;
  /* The run that is being collected. */
  uint64_t first, nr;
  bool data;
  uint8_t digests[RUN_MAX * DIGEST_SIZE];
};

/* ---- bytes ---- */

/* What is in the buffer goes into the file, and into the list's own digest. */
static void
write_out (struct digest_list *l)
{
  uint8_t digest[DIGEST_SIZE];

  if (l->used == 0)
    return;
  if (l->error == 0 && fd_write_all (l->fd, l->buffer, l->used) == -1)
    l->error = errno;
  memset (l->buffer + l->used, 0, sizeof l->buffer - l->used);
  digest_blocks (&digest_whole_key, l->buffer, sizeof l->buffer, digest);
  digest_whole_add (l->own, digest, 1);
  l->used = 0;
}

static void
put (struct digest_list *l, const void *data, size_t length)
{
  const uint8_t *p = data;

  while (length > 0) {
    size_t n = sizeof l->buffer - l->used;
    n = length < n ? length : n;
    memcpy (l->buffer + l->used, p, n);
    l->used += n;
    p += n;
    length -= n;
    if (l->used == sizeof l->buffer)
      write_out (l);
  }
}

/* ---- runs ---- */

static void
end_run (struct digest_list *l)
{
  while (l->nr > 0 && (l->data || !l->complete)) {
    uint32_t n = l->nr < UINT32_MAX ? (uint32_t)l->nr : UINT32_MAX;
    const struct digest_list_run run = { htole64 (l->first), htole32 (n),
                                         htole32 (l->data ? DIGEST_LIST_DATA : DIGEST_LIST_ZERO) };
    put (l, &run, sizeof run);
    if (l->data)
      put (l, l->digests, n * DIGEST_SIZE);
    l->first += n;
    l->nr -= n;
  }
  l->nr = 0;
}

/* NR more blocks of one kind. */
static void
add_run (struct digest_list *l, uint64_t first, const uint8_t *digests, uint64_t nr)
{
  bool data = digests != NULL;

  while (nr > 0) {
    if (l->nr > 0 && (first != l->first + l->nr || data != l->data || (data && l->nr == RUN_MAX)))
      end_run (l);
    if (l->nr == 0) {
      l->first = first;
      l->data = data;
    }
    uint64_t n = data && nr > RUN_MAX - l->nr ? RUN_MAX - l->nr : nr;
    if (data) {
      memcpy (l->digests + l->nr * DIGEST_SIZE, digests, n * DIGEST_SIZE);
      digests += n * DIGEST_SIZE;
    }
    l->nr += n;
    first += n;
    nr -= n;
  }
}

void
digest_list_add (struct digest_list *l, uint64_t first, const uint8_t *digests, uint64_t nr)
{
  if (digests == NULL) {
    add_run (l, first, NULL, nr);
    return;
  }
  for (uint64_t i = 0, n; i < nr; i += n) {
    bool zero = memcmp (digests + i * DIGEST_SIZE, zero_digest, DIGEST_SIZE) == 0;
    for (n = 1; i + n < nr; n++)
      if ((memcmp (digests + (i + n) * DIGEST_SIZE, zero_digest, DIGEST_SIZE) == 0) != zero)
        break;
    add_run (l, first + i, zero ? NULL : digests + i * DIGEST_SIZE, n);
  }
}

/* ---- the file ---- */

struct digest_list *
digest_list_new (const char *path, bool complete, uint64_t blocks, char **error)
{
  struct digest_list *l = calloc (1, sizeof *l);

  if (l == NULL || (l->own = digest_whole_new ()) == NULL) {
    free (l);
    text_error (error, "out of memory");
    return NULL;
  }
  l->path = text_copy (path);
  l->complete = complete;
  l->fd = open (path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (l->fd == -1) {
    text_error (error, "%s: %s", path, strerror (errno));
    digest_list_drop (l);
    return NULL;
  }
  struct digest_list_header header = { .block = htole32 (digest_whole_key.block),
                                       .flags = htole32 (complete ? DIGEST_LIST_COMPLETE : 0),
                                       .blocks = htole64 (blocks) };
  memcpy (header.magic, DIGEST_LIST_MAGIC, sizeof header.magic);
  put (l, &header, sizeof header);
  return l;
}

int
digest_list_end (struct digest_list *l, char own[DIGEST_WHOLE_TEXT], char **error)
{
  end_run (l);
  write_out (l);
  if (l->error == 0 && fsync (l->fd) == -1)
    l->error = errno;
  int result = 0;
  if (l->error != 0)
    result = text_error (error, "%s: %s", l->path, strerror (l->error));
  digest_whole_text (l->own, own);
  digest_list_drop (l);
  return result;
}

void
digest_list_drop (struct digest_list *l)
{
  if (l == NULL)
    return;
  fd_close (&l->fd);
  digest_whole_free (l->own);
  text_free (l->path);
  free (l);
}
