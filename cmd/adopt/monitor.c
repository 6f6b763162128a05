/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See monitor.h.
 */

#include "config.h"

#include <string.h>

#include "base/text.h"
#include "cmd/adopt/monitor.h"
#include "cmd/migrate/libvirt-monitor.h"

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
  const char *package = json_string_value (json_object_get (ret, "package"));
  bool ours = package != NULL && strncmp (package, "nbdmirror", strlen ("nbdmirror")) == 0;
  json_decref (ret);
  if (ours) {
    *refused = true;
    return text_error (
        error, "%s: this is a control socket of nbdmirror's, and no monitor of QEMU's", v->path);
  }
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
  *refused = libvirt_owns (v->path);
  if (*refused)
    return text_error (error,
                       "%s: libvirt keeps this monitor to itself: name the guest, as "
                       "libvirt:NAME, in its place",
                       v->path);
  if (machine_connect (v, error) == -1 || check_version (v, refused, error) == -1)
    return -1;
  return under_libvirt || libvirt_is_meant (v->path) ? 0 : check_libvirt (v, refused, error);
}

pid_t
monitor_process (const struct machine *v)
{
  return v->peer.is_qemu ? v->peer.pid : 0;
}
