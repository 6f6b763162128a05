/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the coordinator does to one disk of a hand-off, and to all at the same time.  Internal to
 * handoff*.c.
 */

#ifndef NBDMIRROR_MIRROR_HANDOFF_DISK_H
#define NBDMIRROR_MIRROR_HANDOFF_DISK_H

#include <pthread.h>
#include <stdbool.h>
#include <jansson.h>

#include "control/client.h"
#include "control/decision.h"
#include "mirror/handoff/coordinator.h"

#define HANDOFF_CONNECT_MS 10000
#define HANDOFF_CALL_MS 10000

/* What mirror-decision says of a disk. */
enum handoff_standing {
  STANDING_UNKNOWN,  /* not asked yet */
  STANDING_NONE,     /* no hand-off is prepared: released, or never begun */
  STANDING_PREPARED, /* held, and the word is ours to read */
  STANDING_IN_DOUBT, /* its server was restarted between prepared and the decision */
  STANDING_COMMITTED
};

struct handoff_disk {
  const char *control;
  struct control_client *client;
  struct decision *decision; /* shared by all disks */
  const char *token, *waiters, *successor;
  unsigned lease_ms, timeout_ms;
  bool guest_stopped;
  pthread_t thread;
  bool started;
  json_int_t generation;
  double downtime_ms;
  enum handoff_standing standing; /* of a hand-off that another process prepared */
  char its_token[HANDOFF_TOKEN_MAX + 1];
  char *class_; /* of the error, owned; may be NULL */
  char *error;  /* owned; NULL: fine so far */
};

/* DISK's path, then MESSAGE (stolen, may be NULL), unless it names the path already. */
void handoff_disk_error (struct handoff_disk *d, char *message);
void handoff_disk_forget_error (struct handoff_disk *d);

/* Connect, and learn max-downtime-ms (into *MAX_DOWNTIME, if it is larger).  0, or -1 with the
 * disk's error set. */
int handoff_disk_connect (struct handoff_disk *d, double *max_downtime);

/* Steps; OPAQUE is the disk, an error goes to it. */
void *handoff_disk_prepare (void *opaque);
void *handoff_disk_keep (void *opaque);
void *handoff_disk_finalize (void *opaque);
void *handoff_disk_release (void *opaque);

/* Run STEP for all disks at the same time and wait for all. */
void handoff_all_disks (struct handoff_disk *disks, unsigned nr, void *(*step) (void *));

/* All errors in one message: which disks, and why.  NULL if there is none, or no memory. */
char *handoff_join_errors (const struct handoff_disk *disks, unsigned nr, const char *prefix);
bool handoff_any_error (const struct handoff_disk *disks, unsigned nr);

#endif
