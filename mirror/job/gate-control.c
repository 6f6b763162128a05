/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Telling the filter at which pace the guest may write.  See gate-control.h.
 */

#include "config.h"

#include <stdlib.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/job/internal.h"

#define RETRY_NS NS_PER_S

const char *
job_gate_name (enum job_gate mode)
{
  static const char *const names[] = { "open", "throttled", "synchronous" };
  return names[mode];
}

enum job_gate
job_gate_now (const struct job *j)
{
  return j->gate.now;
}

bool
job_gate_synchronised (const struct job *j)
{
  return j->gate.now == JOB_GATE_SYNCHRONOUS && atomic_load (&j->engine.synchronous)
         && atomic_load (&j->region->hdr->synced_epoch)
                == atomic_load (&j->region->hdr->sync_epoch);
}

/* What it is to be now. */
static enum job_gate
target (const struct job *j)
{
  if (j->paused || j->supervisor.state != SUPERVISOR_COPYING)
    return JOB_GATE_OPEN;
  return j->gate.by_hand || j->settle_sync ? JOB_GATE_SYNCHRONOUS : j->gate.wanted;
}

static int
tell (struct job *j, enum job_gate mode, uint64_t limit)
{
  struct job_gate_state *g = &j->gate;
  char *error = NULL;
  json_t *args = json_pack ("{s:s, s:I}", "mode", job_gate_name (mode), "max-write-delay-ms",
                            (json_int_t)g->max_write_delay_ms);

  if (mode == JOB_GATE_THROTTLED)
    json_object_set_new (args, "dirty-limit", json_integer ((json_int_t)limit));
  struct control_call call
      = { .command = "mirror-gate", .args = args, .timeout_ms = JOB_CONTROL_TIMEOUT_MS };
  if (control_client_call (j->control, &call, &error) == 0) {
    g->now = mode;
    g->limit = limit;
    g->delay_ms = g->max_write_delay_ms;
    engine_set_synchronous (&j->engine, mode == JOB_GATE_SYNCHRONOUS, g->delay_ms * NS_PER_MS);
    return 0;
  }
  if (!g->complained)
    job_say (j, JOB_WARNING, "%s: cannot make the gate %s: %s", j->o->control, job_gate_name (mode),
             error);
  g->complained = true;
  g->retry_ns = clock_ns () + RETRY_NS;
  text_free (error);
  return -1;
}

void
job_gate_end (struct job *j)
{
  char *error = NULL;

  if (j->gate.now != JOB_GATE_OPEN && !j->committed) {
    struct control_call call = { .command = "mirror-gate",
                                 .args = json_pack ("{s:s}", "mode", "open"),
                                 .timeout_ms = JOB_CONTROL_TIMEOUT_MS };
    if (control_client_call (j->control, &call, &error) == -1)
      text_free (error); /* the filter opens it by itself when we are gone */
  }
}

int
job_gate_update (struct job *j)
{
  struct job_gate_state *g = &j->gate;
  enum job_gate mode = target (j);
  uint64_t limit = mode == JOB_GATE_THROTTLED ? g->wanted_limit : 0;
  bool same = mode == g->now && limit == g->limit
              && (mode == JOB_GATE_OPEN || g->delay_ms == g->max_write_delay_ms);

  /* Held: nobody passes who could be made to wait. */
  if (same || j->over || j->final >= FINAL_COPY)
    return 0;
  if (g->retry_ns != 0 && clock_ns () < g->retry_ns)
    return -1;
  return tell (j, mode, limit);
}

int
job_gate_set (struct job *j, enum job_gate mode, uint64_t dirty_limit)
{
  j->gate.wanted = mode;
  j->gate.wanted_limit = dirty_limit;
  return job_gate_update (j);
}

int
job_gate_by_hand (struct job *j, bool on)
{
  j->gate.by_hand = on;
  j->gate.retry_ns = 0;
  return job_gate_update (j);
}
