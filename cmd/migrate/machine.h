/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * One QEMU, through its monitor.  QMP is the wire format of our own control protocol, so its client
 * serves here as well.
 *
 * A machine belongs to one thread.  Calls block for at most MACHINE_CALL_MS.  An error is a text
 * for text_free(), and names the side.
 */

#ifndef NBDMIRROR_CMD_MIGRATE_MACHINE_H
#define NBDMIRROR_CMD_MIGRATE_MACHINE_H

#include <stdbool.h>
#include <stdint.h>
#include <jansson.h>

#include "cmd/migrate/journal.h"
#include "cmd/migrate/peer.h"
#include "control/client.h"

#define MACHINE_CALL_MS 20000
#define MACHINE_CONNECT_MS 10000

struct machine {
  const char *name; /* "source" or "destination" */
  const char *path; /* of the QMP socket */
  struct journal *journal;
  bool only_look;                       /* nothing is changed: capabilities are checked, not set */
  bool brief;                           /* each call ends with the connection, for others' turn */
  struct control_client *qmp;           /* NULL: not connected, or lost */
  struct peer peer;                     /* who listens at PATH, as of the last connection */
  char migration[32];                   /* the last status that a MIGRATION event told; "" none */
  bool unanswered;                      /* we have hung up while a command had no answer yet */
  uint64_t stop_ns, resume_ns;          /* when these events came; 0: they did not */
  json_int_t memory_left, memory_total; /* bytes, as query-migrate told last; total 0: it did not */
  json_int_t memory_sent;               /* the same */
  json_t *old_caps, *old_params;        /* what a roll-back sets again, or NULL; owned */
};

/* 0, or -1 with *ERROR. */
int machine_connect (struct machine *v, char **error);
void machine_close (struct machine *v);
void machine_free (struct machine *v); /* closes, too */

/* Run a command; steals ARGS.  0, or -1 with *ERROR.  *REFUSED (may be NULL) tells whether QEMU has
 * answered with an error.  A connection that is lost, or brief, is closed; the next call connects
 * again. */
int machine_call (struct machine *v, const char *command, json_t *args, json_t **ret, bool *refused,
                  char **error);

/* Take in the events that are there.  -1: the connection is lost. */
int machine_events (struct machine *v);

/* Is nobody listening at the socket any more?  Then QEMU has ended, if its socket is local. */
bool machine_is_dead (const struct machine *v);

/* Was the connection closed by the other side? */
bool machine_is_lost (const struct machine *v);

/* What query-status and query-migrate say, into BUF; "" if it cannot be asked. */
void machine_status (struct machine *v, char buf[32]);
void machine_migration (struct machine *v, char buf[32]);

/* Let the guest go on; tried 30 times, a second apart.  0: it runs, or somebody else has
 * stopped it since.  -1 with *ERROR. */
int machine_continue (struct machine *v, char **error);

/* Set capabilities (NAME, 0 or 1, ..., NULL), and note in old_caps what they were.  0, or -1 with
 * *ERROR.  That QEMU lacks one is no error where it is to be off. */
int machine_set_capabilities (struct machine *v, char **error, ...);

#endif
