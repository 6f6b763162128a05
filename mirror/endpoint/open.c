/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * From a name to an endpoint of its kind.  It opens all kinds but the null endpoint, which has no
 * name of this sort (null.h).
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/text.h"
#include "control/receive-exports.h"
#include "mirror/endpoint/file.h"
#include "mirror/endpoint/nbd.h"
#include "mirror/endpoint/new-image.h"
#include "mirror/endpoint/ssh.h"
#include "mirror/endpoint/uri.h"

/* Logging in takes longer than connecting. */
#define SSH_TIMEOUT_MS 20000
#define CONNECT_TIMEOUT_MS 10000
#define REQUEST_TIMEOUT_MS 30000
#define IN_FLIGHT 64

/* "[ nbdkit memory 1G ]", for messages.  The caller frees it.  NULL: out of memory. */
static char *
join (char *const *argv, unsigned nr_args)
{
  size_t len = 1;

  for (unsigned i = 0; i < nr_args; i++)
    len += strlen (argv[i]) + 1;

  char *s = malloc (len), *end = s;
  if (!s)
    return NULL;
  *end = '\0';
  for (unsigned i = 0; i < nr_args; i++) {
    if (i)
      end = stpcpy (end, " ");
    end = stpcpy (end, argv[i]);
  }
  return s;
}

static struct endpoint *
open_command (char *const *argv, unsigned nr_args, const struct endpoint_options *opts, int *errnum,
              char **error)
{
  struct endpoint *ep = NULL;
  char *name = join (argv, nr_args);
  char **command = calloc (nr_args, sizeof *command);

  if (!name || !command)
    endpoint_fail (errnum, error, ENOMEM, "%s: %s", argv[0], strerror (ENOMEM));
  else if (nr_args < 3 || strcmp (argv[0], "[") != 0 || strcmp (argv[nr_args - 1], "]") != 0)
    endpoint_fail (errnum, error, EINVAL,
                   "%s: a command is written as [ COMMAND ARGS ], with spaces around the brackets",
                   name);
  else {
    memcpy (command, argv + 1, (nr_args - 2) * sizeof *command);
    /* An image is what the user has named, and not the command that opens it. */
    const struct nbd_place place
        = { .name = opts->image != NULL ? opts->image : name, .argv = command };
    bool made;
    if (new_image_make (opts, &made, errnum, error) == 0)
      ep = endpoint_nbd_open (&place, opts, errnum, error);
    if (ep == NULL && made)
      unlink (opts->image);
  }
  free (command);
  free (name);
  return ep;
}

static struct endpoint *
open_ssh (const struct uri *uri, const char *name, struct endpoint_options *opts, int *errnum,
          char **error)
{
  char **command = ssh_command (uri, opts);
  const struct nbd_place place = {
    .name = name,
    .argv = command,
    .stdio = true,
    .export = RECEIVE_MIRROR, /* for reading too: it is not offered to several connections */
    .why_ended = ssh_why_ended,
  };

  /* The server is ours alone: whatever a dying client does to it, nobody else is hurt. */
  opts->nr_in_flight = IN_FLIGHT;
  opts->nr_connections = 1;
  struct endpoint *ep = endpoint_nbd_open (&place, opts, errnum, error);
  ssh_command_free (command);
  return ep;
}

static struct endpoint *
open_uri (const char *name, struct endpoint_options *opts, int *errnum, char **error)
{
  char *problem = NULL;
  struct uri *uri = uri_read (name, &problem);

  if (!uri) {
    endpoint_fail (errnum, error, ENDPOINT_BAD_NAME, "%s: %s", name, problem);
    text_free (problem);
    return NULL;
  }
  if (uri->kind == URI_NBD) {
    const struct nbd_place place = { .name = name, .uri = uri };
    return endpoint_nbd_open (&place, opts, errnum, error);
  }

  struct endpoint *ep = open_ssh (uri, name, opts, errnum, error);
  uri_free (uri);
  return ep;
}

struct endpoint *
endpoint_open (char *const *argv, unsigned nr_args, const struct endpoint_options *options,
               int *errnum, char **error)
{
  struct endpoint_options opts = *options;
  enum uri_kind kind = uri_kind (argv[0]);

  if (opts.connect_timeout_ms <= 0)
    opts.connect_timeout_ms = kind == URI_SSH ? SSH_TIMEOUT_MS : CONNECT_TIMEOUT_MS;
  if (opts.request_timeout_ms <= 0)
    opts.request_timeout_ms = REQUEST_TIMEOUT_MS;
  if (opts.nr_in_flight == 0)
    opts.nr_in_flight = IN_FLIGHT;
  if (opts.nr_connections > CHANNEL_MAX_FDS)
    opts.nr_connections = CHANNEL_MAX_FDS;

  if (opts.digests || opts.base_digest) {
    opts.writable = opts.will_write = opts.create = opts.ask_digests = false;
    if (nr_args != 1 || kind == URI_NONE) {
      endpoint_fail (errnum, error, ENOTSUP, "%s: there is no server to ask for digests",
                     nr_args == 1 ? argv[0] : argv[1]);
      return NULL;
    }
  }
  if (nr_args != 1 || strcmp (argv[0], "[") == 0)
    return open_command (argv, nr_args, &opts, errnum, error);
  if (kind == URI_NONE && opts.compress > 0 && (opts.writable || opts.will_write)) {
    endpoint_fail (
        errnum, error, EROFS,
        "%s: --compress is for a server of nbdmirror receive: there is no line to a file", argv[0]);
    return NULL;
  }
  if (kind != URI_NONE)
    return open_uri (argv[0], &opts, errnum, error);
  return endpoint_file_open (argv[0], &opts, errnum, error);
}
