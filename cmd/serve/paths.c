/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Paths of servers.  See paths.h.
 */

#include "config.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/serve/paths.h"
#include "cmd/serve/tidy.h"

char *
server_absolute_path (const char *option, const char *path)
{
  CLEANUP_TEXT char *copy = text_copy (path);
  const char *slash = strrchr (path, '/'), *base = slash != NULL ? slash + 1 : path;
  char *folder = NULL, *full = NULL;

  if (path[0] == '\0' || base[0] == '\0' || strcmp (base, ".") == 0 || strcmp (base, "..") == 0)
    cmd_say ("%s '%s': not the name of a file", option, path);
  else if ((folder = realpath (dirname (copy), NULL)) == NULL)
    cmd_say ("%s %s: %s", option, path, strerror (errno));
  else
    full = text_printf ("%s/%s", strcmp (folder, "/") == 0 ? "" : folder, base);
  free (folder);
  return full;
}

char *
server_socket_path (const char *option, const char *path, bool print)
{
  char *full = server_absolute_path (option, path);
  struct sockaddr_un addr;

  if (full == NULL)
    return NULL;
  if (strlen (full) >= sizeof addr.sun_path)
    cmd_say ("%s %s: the path of a socket may have %zu characters at most, this has %zu", option,
             full, sizeof addr.sun_path - 1, strlen (full));
  else
    switch (print ? TIDY_ABSENT : tidy_look (full)) {
    case TIDY_ABSENT:
      return full;
    case TIDY_STALE:
      if (unlink (full) == 0)
        return full;
      cmd_say ("%s %s: left over, and cannot be removed: %s", option, full, strerror (errno));
      break;
    case TIDY_IN_USE:
      cmd_say ("%s %s: in use by another server", option, full);
      break;
    case TIDY_NO_SOCKET:
      cmd_say ("%s %s: exists and is not a socket", option, full);
      break;
    }
  text_free (full);
  return NULL;
}

/* KIND is "filter" or "plugin", and DIR is where it is installed. */
static char *
find_module (const char *name, const char *kind, const char *dir, const char *variable)
{
  const char *env = getenv (variable);
  if (env != NULL && env[0] != '\0')
    return strchr (env, '/') != NULL ? server_absolute_path (variable, env) : text_copy (env);

  char exe[PATH_MAX];
  ssize_t n = readlink ("/proc/self/exe", exe, sizeof exe - 1);
  if (n > 0) {
    exe[n] = '\0';
    char *built = text_printf ("%s/nbd-plugin/.libs/nbdkit-%s-%s.so", dirname (exe), name, kind);
    if (access (built, R_OK) == 0)
      return built;
    text_free (built);
  }
  char *installed = text_printf ("%s/nbdkit-%s-%s.so", dir, name, kind);
  if (access (installed, R_OK) == 0)
    return installed;
  text_free (installed);
  return text_copy (name);
}

char *
server_find_filter (const char *name, const char *variable)
{
  return find_module (name, "filter", FILTERDIR, variable);
}

char *
server_find_plugin (const char *name, const char *variable)
{
  return find_module (name, "plugin", PLUGINDIR, variable);
}

char *
server_escape (const char *text)
{
  static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/";
  char *out = text_copy ("");

  for (; *text != '\0'; text++) {
    bool as_it_is = strchr (plain, *text) != NULL;
    char *longer = as_it_is ? text_printf ("%s%c", out, *text)
                            : text_printf ("%s%%%02X", out, (unsigned char)*text);
    text_free (out);
    out = longer;
  }
  return out;
}
