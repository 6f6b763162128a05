/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See libvirt-monitor.h.
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/child.h"
#include "base/pid-file.h"
#include "base/text.h"
#include "cmd/migrate/libvirt-monitor.h"

#define PREFIX "libvirt:"

static const char *
guest_of (const char *path)
{
  return path + strlen (PREFIX);
}

bool
libvirt_is_meant (const char *path)
{
  return strncmp (path, PREFIX, strlen (PREFIX)) == 0;
}

/* /var/lib/libvirt/qemu/domain-1-vm1/monitor.sock, and the same below a user's own folder. */
bool
libvirt_owns (const char *path)
{
  char *real = realpath (path, NULL);
  bool owns = real != NULL && strstr (real, "/libvirt/qemu/") != NULL
              && strstr (real, "/domain-") != NULL;

  free (real);
  return owns;
}

pid_t
libvirt_process (const char *path)
{
  CLEANUP_TEXT char *name = text_printf ("/run/libvirt/qemu/%s.pid", guest_of (path));

  return strchr (guest_of (path), '/') == NULL ? pid_file_read (name) : 0;
}

/* Take ANSWER apart, which is QEMU's. */
static int
read_answer (const char *path, const json_t *answer, json_t **ret, char **class_, char **error)
{
  const json_t *failure = json_object_get (answer, "error");
  const char *its = json_string_value (json_object_get (failure, "class"));
  const char *desc = json_string_value (json_object_get (failure, "desc"));

  if (json_object_get (answer, "return") != NULL) {
    if (ret != NULL)
      *ret = json_incref (json_object_get (answer, "return"));
    return 0;
  }
  if (failure == NULL)
    return text_error (error, "%s: virsh qemu-monitor-command has printed no answer of QEMU's",
                       path);
  *class_ = text_copy (its != NULL ? its : "GenericError");
  return text_error (error, "%s", desc != NULL ? desc : "QEMU gave no reason");
}

int
libvirt_call (const char *path, const char *command, json_t *args, json_t **ret, char **class_,
              char **error)
{
  json_t *message = json_pack ("{s:s, s:o*}", "execute", command, "arguments", args);
  char *text = json_dumps (message, JSON_COMPACT), *output = NULL;
  const char *const words[]
      = { "virsh", "-q", "qemu-monitor-command", guest_of (path), "--", text, NULL };
  json_error_t ignored;

  if (text == NULL)
    abort ();
  int status = child_run (words, &output);
  json_t *answer = status == 0 && output != NULL ? json_loads (output, 0, &ignored) : NULL;
  int r = status == 0 ? read_answer (path, answer, ret, class_, error)
                      : text_error (error, "%s: virsh qemu-monitor-command: %s", path,
                                    status == -1 ? "it could not be run (is libvirt installed?)"
                                                 : "it has failed");
  json_decref (answer);
  json_decref (message);
  free (output);
  free (text);
  return r;
}
