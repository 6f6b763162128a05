/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * One QEMU's monitor.  QMP is the wire format of our own control protocol, so its client serves
 * here as well.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "cmd/migrate/migrate.h"

#define QMP_MAX_LINE (16u * 1024 * 1024) /* query-block of a machine with many disks */
#define DYING_MS                                                                                   \
  1000 /* a process that ends closes its connections and its listening socket one by one */

/* The side before MESSAGE (stolen, may be NULL). */
static char *
name_side (const struct vm *vm, const char *command, char *message)
{
  char *full;

  if (asprintf (&full, "%s QEMU: %s%s%s", vm->name, command != NULL ? command : "",
                command != NULL ? ": " : "", message != NULL ? message : "out of memory")
      == -1)
    full = NULL;
  free (message);
  return full;
}

/* ---- who listens there?
 * -------------------------------------------------------------------------- */

static bool
is_qemu_name (const char *name)
{
  const char *slash = strrchr (name, '/');

  if (slash != NULL)
    name = slash + 1;
  return strncmp (name, "qemu", 4) == 0 || strncmp (name, "kvm", 3) == 0;
}

/* What PID calls itself: QEMU's -name can change that. */
static bool
has_qemu_comm (pid_t pid)
{
  char path[64], name[32] = "";
  FILE *fp;

  snprintf (path, sizeof path, "/proc/%ld/comm", (long)pid);
  fp = fopen (path, "re");
  if (fp == NULL)
    return false;
  if (fgets (name, sizeof name, fp) == NULL)
    name[0] = '\0';
  fclose (fp);
  return is_qemu_name (name);
}

/* QEMU takes one dash or two. */
static bool
is_option (const char *word, const char *name)
{
  return word[0] == '-' && strcmp (word + (word[1] == '-' ? 2 : 1), name) == 0;
}

/* PID's command line: is it a QEMU's, that waits for a migration (*WAITS), and does it hold -S
 * (*STOPPED)? */
static bool
has_qemu_arguments (pid_t pid, bool *waits, bool *stopped)
{
  char path[64], *word = NULL;
  size_t size = 0;
  bool first = true, qemu = false;
  FILE *fp;

  *waits = *stopped = false;
  snprintf (path, sizeof path, "/proc/%ld/cmdline", (long)pid);
  fp = fopen (path, "re");
  if (fp == NULL)
    return false;
  for (; getdelim (&word, &size, '\0', fp) > 0; first = false) {
    if (first)
      qemu = is_qemu_name (word);
    *waits = *waits || is_option (word, "incoming");
    *stopped = *stopped || is_option (word, "S");
  }
  free (word);
  fclose (fp);
  return qemu;
}

/* A forwarded monitor (ssh -L) ends with the network, and says nothing about the QEMU behind it.  A
 * launcher that has made the socket for its QEMU (libvirt) is no QEMU either. */
static void
look_at_peer (struct vm *vm)
{
  struct ucred peer;
  socklen_t len = sizeof peer;
  bool qemu, waits, stopped;

  vm->direct = false;
  vm->start = VM_START_UNKNOWN;
  if (getsockopt (control_client_fd (vm->qmp), SOL_SOCKET, SO_PEERCRED, &peer, &len) == -1
      || peer.pid <= 0)
    return;
  qemu = has_qemu_arguments (peer.pid, &waits, &stopped);
  vm->direct = qemu || has_qemu_comm (peer.pid);
  if (qemu && waits)
    vm->start = stopped ? VM_START_PAUSED : VM_START_RUNS;
}

int
vm_connect (struct vm *vm, char **error)
{
  char *message = NULL;

  vm_close (vm);
  vm->qmp = control_client_connect (vm->path, QMP_CONNECT_MS, &message);
  if (vm->qmp == NULL) {
    if (access (vm->path, F_OK) == -1
        && errno == ENOENT) { /* the client's words are for a disk's control socket */
      free (message);
      if (asprintf (&message,
                    "%s: no such monitor socket (is QEMU running, with -qmp unix:%s,server=on?)",
                    vm->path, vm->path)
          == -1)
        message = NULL;
    }
    *error = name_side (vm, NULL, message);
    return -1;
  }
  control_client_set_max_line (vm->qmp, QMP_MAX_LINE);
  look_at_peer (vm);
  return 0;
}

void
vm_close (struct vm *vm)
{
  control_client_free (vm->qmp);
  vm->qmp = NULL;
}

static void
take_event (struct vm *vm, const char *name, json_t *data)
{
  const char *status = json_string_value (json_object_get (data, "status"));

  if (strcmp (name, "STOP") == 0)
    vm->stop_ms = migrate_now ();
  else if (strcmp (name, "RESUME") == 0)
    vm->resume_ms = migrate_now ();
  else if (strcmp (name, "MIGRATION") == 0 && status != NULL)
    snprintf (vm->migration, sizeof vm->migration, "%s", status);
  log_event (vm->m, "qmp-event",
             json_pack ("{s:s, s:s, s:O}", "side", vm->name, "name", name, "data", data));
}

