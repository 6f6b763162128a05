/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Reading an endpoint to see how fast it is.  See read-test.h.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/endpoint/blocking.h"
#include "mirror/endpoint/buffers.h"
#include "mirror/engine/engine.h"
#include "mirror/engine/rate.h"
#include "mirror/job/read-test.h"

#define REQUEST_BYTES (256u * 1024)
#define DEPTH 8
#define RTT_READS 5
#define MAX_STATUS_BYTES (UINT64_C (1) << 30)
#define MAX_RUNS 4096
#define MIN_RATE_NS NS_PER_MS

struct run {
  uint64_t offset, length;
};

struct work;

struct request {
  struct work *w;
  unsigned i;
  uint32_t length;
};

struct work {
  struct read_test *p;
  struct channel *ch;
  uint8_t *buffers;
  uint32_t request; /* bytes */
  uint32_t unit;    /* of offsets and lengths */
  bool busy[DEPTH];
  struct request requests[DEPTH];
  unsigned active;
  struct run *runs; /* of data */
  unsigned nr_runs;
  bool status_done;
  int error;
};

static void
fail (struct work *w, const char *what, int err)
{
  const char *why = channel_error (w->ch);
  if (w->p->error == NULL)
    text_error (&w->p->error, "%s: %s: %s", endpoint_name (w->p->ep), what,
                why ? why : strerror (err));
  w->error = err;
}

/* Wait for something, for at most WAIT_MS.  -1 when the channel is dead. */
static int
turn (struct work *w, int wait_ms)
{
  struct pollfd fds[CHANNEL_MAX_FDS];
  unsigned n = channel_pollfds (w->ch, fds, CHANNEL_MAX_FDS, &wait_ms);

  if ((poll (fds, n, wait_ms) == -1 && errno != EINTR) || channel_dispatch (w->ch, fds, n) == -1) {
    fail (w, "read", ESHUTDOWN);
    return -1;
  }
  return 0;
}

/* ---- what is data ---- */

static void
on_status (void *opaque, int err, const struct endpoint_extent *x, unsigned nr)
{
  struct work *w = opaque;
  struct read_test *p = w->p;

  w->status_done = true;
  if (err) {
    w->error = err;
    return;
  }
  for (unsigned i = 0; i < nr && p->mapped_bytes < p->size; i++) {
    uint64_t n = p->size - p->mapped_bytes < x[i].length ? p->size - p->mapped_bytes : x[i].length;
    if (!x[i].zero) {
      uint64_t first = (p->mapped_bytes + w->unit - 1) / w->unit * w->unit;
      uint64_t end = (p->mapped_bytes + n) / w->unit * w->unit;
      if (w->nr_runs < MAX_RUNS && first < end)
        w->runs[w->nr_runs++] = (struct run){ first, end - first };
      p->data_bytes += n;
    }
    p->mapped_bytes += n;
  }
}

static void
map (struct work *w)
{
  struct read_test *p = w->p;
  uint64_t now = clock_ns (), end = p->end_ns, until = now + (end > now ? (end - now) / 2 : 0);

  while (p->mapped_bytes < p->size && clock_ns () < until && p->end_ns != 0) {
    uint64_t n = p->size - p->mapped_bytes;
    w->status_done = false;
    if (channel_status (w->ch, n < MAX_STATUS_BYTES ? n : MAX_STATUS_BYTES, p->mapped_bytes,
                        on_status, w)
        == -1)
      break;
    while (!w->status_done)
      if (turn (w, 1000) == -1)
        return;
    if (w->error) { /* it cannot tell: everything counts as data */
      w->error = 0;
      break;
    }
  }
}

/* ---- reading ---- */

static void
on_read (void *opaque, int err)
{
  struct request *r = opaque;
  struct work *w = r->w;

  w->busy[r->i] = false;
  w->active--;
  if (err)
    fail (w, "read", err);
  else
    w->p->read_bytes += r->length;
}

