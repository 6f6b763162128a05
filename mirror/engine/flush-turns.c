/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Flush turns: making durable what was written, and releasing its claims.
 *
 * A flush goes round like this (rule R4), FLUSH_IDLE first:
 *   due or wanted  -> claim_turn(): new claims enter the other set       FLUSH_DRAIN
 *   last copier of the old set leaves                                    FLUSH_READY
 *   copier 0 sends FLUSH                                                 FLUSH_SENT
 *   its reply      -> samples brought up to date, old set released       FLUSH_IDLE
 * A failed flush is a lost session (R5), so there is no way back from FLUSH_SENT.
 *
 * With it go the samples by which the destination is recognised (R13): taken from what was written,
 * and believed once it is flushed.
 */

#include "config.h"

#include <assert.h>
#include <string.h>

#include "mirror/engine/internal.h"
#include "mirror/engine/session.h"

#define NS_PER_MS UINT64_C (1000000)
#define FLUSH_INTERVAL_NS (1000 * NS_PER_MS)
#define FLUSH_SLOW_NS NS_PER_MS
#define FLUSH_MIN_BYTES (UINT64_C (8) << 20)
/* A long offline copy is not to begin again from zero when the line breaks, and its last flush must
 * end within the time limit of a request. */
#define OFFLINE_INTERVAL_NS (30000 * NS_PER_MS)
#define OFFLINE_BYTES (UINT64_C (4) << 30)

/* ---- samples ---- */

void
engine_drop_samples (struct engine *e, unsigned set, uint64_t first, uint64_t count)
{
  for (unsigned i = 0; i < ENGINE_PENDING_SAMPLES; i++)
    if (e->pending[set][i].block >= first && e->pending[set][i].block - first < count)
      e->pending[set][i].length = 0;
}

void
engine_propose_sample (struct engine *e, const struct engine_task *t, const uint8_t *data,
                       uint64_t length)
{
  uint64_t block = region_bytes (&e->region->geo, t->first, 1);
  if (length > block)
    length = block;
  if (length > SAMPLE_BYTES)
    length = SAMPLE_BYTES;

  unsigned last = ENGINE_PENDING_SAMPLES - 1;
  bool zero = data[0] == 0 && memcmp (data, data + 1, length - 1) == 0;
  for (unsigned i = zero ? last : 0; i < (zero ? last + 1 : last); i++) {
    struct sample *s = &e->pending[t->set][i];
    if (s->length == 0) {
      s->block = t->first;
      s->length = (uint32_t)length;
      memcpy (s->data, data, length);
      return;
    }
  }
}

/* ---- turns ---- */

void
engine_flush (struct engine *e)
{
  pthread_mutex_lock (&e->lock);
  e->flush_wanted = true;
  session_kick (e->session);
  pthread_mutex_unlock (&e->lock);
}

void
engine_flush_if_settled (struct engine *e)
{
  const struct region *r = e->region;
  pthread_mutex_lock (&e->lock);
  if (bitmap_count (r, REGION_DIRTY) == 0 && e->pass.nr_busy == 0 && e->flush == FLUSH_IDLE
      && !e->flush_wanted
      && bitmap_count (r, REGION_CLAIMED_A) + bitmap_count (r, REGION_CLAIMED_B) > 0) {
    e->flush_wanted = true;
    session_kick_flusher (e->session);
  }
  pthread_mutex_unlock (&e->lock);
}

uint64_t
engine_flush_ns (struct engine *e)
{
  uint64_t last = atomic_load (&e->flush_ns), running = 0;
  pthread_mutex_lock (&e->lock);
  if (e->flush == FLUSH_SENT)
    running = now_ns () - e->flush_start_ns;
  pthread_mutex_unlock (&e->lock);
  return running > last ? running : last;
}

static bool
flush_due (const struct engine *e, uint64_t now)
{
  if (e->flush_wanted)
    return true;
  if (e->options.offline)
    return e->unflushed_bytes >= OFFLINE_BYTES
           || (e->unflushed_bytes > 0 && now - e->last_flush_ns >= OFFLINE_INTERVAL_NS);
  /* With nothing to make durable, flush on only while the last flush counts heavily in the expected
   * pause: one that was slow once must not keep an idle disk from ever being ready. */
  if (e->unflushed_bytes == 0)
    return atomic_load (&e->flush_ns) > FLUSH_SLOW_NS
           && now - e->last_flush_ns >= FLUSH_INTERVAL_NS;
  uint64_t limit = e->region->geo.disk_size / 200;
  if (limit < FLUSH_MIN_BYTES)
    limit = FLUSH_MIN_BYTES;
  return e->unflushed_bytes >= limit || now - e->last_flush_ns >= FLUSH_INTERVAL_NS;
}

bool
engine_flush_step (struct engine *e, uint64_t now)
{
  if (e->flush == FLUSH_IDLE && flush_due (e, now) && claim_turn (e->region, &e->flush_set)) {
    e->flush = FLUSH_DRAIN;
    e->flush_wanted = false;
    e->unflushed_bytes = 0;
  }
  if (e->flush == FLUSH_DRAIN && claim_drained (e->region, e->flush_set))
    e->flush = FLUSH_READY;
  return e->flush == FLUSH_READY;
}

/* Bring the samples up to date with what has just become durable, before the claims go (R13). */
static void
commit_samples (struct engine *e, unsigned set)
{
  struct region *r = e->region;
  samples_drop_in (r, claim_array (set));
  for (unsigned i = 0; i < ENGINE_PENDING_SAMPLES; i++) {
    struct sample *s = &e->pending[set][i];
    if (s->length > 0 && bitmap_test (r, claim_array (set), s->block))
      samples_put (r, s);
    s->length = 0;
  }
}

void
engine_flush_done (struct engine *e)
{
  pthread_mutex_lock (&e->lock);
  uint64_t now = now_ns ();
  assert (e->flush == FLUSH_SENT);
  commit_samples (e, e->flush_set);
  claim_release (e->region, e->flush_set);
  e->flush = FLUSH_IDLE;
  engine_urgent_flushed (e);
  e->last_flush_ns = now;
  atomic_store (&e->flush_ns, now - e->flush_start_ns);
  atomic_fetch_add (&e->counters.flushes, 1);
  pthread_mutex_unlock (&e->lock);
  engine_notify (e);
}
