/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See copy-server.h.
 */

#include "config.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "control/settings.h"
#include "mirror/job/copy-internal.h"
#include "mirror/job/copy-server.h"

#define GREETING PACKAGE_NAME " " PACKAGE_VERSION
#define DEFAULT_ID "mirror"

/* After the end: how long a client that is there may go on asking, how long nobody may be there
 * before a coordinator's successor is no longer expected, and the end of it all. */
#define CLIENTS_MS 2000
#define NOBODY_MS 1000
#define LINGER_MS 10000
#define LINGER_LOOK_MS 50

struct copy_server {
  struct control_server *server;
  json_t *status;
  struct copy_handoff handoff;
  struct copy *proving; /* NULL: none, or it has begun */
};

struct request {
  struct copy_server *s;
  struct copy *c; /* NULL: it has not begun, or is over */
  struct control_peer *peer;
  json_t *args, *id;
  int fd; /* owned, or -1 */
};

static void
done (struct request *r)
{
  control_reply (r->peer, r->id, NULL, -1);
}

/* ---- what is told --------------------------------------------------------------------------- */

static void
query_mirror (struct request *r)
{
  json_t *status = r->c != NULL ? copy_status_now (r->c) : NULL;

  if (status != NULL)
    copy_server_tell (r->s, status);
  json_decref (status);
  control_reply (r->peer, r->id, json_incref (r->s->status), -1);
}

static void
query_version (struct request *r)
{
  int major = 0, minor = 0, micro = 0;

  sscanf (PACKAGE_VERSION, "%d.%d.%d", &major, &minor, &micro);
  control_reply (r->peer, r->id,
                 json_pack ("{s:{s:i, s:i, s:i}, s:s}", "qemu", "major", major, "minor", minor,
                            "micro", micro, "package", GREETING),
                 -1);
}

/* ---- what changes a running job ------------------------------------------------------------- */

static void
set_rate (struct copy *c, const json_t *value)
{
  c->rate_limit = (uint64_t)json_integer_value (value);
  engine_set_rate (&c->engine, c->rate_limit);
}

static void
set_speed (struct request *r)
{
  const json_t *speed = json_object_get (r->args, "speed");

  if (!json_is_integer (speed) || json_integer_value (speed) < 0) {
    control_error (r->peer, r->id, "GenericError",
                   "speed must be a number of bytes a second, 0 for no limit");
    return;
  }
  set_rate (r->c, speed);
  done (r);
}

/* All values are looked at before the first one is taken. */
static void
set_options (struct request *r)
{
  const json_t *limit = json_object_get (r->args, "bandwidth-limit");
  const json_t *downtime = json_object_get (r->args, "max-downtime-ms");
  const char *policy = json_string_value (json_object_get (r->args, "policy"));
  const char *why = settings_fault (r->args);

  if (why == NULL && policy != NULL && strcmp (policy, "none") != 0 && strcmp (policy, "fail") != 0)
    why = "policy must be none or fail: QEMU has this disk open by itself, and delays no write";
  if (why == NULL
      && (json_object_get (r->args, "synchronous") != NULL
          || json_object_get (r->args, "max-write-delay-ms") != NULL))
    why = "QEMU has this disk open by itself, and delays no write";
  if (why != NULL) {
    control_error (r->peer, r->id, "GenericError", "%s", why);
    return;
  }
  if (limit != NULL)
    set_rate (r->c, limit);
  if (downtime != NULL)
    r->c->max_downtime_ms = (uint64_t)json_integer_value (downtime);
  if (policy != NULL) {
    r->c->fail_if_slow = strcmp (policy, "fail") == 0;
    r->c->tracked.told_slow = false;
  }
  done (r);
}

static void
set_paused (struct request *r, bool paused)
{
  if (paused && (r->c->tracked.held || r->s->handoff.active)) {
    control_error (r->peer, r->id, "Busy", "a hand-over is under way");
    return;
  }
  tracked_set_paused (r->c, paused);
  done (r);
}

static void
pause_job (struct request *r)
{
  set_paused (r, true);
}

static void
resume_job (struct request *r)
{
  set_paused (r, false);
}

