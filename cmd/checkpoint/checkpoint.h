/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the files of `nbdmirror checkpoint` and `dirty-map` share.
 */

#ifndef NBDMIRROR_CMD_CHECKPOINT_CHECKPOINT_H
#define NBDMIRROR_CMD_CHECKPOINT_CHECKPOINT_H

#include <stdbool.h>
#include <stdint.h>
#include <jansson.h>

/* add.c: add checkpoint NAME to the NR disks of CONTROLS at one instant.  An exit status, after
 * messages.  *UUIDS is set on success, to an object: a UUID for each control. */
int checkpoint_add (char *const *controls, unsigned nr, const char *name, json_t **uuids);

/* A filter learns the disk's size when a client opens the export: do that, if nobody has.  CLIENT
 * is connected to CONTROL.  0, or -1 after a message. */
struct control_client;
int checkpoint_open_export (const char *control, struct control_client *client);

/* dirty-map.c: what was changed. */
struct map {
  uint64_t *bits; /* a bit a block; owned, for free() */
  uint64_t size, block_size;
};
/* Ask the server of PLACE, or look into the state file PLACE of DISK (may be NULL): what was
 * changed since the checkpoint SINCE, or (NULL) what the job's destination may lack.  An exit
 * status, after a message. */
int checkpoint_map (struct map *m, const char *place, const char *disk, const char *since);

/* verify.c: an exit status, after messages. */
int checkpoint_verify (const char *place, const char *disk, const char *name, const char *copy,
                       bool json);

#endif
