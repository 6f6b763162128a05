/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The digests of blocks, the names of digest exports, and how a disk's block status becomes that of
 * its digests: all that the digest filter decides without I/O.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "tests/unit/unit.h"

#include "digest/export-name.h"
#include "digest/hash.h"
#include "nbd-plugin/digest/extents.h"

/* ---- digests --------------------------------------------------------------------------------- */

static const struct digest_key key = { .seed = 0x0123456789abcdef, .block = 4096 };

static void
fill (uint8_t *data, size_t size)
{
  for (size_t i = 0; i < size; i++)
    data[i] = (uint8_t)(i * 31 + i / 4096 * 7 + 1);
}

Test (digest, count_includes_a_short_last_block)
{
  cr_assert_eq (digest_count (&key, 0), 0);
  cr_assert_eq (digest_count (&key, 1), 1);
  cr_assert_eq (digest_count (&key, 4096), 1);
  cr_assert_eq (digest_count (&key, 4097), 2);
  cr_assert_eq (digest_count (&key, UINT64_MAX), UINT64_C (1) << 52);
}

/* A digest must be the same wherever its block is read: alone, or with others. */
Test (digest, does_not_depend_on_what_is_read_with_it)
{
  static uint8_t data[4 * 4096 + 100];
  uint8_t all[5 * DIGEST_SIZE], one[DIGEST_SIZE];

  fill (data, sizeof data);
  digest_blocks (&key, data, sizeof data, all);
  for (unsigned i = 0; i < 5; i++) {
    digest_blocks (&key, data + i * 4096, i < 4 ? 4096 : 100, one);
    cr_assert (memcmp (one, all + i * DIGEST_SIZE, DIGEST_SIZE) == 0, "block %u", i);
  }
}

Test (digest, every_bit_and_the_seed_count)
{
  static uint8_t data[4096];
  uint8_t before[DIGEST_SIZE], after[DIGEST_SIZE];
  struct digest_key other = { .seed = key.seed ^ 1, .block = key.block };

  fill (data, sizeof data);
  digest_blocks (&key, data, sizeof data, before);
  for (unsigned bit = 0; bit < 8 * sizeof data; bit += 101) {
    data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    digest_blocks (&key, data, sizeof data, after);
    cr_assert (memcmp (before, after, DIGEST_SIZE) != 0, "bit %u", bit);
    data[bit / 8] ^= (uint8_t)(1 << bit % 8);
  }
  digest_blocks (&other, data, sizeof data, after);
  cr_assert (memcmp (before, after, DIGEST_SIZE) != 0);
}

Test (digest, of_zeroes_is_zero_and_of_nothing_else)
{
  static uint8_t data[2 * 4096 + 1];
  static const uint8_t zero[DIGEST_SIZE];
  uint8_t out[3 * DIGEST_SIZE];

  digest_blocks (&key, data, sizeof data, out);
  for (unsigned i = 0; i < 3; i++)
    cr_assert (memcmp (out + i * DIGEST_SIZE, zero, DIGEST_SIZE) == 0, "block %u", i);
  data[4095] = data[2 * 4096] = 1;
  digest_blocks (&key, data, sizeof data, out);
  cr_assert (memcmp (out, zero, DIGEST_SIZE) != 0);
  cr_assert (memcmp (out + DIGEST_SIZE, zero, DIGEST_SIZE) == 0);
  cr_assert (memcmp (out + 2 * DIGEST_SIZE, zero, DIGEST_SIZE) != 0);
}

/* ---- names ----------------------------------------------------------------------------------- */

Test (digest_name, is_read_as_it_was_written)
{
  for (uint32_t block = DIGEST_BLOCK_MIN; block <= DIGEST_BLOCK_MAX; block *= 2) {
    struct digest_key written = { .seed = UINT64_C (0x0f00000000000001) * block, .block = block };
    struct digest_key read;
    char name[DIGEST_NAME_MAX];
    const char *of;

    digest_name_format (name, &written);
    cr_assert (digest_name_is_ours (name));
    cr_assert_null (digest_name_parse (name, &read, &of));
    cr_assert_eq (read.seed, written.seed);
    cr_assert_eq (read.block, block);
    cr_assert_str_eq (of, "");
  }
}

Test (digest_name, may_name_an_export)
{
  struct digest_key read;
  const char *of;

  cr_assert_null (digest_name_parse ("digest@0000000000000000.4096/a/b", &read, &of));
  cr_assert_str_eq (of, "a/b");
  cr_assert_null (digest_name_parse ("digest@ffffffffffffffff.4096/", &read, &of));
  cr_assert_str_eq (of, "");
  cr_assert_eq (read.seed, UINT64_MAX);
}

