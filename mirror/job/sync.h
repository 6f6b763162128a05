/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What to send (--sync): the user's words for it, and the base image that one of them needs.  What
 * the modes mean to the engine stands in mirror/engine/difference.h.
 */

#ifndef NBDMIRROR_MIRROR_JOB_SYNC_H
#define NBDMIRROR_MIRROR_JOB_SYNC_H

#include <stdbool.h>

#include "mirror/endpoint/endpoint.h"
#include "mirror/engine/engine.h"
#include "mirror/engine/session.h"

struct sync_options {
  enum engine_sync mode;
  const char *base;        /* path or NBD URI; NULL: none, and the mode is not ENGINE_SYNC_BASE */
  const char *base_format; /* as for qemu-nbd; NULL: raw */
  bool base_is_known;      /* ENGINE_SYNC_TOP: the source's own header names the base */
  bool trust_base;         /* a destination that does not tell its base's digest is sampled */
  const char *since;       /* ENGINE_SYNC_INCREMENTAL: a checkpoint's name; NULL: the one at which
                              the destination stands */
  bool automatic;          /* the same, and if that is not proved everything is sent */
  const char *state;       /* the same without a server: the state file; else NULL */
  bool trust_dest;         /* whether the destination stands at that checkpoint is sampled */
  unsigned trust_blocks;   /* in so many blocks */
};

const char *sync_name (enum engine_sync mode);
/* False if NAME is no mode. */
bool sync_parse (const char *name, enum engine_sync *mode);

/* The same for a live mirror, which knows "auto" as well. */
bool sync_take (const char *name, struct sync_options *o);
/* Its name for O. */
const char *sync_word (const struct sync_options *o);

/* Do the options fit together?  NULL, or what is wrong, in the words of the command line. */
const char *sync_fault (const struct sync_options *o);

/* May clean blocks be sent along with dirty ones (mirror/engine/neighbours.h)?  PERSISTENT: the
 * server has a state file.  In the other modes what is clean was never looked at, or is to stay as
 * it is.  What a state file knows after a crash is what was dirty: a late write of a clean block is
 * not in it, and would not be in quarantine (R12).  Pure. */
bool sync_may_send_clean (enum engine_sync mode, bool persistent);

/* Can SOURCE, which was opened with endpoint_options.layers, be copied in this mode to DEST, which
 * is not opened yet?  NULL, or why not (base/text.h, the caller frees it): exit 7. */
char *sync_refusal (const struct sync_options *o, const struct endpoint *source,
                    const struct session_options *dest);

/* Open an image for reading.  A FORMAT other than raw (or NULL) is read through a qemu-nbd of ours,
 * which ends with the endpoint.  EO: time limits.  NULL with *ERROR.  Blocks as endpoint_open(). */
struct endpoint *sync_open_image (const char *image, const char *format,
                                  const struct endpoint_options *eo, char **error);

/* The same for the base image of O, if there is one.  0 with *BASE, which may be NULL; or -1. */
int sync_open_base (const struct sync_options *o, const struct endpoint_options *eo,
                    struct endpoint **base, char **error);

#endif
