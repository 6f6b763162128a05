/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Whether a server can be told from another.  TLS without that would encrypt the disk for anybody.
 *
 * libnbd 1.14 checks the server's certificate only if it found that of a CA.  It takes a directory
 * that is misspelt, has no ca-cert.pem, or is not given at all, for a wish not to check.  So such a
 * URI is refused here, before libnbd connects.
 */

#include "config.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mirror/endpoint/nbd.h"

#define CA "ca-cert.pem"

/* Where libnbd looks for certificates if the URI names no directory. */
#define OF_ROOT "/etc/pki/libnbd"
static const char *const of_user[] = { ".pki/libnbd", ".config/pki/libnbd" };

static bool
has_ca (const char *directory, const char *sub)
{
  char path[PATH_MAX];

  return snprintf (path, sizeof path, "%s/%s/" CA, directory, sub) < (int)sizeof path
         && access (path, R_OK) == 0;
}

bool
nbd_tls_knows_server (const struct uri *uri, const char *name, int *errnum, char **error)
{
  const char *directory = uri_parameter (uri, "tls-certificates");
  const char *home = getenv ("HOME");

  /* A key is secret to both ends. */
  if (!uri->tls || uri_parameter (uri, "tls-psk-file") != NULL)
    return true;
  if (directory != NULL) {
    if (has_ca (directory, "."))
      return true;
    endpoint_fail (errnum, error, EPROTO,
                   "%s: %s/" CA ": %s: it would not be known who the server is", name, directory,
                   strerror (errno));
    return false;
  }
  /* A Unix socket has no name that a certificate could be for. */
  if (uri->is_unix || (geteuid () == 0 && has_ca (OF_ROOT, ".")))
    return true;
  for (unsigned i = 0; i < sizeof of_user / sizeof of_user[0]; i++)
    if (geteuid () != 0 && home != NULL && has_ca (home, of_user[i]))
      return true;
  endpoint_fail (errnum, error, EPROTO,
                 "%s: it would not be known who the server is: add tls-certificates=DIR"
                 " or tls-psk-file=FILE",
                 name);
  return false;
}
