/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * TLS without knowing who the other end is would be encryption towards anybody.  libnbd (1.14)
 * checks the server's certificate only if it found a CA's: a directory that is misspelt, or has no
 * ca-cert.pem, or none at all, is taken as a wish not to check.  So that is looked after here.
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

/* Where libnbd looks by itself. */
#define OF_ROOT "/etc/pki/libnbd"
static const char *const of_user[] = { ".pki/libnbd", ".config/pki/libnbd" };

static int
hex_digit (char c)
{
  static const char digits[] = "0123456789abcdef";
  const char *p = c != '\0' ? strchr (digits, c | 0x20) : NULL;

  return p != NULL ? (int)(p - digits) : -1;
}

/* The decoded value of KEY in the query of URI.  False if it is not there, or too long for a path.
 */
static bool
parameter (const char *uri, const char *key, char value[PATH_MAX])
{
  const char *s = strchr (uri, '?');
  size_t len = strlen (key), n = 0;

  while (s != NULL && !(strncmp (s + 1, key, len) == 0 && s[1 + len] == '='))
    s = strpbrk (s + 1, "&;");
  if (s == NULL)
    return false;
  for (s += len + 2; *s != '\0' && *s != '&' && *s != ';' && *s != '#'; s++, n++) {
    if (n == PATH_MAX - 1)
      return false;
    value[n] = *s;
    if (*s == '%' && hex_digit (s[1]) >= 0 && hex_digit (s[2]) >= 0) {
      value[n] = (char)(hex_digit (s[1]) << 4 | hex_digit (s[2]));
      s += 2;
    }
  }
  value[n] = '\0';
  return true;
}

static bool
has_ca (const char *directory, const char *sub)
{
  char path[PATH_MAX];

  return snprintf (path, sizeof path, "%s/%s/" CA, directory, sub) < (int)sizeof path
         && access (path, R_OK) == 0;
}

bool
nbd_tls_knows_server (const char *uri, int *errnum, char **error)
{
  char value[PATH_MAX];
  const char *home = getenv ("HOME");

  /* A key is secret to both ends.  A Unix socket has no name that a certificate could be for. */
  if (strncmp (uri, "nbds", 4) != 0 || parameter (uri, "tls-psk-file", value))
    return true;
  if (parameter (uri, "tls-certificates", value)) {
    if (has_ca (value, "."))
      return true;
    endpoint_fail (errnum, error, EPROTO,
                   "%s: %s/" CA ": %s: it would not be known who the server is", uri, value,
                   strerror (errno));
    return false;
  }
  if (strncmp (uri, "nbds+unix:", 10) == 0 || (geteuid () == 0 && has_ca (OF_ROOT, ".")))
    return true;
  for (unsigned i = 0; i < sizeof of_user / sizeof of_user[0]; i++)
    if (geteuid () != 0 && home != NULL && has_ca (home, of_user[i]))
      return true;
  endpoint_fail (errnum, error, EPROTO,
                 "%s: it would not be known who the server is: add tls-certificates=DIR"
                 " or tls-psk-file=FILE",
                 uri);
  return false;
}
