/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The offline copy.  See copy.h.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "mirror/endpoint/null.h"
#include "mirror/endpoint/same-place.h"
#include "mirror/endpoint/seal.h"
#include "mirror/endpoint/uri.h"
#include "mirror/engine/allowance.h"
#include "mirror/job/base-proof.h"
#include "mirror/job/copy-internal.h"
#include "mirror/job/copy-server.h"
#include "mirror/job/rest.h"
#include "mirror/job/standing.h"

#define TICK_MS 100

static enum job_result
complain (struct copy *c, enum job_result result, char *error)
{
  c->o->message (c->o->opaque, JOB_ERROR, error);
  text_free (error);
  return result;
}

static void
tell (void *opaque, enum job_message kind, const char *text)
{
  const struct copy *c = opaque;

  c->o->message (c->o->opaque, kind, text);
}

/* A proof may take hours, in which somebody wants to know how the job stands. */
static void
answer (void *opaque)
{
  struct copy *c = opaque;

  copy_server_prove (c->o->server, c);
}

static enum job_result
prove_base (struct copy *c)
{
  const struct copy_options *o = c->o;
  uint64_t size = endpoint_info (c->source)->size;
  struct region_geometry geo;
  uint32_t block = region_geometry_init (&geo, size, 0) == 0 ? (uint32_t)geo.block_size : 0;
  const struct base_proof proof = { .sync = &o->sync,
                                    .base = c->base,
                                    .source = c->source,
                                    .dest = c->dest.opened,
                                    .dest_argv = o->dest.dest,
                                    .nr_dest = o->dest.nr_dest,
                                    .dest_options = &o->dest.endpoint,
                                    .size = size,
                                    .block_size = block,
                                    .signal = o->signal,
                                    .opaque = c,
                                    .message = tell,
                                    .look = answer };
  char *error = NULL;

  enum job_result result = base_prove (&proof, NULL, &c->found, &error);
  return result == JOB_COMPLETED ? result : complain (c, result, error);
}

/* The destination as the user named it, or NULL if that is not one word. */
static const char *
dest_uri (const struct copy *c)
{
  return c->o->dest.nr_dest == 1 ? c->o->dest.dest[0] : NULL;
}

/* It is over, and source and destination are equal.  No server could change the source meanwhile,
 * so the destination stands at its latest checkpoint. */
static void
say_checkpoint (struct copy *c, json_t *report)
{
  const json_t *list = c->incremental.checkpoints;
  const json_t *last = json_array_get (list, json_array_size (list) - 1);
  const char *name = json_string_value (json_object_get (last, "name"));
  const char *uuid = json_string_value (json_object_get (last, "uuid"));
  CLEANUP_TEXT char *error = NULL;

  if (!c->incremental.proved || c->o->tracker != NULL || uuid == NULL)
    return;
  if (destination_say_at (dest_uri (c), c->session.id, uuid, &error) == 0) {
    json_object_set_new (report, "stands-at", json_string (name));
    return;
  }
  CLEANUP_TEXT char *text
      = text_printf ("%s cannot keep that it stands at checkpoint '%s': %s", dest_uri (c), name,
                     error != NULL ? error : "it is no server of nbdmirror receive any more");
  c->o->message (c->o->opaque, JOB_WARNING, text);
}

/* What was changed since the checkpoint, and does the destination stand there? */
static enum job_result
prove_checkpoint (struct copy *c)
{
  const struct copy_options *o = c->o;
  struct incremental *inc = &c->incremental;
  char *error = NULL;

  inc->sync = &o->sync;
  inc->found = &c->found;
  enum job_result result = incremental_read (inc, o->source[0], &c->state_lock, &error);
  if (result == JOB_COMPLETED && inc->size != endpoint_info (c->source)->size) {
    text_error (&error, "refused: %s is of a disk of %" PRIu64 " bytes, not of %s", o->sync.state,
                inc->size, endpoint_name (c->source));
    result = JOB_REFUSED;
  }
  if (result == JOB_COMPLETED)
    result = incremental_prove (inc, c->source, c->dest.opened, dest_uri (c), o->signal, o->opaque,
                                o->message, &error);
  if (result == JOB_COMPLETED && inc->proved
      && destination_say_since (dest_uri (c), c->session.id, inc->from,
                                standing_uuid (inc->checkpoints, o->sync.since), &error)
             != 0) {
    if (error == NULL)
      text_error (&error, "refused: %s does not tell any more where it stands", dest_uri (c));
    result = JOB_REFUSED;
  }
  return result == JOB_COMPLETED ? result : complain (c, result, error);
}

