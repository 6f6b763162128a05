/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The table of samples: replacement, removal, carrying over, and that nonsense in shared memory is
 * not handed out.
 */

#include "config.h"

#include <string.h>

#include "dirty-bitmap/samples.h"
#include "tests/unit/fixture.h"

#define SENT (SAMPLES_MAX - SAMPLES_FOUND) /* entries of this kind */

static struct sample
sample_of (uint64_t block, uint32_t length, int fill)
{
  struct sample s = { .block = block, .length = length, .kind = SAMPLE_SENT };

  memset (s.data, fill, length);
  return s;
}

static void
put (struct region *r, uint64_t block, uint32_t length, int fill)
{
  struct sample s = sample_of (block, length, fill);

  samples_put (r, &s);
}

/* How many samples BLOCK has; the last one found in *OUT. */
static unsigned
find (const struct region *r, uint64_t block, struct sample *out)
{
  struct sample s;
  unsigned n = 0;

  for (unsigned i = 0; i < SAMPLES_MAX; i++)
    if (samples_get (r, i, &s) && s.block == block) {
      *out = s;
      n++;
    }
  return n;
}

static unsigned
used (const struct region *r)
{
  struct sample s;
  unsigned n = 0;

  for (unsigned i = 0; i < SAMPLES_MAX; i++)
    n += samples_get (r, i, &s);
  return n;
}

/* Another process sees exactly what was put; a second sample of a block takes the first one's
 * place. */
Test (samples, put_and_get)
{
  struct region *a = fixture_region (1000), *b = fixture_map (a->fd);
  struct sample s, want = sample_of (999, 4095, 0x5a);

  cr_assert_eq (used (a), 0);
  samples_put (a, &want);
  cr_assert_eq (find (b, 999, &s), 1);
  cr_assert (s.length == 4095 && memcmp (s.data, want.data, 4095) == 0);
  put (a, 0, 4096, 1);
  put (a, 999, 100, 2);
  cr_assert_eq (used (b), 2);
  cr_assert_eq (find (b, 999, &s), 1);
  cr_assert (s.length == 100 && s.data[0] == 2 && s.data[99] == 2);
  cr_assert (s.data[100] == 0, "no rest of the earlier sample");
  region_free (a);
  region_free (b);
}

/* A full table gives up the oldest sample of its second half, after unused entries are used. */
Test (samples, ring)
{
  struct region *r = fixture_region (1000);
  const unsigned half = SENT / 2;
  struct sample s;

  for (unsigned i = 0; i < SENT; i++)
    put (r, i, 4096, 1);
  cr_assert_eq (used (r), SENT);
  put (r, half, 4096, 2); /* is the youngest now */
  put (r, 500, 4096, 3);
  cr_assert_eq (used (r), SENT);
  cr_assert_eq (find (r, half, &s), 1);
  cr_assert_eq (find (r, half + 1, &s), 0, "the oldest stayed");
  cr_assert_eq (find (r, 500, &s), 1);
  bitmap_set (r, REGION_CLAIMED_A, half + 8, 1);
  samples_drop_in (r, REGION_CLAIMED_A);
  put (r, 501, 4096, 4);
  cr_assert_eq (find (r, half + 2, &s), 1, "replaced, though an entry was unused");
  cr_assert_eq (used (r), SENT);
  for (unsigned i = 0; i < 10 * SENT; i++)
    put (r, i, 1, 5);
  for (unsigned i = 9 * SENT + half; i < 10 * SENT; i++)
    cr_assert_eq (find (r, i, &s), 1);
  region_free (r);
}

/* A guest that writes to a part of the disk does not push out the samples of the rest, which are
 * what is left to compare when a worker dies with all of that part in flight. */
Test (samples, rest_stays)
{
  struct region *r = fixture_region (100000);
  unsigned rest = 0;
  struct sample s;

  for (unsigned i = 0; i < SENT; i++)
    put (r, i * 1000, 4096, 1);
  for (unsigned i = 0; i < 50 * SENT; i++)
    put (r, 70000 + i % 900, 4096, (int)i);
  for (unsigned i = 0; i < SENT; i++)
    rest += find (r, i * 1000, &s);
  cr_assert_eq (rest, SENT / 2);
  region_free (r);
}

/* What was found has a part of its own: it pushes nothing out, and nothing pushes it out. */
Test (samples, found)
{
  struct region *r = fixture_region (1000), *fresh = fixture_region (1000);
  struct sample s;

  for (unsigned i = 0; i < 2 * SAMPLES_FOUND; i++) {
    s = sample_of (i, 4096, 1);
    s.kind = SAMPLE_FOUND;
    samples_put (r, &s);
  }
  for (unsigned i = 0; i < 2 * SAMPLES_FOUND; i++)
    cr_assert_eq (find (r, i, &s), i < SAMPLES_FOUND, "%u", i);
  for (unsigned i = 100; i < 100 + 10 * SENT; i++)
    put (r, i, 4096, 2);
  cr_assert_eq (used (r), SAMPLES_MAX);
  put (r, 3, 4096, 3); /* what was found there is gone */
  cr_assert_eq (find (r, 3, &s), 1);
  cr_assert (s.kind == SAMPLE_SENT && s.data[0] == 3);
  cr_assert_eq (atomic_load (&fresh->hdr->sent_is_durable), 0);
  atomic_store (&r->hdr->sent_is_durable, 1);
  samples_copy (fresh, r);
  cr_assert_eq (atomic_load (&fresh->hdr->sent_is_durable), 1);
  cr_assert (find (fresh, 2, &s) == 1 && s.kind == SAMPLE_FOUND);
  cr_assert (find (fresh, 3, &s) == 1 && s.kind == SAMPLE_SENT);
  region_free (r);
  region_free (fresh);
}

