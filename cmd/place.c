/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Is the name of a SOURCE or DEST what it seems to be?  Whatever is no URI is a path, and a
 * destination file that is missing is created: a slip in a URI would fill a local file instead of
 * the other host's disk. So names that look like a URI, a HOST:PORT or a command, and are none, are
 * refused, unless there is such a file.  With a directory before it (./NAME) every name is a path.
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/cmd.h"
#include "mirror/endpoint/ssh.h"

#define SCHEMES "nbd, nbds, nbd+unix, nbds+unix, nbd+vsock, nbds+vsock, nbd+ssh, nbds+ssh, ssh"

static bool
starts_with (const char *s, const char *prefix)
{
  return strncmp (s, prefix, strlen (prefix)) == 0;
}

/* Is the scheme, up to the colon at LEN, one that libnbd knows? */
static bool
known_scheme (const char *name, size_t len)
{
  char scheme[20], list[] = SCHEMES;

  if (len >= sizeof scheme)
    return false;
  snprintf (scheme, sizeof scheme, "%.*s", (int)len, name);
  for (char *s = strtok (list, ", "); s != NULL; s = strtok (NULL, ", "))
    if (strcmp (s, scheme) == 0)
      return true;
  return false;
}

/* HOST:PORT or HOST:, as one would type it. */
static bool
host_and_port (const char *name, size_t colon)
{
  const char *port = name + colon + 1;

  return colon > 0 && port[strspn (port, "0123456789")] == '\0';
}

bool
cmd_place_ok (struct cmd_line *line, const struct cmd_operand *op)
{
  const char *name = op->argv[0];
  size_t colon = strcspn (name, ":"), slash = strcspn (name, "/");
  bool has_colon = name[colon] == ':' && colon < slash;

  if (op->nr_args == 1 && is_ssh_uri (name)) {
    char *problem = ssh_uri_problem (name);
    if (problem != NULL)
      line->status = cmd_usage_error ("%s: %s", name, problem);
    bool good = problem == NULL;
    free (problem);
    return good;
  }
  if (op->nr_args != 1
      || (has_colon && known_scheme (name, colon) && starts_with (name + colon, "://"))
      || access (name, F_OK) == 0)
    return true;
  if (name[0] == '\0')
    line->status = cmd_usage_error ("an empty name, where a disk is wanted");
  else if (starts_with (name, "[ "))
    line->status
        = cmd_usage_error ("'%s' is one word: in [ COMMAND ARGS ] each word, and each bracket, is "
                           "one of its own",
                           name);
  else if (has_colon && starts_with (name + colon, "://"))
    line->status
        = cmd_usage_error ("%s: '%.*s' is no NBD URI's scheme: " SCHEMES, name, (int)colon, name);
  else if (has_colon && known_scheme (name, colon))
    line->status
        = cmd_usage_error ("%s: an NBD URI begins with '%.*s://'; a local file of this name is "
                           "written ./%s",
                           name, (int)colon, name, name);
  else if (has_colon && host_and_port (name, colon))
    line->status
        = cmd_usage_error ("%s: an NBD server is written nbd://%s/; a local file of this name, "
                           "./%s",
                           name, name, name);
  else
    return true;
  return false;
}
