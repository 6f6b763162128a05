/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Endpoints: real files, a real NBD server (nbdkit) and one that goes wrong on demand
 * (fake-nbd-server.py), both run by the endpoint itself as `[ COMMAND ]`.
 */

#include "config.h"

#include "mirror/endpoint.h"
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PYTHON "/usr/bin/python3"
#define MAX_ARGS 40

static char dir[100];
static char fake[4096];

static void
setup (void)
{
  const char *srcdir = getenv ("srcdir");

  strcpy (dir, "/var/tmp/test-endpoint-XXXXXX"); /* a real disk: O_DIRECT */
  cr_assert (mkdtemp (dir) != NULL);
  snprintf (fake, sizeof fake, "%s/tests/blackbox/fake-nbd-server.py", srcdir ? srcdir : ".");
}

static void
teardown (void)
{
  char cmd[200];

  snprintf (cmd, sizeof cmd, "rm -rf %s", dir);
  cr_assert (system (cmd) == 0);
}

/* Criterion runs setup and teardown (also when the test fails); its stand-in does not. */
#ifdef UNIT_THREAD_SANITIZER
#define ENDPOINT_TEST(name) \
  static void endpoint_##name (void); \
  Test (endpoint, name) \
  { \
    setup (); \
    endpoint_##name (); \
    teardown (); \
  } \
  static void endpoint_##name (void)
#else
#define ENDPOINT_TEST(name) Test (endpoint, name, .init = setup, .fini = teardown, .timeout = 60)
#endif

static const char *
in_dir (const char *name)
{
  static char path[200];

  snprintf (path, sizeof path, "%s/%s", dir, name);
  return path;
}

