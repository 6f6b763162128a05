/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See name.h.
 */

#include "config.h"

#include <stddef.h>
#include <string.h>

#include "base/text.h"
#include "control/name.h"

#define SCHEME "qmp:"

bool
control_is_of_qemu (const char *name)
{
  return strncmp (name, SCHEME, sizeof SCHEME - 1) == 0;
}

bool
control_name_split (const char *name, char **monitor, const char **node)
{
  if (!control_is_of_qemu (name))
    return false;
  name += sizeof SCHEME - 1;
  const char *slash = strrchr (name, '/');
  if (slash == NULL || slash == name || slash[1] == '\0')
    return false;
  *monitor = text_printf ("%.*s", (int)(slash - name), name);
  *node = slash + 1;
  return true;
}

char *
control_name_path (const char *name)
{
  char *monitor;
  const char *node;

  if (!control_name_split (name, &monitor, &node))
    return text_copy (name);
  char *path = text_printf ("%s.%s.nbdmirror", monitor, node);
  text_free (monitor);
  return path;
}
