/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See same-image.h.
 */

#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/qemu-lock.h"
#include "base/text.h"
#include "cmd/adopt/received.h"
#include "cmd/adopt/same-image.h"
#include "cmd/serve/paths.h"
#include "mirror/endpoint/blocking.h"
#include "mirror/endpoint/endpoint.h"

#define SAMPLES 32
#define SAMPLE_BYTES 4096u
#define SAMPLE_TRIES 50
#define SAMPLE_PAUSE_MS 5
#define LOCK_TRIES 40
#define LOCK_PAUSE_MS 50

/* ---- who has it open ------------------------------------------------------------------------- */

static bool
is_same (const struct stat *a, const struct stat *b)
{
  if (S_ISBLK (a->st_mode) && S_ISBLK (b->st_mode))
    return a->st_rdev == b->st_rdev;
  return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

int
image_is_open_in (pid_t pid, const char *path)
{
  CLEANUP_TEXT char *folder = text_printf ("/proc/%ld/fd", (long)pid);
  struct stat wanted, st;
  struct dirent *entry;
  int found = 0;

  if (stat (path, &wanted) == -1)
    return -1;
  DIR *dir = opendir (folder);
  if (dir == NULL)
    return -1;
  while (found == 0 && (entry = readdir (dir)) != NULL)
    if (fstatat (dirfd (dir), entry->d_name, &st, 0) == 0 && is_same (&st, &wanted))
      found = 1;
  closedir (dir);
  return found;
}

static bool
is_locked_by_others (const char *path, bool by_server)
{
  char type[16], mode[16], end_text[24], line[256];
  uint64_t start, inode;
  unsigned writers = 0, major_number, minor_number;
  bool excluded = false;
  struct stat st;

  if (stat (path, &st) == -1)
    return false;
  FILE *fp = fopen ("/proc/locks", "re");
  if (fp == NULL)
    return false;
  while (fgets (line, sizeof line, fp) != NULL) {
    if (sscanf (line, "%*s %15s %*s %15s %*d %x:%x:%" SCNu64 " %" SCNu64 " %23s", type, mode,
                &major_number, &minor_number, &inode, &start, end_text)
            != 7
        || inode != st.st_ino || makedev (major_number, minor_number) != st.st_dev)
      continue;
    uint64_t end = strcmp (end_text, "EOF") == 0 ? UINT64_MAX : strtoull (end_text, NULL, 10);
    if (strcmp (mode, "WRITE") == 0)
      excluded = excluded || !by_server || strcmp (type, "FLOCK") != 0;
    else if (strcmp (type, "OFDLCK") == 0 && start <= QEMU_LOCK_WRITES && end >= QEMU_LOCK_WRITES)
      writers++;
  }
  fclose (fp);
  return excluded || writers > 1;
}

bool
image_stays_locked (const char *path, bool by_server)
{
  for (int tries = 1; is_locked_by_others (path, by_server); tries++) {
    if (tries == LOCK_TRIES)
      return true;
    clock_sleep_ms (LOCK_PAUSE_MS);
  }
  return false;
}

bool
image_has_writer (const char *path)
{
  CLEANUP_FD int fd = open (path, O_RDONLY | O_CLOEXEC);

  return fd != -1 && qemu_lock_is_written (fd);
}

int
image_is_open_below (pid_t pid, const char *path)
{
  struct dirent *entry;
  int found = 0;

  DIR *dir = opendir ("/proc");
  if (dir == NULL)
    return -1;
  while (found != 1 && (entry = readdir (dir)) != NULL) {
    pid_t child = (pid_t)strtol (entry->d_name, NULL, 10);
    if (child > 0 && received_parent (child) == pid)
      found = image_is_open_in (child, path);
  }
  closedir (dir);
  return found;
}

/* ---- contents -------------------------------------------------------------------------------- */

struct comparison {
  int fd;
  struct channel *ch;
  uint8_t *here, *there; /* aligned, SAMPLE_BYTES each */
  const char *path, *socket;
  pid_t server; /* or 0 */
};

static int
compare_at (const struct comparison *c, uint64_t offset, uint32_t length, char **error)
{
  for (int tries = 0; tries < SAMPLE_TRIES; tries++) {
    if (tries > 0)
      clock_sleep_ms (SAMPLE_PAUSE_MS);
    int err = sync_read (c->ch, c->there, length, offset);
    if (err)
      return text_error (error, "%s: cannot read at offset %" PRIu64 ": %s", c->socket, offset,
                         strerror (err));
    if (pread (c->fd, c->here, length, (off_t)offset) != (ssize_t)length)
      return text_error (error, "%s: cannot read at offset %" PRIu64, c->path, offset);
    if (memcmp (c->here, c->there, length) == 0)
      return 0;
  }
  return text_error (error,
                     "%s is not what the server at %s serves: they differ at offset %" PRIu64,
                     c->path, c->socket, offset);
}

/* nbdkit opens the file for each connection. */
static int
check_server (const struct comparison *c, char **error)
{
  int r = c->server > 0 ? image_is_open_in (c->server, c->path) : 1;

  if (r == -1)
    return text_error (error, "cannot see whether the server (process %ld) serves %s",
                       (long)c->server, c->path);
  if (r == 0)
    return text_error (error,
                       "the server (process %ld) does not serve %s itself: it is another image, or "
                       "one that is not raw, which two programs must not open at a time",
                       (long)c->server, c->path);
  return 0;
}

static int
compare_samples (const struct comparison *c, uint64_t size, char **error)
{
  uint64_t whole = size / SAMPLE_BYTES, random[SAMPLES];

  if (size == 0)
    return 0;
  if (getrandom (random, sizeof random, 0) != (ssize_t)sizeof random)
    return text_error (error, "getrandom: %s", strerror (errno));
  if (whole == 0)
    return compare_at (c, 0, (uint32_t)size, error);
  random[0] = 0;
  random[1] = whole - 1;
  for (unsigned i = 0; i < SAMPLES; i++)
    if (compare_at (c, random[i] % whole * SAMPLE_BYTES, SAMPLE_BYTES, error) == -1)
      return -1;
  return 0;
}

/* EP has the size of the file: compare. */
static int
compare_with (struct endpoint *ep, struct comparison *c, char **error)
{
  uint64_t size = endpoint_info (ep)->size;
  off_t its = lseek (c->fd, 0, SEEK_END);

  if (its < 0 || (uint64_t)its < size)
    return text_error (error, "%s has %jd bytes, and the server at %s serves %" PRIu64, c->path,
                       (intmax_t)its, c->socket, size);
  c->ch = channel_open (ep, NULL, error);
  if (c->ch == NULL)
    return -1;
  int r = -1;
  if (posix_memalign ((void **)&c->here, SAMPLE_BYTES, SAMPLE_BYTES * 2) != 0)
    text_error (error, "out of memory");
  else {
    c->there = c->here + SAMPLE_BYTES;
    r = compare_samples (c, size, error);
    if (r == 0)
      r = check_server (c, error);
  }
  free (c->here);
  channel_close (c->ch);
  return r;
}

int
image_compare (const char *path, const char *socket, pid_t server, char **error)
{
  CLEANUP_TEXT char *escaped = server_escape (socket);
  CLEANUP_TEXT char *uri = text_printf ("nbd+unix:///?socket=%s", escaped);
  struct endpoint_options options = { .nr_connections = 1 };
  struct comparison c = {
    .fd = open (path, O_RDONLY | O_CLOEXEC), .path = path, .socket = socket, .server = server
  };

  if (c.fd == -1)
    return text_error (error, "%s: %s", path, strerror (errno));
  endpoint_read_others (&options);
  struct endpoint *ep = endpoint_open (&uri, 1, &options, NULL, error);
  int r = ep != NULL ? compare_with (ep, &c, error) : -1;
  if (ep != NULL)
    endpoint_close (ep);
  fd_close (&c.fd);
  return r;
}

int
image_wake (const char *socket, char **error)
{
  CLEANUP_TEXT char *escaped = server_escape (socket);
  CLEANUP_TEXT char *uri = text_printf ("nbd+unix:///?socket=%s", escaped);
  struct endpoint_options options = { .nr_connections = 1 };
  uint8_t *buf = NULL;
  int r = -1;

  endpoint_read_others (&options);
  struct endpoint *ep = endpoint_open (&uri, 1, &options, NULL, error);
  struct channel *ch = ep != NULL ? channel_open (ep, NULL, error) : NULL;
  if (ch != NULL && posix_memalign ((void **)&buf, SAMPLE_BYTES, SAMPLE_BYTES) == 0) {
    uint64_t size = endpoint_info (ep)->size;
    int err = sync_read (ch, buf, size < SAMPLE_BYTES ? (uint32_t)size : SAMPLE_BYTES, 0);
    r = err == 0 ? 0 : text_error (error, "%s: %s", socket, strerror (err));
  }
  free (buf);
  if (ch != NULL)
    channel_close (ch);
  if (ep != NULL)
    endpoint_close (ep);
  return r;
}
