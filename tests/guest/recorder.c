/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What runs in a test's guest: it appends numbered, checksummed records to a file on each disk,
 * fsyncs them, and only then tells the number, "ACK N", on the serial line.  A number that was told
 * must never be lost.
 *
 *   recorder write [OPTIONS] DIR [DIR]     in the guest; a command "quit" on standard input ends it
 *     -i MS    wait so long between two records (default 2)
 *     -l N     also overwrite 4 KiB blocks at random, N a second, in a file of 16 MiB on the
 *              first disk
 *     -m MIB   also dirty so much memory, all the time, as fast as it goes
 *   recorder check N FILE [FILE]   on the host, with the files taken out of the disks
 *   recorder blocks FILE           the same for the file of -l
 *
 * With two disks record N goes to the first, fsync, then to the second, fsync.  So at any instant
 * the first has as many records as the second, or one more: "check" sees whether two disks are of
 * one instant.  Linked statically: the guest has no libraries.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_DISKS 2
#define BLOCK 4096u
#define LOAD_BLOCKS 1024u

/* Both of records (512 bytes) and of the load's blocks (4096).  Little-endian: guest and host are
 * of one kind. */
struct record {
  uint32_t magic;
  uint32_t disk;   /* 0 or 1, or 2 for a block of the load */
  uint64_t number; /* of the record, from 1; or where the block belongs */
  uint64_t salt;   /* of the payload */
  uint32_t crc;    /* of everything, with 0 here */
  uint8_t payload[];
};
#define MAGIC 0x4345524eu
#define RECORD 512u

static void __attribute__ ((noreturn, format (printf, 1, 2))) die (const char *fmt, ...)
{
  va_list ap;

  fputs ("recorder: ", stdout);
  va_start (ap, fmt);
  vprintf (fmt, ap);
  va_end (ap);
  putchar ('\n');
  fflush (stdout);
  exit (1);
}

static uint64_t
next_random (uint64_t *x)
{
  *x ^= *x << 13;
  *x ^= *x >> 7;
  *x ^= *x << 17;
  return *x;
}

static uint32_t
crc32_of (const void *data, size_t n)
{
  static uint32_t table[256];
  const uint8_t *p = data;
  uint32_t c;

  if (table[1] == 0)
    for (uint32_t i = 0; i < 256; i++) {
      c = i;
      for (int k = 0; k < 8; k++)
        c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
      table[i] = c;
    }
  c = ~0u;
  while (n-- > 0)
    c = table[(c ^ *p++) & 0xff] ^ (c >> 8);
  return ~c;
}

static void
fill (struct record *r, size_t size, uint32_t disk, uint64_t number, uint64_t salt)
{
  uint64_t x = salt | 1;

  r->magic = MAGIC;
  r->disk = disk;
  r->number = number;
  r->salt = salt;
  r->crc = 0;
  for (size_t i = 0; i < size - sizeof *r; i++)
    r->payload[i] = (uint8_t)(next_random (&x) >> 24);
  r->crc = crc32_of (r, size);
}

static bool
good (struct record *r, size_t size, uint32_t disk, uint64_t number)
{
  uint32_t crc = r->crc;

  r->crc = 0;
  bool ok
      = r->magic == MAGIC && r->disk == disk && r->number == number && crc32_of (r, size) == crc;
  r->crc = crc;
  return ok;
}

static void
write_all (int fd, const void *data, size_t n, off_t at, const char *what)
{
  ssize_t r = pwrite (fd, data, n, at);

  if (r < 0)
    die ("%s: write at %lld: %s", what, (long long)at, strerror (errno));
  if ((size_t)r != n)
    die ("%s: short write at %lld", what, (long long)at);
}

/* ---- in the guest ---------------------------------------------------------------------------- */

static void
sleep_us (long us)
{
  struct timespec t = { us / 1000000, us % 1000000 * 1000 };

  nanosleep (&t, NULL);
}

static pid_t
child (void)
{
  pid_t pid = fork ();

  if (pid < 0)
    die ("fork: %s", strerror (errno));
  return pid;
}

/* Random overwrites, past the guest's page cache. */
static void
load_blocks (const char *dir, unsigned rate)
{
  char path[256];
  uint64_t x = 88172645463325252u;
  void *block;

  snprintf (path, sizeof path, "%s/blocks", dir);
  int fd = open (path, O_RDWR | O_CREAT | O_DIRECT, 0666);
  if (fd < 0 || posix_memalign (&block, BLOCK, BLOCK) != 0)
    die ("%s: %s", path, strerror (errno));
  struct record *r = block;
  for (uint64_t i = 0; i < LOAD_BLOCKS; i++) {
    fill (r, BLOCK, 2, i, i + 1);
    write_all (fd, r, BLOCK, (off_t)(i * BLOCK), path);
  }
  if (fsync (fd) < 0)
    die ("%s: fsync: %s", path, strerror (errno));
  printf ("LOADED\n");
  fflush (stdout);
  for (;;) {
    uint64_t i = next_random (&x) % LOAD_BLOCKS;

    fill (r, BLOCK, 2, i, next_random (&x));
    write_all (fd, r, BLOCK, (off_t)(i * BLOCK), path);
    sleep_us (1000000 / rate);
  }
}

