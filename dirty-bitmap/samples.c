/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The table of samples in the shared region.
 *
 * One process writes it, and may be killed at any instruction: half a sample would make the next
 * worker refuse the right destination.  So an entry is made unused before it is changed, and its
 * length, which makes it valid, is stored last.  Age is a number of its own for each entry, given
 * out by the counter `written`; it only decides what is replaced first, so nonsense there does no
 * harm.
 */

#include "config.h"

#include <assert.h>
#include <string.h>

#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/samples.h"

/* The entries below keep their sample until its block is written anew.  Else the samples of a guest
 * that writes to a small part of its disk would all be of that part after a while, and be in
 * quarantine when a worker is killed: nothing could be compared, and any destination would do. */
#define SAMPLES_KEPT ((SAMPLES_FOUND + SAMPLES_MAX) / 2)

/* Same size as struct sample, with the length as the atomic that publishes the rest. */
struct shared_sample {
  uint64_t block;
  _Atomic uint32_t length;
  uint32_t kind;
  uint8_t data[SAMPLE_BYTES];
};

struct sample_table {
  _Atomic uint64_t written;
  uint64_t reserved[7];
  uint64_t age[SAMPLES_MAX];
  struct shared_sample entry[SAMPLES_MAX];
};

_Static_assert(sizeof (struct sample_table) == SAMPLES_TABLE_BYTES,
               "region_geometry_init reserves what the table takes");

static struct sample_table *
table_of (const struct region *r)
{
  return (struct sample_table *)((char *)r->hdr + r->geo.samples_offset);
}

/* Could this be a sample of this disk? */
static bool
makes_sense (const struct region *r, uint64_t block, uint32_t length)
{
  return length > 0 && length <= SAMPLE_BYTES && block < r->geo.nr_blocks
         && length <= region_bytes (&r->geo, block, 1);
}

static void
drop (struct shared_sample *e)
{
  atomic_store (&e->length, 0);
}

bool
samples_get (const struct region *r, unsigned i, struct sample *out)
{
  assert (i < SAMPLES_MAX);
  const struct shared_sample *e = &table_of (r)->entry[i];
  memset (out, 0, sizeof *out);
  out->length = atomic_load (&e->length);
  out->block = *(const volatile uint64_t *)&e->block; /* read once, then checked */
  out->kind = *(const volatile uint32_t *)&e->kind == SAMPLE_SENT ? SAMPLE_SENT : SAMPLE_FOUND;
  if (!makes_sense (r, out->block, out->length)) {
    out->length = 0;
    return false;
  }
  memcpy (out->data, e->data, out->length);
  return true;
}

/* The entry that a sample of KIND goes to.  SAMPLES_MAX: there is no room. */
static unsigned
choose (const struct sample_table *t, uint32_t kind)
{
  unsigned end = kind == SAMPLE_SENT ? SAMPLES_MAX : SAMPLES_FOUND;
  unsigned oldest = SAMPLES_MAX;

  for (unsigned i = kind == SAMPLE_SENT ? SAMPLES_FOUND : 0; i < end; i++) {
    if (atomic_load (&t->entry[i].length) == 0)
      return i;
    if (i >= SAMPLES_KEPT && (oldest == SAMPLES_MAX || t->age[i] < t->age[oldest]))
      oldest = i;
  }
  return oldest;
}

static void
drop_block (struct sample_table *t, uint64_t block)
{
  for (unsigned i = 0; i < SAMPLES_MAX; i++)
    if (t->entry[i].block == block)
      drop (&t->entry[i]);
}

void
samples_put (struct region *r, const struct sample *s)
{
  struct sample_table *t = table_of (r);

  assert (makes_sense (r, s->block, s->length));
  drop_block (t, s->block);
  unsigned i = choose (t, s->kind);
  if (i == SAMPLES_MAX)
    return;
  struct shared_sample *e = &t->entry[i];
  drop (e);
  atomic_signal_fence (memory_order_seq_cst); /* program order is what a killed process leaves */
  e->block = s->block;
  e->kind = s->kind;
  memcpy (e->data, s->data, s->length);
  t->age[i] = atomic_fetch_add (&t->written, 1) + 1;
  atomic_store (&e->length, s->length);
}

/* Whoever copies sets the bit before anything is sent. */
static bool
is_as_found (const struct region *r, uint32_t kind, uint64_t block)
{
  return kind == SAMPLE_FOUND && !bitmap_test (r, REGION_VISITED, block);
}

bool
samples_comparable (const struct region *r, const struct sample *s)
{
  return is_as_found (r, s->kind, s->block) || !bitmap_test (r, REGION_QUARANTINE, s->block);
}

void
samples_drop_in (struct region *r, enum region_array a)
{
  struct sample s;

  for (unsigned i = 0; i < SAMPLES_MAX; i++)
    if (samples_get (r, i, &s) && bitmap_test (r, a, s.block) && !is_as_found (r, s.kind, s.block))
      drop (&table_of (r)->entry[i]);
}

/* Oldest first, so that FRESH keeps the order of age. */
void
samples_copy (struct region *fresh, const struct region *old)
{
  const struct sample_table *t = table_of (old);
  uint64_t seen = 0; /* one bit an entry */
  struct sample s;

  _Static_assert(SAMPLES_MAX <= 64, "entries fit in a word");
  assert (memcmp (&fresh->geo, &old->geo, sizeof fresh->geo) == 0);
  for (unsigned n = 0; n < SAMPLES_MAX; n++) {
    unsigned oldest = SAMPLES_MAX;

    for (unsigned i = 0; i < SAMPLES_MAX; i++)
      if (!(seen >> i & 1) && (oldest == SAMPLES_MAX || t->age[i] < t->age[oldest]))
        oldest = i;
    seen |= UINT64_C (1) << oldest;
    if (samples_get (old, oldest, &s))
      samples_put (fresh, &s);
  }
  atomic_fetch_or (&fresh->hdr->sent_is_durable, atomic_load (&old->hdr->sent_is_durable));
}
