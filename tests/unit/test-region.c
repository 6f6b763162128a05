/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The shared region: that the layout is right for every disk size, that the descriptor cannot be
 * resized, and that nothing but an intact region of this version is ever mapped.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dirty-bitmap/urgent.h"
#include "tests/unit/fixture.h"

#define KiB UINT64_C (1024)
#define MiB (1024 * KiB)
#define GiB (1024 * MiB)
#define TiB (1024 * GiB)

/* No two parts overlap, all are aligned to pages and within the region. */
static void
check_geometry (const struct region_geometry *g)
{
  size_t end = sizeof (struct region_header);

  for (int a = 0; a < REGION_NR_ARRAYS; a++) {
    cr_assert_geq (g->summary_offset[a], end);
    cr_assert_eq (g->summary_offset[a] % 65536, 0);
    end = g->summary_offset[a] + g->nr_summary * 8;
  }
  for (int a = 0; a < REGION_NR_ARRAYS; a++) {
    cr_assert_geq (g->array_offset[a], end);
    cr_assert_eq (g->array_offset[a] % 65536, 0);
    end = g->array_offset[a] + g->nr_words * 8;
  }
  cr_assert_geq (g->urgent_offset, end);
  cr_assert_eq (g->urgent_offset % 65536, 0);
  cr_assert_geq (g->samples_offset, g->urgent_offset + URGENT_TABLE_BYTES);
  cr_assert_gt (g->region_size, g->samples_offset);
  cr_assert_eq (g->region_size % 65536, 0);
  cr_assert_eq (1u << g->block_shift, g->block_size);
  cr_assert_geq (g->nr_words * 64, g->nr_blocks);
  cr_assert_lt (g->nr_words * 64, g->nr_blocks + 64);
  cr_assert_geq (g->nr_summary * 64, g->nr_words);
  cr_assert_eq (region_bytes (g, 0, g->nr_blocks), g->disk_size);
}

/* The default block size is 4 KiB while an array fits in 32 MiB, and doubles beyond. */
Test (region, default_block_size)
{
  static const struct {
    uint64_t size;
    uint32_t block;
    uint64_t blocks;
  } t[] = {
    { 0, 4096, 0 },
    { 1, 4096, 1 },
    { 511, 4096, 1 },
    { 513, 4096, 1 },
    { 4095, 4096, 1 },
    { 4096, 4096, 1 },
    { 4097, 4096, 2 },
    { 4 * GiB + 1, 4096, MiB + 1 },
    { TiB, 4096, 256 * MiB },
    { TiB + 1, 8192, 128 * MiB + 1 },
    { 2 * TiB, 8192, 256 * MiB },
    { 16 * TiB - 4 * KiB, 65536, 256 * MiB },
    { 16 * TiB + 1, 131072, 128 * MiB + 1 },
    { 256 * TiB, 1048576, 256 * MiB },
    { 256 * TiB + 1, 1048576, 256 * MiB + 1 },
    { 8192 * TiB, 1048576, 8192 * MiB },
  };
  struct region_geometry g;

  for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
    cr_assert_eq (region_geometry_init (&g, t[i].size, 0), 0, "size %" PRIu64, t[i].size);
    cr_assert_eq (g.block_size, t[i].block, "size %" PRIu64 ": block %u", t[i].size, g.block_size);
    cr_assert_eq (g.nr_blocks, t[i].blocks);
    check_geometry (&g);
  }
}

/* A block size asked for is taken as it is, or refused with the right errno. */
Test (region, explicit_block_size)
{
  static const uint32_t bad[] = { 1, 512, 2048, 4095, 4097, 12288, 2 * 1048576, UINT32_MAX };
  struct region_geometry g;

  for (uint32_t b = 4096; b <= 1048576; b *= 2) {
    cr_assert_eq (region_geometry_init (&g, 10 * GiB + 513, b), 0);
    cr_assert_eq (g.block_size, b);
    check_geometry (&g);
  }
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    errno = 0;
    cr_assert_eq (region_geometry_init (&g, GiB, bad[i]), -1, "block size %u", bad[i]);
    cr_assert_eq (errno, EINVAL);
  }
  /* 16 TiB in 4 KiB blocks is large but allowed; above 1 GiB an array is not. */
  cr_assert_eq (region_geometry_init (&g, 16 * TiB - 4 * KiB, 4096), 0);
  cr_assert_eq (region_geometry_init (&g, 32 * TiB, 4096), 0);
  errno = 0;
  cr_assert_eq (region_geometry_init (&g, 32 * TiB + 1, 4096), -1);
  cr_assert_eq (errno, EFBIG);
  errno = 0;
  cr_assert_eq (region_geometry_init (&g, 8192 * TiB + 1, 0), -1);
  cr_assert_eq (errno, EFBIG);
  errno = 0;
  cr_assert_eq (region_geometry_init (&g, UINT64_MAX, 0), -1);
  cr_assert_eq (errno, EFBIG);
}

