/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See endpoint-fixture.h.
 */

#include "config.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define UNIT_NO_TESTS
#include "tests/unit/unit.h"
#include "tests/unit/endpoint-fixture.h"

#define MAX_ARGS 40

const struct endpoint_options ro, rw = { .writable = true };
char dir[100];
static char fake[4096];

void
endpoint_setup (void)
{
  const char *srcdir = getenv ("srcdir");

  strcpy (dir, "/var/tmp/test-endpoint-XXXXXX"); /* a real disk: O_DIRECT */
  cr_assert (mkdtemp (dir) != NULL);
  snprintf (fake, sizeof fake, "%s/tests/blackbox/fake-nbd-server.py", srcdir ? srcdir : ".");
}

void
endpoint_teardown (void)
{
  char cmd[200];

  snprintf (cmd, sizeof cmd, "rm -rf %s", dir);
  cr_assert (system (cmd) == 0);
}

const char *
in_dir (const char *name)
{
  static char path[200];

  snprintf (path, sizeof path, "%s/%s", dir, name);
  return path;
}

/* ---- Opening ---------------------------------------------------------------------------- */

struct endpoint *
try_open (const char *name, const struct endpoint_options *opts, int *errnum, char **error)
{
  char *argv[MAX_ARGS];
  char text[8192];
  unsigned nr = 0;

  snprintf (text, sizeof text, "%s", name);
  if (name[0] != '[') {
    argv[0] = text;
    return endpoint_open (argv, 1, opts, errnum, error);
  }
  for (char *word = strtok (text, " "); word && nr < MAX_ARGS; word = strtok (NULL, " "))
    argv[nr++] = strcmp (word, "FAKE") == 0 ? fake : word;
  return endpoint_open (argv, nr, opts, errnum, error);
}

struct endpoint *
must_open (const char *name, const struct endpoint_options *opts)
{
  char *error = NULL;
  struct endpoint *ep = try_open (name, opts, NULL, &error);

  cr_assert (ep != NULL, "%s", error);
  return ep;
}

void
refused (const char *name, const struct endpoint_options *opts, int err, const char *text)
{
  char *error = NULL;
  int errnum = 0;

  cr_assert (try_open (name, opts, &errnum, &error) == NULL, "%s was opened", name);
  cr_assert (error && strstr (error, text), "%s: %s", name, error);
  cr_assert (errnum == err, "%s: errno %d, not %d: %s", name, errnum, err, error);
  text_free (error);
}

struct channel *
must_channel (struct endpoint *ep)
{
  char *error = NULL;
  struct channel *ch = channel_open (ep, NULL, &error);

  cr_assert (ch != NULL, "%s", error);
  return ch;
}

/* ---- Requests, one at a time or many ------------------------------------------------------ */

static void
note (void *opaque, int error)
{
  struct answer *a = opaque;

  cr_assert (!a->inside, "a completion ran within the call that started the request");
  a->errors[a->nr % 100] = error;
  a->error = error;
  a->nr++;
}

static void
note_status (void *opaque, int error, const struct endpoint_extent *extents, unsigned nr)
{
  struct answer *a = opaque;

  a->nr_extents = nr < 64 ? nr : 64;
  if (!error)
    memcpy (a->extents, extents, a->nr_extents * sizeof *extents);
  note (a, error);
}

bool
drive (struct channel *ch, struct answer *a, unsigned nr)
{
  uint64_t until = clock_ms () + 20000;

  while (a->nr < nr) {
    struct pollfd fds[CHANNEL_MAX_FDS];
    int timeout = 5000;
    unsigned nr_fds = channel_pollfds (ch, fds, CHANNEL_MAX_FDS, &timeout);

    cr_assert (clock_ms () < until, "no completion for 20 s");
    poll (fds, nr_fds, timeout);
    if (channel_dispatch (ch, fds, nr_fds) == -1)
      return false;
  }
  return true;
}

int
start (struct channel *ch, enum what what, void *buf, uint64_t len, uint64_t offset,
       struct answer *a)
{
  int r = -1;

