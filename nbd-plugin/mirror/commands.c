/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Dispatch of protocol commands, and those for everybody.  See nbdmirror-control(7).
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "base/fd.h"
#include "base/text.h"
#include "control/settings.h"
#include "nbd-plugin/mirror/commands.h"
#include "nbd-plugin/mirror/filter.h"
#include "nbd-plugin/mirror/status.h"
#include "nbd-plugin/mirror/thread.h"

const char *
call_string (struct call *c, const char *name)
{
  return json_string_value (json_object_get (c->args, name));
}

int64_t
call_integer (struct call *c, const char *name, int64_t otherwise)
{
  json_t *v = json_object_get (c->args, name);
  return v != NULL ? json_integer_value (v) : otherwise;
}

bool
call_lease_ok (struct call *c)
{
  int64_t ms = call_integer (c, "lease-ms", 1);
  if (ms >= 1 && ms <= MAX_LEASE_MS)
    return true;
  control_error (c->peer, c->id, "GenericError", "lease-ms must be 1 to %lld",
                 (long long)MAX_LEASE_MS);
  return false;
}

/* ---- relayed to the worker ---- */

static void
relay (struct call *c)
{
  struct gate_view gate;

  gate_look (&c->m->gate, &gate);
  if (gate.mode == GATE_FENCED)
    control_error (c->peer, c->id, "Fenced", "the job is completed: this disk was handed over");
  else if (c->m->attachment.worker != NULL)
    attachment_ask (c->m, c->peer, c->id, c->name, c->args, RELAY_LIMIT_MS);
  else if (c->m->attachment.region != NULL)
    control_error (c->peer, c->id, "DeviceNotActive",
                   "no worker is attached to job '%s': 'nbdmirror mirror --resume' starts one",
                   DEFAULT_ID);
  else
    control_error (c->peer, c->id, "DeviceNotActive", "no job is running on this disk");
}

static void
block_job_cancel (struct call *c)
{
  struct mirror *m = c->m;

  if (m->attachment.worker != NULL || m->attachment.region == NULL) {
    relay (c);
    return;
  }
  json_t *event = mirror_block_job_event (m);
  attachment_drop_region (m);
  m->attachment.ended = "cancelled";
  control_event (m->server, NULL, "BLOCK_JOB_CANCELLED", event);
  control_reply (c->peer, c->id, NULL, -1);
}

static void
mirror_set (struct call *c)
{
  const char *why = settings_fault (c->args);

  if (why != NULL)
    control_error (c->peer, c->id, "GenericError", "%s", why);
  else
    relay (c);
}

/* ---- answered here ---- */

static void
query_mirror (struct call *c)
{
  control_reply (c->peer, c->id, mirror_status (c->m), -1);
}

static void
query_block_jobs (struct call *c)
{
  control_reply (c->peer, c->id, mirror_block_jobs (c->m), -1);
}

static void
query_jobs (struct call *c)
{
  control_reply (c->peer, c->id, mirror_jobs (c->m), -1);
}

static void
query_version (struct call *c)
{
  int major = 0, minor = 0, micro = 0;
  sscanf (PACKAGE_VERSION, "%d.%d.%d", &major, &minor, &micro);
  control_reply (c->peer, c->id,
                 json_pack ("{s:{s:i, s:i, s:i}, s:s}", "qemu", "major", major, "minor", minor,
                            "micro", micro, "package", PACKAGE_NAME " " PACKAGE_VERSION),
                 -1);
}

static void
prepare (struct call *c)
{
  const char *waiters = call_string (c, "waiters"), *successor = call_string (c, "successor");

  if (successor != NULL && (successor[0] != '/' || strlen (successor) > FENCE_SUCCESSOR_MAX))
    control_error (c->peer, c->id, "GenericError",
                   "successor must be an absolute path of at most %d bytes", FENCE_SUCCESSOR_MAX);
  else if (waiters != NULL && strcmp (waiters, "error") != 0 && strcmp (waiters, "keep") != 0)
    control_error (c->peer, c->id, "GenericError", "waiters must be error or keep, not '%.64s'",
                   waiters);
  else if (call_lease_ok (c)) {
    participant_begin (c->m, c->peer, c->id, c->args, c->fd);
    c->fd = -1;
  }
}

static void
prepare_now (struct call *c)
{
  participant_prepare_now (c->m, c->peer, c->id);
}

static void
finalize (struct call *c)
{
  participant_finalize (c->m, c->peer, c->id, (uint64_t)call_integer (c, "generation", 0));
}

static void
decision (struct call *c)
{
  participant_decision (c->m, c->peer, c->id, json_is_true (json_object_get (c->args, "keep")));
}

static void
release (struct call *c)
{
  participant_release (c->m, c->peer, c->id, (uint64_t)call_integer (c, "generation", 0));
}

static void
rollback (struct call *c)
{
  if (!json_is_true (json_object_get (c->args, "destination-stopped")))
    control_error (c->peer, c->id, "GenericError",
                   "destination-stopped must be true: two running guests would ruin the disk");
  else
    participant_rollback (c->m, c->peer, c->id, call_string (c, "rollback-token"));
}