/* Bytes of a run: only the last block may be short. */
Test (region, bytes_of_a_run)
{
  struct region_geometry g;

  cr_assert_eq (region_geometry_init (&g, 10 * 4096 + 513, 4096), 0);
  cr_assert_eq (region_bytes (&g, 0, 0), 0);
  cr_assert_eq (region_bytes (&g, 11, 0), 0);
  cr_assert_eq (region_bytes (&g, 0, 1), 4096);
  cr_assert_eq (region_bytes (&g, 3, 7), 7 * 4096);
  cr_assert_eq (region_bytes (&g, 9, 2), 4096 + 513);
  cr_assert_eq (region_bytes (&g, 10, 1), 513);
  cr_assert_eq (region_bytes (&g, 0, 11), 10 * 4096 + 513);
}

/* A new region is empty, takes one page or so of a 16 TiB disk, is close-on-exec and sealed. */
Test (region, create)
{
  struct region_geometry g;
  struct stat st;
  char *error = NULL;

  cr_assert_eq (region_geometry_init (&g, 16 * TiB - 4 * KiB, 0), 0);
  struct region *r = region_create (&g, fixture_uuid, &error);
  cr_assert_not_null (r, "%s", error);
  cr_assert_eq (fstat (r->fd, &st), 0);
  cr_assert_eq ((uint64_t)st.st_size, g.region_size);
  cr_assert_leq (st.st_blocks * 512, 65536, "%jd KiB in use", (intmax_t)st.st_blocks / 2);
  cr_assert_eq (fcntl (r->fd, F_GETFD), FD_CLOEXEC);
  cr_assert_eq (fcntl (r->fd, F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL),
                F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  cr_assert_eq (ftruncate (r->fd, 0), -1, "it could be shrunk");
  cr_assert_eq (ftruncate (r->fd, st.st_size + 1), -1, "it could be grown");
  cr_assert_eq (fcntl (r->fd, F_ADD_SEALS, F_SEAL_WRITE), -1, "seals could be added");
  cr_assert_eq (memcmp (r->tracker_uuid, fixture_uuid, 16), 0);
  cr_assert_eq (memcmp (r->hdr->tracker_uuid, fixture_uuid, 16), 0);
  cr_assert (claims_all_empty (r));
  region_free (r);
  region_free (NULL);
}

/* A second mapping is the same memory, with a descriptor of its own. */
Test (region, map_shares)
{
  struct region *a = fixture_region (1000), *b = fixture_map (a->fd);

  cr_assert_neq (a->fd, b->fd);
  cr_assert_eq (fcntl (b->fd, F_GETFD), FD_CLOEXEC);
  cr_assert_eq (memcmp (&a->geo, &b->geo, sizeof a->geo), 0);
  cr_assert_eq (memcmp (b->tracker_uuid, fixture_uuid, 16), 0);
  bitmap_set (a, REGION_QUARANTINE, 999, 1);
  cr_assert (bitmap_test (b, REGION_QUARANTINE, 999));
  region_free (a);
  cr_assert_eq (bitmap_count (b, REGION_QUARANTINE), 1);
  region_free (b);
}

/* A disk of no bytes has a region, on which every call is harmless. */
Test (region, empty_disk)
{
  struct region *a = fixture_region (0), *b = fixture_map (a->fd);
  uint64_t first, count;

  cr_assert_eq (bitmap_mark (a, 0, 4096), 0);
  cr_assert_eq (bitmap_set (a, REGION_DIRTY, 0, 0), 0);
  cr_assert_eq (bitmap_clear (a, REGION_DIRTY, 0, 0), 0);
  cr_assert_not (bitmap_test_any (a, REGION_DIRTY, 0, 0));
  cr_assert_not (bitmap_next_run (a, REGION_DIRTY, 0, 1, &first, &count));
  bitmap_clear_all (a, REGION_DIRTY);
  claims_revoke (a);
  region_merge (b, a);
  cr_assert (claims_all_empty (b));
  region_free (a);
  region_free (b);
}

/* ---- refusals ---- */

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* A memfd of SIZE bytes that begins with LENGTH bytes of CONTENT. */
static int
make_memfd (const void *content, size_t length, off_t size, int seals)
{
  int fd = memfd_create ("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

  cr_assert_neq (fd, -1);
  cr_assert_eq (ftruncate (fd, size), 0);
  cr_assert_eq (pwrite (fd, content, length, 0), (ssize_t)length);
  if (seals != 0)
    cr_assert_eq (fcntl (fd, F_ADD_SEALS, seals), 0);
  return fd;
}

/* FD must be refused with a message that contains WORD; closes it. */
static void
refused (int fd, const char *word)
{
  char *error = NULL;
  struct region *r = region_map (fd, &error);

  cr_assert_null (r, "accepted, where \"%s\" is wrong", word);
  cr_assert_not_null (error);
  cr_assert_not_null (strstr (error, word), "message \"%s\" does not name \"%s\"", error, word);
  text_free (error);
  if (fd >= 0)
    close (fd);
}

/* Each wrong thing about the descriptor is refused and named. */
Test (region, map_refuses_descriptors)
{
  struct region *r = fixture_region (100);
  char header[4096];
  off_t size = (off_t)r->geo.region_size;
  int p[2];

  cr_assert_eq (pread (r->fd, header, sizeof header, 0), (ssize_t)sizeof header);
  region_free (fixture_map (make_memfd (header, sizeof header, size, SEALS))); /* the good case */
  refused (-1, "descriptor");
  cr_assert_eq (pipe (p), 0);
  refused (p[0], "memfd");
  refused (p[1], "memfd");
  refused (open ("/etc/passwd", O_RDONLY | O_CLOEXEC), "");
  refused (make_memfd (header, sizeof header, size, 0), "seals");
  refused (make_memfd (header, sizeof header, size, F_SEAL_SHRINK | F_SEAL_GROW), "seals");
  refused (make_memfd (header, sizeof header, size, F_SEAL_SHRINK | F_SEAL_SEAL), "seals");
  refused (make_memfd (header, sizeof header, size, F_SEAL_GROW | F_SEAL_SEAL), "seals");
  refused (make_memfd (header, sizeof header, size, SEALS | F_SEAL_WRITE), "mmap");
  refused (make_memfd (header, 0, 0, SEALS), "size");
  refused (make_memfd (header, 64, 64, SEALS), "size");
  refused (make_memfd (header, sizeof header, size - 1, SEALS), "size");
  refused (make_memfd (header, sizeof header, size + 4096, SEALS), "size");
  refused (make_memfd (header, sizeof header, 4096, SEALS), "size");
  region_free (r);
}

/* Each field of the header, wrong in several ways, is refused and named. */
Test (region, map_refuses_fields)
{
#define FIELD(name, word)                                                                          \
  {                                                                                                \
    offsetof (struct region_header, name), sizeof ((struct region_header *)0)->name, word          \
  }
  static const struct {
    size_t offset, size;
    const char *word;
  } fields[] = {
    FIELD (magic, "magic"),
    FIELD (version, "version"),
    FIELD (header_size, "header_size"),
    FIELD (region_size, "region_size"),
    FIELD (disk_size, ""), /* noticed by what does not fit to it */
    FIELD (block_size, ""),
    FIELD (nr_blocks, "nr_blocks"),
    FIELD (array_offset[REGION_DIRTY], "array_offset of dirty"),
    FIELD (array_offset[REGION_CLAIMED_A], "array_offset of claimed A"),
    FIELD (array_offset[REGION_CLAIMED_B], "array_offset of claimed B"),
    FIELD (array_offset[REGION_QUARANTINE], "array_offset of quarantine"),
    FIELD (array_offset[REGION_VISITED], "array_offset of visited"),
    FIELD (summary_offset[REGION_DIRTY], "summary_offset of dirty"),
    FIELD (summary_offset[REGION_CLAIMED_A], "summary_offset of claimed A"),
    FIELD (summary_offset[REGION_CLAIMED_B], "summary_offset of claimed B"),
    FIELD (summary_offset[REGION_QUARANTINE], "summary_offset of quarantine"),
    FIELD (summary_offset[REGION_VISITED], "summary_offset of visited"),
    FIELD (urgent_offset, "urgent_offset"),
    FIELD (samples_offset, "samples_offset"),
  };
#undef FIELD
  struct region *r = fixture_region (100000);
  off_t size = (off_t)r->geo.region_size;
  char good[4096], bad[4096];

  cr_assert_eq (pread (r->fd, good, sizeof good, 0), (ssize_t)sizeof good);
  for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
    for (int how = 0; how < 5; how++) {
      uint64_t v = 0;

      memcpy (&v, good + fields[i].offset, fields[i].size);
      switch (how) {
      case 0:
        v = 0;
        break;
      case 1:
        v += BLOCK;
        break;
      case 2:
        v = UINT64_MAX;
        break;
      case 3:
        v ^= UINT64_C (1) << (fields[i].size * 8 - 1);
        break;
      case 4:
        v -= BLOCK;
        break;
      default:
        break;
      }
      memcpy (bad, good, sizeof bad);
      memcpy (bad + fields[i].offset, &v, fields[i].size);
      refused (make_memfd (bad, sizeof bad, size, SEALS), fields[i].word);
    }
  }
  region_free (r);
}

/* A block size of 0 asks region_geometry_init for its default: in a header it must not. */
Test (region, map_refuses_block_size_zero)
{
  struct region *r = fixture_region (100);
  struct region_header *hdr = r->hdr;
  char copy[4096];

  hdr->block_size = 0;
  cr_assert_eq (pread (r->fd, copy, sizeof copy, 0), (ssize_t)sizeof copy);
  refused (make_memfd (copy, sizeof copy, (off_t)r->geo.region_size, SEALS), "block_size");
  region_free (r);
}

/* Random damage to headers: region_map never crashes, and what it accepts has the geometry that
 * follows from disk size and block size, in a file of that size. */
Test (region, map_fuzz)
{
  struct region_geometry g;
  uint64_t rnd = 4711;
  unsigned accepted = 0;

  for (int round = 0; round < 4000; round++) {
    struct region *r = fixture_region (1 + fixture_random (&rnd) % 300);
    size_t fixed = offsetof (struct region_header, count);
    off_t size = (off_t)r->geo.region_size;
    char bytes[4096], *error = NULL;

    cr_assert_eq (pread (r->fd, bytes, sizeof bytes, 0), (ssize_t)sizeof bytes);
    region_free (r);
    for (unsigned n = (unsigned)(fixture_random (&rnd) % 4); n > 0; n--) {
      size_t at = fixture_random (&rnd) % fixed;
      uint64_t v = fixture_random (&rnd);

      if (v & 1) /* one byte, or a small or a random number in a field */
        bytes[at] = (char)(v >> 8);
      else {
        v = v & 2 ? (v >> 8) % 64 * 4096 : v >> (v >> 2 & 63);
        memcpy (bytes + at / 8 * 8, &v, 8);
      }
    }
    if (fixture_random (&rnd) % 8 == 0)
      size = (off_t)(fixture_random (&rnd) % (uint64_t)(2 * size));
    int fd = make_memfd (bytes, (size_t)size < sizeof bytes ? (size_t)size : sizeof bytes, size,
                         SEALS);
    r = region_map (fd, &error);
    if (r == NULL) {
      cr_assert_not_null (error);
      text_free (error);
    } else {
      accepted++;
      cr_assert_eq (region_geometry_init (&g, r->hdr->disk_size, (uint32_t)r->hdr->block_size), 0);
      cr_assert_eq (memcmp (&g, &r->geo, sizeof g), 0);
      cr_assert_eq ((uint64_t)size, g.region_size);
      cr_assert_eq (r->hdr->nr_blocks, g.nr_blocks);
      bitmap_set (r, REGION_DIRTY, 0, r->geo.nr_blocks); /* must not fault */
      region_free (r);
    }
    close (fd);
  }
  cr_assert_gt (accepted, 500, "undamaged ones are among them: %u", accepted);
}
