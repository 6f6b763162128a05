/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The bitmap: every call against a naive model, at the boundaries of words and summaries, then
 * under threads and between processes: no bit is lost, counters are exact in the end, and no
 * completed set is ever overlooked by bitmap_empty().
 */

#include "config.h"

#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/fixture.h"

/* Enough for three summary words, the last of them with a short last word. */
#define NR (64 * 64 * 2 + 64 * 3 + 17)

/* Numbers next to which off-by-ones live. */
static const uint64_t edges[] = { 0,    1,    63,   64,   65,   127,  128,     4095,    4096,
                                  4097, 8191, 8192, 8193, 8255, 8256, NR - 18, NR - 17, NR - 1 };
#define NR_EDGES (sizeof edges / sizeof edges[0])

/* ---- against a model of one byte a block ---- */

struct model {
  bool bit[NR];
};

static uint64_t
model_put (struct model *m, uint64_t first, uint64_t count, bool v)
{
  uint64_t changed = 0;

  for (uint64_t b = first; b < first + count; b++) {
    changed += m->bit[b] != v;
    m->bit[b] = v;
  }
  return changed;
}

static bool
model_next_run (const struct model *m, uint64_t from, uint64_t max, uint64_t *first,
                uint64_t *count)
{
  while (from < NR && !m->bit[from])
    from++;
  if (from >= NR)
    return false;
  for (*first = from, *count = 0; from < NR && m->bit[from] && *count < max; from++)
    ++*count;
  return true;
}

static uint64_t
model_count (const struct model *m)
{
  uint64_t n = 0;

  for (uint64_t b = 0; b < NR; b++)
    n += m->bit[b];
  return n;
}

static void
compare_next_run (const struct region *r, enum region_array a, const struct model *m, uint64_t from,
                  uint64_t max)
{
  uint64_t f1 = 0, c1 = 0, f2 = 0, c2 = 0;
  bool b1 = bitmap_next_run (r, a, from, max, &f1, &c1);
  bool b2 = model_next_run (m, from, max, &f2, &c2);

  cr_assert (b1 == b2 && f1 == f2 && c1 == c2,
             "next run from %" PRIu64 " max %" PRIu64 ": %d %" PRIu64 "+%" PRIu64
             ", expected %d %" PRIu64 "+%" PRIu64,
             from, max, b1, f1, c1, b2, f2, c2);
}

static void
compare (const struct region *r, enum region_array a, const struct model *m)
{
  for (uint64_t b = 0; b < NR; b++)
    cr_assert_eq (bitmap_test (r, a, b), m->bit[b], "block %" PRIu64, b);
  cr_assert_eq (bitmap_count (r, a), model_count (m));
  cr_assert_eq (bitmap_empty (r, a), model_count (m) == 0);
  fixture_check (r, a);
}

/* Set and clear between every two edges, from an empty and from a full array. */
Test (bitmap, edges)
{
  struct region *r = fixture_region (NR);
  static struct model m;

  for (size_t i = 0; i < NR_EDGES; i++)
    for (size_t j = i; j < NR_EDGES; j++) {
      uint64_t first = edges[i], count = edges[j] - edges[i] + (j % 2); /* 0 where i == j, too */

      for (int full = 0; full < 2; full++) {
        bitmap_clear_all (r, REGION_DIRTY);
        cr_assert (bitmap_empty (r, REGION_DIRTY));
        model_put (&m, 0, NR, full);
        cr_assert_eq (bitmap_set (r, REGION_DIRTY, 0, full ? NR : 0), full ? NR : 0);
        cr_assert_eq (full ? bitmap_clear (r, REGION_DIRTY, first, count)
                           : bitmap_set (r, REGION_DIRTY, first, count),
                      model_put (&m, first, count, !full));
        fixture_check (r, REGION_DIRTY);
        cr_assert_eq (bitmap_count (r, REGION_DIRTY), model_count (&m));
        cr_assert_eq (bitmap_test_any (r, REGION_DIRTY, first, count), !full && count > 0);
        if (first > 0)
          cr_assert_eq (bitmap_test (r, REGION_DIRTY, first - 1), full);
        if (first + count < NR)
          cr_assert_eq (bitmap_test (r, REGION_DIRTY, first + count), full);
        for (size_t k = 0; k < NR_EDGES; k += 3)
          compare_next_run (r, REGION_DIRTY, &m, edges[k], k % 2 ? NR : 70);
      }
    }
  region_free (r);
}