static int64_t
clock_ms (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (int64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* ---- Opening ---------------------------------------------------------------------------- */

/* NAME is one name, or a command with its words separated by spaces, brackets included; %s in it is the
 * fake server. */
static struct endpoint *
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

static struct endpoint *
must_open (const char *name, const struct endpoint_options *opts)
{
  char *error = NULL;
  struct endpoint *ep = try_open (name, opts, NULL, &error);

  cr_assert (ep != NULL, "%s", error);
  return ep;
}

/* NAME cannot be opened: the message contains TEXT, and the errno is ERR. */
static void
refused (const char *name, const struct endpoint_options *opts, int err, const char *text)
{
  char *error = NULL;
  int errnum = 0;

  cr_assert (try_open (name, opts, &errnum, &error) == NULL, "%s was opened", name);
  cr_assert (error && strstr (error, text), "%s: %s", name, error);
  cr_assert (errnum == err, "%s: errno %d, not %d: %s", name, errnum, err, error);
  free (error);
}

static struct channel *
must_channel (struct endpoint *ep)
{
  char *error = NULL;
  struct channel *ch = channel_open (ep, NULL, &error);

  cr_assert (ch != NULL, "%s", error);
  return ch;
}

/* ---- Requests, one at a time or many ------------------------------------------------------ */

struct answer {
  unsigned nr; /* completions so far */
  int error;   /* of the last */
  int errors[100];
  bool inside; /* set while a request is being started */
  unsigned nr_extents;
  struct endpoint_extent extents[64];
};

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

/* Drive CH until A has NR completions; false when it is dead. */
static bool
drive (struct channel *ch, struct answer *a, unsigned nr)
{
  int64_t until = clock_ms () + 20000;

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

enum what { READ, WRITE, ZERO, FLUSH, STATUS };

static int
start (struct channel *ch, enum what what, void *buf, uint64_t len, uint64_t offset,
       struct answer *a)
{
  int r = -1;

  a->inside = true;
  switch (what) {
  case READ: r = channel_read (ch, buf, (uint32_t) len, offset, note, a); break;
  case WRITE: r = channel_write (ch, buf, (uint32_t) len, offset, note, a); break;
  case ZERO: r = channel_zero (ch, len, offset, note, a); break;
  case FLUSH: r = channel_flush (ch, note, a); break;
  case STATUS: r = channel_status (ch, len, offset, note_status, a); break;
  }
  a->inside = false;
  return r;
}

/* Do one request to its end; its errno. */
static int
request (struct channel *ch, enum what what, void *buf, uint64_t len, uint64_t offset)
{
  struct answer a = { 0 };

  if (start (ch, what, buf, len, offset, &a) == -1)
    return errno;
  drive (ch, &a, 1);
  cr_assert (a.nr == 1);
  return a.error;
}

static void *
buffer (size_t len)
{
  void *p = aligned_alloc (4096, (len + 4095) / 4096 * 4096 + 4096);

  cr_assert (p != NULL);
  return p;
}

static void
fill (unsigned char *buf, size_t len, uint64_t offset)
{
  for (size_t i = 0; i < len; i++)
    buf[i] = (unsigned char) ((offset + i) * 2654435761u >> 13 | 1);
}

/* Write the pattern to all of EP, in requests of STEP bytes, many at a time; flush. */
static void
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

/* Read it back and compare. */
static void
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
    cr_assert (memcmp (buf, want, len) == 0, "other data within %zu bytes at %zu", len,
               (size_t) at);
  }
  channel_close (ch);
  free (buf);
  free (want);
}

static bool
have_nbdkit (void)
{
  if (system ("nbdkit --version >/dev/null 2>&1") == 0)
    return true;
  fprintf (stderr, "skipped: nbdkit is not installed\n");
  return false;
}

static bool
have_python (void)
{
  if (access (PYTHON, X_OK) == 0)
    return true;
  fprintf (stderr, "skipped: " PYTHON " is not there\n");
  return false;
}

static const struct endpoint_options ro, rw = { .writable = true };

/* ---- Names ------------------------------------------------------------------------------ */

/* Each name that cannot be opened is refused with what is wrong with it, and at once. */
ENDPOINT_TEST (names_that_are_refused)
{
  struct endpoint_options create = { .writable = true, .create = true, .create_size = 4096 };
  int64_t begin = clock_ms ();

  refused (in_dir ("none"), &ro, ENOENT, "none: No such file");
  refused (in_dir ("none"), &rw, ENOENT, "none: No such file");
  refused (dir, &ro, EISDIR, "directory");
  refused ("/dev/null", &ro, EINVAL, "character device");
  cr_assert (mkfifo (in_dir ("fifo"), 0600) == 0);
  refused (in_dir ("fifo"), &create, EINVAL, "fifo");
  refused (in_dir ("no/such/folder"), &create, ENOENT, "folder");
  refused ("[ nbdkit memory 1M", &ro, EINVAL, "[ COMMAND ARGS ]");
  refused ("[ ]", &ro, EINVAL, "[ COMMAND ARGS ]");
  refused ("[ no-such-program-here x ]", &ro, ENOENT, "no-such-program-here");
  refused ("[ false ]", &ro, ECONNREFUSED, "ended with status 1");
  refused ("nbd+unix:///?socket=/nonexistent/socket", &ro, ENOENT, "No such file");
  refused ("nbd://127.0.0.1:1", &ro, ECONNREFUSED, "Connection refused");
  cr_assert (clock_ms () - begin < 5000);
}

/* ---- Files ------------------------------------------------------------------------------ */

/* Files of awkward sizes keep every byte, read from the page cache and from the disk. */
ENDPOINT_TEST (file_sizes)
{
  static const size_t sizes[] = { 0, 1, 511, 512, 513, 4095, 4096, 4097, 65536 + 7, 1048577 };

  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    struct endpoint_options create = { .writable = true, .create = true, .create_size = sizes[i] };
    struct endpoint *ep = must_open (in_dir ("file"), &create);
    struct stat st;
    int fd;

    cr_assert (endpoint_info (ep)->size == sizes[i]);
    write_all (ep, 65536);
    check_all (ep, 65536);
    endpoint_close (ep);
    cr_assert (stat (in_dir ("file"), &st) == 0 && st.st_size == (off_t) sizes[i]);

    fd = open (in_dir ("file"), O_RDONLY);
    cr_assert (posix_fadvise (fd, 0, 0, POSIX_FADV_DONTNEED) == 0);
    close (fd);
    ep = must_open (in_dir ("file"), &ro);
    check_all (ep, 65536);
    endpoint_close (ep);
    cr_assert (unlink (in_dir ("file")) == 0);
  }
}

