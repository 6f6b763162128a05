/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A source that cannot be read: what the user is told of it, and when a job gives up.  The engine
 * tries again by itself (unreadable.h).  The job's thread.
 */

#ifndef NBDMIRROR_MIRROR_JOB_SOURCE_ERRORS_H
#define NBDMIRROR_MIRROR_JOB_SOURCE_ERRORS_H

#include <stdbool.h>
#include <stdint.h>
#include <jansson.h>

#include "mirror/engine/engine.h"

/* As last looked at.  Zero at first. */
struct source_errors {
  bool any;
  struct unreadable u;    /* if ANY */
  uint64_t bytes, offset; /* what cannot be read in all, and the lowest offset of it */
};

/* Look at the engine.  True if ANY has changed. */
bool source_errors_look (struct source_errors *s, struct engine *e);

/* Is it time to give up, where GIVE_UP_NS (UINT64_MAX: never) is how long the source may be
 * unreadable?  With 0 the bad blocks are still told from the good ones of the same request. */
bool source_errors_give_up (const struct source_errors *s, uint64_t give_up_ns, uint64_t now_ns);

/* When will it be, if nothing changes?  UINT64_MAX: never. */
uint64_t source_errors_due_ns (const struct source_errors *s, uint64_t give_up_ns);

/* The source's name, the places and the reason.  The caller frees it with text_free(). */
char *source_errors_text (const struct source_errors *s, const struct engine *e);

/* An array of objects with offset and length, in bytes; a new reference. */
json_t *source_errors_json (const struct source_errors *s, const struct engine *e);

#endif
