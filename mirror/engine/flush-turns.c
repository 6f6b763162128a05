/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Flush turns: making durable what was written, and releasing its claims (rule R4).  New claims
 * enter the active claim set, while the other one is flushed:
 *
 *   state        what is going on                           next
 *   FLUSH_IDLE   nothing, or too little is to be flushed    due or asked for: the sets change
 *                                                           places; FLUSH_DRAIN
 *   FLUSH_DRAIN  copiers are still counted in the old set   the last one leaves: FLUSH_READY
 *   FLUSH_READY  nobody is counted in it any more           the flusher asks for work: FLUSH_SENT
 *   FLUSH_SENT   FLUSH is at the destination                its reply: samples are brought up to
 *                                                           date, the old set is released;
 *                                                           FLUSH_IDLE
 *
 * A failed flush is a lost session (R5), so nothing else leads out of FLUSH_SENT but
 * engine_session_over().
 *
 * The samples by which the destination is recognised (R13) follow the turns: they are taken from
 * what was written, and believed once it is flushed.
 */

#include "config.h"

#include <assert.h>
#include <string.h>

#include "base/clock.h"
#include "base/zero.h"
#include "mirror/engine/internal.h"

#define FLUSH_INTERVAL_NS ((uint64_t)NS_PER_S)
#define FLUSH_SLOW_NS ((uint64_t)NS_PER_MS)
#define READY_INTERVAL_NS ((uint64_t)(30 * NS_PER_S)) /* of flushes that make nothing durable */
#define FLUSH_MIN_BYTES (UINT64_C (8) << 20)
/* A long offline copy shall not begin again from zero when the line breaks, and its last flush must
 * end within the time limit of a request. */
#define OFFLINE_INTERVAL_NS ((uint64_t)(30 * NS_PER_S))
#define OFFLINE_BYTES (UINT64_C (4) << 30)

/* ---- samples ---- */

void
engine_drop_samples (struct engine *e, unsigned set, uint64_t first, uint64_t count)
{
  for (unsigned i = 0; i < ENGINE_PENDING_SAMPLES; i++)
    if (e->pending[set][i].block >= first && e->pending[set][i].block - first < count)
      e->pending[set][i].length = 0;
}

/* Each kind has places of its own, so that none is crowded out. */
enum { PENDING_SENT = 0, PENDING_FOUND = 2, PENDING_ZERO = 4 };

void
engine_propose_sample (struct engine *e, const struct engine_task *t, const uint8_t *data,
                       uint64_t length, enum sample_kind kind)
{
  uint64_t at = t->first + t->sample, block = region_bytes (&e->region->geo, at, 1);
  if (length > block)
    length = block;
  if (length > SAMPLE_BYTES)
    length = SAMPLE_BYTES;

  bool zero = all_zero (data, length);
  unsigned first = zero ? PENDING_ZERO : kind == SAMPLE_SENT ? PENDING_SENT : PENDING_FOUND;
  unsigned end = zero ? ENGINE_PENDING_SAMPLES : first + 2;
  for (unsigned i = first; i < end; i++) {
    struct sample *s = &e->pending[t->set][i];
    if (s->length == 0) {
      s->block = at;
      s->length = (uint32_t)length;
      s->kind = kind;
      memcpy (s->data, data, length);
      return;
    }
  }
}

void
engine_sends (struct engine *e, const struct engine_task *t)
{
  atomic_store (&e->sent_in[t->set], true);
}

/* ---- turns ---- */

void
engine_flush (struct engine *e)
{
  pthread_mutex_lock (&e->lock);
  e->flush_wanted = true;
  engine_wake_all (e);
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
    engine_wake_flusher (e);
  }
  pthread_mutex_unlock (&e->lock);
}

bool
engine_has_flushed (struct engine *e)
{
  const struct region *r = e->region;
  pthread_mutex_lock (&e->lock);
  bool has = atomic_load (&e->counters.flushes) > e->flushes_before
             || (e->pass.nr_busy == 0 && bitmap_count (r, REGION_CLAIMED_A) == 0
                 && bitmap_count (r, REGION_CLAIMED_B) == 0);
  pthread_mutex_unlock (&e->lock);
  if (!has)
    engine_flush_if_settled (e);
  return has;
}

