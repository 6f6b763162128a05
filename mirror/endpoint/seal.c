/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Sealing and giving up a destination.  See seal.h.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "control/receive-exports.h"
#include "mirror/endpoint/nbd.h"
#include "mirror/endpoint/seal.h"

#define EARLY_MS 2000 /* for a connection that is only to save time, and for the answer on it */

static int
failed (struct nbd_handle *h, const char *uri, char **error)
{
  endpoint_fail (NULL, error, 0, "%s: %s", uri, nbd_reason ());
  nbd_close (h);
  return -1;
}

static int
too_late (struct nbd_handle *h, const char *uri, char **error)
{
  endpoint_fail (NULL, error, 0, "%s: the server does not answer", uri);
  nbd_close (h);
  return -1;
}

/* A connection in option mode.  NULL with *ERROR. */
static struct nbd_handle *
connect_to (const struct uri *place, const char *uri, int64_t deadline, char **error)
{
  if (!nbd_tls_knows_server (place, uri, NULL, error))
    return NULL;

  struct nbd_handle *h = nbd_create ();
  if (h == NULL) {
    endpoint_fail (NULL, error, 0, "%s: %s", uri, nbd_reason ());
    return NULL;
  }
  if (nbd_set_uri_allow_local_file (h, true) == -1 || nbd_set_opt_mode (h, true) == -1
      || nbd_aio_connect_uri (h, uri) == -1)
    return failed (h, uri, error), NULL;
  int r = nbd_negotiate_tls (h, place->tls, deadline, NULL, NULL);
  if (r != 0)
    return r == ETIMEDOUT ? too_late (h, uri, error) : failed (h, uri, error), NULL;
  if (place->tls && nbd_get_tls_negotiated (h) != 1) {
    endpoint_fail (NULL, error, 0, "%s: the connection is not encrypted", uri);
    nbd_close (h);
    return NULL;
  }
  return h;
}

/* Wait until the server has closed the connection: it has ended. */
static bool
wait_for_end (struct nbd_handle *h)
{
  int64_t deadline = endpoint_now_ms () + SEAL_TIMEOUT_MS;

  while (!nbd_is_over (h)) {
    int64_t left = deadline - endpoint_now_ms ();
    if (left <= 0)
      return false;
    if (nbd_poll_handle (h, (int)left) == -1)
      break;
  }
  return true;
}

/* Connect, and ask what the server is.  0, 1 or -1 as in seal.h; with 0 the connection is in *H,
 * and an export can be opened. */
static int
reach (const struct uri *place, const char *uri, int64_t deadline, struct nbd_server *server,
       struct nbd_handle **h, char **error)
{
  if (!nbd_uri_may_be_receive (place))
    return 1;
  *h = connect_to (place, uri, deadline, error);
  if (*h == NULL)
    return -1;
  if (nbd_aio_is_ready (*h) == 1) { /* an old server, which negotiates nothing */
    nbd_close_handle (*h, true);
    return 1;
  }
  if (nbd_look_for_receive (*h, deadline, server) == -1)
    return errno == ETIMEDOUT ? too_late (*h, uri, error) : failed (*h, uri, error);
  return 0;
}

/* Open the export NAME.  0, 1 or -1 as in seal.h; with 0 the connection is in *H.  MAY_END: a
 * server that ends before it has answered has done what it was asked.  STANDING not NULL: only look
 * at which checkpoint its disk stands; 1: it does not tell. */
static int
open_known_export (const struct uri *place, const char *uri, const char *name, bool may_end,
                   char *standing, struct nbd_handle **h, char **error)
{
  int64_t deadline = endpoint_now_ms () + SEAL_TIMEOUT_MS;
  struct nbd_server server;

  int r = reach (place, uri, deadline, &server, h, error);
  if (r != 0)
    return r;
  if (standing != NULL)
    strcpy (standing, server.standing);
  bool unknown
      = strncmp (name != NULL ? name : "", RECEIVE_RETURN_PREFIX, strlen (RECEIVE_RETURN_PREFIX))
            == 0
        && !server.returns;
  if (server.is == NBD_NO_RECEIVE || standing != NULL || unknown) {
    nbd_close_handle (*h, true);
    return standing != NULL && server.standing[0] != '\0' ? 0 : 1;
  }
  if (may_end && server.is == NBD_RECEIVE_SEALED) {
    nbd_close_handle (*h, true);
    endpoint_fail (
        NULL, error, 0,
        "%s: sealed: this disk was handed over to its guest, and cannot be given up any more", uri);
    return -1;
  }
  if (nbd_go (*h, name, deadline) == 0)
    return 0;
  if (errno == ETIMEDOUT)
    return too_late (*h, uri, error);
  if (nbd_is_over (*h))
    return may_end ? 0 : failed (*h, uri, error);
  endpoint_fail (NULL, error, 0, "%s: the server refuses the export %s (it has logged why)", uri,
                 name);
  nbd_close (*h);
  return -1;
}