#ifndef SYS_cachestat
#define SYS_cachestat 451 /* Debian 12's headers are older */
#endif

/* How many pages of the file are dirty in the page cache; -1 if the kernel cannot tell. */
static long
dirty_pages (int fd)
{
  const uint64_t all[2] = { 0, 0 };
  uint64_t pages[5]; /* cached, dirty, in write-back, ... */

  return syscall (SYS_cachestat, fd, all, pages, 0) == 0 ? (long) pages[1] : -1;
}

/* Reading a cold file in which some blocks were just written brings their data, and leaves them dirty: a direct read
 * would have forced their write-back, for which other writers wait. */
ENDPOINT_TEST (file_dirty_stays_dirty)
{
  const size_t size = 1 << 20, at = 300 * 1024;
  struct endpoint_options create = { .writable = true, .create = true, .create_size = size };
  struct endpoint *ep = must_open (in_dir ("file"), &create);
  unsigned char *want = buffer (8192);
  int fd = open (in_dir ("file"), O_RDWR);

  fill (want, 8192, at);
  cr_assert (fd != -1 && ep != NULL);
  write_all (ep, 65536);
  cr_assert (fdatasync (fd) == 0 && posix_fadvise (fd, 0, 0, POSIX_FADV_DONTNEED) == 0);
  cr_assert (pwrite (fd, want, 8192, (off_t) at) == 8192);
  check_all (ep, 65536);
  if (endpoint_info (ep)->direct && dirty_pages (fd) != -1)
    cr_assert (dirty_pages (fd) == 2, "%ld dirty pages are left", dirty_pages (fd));
  close (fd);
  endpoint_close (ep);
  free (want);
}

/* Ranges that O_DIRECT refuses are written and read all the same. */
ENDPOINT_TEST (file_unaligned)
{
  struct endpoint_options create = { .writable = true, .create = true, .create_size = 100000 };
  struct endpoint *ep = must_open (in_dir ("file"), &create);

  write_all (ep, 777);
  check_all (ep, 4096);
  check_all (ep, 1001);
  endpoint_close (ep);
}

/* A file is created with the size asked for, or extended, never cut off. */
ENDPOINT_TEST (file_create)
{
  struct endpoint_options opts = { .writable = true, .create = true, .create_size = 5000 };
  struct stat st;

  endpoint_close (must_open (in_dir ("file"), &opts));
  cr_assert (stat (in_dir ("file"), &st) == 0 && st.st_size == 5000);
  opts.create_size = 9000;
  endpoint_close (must_open (in_dir ("file"), &opts));
  cr_assert (stat (in_dir ("file"), &st) == 0 && st.st_size == 9000);
  opts.create_size = 100;
  endpoint_close (must_open (in_dir ("file"), &opts));
  cr_assert (stat (in_dir ("file"), &st) == 0 && st.st_size == 9000);

  /* What cannot have its size is not left behind. */
  opts.create_size = UINT64_C (1) << 63;
  refused (in_dir ("huge"), &opts, EFBIG, "huge: cannot extend");
  cr_assert (access (in_dir ("huge"), F_OK) == -1);
}

