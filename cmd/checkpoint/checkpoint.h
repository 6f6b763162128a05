/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the files of `nbdmirror checkpoint` and `dirty-map` share.
 */

#ifndef NBDMIRROR_CMD_CHECKPOINT_CHECKPOINT_H
#define NBDMIRROR_CMD_CHECKPOINT_CHECKPOINT_H

#include <stdbool.h>
#include <stdint.h>
#include <jansson.h>

/* All checkpoints that the server of CONTROL has, a new reference; NULL after a message. */
json_t *checkpoint_ask_list (const char *control);

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

/* verify.c: compare a disk with a copy of it as it was at a checkpoint.  What differs and is not
 * recorded was missed. */
struct checkpoint_scrub {
  const char *place, *disk; /* as for checkpoint_map() */
  const char *name;         /* of the checkpoint */
  char **copy;              /* the words of an endpoint */
  unsigned nr_copy;
  bool padded;         /* it is filled up to whole sectors */
  bool mark;           /* have the server of PLACE record what was missed */
  bool show;           /* progress */
  _Atomic int *signal; /* not 0: stop */
  /* What was found. */
  uint64_t different_bytes, missed_bytes;
  json_t *missed; /* owned by the caller: an array of objects with `offset` and `length` */
};
/* An exit status, after a message; EXIT_DONE also if something was missed. */
int checkpoint_scrub (struct checkpoint_scrub *x);
void checkpoint_print_missed (const json_t *missed);

/* The subcommand.  An exit status, after messages. */
int checkpoint_verify (const char *place, const char *disk, const char *name, const char *copy,
                       bool mark_it, bool json);

#endif
