/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The engine's settings and figures, and the beginning and end of sessions.  See engine.h.
 */

#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "mirror/engine/internal.h"

int
engine_init (struct engine *e, struct region *region, struct endpoint *source,
             const struct engine_options *options, char **error)
{
  uint32_t max = endpoint_info (source)->max_request;

  memset (e, 0, sizeof *e);
  if (max < region->geo.block_size)
    return text_error (error,
                       "%s takes requests of at most %" PRIu32 " bytes, but blocks of %" PRIu32
                       " bytes are tracked: choose a smaller block size (mirror-block-size=)",
                       endpoint_name (source), max, region->geo.block_size);
  e->notify_fd = fd_wake_new ();
  if (e->notify_fd == -1)
    return text_error (error, "cannot make a wake-up descriptor: %s", strerror (errno));
  e->region = region;
  e->source = source;
  e->options = *options;
  if (e->options.grace_ns == 0)
    e->options.grace_ns = ENGINE_GRACE_NS;
  if (options->base != NULL && endpoint_info (options->base)->max_request < max)
    max = endpoint_info (options->base)->max_request;
  e->request_blocks
      = (max < ENGINE_REQUEST_BYTES ? max : ENGINE_REQUEST_BYTES) >> region->geo.block_shift;
  if (e->request_blocks == 0)
    e->request_blocks = 1;
  pthread_mutex_init (&e->lock, NULL);
  pass_init (&e->pass);
  allowance_init (&e->allowance, options->rate_limit, options->budget, clock_ns ());
  e->counting = true;
  e->last_flush_ns = clock_ns ();
  e->unanswered = !bitmap_empty (region, REGION_QUARANTINE);
  return 0;
}

void
engine_destroy (struct engine *e)
{
  assert (e->copiers == NULL);
  fd_close (&e->notify_fd);
  pthread_mutex_destroy (&e->lock);
}

/* ---- waking others ---- */

void
engine_notify (struct engine *e)
{
  fd_wake (e->notify_fd);
}

void
engine_wake_all (struct engine *e)
{
  e->asleep = false;
  if (e->copiers != NULL)
    e->copiers->wake_all (e->copiers->opaque);
}

void
engine_wake_flusher (struct engine *e)
{
  if (e->copiers != NULL)
    e->copiers->wake_flusher (e->copiers->opaque);
}

/* ---- settings ---- */

void
engine_set_rate (struct engine *e, uint64_t bytes_per_s)
{
  pthread_mutex_lock (&e->lock);
  rate_set (&e->allowance.rate, bytes_per_s, clock_ns ());
  engine_wake_all (e);
  pthread_mutex_unlock (&e->lock);
}

void
engine_set_paused (struct engine *e, bool paused)
{
  pthread_mutex_lock (&e->lock);
  e->paused = paused;
  if (paused)
    urgent_queue_refuse (&e->urgent, e->region);
  engine_wake_all (e);
  pthread_mutex_unlock (&e->lock);
}

void
engine_set_hurry (struct engine *e, bool hurry, bool ignore_rate)
{
  pthread_mutex_lock (&e->lock);
  e->hurry = hurry;
  e->allowance.off = hurry && ignore_rate;
  engine_wake_all (e);
  pthread_mutex_unlock (&e->lock);
}

bool
engine_copies_in_vain (struct engine *e)
{
  pthread_mutex_lock (&e->lock);
  bool any = pass_busy_dirty (&e->pass, e->region);
  pthread_mutex_unlock (&e->lock);
  return any;
}

void
engine_set_watched (struct engine *e, bool on)
{
  pthread_mutex_lock (&e->lock);
  e->watched = on;
  engine_wake_all (e);
  pthread_mutex_unlock (&e->lock);
}

void
engine_set_counting (struct engine *e, bool counting)
{
  pthread_mutex_lock (&e->lock);
  e->counting = counting;
  pthread_mutex_unlock (&e->lock);
}

/* ---- figures ---- */