/* The same for a URI that was not read yet.  A file has nothing that could be sealed. */
static int
open_export (const char *uri, const char *name, bool may_end, char *standing, struct nbd_handle **h,
             char **error)
{
  char *problem = NULL;

  if (uri_kind (uri) == URI_NONE)
    return 1;
  struct uri *place = uri_read (uri, &problem);
  if (place == NULL) {
    endpoint_fail (NULL, error, 0, "%s: %s", uri, problem);
    text_free (problem);
    return -1;
  }
  int r = open_known_export (place, uri, name, may_end, standing, h, error);
  uri_free (place);
  return r;
}

/* The server is the session itself, and a new one ends it before it begins (cmd/receive/disk.c). */
static int
end_ssh_session (const char *uri, char **error)
{
  char *argv[] = { (char *)uri, NULL };
  const struct endpoint_options eo = { .writable = true };
  struct endpoint *ep = endpoint_open (argv, 1, &eo, NULL, error);

  if (ep == NULL)
    return -1;
  endpoint_close (ep);
  return 0;
}

/* A URI that cannot be read may be anything.  Then the attempt to seal it says what is wrong. */
bool
destination_may_be_sealed (const char *dest)
{
  struct uri *uri = uri_kind (dest) != URI_NONE ? uri_read (dest, NULL) : NULL;
  bool may = uri_kind (dest) != URI_NONE
             && (uri == NULL || uri->kind == URI_SSH || nbd_uri_may_be_receive (uri));

  uri_free (uri);
  return may;
}

int
destination_seal (const char *uri, char **error)
{
  struct seal_connection c = { NULL };
  int r = destination_seal_over (uri, &c, error);

  destination_seal_close (&c, true);
  return r;
}

void
destination_seal_connect (const char *uri, struct seal_connection *c)
{
  bool nbd = uri_kind (uri) != URI_NONE && uri_kind (uri) != URI_SSH;
  struct uri *place = nbd ? uri_read (uri, NULL) : NULL;
  CLEANUP_TEXT char *error = NULL;
  struct nbd_server server;

  if (place == NULL
      || reach (place, uri, endpoint_now_ms () + EARLY_MS, &server, &c->h, &error) != 0)
    c->h = NULL;
  else if (server.is == NBD_NO_RECEIVE)
    destination_seal_close (c, true);
  uri_free (place);
}

int
destination_seal_over (const char *uri, struct seal_connection *c, char **error)
{
  if (c->h != NULL && nbd_go (c->h, RECEIVE_SEAL, endpoint_now_ms () + EARLY_MS) == 0)
    return 0;
  /* It was lost meanwhile, or the server takes its time: a new one tells which. */
  destination_seal_close (c, false);
  if (uri_kind (uri) == URI_SSH)
    return end_ssh_session (uri, error);
  int r = open_export (uri, RECEIVE_SEAL, false, NULL, &c->h, error);
  if (r != 0)
    c->h = NULL;
  return r;
}

void
destination_seal_close (struct seal_connection *c, bool polite)
{
  if (c->h != NULL)
    nbd_close_handle (c->h, polite);
  c->h = NULL;
}

int
destination_give_up (const char *uri, char **error)
{
  struct nbd_handle *h;
  int r = open_export (uri, RECEIVE_GIVE_UP, true, NULL, &h, error);

  if (r != 0)
    return r;
  if (!wait_for_end (h)) {
    endpoint_fail (NULL, error, 0,
                   "%s: the server was told that the migration is given up, and does not end", uri);
    r = -1;
  }
  nbd_close (h);
  return r;
}

int
destination_standing (const char *uri, char standing[UUID_TEXT_BYTES], char **error)
{
  struct nbd_handle *h;

  standing[0] = '\0';
  int r = uri_kind (uri) == URI_SSH ? 1 : open_export (uri, NULL, false, standing, &h, error);
  if (strcmp (standing, RECEIVE_STANDING_NOWHERE) == 0)
    standing[0] = '\0';
  return r;
}

/* Open the export NAME (text_free()), which is all. */
static int
say (const char *uri, char *name, char **error)
{
  struct nbd_handle *h;
  int r = open_export (uri, name, false, NULL, &h, error);

  if (r == 0)
    nbd_close_handle (h, true);
  text_free (name);
  return r;
}

int
destination_say_since (const char *uri, const char *session, const char *from, const char *to,
                       char **error)
{
  return say (uri, text_printf (RECEIVE_SINCE_PREFIX "%s.%s.%s", session, from, to), error);
}

int
destination_say_at (const char *uri, const char *session, const char *uuid, char **error)
{
  return say (uri, text_printf (RECEIVE_AT_PREFIX "%s.%s", session, uuid), error);
}

int
destination_say_return (const char *uri, const char *session, const char *uuid, char **error)
{
  return say (uri, text_printf (RECEIVE_RETURN_PREFIX "%s.%s", session, uuid), error);
}
