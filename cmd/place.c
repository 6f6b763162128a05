/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Is the name of a SOURCE or DEST what it seems to be?  Whatever is no URI is a path, and a
 * destination file that is missing is created: a slip in a URI would fill a local file instead of
 * the other host's disk. So names that look like a URI, a HOST:PORT or a command, and are none, are
 * refused, unless there is such a file.  With a directory before it (./NAME) every name is a path.
 */

#include "config.h"

#include <string.h>
#include <unistd.h>

#include "base/text.h"
#include "cmd/cmd.h"
#include "mirror/endpoint/uri.h"

static bool
starts_with (const char *s, const char *prefix)
{
  return strncmp (s, prefix, strlen (prefix)) == 0;
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

  if (op->nr_args == 1 && uri_kind (name) != URI_NONE) {
    char *problem = uri_problem (name);
    if (problem != NULL)
      line->status = cmd_usage_error ("%s: %s", name, problem);
    bool good = problem == NULL;
    text_free (problem);
    return good;
  }
  if (op->nr_args == 1 && (strcmp (name, "-") == 0 || strcmp (name, "null:") == 0)) {
    line->status = cmd_usage_error ("%s: only 'nbdmirror copy' takes it%s; a local file of this "
                                    "name is written ./%s",
                                    name, name[0] == '-' ? "" : ", as DEST", name);
    return false;
  }
  if (op->nr_args != 1 || access (name, F_OK) == 0)
    return true;
  if (name[0] == '\0')
    line->status = cmd_usage_error ("an empty name, where a disk is wanted");
  else if (starts_with (name, "[ "))
    line->status
        = cmd_usage_error ("'%s' is one word: in [ COMMAND ARGS ] each word, and each bracket, is "
                           "one of its own",
                           name);
  else if (has_colon && starts_with (name + colon, "://"))
    line->status = cmd_usage_error ("%s: '%.*s' is no NBD URI's scheme: %s", name, (int)colon, name,
                                    uri_schemes);
  else if (has_colon && uri_scheme_kind (name, (int)colon) != URI_NONE)
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
