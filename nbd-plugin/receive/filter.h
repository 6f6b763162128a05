/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdkit-mirror-receive-filter, the destination's side of a mirror: what its parts share.
 * `nbdmirror receive` puts it in front of the disk.
 *
 * It may use control/receive-exports.h, control/take-over.h, compress/, base/ and nbdkit's filter
 * API.
 *
 * One disk, several exports (control/receive-exports.h lists them).  Of the mirror's export one
 * session at a time may write (admission.h).  The guest's first mutation through its own export
 * seals the disk: from then on no mirror session writes, so that a late worker cannot write under a
 * running guest.
 *
 * Reads, flushes and block status of a revoked session fail too: it must not believe that it is the
 * one that writes here.  A connection to "mirror" that has not written yet may read at any time,
 * for `verify`; also once the disk is sealed, but then it is read-only.
 *
 * There is one `struct receive` a server, the static variable of filter.c.  nbdkit's threads, one a
 * request, use all of it; what changes after get_ready is atomic, or belongs to admission.  One
 * thread of our own watches the supervisor (orphan.h).
 */

#ifndef NBDMIRROR_NBD_PLUGIN_RECEIVE_FILTER_H
#define NBDMIRROR_NBD_PLUGIN_RECEIVE_FILTER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "nbd-plugin/receive/admission.h"
#include "nbd-plugin/receive/hand-over.h"
#include "nbd-plugin/receive/packed.h"
#include "nbd-plugin/receive/standing.h"

/* What the command line says; constant after get_ready.  Descriptors are -1 if they were not
 * given. */
struct receive_options {
  int notify_fd;       /* to the supervisor, see receive-exports.h */
  int disk_fd;         /* what was prepared, and is locked */
  char *disk_path;     /* where the plugin opens it, anew for each connection; owned, or NULL */
  bool keep_allocated; /* zeroes of the mirror are written, not punched */
  bool sealed;         /* the guest's, from the beginning */
  bool one_client;     /* nbdkit -s: nobody else can come */
  int take_over_fd;    /* control/take-over.h */
  bool fenced;         /* it was handed over from here once: only the mirror's seal, and not the
                          guest's first mutation, makes it the guest's again */
};

struct receive {
  struct receive_options config;
  struct admission admission;
  struct standing standing;
  struct hand_over hand_over;
  pthread_mutex_t record_lock; /* whoever seals waits until that is recorded */
  _Atomic bool seal_recorded;
  _Atomic bool refusal_logged; /* of a guest, because of `fenced` */
  _Atomic bool guest_has_written;
  _Atomic unsigned nr_guests;     /* connections */
  _Atomic uint64_t guest_left_ms; /* clock_ms() when the last one was closed; 0: there was none */
};

/* GUEST, the mirror's with a SESSION of several connections, one whose place another mirror has
 * taken, the mirror's ALONE, three whose being opened is the request, and that of the plugin's by
 * which an image is lent. */
enum export_kind {
  EXPORT_GUEST,
  EXPORT_SESSION,
  EXPORT_SUPERSEDED,
  EXPORT_ALONE,
  EXPORT_SEAL,
  EXPORT_CHECKPOINT,
  EXPORT_GIVE_UP,
  EXPORT_LEND
};

/* A connection. */
struct handle {
  enum export_kind kind;
  _Atomic uint64_t generation; /* SESSION, and ALONE once it has written; else 0 */
  _Atomic bool refusal_logged;
  struct packed *packed; /* NULL: its writes are never compressed */
};

/* config.c: take a parameter.  1: it was ours, 0: it is not, -1: it is wrong, and was logged. */
int receive_parameter (struct receive_options *c, const char *key, const char *value);
extern const char receive_help[];

/* exports.c */

/* Open the export NAME: sets H's kind and, for a session, its right to write, for which it may
 * wait.  0, or -1 with the reason logged. */
int export_open (struct receive *r, struct handle *h, const char *name);

/* May what is written to the export NAME be compressed? */
bool export_is_packed (const char *name);

/* The last step of opening a GIVE_UP export: the disk may be gone in a moment.  0 or -1. */
int export_give_up (struct receive *r);

/* Is the disk's path still that of the file that was locked?  0, or -1 and it was logged. */
int export_check_disk (const struct receive *r);

/* Seal the disk for WHO, whoever asks first; then wait until no request of the mirror's is in
 * flight, at most LIMIT_MS (negative: without limit).  0 or an errno. */
int export_seal (struct receive *r, int64_t limit_ms, const char *who);

/* Note in the disk's file, durably, that it is sealed. */
void export_record_seal (const struct receive *r);

/* Tell the supervisor. */
void export_notify (const struct receive *r, char note);

/* Waits about a millisecond.  0, or an errno if the client has gone or the server stops. */
int export_pause (void *opaque);

#endif
