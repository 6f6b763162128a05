/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Reading URIs.  See uri.h.
 *
 * libnbd ignores what it does not know, takes the last of several equal parameters, and ends a
 * parameter at a ';' only where no '&' follows.  None of that can be seen by somebody who reads the
 * URI, so none of it is accepted here.
 */

#include "config.h"

#include <ctype.h>
#include <libnbd.h>
#include <libxml/uri.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "mirror/endpoint/uri.h"

#define MAX_PARAMETERS 16u

struct parameter {
  char *name, *value; /* from libxml2; VALUE is NULL where there is no '=' */
};

struct uri_parts {
  xmlURI *xml;
  unsigned nr;
  struct parameter parameters[MAX_PARAMETERS];
};

/* ---- Schemes ---------------------------------------------------------------------------- */

static const struct scheme {
  const char *name;
  enum uri_kind kind;
  bool tls;
  bool is_unix;  /* on this host: it has a socket and no name */
  bool uses_ssh; /* user and host go into a command line */
} schemes[] = {
  { "nbd", URI_NBD, false, false, false },       { "nbds", URI_NBD, true, false, false },
  { "nbd+unix", URI_NBD, false, true, false },   { "nbds+unix", URI_NBD, true, true, false },
  { "nbd+vsock", URI_NBD, false, false, false }, { "nbds+vsock", URI_NBD, true, false, false },
  { "nbd+ssh", URI_NBD, false, false, true },    { "nbds+ssh", URI_NBD, true, false, true },
  { "ssh", URI_SSH, false, false, true },
};
#define NR_SCHEMES (sizeof schemes / sizeof schemes[0])

const char uri_schemes[]
    = "nbd, nbds, nbd+unix, nbds+unix, nbd+vsock, nbds+vsock, nbd+ssh, nbds+ssh, ssh";

static const struct scheme *
find_scheme (const char *name, size_t len)
{
  for (size_t i = 0; i < NR_SCHEMES; i++)
    if (strlen (schemes[i].name) == len && strncmp (schemes[i].name, name, len) == 0)
      return &schemes[i];
  return NULL;
}

enum uri_kind
uri_scheme_kind (const char *scheme, int len)
{
  const struct scheme *s = find_scheme (scheme, (size_t)len);

  return s != NULL ? s->kind : URI_NONE;
}

/* The scheme of TEXT, if "://" comes after it. */
static const struct scheme *
scheme_of (const char *text)
{
  size_t len = strcspn (text, ":");

  return strncmp (text + len, "://", 3) == 0 ? find_scheme (text, len) : NULL;
}

enum uri_kind
uri_kind (const char *name)
{
  const struct scheme *s = scheme_of (name);

  return s != NULL ? s->kind : URI_NONE;
}

/* ---- Characters ------------------------------------------------------------------------- */

/* What libxml2 says of these is only that it is no URI, or it reads them in a way that nobody
 * expects.  -1 with *ERROR. */
static int
check_text (const char *text, char **error)
{
  static const char allowed[] = "-._~:/?#[]@!$&'()*+,;=%";
  const char *authority = strstr (text, "://") + 3;
  const char *path = authority + strcspn (authority, "/?#");

  for (const char *p = text; *p != '\0'; p++) {
    unsigned char c = (unsigned char)*p;

    if (c >= 0x80 || (!isalnum (c) && strchr (allowed, c) == NULL)
        || (p >= path && (c == '[' || c == ']')))
      return text_error (error, "a character that a URI cannot hold as it is: write it as %%%02X",
                         c);
    if (c != '%')
      continue;
    if (!isxdigit ((unsigned char)p[1]) || !isxdigit ((unsigned char)p[2]))
      return text_error (error, "a %% is followed by two hexadecimal digits");
    if (p[1] == '0' && p[2] == '0')
      return text_error (error, "%%00 cannot be part of a name");
  }
  /* libxml2 takes all that follows for the user's name. */
  if (*authority == '@')
    return text_error (error, "there is no user's name before the @");
  if (path > authority && path[-1] == ':')
    return text_error (error, "there is no port after the :");
  return 0;
}

/* ---- Parameters ------------------------------------------------------------------------- */