static void
read_runs (struct work *w)
{
  struct read_test *p = w->p;
  struct rate_limit rate;
  unsigned run = 0;
  uint64_t at = 0, start = clock_ns ();

  rate_init (&rate, p->limit, start);
  while (!w->error) {
    uint64_t now = clock_ns (), wait = rate_wait (&rate, now);
    bool more = run < w->nr_runs && now < p->end_ns;
    if (!more && w->active == 0)
      break;
    while (more && wait == 0 && w->active < DEPTH && channel_room (w->ch) > 0) {
      unsigned i = 0;
      while (w->busy[i])
        i++;
      uint64_t n = w->runs[run].length - at;
      if (n > w->request)
        n = w->request;
      w->requests[i] = (struct request){ w, i, (uint32_t)n };
      if (channel_read (w->ch, w->buffers + (size_t)i * REQUEST_BYTES, (uint32_t)n,
                        w->runs[run].offset + at, on_read, &w->requests[i])
          == -1) {
        fail (w, "read", errno);
        break;
      }
      w->busy[i] = true;
      w->active++;
      rate_take (&rate, n);
      wait = rate_wait (&rate, now);
      at += n;
      if (at == w->runs[run].length) {
        run++;
        at = 0;
      }
      more = run < w->nr_runs;
    }
    int wait_ms = more && wait > 0 ? (int)(wait / NS_PER_MS) + 1 : 100;
    if (turn (w, wait_ms < 100 ? wait_ms : 100) == -1)
      break;
  }
  p->read_ns = clock_ns () - start;
}

static void
measure_rtt (struct work *w)
{
  struct read_test *p = w->p;
  const struct endpoint_info *info = endpoint_info (p->ep);
  uint64_t n = info->min_block > 512 ? info->min_block : 512;

  if (n > info->size || n > REQUEST_BYTES)
    return;
  for (unsigned i = 0; i < RTT_READS; i++) {
    uint64_t start = clock_ns ();
    int err = sync_read (w->ch, w->buffers, (uint32_t)n, 0);
    uint64_t took = clock_ns () - start;
    if (err) {
      fail (w, "read", err);
      return;
    }
    if (p->rtt_ns == 0 || took < p->rtt_ns)
      p->rtt_ns = took;
  }
}

static void *
read_test_thread (void *opaque)
{
  struct read_test *p = opaque;
  const struct endpoint_info *info = endpoint_info (p->ep);
  struct work w = { .p = p };

  w.ch = channel_open (p->ep, NULL, &p->error);
  if (w.ch == NULL)
    return NULL;
  w.request = info->max_request < REQUEST_BYTES ? info->max_request : REQUEST_BYTES;
  w.unit = info->min_block > 1 ? info->min_block : 1;
  w.request -= w.request % w.unit;
  w.runs = calloc (MAX_RUNS, sizeof *w.runs);
  w.buffers = buffers_new ((size_t)DEPTH * REQUEST_BYTES);
  if (w.runs == NULL || w.buffers == NULL)
    fail (&w, "read", ENOMEM);
  else if (p->size > 0 && w.request > 0) {
    measure_rtt (&w);
    if (!w.error && info->can_status)
      map (&w);
    if (w.nr_runs == 0)
      w.runs[w.nr_runs++] = (struct run){ 0, p->size - p->size % w.unit };
    if (!w.error && w.runs[0].length > 0)
      read_runs (&w);
  }
  channel_close (w.ch);
  free (w.buffers);
  free (w.runs);
  return NULL;
}

int
read_test_start (struct read_test *p)
{
  return pthread_create (&p->thread, NULL, read_test_thread, p);
}

void
read_test_join (struct read_test *p)
{
  pthread_join (p->thread, NULL);
}

double
read_test_rate (const struct read_test *p)
{
  if (p->read_bytes == 0)
    return 0;
  return (double)p->read_bytes * (double)NS_PER_S
         / (double)(p->read_ns > MIN_RATE_NS ? p->read_ns : MIN_RATE_NS);
}
