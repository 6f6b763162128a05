/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The digests of a qcow2 file that is made here by hand: each block of the disk has the digest of
 * what the tables refer to, the last one without what lies behind the disk's end, and a file that
 * is built in another way is not understood.
 */

#include "config.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/unit.h"

#include "backup/qcow2-digests.h"
#include "base/text.h"

#define CLUSTER UINT64_C (65536)
#define TABLE 8192 /* blocks of which one table of the second level tells */
#define SIZE ((TABLE + 2) * CLUSTER + 1024)
#define BLOCKS (TABLE + 3)
#define L1 (3 * CLUSTER) /* where things are in the file */
#define L2_FIRST (4 * CLUSTER)
#define L2_SECOND (5 * CLUSTER)
#define DATA (6 * CLUSTER)
#define FILE_END (9 * CLUSTER + 2048) /* the last cluster is not written to its end */
#define IN_USE (UINT64_C (1) << 63)

static int fd;

/* What was told of each block. */
static enum { NOTHING, ZEROES, DIGEST } told[BLOCKS];
static uint8_t digests[BLOCKS][DIGEST_SIZE];
static uint64_t next_block;

static void
on_blocks (void *opaque, uint64_t first, const uint8_t *d, uint64_t nr)
{
  (void)opaque;
  cr_assert (first >= next_block && first + nr <= BLOCKS, "not in order");
  next_block = first + nr;
  for (uint64_t i = 0; i < nr; i++) {
    told[first + i] = d != NULL ? DIGEST : ZEROES;
    if (d != NULL)
      memcpy (digests[first + i], d + i * DIGEST_SIZE, DIGEST_SIZE);
  }
}

static void
put (uint64_t at, const void *data, size_t length)
{
  cr_assert_eq (pwrite (fd, data, length, (off_t)at), (ssize_t)length);
}

static void
put_32 (uint64_t at, uint32_t n)
{
  n = htobe32 (n);
  put (at, &n, sizeof n);
}

static void
put_64 (uint64_t at, uint64_t n)
{
  n = htobe64 (n);
  put (at, &n, sizeof n);
}

static void
fill (uint64_t at, int byte, size_t length)
{
  static uint8_t bytes[CLUSTER];

  memset (bytes, byte, length);
  put (at, bytes, length);
}

/* Blocks 0 and 1 lie in the file in the other order, 2 is said to be zero though it has a cluster,
 * and the last one, of 1024 bytes, has something behind its end. */
static void
set_up (void)
{
  char path[] = "/tmp/nbdmirror-test-qcow2.XXXXXX";

  fd = mkstemp (path);
  cr_assert_geq (fd, 0);
  unlink (path);
  put_32 (0, 0x514649fb);
  put_32 (4, 3);
  put_32 (20, 16);
  put_64 (24, SIZE);
  put_32 (36, 2);
  put_64 (40, L1);
  put_32 (100, 104);
  put_64 (L1, L2_FIRST | IN_USE);
  put_64 (L1 + 8, L2_SECOND | IN_USE);
  put_64 (L2_FIRST, (DATA + CLUSTER) | IN_USE);
  put_64 (L2_FIRST + 8, DATA | IN_USE);
  put_64 (L2_FIRST + 16, DATA | 1 | IN_USE);
  put_64 (L2_SECOND + 16, (DATA + 3 * CLUSTER) | IN_USE);
  fill (DATA, 'b', CLUSTER);
  fill (DATA + CLUSTER, 'a', CLUSTER);
  fill (DATA + 3 * CLUSTER, 'c', 2048);
  memset (told, 0, sizeof told);
  next_block = 0;
}

static void
tear_down (void)
{
  close (fd);
}

static int
read_it (bool complete, char file[DIGEST_WHOLE_TEXT])
{
  const struct qcow2_digests o = { .size = SIZE - 100, .complete = complete, .blocks = on_blocks };
  char *error = NULL;
  int r = qcow2_digests (fd, "the file", &o, file, &error);

  text_free (error);
  return r;
}