static void
load_memory (size_t mib)
{
  size_t size = mib << 20;
  volatile char *p = mmap (NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

  if (p == MAP_FAILED)
    die ("%zu MiB of memory: %s", mib, strerror (errno));
  for (;;)
    for (size_t i = 0; i < size; i += 4096)
      p[i]++;
}

static bool
told_to_quit (void)
{
  static char line[64];
  static size_t used;
  struct pollfd p = { .fd = 0, .events = POLLIN };

  if (poll (&p, 1, 0) <= 0 || used == sizeof line - 1)
    return false;
  ssize_t n = read (0, line + used, sizeof line - 1 - used);
  if (n > 0)
    used += (size_t)n;
  line[used] = '\0';
  return strstr (line, "quit") != NULL;
}

static int
do_write (int argc, char **argv)
{
  long interval = 2, load = 0, memory = 0;
  int fd[MAX_DISKS], c;
  _Alignas(8) char buffer[RECORD];
  struct record *r = (struct record *)buffer;
  uint64_t number = 0;
  pid_t children[2];
  unsigned nr_children = 0;

  while ((c = getopt (argc, argv, "i:l:m:")) != -1)
    switch (c) {
    case 'i':
      interval = atol (optarg);
      break;
    case 'l':
      load = atol (optarg);
      break;
    case 'm':
      memory = atol (optarg);
      break;
    default:
      return 2;
    }
  int disks = argc - optind;
  if (disks < 1 || disks > MAX_DISKS)
    return 2;
  for (int d = 0; d < disks; d++) {
    char path[256];
    struct stat st;

    snprintf (path, sizeof path, "%s/records", argv[optind + d]);
    fd[d] = open (path, O_RDWR | O_CREAT, 0666);
    if (fd[d] < 0 || fstat (fd[d], &st) < 0)
      die ("%s: %s", path, strerror (errno));
    if (d == 0)
      number = (uint64_t)st.st_size / RECORD; /* after a reboot: go on */
  }
  if (load > 0 && (children[nr_children++] = child ()) == 0)
    load_blocks (argv[optind], (unsigned)load);
  if (memory > 0 && (children[nr_children++] = child ()) == 0)
    load_memory ((size_t)memory);

  while (!told_to_quit ()) {
    number++;
    for (int d = 0; d < disks; d++) {
      fill (r, RECORD, (uint32_t)d, number, number * 2654435761u + (uint64_t)d);
      write_all (fd[d], r, RECORD, (off_t)((number - 1) * RECORD), argv[optind + d]);
      if (fsync (fd[d]) < 0)
        die ("%s: fsync: %s", argv[optind + d], strerror (errno));
    }
    printf ("ACK %llu\n", (unsigned long long)number);
    fflush (stdout);
    sleep_us (interval * 1000);
  }
  for (unsigned i = 0; i < nr_children; i++) {
    kill (children[i], SIGKILL);
    waitpid (children[i], NULL, 0);
  }
  printf ("BYE %llu\n", (unsigned long long)number);
  return 0;
}

/* ---- on the host ----------------------------------------------------------------------------- */

/* How many good records FILE begins with.  A last one that is torn or missing was never told;
 * anything after a bad one is a hole in the story. */
static uint64_t
count_records (const char *path, uint32_t disk)
{
  _Alignas(8) char buffer[RECORD];
  FILE *f = fopen (path, "re");
  uint64_t n = 0;
  size_t got;

  if (f == NULL)
    die ("%s: %s", path, strerror (errno));
  while ((got = fread (buffer, 1, RECORD, f)) == RECORD
         && good ((struct record *)buffer, RECORD, disk, n + 1))
    n++;
  if (got == RECORD && fread (buffer, 1, 1, f) == 1)
    die ("%s: record %llu is bad, and others follow", path, (unsigned long long)n + 1);
  fclose (f);
  return n;
}

static int
do_check (uint64_t told, int disks, char **paths)
{
  uint64_t n[MAX_DISKS];

  for (int d = 0; d < disks; d++) {
    n[d] = count_records (paths[d], (uint32_t)d);
    if (n[d] < told)
      die ("%s: only %llu records, and %llu were acknowledged", paths[d], (unsigned long long)n[d],
           (unsigned long long)told);
  }
  if (disks == 2 && n[0] != n[1] && n[0] != n[1] + 1)
    die ("the disks are not of one instant: %llu and %llu records", (unsigned long long)n[0],
         (unsigned long long)n[1]);
  printf ("%llu\n", (unsigned long long)n[0]);
  return 0;
}

static int
do_blocks (const char *path)
{
  static _Alignas(8) char buffer[BLOCK];
  FILE *f = fopen (path, "re");

  if (f == NULL)
    die ("%s: %s", path, strerror (errno));
  for (uint64_t i = 0; i < LOAD_BLOCKS; i++)
    if (fread (buffer, 1, BLOCK, f) != BLOCK || !good ((struct record *)buffer, BLOCK, 2, i))
      die ("%s: block %llu is bad", path, (unsigned long long)i);
  fclose (f);
  return 0;
}

int
main (int argc, char **argv)
{
  const char *what = argc > 1 ? argv[1] : "";

  if (strcmp (what, "write") == 0)
    return do_write (argc - 1, argv + 1);
  if (strcmp (what, "check") == 0 && argc >= 4 && argc <= 3 + MAX_DISKS)
    return do_check (strtoull (argv[2], NULL, 10), argc - 3, argv + 3);
  if (strcmp (what, "blocks") == 0 && argc == 3)
    return do_blocks (argv[2]);
  return 2;
}
