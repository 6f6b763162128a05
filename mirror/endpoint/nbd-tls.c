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

/* Without a name libnbd takes that of the login, which a service does not have. */
static bool
key_has_user (const struct uri *uri, const char *name, int *errnum, char **error)
{
  char login[LOGIN_NAME_MAX];

  if (uri->user != NULL || getlogin_r (login, sizeof login) == 0)
    return true;
  endpoint_fail (errnum, error, EPROTO,
                 "%s: the user of the key is missing: name it before the host, as in"
                 " nbds://USER@HOST/",
                 name);
  return false;
}

bool
nbd_tls_knows_server (const struct uri *uri, const char *name, int *errnum, char **error)
{
  const char *directory = uri_parameter (uri, "tls-certificates");
  const char *home = getenv ("HOME");

  if (!uri->tls)
    return true;
  if (uri_parameter (uri, "tls-psk-file") != NULL) /* a key is secret to both ends */
    return key_has_user (uri, name, errnum, error);
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
