/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * At which checkpoint of its source a destination of `nbdmirror receive` stands: proving it before
 * an incremental job, and saying it at the end of any job (control/receive-exports.h).
 *
 * A destination stands at a checkpoint if each block that the source has not changed since is equal
 * there.  So it stands at all earlier ones as well, and one that has got everything stands at the
 * latest checkpoint that was there at that moment.
 *
 * URI is the destination as the user named it, SESSION the ID of our session there.  The calls
 * block; they belong to the thread that owns CONTROL.
 */

#ifndef NBDMIRROR_MIRROR_JOB_STANDING_H
#define NBDMIRROR_MIRROR_JOB_STANDING_H

#include <jansson.h>

#include "base/uuid.h"
#include "control/client.h"
#include "dirty-bitmap/region.h"
#include "mirror/job/incremental.h"

/* What the filter behind CONTROL has: an array of objects with "name", "uuid" and "status", the
 * oldest first.  NULL with *ERROR (text_free()).  The caller owns it. */
json_t *standing_list (struct control_client *control, char **error);

/* Is URI proved to stand at checkpoint SINCE of LIST, or at a later one?  JOB_COMPLETED with the
 * UUID at which it stands in FROM; JOB_REFUSED with the reason in *ERROR; JOB_DEST_FAILED. */
enum job_result standing_prove (const json_t *list, const char *since, const char *uri,
                                char from[UUID_TEXT_BYTES], char **error);

/* Which blocks R's job has left, one bit a block; nobody copies meanwhile.  NULL: out of memory.
 * The caller frees it. */
uint64_t *standing_left (const struct region *r);

/* Was everything in LEFT changed since checkpoint NAME?  What the guest writes meanwhile is in the
 * recording, so it does not matter.  LEFT must have been looked at before. */
bool standing_left_since (struct control_client *control, const struct region *r,
                          const uint64_t *left, const char *name);

/* The UUID of NAME in LIST; NULL: there is none.  LIST's. */
const char *standing_uuid (const json_t *list, const char *name);

/* The name and UUID of the latest checkpoint in LIST to which that applies, or -1. */
int standing_latest (struct control_client *control, const json_t *list, const struct region *r,
                     const uint64_t *left, const char **name, const char **uuid);

#endif
