/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Reading lists of digests, and combining several of them.  See list.h.
 *
 * The disk is gone through in windows.  In each one the lists are laid over each other, the oldest
 * first.  A list is opened anew for each window, so that a chain may have more lists than this
 * process may have open files.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/text.h"
#include "digest/list-format.h"
#include "digest/list.h"

#define WINDOW (UINT64_C (1) << 18) /* blocks */

/* A list that is being read. */
struct source {
  const char *path;
  uint64_t at;  /* where in the file the next run is */
  uint64_t end; /* no run may begin before this block */
  int fd;
  uint8_t buffer[DIGEST_LIST_PIECE];
  uint64_t buffer_at; /* where in the file it begins */
  size_t filled;
};

struct combining {
  struct source *sources;
  unsigned nr;
  bool complete;
  uint64_t blocks; /* of the disk */
  uint64_t begin, nr_window;
  uint8_t *digests, *known; /* of the window's blocks; known: a list has the block */
};

/* Read up to LENGTH bytes at AT.  The number of bytes, less at the end of the file; -1 with errno.
 */
static ssize_t
read_at (int fd, void *data, size_t length, uint64_t at)
{
  size_t done = 0;

  while (done < length) {
    ssize_t n = pread (fd, (char *)data + done, length - done, (off_t)(at + done));
    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1)
      return -1;
    if (n == 0)
      break;
    done += (size_t)n;
  }
  return (ssize_t)done;
}

/* The next LENGTH bytes at AT.  1; 0 if the file ends at AT; -1 with *ERROR. */
static int
take (struct source *s, void *data, size_t length, uint64_t at, char **error)
{
  uint8_t *to = data;
  size_t done = 0;

  while (done < length) {
    if (at < s->buffer_at || at >= s->buffer_at + s->filled) {
      ssize_t n = read_at (s->fd, s->buffer, sizeof s->buffer, at);
      if (n == -1)
        return text_error (error, "%s: %s", s->path, strerror (errno));
      if (n == 0 && done == 0)
        return 0;
      if (n == 0)
        return text_error (error, "%s: it ends within a run", s->path);
      s->buffer_at = at;
      s->filled = (size_t)n;
    }
    size_t n = (size_t)(s->buffer_at + s->filled - at);
    n = length - done < n ? length - done : n;
    memcpy (to + done, s->buffer + (at - s->buffer_at), n);
    done += n;
    at += n;
  }
  return 1;
}

static int
open_source (struct source *s, char **error)
{
  s->filled = 0;
  s->fd = open (s->path, O_RDONLY | O_CLOEXEC);
  return s->fd != -1 ? 0 : text_error (error, "%s: %s", s->path, strerror (errno));
}

static int
read_header (struct source *s, bool *complete, uint64_t *blocks, char **error)
{
  struct digest_list_header h;

  int r = take (s, &h, sizeof h, 0, error);
  if (r == -1)
    return -1;
  if (r == 0 || memcmp (h.magic, DIGEST_LIST_MAGIC, sizeof h.magic) != 0)
    return text_error (error, "%s is no list of digests", s->path);
  if (le32toh (h.block) != digest_whole_key.block || (le32toh (h.flags) & ~DIGEST_LIST_COMPLETE))
    return text_error (error, "%s was written by a later version of nbdmirror", s->path);
  *complete = (le32toh (h.flags) & DIGEST_LIST_COMPLETE) != 0;
  *blocks = le64toh (h.blocks);
  s->at = sizeof h;
  return 0;
}

/* ---- combining ---- */

/* Lay the part of a run that lies in the window over what is there. */
static int
lay (struct combining *c, struct source *s, uint64_t first, uint64_t nr, bool data, char **error)
{
  uint64_t from = first > c->begin ? first : c->begin, end = c->begin + c->nr_window;
  uint64_t to = first + nr < end ? first + nr : end, n = to - from;
  uint8_t *digests = c->digests + (from - c->begin) * DIGEST_SIZE;

  memset (c->known + (from - c->begin), 1, n);
  if (!data) {
    memset (digests, 0, n * DIGEST_SIZE);
    return 0;
  }
  uint64_t at = s->at + sizeof (struct digest_list_run) + (from - first) * DIGEST_SIZE;
  int r = take (s, digests, n * DIGEST_SIZE, at, error);
  return r == 0 ? text_error (error, "%s: it ends within a run", s->path) : r == 1 ? 0 : -1;
}