  a->inside = true;
  switch (what) {
  case READ:
    r = channel_read (ch, buf, (uint32_t)len, offset, note, a);
    break;
  case WRITE:
    r = channel_write (ch, buf, (uint32_t)len, offset, note, a);
    break;
  case ZERO:
    r = channel_zero (ch, len, offset, note, a);
    break;
  case ZERO_ALLOCATED:
    r = channel_zero_allocated (ch, len, offset, note, a);
    break;
  case FLUSH:
    r = channel_flush (ch, note, a);
    break;
  case STATUS:
    r = channel_status (ch, len, offset, note_status, a);
    break;
  case FIRST_EXTENT:
    r = channel_first_extent (ch, len, offset, note_status, a);
    break;
  }
  a->inside = false;
  return r;
}

int
request (struct channel *ch, enum what what, void *buf, uint64_t len, uint64_t offset)
{
  struct answer a = { 0 };

  if (start (ch, what, buf, len, offset, &a) == -1)
    return errno;
  drive (ch, &a, 1);
  cr_assert (a.nr == 1);
  return a.error;
}

void *
buffer (size_t len)
{
  void *p = aligned_alloc (4096, (len + 4095) / 4096 * 4096 + 4096);

  cr_assert (p != NULL);
  return p;
}

void
fill (unsigned char *buf, size_t len, uint64_t offset)
{
  for (size_t i = 0; i < len; i++)
    buf[i] = (unsigned char)((offset + i) * 2654435761u >> 13 | 1);
}

void
write_all (struct endpoint *ep, size_t step)
{
  struct channel *ch = must_channel (ep);
  uint64_t size = endpoint_info (ep)->size;
  unsigned char *buf = buffer (size);
  struct answer a = { 0 };
  unsigned nr = 0;

  fill (buf, size, 0);
  for (uint64_t at = 0; at < size; at += step) {
    while (channel_room (ch) == 0)
      cr_assert (drive (ch, &a, a.nr + 1));
    cr_assert (start (ch, WRITE, buf + at, size - at < step ? size - at : step, at, &a) == 0);
    nr++;
  }
  cr_assert (drive (ch, &a, nr));
  for (unsigned i = 0; i < nr && i < 100; i++)
    cr_assert (a.errors[i] == 0);
  cr_assert (request (ch, FLUSH, NULL, 0, 0) == 0);
  channel_close (ch);
  free (buf);
}

void
check_all (struct endpoint *ep, size_t step)
{
  struct channel *ch = must_channel (ep);
  uint64_t size = endpoint_info (ep)->size;
  unsigned char *buf = buffer (step), *want = buffer (step);

  for (uint64_t at = 0; at < size; at += step) {
    size_t len = size - at < step ? size - at : step;

    memset (buf, 0, step);
    cr_assert (request (ch, READ, buf, len, at) == 0);
    fill (want, len, at);
    cr_assert (memcmp (buf, want, len) == 0, "other data within %zu bytes at %zu", len, (size_t)at);
  }
  channel_close (ch);
  free (buf);
  free (want);
}

bool
have_nbdkit (void)
{
  if (system ("nbdkit --version >/dev/null 2>&1") == 0)
    return true;
  fprintf (stderr, "skipped: nbdkit is not installed\n");
  return false;
}

bool
have_python (void)
{
  if (access (PYTHON, X_OK) == 0)
    return true;
  fprintf (stderr, "skipped: " PYTHON " is not there\n");
  return false;
}

static void *
thread (void *opaque)
{
  check_all (opaque, 4096);
  return NULL;
}

/* Several threads, each with its channel, on one endpoint. */
void
threads (struct endpoint *ep)
{
  pthread_t t[4];

  for (unsigned i = 0; i < 4; i++)
    cr_assert (pthread_create (&t[i], NULL, thread, ep) == 0);
  for (unsigned i = 0; i < 4; i++)
    pthread_join (t[i], NULL);
}