/* Take NAME=VALUE, which is LEN characters long.  -1 with *ERROR. */
static int
add_parameter (struct uri_parts *parts, const char *s, size_t len, char **error)
{
  const char *equals = memchr (s, '=', len);
  size_t name_len = equals != NULL ? (size_t)(equals - s) : len;

  if (name_len == 0)
    return text_error (error, "a parameter without a name: '%.*s'", (int)len, s);
  if (parts->nr == MAX_PARAMETERS)
    return text_error (error, "too many parameters");

  struct parameter *p = &parts->parameters[parts->nr++];

  p->name = xmlURIUnescapeString (s, (int)name_len, NULL);
  if (equals != NULL) {
    /* With a length of 0 it would decode all that follows. */
    size_t value_len = len - name_len - 1;

    if (value_len == 0)
      return text_error (error, "the parameter %.*s is empty", (int)name_len, s);
    p->value = xmlURIUnescapeString (equals + 1, (int)value_len, NULL);
  }
  if (p->name == NULL || (equals != NULL && p->value == NULL))
    return text_error (error, "out of memory");
  for (unsigned i = 0; i + 1 < parts->nr; i++)
    if (strcmp (parts->parameters[i].name, p->name) == 0)
      return text_error (error, "the parameter %s is given twice", p->name);
  return 0;
}

static int
read_parameters (struct uri_parts *parts, char **error)
{
  const char *query = parts->xml->query_raw;

  if (query == NULL)
    return 0;
  if (strchr (query, ';') != NULL)
    return text_error (error, "parameters are separated by &: a ; that belongs to one is "
                              "written as %%3B");
  while (*query != '\0') {
    size_t len = strcspn (query, "&");

    if (len > 0 && add_parameter (parts, query, len, error) == -1)
      return -1;
    query += len;
    query += *query == '&';
  }
  return 0;
}

static const struct parameter *
find_parameter (const struct uri *uri, const char *name)
{
  for (unsigned i = 0; i < uri->parts->nr; i++)
    if (strcmp (uri->parts->parameters[i].name, name) == 0)
      return &uri->parts->parameters[i];
  return NULL;
}

const char *
uri_parameter (const struct uri *uri, const char *name)
{
  const struct parameter *p = find_parameter (uri, name);

  return p != NULL ? p->value : NULL;
}

bool
uri_has (const struct uri *uri, const char *name)
{
  return find_parameter (uri, name) != NULL;
}

/* ---- What each kind may have ------------------------------------------------------------ */

static const char *const nbd_parameters[] = {
  "socket",       "tls-certificates", "tls-psk-file",
#ifdef LIBNBD_HAVE_NBD_SET_TLS_HOSTNAME
  "tls-hostname",
#endif
  NULL,
};
static const char *const ssh_values[] = { "format", "backing", "backing-format", "program", NULL };
static const char *const ssh_flags[] = { "preallocate", "overcommit", "overwrite", "resume", NULL };

static bool
is_one_of (const char *name, const char *const *list)
{
  for (; *list != NULL; list++)
    if (strcmp (name, *list) == 0)
      return true;
  return false;
}

static int
check_parameter (const struct uri *uri, const struct parameter *p, char **error)
{
  bool nbd = uri->kind == URI_NBD;
  bool is_flag = !nbd && is_one_of (p->name, ssh_flags);

  if (nbd && strcmp (p->name, "tls-verify-peer") == 0)
    return text_error (error, "tls-verify-peer cannot be chosen, the server is always verified: "
                              "leave it out");
  if (!is_flag && !is_one_of (p->name, nbd ? nbd_parameters : ssh_values))
    return text_error (error, "unknown parameter '%s'", p->name);
  if (is_flag && p->value != NULL)
    return text_error (error, "the parameter %s takes no value", p->name);
  if (!is_flag && p->value == NULL)
    return text_error (error, "the parameter %s needs a value", p->name);
  if (strncmp (p->name, "tls-", 4) == 0 && !uri->tls)
    return text_error (error, "%s is for nbds:// only: nothing is encrypted here", p->name);
  return 0;
}

/* Could NAME be taken for an option, or do harm where ssh's own configuration hands it to a shell
 * (%h, %r in ProxyCommand and the like)?  Newer releases of ssh refuse the same. */
static bool
is_harmless (const char *name, const char *bad)
{
  if (name[0] == '\0' || name[0] == '-' || strpbrk (name, bad) != NULL)
    return false;
  for (; *name != '\0'; name++)
    if (isspace ((unsigned char)*name) || iscntrl ((unsigned char)*name))
      return false;
  return true;
}

