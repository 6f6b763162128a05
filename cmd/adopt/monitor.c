/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See monitor.h.
 */

#include "config.h"

#include <string.h>
#include <sys/socket.h>

#include "base/text.h"
#include "cmd/adopt/monitor.h"

/* blockdev-mirror with a name for its node (4.1), and a cancel that reaches a server that is not
 * there (6.1). */
#define QEMU_MAJOR 6
#define QEMU_MINOR 1

static int
check_version (struct machine *v, bool *refused, char **error)
{
  json_t *ret = NULL;

  if (machine_call (v, "query-version", NULL, &ret, NULL, error) == -1)
    return -1;
  json_t *qemu = json_object_get (ret, "qemu");
  int major = (int)json_integer_value (json_object_get (qemu, "major"));
  int minor = (int)json_integer_value (json_object_get (qemu, "minor"));
  json_decref (ret);
  if (major > QEMU_MAJOR || (major == QEMU_MAJOR && minor >= QEMU_MINOR))
    return 0;
  *refused = true;
  return text_error (error, "%s QEMU is version %d.%d; this takes %d.%d or later", v->name, major,
                     minor, QEMU_MAJOR, QEMU_MINOR);
}

/* libvirt starts each QEMU with this object. */
static int
check_libvirt (struct machine *v, bool *refused, char **error)
{
  json_t *list = NULL, *o;
  bool found = false;
  size_t i;

  if (machine_call (v, "qom-list", json_pack ("{s:s}", "path", "/objects"), &list, NULL, error)
      == -1)
    return -1;
  json_array_foreach (list, i, o)
  {
    const char *name = json_string_value (json_object_get (o, "name"));
    found = found || (name != NULL && strcmp (name, "masterKey0") == 0);
  }
  json_decref (list);
  if (!found)
    return 0;
  *refused = true;
  return text_error (error,
                     "%s: libvirt manages this guest, and would not know of the change; see "
                     "nbdmirror-migrate(1) for the way with libvirt",
                     v->path);
}

int
monitor_open (struct machine *v, bool under_libvirt, bool *refused, char **error)
{
  *refused = false;
  if (machine_connect (v, error) == -1 || check_version (v, refused, error) == -1)
    return -1;
  return under_libvirt ? 0 : check_libvirt (v, refused, error);
}

pid_t
monitor_process (const struct machine *v)
{
  struct ucred cred;
  socklen_t len = sizeof cred;

  if (v->qmp == NULL || !v->peer.is_qemu
      || getsockopt (control_client_fd (v->qmp), SOL_SOCKET, SO_PEERCRED, &cred, &len) == -1)
    return 0;
  return cred.pid;
}