/* All that S has in the window. */
static int
lay_source (struct combining *c, struct source *s, char **error)
{
  struct digest_list_run run;
  int r;

  while ((r = take (s, &run, sizeof run, s->at, error)) == 1) {
    uint64_t first = le64toh (run.first), nr = le32toh (run.nr);
    uint32_t kind = le32toh (run.kind);
    if (first < s->end || first >= c->blocks || nr == 0 || nr > c->blocks - first
        || kind > DIGEST_LIST_DATA)
      return text_error (error, "%s: its run at byte %" PRIu64 " is not valid", s->path, s->at);
    if (first >= c->begin + c->nr_window)
      return 0;
    if (lay (c, s, first, nr, kind == DIGEST_LIST_DATA, error) == -1)
      return -1;
    if (first + nr > c->begin + c->nr_window)
      return 0; /* the next window has the rest of it */
    s->end = first + nr;
    s->at += sizeof run + (kind == DIGEST_LIST_DATA ? nr * DIGEST_SIZE : 0);
  }
  return r;
}

static int
combine_window (struct combining *c, digest_list_sink sink, void *opaque, char **error)
{
  memset (c->digests, 0, c->nr_window * DIGEST_SIZE);
  memset (c->known, c->complete, c->nr_window);
  for (unsigned i = 0; i < c->nr; i++) {
    if (open_source (&c->sources[i], error) == -1)
      return -1;
    int r = lay_source (c, &c->sources[i], error);
    fd_close (&c->sources[i].fd);
    if (r == -1)
      return -1;
  }
  for (uint64_t i = 0, n; i < c->nr_window; i += n) {
    const uint8_t *other = memchr (c->known + i, !c->known[i], c->nr_window - i);
    n = other != NULL ? (uint64_t)(other - (c->known + i)) : c->nr_window - i;
    if (c->known[i])
      sink (opaque, c->begin + i, c->digests + i * DIGEST_SIZE, n);
  }
  return 0;
}

/* All headers: the lists are of one disk, and only the first may be complete. */
static int
begin (struct combining *c, const struct digest_list_kept *lists, char **error)
{
  for (unsigned i = 0; i < c->nr; i++) {
    struct source *s = &c->sources[i];
    bool complete = false;
    uint64_t blocks = 0;
    s->path = lists[i].path;
    if (open_source (s, error) == -1)
      return -1;
    int r = read_header (s, &complete, &blocks, error);
    fd_close (&s->fd);
    if (r == -1)
      return -1;
    if (i == 0) {
      c->complete = complete;
      c->blocks = blocks;
    } else if (complete || blocks != c->blocks)
      return text_error (error, "%s is no list of the changes since the one before", s->path);
  }
  return 0;
}

int
digest_list_combine (const struct digest_list_kept *lists, unsigned nr, digest_list_sink sink,
                     void *opaque, char **error)
{
  struct combining c = { .nr = nr,
                         .sources = calloc (nr + 1, sizeof *c.sources),
                         .digests = malloc (WINDOW * DIGEST_SIZE),
                         .known = malloc (WINDOW) };
  int result = -1;

  if (c.sources == NULL || c.digests == NULL || c.known == NULL)
    text_error (error, "out of memory");
  else
    result = begin (&c, lists, error);
  for (; result == 0 && c.begin < c.blocks; c.begin += c.nr_window) {
    c.nr_window = c.blocks - c.begin < WINDOW ? c.blocks - c.begin : WINDOW;
    result = combine_window (&c, sink, opaque, error);
  }
  free (c.sources);
  free (c.digests);
  free (c.known);
  return result;
}

/* ---- a list's own digest ---- */

/* Of all bytes of FD, which is read from the beginning.  0, or -1 with errno. */
static int
own_digest (int fd, char text[DIGEST_WHOLE_TEXT])
{
  struct digest_whole *w = digest_whole_new ();
  uint8_t *piece = malloc (DIGEST_LIST_PIECE), digest[DIGEST_SIZE];
  ssize_t n = -1;

  errno = ENOMEM;
  for (uint64_t at = 0;
       w != NULL && piece != NULL && (n = read_at (fd, piece, DIGEST_LIST_PIECE, at)) > 0;
       at += (uint64_t)n) {
    memset (piece + n, 0, DIGEST_LIST_PIECE - (size_t)n);
    digest_blocks (&digest_whole_key, piece, DIGEST_LIST_PIECE, digest);
    digest_whole_add (w, digest, 1);
  }
  if (n == 0)
    digest_whole_text (w, text);
  free (piece);
  digest_whole_free (w);
  return n == 0 ? 0 : -1;
}

int
digest_list_check (const struct digest_list_kept *list, bool *complete, uint64_t *blocks,
                   char **error)
{
  struct source *s = calloc (1, sizeof *s);
  char own[DIGEST_WHOLE_TEXT];
  int result = -1;

  if (s == NULL)
    return text_error (error, "out of memory");
  s->path = list->path;
  if (open_source (s, error) == 0) {
    if (own_digest (s->fd, own) == -1)
      text_error (error, "%s: %s", s->path, strerror (errno));
    else if (strcmp (own, list->own) != 0)
      text_error (error, "%s: its bytes are not those that were written", s->path);
    else
      result = read_header (s, complete, blocks, error);
  }
  fd_close (&s->fd);
  free (s);
  return result;
}