/* How long has the last flush taken by itself, up to NOW?  It cannot have taken less than a round
 * trip, if it took as much as that.  The caller has the lock. */
static uint64_t
took_ns (const struct engine *e, uint64_t now)
{
  uint64_t took = now - e->flush_start_ns, trip = atomic_load (&e->rtt_ns);
  uint64_t alone = latency_behind_ns (&e->latency, took, e->flush_queued);

  if (alone >= trip)
    return alone;
  return took < trip ? took : trip;
}

uint64_t
engine_flush_ns (struct engine *e)
{
  uint64_t last = atomic_load (&e->flush_ns), running = 0;
  pthread_mutex_lock (&e->lock);
  if (e->flush == FLUSH_SENT)
    running = took_ns (e, clock_ns ());
  pthread_mutex_unlock (&e->lock);
  return running > last ? running : last;
}

/* How much may be written between two flushes. */
static uint64_t
flush_bytes (const struct engine *e)
{
  uint64_t bytes = e->region->geo.disk_size / 200;

  if (e->options.offline)
    return OFFLINE_BYTES;
  return bytes < FLUSH_MIN_BYTES ? FLUSH_MIN_BYTES : bytes;
}

/* The time between two flushes; UINT64_MAX: none is needed.  With nothing to make durable, flush on
 * only while the last flush counts heavily in the expected pause.  Otherwise one slow flush could
 * keep an idle disk from ever being ready.  Once it is ready that need not be known so soon, nor
 * while it cannot be, because the source cannot be read.  Paused it need not be known at all. */
static uint64_t
flush_interval_ns (const struct engine *e)
{
  if (e->unflushed_bytes > 0)
    return e->options.offline ? OFFLINE_INTERVAL_NS : FLUSH_INTERVAL_NS;
  if (e->options.offline || e->paused || atomic_load (&e->flush_ns) <= FLUSH_SLOW_NS)
    return UINT64_MAX;
  bool may_be_ready = e->counting && e->pass.unreadable.since_ns == 0;
  return may_be_ready ? FLUSH_INTERVAL_NS : READY_INTERVAL_NS;
}

uint64_t
engine_flush_due_ns (const struct engine *e, uint64_t now)
{
  uint64_t interval = flush_interval_ns (e), passed = now - e->last_flush_ns;

  if (e->flush != FLUSH_IDLE || interval == UINT64_MAX)
    return UINT64_MAX;
  return passed < interval ? interval - passed : 0;
}

static bool
flush_due (const struct engine *e, uint64_t now)
{
  return e->flush_wanted || e->unflushed_bytes >= flush_bytes (e)
         || engine_flush_due_ns (e, now) == 0;
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

void
engine_flush_begin (struct engine *e, uint64_t now)
{
  e->flush = FLUSH_SENT;
  e->flush_start_ns = now;
  e->flush_queued = atomic_load (&e->counters.writing_bytes);
  e->flushes_sent++;
}

/* Bring the samples up to date with what has just become durable, before the claims go (R13). */
static void
commit_samples (struct engine *e, unsigned set)
{
  struct region *r = e->region;
  samples_drop_in (r, claim_array (set));
  if (atomic_exchange (&e->sent_in[set], false))
    atomic_store (&r->hdr->sent_is_durable, 1);
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
  uint64_t now = clock_ns ();
  assert (e->flush == FLUSH_SENT);
  commit_samples (e, e->flush_set);
  claim_release (e->region, e->flush_set);
  e->flush = FLUSH_IDLE;
  engine_urgent_flushed (e);
  e->last_flush_ns = now;
  atomic_store (&e->flush_ns, took_ns (e, now));
  atomic_fetch_add (&e->counters.flushes, 1);
  pthread_mutex_unlock (&e->lock);
  engine_notify (e);
}
