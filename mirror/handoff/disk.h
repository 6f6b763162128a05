/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the coordinator does to one disk of a hand-off, and to all at the same time.  Internal to
 * mirror/handoff/.
 */

#ifndef NBDMIRROR_MIRROR_HANDOFF_DISK_H
#define NBDMIRROR_MIRROR_HANDOFF_DISK_H

#include <pthread.h>
#include <stdbool.h>
#include <jansson.h>

#include "base/uuid.h"
#include "control/client.h"
#include "control/decision.h"
#include "mirror/handoff/coordinator.h"

#define HANDOFF_CONNECT_MS 10000
#define HANDOFF_CALL_MS 10000

/* What mirror-decision says of a disk. */
enum handoff_standing {
  STANDING_UNKNOWN,  /* not asked yet */
  STANDING_NONE,     /* no hand-off is prepared: released, or never begun */
  STANDING_ENDED,    /* QEMU has it open by itself, and its worker has ended: nobody can tell */
  STANDING_PREPARED, /* held, and the word is ours to read */
  STANDING_IN_DOUBT, /* its server was restarted between prepared and the decision */
  STANDING_COMMITTED
};

struct coordinator_disk {
  const char *control;
  struct control_client *client;
  struct decision *decision; /* shared by all disks */
  const char *token, *waiters, *successor;
  unsigned lease_ms, timeout_ms;
  uint64_t end_ms; /* clock_ms() at which it must be prepared */
  bool guest_stopped;
  bool release;                          /* the guest goes on at the commit */
  const char *checkpoint;                /* to be added at the commit, or NULL */
  char checkpoint_uuid[UUID_TEXT_BYTES]; /* once it is durable, else "" */
  bool begun;                            /* a call to it was sent */
  bool finalized;                        /* and answered: it has recorded the commit */
  pthread_t thread;
  bool started;
  json_int_t generation;
  double downtime_ms;
  enum handoff_standing standing; /* of a hand-off that another process prepared */
  char its_token[ROLLBACK_TOKEN_MAX + 1];
  char *class_; /* of the error, owned; may be NULL */
  char *error;  /* owned; NULL: fine so far */
};

/* Does it take part in a hand-off that another process prepared, or in ours? */
bool coordinator_disk_takes_part (const struct coordinator_disk *d);

/* Note MESSAGE (stolen, for text_free()) as D's error, with D's path before it unless it names the
 * path already. */
void coordinator_disk_error (struct coordinator_disk *d, char *message);
void coordinator_disk_forget_error (struct coordinator_disk *d);

/* How long the disk's server may take to answer where nothing is copied, in ms: as the caller asks,
 * and HANDOFF_CONNECT_MS at most. */
int coordinator_disk_limit (const struct coordinator_disk *d);

/* The time until it must be prepared, but LIMIT at most; in ms. */
int coordinator_disk_left (const struct coordinator_disk *d, unsigned limit);

/* Connect, and learn max-downtime-ms (into *MAX_DOWNTIME, if it is larger).  0, or -1 with the
 * disk's error set. */
int coordinator_disk_connect (struct coordinator_disk *d, double *max_downtime);

/* Steps; OPAQUE is the disk, an error goes to it. */
void *coordinator_disk_prepare (void *opaque);
void *coordinator_disk_keep (void *opaque);
void *coordinator_disk_finalize (void *opaque);
void *coordinator_disk_release (void *opaque);

/* All disks are armed: prepare the checkpoints of those that shall have one, all at the same time.
 * Errors go to the disks (checkpoint-disks.c). */
void coordinator_checkpoint_prepare (struct coordinator_disk *disks, unsigned nr);

/* Note that D, which has MESSAGE and CLASS_ (both stolen, CLASS_ may be NULL), ends the hand-off.
 */
void coordinator_disk_refused (struct coordinator_disk *d, char *class_, char *message);

/* All disks are armed: hold them, all at the same time.  Errors go to the disks. */
void coordinator_prepare_now (struct coordinator_disk *disks, unsigned nr);
/* The word says "commit": tell all.  The same as coordinator_disk_finalize() for each. */
void coordinator_finalize_all (struct coordinator_disk *disks, unsigned nr);

/* Run STEP for all disks at the same time and wait for all. */
void coordinator_all_disks (struct coordinator_disk *disks, unsigned nr, void *(*step) (void *));

/* PREFIX and all errors in one message, for text_free(). */
char *coordinator_join_errors (const struct coordinator_disk *disks, unsigned nr,
                               const char *prefix);
bool coordinator_any_error (const struct coordinator_disk *disks, unsigned nr);

#endif
