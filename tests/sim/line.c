/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The model of a line.  See line.h.
 */

#include "config.h"

#include <math.h>
#include <stdlib.h>

#include "base/clock.h"
#include "mirror/engine/engine.h"
#include "mirror/engine/latency.h"
#include "mirror/engine/neighbours.h"
#include "mirror/engine/slot.h"
#include "mirror/engine/window.h"
#include "mirror/job/estimate.h"
#include "tests/sim/line.h"

#define BLOCK 4096.0
#define SAMPLE_S 0.1
#define MAX_THREADS 64
#define MAX_FLIGHT (ENGINE_SHORT_SLOTS + ENGINE_MAX_DEPTH)
#define NEVER 1e30

struct flying {
  double sent, answered; /* seconds */
  double bytes, queued, delivered, in_flight;
};

struct line_sim {
  const struct line_model *m;
  struct slots_division slots;
  struct window_lowest lowest[2];
  struct windows windows;
  struct window_load load;
  struct latency latency;
  struct neighbours neighbours;
  struct estimate estimate;
  double now, free_at, thread_free[MAX_THREADS];
  struct flying flying[MAX_FLIGHT];
  unsigned nr_flying;
  double flying_bytes, acked, disk_left;
  double dirtied, waiting; /* bytes; WAITING: of the guest's, not sent yet */
  unsigned scattered;      /* dirty blocks that line_scattered() has not sent yet */
  double density, sent;
  bool join;
  double next_write, next_sample, busy_s;
  bool had_nothing; /* since the last sample */
  bool stopped;     /* the guest */
  uint64_t random;
};

static double
random_unit (struct line_sim *s)
{
  s->random ^= s->random >> 12;
  s->random ^= s->random << 25;
  s->random ^= s->random >> 27;
  return (double)(s->random * UINT64_C (2685821657736338717) >> 11) / 9007199254740992.0;
}

double
line_alone_ms (const struct line_model *m, double bytes)
{
  return m->rtt_ms + m->service_ms + bytes / m->rate * 1000;
}

/* When a request that is ready to go at T has left. */
static double
leaves (struct line_sim *s, double t, double bytes)
{
  const struct line_model *m = s->m;
  double start = t > s->free_at ? t : s->free_at;

  if (m->stall_every_s > 0) {
    double end = start - (double)(uint64_t)(start / m->stall_every_s) * m->stall_every_s;
    if (end < m->stall_ms / 1000 && start > m->stall_every_s)
      start += m->stall_ms / 1000 - end;
  }
  s->free_at = start + bytes / m->rate;
  return s->free_at;
}

static void
send_request (struct line_sim *s, double bytes)
{
  const struct line_model *m = s->m;
  double arrives = leaves (s, s->now, bytes) + m->rtt_ms / 2000;
  unsigned best = 0;

  for (unsigned i = 1; i < m->threads; i++)
    if (s->thread_free[i] < s->thread_free[best])
      best = i;
  double start = arrives > s->thread_free[best] ? arrives : s->thread_free[best];
  s->thread_free[best] = start + m->service_ms / 1000 * (0.5 + random_unit (s));
  windows_add (&s->windows, &s->load, (uint64_t)bytes);
  s->flying[s->nr_flying++] = (struct flying){
    .sent = s->now,
    .answered = s->thread_free[best] + m->rtt_ms / 2000,
    .bytes = bytes,
    .queued = s->flying_bytes + bytes,
    .delivered = s->acked,
    .in_flight = windows_in_flight (&s->windows, &s->load, (uint64_t)bytes),
  };
  s->flying_bytes += bytes;
  s->sent += bytes;
}

/* How many clean blocks follow a dirty one? */
static double
random_gap (struct line_sim *s)
{
  return s->density < 1 ? floor (log (1 - random_unit (s)) / log (1 - s->density)) : 0;
}

