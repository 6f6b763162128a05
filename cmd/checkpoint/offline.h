/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Checkpoints in a state file that no server uses.
 */

#ifndef NBDMIRROR_CMD_CHECKPOINT_OFFLINE_H
#define NBDMIRROR_CMD_CHECKPOINT_OFFLINE_H

#include <stdbool.h>
#include <stdint.h>
#include <jansson.h>

struct offline;

/* Open the state file PATH, and keep it locked unless READ_ONLY.  DISK: the disk that it belongs
 * to, to see whether it was changed meanwhile; or NULL.  NULL after a message. */
struct offline *offline_open (const char *path, const char *disk, bool read_only);
void offline_close (struct offline *o);

/* As query-mirror-checkpoints says it: an array. */
json_t *offline_list (struct offline *o);

/* Remove checkpoint NAME.  0, or -1 after a message. */
int offline_remove (struct offline *o, const char *name);

/* What was changed since checkpoint SINCE, or (NULL) what the job's destination may lack.  A bit a
 * block, which the caller frees; NULL after a message, and *REFUSED if the checkpoint is
 * inconsistent. */
uint64_t *offline_map (struct offline *o, const char *since, uint64_t *size, uint64_t *block_size,
                       bool *refused);

#endif