/* Open both sides: the source first, so that a wrong name creates nothing. */
static enum job_result
open_both (struct copy *c)
{
  const struct copy_options *o = c->o;
  struct endpoint_options so = o->dest.endpoint;
  char *error = NULL;

  if (o->nr_source == 1 && o->dest.nr_dest == 1 && same_place (o->source[0], o->dest.dest[0])) {
    text_error (&error, "refused: %s is the source itself", o->dest.dest[0]);
    return complain (c, JOB_REFUSED, error);
  }
  so.writable = so.create = false;
  so.only = o->source_only;
  so.layers = o->sync.mode == ENGINE_SYNC_TOP;
  if (o->nr_source == 1 && o->tracker == NULL)
    endpoint_read_others (&so);
  c->source = endpoint_open (o->source, o->nr_source, &so, NULL, &error);
  if (c->source == NULL)
    return complain (c, JOB_FAILED, error);
  char *why = sync_refusal (&o->sync, c->source, &o->dest);
  if (why) {
    text_error (&error, "refused: %s", why);
    text_free (why);
    return complain (c, JOB_REFUSED, error);
  }
  if (sync_open_base (&o->sync, &o->dest.endpoint, &c->base, &error) == -1)
    return complain (c, JOB_FAILED, error);

  c->dest = o->dest;
  c->dest.endpoint.nr_in_flight = ENGINE_IN_FLIGHT;
  c->dest.endpoint.nr_multi = session_connections_each (o->max_connections);
  c->dest.endpoint.nr_channels
      = session_channels (o->max_connections, o->tracker == NULL ? c->source : NULL,
                          o->sync.mode == ENGINE_SYNC_BASE ? c->base : NULL);
  c->dest.endpoint.writable = true;
  c->dest.endpoint.session = &c->session;
  c->dest.endpoint.create = o->sync.mode != ENGINE_SYNC_INCREMENTAL;
  c->dest.endpoint.create_size = endpoint_info (c->source)->size;
  int errnum = 0;
  bool null = o->dest.nr_dest == 1 && strcmp (o->dest.dest[0], ENDPOINT_NULL) == 0;
  c->dest.opened
      = null ? endpoint_null_open (&c->dest.endpoint, &errnum, &error)
             : endpoint_open (o->dest.dest, o->dest.nr_dest, &c->dest.endpoint, &errnum, &error);
  if (c->dest.opened == NULL)
    return complain (
        c, errnum == EROFS || errnum == ENDPOINT_BAD_NAME ? JOB_REFUSED : JOB_DEST_FAILED, error);
  c->is_receive = endpoint_info (c->dest.opened)->is_receive;
  enum job_result result = JOB_COMPLETED;
  if (o->sync.mode == ENGINE_SYNC_INCREMENTAL)
    result = prove_checkpoint (c);
  else if (c->base != NULL)
    result = prove_base (c);
  c->dest.proved = result == JOB_COMPLETED;
  return result;
}

static enum job_result
make_region (struct copy *c)
{
  static const uint8_t uuid[16];
  struct region_geometry geo;
  uint32_t min_block = endpoint_info (c->dest.opened)->min_block;
  if (min_block < endpoint_info (c->source)->min_block)
    min_block = endpoint_info (c->source)->min_block;
  if (c->base && min_block < endpoint_info (c->base)->min_block)
    min_block = endpoint_info (c->base)->min_block;
  uint64_t size = endpoint_info (c->source)->size;
  char *error = NULL;

  if (region_geometry_init (&geo, size, 0) == -1
      || (geo.block_size < min_block && region_geometry_init (&geo, size, min_block) == -1)) {
    text_error (&error, "%s: cannot divide %" PRIu64 " bytes into blocks: %s",
                endpoint_name (c->source), size, strerror (errno));
    return complain (c, JOB_FAILED, error);
  }
  error = session_refusal (c->dest.opened, size, geo.block_size, c->dest.allow_no_flush);
  if (error) {
    char *text = text_printf ("refused: %s", error);
    text_free (error);
    return complain (c, JOB_REFUSED, text);
  }
  c->region = region_create (&geo, uuid, &error);
  if (c->region == NULL)
    return complain (c, JOB_FAILED, error);
  if (c->incremental.bits != NULL)
    incremental_fill (&c->incremental, c->region);
  else
    bitmap_set (c->region, REGION_DIRTY, 0, geo.nr_blocks);
  atomic_store (&c->region->hdr->session, 1);
  found_samples_keep (&c->found, c->region);
  c->look_again = (struct look_again){ .region = c->region, .source = c->source, .base = c->base };
  c->dest.look_again = look_again;
  c->dest.opaque = &c->look_again;

  const struct engine_options eo = {
    .max_connections = c->o->max_connections,
    .rate_limit = c->rate_limit,
    .budget = c->o->budget,
    .offline = c->o->tracker == NULL,
    .sync = c->o->sync.mode,
    .sparse = c->o->sparse,
    .dest_is_zero = c->o->dest_is_zero,
    .base = c->o->sync.mode == ENGINE_SYNC_BASE ? c->base : NULL,
  };
  if (engine_init (&c->engine, c->region, c->source, &eo, &error) == -1)
    return complain (c, JOB_FAILED, error);
  if (c->o->tracker != NULL && tracked_begin (c, &error) == -1) {
    engine_destroy (&c->engine);
    return complain (c, JOB_FAILED, error);
  }
  return JOB_COMPLETED;
}