/* The next scattered blocks that go as one request, as pass.c takes them. */
static void
send_scattered (struct line_sim *s)
{
  uint64_t now_ns = (uint64_t)(s->now * NS_PER_S);
  double most = s->join ? (double)neighbours_gap (&s->neighbours, now_ns) / BLOCK : 0;
  double dirty = 1, clean = 0;

  while (--s->scattered > 0) {
    double gap = random_gap (s);
    if (gap > most || clean + gap > dirty
        || (dirty + clean + gap + 1) * BLOCK > ENGINE_REQUEST_BYTES)
      break;
    clean += gap;
    dirty++;
  }
  send_request (s, (dirty + clean) * BLOCK);
}

/* Send what the window lets go. */
static void
fill (struct line_sim *s)
{
  while (windows_filled (&s->windows, &s->load) < 1 && s->nr_flying < MAX_FLIGHT) {
    if (s->disk_left > 0 && s->nr_flying < s->slots.nr_long) {
      double n = s->disk_left < ENGINE_REQUEST_BYTES ? s->disk_left : ENGINE_REQUEST_BYTES;
      s->disk_left -= n;
      send_request (s, n);
    } else if (s->disk_left <= 0 && s->waiting >= BLOCK) {
      s->waiting -= BLOCK;
      send_request (s, BLOCK);
    } else if (s->disk_left <= 0 && s->scattered > 0)
      send_scattered (s);
    else
      break;
  }
  if (s->disk_left <= 0 && s->waiting < BLOCK)
    s->had_nothing = true;
}

static void
take_reply (struct line_sim *s, unsigned i)
{
  struct flying f = s->flying[i];
  uint64_t now_ns = (uint64_t)(s->now * NS_PER_S), took = (uint64_t)((s->now - f.sent) * NS_PER_S);

  s->acked += f.bytes;
  s->flying_bytes -= f.bytes;
  const struct latency_reply r = {
    .took_ns = took,
    .bytes = (uint64_t)f.bytes,
    .queued = (uint64_t)f.queued,
    .delivered = (uint64_t)(s->acked - f.delivered),
    .pressed = windows_filled (&s->windows, &s->load) >= 1,
    .doubling = windows_change (&s->windows, (uint64_t)f.bytes),
  };
  latency_add (&s->latency, &r, now_ns);
  neighbours_reply (&s->neighbours, &r, now_ns);
  windows_reply (&s->windows, (uint64_t)f.bytes, took, f.in_flight, now_ns);
  windows_remove (&s->windows, &s->load, (uint64_t)f.bytes);
  s->flying[i] = s->flying[--s->nr_flying];
}

static void
take_sample (struct line_sim *s)
{
  const struct estimate_sample es = {
    .now_ns = (uint64_t)(s->now * NS_PER_S),
    .acked_bytes = (uint64_t)s->acked,
    .dirtied_bytes = (uint64_t)s->dirtied,
    .left_bytes = (uint64_t)(s->disk_left + s->waiting + s->flying_bytes),
    .line_bytes = (uint64_t)s->flying_bytes,
    .busy_ns = (uint64_t)(s->busy_s * NS_PER_S),
    .queue_full = !s->had_nothing,
  };
  uint64_t rtt = (uint64_t)(s->m->rtt_ms * NS_PER_MS);
  const struct estimate_costs costs
      = { .flush_ns = rtt, .rtt_ns = rtt, .write_ns = latency_ns (&s->latency) };

  s->had_nothing = false;
  estimate_add (&s->estimate, &es, &costs, s->m->max_downtime_ms);
  s->next_sample += SAMPLE_S;
}

/* Go on to the next event: a reply, a write of the guest, or a sample. */
static void
step (struct line_sim *s)
{
  unsigned first = MAX_FLIGHT;
  double at = s->next_sample < s->next_write ? s->next_sample : s->next_write;

  for (unsigned i = 0; i < s->nr_flying; i++)
    if (s->flying[i].answered <= at) {
      at = s->flying[i].answered;
      first = i;
    }
  if (s->nr_flying > 0)
    s->busy_s += at - s->now;
  s->now = at;
  if (first < MAX_FLIGHT)
    take_reply (s, first);
  else if (at == s->next_sample)
    take_sample (s);
  else {
    s->dirtied += BLOCK;
    /* Ahead of the first pass a write costs nothing. */
    s->waiting += s->disk_left > 0 ? 0 : BLOCK;
    s->next_write += 2 * random_unit (s) / s->m->writes;
  }
  fill (s);
}

