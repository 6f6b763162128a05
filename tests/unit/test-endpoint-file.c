/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Endpoints: names that are refused, and real files.
 */

#include "config.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/unit/unit.h"
#include "tests/unit/endpoint-fixture.h"

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
  /* A folder in PATH that may not be entered makes it EACCES. */
  setenv ("PATH", "/usr/bin:/bin", 1);
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

    cr_assert (endpoint_info (ep)->size == sizes[i]);
    write_all (ep, 65536);
    check_all (ep, 65536);
    endpoint_close (ep);
    cr_assert (stat (in_dir ("file"), &st) == 0 && st.st_size == (off_t)sizes[i]);

    int fd = open (in_dir ("file"), O_RDONLY);
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

  return syscall (SYS_cachestat, fd, all, pages, 0) == 0 ? (long)pages[1] : -1;
}

/* Reading a cold file in which some blocks were just written brings their data, and leaves them
 * dirty: a direct read would have forced their write-back, for which other writers wait. */
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
  cr_assert (pwrite (fd, want, 8192, (off_t)at) == 8192);
  check_all (ep, 65536);
  if (endpoint_info (ep)->direct && dirty_pages (fd) != -1)
    cr_assert (dirty_pages (fd) == 2, "%ld dirty pages are left", dirty_pages (fd));
  close (fd);
  endpoint_close (ep);
  free (want);
}

/* Many reads at once, each of some dirty pages and what is between them, which takes several direct
 * requests: up to as many as are done in pieces, and more.  All of them end, with the right data;
 * also at an odd end. */
ENDPOINT_TEST (file_dirty_pieces)
{
  enum { STEP = 256 * 1024, NR = 48, PAGE = 4096 };
  const size_t size = (size_t)NR * STEP - 1000;
  struct endpoint_options create = { .writable = true, .create = true, .create_size = size };
  struct endpoint *ep = must_open (in_dir ("file"), &create);
  unsigned char *buf = buffer ((size_t)NR * STEP), *want = buffer (STEP);
  int fd = open (in_dir ("file"), O_RDWR);

  cr_assert (fd != -1 && ep != NULL);
  write_all (ep, STEP);
  for (unsigned round = 0; round < 4; round++) {
    struct channel *ch = must_channel (ep);
    struct answer a = { 0 };

    cr_assert (fdatasync (fd) == 0 && posix_fadvise (fd, 0, 0, POSIX_FADV_DONTNEED) == 0);
    memset (buf, 0, (size_t)NR * STEP);
    for (size_t i = 0; i < NR; i++) /* I % 12 dirty pages: at the ends, alone and side by side */
      for (size_t n = 0; n < i % 12; n++) {
        size_t at = i * STEP + (n * n * 7 + round * (i % 5)) % (STEP / PAGE) * PAGE;
        size_t len = size - at < PAGE ? size - at : PAGE;

        fill (want, len, at);
        cr_assert (pwrite (fd, want, len, (off_t)at) == (ssize_t)len);
      }
    for (size_t i = 0; i < NR; i++)
      cr_assert (start (ch, READ, buf + i * STEP, i < NR - 1 ? STEP : STEP - 1000, i * STEP, &a)
                 == 0);
    usleep (round * 100000); /* then all of them are done at once */
    cr_assert (drive (ch, &a, NR));
    for (size_t i = 0; i < NR; i++) {
      size_t len = i < NR - 1 ? STEP : STEP - 1000;

      cr_assert (a.errors[i] == 0);
      fill (want, len, i * STEP);
      cr_assert (memcmp (buf + i * STEP, want, len) == 0, "other data in request %zu, round %u", i,
                 round);
    }
    channel_close (ch);
  }
  close (fd);
  endpoint_close (ep);
  free (buf);
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

/* Zeroes that are to stay allocated take up room, and the block status tells them from holes. */
ENDPOINT_TEST (file_allocated_zeroes)
{
  struct endpoint_options create = { .writable = true, .create = true, .create_size = 1 << 20 };
  struct endpoint *ep = must_open (in_dir ("file"), &create);
  struct channel *ch = must_channel (ep);
  struct answer a = { 0 };
  struct stat st;

  cr_assert (request (ch, ZERO_ALLOCATED, NULL, 65536, 131072) == 0);
  cr_assert (stat (in_dir ("file"), &st) == 0 && st.st_blocks >= 128 && st.st_blocks < 256,
             "%ld blocks", (long)st.st_blocks);
  cr_assert (start (ch, STATUS, NULL, 1 << 20, 0, &a) == 0 && drive (ch, &a, 1));
  if (a.nr_extents == 1)
    cr_skip_test ("this file system does not tell what is allocated (FIEMAP)");
  cr_assert (a.error == 0 && a.nr_extents == 3, "%u extents", a.nr_extents);
  for (unsigned i = 0; i < 3; i++)
    cr_assert (a.extents[i].zero && a.extents[i].allocated == (i == 1), "extent %u", i);
  cr_assert (a.extents[0].length == 131072 && a.extents[1].length == 65536);

  cr_assert (request (ch, ZERO, NULL, 65536, 131072) == 0);
  cr_assert (stat (in_dir ("file"), &st) == 0 && st.st_blocks < 128);
  channel_close (ch);
  endpoint_close (ep);
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
  cr_assert (start (ch, FIRST_EXTENT, NULL, 1 << 20, 0, &a) == 0 && drive (ch, &a, 3));
  cr_assert (a.nr_extents == 1 && a.extents[0].length == 131072 && !a.extents[0].zero);
  cr_assert (start (ch, FIRST_EXTENT, NULL, 1 << 19, 131072, &a) == 0 && drive (ch, &a, 4));
  cr_assert (a.nr_extents == 1 && a.extents[0].length == 65536 && a.extents[0].zero);

  cr_assert (request (ch, READ, buf, 1 << 20, 0) == 0);
  cr_assert (buf[4] != 0 && buf[5] == 0 && buf[14] == 0 && buf[15] != 0);
  cr_assert (buf[131071] != 0 && buf[131072] == 0 && buf[196607] == 0 && buf[196608] != 0);
  channel_close (ch);
  endpoint_close (ep);
  free (buf);
}

/* Requests outside of the disk, too many, or for what cannot be done are refused and start nothing.
 */
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

ENDPOINT_TEST (file_threads)
{
  struct endpoint_options create = { .writable = true, .create = true, .create_size = 1 << 20 };
  struct endpoint *ep = must_open (in_dir ("file"), &create);

  write_all (ep, 65536);
  threads (ep);
  endpoint_close (ep);
}