static int
check_host (const struct uri *uri, const struct scheme *scheme, char **error)
{
#define BAD "'`\";&<>|(){}"
  if (scheme->is_unix && (uri->host != NULL || uri->port != 0))
    return text_error (error,
                       "a Unix socket is on this host: it is written %s://%s%s/%s?socket=PATH",
                       uri->scheme, uri->user ? uri->user : "", uri->user ? "@" : "", uri->export);
  if (uri->port > 65535)
    return text_error (error, "a port is a number from 1 to 65535");
  if (scheme->uses_ssh
      && (uri->host == NULL || !is_harmless (uri->host, BAD "$\\")
          || (uri->user != NULL && !is_harmless (uri->user, BAD))))
    return text_error (error, "it begins as %s://[USER@]HOST[:PORT]/", uri->scheme);
  return 0;
#undef BAD
}

static int
check_meaning (const struct uri *uri, const struct scheme *scheme, char **error)
{
  for (unsigned i = 0; i < uri->parts->nr; i++)
    if (check_parameter (uri, &uri->parts->parameters[i], error) == -1)
      return -1;
  if (check_host (uri, scheme, error) == -1)
    return -1;
  if (uri->kind == URI_SSH) {
    if (uri->path[0] != '/' || uri->path[strlen (uri->path) - 1] == '/')
      return text_error (error, "after the host comes the path of a file, from / on");
    return 0;
  }
  const char *socket = uri_parameter (uri, "socket");
  if (socket != NULL && !scheme->is_unix && !scheme->uses_ssh)
    return text_error (error, "socket= is for nbd+unix:// only");
  if (socket == NULL && scheme->is_unix)
    return text_error (error, "the parameter socket=PATH is missing");
  if (uri_parameter (uri, "tls-psk-file") != NULL
      && uri_parameter (uri, "tls-certificates") != NULL)
    return text_error (error, "tls-certificates and tls-psk-file exclude each other");
  return 0;
}

/* ---- Reading ---------------------------------------------------------------------------- */

/* Take the brackets off an IPv6 address. */
static void
strip_brackets (char *host)
{
  size_t len = host != NULL ? strlen (host) : 0;

  if (len >= 2 && host[0] == '[' && host[len - 1] == ']') {
    memmove (host, host + 1, len - 2);
    host[len - 2] = '\0';
  }
}

/* Fill URI, whose parts are there, from TEXT.  -1 with *ERROR. */
static int
read_into (struct uri *uri, const char *text, char **error)
{
  const struct scheme *scheme = scheme_of (text);

  if (scheme == NULL)
    return text_error (error, "the scheme is none of %s", uri_schemes);
  if (check_text (text, error) == -1)
    return -1;
  if (strchr (text, '#') != NULL)
    return text_error (error, "a # that belongs to a name is written as %%23");

  xmlURI *xml = uri->parts->xml = xmlParseURI (text);

  if (xml == NULL || xml->scheme == NULL || strcmp (xml->scheme, scheme->name) != 0
      || xml->opaque != NULL || xml->fragment != NULL)
    return text_error (error, "it is no URI: it begins as %s://%s/", scheme->name,
                       scheme->is_unix ? "" : "[USER@]HOST[:PORT]");
  strip_brackets (xml->server);
  uri->kind = scheme->kind;
  uri->tls = scheme->tls;
  uri->is_unix = scheme->is_unix;
  uri->scheme = xml->scheme;
  uri->user = xml->user;
  uri->host = xml->server != NULL && xml->server[0] != '\0' ? xml->server : NULL;
  uri->port = xml->port > 0 ? xml->port : 0; /* -1 stands for "no host either" */
  uri->path = xml->path != NULL ? xml->path : "";
  uri->export = uri->path[0] == '/' ? uri->path + 1 : uri->path;
  if (read_parameters (uri->parts, error) == -1)
    return -1;
  return check_meaning (uri, scheme, error);
}

struct uri *
uri_read (const char *text, char **error)
{
  struct uri *uri = calloc (1, sizeof *uri);

  if (uri != NULL)
    uri->parts = calloc (1, sizeof *uri->parts);
  if (uri == NULL || uri->parts == NULL) {
    text_error (error, "out of memory");
    free (uri);
    return NULL;
  }
  if (read_into (uri, text, error) == 0)
    return uri;
  uri_free (uri);
  return NULL;
}

void
uri_free (struct uri *uri)
{
  if (uri == NULL)
    return;
  for (unsigned i = 0; i < uri->parts->nr; i++) {
    xmlFree (uri->parts->parameters[i].name);
    xmlFree (uri->parts->parameters[i].value);
  }
  xmlFreeURI (uri->parts->xml);
  free (uri->parts);
  free (uri);
}

char *
uri_problem (const char *text)
{
  char *problem = NULL;
  struct uri *uri = uri_read (text, &problem);

  uri_free (uri);
  return problem;
}
