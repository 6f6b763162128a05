/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * mirror --dry-run: every check that comes before a job, some seconds of measuring, and a forecast.
 *
 * Nothing is written anywhere: the source and the destination are read, at the same time, and what
 * the guest changes meanwhile is counted in a region of our own (mirror-measure).  Reading tells at
 * most what writing can do: it takes the other direction of the line, and a destination that is all
 * holes has nothing to read.  So the bandwidth is an upper bound, and with it the forecast is the
 * best case.
 */

#include "config.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/engine/identity.h"
#include "mirror/job/check.h"
#include "mirror/job/forecast.h"
#include "mirror/job/internal.h"
#include "mirror/job/read-test.h"

#define POLL_NS (100 * NS_PER_MS)

struct measured {
  double seconds, dirty_rate;
  uint64_t dirty_bytes;
  struct read_test source, dest;
  uint64_t left_bytes; /* of the job that would be resumed; UINT64_MAX: there is none */
  bool have_dest;
  bool left_over;
  bool known; /* the destination was compared with the left over job's samples, and is the same */
};

/* A region in which the guest's changes are counted. */
static int
begin_measuring (struct job *j, struct measured *m)
{
  json_t *ret = NULL;
  char *error = NULL, *class_ = NULL;
  int fd = -1;

  struct control_call call = { .command = "mirror-measure",
                               .timeout_ms = JOB_CONTROL_TIMEOUT_MS,
                               .ret = &ret,
                               .got_fd = &fd,
                               .class_ = &class_ };
  if (control_client_call (j->control, &call, &error) == -1) {
    bool old = class_ && !strcmp (class_, "CommandNotFound");
    job_say (j, JOB_ERROR, "%s: %s", j->o->control,
             old ? "this server's filter is too old to measure what the guest writes" : error);
    text_free (class_);
    text_free (error);
    return -1;
  }
  m->left_over = json_is_true (json_object_get (ret, "job"));
  json_decref (ret);
  return job_take_region (j, fd);
}

/* The destination against the tracked block size, and against what a left over job wrote there. */
static int
check_destination (struct job *j, struct measured *m)
{
  const struct region_geometry *geo = &j->region->geo;
  struct endpoint *dest = j->dest.opened;
  char *error = NULL;
  uint64_t rtt;

  if (dest == NULL || endpoint_info (dest)->size < geo->disk_size)
    return 0; /* a file that would be created or extended */
  error = session_refusal (dest, geo->disk_size, geo->block_size, j->o->dest.allow_no_flush);
  if (error == NULL && m->left_over && job_resumes (j)) {
    struct channel *ch = channel_open (dest, NULL, &error);
    enum identity id = ch ? identity_check (ch, dest, j->region, &rtt, &error) : IDENTITY_UNKNOWN;
    if (ch)
      channel_close (ch);
    m->known = id == IDENTITY_SAME;
    if (id == IDENTITY_UNKNOWN) {
      job_say (j, JOB_ERROR, "destination: %s", error);
      text_free (error);
      j->result = JOB_DEST_FAILED;
      return -1;
    }
  }
  if (error != NULL) {
    job_say (j, JOB_ERROR, "refused: %s", error);
    text_free (error);
    j->result = JOB_REFUSED;
    return -1;
  }
  return 0;
}

static bool
interrupted (struct job *j, uint64_t until_ns)
{
  uint64_t now = clock_ns ();
  struct pollfd fd = { .fd = j->o->signal_fd, .events = POLLIN };

  if (until_ns <= now)
    return false;
  poll (&fd, 1, (int)((until_ns - now) / NS_PER_MS) + 1);
  if (atomic_load (j->o->signal) == JOB_SIGNAL_NONE)
    return false;
  j->result = JOB_CANCELLED;
  return true;
}

static int
join (struct job *j, struct read_test *p, enum job_result failure)
{
  read_test_join (p);
  if (p->error == NULL)
    return 0;
  job_say (j, JOB_ERROR, "%s: %s", failure == JOB_FAILED ? "source" : "destination", p->error);
  free (p->error);
  p->error = NULL;
  j->result = failure;
  return -1;
}

