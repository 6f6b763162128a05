/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See lend.h.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "control/lend-export.h"
#include "mirror/endpoint/lend.h"
#include "mirror/endpoint/nbd.h"

struct loan {
  struct nbd_handle *h;
};

/* Until H has opened the export, or cannot.  0, or -1 with *ERROR. */
static int
wait_until_open (struct nbd_handle *h, const char *socket, char **error)
{
  uint64_t end = clock_ms () + LEND_TIMEOUT_MS;

  while (nbd_aio_is_connecting (h) == 1) {
    uint64_t now = clock_ms ();
    if (now >= end)
      return text_error (error, "%s: the server has not let go of the image within %d s", socket,
                         LEND_TIMEOUT_MS / 1000);
    if (nbd_poll (h, (int)(end - now)) == -1)
      break;
  }
  if (nbd_aio_is_ready (h) == 1)
    return 0;
  return text_error (error,
                     "%s: the server does not let go of the image, and has logged why; or it is "
                     "one that cannot: %s",
                     socket, nbd_reason ());
}

/* Any server may serve its disk under any name: only the description says what this one is. */
static int
check_description (struct nbd_handle *h, const char *socket, char **format, char **error)
{
  char *text = nbd_get_export_description (h);
  const size_t len = strlen (LEND_DESCRIPTION);
  bool known = text != NULL && strncmp (text, LEND_DESCRIPTION, len) == 0;

  *format = known ? text_copy (text + len) : NULL;
  free (text);
  return known ? 0 : text_error (error, "%s: this is no server that lends its image", socket);
}

struct loan *
loan_take (const char *socket, char **format, char **error)
{
  struct loan *l = calloc (1, sizeof *l);

  if (l == NULL)
    abort ();
  *format = NULL;
  l->h = nbd_create ();
  if (l->h == NULL || nbd_set_export_name (l->h, LEND_EXPORT) == -1
      || nbd_set_full_info (l->h, true) == -1 || nbd_aio_connect_unix (l->h, socket) == -1)
    text_error (error, "%s: %s", socket, nbd_reason ());
  else if (wait_until_open (l->h, socket, error) == 0
           && check_description (l->h, socket, format, error) == 0)
    return l;
  loan_return (l);
  return NULL;
}

void
loan_return (struct loan *l)
{
  if (l == NULL)
    return;
  if (l->h != NULL)
    nbd_close_handle (l->h, true);
  free (l);
}