static void
first_pass (struct line_sim *s, struct line_result *r)
{
  double half = (double)s->m->disk_bytes / 2, at = 0, acked = 0, flying_s = 0;

  while (s->disk_left > 0 && s->now < 3600) {
    double before = s->now;
    unsigned flying = s->nr_flying;
    step (s);
    if (s->disk_left > half)
      continue;
    if (at == 0) {
      at = s->now;
      acked = s->acked;
    } else
      flying_s += (s->now - before) * flying;
  }
  r->pass_rate = (s->acked - acked) / (s->now - at);
  r->pass_told_ms = (double)latency_ns (&s->latency) / NS_PER_MS;
  /* By Little's law, requests in flight by requests a second. */
  r->pass_latency_ms = flying_s / (s->now - at) / (r->pass_rate / ENGINE_REQUEST_BYTES) * 1000;
}

static struct line_sim *
begin (const struct line_model *m)
{
  struct line_sim *s = calloc (1, sizeof *s);

  if (s == NULL)
    abort ();
  s->m = m;
  s->random = m->seed * UINT64_C (7919) + 12345;
  s->disk_left = (double)m->disk_bytes;
  s->next_sample = SAMPLE_S;
  s->next_write = m->writes > 0 ? 0 : NEVER;
  s->slots = slots_of_session (1, (uint32_t)BLOCK, ENGINE_SYNC_FULL);
  windows_init (&s->windows, s->lowest, ENGINE_REQUEST_BYTES, ENGINE_SHORT_BYTES, ENGINE_DEPTH,
                s->slots.nr_long, s->slots.nr_short);
  estimate_init (&s->estimate);
  estimate_begin (&s->estimate, (struct estimate_sample){ .left_bytes = m->disk_bytes });
  fill (s);
  return s;
}

struct line_result
line_run (const struct line_model *m)
{
  struct line_result r = { .ready = false };
  struct line_sim *s = begin (m);

  first_pass (s, &r);
  for (double end = s->now + m->after_s; s->now < end;)
    step (s);
  r.behind_bytes = s->waiting;
  r.latency_ms = (double)latency_ns (&s->latency) / NS_PER_MS;
  r.expected_ms = s->estimate.expected_pause_ms;
  r.ready = s->estimate.ready;
  /* The guest is held, the rest is copied, and flushed. */
  double held = s->now;
  s->next_write = NEVER;
  while (s->nr_flying > 0)
    step (s);
  r.pause_ms = (s->now - held) * 1000 + m->rtt_ms;
  free (s);
  return r;
}

struct line_pass
line_scattered (const struct line_model *m, double density, unsigned nr_dirty, bool join)
{
  struct line_sim *s = begin (m);

  s->next_write = NEVER;
  while (s->disk_left > 0 || s->nr_flying > 0)
    step (s);
  double began = s->now;
  s->sent = 0;
  s->scattered = nr_dirty;
  s->density = density;
  s->join = join;
  fill (s);
  while (s->nr_flying > 0)
    step (s);
  struct line_pass p = { .seconds = s->now - began, .sent_bytes = s->sent };
  free (s);
  return p;
}

double
line_change (const struct line_model *m, unsigned nr_dirty)
{
  struct line_sim *s = begin (m);

  s->next_write = NEVER;
  while (s->disk_left > 0)
    step (s);
  double began = s->now, bytes = s->flying_bytes + nr_dirty * BLOCK;
  s->scattered = nr_dirty;
  s->density = 1e-9;
  fill (s);
  while (s->nr_flying > 0)
    step (s);
  double part = (bytes / m->rate + line_alone_ms (m, BLOCK) / 1000) / (s->now - began);
  free (s);
  return part;
}
