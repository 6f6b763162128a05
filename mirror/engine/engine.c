/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The copy engine's books: what to copy next, claims, counters.  See engine.h; flush.c has the
 * flush turns, urgent.c what guest writes wait for.
 */

#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "mirror/engine/internal.h"
#include "mirror/engine/session.h"

#define NS_PER_MS UINT64_C (1000000)
#define IDLE_NS (5 * NS_PER_MS)
#define HURRY_NS (NS_PER_MS / 2)
#define PAUSED_NS (100 * NS_PER_MS)
#define LIMITED_NS (250 * NS_PER_MS)
#define MAX_ZERO_BYTES (UINT64_C (1) << 30)
#define MAX_ASK_BYTES (UINT64_C (2) << 30)
#define READ_ATTEMPTS 3
#define PASS_PAUSE_NS (50 * NS_PER_MS) /* between two passes with little to do */
#define PASS_PAUSE_BYTES (UINT64_C (4) << 20)

uint64_t
now_ns (void)
{
  struct timespec ts;
  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

int
engine_init (struct engine *e, struct region *region, struct endpoint *source,
             const struct engine_options *options, char **error)
{
  uint32_t max = endpoint_info (source)->max_request;

  memset (e, 0, sizeof *e);
  if (max < region->geo.block_size) {
    if (asprintf (error,
                  "%s takes requests of at most %" PRIu32 " bytes, but blocks of %" PRIu32
                  " bytes are tracked: choose a smaller block size (mirror-block-size=)",
                  endpoint_name (source), max, region->geo.block_size)
        == -1)
      *error = NULL;
    return -1;
  }
  e->notify_fd = fd_wake_new ();
  if (e->notify_fd == -1) {
    if (asprintf (error, "eventfd: %s", strerror (errno)) == -1)
      *error = NULL;
    return -1;
  }
  e->region = region;
  e->source = source;
  e->options = *options;
  if (e->options.grace_ns == 0)
    e->options.grace_ns = ENGINE_GRACE_NS;
  e->request_blocks
      = (max < ENGINE_REQUEST_BYTES ? max : ENGINE_REQUEST_BYTES) >> region->geo.block_shift;
  if (e->request_blocks == 0)
    e->request_blocks = 1;
  pthread_mutex_init (&e->lock, NULL);
  pass_init (&e->pass);
  rate_init (&e->rate, options->rate_limit, now_ns ());
  e->counting = true;
  e->last_flush_ns = now_ns ();
  e->unanswered = !bitmap_empty (region, REGION_QUARANTINE);
  return 0;
}

void
engine_destroy (struct engine *e)
{
  assert (e->session == NULL);
  free (e->fatal);
  close (e->notify_fd);
  pthread_mutex_destroy (&e->lock);
}

void
engine_notify (struct engine *e)
{
  fd_wake (e->notify_fd);
}

/* ---- settings ---- */

void
engine_set_rate (struct engine *e, uint64_t bytes_per_s)
{
  pthread_mutex_lock (&e->lock);
  rate_set (&e->rate, bytes_per_s, now_ns ());
  session_kick (e->session);
  pthread_mutex_unlock (&e->lock);
}

void
engine_set_paused (struct engine *e, bool paused)
{
  pthread_mutex_lock (&e->lock);
  e->paused = paused;
  if (paused)
    urgent_queue_refuse (&e->urgent, e->region);
  session_kick (e->session);
  pthread_mutex_unlock (&e->lock);
}

void
engine_set_hurry (struct engine *e, bool hurry, bool ignore_rate)
{
  pthread_mutex_lock (&e->lock);
  e->hurry = hurry;
  e->rate_off = hurry && ignore_rate;
  session_kick (e->session);
  pthread_mutex_unlock (&e->lock);
}

void
engine_set_counting (struct engine *e, bool counting)
{
  pthread_mutex_lock (&e->lock);
  e->counting = counting;
  pthread_mutex_unlock (&e->lock);
}

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

uint64_t
engine_rtt_ns (struct engine *e)
{
  uint64_t rtt = atomic_load (&e->rtt_ns), flush = atomic_load (&e->flush_ns);
  return flush != 0 && flush < rtt ? flush : rtt;
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
  uint64_t ns = e->busy_ns + (e->pass.nr_busy > 0 ? now_ns () - e->busy_since_ns : 0);
  pthread_mutex_unlock (&e->lock);
  return ns;
}

void
engine_fatal (struct engine *e, const char *why)
{
  pthread_mutex_lock (&e->lock);
  if (e->fatal == NULL)
    e->fatal = strdup (why);
  pthread_mutex_unlock (&e->lock);
  engine_notify (e);
}

void
engine_session_over (struct engine *e)
{
  pthread_mutex_lock (&e->lock);
  claims_revoke (e->region);
  if (e->pass.nr_busy > 0)
    e->busy_ns += now_ns () - e->busy_since_ns;
  e->pass.nr_busy = 0;
  e->pass.hint_pending = false;
  pass_restart (&e->pass);
  engine_urgent_lost (e);
  e->flush = FLUSH_IDLE;
  e->flush_wanted = false;
  e->unflushed_bytes = 0;
  engine_drop_samples (e, 0, 0, UINT64_MAX);
  engine_drop_samples (e, 1, 0, UINT64_MAX);
  atomic_store (&e->may_skip, false);
  atomic_store (&e->counters.in_copy_bytes, 0);
  pthread_mutex_unlock (&e->lock);
}

/* ---- passes ---- */

static uint64_t
dirty_bytes (const struct engine *e)
{
  return bitmap_count (e->region, REGION_DIRTY) << e->region->geo.block_shift;
}

static void
pass_begin (struct engine *e)
{
  e->pass_open = true;
  e->pass_number++;
  e->pass_now = (struct engine_pass){
    .number = e->pass_number,
    .left_before = dirty_bytes (e),
    .sent_bytes = atomic_load (&e->region->hdr->sent_bytes),
    .zero_bytes = atomic_load (&e->region->hdr->zero_bytes),
    .start_ns = now_ns (),
  };
}

/* The cursor has come to the end of the disk.  While a long write of zeroes is still out, the pass
 * counts as going on: what is copied meanwhile are the guest's latest few writes. */
static void
wrap (struct engine *e, uint64_t now)
{
  catchup_wrapped (&e->catchup, e->region, &e->pass);
  pass_restart (&e->pass);
  atomic_store (&e->may_skip, false);
  e->wrapped_ns = now;
  atomic_fetch_add (&e->wraps, 1);
  engine_notify (e);
  if (!e->pass_open || atomic_load (&e->counters.in_copy_bytes) > ENGINE_BUFFER_BYTES)
    return;
  e->pass_open = false;
  struct engine_pass p = e->pass_now;
  p.left_after = dirty_bytes (e);
  p.sent_bytes = atomic_load (&e->region->hdr->sent_bytes) - p.sent_bytes;
  p.zero_bytes = atomic_load (&e->region->hdr->zero_bytes) - p.zero_bytes;
  p.end_ns = now_ns ();
  e->pass_log[e->nr_passes++ % ENGINE_MAX_PASS_LOG] = p;
}

/* ---- handing out work ---- */

/* Take a run for copying: busy first (R6), then counted and claimed (R4). */
static bool
take (struct engine *e, struct engine_task *t)
{
  if (!pass_busy_add (&e->pass, t->first, t->count))
    return false;
  if (e->pass.nr_busy == 1)
    e->busy_since_ns = now_ns ();
  t->set = claim_enter (e->region);
  engine_drop_samples (e, t->set, t->first, t->count);
  claim_run (e->region, t->set, t->first, t->count);
  atomic_fetch_add (&e->counters.in_copy_bytes, region_bytes (&e->region->geo, t->first, t->count));
  if (!t->urgent)
    e->pass.cursor = t->first + t->count;
  if (e->catchup.on)
    engine_urgent_taken (e, t);
  return true;
}

static enum engine_work
nothing (struct engine *e, struct engine_task *t, uint64_t wait)
{
  t->wait_ns = wait;
  atomic_store (&e->idle_seen, true);
  return WORK_NONE;
}

/* Does making blocks zero send as many bytes as writing data would?  The bandwidth limit counts it
 * then. */
static bool
zeroes_cost (const struct engine *e)
{
  return e->session != NULL && !endpoint_info (e->session->dest)->can_zero;
}

static enum pass_kind
look_from_cursor (struct engine *e, struct pass_options *o, struct engine_task *t)
{
  if (e->pass.cursor == 0)
    catchup_begin (&e->catchup, e->region, &e->pass);
  o->wait_number = catchup_wait_number (&e->catchup);
  return pass_next (&e->pass, e->region, o, &t->first, &t->count);
}

/* May a request for data go now?  Else T says for how long the bandwidth limit lets it wait. */
static bool
rate_allows (struct engine *e, struct engine_task *t, uint64_t now)
{
  t->wait_ns = e->rate_off ? 0 : rate_wait (&e->rate, now);
  t->limited = t->wait_ns > 0;
  if (!t->limited)
    return true;
  /* Nothing is wrong: who waits for us, or is throttled because of us, is to go on so. */
  uint64_t most = e->catchup.on ? e->write_delay_ns / 4 : LIMITED_NS;
  if (e->pass.nr_busy == 0)
    engine_progress (e);
  if (t->wait_ns > most)
    t->wait_ns = most;
  return false;
}

static void
pay (struct engine *e, const struct engine_task *t)
{
  if (!e->rate_off)
    rate_take (&e->rate, region_bytes (&e->region->geo, t->first, t->count));
}

/* What a pass copies next. */
static enum engine_work
background (struct engine *e, bool can_verify, struct engine_task *t, uint64_t now)
{
  const uint64_t idle = e->hurry ? HURRY_NS : IDLE_NS, max = engine_request_blocks (e);
  bool cost = zeroes_cost (e);

  if (e->pass.hint_pending)
    return nothing (e, t, idle);
  if (bitmap_count (e->region, REGION_DIRTY) == 0) {
    /* The counter may be one too low while a guest's thread marks: that must not end a pass that is
     * to be believed. */
    if (e->pass.cursor > 0 && e->pass.nr_busy == 0
        && (!e->catchup.on || bitmap_empty (e->region, REGION_DIRTY)))
      wrap (e, now);
    return nothing (e, t, idle);
  }
  /* Let a few writes of the guest gather before going round again. */
  if (e->pass.cursor == 0 && !e->hurry && now - e->wrapped_ns < PASS_PAUSE_NS
      && dirty_bytes (e) < PASS_PAUSE_BYTES)
    return nothing (e, t, idle);

  struct pass_options o = {
    .max_data = max,
    .max_zero = cost ? max : MAX_ZERO_BYTES >> e->region->geo.block_shift,
    .max_ask = MAX_ASK_BYTES >> e->region->geo.block_shift,
    .min_ask = endpoint_info (e->source)->can_status ? e->request_blocks : 0,
    .quarantine_ready = e->grace_end_ns != 0 && now >= e->grace_end_ns,
    .verify_full = !can_verify,
  };
  /* All that is dirty is in quarantine, which may be the whole disk: do not go over it for nothing.
   */
  if (!o.quarantine_ready
      && bitmap_count (e->region, REGION_DIRTY) <= bitmap_count (e->region, REGION_QUARANTINE))
    return nothing (e, t, idle);
  enum pass_kind kind = look_from_cursor (e, &o, t);
  if (kind == PASS_END && e->pass.cursor > 0) {
    wrap (e, now);
    kind = look_from_cursor (e, &o, t);
  }
  if (kind == PASS_END || kind == PASS_WAIT)
    return nothing (e, t, idle);
  /* While only quarantine keeps the job from being ready, tiny passes over fresh dirt say nothing.
   */
  if (!e->pass_open && e->counting
      && (e->pass_number == 0 || bitmap_count (e->region, REGION_QUARANTINE) == 0))
    pass_begin (e);

  if (kind == PASS_ASK) {
    e->pass.hint_pending = true;
    return WORK_ASK;
  }
  if (kind == PASS_ZERO && !cost)
    return take (e, t) ? WORK_ZERO : nothing (e, t, idle);
  if (!rate_allows (e, t, now))
    return WORK_NONE;
  if (!take (e, t))
    return nothing (e, t, idle);
  pay (e, t);
  return kind == PASS_ZERO ? WORK_ZERO : kind == PASS_VERIFY ? WORK_VERIFY : WORK_DATA;
}

/* What a guest's write waits for. */
static enum engine_work
urgent (struct engine *e, struct engine_task *t, uint64_t now)
{
  t->wait_ns = IDLE_NS;
  if (!engine_urgent_next (e, t) || !rate_allows (e, t, now))
    return WORK_NONE;
  t->urgent = true;
  if (take (e, t)) {
    pay (e, t);
    return WORK_DATA;
  }
  t->urgent = false;
  return WORK_NONE;
}

/* Urgent work where it is its turn, then the background, then urgent work out of turn if that has
 * nothing to do. */
static enum engine_work
next_locked (struct engine *e, const struct engine_room *room, struct engine_task *t, uint64_t now)
{
  enum engine_work w = WORK_NONE;

  engine_urgent_gather (e);
  bool turn = room->urgent && engine_urgent_turn (e);
  if (turn)
    w = urgent (e, t, now);
  if (w == WORK_NONE && room->background) {
    w = background (e, room->verify, t, now);
    if (w == WORK_NONE && !t->limited && !turn && room->urgent && e->urgent.nr > 0)
      w = urgent (e, t, now);
  }
  return w;
}

enum engine_work
engine_next (struct engine *e, const struct engine_room *room, struct engine_task *t)
{
  uint64_t now = now_ns ();
  enum engine_work w;

  *t = (struct engine_task){ .wait_ns = PAUSED_NS };
  pthread_mutex_lock (&e->lock);
  if (engine_flush_step (e, now)) {
    if (room->flusher) {
      e->flush = FLUSH_SENT;
      e->flush_start_ns = now;
      e->flushes_sent++;
      pthread_mutex_unlock (&e->lock);
      return WORK_FLUSH;
    }
    session_kick_flusher (e->session);
  }
  w = e->paused ? nothing (e, t, PAUSED_NS) : next_locked (e, room, t, now);
  pthread_mutex_unlock (&e->lock);
  return w;
}

void
engine_hints (struct engine *e, const struct engine_task *t, int err,
              const struct endpoint_extent *extents, unsigned nr)
{
  const struct region_geometry *geo = &e->region->geo;
  pthread_mutex_lock (&e->lock);
  pass_set_hints (&e->pass, t->first << geo->block_shift, region_bytes (geo, t->first, t->count),
                  extents, err ? 0 : nr);
  session_kick (e->session);
  pthread_mutex_unlock (&e->lock);
}

/* ---- ends of tasks ---- */

/* Locked.  The task's blocks are claimed in its set, or dirty again. */
static void
leave (struct engine *e, const struct engine_task *t)
{
  pass_busy_remove (&e->pass, t->first);
  if (e->catchup.on)
    engine_urgent_settle (e, t);
  if (e->pass.nr_busy == 0)
    e->busy_ns += now_ns () - e->busy_since_ns;
  atomic_fetch_sub (&e->counters.in_copy_bytes, region_bytes (&e->region->geo, t->first, t->count));
  if (claim_leave (e->region, t->set) && e->flush == FLUSH_DRAIN && t->set == e->flush_set)
    session_kick_flusher (e->session);
  if (e->hurry && e->pass.nr_busy == 0)
    engine_notify (e);
}

void
engine_task_done (struct engine *e, const struct engine_task *t, const void *data, uint64_t length)
{
  pthread_mutex_lock (&e->lock);
  e->unflushed_bytes += region_bytes (&e->region->geo, t->first, t->count);
  if (length > 0)
    engine_propose_sample (e, t, data, length);
  leave (e, t);
  pthread_mutex_unlock (&e->lock);
}

/* Locked.  Note one more failed read of the run at FIRST; true when it is time to give up. */
static bool
count_bad (struct engine *e, uint64_t first)
{
  for (unsigned i = 0; i < e->nr_bad; i++)
    if (e->bad[i].first == first)
      return ++e->bad[i].count >= READ_ATTEMPTS;
  if (e->nr_bad == ENGINE_MAX_BAD)
    return true;
  e->bad[e->nr_bad++] = (struct engine_bad){ first, 1 };
  return false;
}

void
engine_task_unread (struct engine *e, const struct engine_task *t, int err)
{
  char *why = NULL;

  pthread_mutex_lock (&e->lock);
  claim_give_back (e->region, t->set, t->first, t->count);
  leave (e, t);
  if (err != ESHUTDOWN && count_bad (e, t->first)
      && asprintf (&why, "%s: cannot read %" PRIu64 " bytes at offset %" PRIu64 ": %s",
                   endpoint_name (e->source), region_bytes (&e->region->geo, t->first, t->count),
                   t->first << e->region->geo.block_shift, strerror (err))
             == -1)
    why = NULL;
  pthread_mutex_unlock (&e->lock);
  if (why)
    engine_fatal (e, why);
  free (why);
}

void
engine_refund (struct engine *e, uint64_t bytes)
{
  pthread_mutex_lock (&e->lock);
  rate_give (&e->rate, bytes);
  pthread_mutex_unlock (&e->lock);
}