/* Zeroes make holes, holes and only holes are reported as zero, and long answers are cut off. */
ENDPOINT_TEST (file_zero_and_status)
{
  struct endpoint_options create = { .writable = true, .create = true, .create_size = 1 << 20 };
  struct endpoint *ep = must_open (in_dir ("file"), &create);
  struct channel *ch = must_channel (ep);
  struct answer a = { 0 };
  unsigned char *buf = buffer (1 << 20);

  write_all (ep, 65536);
  cr_assert (request (ch, ZERO, NULL, 65536, 131072) == 0);
  cr_assert (request (ch, ZERO, NULL, 10, 5) == 0);
  cr_assert (start (ch, STATUS, NULL, 1 << 20, 0, &a) == 0 && drive (ch, &a, 1));
  cr_assert (a.error == 0 && a.nr_extents == 3, "%u extents", a.nr_extents);
  cr_assert (a.extents[0].length == 131072 && !a.extents[0].zero);
  cr_assert (a.extents[1].length == 65536 && a.extents[1].zero);
  cr_assert (a.extents[2].length == (1 << 20) - 196608 && !a.extents[2].zero);
  cr_assert (start (ch, STATUS, NULL, 4096, 131072, &a) == 0 && drive (ch, &a, 2));
  cr_assert (a.nr_extents == 1 && a.extents[0].length == 4096 && a.extents[0].zero);

  cr_assert (request (ch, READ, buf, 1 << 20, 0) == 0);
  cr_assert (buf[4] != 0 && buf[5] == 0 && buf[14] == 0 && buf[15] != 0);
  cr_assert (buf[131071] != 0 && buf[131072] == 0 && buf[196607] == 0 && buf[196608] != 0);
  channel_close (ch);
  endpoint_close (ep);
  free (buf);
}

/* Requests outside of the disk, too many, or for what cannot be done are refused and start nothing. */
ENDPOINT_TEST (bad_requests)
{
  struct endpoint_options create = { .writable = true, .create = true, .create_size = 8192 };
  struct endpoint *ep = must_open (in_dir ("file"), &create);
  struct channel *ch = must_channel (ep);
  unsigned char *buf = buffer (8192);
  struct answer a = { 0 };
  unsigned room = channel_room (ch), nr = 0;

  cr_assert (request (ch, READ, buf, 0, 0) == EINVAL);
  cr_assert (request (ch, READ, buf, 8193, 0) == EINVAL);
  cr_assert (request (ch, READ, buf, 1, 8192) == EINVAL);
  cr_assert (request (ch, WRITE, buf, 4096, UINT64_MAX - 100) == EINVAL);
  cr_assert (request (ch, ZERO, NULL, UINT64_MAX, 4096) == EINVAL);
  cr_assert (channel_room (ch) == room && room > 0);
  while (start (ch, READ, buf, 4096, 0, &a) == 0)
    nr++;
  cr_assert (errno == EAGAIN && nr == room && channel_room (ch) == 0);
  cr_assert (start (ch, FLUSH, NULL, 0, 0, &a) == 0, "no room for a flush");
  cr_assert (drive (ch, &a, nr + 1) && channel_room (ch) == room);
  channel_close (ch);
  endpoint_close (ep);

  ep = must_open (in_dir ("file"), &ro);
  ch = must_channel (ep);
  cr_assert (request (ch, WRITE, buf, 4096, 0) == EROFS);
  cr_assert (request (ch, ZERO, NULL, 4096, 0) == EROFS);
  channel_close (ch);
  endpoint_close (ep);
  free (buf);
}

/* A file that becomes shorter gives an error, not data. */
ENDPOINT_TEST (file_cut_off)
{
  struct endpoint_options create = { .writable = true, .create = true, .create_size = 1 << 20 };
  struct endpoint *ep = must_open (in_dir ("file"), &create);
  struct channel *ch = must_channel (ep);
  unsigned char *buf = buffer (65536);

  cr_assert (truncate (in_dir ("file"), 65536 + 100) == 0);
  cr_assert (request (ch, READ, buf, 65536, 0) == 0);
  cr_assert (request (ch, READ, buf, 65536, 65536) == EIO);
  cr_assert (request (ch, READ, buf, 65536, 1 << 19) == EIO);
  channel_close (ch);
  endpoint_close (ep);
  free (buf);
}