static void
sample (struct copy *c)
{
  struct engine *e = &c->engine;
  const struct estimate_costs costs = { .flush_ns = 0 };
  const struct estimate_sample s = {
    .now_ns = clock_ns (),
    .acked_bytes = atomic_load (&e->counters.acked_bytes),
    .passed_bytes = atomic_load (&e->counters.passed_bytes),
    .left_bytes = engine_left_bytes (e),
    .queue_full = !engine_was_idle (e),
  };
  estimate_add (&c->estimate, &s, &costs, 0);
  if (c->o->progress) {
    json_t *status = copy_status_now (c);
    c->o->progress (c->o->opaque, status);
    json_decref (status);
  }
}

bool
copy_all_done (struct copy *c)
{
  struct engine *e = &c->engine;

  if (c->supervisor.state != SUPERVISOR_COPYING) {
    c->flush_asked = false;
    return false;
  }
  if (!c->flush_asked) {
    if (engine_left_bytes (e) > 0)
      return false;
    c->flush_asked = true;
    c->flushes_before = atomic_load (&e->counters.flushes);
    engine_flush (e);
  }
  engine_flush_if_settled (e);
  return atomic_load (&e->counters.flushes) > c->flushes_before && engine_clean (e);
}

static void
tell_change (struct copy *c)
{
  struct supervisor *s = &c->supervisor;
  if (s->state == SUPERVISOR_WAITING) {
    char *text = text_printf ("%s lost, trying again: %s",
                              s->problem == SESSION_SOURCE ? "source" : "destination", s->error);
    c->o->message (c->o->opaque, JOB_WARNING, text);
    text_free (text);
  } else if (s->state == SUPERVISOR_COPYING) {
    if (s->session->warning && !c->warned)
      c->o->message (c->o->opaque, JOB_WARNING, s->session->warning);
    c->warned = c->warned || s->session->warning;
    if (s->session->news)
      c->o->message (c->o->opaque, JOB_WARNING, s->session->news);
  }
}

static bool
source_is_given_up (struct copy *c)
{
  bool changed = source_errors_look (&c->source_errors, &c->engine);
  if (source_errors_give_up (&c->source_errors, c->o->give_up_ns, clock_ns ()))
    return true;
  if (changed && c->source_errors.any && c->o->give_up_ns > 0) {
    CLEANUP_TEXT char *why = source_errors_text (&c->source_errors, &c->engine);
    CLEANUP_TEXT char *text = text_printf ("%s; it is tried again", why);
    c->o->message (c->o->opaque, JOB_WARNING, text);
  }
  return false;
}

/* Returns true when it is over, with *RESULT. */
static bool
step (struct copy *c, enum job_result *result)
{
  struct supervisor *s = &c->supervisor;

  while (supervisor_poll (s))
    tell_change (c);
  if (s->state == SUPERVISOR_ENDED) {
    *result = s->problem == SESSION_REFUSED  ? JOB_REFUSED
              : s->problem == SESSION_SOURCE ? JOB_FAILED
                                             : JOB_DEST_FAILED;
    complain (c, *result, supervisor_verdict (s));
    return true;
  }
  if (source_is_given_up (c)) {
    *result = complain (c, JOB_FAILED, source_errors_text (&c->source_errors, &c->engine));
    return true;
  }
  if (copy_handoff_step (copy_server_handoff (c->o->server), result))
    return true;
  int signal = atomic_load (c->o->signal);
  if (signal == JOB_SIGNAL_CANCEL || signal == JOB_SIGNAL_DETACH) {
    *result = JOB_CANCELLED;
    return true;
  }
  if (c->o->tracker != NULL)
    return tracked_step (c, result);
  if (copy_all_done (c)) {
    *result = JOB_COMPLETED;
    return true;
  }
  return false;
}

static uint64_t
earlier (uint64_t a, uint64_t b)
{
  return a < b ? a : b;
}

