/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The reader of URIs: what it takes means the same to libnbd, and what could mean two things is
 * refused.
 */

#include "config.h"

#include <libnbd.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "mirror/endpoint/uri.h"
#include "tests/unit/unit.h"

static bool
same (const char *a, const char *b)
{
  return a == NULL || b == NULL ? a == b : strcmp (a, b) == 0;
}

static const struct {
  const char *text;
  bool tls;
  const char *user, *host;
  int port;
  const char *export, *socket, *certificates;
} good[] = {
  { "nbd://h", false, NULL, "h", 0, "", NULL, NULL },
  { "nbd:///", false, NULL, NULL, 0, "", NULL, NULL },
  { "nbd://h:1/?", false, NULL, "h", 1, "", NULL, NULL },
  { "nbd://h/%6dirror", false, NULL, "h", 0, "mirror", NULL, NULL },
  { "nbd://h//mirror", false, NULL, "h", 0, "/mirror", NULL, NULL },
  { "nbd://[::1]:5/a%20b", false, NULL, "::1", 5, "a b", NULL, NULL },
  { "nbds://al%40ice@h/x?tls-certificates=/a%26b", true, "al@ice", "h", 0, "x", NULL, "/a&b" },
  { "nbds://h/?tls%2Dcertificates=/a=b", true, NULL, "h", 0, "", NULL, "/a=b" },
  { "nbd+unix:///x?socket=/s", false, NULL, NULL, 0, "x", "/s", NULL },
  { "nbd+unix://?socket=s%3Bt", false, NULL, NULL, 0, "", "s;t", NULL },
  { "nbds+unix://u@/x?&socket=/s&&tls-certificates=c&", true, "u", NULL, 0, "x", "/s", "c" },
};

Test (uri, good)
{
  for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
    char *error = NULL;
    struct uri *u = uri_read (good[i].text, &error);

    cr_assert (u != NULL, "%s: %s", good[i].text, error);
    cr_assert (u->kind == URI_NBD && u->tls == good[i].tls && u->port == good[i].port,
               "%s: port %d", good[i].text, u->port);
    cr_assert (same (u->user, good[i].user), "%s: user %s", good[i].text, u->user);
    cr_assert (same (u->host, good[i].host), "%s: host %s", good[i].text, u->host);
    cr_assert (same (u->export, good[i].export), "%s: export %s", good[i].text, u->export);
    cr_assert (same (uri_parameter (u, "socket"), good[i].socket), "%s", good[i].text);
    cr_assert (same (uri_parameter (u, "tls-certificates"), good[i].certificates), "%s",
               good[i].text);
    uri_free (u);
  }
}

Test (uri, bad)
{
  static const struct {
    const char *text, *reason;
  } bad[] = {
    { "nbds://h/?tls-certificates=a&tls-certificates=b", "given twice" },
    { "nbds://h/?tls-certificates=a&tls%2dcertificates=b", "given twice" },
    { "nbds://h/?tls-certificates=a;tls-certificates=b", "%3B" },
    { "nbds://h/?tls-certificates=a;x&tls-certificates=b", "%3B" },
    { "nbds://h/#?tls-psk-file=x", "%23" },
    { "nbds://h/?tls-certificates=a#", "%23" },
    { "nbds://h/?tls-certificates=", "empty" },
    { "nbds://h/?tls-certificates", "needs a value" },
    { "nbds://h/?=a", "without a name" },
    { "nbds://h/?TLS-certificates=a", "unknown parameter" },
    { "nbds://h/?tls-certificates%20=a", "unknown parameter" },
    { "nbds://h/?tls-certificates=a%00b", "%00" },
    { "nbds://h/?tls-verify-peer=0", "always verified" },
    { "nbds://h/?tls-psk-file=a&tls-certificates=b", "exclude" },
    { "nbd://h/?tls-certificates=a", "nbds" },
    { "nbd://h/?socket=a", "nbd+unix" },
    { "nbd+unix:///x", "missing" },
    { "nbds+unix://h/x?socket=/s", "on this host" },
    { "nbd+unix:///?socket=a&socket=b", "given twice" },
    { "nbd+ssh://-oProxyCommand=x/", "begins as" },
    { "nbd://@h/", "user" },
    { "nbd://h:/", "port" },
    { "nbd://h:70000/", "65535" },
    { "nbd://h:99999999999/", "no URI" },
    { "nbd://h:x/", "no URI" },
    { "nbd://h/a b", "%20" },
    { "nbd://h/\xc3\xb6", "%C3" },
    { "nbd://h/[x]", "%5B" },
    { "nbd://h/%g0", "hexadecimal" },
    { "nbd://h/%4", "hexadecimal" },
    { "NBDS://h/", "scheme" },
    { "nbd:/h", "scheme" },
    { "x", "scheme" },
    { "ssh://h/d?overwrite&overwrite", "given twice" },
    { "ssh://h/d?overwrite=0", "takes no value" },
    { "ssh://h/d?socket=/x", "unknown parameter" },
    { "ssh://h/d#x", "%23" },
  };

  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    char *problem = uri_problem (bad[i].text);

    cr_assert (problem != NULL, "%s was taken", bad[i].text);
    cr_assert (strstr (problem, bad[i].reason) != NULL, "%s: %s", bad[i].text, problem);
    text_free (problem);
  }
}

/* Let libnbd read TEXT, far enough for what it tells afterwards. */
static void
agrees (const char *text, const struct uri *u)
{
  struct nbd_handle *h = nbd_create ();

  cr_assert (h != NULL);
  cr_assert (nbd_set_uri_allow_local_file (h, true) == 0);
  /* There is no such socket: it fails, but only when it has read everything. */
  cr_assert (nbd_aio_connect_uri (h, text) == -1, "%s", text);
  cr_assert (strstr (nbd_get_error (), "URI") == NULL, "%s: %s", text, nbd_get_error ());

  char *export = nbd_get_export_name (h), *user = nbd_get_tls_username (h);
  cr_assert (same (export, u->export), "%s: export %s", text, export);
  cr_assert (u->user == NULL || same (user, u->user), "%s: user %s", text, user);
  cr_assert ((nbd_get_tls (h) == LIBNBD_TLS_REQUIRE) == u->tls, "%s", text);
  free (export);
  free (user);
  nbd_close (h);
}

/* Names put together at random from what is special in a URI: those that are taken are read in the
 * same way by libnbd. */
Test (uri, agreement)
{
  static const char *const pieces[]
      = { "x",   "%2F", "/",  "?", "&", "=",  "%3d", "%26", ";",       "#",           "@",  ":",
          "%41", ".",   "..", "+", "%", "%2", "a=",  "//",  "socket=", "%73ocket=/n", "u@", "%25" };
  unsigned taken = 0;

  srandom (1);
  for (unsigned i = 0; i < 200000; i++) {
    char text[200];
    unsigned nr = (unsigned)random () % 7;

    strcpy (text, random () % 2 ? "nbd+unix://" : "nbds+unix://");
    if (random () % 2)
      strcat (text, "u%40@/");
    for (unsigned n = 0; n < nr; n++)
      strcat (text, pieces[(unsigned)random () % (sizeof pieces / sizeof pieces[0])]);
    if (random () % 2)
      strcat (text, "?socket=/nonexistent/s");

    struct uri *u = uri_read (text, NULL);
    if (u == NULL)
      continue;
    taken++;
    if (taken <= 2000)
      agrees (text, u);
    uri_free (u);
  }
  cr_assert (taken > 1000, "only %u were taken", taken);
}