/* Closing completes what is in flight. */
ENDPOINT_TEST (close_in_flight)
{
  struct endpoint_options create = { .writable = true, .create = true, .create_size = 1 << 20 };
  struct endpoint *ep = must_open (in_dir ("file"), &create);
  struct channel *ch = must_channel (ep);
  unsigned char *buf = buffer (1 << 20);
  struct answer a = { 0 };

  for (unsigned i = 0; i < 16; i++)
    cr_assert (start (ch, WRITE, buf + i * 65536, 65536, i * 65536, &a) == 0);
  channel_close (ch);
  cr_assert (a.nr == 16);
  endpoint_close (ep);
  free (buf);
}

static void *
thread (void *opaque)
{
  check_all (opaque, 4096);
  return NULL;
}

/* Several threads, each with its channel, on one endpoint. */
static void
threads (struct endpoint *ep)
{
  pthread_t t[4];

  for (unsigned i = 0; i < 4; i++)
    cr_assert (pthread_create (&t[i], NULL, thread, ep) == 0);
  for (unsigned i = 0; i < 4; i++)
    pthread_join (t[i], NULL);
}

ENDPOINT_TEST (file_threads)
{
  struct endpoint_options create = { .writable = true, .create = true, .create_size = 1 << 20 };
  struct endpoint *ep = must_open (in_dir ("file"), &create);

  write_all (ep, 65536);
  threads (ep);
  endpoint_close (ep);
}

/* ---- NBD, with nbdkit ------------------------------------------------------------------- */

/* What is written to an export is read back, by many connections too. */
ENDPOINT_TEST (nbd_data)
{
  struct endpoint *ep;

  if (!have_nbdkit ())
    return;
  ep = must_open ("[ nbdkit --exit-with-parent memory 1048577 ]", &rw);
  cr_assert (endpoint_info (ep)->size == 1048577 && endpoint_info (ep)->is_nbd);
  cr_assert (endpoint_info (ep)->can_multi_conn && endpoint_info (ep)->can_flush);
  write_all (ep, 4096);
  check_all (ep, 65536);
  threads (ep);
  endpoint_close (ep);
}

/* One request in flight on each connection, several connections: the room is theirs together. */
ENDPOINT_TEST (nbd_several_connections)
{
  struct endpoint_options opts = { .writable = true, .nr_in_flight = 1 };
  struct endpoint *ep;
  struct channel *ch;

  if (!have_nbdkit ())
    return;
  ep = must_open ("[ nbdkit --exit-with-parent memory 1M ]", &opts);
  ch = must_channel (ep);
  cr_assert (channel_room (ch) == 4);
  channel_close (ch);
  write_all (ep, 4096);
  threads (ep);
  endpoint_close (ep);
}

/* Zeroes are written as such, and the status of a sparse export is told. */
ENDPOINT_TEST (nbd_zero_and_status)
{
  struct endpoint *ep;
  struct channel *ch;
  struct answer a = { 0 };
  unsigned char *buf = buffer (65536);

  if (!have_nbdkit ())
    return;
  ep = must_open ("[ nbdkit --exit-with-parent memory 6G ]", &rw);
  ch = must_channel (ep);
  memset (buf, 1, 65536);
  cr_assert (endpoint_info (ep)->can_status && endpoint_info (ep)->can_zero);
  cr_assert (request (ch, WRITE, buf, 65536, 65536) == 0);
  /* Longer than what is asked for in one go. */
  cr_assert (start (ch, STATUS, NULL, UINT64_C (6) << 30, 0, &a) == 0 && drive (ch, &a, 1));
  cr_assert (a.error == 0 && a.nr_extents == 3, "error %d, %u extents", a.error, a.nr_extents);
  cr_assert (a.extents[0].length == 65536 && a.extents[0].zero);
  cr_assert (a.extents[1].length == 65536 && !a.extents[1].zero);
  cr_assert (a.extents[2].length <= UINT64_C (2) << 30 && a.extents[2].zero);
  cr_assert (request (ch, ZERO, NULL, 1 << 30, 0) == 0);
  cr_assert (request (ch, READ, buf, 65536, 65536) == 0);
  for (unsigned i = 0; i < 65536; i++)
    cr_assert (buf[i] == 0);
  channel_close (ch);
  endpoint_close (ep);
  free (buf);
}