/* While writes go around us nothing may rely on what was tracked: so there is no job meanwhile.  It
 * outlives the client that says so, which may be killed while the writes go on. */
static void
bypass (struct call *c)
{
  struct mirror *m = c->m;
  bool on = json_is_true (json_object_get (c->args, "on"));
  struct gate_view gate;

  checkpoints_settle (m);
  gate_look (&m->gate, &gate);
  if (on && gate.mode == GATE_FENCED)
    control_error (c->peer, c->id, "Fenced", "this disk was handed over");
  else if (on && (m->attachment.region != NULL || m->attachment.attach.peer != NULL))
    control_error (c->peer, c->id, "JobExists",
                   "there is a mirror job, which relies on every write passing here");
  else if (on && m->checkpointing.decision != NULL)
    control_error (c->peer, c->id, "Busy",
                   "a checkpoint is being added, which relies on every write passing here");
  else {
    CLEANUP_TEXT char *error = NULL;
    if (bypass_set (&m->bypass, on, &error) == -1) {
      control_error (c->peer, c->id, "GenericError", "%s", error);
      return;
    }
    if (on)
      persist_bypassed (m);
    control_reply (c->peer, c->id, NULL, -1);
  }
}

/* Does a guest wait at the gate?  Then it waits for this thread, too, so what may take long is
 * answered with an error. */
static bool
guest_waits (struct call *c)
{
  struct gate_view gate;

  gate_look (&c->m->gate, &gate);
  if (gate.mode == GATE_HELD)
    control_error (c->peer, c->id, "Busy", "a hand-over is under way");
  return gate.mode == GATE_HELD;
}

static void
checkpoint_prepare (struct call *c)
{
  if (guest_waits (c) || !call_lease_ok (c))
    return;
  int fd = c->fd;
  c->fd = -1;
  checkpoints_settle (c->m);
  checkpoints_prepare (c->m, c->peer, c->id, c->args, fd);
}

static void
checkpoint_finish (struct call *c)
{
  checkpoints_finish (c->m, c->peer, c->id);
}

static void
checkpoint_remove (struct call *c)
{
  if (guest_waits (c))
    return;
  checkpoints_settle (c->m);
  checkpoints_remove (c->m, c->peer, c->id, call_string (c, "name"));
}

static void
mark (struct call *c)
{
  checkpoints_mark (c->m, c->peer, c->id, (uint64_t)call_integer (c, "offset", 0),
                    (uint64_t)call_integer (c, "length", 0));
}

static void
query_checkpoints (struct call *c)
{
  checkpoints_settle (c->m);
  checkpoints_list (c->m, c->peer, c->id, (uint64_t)call_integer (c, "from", 0));
}

static void
query_map (struct call *c)
{
  if (guest_waits (c))
    return;
  checkpoints_settle (c->m);
  checkpoints_map (c->m, c->peer, c->id, call_string (c, "since"));
}

static void
measure (struct call *c)
{
  measurement_begin (c->m, c->peer, c->id);
}

static void query_commands (struct call *c);

static const struct command commands[] = {
  { "query-version", "", query_version, false },
  { "query-commands", "", query_commands, false },
  { "query-mirror", "", query_mirror, false },
  { "query-block-jobs", "", query_block_jobs, false },
  { "query-jobs", "", query_jobs, false },
  { "block-job-set-speed", "device:s speed:i!", relay, false },
  { "block-job-pause", "device:s", relay, false },
  { "block-job-resume", "device:s", relay, false },
  { "block-job-cancel", "device:s force:b", block_job_cancel, false },
  { "block-job-complete", "device:s", relay, false },
  { "mirror-set", "bandwidth-limit:i max-downtime-ms:n policy:s synchronous:b max-write-delay-ms:i",
    mirror_set, false },
  { "mirror-verify", "stop:b", relay, false },
  { "mirror-measure", "", measure, false },
  { "mirror-prepare",
    "lease-ms:i rollback-token:s! waiters:s successor:s guest-stopped:b arm:b release:b", prepare,
    false },
  { "mirror-prepare-now", "", prepare_now, false },
  { "job-finalize", "generation:i!", finalize, false },
  { "mirror-decision", "keep:b", decision, false },
  { "mirror-release", "generation:i", release, false },
  { "mirror-rollback", "rollback-token:s! destination-stopped:b!", rollback, false },
  { "mirror-bypass", "on:b!", bypass, false },
  { "mirror-checkpoint-prepare", "name:s! lease-ms:i", checkpoint_prepare, false },
  { "mirror-checkpoint-finish", "", checkpoint_finish, false },
  { "mirror-checkpoint-remove", "name:s!", checkpoint_remove, false },
  { "mirror-mark", "offset:i! length:i!", mark, false },
  { "query-mirror-checkpoints", "from:i", query_checkpoints, false },
  { "query-mirror-map", "since:s", query_map, false },
  { NULL, NULL, NULL, false },
};

