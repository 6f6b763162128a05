/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The only reader of URIs in the program.
 *
 * libnbd reads a URI with libxml2, and so do we, with the same calls: what is checked here (the
 * export, the socket, the certificates) is what libnbd then uses.  Where a URI could still mean two
 * things (a parameter that is given twice, a fragment, a parameter that one of the two does not
 * know) it is refused.
 *
 *   nbd://[USER@]HOST[:PORT]/EXPORT            TCP; nbds:// with TLS
 *   nbd+unix://[USER@]/EXPORT?socket=PATH      a Unix socket; nbds+unix:// with TLS
 *   nbd+vsock://CID[:PORT]/EXPORT              nbds+vsock:// with TLS
 *   nbd+ssh://…                                nbds+ssh://; where libnbd has them
 *   ssh://[USER@]HOST[:PORT]/PATH              see ssh.h
 *
 * All functions are pure and may be called from any thread.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_URI_H
#define NBDMIRROR_MIRROR_ENDPOINT_URI_H

#include <stdbool.h>

enum uri_kind { URI_NONE, URI_NBD, URI_SSH };

/* What a URI says, with every %XX decoded.  A member is NULL where the URI has no such part. */
struct uri {
  enum uri_kind kind;
  bool tls;
  bool is_unix; /* the server's socket is on this host */
  const char *scheme;
  const char *user;
  const char *host;   /* an IPv6 address has no brackets here */
  int port;           /* 0: the usual one */
  const char *path;   /* from its slash on; "" if there is none */
  const char *export; /* the same without its first slash */
  struct uri_parts *parts;
};

/* The names of all schemes, for messages: "nbd, nbds, …". */
extern const char uri_schemes[];

/* Is NAME a URI of ours, well-formed or not?  That is decided by its scheme and "://" alone: any
 * other name is the path of a file. */
enum uri_kind uri_kind (const char *name);
/* The same for a scheme of LEN characters. */
enum uri_kind uri_scheme_kind (const char *scheme, int len);

/* Read TEXT.  The caller frees the result with uri_free().  NULL if it is not well-formed, or if it
 * is nothing that may be connected to; then *ERROR (the caller frees it with text_free()) says what
 * is wrong, without TEXT itself. */
struct uri *uri_read (const char *text, char **error);
void uri_free (struct uri *uri); /* NULL is allowed */

/* The value of a parameter, or NULL.  It lives as long as URI. */
const char *uri_parameter (const struct uri *uri, const char *name);
/* Is there this parameter, with a value or without? */
bool uri_has (const struct uri *uri, const char *name);

/* NULL if uri_read() takes TEXT, else what is wrong with it (the caller frees it with
 * text_free()). */
char *uri_problem (const char *text);

#endif
