/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Which export of a server to ask for.  A URI whose export is called "mirror" may be one of
 * `nbdmirror receive`'s (control/receive-exports.h): its list of exports says so, and then all
 * connections of an endpoint that writes use one name, "mirror@ID", so that the server can tell
 * sessions apart.  A URI without an export may be that of its guest, where a mirror must not write.
 * Any other server is taken as it is.
 *
 * For such URIs, and only for them, the negotiation is held up in libnbd's option mode to ask.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "control/receive-exports.h"
#include "mirror/endpoint/nbd.h"

bool
nbd_uri_may_be_receive (const struct uri *uri)
{
  return uri->kind == URI_NBD && strcmp (uri->export, RECEIVE_MIRROR) == 0;
}

bool
nbd_uri_may_be_guest (const struct uri *uri)
{
  return uri->kind == URI_NBD && uri->export[0] == '\0';
}

static bool
begin_session (struct endpoint_session *s)
{
  unsigned char random[(ENDPOINT_SESSION - 1) / 2];

  if (getrandom (random, sizeof random, 0) != (ssize_t)sizeof random)
    return false;
  strcpy (s->last, s->id);
  for (size_t i = 0; i < sizeof random; i++)
    sprintf (s->id + 2 * i, "%02x", random[i]);
  s->answered = false;
  return true;
}

bool
nbd_session_name (char name[2 * ENDPOINT_SESSION], struct endpoint_session *s)
{
  struct endpoint_session only = { .answered = false };

  if (s == NULL)
    s = &only;
  if ((s->id[0] == '\0' || s->answered) && !begin_session (s))
    return false;
  if (s->last[0] != '\0')
    sprintf (name, "%s%c%s", s->id, RECEIVE_LAST, s->last);
  else
    strcpy (name, s->id);
  return true;
}

/* An option that waits for its answer.  A connection that is given up may call back later, when it
 * is closed: so this lives until libnbd has let go of it as well. */
struct option {
  unsigned users;
  struct nbd_server server;
  bool done;
  int error;
};

static struct option *
option_new (unsigned nr_callbacks)
{
  struct option *o = calloc (1, sizeof *o);

  if (o != NULL)
    o->users = 1 + nr_callbacks;
  return o;
}

static void
option_unref (void *opaque)
{
  struct option *o = opaque;

  if (--o->users == 0)
    free (o);
}

static int
on_export (void *opaque, const char *name, const char *description)
{
  static const char standing[] = RECEIVE_DESCRIPTION_STANDING;
  const size_t prefix = sizeof standing - 1;
  struct nbd_server *s = &((struct option *)opaque)->server;

  if (strcmp (name, RECEIVE_MIRROR) == 0)
    s->is = strcmp (description, RECEIVE_DESCRIPTION) == 0          ? NBD_RECEIVE_OPEN
            : strcmp (description, RECEIVE_DESCRIPTION_SEALED) == 0 ? NBD_RECEIVE_SEALED
                                                                    : NBD_NO_RECEIVE;
  if (strcmp (name, RECEIVE_PACKED) == 0)
    s->unpacks = strcmp (description, RECEIVE_DESCRIPTION_PACKED) == 0;
  if (strcmp (name, RECEIVE_RETURN) == 0)
    s->returns = strcmp (description, RECEIVE_DESCRIPTION_RETURN) == 0;
  if (strcmp (name, RECEIVE_STANDING) == 0 && strncmp (description, standing, prefix) == 0)
    snprintf (s->standing, sizeof s->standing, "%s", description + prefix);
  return 0;
}

static int
on_done (void *opaque, int *error)
{
  struct option *o = opaque;

  o->done = true;
  o->error = *error;
  return 1;
}

/* Drive H until O is done.  -1 with errno; ETIMEDOUT after DEADLINE. */
static int
drive (struct nbd_handle *h, const struct option *o, int64_t deadline)
{
  while (!o->done && !nbd_is_over (h)) {
    int64_t left = deadline - endpoint_now_ms ();

    if (left <= 0) {
      errno = ETIMEDOUT;
      return -1;
    }
    if (nbd_poll_handle (h, (int)left) == -1)
      break;
  }
  if (!nbd_is_over (h))
    return 0;
  errno = ECONNRESET;
  return -1;
}

/* The option could not be sent: libnbd has let go of its callbacks. */
static int
not_started (struct option *o)
{
  int err = nbd_get_errno ();

  option_unref (o);
  errno = err ? err : EPROTO;
  return -1;
}

int
nbd_look_for_receive (struct nbd_handle *h, int64_t deadline, struct nbd_server *server)
{
  struct option *o = option_new (2);
  nbd_list_callback each = { .callback = on_export, .free = option_unref, .user_data = o };
  nbd_completion_callback done = { .callback = on_done, .free = option_unref, .user_data = o };

  if (o == NULL)
    return -1;
  if (nbd_aio_opt_list (h, each, done) == -1) {
    *server = (struct nbd_server){
      .is = NBD_NO_RECEIVE
    }; /* it may not even know options ("fixed newstyle") */
    return not_started (o) == -1 && errno == ENOTSUP ? 0 : -1;
  }
  int r = drive (h, o, deadline);
  int err = errno;
  *server = o->server; /* a server that does not list its exports is none of ours */
  option_unref (o);
  errno = err;
  return r;
}

/* Give H's export a name, or leave it as it is if NAME is NULL, and send the option GO or INFO.
 * NULL with errno. */
static struct option *
send_name (struct nbd_handle *h, const char *name,
           int (*send) (struct nbd_handle *, nbd_completion_callback))
{
  struct option *o = option_new (1);
  nbd_completion_callback done = { .callback = on_done, .free = option_unref, .user_data = o };

  if (o == NULL)
    return NULL;
  bool named = name == NULL || nbd_set_export_name (h, name) == 0;
  if (!named)
    o->users = 1;
  if (named && send (h, done) == 0)
    return o;
  not_started (o);
  return NULL;
}

/* Wait for the answer to O, which may be NULL with errno.  -1 with errno. */
static int
wait_for_answer (struct nbd_handle *h, struct option *o, int64_t deadline)
{
  if (o == NULL)
    return -1;
  int r = drive (h, o, deadline);
  int err = r == -1 ? errno : o->error;
  option_unref (o);
  errno = err;
  return err == 0 ? 0 : -1;
}

struct option *
nbd_go_begin (struct nbd_handle *h, const char *name)
{
  return send_name (h, name, nbd_aio_opt_go);
}

void
nbd_go_forget (struct option *o)
{
  if (o != NULL)
    option_unref (o);
}

int
nbd_go_end (struct nbd_handle *h, struct option *o, int64_t deadline)
{
  if (wait_for_answer (h, o, deadline) == -1)
    return -1;
  if (nbd_aio_is_ready (h) == 1)
    return 0;
  errno = EPROTO;
  return -1;
}

int
nbd_go (struct nbd_handle *h, const char *name, int64_t deadline)
{
  return nbd_go_end (h, nbd_go_begin (h, name), deadline);
}

int
nbd_ask_about (struct nbd_handle *h, const char *name, int64_t deadline)
{
  return wait_for_answer (h, send_name (h, name, nbd_aio_opt_info), deadline);
}