bool
engine_clean (struct engine *e)
{
  pthread_mutex_lock (&e->lock);
  const struct region *r = e->region;
  bool clean = bitmap_count (r, REGION_DIRTY) == 0 && e->pass.nr_busy == 0
               && bitmap_count (r, REGION_CLAIMED_A) == 0 && bitmap_count (r, REGION_CLAIMED_B) == 0
               && bitmap_count (r, REGION_QUARANTINE) == 0;
  pthread_mutex_unlock (&e->lock);
  return clean;
}

bool
engine_was_idle (struct engine *e)
{
  return atomic_exchange (&e->idle_seen, false) || atomic_load (&e->idle);
}

bool
engine_asleep (struct engine *e)
{
  pthread_mutex_lock (&e->lock);
  bool caught_up = !e->catchup.on || catchup_synchronised (&e->catchup, e->region);
  bool asleep = (e->asleep || e->copiers == NULL) && caught_up && e->flush == FLUSH_IDLE
                && !e->flush_wanted && e->unflushed_bytes == 0;
  pthread_mutex_unlock (&e->lock);
  return asleep;
}

uint64_t
engine_rtt_ns (struct engine *e)
{
  uint64_t rtt = atomic_load (&e->rtt_ns), flush = atomic_load (&e->flush_ns);
  return flush != 0 && flush < rtt ? flush : rtt;
}

uint64_t
engine_write_ns (struct engine *e)
{
  pthread_mutex_lock (&e->lock);
  uint64_t write = latency_ns (&e->latency);
  pthread_mutex_unlock (&e->lock);
  uint64_t rtt = engine_rtt_ns (e);
  return write > rtt ? write : rtt;
}

uint64_t
engine_left_bytes (struct engine *e)
{
  const struct region *r = e->region;
  uint64_t dirty = bitmap_count (r, REGION_DIRTY) << r->geo.block_shift;
  if (dirty > r->geo.disk_size)
    dirty = r->geo.disk_size;
  return dirty + atomic_load (&e->counters.in_copy_bytes);
}

uint64_t
engine_busy_ns (struct engine *e)
{
  pthread_mutex_lock (&e->lock);
  uint64_t ns = e->busy_ns + (e->pass.nr_busy > 0 ? clock_ns () - e->busy_since_ns : 0);
  pthread_mutex_unlock (&e->lock);
  return ns;
}

void
engine_progress (struct engine *e)
{
  atomic_fetch_add (&e->region->hdr->progress, 1);
}

/* ---- sessions ---- */

bool
engine_unreadable (struct engine *e, struct unreadable *u)
{
  pthread_mutex_lock (&e->lock);
  bool any = e->pass.unreadable.since_ns != 0;
  if (any)
    *u = e->pass.unreadable;
  pthread_mutex_unlock (&e->lock);
  return any;
}

void
engine_session_begin (struct engine *e, const struct engine_copiers *copiers)
{
  pthread_mutex_lock (&e->lock);
  e->copiers = copiers;
  e->last_flush_ns = clock_ns ();
  e->flushes_before = atomic_load (&e->counters.flushes);
  e->grace_end_ns = e->last_flush_ns + e->options.grace_ns;
  pthread_mutex_unlock (&e->lock);
}

void
engine_session_over (struct engine *e)
{
  pthread_mutex_lock (&e->lock);
  e->copiers = NULL;
  claims_revoke (e->region);
  if (e->pass.nr_busy > 0)
    e->busy_ns += clock_ns () - e->busy_since_ns;
  e->pass.nr_busy = 0;
  e->asleep = false;
  e->pass.hint_pending = false;
  pass_restart (&e->pass);
  engine_urgent_lost (e);
  e->flush = FLUSH_IDLE;
  e->flush_wanted = false;
  e->unflushed_bytes = 0;
  engine_drop_samples (e, 0, 0, UINT64_MAX);
  engine_drop_samples (e, 1, 0, UINT64_MAX);
  for (unsigned set = 0; set < 2; set++) /* what was sent is in quarantine now */
    atomic_store (&e->sent_in[set], false);
  atomic_store (&e->counters.in_copy_bytes, 0);
  atomic_store (&e->counters.writing_bytes, 0);
  e->latency = (struct latency){ .low_end_ns = 0 }; /* the next one may go another way */
  e->neighbours = (struct neighbours){ .long_rate = 0 };
  pthread_mutex_unlock (&e->lock);
}