/* Block NR has the digest of LENGTH bytes BYTE and zeroes behind them. */
static void
has_to_be (uint64_t nr, int byte, size_t length)
{
  static uint8_t block[CLUSTER];
  uint8_t digest[DIGEST_SIZE];

  memset (block, 0, sizeof block);
  memset (block, byte, length);
  digest_blocks (&digest_whole_key, block, sizeof block, digest);
  cr_assert_eq (told[nr], DIGEST);
  cr_assert_eq (memcmp (digest, digests[nr], DIGEST_SIZE), 0, "block %d", (int)nr);
}

Test (qcow2_digests, complete, .init = set_up, .fini = tear_down)
{
  char file[DIGEST_WHOLE_TEXT], expected[DIGEST_WHOLE_TEXT];
  struct digest_whole *w = digest_whole_new ();
  static uint8_t block[CLUSTER];
  uint8_t digest[DIGEST_SIZE];

  cr_assert_eq (read_it (true, file), 1);
  has_to_be (0, 'a', CLUSTER);
  has_to_be (1, 'b', CLUSTER);
  has_to_be (BLOCKS - 1, 'c', 1024);
  for (uint64_t i = 2; i < BLOCKS - 1; i++)
    cr_assert_eq (told[i], ZEROES, "block %d", (int)i);

  for (uint64_t at = 0; at < FILE_END; at += CLUSTER) {
    memset (block, 0, sizeof block);
    cr_assert_geq (pread (fd, block, sizeof block, (off_t)at), 0);
    digest_blocks (&digest_whole_key, block, sizeof block, digest);
    digest_whole_add (w, digest, 1);
  }
  digest_whole_text (w, expected);
  digest_whole_free (w);
  cr_assert_str_eq (file, expected);
}

Test (qcow2_digests, on_another_file, .init = set_up, .fini = tear_down)
{
  char file[DIGEST_WHOLE_TEXT];

  put_64 (8, 1000);
  put_32 (16, 4);
  put_64 (L1 + 8, 0);
  cr_assert_eq (read_it (false, file), 1);
  has_to_be (0, 'a', CLUSTER);
  has_to_be (1, 'b', CLUSTER);
  cr_assert_eq (told[2], ZEROES);
  for (uint64_t i = 3; i < BLOCKS; i++)
    cr_assert_eq (told[i], NOTHING, "block %d", (int)i);
}

/* The number at AT, of BYTES bytes, is N: so the file is not understood. */
struct other {
  const char *what;
  uint64_t at, n;
  unsigned bytes;
};

static const struct other others[] = {
  { "no qcow2 file", 0, 0x514649fa, 4 },
  { "an older version", 4, 2, 4 },
  { "a backing file in a full one", 8, 1000, 8 },
  { "smaller clusters", 20, 12, 4 },
  { "another size", 24, SIZE + 512, 8 },
  { "encryption", 32, 1, 4 },
  { "a first table that is too short", 36, 1, 4 },
  { "a first table between clusters", 40, L1 + 8, 8 },
  { "a first table behind the end", 40, 100 * CLUSTER, 8 },
  { "snapshots", 60, 1, 4 },
  { "it was not closed", 72, 1, 8 },
  { "subclusters", 72, 16, 8 },
  { "a second table between clusters", L1, L2_FIRST + 512, 8 },
  { "a second table behind the end", L1, 100 * CLUSTER, 8 },
  { "a compressed cluster", L2_FIRST + 8, DATA | UINT64_C (1) << 62, 8 },
  { "a cluster between clusters", L2_FIRST + 8, DATA + 512, 8 },
  { "a cluster behind the end", L2_FIRST + 8, 100 * CLUSTER, 8 },
};

Test (qcow2_digests, not_understood)
{
  char file[DIGEST_WHOLE_TEXT];

  for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
    set_up ();
    if (others[i].bytes == 4)
      put_32 (others[i].at, (uint32_t)others[i].n);
    else
      put_64 (others[i].at, others[i].n);
    cr_assert_eq (read_it (true, file), 0, "%s", others[i].what);
    tear_down ();
  }
}

static bool
stop (void *opaque)
{
  (void)opaque;
  return false;
}

Test (qcow2_digests, stopped, .init = set_up, .fini = tear_down)
{
  const struct qcow2_digests o
      = { .size = SIZE, .complete = true, .blocks = on_blocks, .go_on = stop };
  char file[DIGEST_WHOLE_TEXT], *error = NULL;

  cr_assert_eq (qcow2_digests (fd, "the file", &o, file, &error), -1);
  text_free (error);
}