/* An empty export can be opened and flushed. */
ENDPOINT_TEST (nbd_empty)
{
  struct endpoint *ep;

  if (!have_nbdkit ())
    return;
  ep = must_open ("[ nbdkit --exit-with-parent memory 0 ]", &rw);
  cr_assert (endpoint_info (ep)->size == 0);
  write_all (ep, 4096);
  check_all (ep, 4096);
  endpoint_close (ep);
}

/* ---- NBD, with a server that goes wrong --------------------------------------------------- */

#define FAKE "[ " PYTHON " FAKE --activated --size 1M "

/* Whatever a server does instead of the handshake, opening ends, in time, and says why. */
ENDPOINT_TEST (bad_handshakes)
{
  struct endpoint_options hasty = { .writable = true, .connect_timeout_ms = 1000 };
  int64_t begin;

  if (!have_python ())
    return;
  refused (FAKE "--handshake close ]", &rw, ECONNRESET, "closed the connection");
  refused (FAKE "--handshake bad-magic ]", &rw, EPROTO, "magic");
  refused (FAKE "--handshake hello-close ]", &rw, ECONNRESET, "closed the connection");
  refused (FAKE "--read-only ]", &rw, EROFS, "the export is read-only");
  begin = clock_ms ();
  refused (FAKE "--handshake hang ]", &hasty, ETIMEDOUT, "within 1 s");
  refused (FAKE "--handshake hello-hang ]", &hasty, ETIMEDOUT, "within 1 s");
  cr_assert (clock_ms () - begin >= 1900 && clock_ms () - begin < 4000);
}

/* What the export offers is told as it is. */
ENDPOINT_TEST (limits)
{
  struct endpoint *ep;

  if (!have_python ())
    return;
  ep = must_open (FAKE "--no-flush --no-zero --no-structured --min-block 4k --max-block 1M ]",
                  &rw);
  cr_assert (!endpoint_info (ep)->can_flush && !endpoint_info (ep)->can_zero);
  cr_assert (!endpoint_info (ep)->can_status && !endpoint_info (ep)->can_multi_conn);
  cr_assert (endpoint_info (ep)->min_block == 4096);
  cr_assert (endpoint_info (ep)->max_request == 1 << 20);
  endpoint_close (ep);
  ep = must_open (FAKE "--multi-conn ]", &rw);
  cr_assert (endpoint_info (ep)->can_flush && endpoint_info (ep)->can_zero);
  cr_assert (endpoint_info (ep)->can_status && endpoint_info (ep)->can_multi_conn);
  cr_assert (endpoint_info (ep)->min_block == 1 && endpoint_info (ep)->max_request == 32 << 20);
  write_all (ep, 65536);
  check_all (ep, 65536);
  endpoint_close (ep);
}

/* Another connection must find the same export. */
ENDPOINT_TEST (another_size)
{
  struct endpoint *ep;
  struct channel *ch;
  char *error = NULL;
  int errnum = 0;

  if (!have_python ())
    return;
  ep = must_open (FAKE "--multi-conn --later-size 512k ]", &rw);
  ch = must_channel (ep);
  cr_assert (channel_open (ep, &errnum, &error) == NULL);
  cr_assert (errnum == ESTALE && strstr (error, "1048576") && strstr (error, "524288"), "%s", error);
  free (error);
  channel_close (ch);
  endpoint_close (ep);
}