/* Some words from word W on, half of them empty.  In the last one there are bits beyond the last
 * block. */
static void
put_words (struct region *r, enum region_array a, struct model *m, uint64_t w, uint64_t *rnd)
{
  uint64_t words[70], left = r->geo.nr_words - w, count = left < 70 ? left : 70;

  for (uint64_t i = 0; i < count; i++) {
    words[i] = fixture_random (rnd) % 2 == 0 ? 0 : fixture_random (rnd) & fixture_random (rnd);
    if (w + i == r->geo.nr_words - 1)
      words[i] |= UINT64_C (1) << 63;
    for (uint64_t b = (w + i) * 64; b < (w + i + 1) * 64 && b < NR; b++)
      m->bit[b] |= (words[i] >> (b % 64) & 1) != 0;
  }
  bitmap_set_words (r, a, w, count, words);
}

/* Random calls on all arrays do what they do to the model. */
Test (bitmap, model)
{
  struct region *r = fixture_region (NR), *other = fixture_region (NR);
  static struct model m[REGION_NR_ARRAYS];
  uint64_t rnd = 20261120;

  for (int step = 0; step < 30000; step++) {
    enum region_array a = (enum region_array) (fixture_random (&rnd) % REGION_NR_ARRAYS);
    enum region_array b = (enum region_array) (fixture_random (&rnd) % REGION_NR_ARRAYS);
    uint64_t first = fixture_random (&rnd) % 4 == 0 ? edges[fixture_random (&rnd) % NR_EDGES]
                                                    : fixture_random (&rnd) % NR;
    uint64_t len = UINT64_C (1) << fixture_random (&rnd) % 14;
    uint64_t count = fixture_random (&rnd) % (len < NR - first ? len : NR - first + 1);
    bool any = false;

    switch (fixture_random (&rnd) % 64) {
    case 0:
      bitmap_clear_all (r, a);
      model_put (&m[a], 0, NR, false);
      break;
    case 1:
      bitmap_or (r, a, r, b);
      for (uint64_t i = 0; i < NR; i++)
        m[a].bit[i] |= m[b].bit[i];
      break;
    case 2: /* by way of another region */
      bitmap_clear_all (other, b);
      bitmap_or (other, b, r, a);
      fixture_check (other, b);
      bitmap_clear_all (r, a);
      bitmap_or (r, a, other, b);
      break;
    case 3:
      compare (r, a, &m[a]);
      break;
    case 4:
      put_words (r, a, &m[a], first / 64, &rnd);
      break;
    case 5 ... 25:
      cr_assert_eq (bitmap_set (r, a, first, count), model_put (&m[a], first, count, true));
      break;
    case 26 ... 47:
      cr_assert_eq (bitmap_clear (r, a, first, count), model_put (&m[a], first, count, false));
      break;
    case 48 ... 53:
      for (uint64_t i = first; i < first + count; i++)
        any |= m[a].bit[i];
      cr_assert_eq (bitmap_test_any (r, a, first, count), any);
      break;
    default:
      compare_next_run (r, a, &m[a], first, count + 1);
      break;
    }
  }
  for (int a = 0; a < REGION_NR_ARRAYS; a++)
    compare (r, (enum region_array)a, &m[a]);
  region_free (r);
  region_free (other);
}

