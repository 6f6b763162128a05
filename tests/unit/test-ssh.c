/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves of mirror/endpoint/ssh.c: what a URI becomes for ssh and, word by word, for the shell at
 * the other end; whatever is in it, it stays data.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "tests/unit/unit.h"

#include "base/text.h"
#include "mirror/endpoint/ssh.h"
#include "mirror/endpoint/uri.h"

static void
is_command (const char *uri, const struct endpoint_options *opts, const char *want)
{
  char *error = NULL, got[2000] = "";
  struct uri *u = uri_read (uri, &error);

  cr_assert_not_null (u, "%s: %s", uri, error);
  char **argv = ssh_command (u, opts);
  uri_free (u);
  for (char **w = argv; *w != NULL; w++) {
    if (w != argv)
      strcat (got, "|");
    strcat (got, *w);
  }
  cr_assert_str_eq (got, want, "%s became %s", uri, got);
  ssh_command_free (argv);
}

Test (ssh, commands)
{
  const struct endpoint_options create = { .writable = true, .create = true, .create_size = 4096 };
  const struct endpoint_options go_on = { .writable = true }, read_only = { .writable = false };

  unsetenv ("NBDMIRROR_SSH");
  is_command ("ssh://h/d", &create,
              "ssh|-T|-oBatchMode=yes|-oServerAliveInterval=30|--|h|'nbdmirror' 'receive' "
              "'--stdio' '--size' '4096' '/d'");
  is_command ("ssh://u@h:22/a/b", &go_on,
              "ssh|-T|-oBatchMode=yes|-oServerAliveInterval=30|-p22|-lu|--|h|'nbdmirror' 'receive' "
              "'--stdio' '--resume' '/a/b'");
  is_command ("ssh://[fe80::1]:2/d?overwrite&preallocate&format=raw", &read_only,
              "ssh|-T|-oBatchMode=yes|-oServerAliveInterval=30|-p2|--|fe80::1|'nbdmirror' "
              "'receive' '--stdio' '--format' 'raw' "
              "'--read-only' '/d'");
  is_command (
      "ssh://h/d?overwrite&overcommit&format=qcow2&backing=/b%20c&backing-format=raw&program=/opt/"
      "n",
      &create,
      "ssh|-T|-oBatchMode=yes|-oServerAliveInterval=30|--|h|'/opt/n' 'receive' '--stdio' "
      "'--format' 'qcow2' '--size' '4096' "
      "'--backing' '/b c' '--backing-format' 'raw' '--overwrite' '--overcommit' '/d'");
  setenv ("NBDMIRROR_SSH", "myssh  -F x", 1);
  is_command ("ssh://h/d?preallocate", &go_on,
              "myssh|-F|x|-T|-oBatchMode=yes|-oServerAliveInterval=30|--|h|'nbdmirror' 'receive' "
              "'--stdio' '--resume' "
              "'--preallocate' '/d'");
  unsetenv ("NBDMIRROR_SSH");
}

Test (ssh, quoting)
{
  const struct endpoint_options go_on = { .writable = true };

  unsetenv ("NBDMIRROR_SSH");
  is_command ("ssh://h/it's;$(rm)%0a%26%3f", &go_on,
              "ssh|-T|-oBatchMode=yes|-oServerAliveInterval=30|--|h|'nbdmirror' 'receive' "
              "'--stdio' '--resume' "
              "'/it'\\''s;$(rm)\n&?'");
}

Test (ssh, wrong)
{
  static const char *const wrong[] = {
    "ssh://$(id)/d",  "ssh://%60id%60/d", "ssh://h%0ax/d",    "ssh://h%20x/d",
    "ssh://u;id@h/d", "ssh://%2Doh/d",    "ssh://",           "ssh://h",
    "ssh://h/",       "ssh:///d",         "ssh://@h/d",       "ssh://-o/d",
    "ssh://-l@h/d",   "ssh://h:/d",       "ssh://h:x/d",      "ssh://[::1/d",
    "ssh://[::1]x/d", "ssh://h/d?x",      "ssh://h/d?format", "ssh://h/d?overwrite=1",
    "ssh://h/%",      "ssh://h/%g0",      "ssh://h/%00",      "ssh://h/d?backing=%4",
    "ssh://h?d",
  };

  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    char *problem = uri_problem (wrong[i]);
    cr_assert_not_null (problem, "%s was taken", wrong[i]);
    text_free (problem);
  }
  cr_assert (uri_kind ("ssh://h/d") == URI_SSH);
  cr_assert (uri_kind ("nbd+ssh://h/d") == URI_NBD);
  cr_assert (uri_kind ("ssh:h") == URI_NONE);
}