Test (digest_name, that_is_anything_else_is_refused)
{
  static const char *const names[] = {
    "digest@",
    "digest@0",
    "digest@0123456789abcdef",
    "digest@0123456789abcdef.",
    "digest@0123456789abcde.4096",
    "digest@0123456789abcdef0.4096",
    "digest@0123456789ABCDEF.4096",
    "digest@ 123456789abcdef.4096",
    "digest@0x23456789abcdef.4096",
    "digest@0123456789abcdef,4096",
    "digest@0123456789abcdef.0",
    "digest@0123456789abcdef.1",
    "digest@0123456789abcdef.512",
    "digest@0123456789abcdef.2048",
    "digest@0123456789abcdef.4095",
    "digest@0123456789abcdef.4097",
    "digest@0123456789abcdef.12288",
    "digest@0123456789abcdef.2097152",
    "digest@0123456789abcdef.04096",
    "digest@0123456789abcdef.+4096",
    "digest@0123456789abcdef.-4096",
    "digest@0123456789abcdef. 4096",
    "digest@0123456789abcdef.4096 ",
    "digest@0123456789abcdef.4096k",
    "digest@0123456789abcdef.4294971392",
    "digest@0123456789abcdef.18446744073709555712",
    "digest@0123456789abcdef.4096.4096",
    "digest@0123456789abcdef.4096/digest@0123456789abcdef.4096",
  };

  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    struct digest_key read;
    const char *of;
    cr_assert_not_null (digest_name_parse (names[i], &read, &of), "%s", names[i]);
  }
  cr_assert_not (digest_name_is_ours (""));
  cr_assert_not (digest_name_is_ours ("digest"));
  cr_assert_not (digest_name_is_ours ("mirror"));
}

/* ---- block status ---------------------------------------------------------------------------- */

struct seen {
  uint64_t nr;    /* digests told */
  uint8_t *zero;  /* of each */
  uint64_t limit; /* -1 from here on */
};

static int
note_run (void *opaque, uint64_t nr, bool zero)
{
  struct seen *s = opaque;

  cr_assert_gt (nr, 0);
  if (s->nr >= s->limit)
    return -1;
  memset (s->zero + s->nr, zero, nr);
  s->nr += nr;
  return 0;
}

/* Disks of random extents, told in random pieces, against a map of every byte. */
Test (digest_extents, agree_with_a_map_of_all_bytes)
{
  srand (1);
  for (unsigned round = 0; round < 3000; round++) {
    uint64_t size = 1 + (uint64_t)rand () % (40 * 4096);
    uint8_t *map = malloc (size), told[41];
    struct digest_extents x = { .size = size, .block = 4096 };
    struct seen seen = { .zero = told, .limit = UINT64_MAX };

    for (uint64_t at = 0; at < size;) {
      /* Mostly whole blocks, so that there are zero ones. */
      uint64_t n = rand () % 3 ? (uint64_t)(1 + rand () % 5) * 4096 : (uint64_t)rand () % 9000 + 1;
      uint64_t length = n < size - at ? n : size - at;
      bool zero = rand () % 2;

      memset (map + at, zero, length);
      at += length;
      /* The layer below may tell more than there is. */
      cr_assert_eq (digest_extents_add (&x, n, zero, note_run, &seen), 0);
      cr_assert_eq (x.pos, at);
    }
    cr_assert_eq (seen.nr, digest_count (&key, size));
    for (uint64_t i = 0; i < seen.nr; i++) {
      uint64_t end = (i + 1) * 4096 < size ? (i + 1) * 4096 : size;
      bool zero = true;
      for (uint64_t at = i * 4096; at < end; at++)
        zero = zero && map[at];
      cr_assert_eq (told[i], zero, "size %llu, block %llu", (unsigned long long)size,
                    (unsigned long long)i);
    }
    free (map);
  }
}

Test (digest_extents, end_when_told_so)
{
  uint8_t told[4];
  struct seen seen = { .zero = told, .limit = 1 };
  struct digest_extents x = { .size = 4 * 4096, .block = 4096 };

  cr_assert_eq (digest_extents_add (&x, 4097, true, note_run, &seen), 0);
  cr_assert_eq (digest_extents_add (&x, 4096, true, note_run, &seen), -1);
  cr_assert_eq (seen.nr, 1);
}