static int
measure (struct job *j, struct measured *m, uint64_t measure_ns)
{
  uint64_t size = j->region->geo.disk_size, start = clock_ns (), end = start + measure_ns;
  const _Atomic uint64_t *dirtied = &j->region->hdr->dirtied_total;
  uint64_t before = atomic_load (dirtied);
  int r = 0;

  m->have_dest = j->dest.opened != NULL && endpoint_info (j->dest.opened)->size > 0;
  m->source = (struct read_test){
    .ep = j->source, .size = size, .limit = j->o->rate_limit, .end_ns = end
  };
  m->dest = (struct read_test){
    .ep = j->dest.opened, .size = size, .limit = j->o->rate_limit, .end_ns = end
  };
  if (m->have_dest && endpoint_info (j->dest.opened)->size < size)
    m->dest.size = endpoint_info (j->dest.opened)->size;
  if (read_test_start (&m->source) != 0) {
    job_say (j, JOB_ERROR, "cannot start a thread");
    return -1;
  }
  bool dest_runs = m->have_dest && read_test_start (&m->dest) == 0;
  while (r == 0 && clock_ns () < end)
    if (interrupted (j, clock_ns () + POLL_NS < end ? clock_ns () + POLL_NS : end))
      r = -1;
  if (r == -1)
    m->source.end_ns = m->dest.end_ns = 0;
  uint64_t took = clock_ns () - start;
  m->dirty_bytes = (atomic_load (dirtied) - before) << j->region->geo.block_shift;
  m->seconds = (double)took / (double)NS_PER_S;
  m->dirty_rate = (double)m->dirty_bytes / m->seconds;
  if (join (j, &m->source, JOB_FAILED) == -1)
    r = -1;
  if (dest_runs && join (j, &m->dest, JOB_DEST_FAILED) == -1)
    r = -1;
  return r;
}

/* ---- the report ---- */

static double
smaller (double a, double b)
{
  return a <= 0 ? b : b <= 0 ? a : a < b ? a : b;
}

/* How much of the disk is to be sent: what was not asked about counts as data. */
static uint64_t
data_bytes (const struct measured *m, uint64_t size)
{
  uint64_t data = m->source.data_bytes + (size - m->source.mapped_bytes);
  return data < m->left_bytes ? data : m->left_bytes;
}

static void
set_number (json_t *o, const char *key, bool known, double v)
{
  json_object_set_new (o, key, known ? json_real (v) : json_null ());
}

static json_t *
make_report (struct job *j, const struct measured *m, double bandwidth, const struct forecast *f)
{
  struct converge c;
  char text[160];
  uint64_t size = j->region->geo.disk_size;
  const struct endpoint_info *dest = j->dest.opened ? endpoint_info (j->dest.opened) : NULL;

  converge_init (&c);
  c.verdict = f->converges ? CONVERGING_YES : CONVERGING_NO;
  c.far = converge_is_far ((double)m->dest.rtt_ns / (double)NS_PER_MS,
                           (double)j->gate.max_write_delay_ms);
  json_t *o = json_pack (
      "{s:b, s:s, s:s, s:I, s:I, s:I, s:b, s:f, s:I, s:I, s:s}", "dry-run", 1, "control",
      j->o->control, "target", j->o->dest.dest[j->o->dest.nr_dest > 1 ? 1 : 0], "size",
      (json_int_t)size, "block-size", (json_int_t)j->region->geo.block_size, "data-bytes",
      (json_int_t)data_bytes (m, size), "job-left-over", m->left_over, "measured-s", m->seconds,
      "bandwidth-limit", (json_int_t)j->o->rate_limit, "max-downtime-ms",
      (json_int_t)j->o->max_downtime_ms, "policy", job_policy_name (j->o->policy));
  json_object_set_new (o, "destination-is-the-same", m->known ? json_true () : json_null ());
  json_object_set_new (o, "destination-stays-thin",
                       dest ? json_boolean (dest->can_zero && dest->can_status) : json_null ());
  set_number (o, "source-read-rate", read_test_rate (&m->source) > 0, read_test_rate (&m->source));
  set_number (o, "destination-read-rate", m->have_dest && read_test_rate (&m->dest) > 0,
              read_test_rate (&m->dest));
  set_number (o, "round-trip-ms", m->dest.rtt_ns > 0, (double)m->dest.rtt_ns / (double)NS_PER_MS);
  set_number (o, "bandwidth", bandwidth > 0, bandwidth);
  set_number (o, "dirty-rate", true, m->dirty_rate);
  json_object_set_new (o, "converging", bandwidth > 0 ? json_boolean (f->converges) : json_null ());
  json_object_set_new (o, "policy-action",
                       bandwidth > 0 ? json_string (converge_action (
                           &c, j->o->policy, (double)j->gate.max_write_delay_ms, text, sizeof text))
                                     : json_null ());
  json_object_set_new (o, "ends", bandwidth > 0 ? json_boolean (f->ends) : json_null ());
  set_number (o, "eta-s", f->seconds >= 0, f->seconds);
  json_object_set_new (o, "passes", f->ends ? json_integer (f->passes) : json_null ());
  json_object_set_new (o, "sent-bytes",
                       f->ends ? json_integer ((json_int_t)f->sent_bytes) : json_null ());
  set_number (o, "expected-downtime-ms", f->pause_ms >= 0, f->pause_ms);
  return o;
}

