/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Events.  State, job status and gate change in many places, the gate even in guest threads; so one
 * function compares them with what was told last, after everything that may have changed them.
 */

#include "config.h"

#include <string.h>

#include <nbdkit-filter.h>

#include "nbd-plugin/mirror/events.h"
#include "nbd-plugin/mirror/filter.h"
#include "nbd-plugin/mirror/status.h"

static void
tell_gate (struct mirror *m)
{
  struct gate_view gate;
  struct pace_view pace;

  gate_look (&m->gate, &gate);
  pace_look (&m->pace, &pace);
  bool changed = gate.mode != m->told.mode || gate.generation != m->told.generation;
  const char *name = mirror_gate_name (&gate, pace.mode);
  /* A pace that changes behind a closed gate is told when it opens. */
  if (!changed && (gate.mode != GATE_OPEN || pace.mode == m->told.pace))
    return;
  const char *reason = gate.mode == GATE_HELD || gate.reason == NULL ? "" : gate.reason;
  if (mirror_debug_gate)
    nbdkit_debug ("mirror: gate %s, generation %llu %s", name, (unsigned long long)gate.generation,
                  reason);
  control_event (m->server, NULL, "MIRROR_GATE",
                 json_pack ("{s:s, s:I, s:s}", "gate", name, "generation",
                            (json_int_t)gate.generation, "reason", reason));
  /* A hold that began and ended since we looked last was one of the worker's, too. */
  if (changed && m->attachment.worker != NULL && gate.mode == GATE_OPEN)
    control_event (
        m->server, m->attachment.worker, "MIRROR_RELEASED",
        json_pack ("{s:I, s:s}", "generation", (json_int_t)gate.generation, "reason", reason));
  m->told.mode = gate.mode;
  m->told.generation = gate.generation;
  m->told.pace = pace.mode;
}

static void
send_synchronised (struct mirror *m, bool synchronised)
{
  m->told.synchronised = synchronised;
  control_event (m->server, NULL, "MIRROR_SYNCHRONISED",
                 json_pack ("{s:s, s:b}", "id", DEFAULT_ID, "synchronised", synchronised));
}

/* What was lost and is there again since we looked last was lost all the same: two events. */
static void
tell_synchronised (struct mirror *m)
{
  struct pace_view pace;

  pace_look (&m->pace, &pace);
  if (m->told.synchronised && (!pace.synchronised || pace.epoch != m->told.sync_epoch))
    send_synchronised (m, false);
  if (pace.synchronised && !m->told.synchronised)
    send_synchronised (m, true);
  m->told.sync_epoch = pace.epoch;
}

/* The worker cannot read the source, for the first time or at another place than before. */
static void
tell_unreadable (struct mirror *m)
{
  const json_t *offset = json_object_get (m->attachment.published, "unreadable-offset");
  const char *error = json_string_value (json_object_get (m->attachment.published, "error"));
  bool known = m->told.unreadable && json_integer_value (offset) == m->told.unreadable_offset;

  m->told.unreadable = json_is_integer (offset);
  m->told.unreadable_offset = json_integer_value (offset);
  if (!m->told.unreadable || known)
    return;
  control_event (m->server, NULL, "BLOCK_JOB_ERROR",
                 json_pack ("{s:s, s:s, s:s, s:I, s:s}", "device", DEFAULT_ID, "operation", "read",
                            "action", "ignore", "offset", m->told.unreadable_offset, "error",
                            error != NULL ? error : ""));
}

void
mirror_tell (struct mirror *m)
{
  const char *state = mirror_state (m), *status = mirror_job_status (m);

  tell_gate (m);
  tell_synchronised (m);
  tell_unreadable (m);
  if (m->told.state == NULL || strcmp (state, m->told.state) != 0) {
    m->told.state = state;
    control_event (m->server, NULL, "MIRROR_STATE",
                   json_pack ("{s:s, s:s}", "id", DEFAULT_ID, "state", state));
  }
  if (m->told.status == NULL || strcmp (status, m->told.status) != 0) {
    m->told.status = status;
    control_event (m->server, NULL, "JOB_STATUS_CHANGE",
                   json_pack ("{s:s, s:s}", "id", DEFAULT_ID, "status", status));
  }
  if (m->attachment.worker != NULL && !m->attachment.was_ready && strcmp (status, "ready") == 0) {
    m->attachment.was_ready = true;
    control_event (m->server, NULL, "BLOCK_JOB_READY", mirror_block_job_event (m));
  }
}