static void
not_begun (struct request *r)
{
  control_error (r->peer, r->id, "DeviceNotActive", "the job has not begun yet, or is over");
}

static void
ask (struct copy *c, enum job_signal what)
{
  atomic_store (c->o->signal, what);
  fd_wake (c->o->signal_fd);
}

static void
cancel (struct request *r)
{
  struct copy *c = r->c != NULL ? r->c : r->s->proving;

  if (c == NULL) {
    not_begun (r);
    return;
  }
  if (!copy_handoff_give_up (&r->s->handoff, "GenericError", "the job was cancelled")) {
    control_error (r->peer, r->id, "AlreadyCommitted", "this disk was handed over already");
    return;
  }
  ask (c, JOB_SIGNAL_CANCEL);
  done (r);
}

static void
complete (struct request *r)
{
  if (!r->c->tracked.ready || r->c->tracked.paused || r->s->handoff.active) {
    control_error (r->peer, r->id, "NotReady", "the job is not ready: it is %s",
                   tracked_state (r->c));
    return;
  }
  ask (r->c, JOB_SIGNAL_COMPLETE);
  done (r);
}

/* ---- hand-off ------------------------------------------------------------------------------- */

static void
prepare (struct request *r)
{
  copy_handoff_prepare (&r->s->handoff, r->peer, r->id, r->args, r->fd);
  r->fd = -1;
}

static void
prepare_now (struct request *r)
{
  copy_handoff_prepare_now (&r->s->handoff, r->peer, r->id);
}

static void
decision (struct request *r)
{
  copy_handoff_decision (&r->s->handoff, r->peer, r->id, r->args);
}

static void
release (struct request *r)
{
  copy_handoff_release (&r->s->handoff, r->peer, r->id, r->args);
}

static void
finalize (struct request *r)
{
  copy_handoff_finalize (&r->s->handoff, r->peer, r->id, r->args);
}

static void
rollback (struct request *r)
{
  control_error (r->peer, r->id, "NotFenced",
                 "this disk is not fenced: the command `cont` to QEMU's monitor lets the guest go "
                 "on, which must not run at the destination then");
}

/* ---- dispatch ------------------------------------------------------------------------------- */

static void query_commands (struct request *r);

static const struct {
  const char *name;
  void (*run) (struct request *r);
  bool needs_job;
} commands[] = {
  { "query-version", query_version, false },    { "query-commands", query_commands, false },
  { "query-mirror", query_mirror, false },      { "block-job-set-speed", set_speed, true },
  { "block-job-pause", pause_job, true },       { "block-job-resume", resume_job, true },
  { "block-job-cancel", cancel, false },        { "block-job-complete", complete, true },
  { "mirror-set", set_options, true },          { "mirror-prepare", prepare, false },
  { "mirror-prepare-now", prepare_now, false }, { "job-finalize", finalize, false },
  { "mirror-decision", decision, false },       { "mirror-release", release, false },
  { "mirror-rollback", rollback, false },
};
#define NR_COMMANDS (sizeof commands / sizeof commands[0])

static void
query_commands (struct request *r)
{
  json_t *list = json_array ();

  json_array_append_new (list, json_pack ("{s:s}", "name", "qmp_capabilities"));
  for (size_t i = 0; i < NR_COMMANDS; i++)
    json_array_append_new (list, json_pack ("{s:s}", "name", commands[i].name));
  control_reply (r->peer, r->id, list, -1);
}

static void
on_command (void *opaque, struct control_peer *peer, const char *name, json_t *args, json_t *id,
            int fd)
{
  struct copy_server *s = opaque;
  struct request r
      = { .s = s, .c = s->handoff.copy, .peer = peer, .args = args, .id = id, .fd = fd };
  size_t i = 0;

  while (i < NR_COMMANDS && strcmp (commands[i].name, name) != 0)
    i++;
  if (i == NR_COMMANDS && strcmp (name, "mirror-verify") == 0)
    control_error (peer, id, "CommandNotFound",
                   "a disk that QEMU has open by itself cannot be verified while it is mirrored");
  else if (i == NR_COMMANDS)
    control_error (peer, id, "CommandNotFound",
                   "the worker of a disk that QEMU has open by itself does not know '%s'", name);
  else if (commands[i].needs_job && r.c == NULL)
    not_begun (&r);
  else
    commands[i].run (&r);
  fd_close (&r.fd);
}

