/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See machine.h.
 */

#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/migrate/libvirt-monitor.h"
#include "cmd/migrate/machine.h"

#define CONT_TRIES 30
#define CONT_PAUSE_MS 1000
#define MAX_LINE (16u * 1024 * 1024) /* query-block of a machine with many disks */

int
machine_connect (struct machine *v, char **error)
{
  char *message = NULL;

  machine_close (v);
  if (libvirt_is_meant (v->path)) { /* a connection for each command */
    v->peer = (struct peer){ .pid = libvirt_process (v->path) };
    v->peer.is_qemu = v->peer.pid > 0;
    return 0;
  }
  v->qmp = control_client_connect (v->path, MACHINE_CONNECT_MS, &message);
  if (v->qmp == NULL) {
    /* The client's own words are for a disk's control socket. */
    if (access (v->path, F_OK) == -1 && errno == ENOENT)
      text_error (error,
                  "%s QEMU: %s: no such monitor socket (is QEMU running, with"
                  " -qmp unix:%s,server=on?)",
                  v->name, v->path, v->path);
    else
      text_error (error, "%s QEMU: %s", v->name, message);
    text_free (message);
    return -1;
  }
  control_client_set_max_line (v->qmp, MAX_LINE);
  peer_look (control_client_fd (v->qmp), &v->peer);
  return 0;
}

void
machine_close (struct machine *v)
{
  control_client_free (v->qmp);
  v->qmp = NULL;
}

void
machine_free (struct machine *v)
{
  machine_close (v);
  json_decref (v->old_caps);
  json_decref (v->old_params);
}

static void
take_event (struct machine *v, const char *name, json_t *data)
{
  const char *status = json_string_value (json_object_get (data, "status"));

  if (strcmp (name, "STOP") == 0)
    v->stop_ns = clock_ns ();
  else if (strcmp (name, "RESUME") == 0)
    v->resume_ns = clock_ns ();
  else if (strcmp (name, "MIGRATION") == 0 && status != NULL)
    snprintf (v->migration, sizeof v->migration, "%s", status);
  journal_event (v->journal, "qmp-event",
                 json_pack ("{s:s, s:s, s:O}", "side", v->name, "name", name, "data", data));
}

int
machine_events (struct machine *v)
{
  char *name, *error = NULL;
  json_t *data;
  int r;

  if (v->qmp == NULL)
    return -1;
  while ((r = control_client_next_event (v->qmp, 0, &name, &data, &error)) == 1) {
    take_event (v, name, data);
    free (name);
    json_decref (data);
  }
  if (r == -1) {
    journal_event (v->journal, "qmp-lost",
                   json_pack ("{s:s, s:s}", "side", v->name, "reason", error));
    text_free (error);
    machine_close (v);
  }
  return r;
}

int
machine_call (struct machine *v, const char *command, json_t *args, json_t **ret, bool *refused,
              char **error)
{
  char *message = NULL, *class_ = NULL;

  if (refused != NULL)
    *refused = false;
  if (v->qmp == NULL && machine_connect (v, error) == -1) {
    json_decref (args);
    return -1;
  }
  struct control_call call = {
    .command = command, .args = args, .timeout_ms = MACHINE_CALL_MS, .ret = ret, .class_ = &class_
  };
  int r = libvirt_is_meant (v->path) ? libvirt_call (v->path, command, args, ret, &class_, &message)
                                     : control_client_call (v->qmp, &call, &message);
  /* Questions are asked all the time, so the log does without them. */
  if (r == -1 || strncmp (command, "query-", 6) != 0)
    journal_event (
        v->journal, "qmp",
        json_pack ("{s:s, s:s, s:s*}", "side", v->name, "command", command, "error", message));
  if (r == -1) {
    if (refused != NULL)
      *refused = class_ != NULL;
    if (class_ == NULL) {
      v->unanswered = v->qmp == NULL || !control_client_is_lost (v->qmp);
      machine_events (v); /* those that came before the end */
      machine_close (v);
    }
    text_error (error, "%s QEMU: %s: %s", v->name, command, message);
    text_free (message);
  }
  text_free (class_);
  if (v->brief)
    machine_close (v);
  return r;
}

bool
machine_is_lost (const struct machine *v)
{
  return v->qmp == NULL && !v->brief;
}