int
vm_events (struct vm *vm)
{
  char *name, *error = NULL;
  json_t *data;
  int r;

  if (vm->qmp == NULL)
    return -1;
  while ((r = control_client_next_event (vm->qmp, 0, &name, &data, &error)) == 1) {
    take_event (vm, name, data);
    free (name);
    json_decref (data);
  }
  if (r == -1) {
    log_event (vm->m, "qmp-lost",
               json_pack ("{s:s, s:s}", "side", vm->name, "reason",
                          error != NULL ? error : "out of memory"));
    free (error);
    vm_close (vm);
  }
  return r;
}

int
vm_call (struct vm *vm, const char *command, json_t *args, json_t **ret, bool *refused,
         char **error)
{
  char *message = NULL, *class_ = NULL;
  int r;

  if (refused != NULL)
    *refused = false;
  if (vm->qmp == NULL && vm_connect (vm, error) == -1) {
    json_decref (args);
    return -1;
  }
  struct control_call call = {
    .command = command, .args = args, .timeout_ms = QMP_CALL_MS, .ret = ret, .class_ = &class_
  };
  r = control_client_call (vm->qmp, &call, &message);
  /* Questions are asked all the time. */
  if (r == -1 || strncmp (command, "query-", 6) != 0)
    log_event (
        vm->m, "qmp",
        json_pack ("{s:s, s:s, s:s*}", "side", vm->name, "command", command, "error", message));
  if (r == -1) {
    if (refused != NULL)
      *refused = class_ != NULL;
    if (class_ == NULL) {
      vm_events (vm); /* those that came before the end */
      vm_close (vm);
    }
    *error = name_side (vm, command, message);
  }
  free (class_);
  return r;
}

bool
vm_is_dead (const struct vm *vm)
{
  struct sockaddr_un sa = { .sun_family = AF_UNIX };
  int sock = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  bool dead;

  if (sock == -1 || strlen (vm->path) >= sizeof sa.sun_path)
    return false;
  strcpy (sa.sun_path, vm->path);
  dead = connect (sock, (struct sockaddr *)&sa, sizeof sa) == -1
         && (errno == ECONNREFUSED || errno == ENOENT);
  close (sock);
  return dead;
}

bool
vm_wait_dead (struct vm *vm)
{
  double end = migrate_now () + DYING_MS;

  if (!vm->direct)
    return false;
  while (!vm_is_dead (vm)) {
    if (migrate_now () > end)
      return false;
    migrate_wait (vm->m, 10);
  }
  return true;
}

/* RAM is query-migrate's, or NULL. */
static void
keep_memory (struct vm *vm, json_t *ram)
{
  json_t *left = json_object_get (ram, "remaining"), *total = json_object_get (ram, "total");

  /* Before it has counted its pages QEMU says that nothing is left. */
  if (json_integer_value (left) == 0
      && json_integer_value (json_object_get (ram, "transferred")) == 0)
    return;
  if (json_is_integer (left) && json_is_integer (total)) {
    vm->memory_left = json_integer_value (left);
    vm->memory_total = json_integer_value (total);
  }
}

static void
query_status (struct vm *vm, const char *command, char buf[32])
{
  json_t *ret = NULL;
  char *error = NULL;
  const char *status;

  buf[0] = '\0';
  if (vm_call (vm, command, NULL, &ret, NULL, &error) == 0) {
    status = json_string_value (json_object_get (ret, "status"));
    snprintf (buf, 32, "%s", status != NULL ? status : "none");
    keep_memory (vm, json_object_get (ret, "ram"));
  }
  json_decref (ret);
  free (error);
}

void
vm_status (struct vm *vm, char buf[32])
{
  query_status (vm, "query-status", buf);
}

void
vm_migration (struct vm *vm, char buf[32])
{
  query_status (vm, "query-migrate", buf);
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

int
vm_set_capabilities (struct vm *vm, char **error, ...)
{
  json_t *now = NULL, *wanted = json_array (), *old = json_array ();
  const char *name;
  va_list args;
  int r = -1;

  if (vm_call (vm, "query-migrate-capabilities", NULL, &now, NULL, error) == -1)
    goto out;
  va_start (args, error);
  while ((name = va_arg (args, const char *)) != NULL) {
    int value = va_arg (args, int);
    json_t *state = find_capability (now, name);

    if (state == NULL && value)
      break;
    if (state != NULL && json_is_true (state) != (value != 0)) {
      json_array_append_new (wanted, json_pack ("{s:s, s:b}", "capability", name, "state", value));
      json_array_append_new (old, json_pack ("{s:s, s:b}", "capability", name, "state", !value));
    }
  }
  va_end (args);
  if (name != NULL) {
    if (asprintf (error, "%s QEMU: it has no migration capability '%s'", vm->name, name) == -1)
      *error = NULL;
    goto out;
  }
  r = json_array_size (wanted) == 0
          ? 0
          : vm_call (vm, "migrate-set-capabilities", json_pack ("{s:O}", "capabilities", wanted),
                     NULL, NULL, error);
  if (r == 0 && json_array_size (old) > 0 && vm->old_caps == NULL)
    vm->old_caps = json_incref (old);
out:
  json_decref (now);
  json_decref (wanted);
  json_decref (old);
  return r;
}