/* A guest's byte range is rounded outwards, cut at the end of the disk, and counted once. */
Test (bitmap, mark)
{
  struct region *r = fixture_region (100); /* 100 * 4096 - 1 bytes */
  uint64_t size = r->geo.disk_size;
  static const struct {
    uint64_t offset, length, first, count;
  } t[] = {
    { 0, 1, 0, 1 },
    { 4095, 1, 0, 1 },
    { 4095, 2, 0, 2 },
    { 4096, 4096, 1, 1 },
    { 4096, 4097, 1, 2 },
    { 8191, 4098, 1, 3 },
    { 99 * 4096 + 4094, 1, 99, 1 },
    { 99 * 4096 + 4094, 2, 99, 1 },
    { 98 * 4096, UINT64_MAX, 98, 2 },
    { 98 * 4096, UINT64_MAX - 98 * 4096, 98, 2 },
    { 5, 0, 0, 0 },
    { 100 * 4096 - 1, 1, 0, 0 },
    { UINT64_MAX, UINT64_MAX, 0, 0 },
    { UINT64_MAX, 1, 0, 0 },
    { 0, UINT64_MAX, 0, 100 },
  };
  uint64_t total = 0, first, count;

  for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
    bitmap_clear_all (r, REGION_DIRTY);
    cr_assert_eq (bitmap_mark (r, t[i].offset, t[i].length), t[i].count, "case %zu", i);
    cr_assert_eq (bitmap_count (r, REGION_DIRTY), t[i].count);
    if (t[i].count > 0) {
      cr_assert (bitmap_next_run (r, REGION_DIRTY, 0, 1000, &first, &count));
      cr_assert (first == t[i].first && count == t[i].count, "case %zu", i);
    }
    total += t[i].count;
    cr_assert_eq (atomic_load (&r->hdr->dirtied_total), total);
    cr_assert_eq (bitmap_mark (r, t[i].offset, t[i].length), 0, "dirty already");
    cr_assert_eq (atomic_load (&r->hdr->dirtied_total), total);
  }
  cr_assert_eq (size, 100 * 4096 - 1);
  region_free (r);
}

/* Whatever another process writes into the region, searches stay inside the disk. */
Test (bitmap, scribbled)
{
  struct region *r = fixture_region (NR), *dst = fixture_region (NR);
  uint64_t first, count;

  memset ((char *)r->hdr + 4096, 0xff, r->geo.region_size - 4096);
  cr_assert (bitmap_next_run (r, REGION_DIRTY, 0, UINT64_MAX, &first, &count));
  cr_assert (first == 0 && count == NR);
  cr_assert (bitmap_next_run (r, REGION_DIRTY, NR - 1, UINT64_MAX, &first, &count));
  cr_assert (first == NR - 1 && count == 1);
  cr_assert_not (bitmap_next_run (r, REGION_DIRTY, NR, 1, &first, &count));
  cr_assert_not (bitmap_next_run (r, REGION_DIRTY, UINT64_MAX, 1, &first, &count));
  bitmap_or (dst, REGION_DIRTY, r, REGION_CLAIMED_A);
  cr_assert_eq (bitmap_count (dst, REGION_DIRTY), NR);
  fixture_check (dst, REGION_DIRTY);
  atomic_store (&r->hdr->count[REGION_DIRTY], INT64_MAX);
  cr_assert_eq (bitmap_count (r, REGION_DIRTY), NR);
  atomic_store (&r->hdr->count[REGION_DIRTY], -1);
  cr_assert_eq (bitmap_count (r, REGION_DIRTY), 0);
  bitmap_clear_all (r, REGION_DIRTY);
  region_free (r);
  region_free (dst);
}

/* bitmap_or finds bits without their summary bit, as a clearer killed at the wrong instant leaves
 * them, and reads no page of the source that was never touched. */