/* HOLE without ZERO is data. */
ENDPOINT_TEST (holes_are_not_zero)
{
  struct endpoint *ep;
  struct channel *ch;
  struct answer a = { 0 };

  if (!have_python ())
    return;
  ep = must_open (FAKE "--holes-are-not-zero ]", &rw);
  ch = must_channel (ep);
  cr_assert (start (ch, STATUS, NULL, 1 << 20, 0, &a) == 0 && drive (ch, &a, 1));
  cr_assert (a.error == 0 && a.nr_extents == 1 && !a.extents[0].zero);
  channel_close (ch);
  endpoint_close (ep);
}

/* An error reply is the request's error; the channel lives on. */
ENDPOINT_TEST (error_replies)
{
  struct endpoint *ep;
  struct channel *ch;
  unsigned char *buf = buffer (4096);

  if (!have_python ())
    return;
  memset (buf, 7, 4096);
  ep = must_open (FAKE "--fault write:2=error:EIO --fault write:3=error:ENOSPC"
                       " --fault write:4=error:EPERM --fault read:1=error:EIO"
                       " --fault flush:1=error:EIO --fault status:1=error:EINVAL ]",
                  &rw);
  ch = must_channel (ep);
  cr_assert (request (ch, WRITE, buf, 4096, 0) == 0);
  cr_assert (request (ch, WRITE, buf, 4096, 0) == EIO);
  cr_assert (request (ch, WRITE, buf, 4096, 0) == ENOSPC);
  cr_assert (request (ch, WRITE, buf, 4096, 0) == EPERM);
  cr_assert (request (ch, READ, buf, 4096, 0) == EIO);
  cr_assert (request (ch, FLUSH, NULL, 0, 0) == EIO);
  cr_assert (request (ch, STATUS, NULL, 4096, 0) == EINVAL);
  cr_assert (request (ch, WRITE, buf, 4096, 0) == 0);
  cr_assert (request (ch, FLUSH, NULL, 0, 0) == 0);
  cr_assert (channel_error (ch) == NULL);
  channel_close (ch);
  endpoint_close (ep);
  free (buf);
}

/* With the fault, of 8 writes and a flush some fail; the channel dies, all are completed exactly once, it says
 * TEXT and takes no more; a new channel works.  Returns how many completions had
 * ERR. */
static unsigned
kills (const char *fault, int err, const char *text)
{
  struct endpoint_options opts = { .writable = true, .request_timeout_ms = 700 };
  char name[500];
  struct endpoint *ep;
  struct channel *ch;
  unsigned char *buf = buffer (8 * 65536);
  struct answer a = { 0 };
  struct pollfd fds[CHANNEL_MAX_FDS];
  int64_t begin = clock_ms ();
  unsigned started = 0, nr = 0;
  int timeout = -1;

  snprintf (name, sizeof name, FAKE "--fault %s ]", fault);
  ep = must_open (name, &opts);
  ch = must_channel (ep);
  fill (buf, 8 * 65536, 0);
  /* The connection may break while they are started. */
  while (started < 8 &&
         start (ch, WRITE, buf + started * 65536, 65536, started * 65536, &a) == 0)
    started++;
  cr_assert (started == 8 || (started >= 5 && errno == ESHUTDOWN));
  if (drive (ch, &a, started) && start (ch, FLUSH, NULL, 0, 0, &a) == 0)
    started++;
  cr_assert (!drive (ch, &a, started + 1), "%s: the channel lives", fault);
  cr_assert (a.nr == started, "%s: %u completions", fault, a.nr);
  for (unsigned i = 0; i < a.nr; i++) {
    cr_assert (a.errors[i] == 0 || a.errors[i] == ESHUTDOWN || a.errors[i] == err, "%s: errno %d",
               fault, a.errors[i]);
    nr += a.errors[i] == err;
  }
  cr_assert (clock_ms () - begin < 3000, "%s: it took %d ms", fault, (int) (clock_ms () - begin));
  cr_assert (channel_error (ch) && strstr (channel_error (ch), text), "%s: %s", fault,
             channel_error (ch));
  cr_assert (channel_room (ch) == 0);
  cr_assert (channel_pollfds (ch, fds, CHANNEL_MAX_FDS, &timeout) == 0 && timeout == 0);
  cr_assert (channel_dispatch (ch, fds, 0) == -1);
  cr_assert (request (ch, READ, buf, 65536, 0) == ESHUTDOWN);
  channel_close (ch);
  endpoint_close (ep);
  free (buf);
  return nr;
}