bool
machine_is_dead (const struct machine *v)
{
  return control_nobody_listens (v->path);
}

/* RAM is query-migrate's, or NULL. */
static void
keep_memory (struct machine *v, json_t *ram)
{
  json_t *left = json_object_get (ram, "remaining"), *total = json_object_get (ram, "total");

  v->memory_sent = json_integer_value (json_object_get (ram, "transferred"));
  /* Before it has counted its pages QEMU says that nothing is left. */
  if (json_integer_value (left) == 0
      && json_integer_value (json_object_get (ram, "transferred")) == 0)
    return;
  if (json_is_integer (left) && json_is_integer (total)) {
    v->memory_left = json_integer_value (left);
    v->memory_total = json_integer_value (total);
  }
}

static void
query_status (struct machine *v, const char *command, char buf[32])
{
  json_t *ret = NULL;
  char *error = NULL;

  buf[0] = '\0';
  if (machine_call (v, command, NULL, &ret, NULL, &error) == 0) {
    const char *status = json_string_value (json_object_get (ret, "status"));
    snprintf (buf, 32, "%s", status != NULL ? status : "none");
    keep_memory (v, json_object_get (ret, "ram"));
  }
  json_decref (ret);
  text_free (error);
}

void
machine_status (struct machine *v, char buf[32])
{
  query_status (v, "query-status", buf);
}

void
machine_migration (struct machine *v, char buf[32])
{
  query_status (v, "query-migrate", buf);
}

int
machine_continue (struct machine *v, char **error)
{
  char status[32];

  for (int tries = 0; tries < CONT_TRIES; tries++) {
    text_free (*error);
    *error = NULL;
    machine_status (v, status);
    if (strcmp (status, "running") == 0 || machine_call (v, "cont", NULL, NULL, NULL, error) == 0)
      return 0;
    if (machine_is_dead (v))
      break;
    clock_sleep_ms (CONT_PAUSE_MS);
  }
  return -1;
}

/* The state of capability NAME in the answer to query-migrate-capabilities; NULL: QEMU does not
 * know it. */
static json_t *
find_capability (json_t *list, const char *name)
{
  json_t *c;
  size_t i;

  json_array_foreach (list, i, c)
  {
    const char *its = json_string_value (json_object_get (c, "capability"));

    if (its != NULL && strcmp (its, name) == 0)
      return json_object_get (c, "state");
  }
  return NULL;
}

/* Which of the capabilities of ARGS (NAME, value, ..., NULL) have to change in NOW, the answer to
 * query-migrate-capabilities?  They go to WANTED, and as they are now to OLD.  -1 with *ERROR. */
static int
compare_capabilities (const struct machine *v, json_t *now, va_list args, json_t *wanted,
                      json_t *old, char **error)
{
  const char *name;

  while ((name = va_arg (args, const char *)) != NULL) {
    int value = va_arg (args, int);
    json_t *state = find_capability (now, name);

    if (state == NULL && value)
      return text_error (error, "%s QEMU: it has no migration capability '%s'", v->name, name);
    if (state != NULL && json_is_true (state) != (value != 0)) {
      json_array_append_new (wanted, json_pack ("{s:s, s:b}", "capability", name, "state", value));
      json_array_append_new (old, json_pack ("{s:s, s:b}", "capability", name, "state", !value));
    }
  }
  return 0;
}

int
machine_set_capabilities (struct machine *v, char **error, ...)
{
  json_t *now = NULL, *wanted = json_array (), *old = json_array ();
  va_list args;

  va_start (args, error);
  int r = machine_call (v, "query-migrate-capabilities", NULL, &now, NULL, error);
  if (r == 0)
    r = compare_capabilities (v, now, args, wanted, old, error);
  va_end (args);
  if (r == 0 && json_array_size (wanted) > 0 && !v->only_look)
    r = machine_call (v, "migrate-set-capabilities", json_pack ("{s:O}", "capabilities", wanted),
                      NULL, NULL, error);
  if (r == 0 && json_array_size (old) > 0 && v->old_caps == NULL && !v->only_look)
    v->old_caps = json_incref (old);
  json_decref (now);
  json_decref (wanted);
  json_decref (old);
  return r;
}