Test (bitmap, or_trusts_no_summary)
{
  struct region *src = fixture_region (NR * 100), *dst = fixture_region (NR * 100);

  bitmap_set (src, REGION_CLAIMED_B, NR * 50, 100);
  atomic_store (&fixture_summary (src, REGION_CLAIMED_B)[NR * 50 / 4096], 0);
  bitmap_or (dst, REGION_DIRTY, src, REGION_CLAIMED_B);
  cr_assert_eq (bitmap_count (dst, REGION_DIRTY), 100);
  cr_assert (bitmap_test (dst, REGION_DIRTY, NR * 50)
             && bitmap_test (dst, REGION_DIRTY, NR * 50 + 99));
  fixture_check (dst, REGION_DIRTY);
  cr_assert_eq (lseek (src->fd, (off_t)src->geo.array_offset[REGION_CLAIMED_A], SEEK_DATA),
                lseek (src->fd, (off_t)src->geo.array_offset[REGION_CLAIMED_B], SEEK_DATA),
                "an untouched array was allocated");
  region_free (src);
  region_free (dst);
}

/* bitmap_empty says no while a clearer is at the instant between its two steps, where the word of a
 * completed set may lack its summary bit; also for ever, if it was killed there. */
Test (bitmap, empty_in_the_middle_of_a_clear)
{
  struct region *r = fixture_region (64);

  cr_assert (bitmap_empty (r, REGION_DIRTY));
  bitmap_set (r, REGION_DIRTY, 0, 1);
  atomic_fetch_add (&r->hdr->clears_begun[REGION_DIRTY], 1);
  atomic_store (&fixture_summary (r, REGION_DIRTY)[0], 0);
  cr_assert_not (bitmap_empty (r, REGION_DIRTY));
  cr_assert (bitmap_empty (r, REGION_QUARANTINE));
  region_free (r);
}

/* A clearer was killed there, in two arrays: once it has ended, what its clear had hidden is found
 * again, and the array can be empty again. */
Test (bitmap, a_clear_of_a_dead_clearer)
{
  static const enum region_array arrays[] = { REGION_DIRTY, REGION_QUARANTINE };
  struct region *r = fixture_region (NR);
  uint64_t words[NR / 64 + 1] = { 0 }, first, count;

  for (unsigned i = 0; i < 2; i++) {
    bitmap_set (r, arrays[i], 4096, 1);
    bitmap_set (r, arrays[i], NR - 1, 1);
    atomic_fetch_add (&r->hdr->clears_begun[arrays[i]], 1 + i);
    atomic_store (&fixture_summary (r, arrays[i])[1], 0);
    cr_assert_not (bitmap_or_words (r, arrays[i], 0, r->geo.nr_words, words));
  }
  bitmap_end_clears (r);
  for (unsigned i = 0; i < 2; i++) {
    fixture_check (r, arrays[i]);
    cr_assert (bitmap_next_run (r, arrays[i], 0, 64, &first, &count));
    cr_assert (first == 4096 && count == 1);
    cr_assert (bitmap_or_words (r, arrays[i], 0, r->geo.nr_words, words));
    cr_assert (words[64] == 1 && words[NR / 64] == UINT64_C (1) << (NR - 1) % 64);
    bitmap_clear_all (r, arrays[i]);
    cr_assert (bitmap_empty (r, arrays[i]));
  }
  region_free (r);
}

/* ---- threads ---- */

/* Each thread owns every NR_THREADSth block, so that all words are fought over, and knows in the
 * end which of its blocks must be set. */
#define NR_THREADS 4
#define HAMMER_NR 300

struct hammer {
  struct region *r;
  unsigned id;
  bool bit[HAMMER_NR];
};

static void *
hammer_thread (void *arg)
{
  struct hammer *h = arg;
  uint64_t rnd = 99 + h->id;

  for (int i = 0; i < 60000; i++) {
    uint64_t b = fixture_random (&rnd) % (HAMMER_NR / NR_THREADS) * NR_THREADS + h->id;
    bool v = fixture_random (&rnd) & 1;
    uint64_t changed
        = v ? bitmap_set (h->r, REGION_DIRTY, b, 1) : bitmap_clear (h->r, REGION_DIRTY, b, 1);

    cr_assert_eq (changed, h->bit[b] != v, "another thread changed block %" PRIu64, b);
    h->bit[b] = v;
  }
  return NULL;
}