ENDPOINT_TEST (broken_connections)
{
  if (!have_python ())
    return;
  cr_assert (kills ("write:5=close", ESHUTDOWN, "the server closed the connection") >= 1);
  cr_assert (kills ("write:5=close-mid", ESHUTDOWN, "the server closed the connection") >= 1);
  /* libnbd 1.14 breaks the connection at once; 1.22 ignores the reply, and time ends it. */
  kills ("write:5=wrong-cookie", ETIMEDOUT, "");
  cr_assert (kills ("write:5=hang", ETIMEDOUT, "no reply to a write of 65536 bytes at 262144") == 1);
  cr_assert (kills ("write:5=hang-after", ETIMEDOUT, "bytes at 327680 within 0.7 s") == 1);
  cr_assert (kills ("flush:1=close", ESHUTDOWN, "the server closed the connection") == 1);
  cr_assert (kills ("flush:1=hang", ETIMEDOUT, "no reply to a flush") == 1);
}

/* A server that is slow, but answers now and then, is not taken for a dead one. */
ENDPOINT_TEST (slow_but_alive)
{
  struct endpoint_options opts = { .writable = true, .request_timeout_ms = 600 };
  struct endpoint *ep;
  struct channel *ch;
  unsigned char *buf = buffer (65536);
  struct answer a = { 0 };

  if (!have_python ())
    return;
  memset (buf, 7, 65536);
  ep = must_open (FAKE "--delay 0.15 ]", &opts);
  ch = must_channel (ep);
  for (unsigned i = 0; i < 10; i++)
    cr_assert (start (ch, WRITE, buf, 65536, i * 65536, &a) == 0);
  cr_assert (drive (ch, &a, 10), "%s", channel_error (ch));
  for (unsigned i = 0; i < 10; i++)
    cr_assert (a.errors[i] == 0);
  channel_close (ch);
  endpoint_close (ep);
  free (buf);
}

/* A server that writes its caches out may take longer for a flush than for anything else. */
ENDPOINT_TEST (slow_flush)
{
  struct endpoint_options opts = { .writable = true, .request_timeout_ms = 600 };
  struct answer a = { 0 };

  if (!have_python ())
    return;
  struct endpoint *ep = must_open (FAKE "--fault flush:1=delay:1.1 ]", &opts);
  struct channel *ch = must_channel (ep);
  cr_assert (start (ch, FLUSH, NULL, 0, 0, &a) == 0);
  cr_assert (drive (ch, &a, 1), "%s", channel_error (ch));
  cr_assert (a.error == 0);
  channel_close (ch);
  endpoint_close (ep);
}

/* Closing ends, though the server says nothing more, and completes what is in flight. */
ENDPOINT_TEST (close_while_silent)
{
  struct endpoint *ep;
  struct channel *ch;
  unsigned char *buf = buffer (65536);
  struct answer a = { 0 };
  int64_t begin;

  if (!have_python ())
    return;
  memset (buf, 7, 65536);
  ep = must_open (FAKE "--fault write:1=hang ]", &rw);
  ch = must_channel (ep);
  cr_assert (start (ch, WRITE, buf, 65536, 0, &a) == 0);
  begin = clock_ms ();
  channel_close (ch);
  cr_assert (a.nr == 1 && a.error == ESHUTDOWN);
  endpoint_close (ep);
  cr_assert (clock_ms () - begin < 3000);
  free (buf);
}
