/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The status object of a copy (nbdmirror(1), "status --json").
 */

#include "config.h"

#include <stdio.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/job/budget-status.h"
#include "mirror/job/copy-internal.h"
#include "mirror/job/copy-server.h"

static json_int_t
bytes_of (const struct region *r, enum region_array array)
{
  uint64_t n = bitmap_count (r, array) << r->geo.block_shift;
  return (json_int_t)(n < r->geo.disk_size ? n : r->geo.disk_size);
}

static json_t *
number_or_null (bool known, double value)
{
  return known ? json_real (value) : json_null ();
}

json_t *
copy_target (const struct copy *c)
{
  char *text = text_copy ("");

  for (unsigned i = 0; i < c->o->dest.nr_dest; i++) {
    char *more = text_printf ("%s%s%s", text, i > 0 ? " " : "", c->o->dest.dest[i]);
    text_free (text);
    text = more;
  }
  json_t *o = json_string (text);
  text_free (text);
  return o != NULL ? o : json_null (); /* no valid UTF-8 */
}

/* What a copy of a disk in use has besides. */
static void
add_tracked (const struct copy *c, json_t *o, const char *state)
{
  const struct region *r = c->region;
  const struct tracked *p = &c->tracked;
  const struct copy_handoff *h = copy_server_handoff (c->o->server);
  bool committed = p->pause_ns > 0;

  json_object_update_new (
      o, json_pack (
             "{s:I, s:I, s:I, s:I, s:I, s:b, s:b, s:s, s:s}", "passes", (json_int_t)p->passes,
             "claimed-bytes", bytes_of (r, REGION_CLAIMED_A) + bytes_of (r, REGION_CLAIMED_B),
             "quarantine-bytes", bytes_of (r, REGION_QUARANTINE), "session",
             (json_int_t)atomic_load (&r->hdr->session), "max-downtime-ms",
             (json_int_t)c->max_downtime_ms, "converging", !p->told_slow, "synchronised", 0, "gate",
             committed ? "fenced"
             : p->held ? "held"
                       : "open",
             "policy", c->fail_if_slow ? "fail" : "none"));
  json_object_set_new (o, "worker", json_string ("attached"));
  json_object_set_new (o, "state",
                       json_string (h != NULL && h->active && h->prepared ? "prepared" : state));
  json_object_set_new (o, "dirty-rate", number_or_null (p->passes > 0, p->dirty_rate));
  json_object_set_new (o, "expected-downtime-ms",
                       number_or_null (p->passes > 1, (double)p->last_pass_ns / NS_PER_MS));
  json_object_set_new (o, "downtime-ms",
                       number_or_null (committed, (double)p->pause_ns / NS_PER_MS));
  json_object_set_new (o, "rollback-token", json_null ());
  json_object_set_new (o, "target", copy_target (c));
  json_object_set_new (o, "sealed", c->is_receive ? json_boolean (c->sealed) : json_null ());
  bool lost = c->supervisor.state != SUPERVISOR_COPYING && c->supervisor.error != NULL;
  json_object_set_new (o, "error", lost ? json_string (c->supervisor.error) : json_null ());
}

json_t *
copy_status (struct copy *c, const char *state)
{
  const struct region *r = c->region;
  const struct estimate *est = &c->estimate;
  double eta = estimate_eta_s (est, 0, 0);

  json_t *o = json_pack (
      "{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f}", "state", state, "pass",
      (json_int_t)c->tracked.passes + 1, "size", (json_int_t)r->geo.disk_size, "block-size",
      (json_int_t)r->geo.block_size, "dirty-bytes", bytes_of (r, REGION_DIRTY), "sent-bytes",
      (json_int_t)atomic_load (&r->hdr->sent_bytes), "zero-bytes",
      (json_int_t)atomic_load (&r->hdr->zero_bytes), "bandwidth-limit", (json_int_t)c->rate_limit,
      "reconnects", (json_int_t)c->supervisor.reconnects, "degraded-s",
      (double)supervisor_degraded_ns (&c->supervisor) / NS_PER_S, "total-s",
      (double)(clock_ns () - c->start_ns) / NS_PER_S);
  if (o == NULL)
    return NULL;
  budget_status_add (o, c->o->budget);
  json_object_set_new (o, "wire-bytes", json_integer ((json_int_t)region_wire_bytes (r)));
  json_object_set_new (o, "sync", json_string (sync_name (c->o->sync.mode)));
  json_object_set_new (o, "skipped-bytes",
                       json_integer ((json_int_t)atomic_load (&r->hdr->skipped_bytes)));
  json_object_set_new (o, "bandwidth", number_or_null (est->bandwidth > 0, est->bandwidth));
  json_object_set_new (o, "eta-s", number_or_null (eta >= 0, eta));
  if (c->o->tracker != NULL)
    add_tracked (c, o, state);
  return o;
}

json_t *
copy_status_now (struct copy *c)
{
  return copy_status (c, c->supervisor.lost_ns == 0 ? tracked_state (c) : "degraded");
}