static json_t *
make_forecast (struct job *j, const struct measured *m)
{
  uint64_t size = j->region->geo.disk_size;
  double bandwidth = smaller (
      smaller (read_test_rate (&m->source), m->have_dest ? read_test_rate (&m->dest) : 0),
      (double)j->o->rate_limit);
  const double trip_ms = (double)m->dest.rtt_ns / (double)NS_PER_MS;
  bool several = j->dest.opened != NULL && endpoint_info (j->dest.opened)->can_multi_conn;
  const struct endpoint *base = j->o->sync.mode == ENGINE_SYNC_BASE ? j->base_image : NULL;
  unsigned nr_copiers = several ? session_channels (j->o->max_connections, NULL, base) : 1;
  const struct forecast_input in = {
    .disk_bytes = size,
    .data_bytes = data_bytes (m, size),
    .bandwidth = bandwidth,
    .dirty_rate = m->dirty_rate,
    .policy = j->o->policy,
    .max_downtime_ms = (double)j->o->max_downtime_ms,
    /* One for the last blocks, and one for the flush at least. */
    .fixed_ms = 2 * trip_ms,
    .trip_ms = trip_ms,
    .scattered
    = forecast_scattered (j->region->geo.block_size, nr_copiers, j->o->sync.mode, trip_ms),
    .max_write_delay_ms = (double)j->gate.max_write_delay_ms,
  };
  const struct forecast f = forecast_make (&in);
  j->result = f.ends || bandwidth <= 0 ? JOB_COMPLETED : JOB_NOT_CONVERGED;
  return make_report (j, m, bandwidth, &f);
}

static void
clean_up (struct job *j)
{
  if (j->control)
    control_client_free (j->control);
  job_free (j);
}

enum job_result
job_dry_run (const struct job_options *o, uint64_t measure_ns, json_t **report)
{
  struct job *j = calloc (1, sizeof *j);
  struct measured m = { .seconds = 0 };
  json_t *status;

  *report = NULL;
  if (j == NULL) {
    o->message (o->opaque, JOB_ERROR, "out of memory");
    return JOB_FAILED;
  }
  j->options = *o;
  j->o = &j->options;
  j->dry = true;
  j->gate.max_write_delay_ms = o->max_write_delay_ms;
  bool checked = job_check (j, &status) == 0;
  json_t *left = json_object_get (status, "dirty-bytes");
  m.left_bytes = job_resumes (j) && json_is_integer (left) ? (uint64_t)json_integer_value (left)
                                                           : UINT64_MAX;
  if (checked && begin_measuring (j, &m) == 0 && check_destination (j, &m) == 0
      && measure (j, &m, measure_ns) == 0)
    *report = make_forecast (j, &m);
  json_decref (status);
  enum job_result result = j->result;
  clean_up (j);
  return result;
}