/* What was found is compared and kept, whoever claims its block, until that is visited. */
Test (samples, visited)
{
  struct region *r = fixture_region (1000);
  struct sample s = sample_of (7, 4096, 1);

  s.kind = SAMPLE_FOUND;
  samples_put (r, &s);
  put (r, 8, 4096, 2);
  bitmap_set (r, REGION_CLAIMED_A, 0, 100);
  samples_drop_in (r, REGION_CLAIMED_A);
  cr_assert_eq (find (r, 8, &s), 0);
  cr_assert_eq (find (r, 7, &s), 1, "nothing was sent there");
  bitmap_set (r, REGION_QUARANTINE, 0, 100);
  cr_assert (samples_comparable (r, &s));
  s.kind = SAMPLE_SENT;
  cr_assert_not (samples_comparable (r, &s), "a late request may change it");
  s.kind = SAMPLE_FOUND;
  bitmap_set (r, REGION_VISITED, 7, 1);
  cr_assert_not (samples_comparable (r, &s), "it may have been sent");
  samples_drop_in (r, REGION_CLAIMED_A);
  cr_assert_eq (find (r, 7, &s), 0);
  region_free (r);
}

/* Only samples in the given array are dropped. */
Test (samples, drop)
{
  struct region *r = fixture_region (1000);
  struct sample s;

  for (unsigned i = 0; i < 10; i++)
    put (r, i * 100, 4096, 1);
  bitmap_set (r, REGION_CLAIMED_B, 100, 201);
  bitmap_set (r, REGION_CLAIMED_A, 0, 1000);
  samples_drop_in (r, REGION_CLAIMED_B);
  for (unsigned i = 0; i < 10; i++)
    cr_assert_eq (find (r, i * 100, &s), i < 1 || i > 3, "block %u", i * 100);
  region_free (r);
}

/* A merge carries samples over, in their order of age. */
Test (samples, copy)
{
  struct region *old = fixture_region (1000), *fresh = fixture_region (1000);
  struct sample s;

  const unsigned half = SENT / 2;
  for (unsigned i = 0; i < SENT + 10; i++)
    put (old, i, 4096, (int)i);
  region_merge (fresh, old);
  cr_assert_eq (used (fresh), SENT);
  for (unsigned i = 0; i < SENT + 10; i++) {
    bool gone = i >= half && i < half + 10;

    cr_assert_eq (find (fresh, i, &s), gone ? 0 : 1, "%u", i);
    cr_assert (gone || (s.length == 4096 && s.data[4095] == i));
  }
  put (fresh, 900, 4096, 1);
  cr_assert_eq (find (fresh, half + 10, &s), 0, "age was not carried over");
  region_free (old);
  region_free (fresh);
}

/* Whatever stands in the table, a sample that is handed out fits the disk. */
Test (samples, untrusted)
{
  struct region *r = fixture_region (1000), *fresh = fixture_region (1000);
  unsigned char *table = (unsigned char *)r->hdr + r->geo.samples_offset;
  uint64_t rnd = 12345;
  struct sample s;
  unsigned valid = 0;

  memset (table, 0xff, SAMPLES_TABLE_BYTES);
  cr_assert_eq (used (r), 0);
  samples_copy (fresh, r);
  cr_assert_eq (used (fresh), 0);
  put (r, 3, 4096, 1); /* all ages are the same: some entry is taken */
  cr_assert_eq (find (r, 3, &s), 1);
  for (int round = 0; round < 3000; round++) {
    for (size_t i = 0; i + 8 <= SAMPLES_TABLE_BYTES; i += 8) {
      uint64_t v = fixture_random (&rnd);

      v = i % 4112 < 1024 ? v >> (v & 63) : v;
      memcpy (table + i, &v, 8);
      if (i > 1024)
        i += 8 * (v % 16);
    }
    for (unsigned i = 0; i < SAMPLES_MAX; i++)
      if (samples_get (r, i, &s)) {
        valid++;
        cr_assert (s.block < 1000 && s.length > 0 && s.length <= SAMPLE_BYTES);
        cr_assert (s.length <= region_bytes (&r->geo, s.block, 1),
                   "longer than a short last block");
      }
    samples_drop_in (r, REGION_DIRTY);
    samples_copy (fresh, r);
  }
  cr_assert_gt (valid, 0);
  region_free (r);
  region_free (fresh);
}

/* The last block of a disk may be short: a longer sample of it makes no sense. */
Test (samples, tail)
{
  struct region *r = fixture_region (10);
  unsigned char *table = (unsigned char *)r->hdr + r->geo.samples_offset;
  uint32_t length = 4096;
  struct sample s;

  put (r, 9, 4095, 7);
  cr_assert_eq (find (r, 9, &s), 1);
  for (size_t i = 0; i + 4 <= SAMPLES_TABLE_BYTES; i += 4) { /* wherever the length is */
    uint32_t v;

    memcpy (&v, table + i, 4);
    if (v == 4095)
      memcpy (table + i, &length, 4);
  }
  cr_assert_eq (find (r, 9, &s), 0);
  region_free (r);
}