/* No bit is lost or invented, and counters are exact, with every word shared by all threads. */
Test (bitmap, threads)
{
  struct region *r = fixture_region (HAMMER_NR);
  static struct hammer h[NR_THREADS];
  pthread_t t[NR_THREADS];

  for (unsigned i = 0; i < NR_THREADS; i++) {
    h[i].r = r;
    h[i].id = i;
    cr_assert_eq (pthread_create (&t[i], NULL, hammer_thread, &h[i]), 0);
  }
  for (unsigned i = 0; i < NR_THREADS; i++)
    pthread_join (t[i], NULL);
  for (uint64_t b = 0; b < HAMMER_NR; b++)
    cr_assert_eq (bitmap_test (r, REGION_DIRTY, b), h[b % NR_THREADS].bit[b]);
  fixture_check (r, REGION_DIRTY);
  region_free (r);
}

struct race {
  struct region *r;
  _Atomic unsigned turn; /* number of the round, taken by the clearer */
  _Atomic bool stop;
};

/* Waits for a round, then clears block 1. */
static void *
race_clearer (void *arg)
{
  struct race *c = arg;
  unsigned done = 0;

  while (!atomic_load (&c->stop)) {
    if (atomic_load (&c->turn) % 2 == 0 || atomic_load (&c->turn) == done)
      continue;
    done = atomic_load (&c->turn);
    bitmap_clear (c->r, REGION_DIRTY, 1, 1);
    atomic_store (&c->turn, done + 1);
  }
  return NULL;
}

/* Set block 0 while another thread clears the only other bit of its word: afterwards the summary
 * must lead to block 0.  (Fails if clearers do not look again after taking the summary bit.) */
Test (bitmap, summary_survives_clearer)
{
  struct race c = { .r = fixture_region (64) };
  uint64_t start = 0;
  pthread_t t;
  uint64_t first, count;

  cr_assert_eq (pthread_create (&t, NULL, race_clearer, &c), 0);
  for (unsigned round = 0; round < 100000 && !fixture_late (&start); round++) {
    bitmap_clear (c.r, REGION_DIRTY, 0, 64);
    bitmap_set (c.r, REGION_DIRTY, 1, 1);
    atomic_store (&c.turn, 2 * round + 1);
    for (volatile unsigned spin = round % 64; spin > 0; spin--)
      ;
    bitmap_set (c.r, REGION_DIRTY, 0, 1);
    while (atomic_load (&c.turn) != 2 * round + 2)
      ;
    cr_assert (bitmap_next_run (c.r, REGION_DIRTY, 0, 64, &first, &count), "lost in round %u",
               round);
    cr_assert (first == 0 && count == 1);
  }
  atomic_store (&c.stop, true);
  pthread_join (t, NULL);
  region_free (c.r);
}

/* Sets and clears block 1 without end. */
static void *
flicker (void *arg)
{
  struct race *c = arg;

  while (!atomic_load (&c->stop)) {
    bitmap_set (c->r, REGION_DIRTY, 1, 1);
    bitmap_clear (c->r, REGION_DIRTY, 1, 1);
  }
  return NULL;
}

/* While block 0 is set, bitmap_empty says no, whatever goes on beside it.  (Fails, most times, if
 * clears_begun is not looked at again in the end.) */
Test (bitmap, empty_is_never_wrong)
{
  struct race c = { .r = fixture_region (64) };
  uint64_t start = 0;
  pthread_t t;

  cr_assert_eq (pthread_create (&t, NULL, flicker, &c), 0);
  for (unsigned round = 0; round < 3000000; round++) {
    if (round % 1024 == 0 && fixture_late (&start))
      break;
    bitmap_set (c.r, REGION_DIRTY, 0, 1);
    cr_assert_not (bitmap_empty (c.r, REGION_DIRTY), "round %u", round);
    bitmap_clear (c.r, REGION_DIRTY, 0, 1);
  }
  atomic_store (&c.stop, true);
  pthread_join (t, NULL);
  bitmap_clear_all (c.r, REGION_DIRTY);
  cr_assert (bitmap_empty (c.r, REGION_DIRTY));
  region_free (c.r);
}
