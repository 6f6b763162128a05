/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Exports of digests (digest/export-name.h): whether a server has them, and opening them.
 *
 * Whether it has them is asked on the connection that was made anyway, before its export is chosen:
 * some servers take one connection only.  An export of that name is not enough, since many servers
 * serve their disk under any name; the description has to say what it is.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "digest/export-name.h"
#include "mirror/endpoint/nbd.h"

#define NAME_MAX_NBD 4096 /* what the protocol allows */

const char *
nbd_export_name (const struct nbd_endpoint *nep)
{
  return nep->uri ? nep->uri->export : nep->export ? nep->export : "";
}

/* The name of the export of digests, or if KEY is NULL of the base's digest.  False if it is too
 * long for the protocol. */
static bool
name_digests (const struct nbd_endpoint *nep, const struct digest_key *key,
              char name[NAME_MAX_NBD + 1])
{
  const char *of = nbd_export_name (nep);
  char prefix[DIGEST_NAME_MAX] = DIGEST_BASE;

  if (key)
    digest_name_format (prefix, key);
  int n = snprintf (name, NAME_MAX_NBD + 1, "%s%s%s", prefix, of[0] != '\0' ? "/" : "", of);
  return n <= NAME_MAX_NBD;
}

/* The export that H has or has asked about: is it what it should be?  KEY as above. */
static bool
is_digests (struct nbd_handle *h, const struct digest_key *key, uint64_t *of)
{
  char *description = nbd_get_export_description (h);
  int64_t size = nbd_get_size (h);
  bool is = false;

  if (description != NULL && key == NULL)
    is = size == DIGEST_BASE_SIZE && strcmp (description, DIGEST_BASE_DESCRIPTION) == 0;
  else if (description != NULL)
    is = size >= 0 && digest_description_parse (description, key, of)
         && digest_count (key, *of) * DIGEST_SIZE == (uint64_t)size;
  free (description);
  return is;
}

bool
nbd_look_for_digests (const struct nbd_endpoint *nep, struct nbd_handle *h, int64_t deadline)
{
  const struct digest_key any = { .seed = 0, .block = DIGEST_BLOCK_MAX };
  char name[NAME_MAX_NBD + 1];
  uint64_t of;

  return name_digests (nep, &any, name) && nbd_ask_about (h, name, deadline) == 0
         && is_digests (h, &any, &of);
}

bool
nbd_wants_digests (const struct nbd_endpoint *nep)
{
  return nep->ep.opts.digests != NULL || nep->ep.opts.base_digest;
}

int
nbd_go_digests (struct nbd_endpoint *nep, struct nbd_handle *h, int64_t deadline)
{
  const struct digest_key *key = nep->ep.opts.digests;
  char name[NAME_MAX_NBD + 1];
  uint64_t of;

  if (!name_digests (nep, key, name)) {
    errno = ENAMETOOLONG;
    return -1;
  }
  if (nbd_go (h, name, deadline) == -1)
    return -1;
  if (is_digests (h, key, &of)) {
    if (!nep->has_digests) { /* the first connection: others may be made at the same time */
      nep->digests_of = of;
      nep->has_digests = true;
    }
    return 0;
  }
  errno = ENOTSUP;
  return -1;
}
