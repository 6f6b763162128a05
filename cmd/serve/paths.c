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

#include "cmd/cmd.h"
#include "cmd/serve/paths.h"
#include "cmd/serve/tidy.h"

char *
server_absolute_path (const char *option, const char *path)
{
  char *copy1 = strdup (path), *copy2 = strdup (path), *folder = NULL, *full = NULL;
  const char *base = copy2 != NULL ? basename (copy2) : NULL;

  if (copy1 == NULL || copy2 == NULL)
    cmd_error ("%s", strerror (errno));
  else if (path[0] == '\0' || path[strlen (path) - 1] == '/' || strcmp (base, ".") == 0
           || strcmp (base, "..") == 0)
    cmd_error ("%s '%s': not the name of a file", option, path);
  else if ((folder = realpath (dirname (copy1), NULL)) == NULL)
    cmd_error ("%s %s: %s", option, path, strerror (errno));
  else if (asprintf (&full, "%s/%s", strcmp (folder, "/") == 0 ? "" : folder, base) == -1)
    full = NULL;
  free (copy1);
  free (copy2);
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
    cmd_error ("%s %s: the path of a socket may have %zu characters at most, this has %zu", option,
               full, sizeof addr.sun_path - 1, strlen (full));
  else
    switch (print ? TIDY_ABSENT : tidy_look (full)) {
    case TIDY_ABSENT:
      return full;
    case TIDY_STALE:
      if (unlink (full) == 0)
        return full;
      cmd_error ("%s %s: left over, and cannot be removed: %s", option, full, strerror (errno));
      break;
    case TIDY_IN_USE:
      cmd_error ("%s %s: in use by another server", option, full);
      break;
    case TIDY_NO_SOCKET:
      cmd_error ("%s %s: exists and is not a socket", option, full);
      break;
    }
  free (full);
  return NULL;
}

char *
server_find_filter (const char *name, const char *variable)
{
  const char *env = getenv (variable);
  char exe[PATH_MAX], *found = NULL;
  ssize_t n;

  if (env != NULL && env[0] != '\0')
    return strchr (env, '/') != NULL ? server_absolute_path (variable, env) : strdup (env);
  n = readlink ("/proc/self/exe", exe, sizeof exe - 1);
  if (n > 0) {
    exe[n] = '\0';
    if (asprintf (&found, "%s/nbd-plugin/.libs/nbdkit-%s-filter.so", dirname (exe), name) == -1)
      abort ();
    if (access (found, R_OK) == 0)
      return found;
    free (found);
  }
  if (asprintf (&found, FILTERDIR "/nbdkit-%s-filter.so", name) == -1)
    abort ();
  if (access (found, R_OK) == 0)
    return found;
  free (found);
  return strdup (name);
}

char *
server_escape (const char *text)
{
  static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/";
  char *out = malloc (3 * strlen (text) + 1), *p = out;

  if (out == NULL)
    abort ();
  for (; *text != '\0'; text++)
    if (strchr (plain, *text) != NULL)
      *p++ = *text;
    else
      p += sprintf (p, "%%%02X", (unsigned char)*text);
  *p = '\0';
  return out;
}