static void
on_closed (void *opaque, struct control_peer *peer)
{
  struct copy_server *s = opaque;
  copy_handoff_peer_closed (&s->handoff, peer);
}

static bool
is_needed (void *opaque, const struct control_peer *peer)
{
  const struct copy_server *s = opaque;
  return s->handoff.active && peer == s->handoff.peer;
}

static const struct control_server_ops ops
    = { .command = on_command, .closed = on_closed, .needed = is_needed };

/* ---- its life ------------------------------------------------------------------------------- */

struct copy_server *
copy_server_new (const char *path, char **error)
{
  struct copy_server *s = calloc (1, sizeof *s);

  if (s == NULL)
    abort ();
  s->handoff.generation = (uint64_t)clock_date_us (); /* as the filter's: gate.h */
  s->status
      = json_pack ("{s:s, s:s, s:s}", "id", DEFAULT_ID, "state", "copying", "worker", "attached");
  s->server = control_server_new (path, GREETING, &ops, s, error);
  if (s->server != NULL)
    return s;
  copy_server_free (s);
  return NULL;
}

void
copy_server_free (struct copy_server *s)
{
  if (s == NULL)
    return;
  control_server_free (s->server);
  copy_handoff_free (&s->handoff);
  json_decref (s->status);
  free (s);
}

struct copy_handoff *
copy_server_handoff (struct copy_server *s)
{
  return s != NULL ? &s->handoff : NULL;
}

void
copy_server_prove (struct copy_server *s, struct copy *c)
{
  if (s == NULL)
    return;
  s->proving = c;
  json_object_set_new (s->status, "target", copy_target (c));
  json_object_set_new (s->status, "total-s",
                       json_real ((double)(clock_ns () - c->start_ns) / NS_PER_S));
  copy_server_poll (s, 0, NULL, 0);
}

void
copy_server_begin (struct copy_server *s, struct copy *c)
{
  s->proving = NULL;
  s->handoff.copy = c;
}

void
copy_server_tell (struct copy_server *s, json_t *status)
{
  json_object_set_new (status, "id", json_string (DEFAULT_ID));
  if (s->handoff.committed)
    json_object_set_new (status, "rollback-token", json_string (s->handoff.token));
  json_object_update (s->status, status);
}

int
copy_server_poll (struct copy_server *s, int timeout_ms, struct pollfd *extra, unsigned nr_extra)
{
  if (s == NULL)
    return poll (extra, nr_extra, timeout_ms);
  int r = control_server_poll (s->server, timeout_ms, extra, nr_extra);
  for (unsigned i = 0; r == 0 && i < nr_extra; i++)
    r += extra[i].revents != 0;
  return r;
}

void
copy_server_linger (struct copy_server *s, json_t *report, _Atomic int *signal, int signal_fd)
{
  uint64_t start = clock_ms (), seen = start;

  if (report != NULL)
    copy_server_tell (s, report);
  else /* it never began */
    json_object_set_new (
        s->status, "state",
        json_string (job_signal_ends (atomic_load (signal)) ? "cancelled" : "failed"));
  json_object_set_new (s->status, "worker", json_string ("detached"));
  for (;;) {
    uint64_t now = clock_ms ();
    int asked = atomic_load (signal);
    if (control_server_peers (s->server) > 0)
      seen = now;
    bool expected = s->handoff.committed ? now - seen < NOBODY_MS && now - start < LINGER_MS
                                         : now == seen && now - start < CLIENTS_MS;
    /* A job that was cancelled is asked by who has cancelled it. */
    if (!expected
        || (s->handoff.committed && (asked == JOB_SIGNAL_CANCEL || asked == JOB_SIGNAL_DETACH)))
      return;
    struct pollfd fd = { .fd = signal_fd, .events = POLLIN };
    if (copy_server_poll (s, LINGER_LOOK_MS, &fd, 1) > 0)
      fd_wake_clear (signal_fd);
  }
}