static void
query_commands (struct call *c)
{
  json_t *list = json_array ();

  json_array_append_new (list, json_pack ("{s:s}", "name", "qmp_capabilities"));
  for (const struct command *k = commands; k->name != NULL; k++)
    json_array_append_new (list, json_pack ("{s:s}", "name", k->name));
  for (const struct command *k = worker_commands; k->name != NULL; k++)
    json_array_append_new (list, json_pack ("{s:s}", "name", k->name));
  control_reply (c->peer, c->id, list, -1);
}

/* ---- dispatch ---- */

/* Where NAME:TYPE stands in SPEC, at the type; or NULL. */
static const char *
find_argument (const char *spec, const char *name)
{
  size_t len = strlen (name);

  for (const char *p = spec; *p != '\0'; p += strspn (p, " ")) {
    if (strncmp (p, name, len) == 0 && p[len] == ':')
      return p + len + 1;
    p += strcspn (p, " ");
  }
  return NULL;
}

static bool
type_ok (char type, const json_t *v)
{
  switch (type) {
  case 'i':
    return json_is_integer (v) && json_integer_value (v) >= 0;
  case 'n':
    return json_is_number (v) && json_number_value (v) >= 0;
  case 's':
    return json_is_string (v);
  case 'b':
    return json_is_boolean (v);
  default:
    return json_is_object (v);
  }
}

static const char *
type_name (char type)
{
  return type == 'i'   ? "an integer that is not negative"
         : type == 'n' ? "a number that is not negative"
         : type == 's' ? "a string"
         : type == 'b' ? "a boolean"
                       : "an object";
}

/* False if it was answered with an error. */
static bool
arguments_ok (struct call *c, const struct command *k)
{
  const char *name;
  json_t *v;

  json_object_foreach (c->args, name, v)
  {
    bool is_id = strcmp (name, "id") == 0;
    const char *type = is_id ? "s" : find_argument (k->arguments, name);
    /* mirror-progress takes fields that only later versions know (worker-progress.c). */
    if (type == NULL && strcmp (k->name, "mirror-progress") == 0)
      continue;
    if (type == NULL) {
      control_error (c->peer, c->id, "GenericError", "Parameter '%.64s' is unexpected", name);
      return false;
    }
    if (!type_ok (*type, v)) {
      control_error (c->peer, c->id, "GenericError",
                     "Invalid parameter type for '%s', expected: %s", name, type_name (*type));
      return false;
    }
    if ((is_id || strcmp (name, "device") == 0)
        && strcmp (json_string_value (v), DEFAULT_ID) != 0) {
      control_error (c->peer, c->id, "DeviceNotFound", "there is no job '%.64s'",
                     json_string_value (v));
      return false;
    }
  }
  for (const char *p = k->arguments; *p != '\0'; p += strspn (p, " ")) {
    size_t len = strcspn (p, ":"), end = strcspn (p, " ");
    char wanted[64];
    snprintf (wanted, sizeof wanted, "%.*s", (int)len, p);
    if (p[end - 1] == '!' && json_object_get (c->args, wanted) == NULL) {
      control_error (c->peer, c->id, "GenericError", "Parameter '%s' is missing", wanted);
      return false;
    }
    p += end;
  }
  return true;
}

static const struct command *
find_command (const char *name)
{
  for (const struct command *k = commands; k->name != NULL; k++)
    if (strcmp (k->name, name) == 0)
      return k;
  for (const struct command *k = worker_commands; k->name != NULL; k++)
    if (strcmp (k->name, name) == 0)
      return k;
  return NULL;
}

static void
on_command (void *opaque, struct control_peer *peer, const char *name, json_t *args, json_t *id,
            int fd)
{
  struct mirror *m = opaque;
  struct call c = { .m = m, .peer = peer, .name = name, .args = args, .id = id, .fd = fd };
  const struct command *k = find_command (name);

  if (mirror_debug_control)
    nbdkit_debug ("mirror: %s from process %ld", name, (long)control_peer_pid (peer));
  mirror_tick (m); /* what time has changed comes before what the command changes */
  if (k == NULL)
    control_error (peer, id, "CommandNotFound", "The command %.64s has not been found", name);
  else if (arguments_ok (&c, k)) {
    if (k->worker && peer != m->attachment.worker)
      control_error (peer, id, "GenericError", "%s is for the attached worker only", name);
    else
      k->run (&c);
  }
  fd_close (&c.fd);
  mirror_tick (m);
}

static void
on_closed (void *opaque, struct control_peer *peer)
{
  struct mirror *m = opaque;

  participant_peer_closed (m, peer);
  if (peer == m->attachment.worker)
    participant_worker_gone (m, "detached", "the worker's connection closed");
  attachment_peer_closed (&m->attachment, peer);
  measurement_peer_closed (m, peer);
  checkpoints_peer_closed (m, peer);
}

/* What on_closed() would end for PEER. */
static bool
is_needed (void *opaque, const struct control_peer *peer)
{
  const struct mirror *m = opaque;

  return (m->participant.active && peer == m->participant.coordinator)
         || peer == m->attachment.worker
         || (m->measurement.region != NULL && peer == m->measurement.peer)
         || (m->checkpointing.decision != NULL && peer == m->checkpointing.peer);
}

const struct control_server_ops mirror_server_ops = {
  .command = on_command,
  .closed = on_closed,
  .needed = is_needed,
};
