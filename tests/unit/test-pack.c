/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Packs: what is packed comes back, and nothing that a hostile client sends is taken for a pack or
 * makes the unpacker use more memory than a pack may.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "tests/unit/unit.h"

#include "compress/pack.h"

#define LENGTH 65536u

static uint8_t data[PACK_MAX_CONTENT + 1], packed[2 * PACK_MAX_CONTENT];

/* Half of it repeats itself. */
static void
fill (size_t len)
{
  uint32_t x = 12345;

  for (size_t i = 0; i < len; i++) {
    x = x * 1664525 + 1013904223;
    data[i] = i / 64 % 2 != 0 ? (uint8_t)(x >> 24) : (uint8_t)i;
  }
}

static size_t
pack_at (int level, uint32_t align, size_t len)
{
  struct packer *p = packer_new ();
  size_t n = pack (p, level, align, data, len, packed, len);

  packer_free (p);
  return n;
}

static void
assert_refused (const void *frame, size_t size, const char *what)
{
  struct unpacker *u = unpacker_new ();
  const void *content;
  size_t length;

  cr_assert_not_null (unpack (u, frame, size, &content, &length), "%s was taken", what);
  unpacker_free (u);
}

Test (pack, comes_back)
{
  struct unpacker *u = unpacker_new ();

  fill (sizeof data);
  for (int level = 1; level <= 9; level += 2)
    for (size_t len = 512; len <= PACK_MAX_CONTENT; len = len * 5 + 3) {
      const void *content;
      size_t length, n = pack_at (level, 1, len);

      cr_assert_gt (n, 0);
      cr_assert_lt (n, len);
      const char *why = unpack (u, packed, n, &content, &length);
      cr_assert_null (why, "%s", why);
      cr_assert_eq (length, len);
      cr_assert (memcmp (content, data, len) == 0);
    }
  unpacker_free (u);
}

Test (pack, is_made_a_multiple_of_the_block)
{
  struct unpacker *u = unpacker_new ();
  const void *content;
  size_t length;

  fill (LENGTH);
  size_t n = pack_at (1, 4096, LENGTH);
  cr_assert_gt (n, 0);
  cr_assert_eq (n % 4096, 0);
  cr_assert_null (unpack (u, packed, n, &content, &length));
  cr_assert_eq (length, LENGTH);
  unpacker_free (u);
}

Test (pack, what_does_not_shrink_is_left_alone)
{
  uint32_t x = 1;

  for (size_t i = 0; i < LENGTH; i++)
    data[i] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
  cr_assert_eq (pack_at (1, 1, LENGTH), 0);
  cr_assert_eq (pack_at (1, 1, 0), 0);
  memset (data, 0, sizeof data);
  cr_assert_eq (pack_at (1, 1, PACK_MAX_CONTENT + 1), 0);
}

Test (pack, any_damage_is_found)
{
  fill (LENGTH);
  size_t n = pack_at (3, 1, LENGTH);
  for (size_t i = 0; i < n; i += i < 64 ? 1 : 997)
    for (unsigned bit = 0; bit < 8; bit++) {
      struct unpacker *u = unpacker_new ();
      const void *content;
      size_t length;

      packed[i] ^= (uint8_t)(1u << bit);
      /* A bit of the header that means nothing may be lost; the content may not. */
      if (unpack (u, packed, n, &content, &length) == NULL)
        cr_assert (length == LENGTH && memcmp (content, data, LENGTH) == 0, "byte %zu bit %u", i,
                   bit);
      packed[i] ^= (uint8_t)(1u << bit);
      unpacker_free (u);
    }
}

Test (pack, cut_off_or_followed_by_more)
{
  fill (LENGTH);
  size_t n = pack_at (3, 1, LENGTH);
  for (size_t cut = 0; cut < n; cut += cut < 32 || n - cut < 32 ? 1 : 499)
    assert_refused (packed, cut, "a part of a pack");
  packed[n] = 1;
  assert_refused (packed, n + 1, "a pack with a byte behind it");
  memcpy (packed + n, packed, n);
  assert_refused (packed, 2 * n, "two packs");
}

/* Make a frame of LEN zeroes as nobody of ours would. */
static size_t
frame_of_zeroes (size_t len, int checksum, int tells_length)
{
  ZSTD_CCtx *z = ZSTD_createCCtx ();
  void *zeroes = calloc (1, len);

  ZSTD_CCtx_setParameter (z, ZSTD_c_checksumFlag, checksum);
  ZSTD_CCtx_setParameter (z, ZSTD_c_contentSizeFlag, tells_length);
  size_t n = ZSTD_compress2 (z, packed, sizeof packed, zeroes, len);
  free (zeroes);
  ZSTD_freeCCtx (z);
  return n;
}

Test (pack, bombs)
{
  struct unpacker *u = unpacker_new ();
  const void *content;
  size_t length;

  size_t n = frame_of_zeroes (PACK_MAX_CONTENT, 1, 1);
  cr_assert_null (unpack (u, packed, n, &content, &length));
  unpacker_free (u);
  n = frame_of_zeroes (PACK_MAX_CONTENT + 1, 1, 1);
  assert_refused (packed, n, "a frame with too much in it");
  n = frame_of_zeroes (256u << 20, 1, 1);
  assert_refused (packed, n, "a bomb");
  n = frame_of_zeroes (LENGTH, 1, 0);
  assert_refused (packed, n, "a frame that does not tell its length");
  n = frame_of_zeroes (LENGTH, 0, 1);
  assert_refused (packed, n, "a frame without a checksum");
}

/* It may be read by the library, with a checksum (here a wrong one) that nobody looks at. */
Test (pack, a_frame_of_version_0_7)
{
  static const uint8_t old[]
      = { 0x27, 0xb5, 0x2f, 0xfd, 0x24, 8, 0x40, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0xc0, 0, 0 };

  assert_refused (old, sizeof old, "a frame of an old version");
}

Test (pack, a_bomb_that_lies_about_its_length)
{
  size_t n = frame_of_zeroes (4u << 20, 1, 1);
  uint32_t lie = 65536;

  /* The length stands behind the magic number and the descriptor, in a frame of one segment, and
   * has 4 bytes at this length; the window's byte is missing. */
  cr_assert_eq (packed[4] >> 6, 2);
  memcpy (packed + ((packed[4] & 0x20) != 0 ? 5 : 6), &lie, sizeof lie);
  cr_assert_eq (ZSTD_getFrameContentSize (packed, n), lie);
  assert_refused (packed, n, "a bomb that lies");
}

Test (pack, what_is_no_frame)
{
  uint8_t skippable[16] = { 0x50, 0x2a, 0x4d, 0x18, 8 };

  assert_refused (skippable, sizeof skippable, "a skippable frame");
  memset (packed, 0, 4096);
  assert_refused (packed, 4096, "zeroes");
  memset (packed, 0xff, 4096);
  assert_refused (packed, 4096, "ones");
}