/* How long the loop may sleep, in ms. */
static int
pause_ms (struct copy *c)
{
  const struct copy_handoff *h = copy_server_handoff (c->o->server);
  bool handing_over = c->tracked.held || (h != NULL && h->active);
  const struct rest_view v = {
    .state = c->supervisor.state,
    .paused = c->tracked.paused,
    .unreadable = c->source_errors.any,
    .asleep = !handing_over && engine_asleep (&c->engine),
    .held = c->tracked.held,
    .left = engine_left_bytes (&c->engine),
    .limit = allowance_rate (&c->engine.allowance, c->rate_limit),
  };
  uint64_t now = clock_ns ();
  uint64_t due = earlier (supervisor_due_ns (&c->supervisor),
                          source_errors_due_ns (&c->source_errors, c->o->give_up_ns));
  bool rests = tracked_rests (c) && !v.paused;
  unsigned most = rests ? TICK_MS : rest_copy_ms (&v);

  if (rests)
    due = earlier (due, c->tracked.look_ns);
  if (due >= now + most * NS_PER_MS)
    return (int)most;
  return due > now ? (int)((due - now) / NS_PER_MS) + 1 : 1;
}

static enum job_result
run (struct copy *c)
{
  enum job_result result;
  uint64_t next = 0;

  while (!step (c, &result)) {
    struct pollfd fds[2] = {
      { .fd = c->engine.notify_fd, .events = POLLIN },
      { .fd = c->o->signal_fd, .events = POLLIN },
    };
    if (copy_server_poll (c->o->server, pause_ms (c), fds, 2) > 0) {
      fd_wake_clear (c->engine.notify_fd);
      fd_wake_clear (c->o->signal_fd);
    }
    if (clock_ns () >= next) {
      sample (c);
      next = clock_ns () + TICK_MS * NS_PER_MS;
    }
  }
  return result;
}

const char *
copy_end_name (enum job_result result)
{
  return result == JOB_COMPLETED || result == JOB_NOT_SEALED ? "completed"
         : result == JOB_CANCELLED                           ? "cancelled"
                                                             : "failed";
}

/* Handed over: no request of ours may be applied late, under the guest at the destination. */
static enum job_result
seal (struct copy *c, bool stopped)
{
  const char *dest = dest_uri (c);
  char *error = NULL;
  int r = 0;

  if (!c->is_receive || dest == NULL)
    return JOB_COMPLETED;
  if (uri_kind (dest) != URI_SSH || !stopped || c->engine.unanswered)
    r = destination_seal (dest, &error);
  c->sealed = r == 0;
  if (c->sealed)
    return JOB_COMPLETED;
  CLEANUP_TEXT char *text
      = text_printf (DESTINATION_UNSEALED, endpoint_name (c->source), dest,
                     r == 1 ? "it is no server of nbdmirror receive any more" : error, dest);
  c->o->message (c->o->opaque, JOB_WARNING, text);
  text_free (error);
  return JOB_NOT_SEALED;
}

enum job_result
copy_run (const struct copy_options *o, json_t **report)
{
  struct copy *c = calloc (1, sizeof *c);
  bool stopped = true;

  *report = NULL;
  if (c == NULL) {
    o->message (o->opaque, JOB_ERROR, "out of memory");
    return JOB_FAILED;
  }
  c->o = o;
  c->state_lock = -1;
  c->rate_limit = o->rate_limit;
  c->max_downtime_ms = o->max_downtime_ms;
  c->fail_if_slow = o->fail_if_slow;
  c->start_ns = clock_ns ();
  estimate_init (&c->estimate);
  enum job_result result = open_both (c);
  bool opened = result == JOB_COMPLETED;
  if (opened)
    result = make_region (c);
  if (opened && result == JOB_COMPLETED) {
    supervisor_init (&c->supervisor, &c->engine, &c->dest, o->give_up_ns);
    if (o->server != NULL)
      copy_server_begin (o->server, c);
    result = run (c);
    tracked_end (c, &result);
    stopped = supervisor_stop (&c->supervisor);
    if (o->tracker != NULL && result == JOB_COMPLETED)
      result = seal (c, stopped);
    *report = copy_status (c, copy_end_name (result));
    if (stopped && result == JOB_COMPLETED && !c->engine.unanswered)
      say_checkpoint (c, *report);
    if (stopped)
      engine_destroy (&c->engine);
  }
  if (o->server != NULL)
    copy_server_begin (o->server, NULL);
  if (!stopped)
    return result; /* a connection that is still being made uses the rest until the process ends */
  if (c->dest.opened)
    endpoint_close (c->dest.opened);
  if (c->source)
    endpoint_close (c->source);
  if (c->base)
    endpoint_close (c->base);
  incremental_free (&c->incremental);
  fd_close (&c->state_lock);
  region_free (c->region);
  free (c);
  return result;
}
