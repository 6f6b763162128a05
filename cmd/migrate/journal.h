/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The course of a migration: its phase, why it failed, what the roll-back did.  Each is told where
 * it belongs: in the log (an object of JSON a line), on the terminal, in the report.
 *
 * Everything else in this folder may use the journal, and the journal uses none of it.
 */

#ifndef NBDMIRROR_CMD_MIGRATE_JOURNAL_H
#define NBDMIRROR_CMD_MIGRATE_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <jansson.h>

#include "cmd/migrate/notes.h"

struct journal {
  bool json; /* an object is printed at the end, and no progress */
  uint64_t start_ns;

  enum phase phase;
  uint64_t took_ns[PHASES]; /* the phases that are over */
  int exit_status;          /* of the first failure */
  char *reason;             /* of the first failure, owned; NULL: there was none */
  json_t *rolled_back;      /* what the roll-back did, texts */

  FILE *log; /* NULL: none is wanted */
  const char *log_file;
  uint64_t phase_ns, shown_ns;
};

/* FILE is the log to append to, or NULL.  -1 after an error message. */
int journal_open (struct journal *j, const char *file);
void journal_close (struct journal *j);

/* One line of the log; steals DATA (may be NULL). */
void journal_event (struct journal *j, const char *event, json_t *data);
void journal_text (struct journal *j, const char *event, const char *text);

/* Something has failed.  The first reason is kept, with the exit status; a later one only goes to
 * the log.  Always returns -1. */
int journal_fail (struct journal *j, int exit_status, const char *fmt, ...)
    __attribute__ ((format (printf, 3, 4)));
/* The same with a text that is stolen, for text_free(). */
int journal_fail_with (struct journal *j, int exit_status, char *text);

/* A phase begins. */
void journal_phase (struct journal *j, enum phase phase);
const char *phase_name (enum phase phase);

/* Show the phase line, with DETAIL after its text ("" none). */
void journal_show (struct journal *j, const char *detail);
/* Is it time to show it again?  Ask as often as you like. */
bool journal_is_due (const struct journal *j);
/* Before a message: end the phase line. */
void journal_break (const struct journal *j);

/* One thing that the roll-back did. */
void journal_rolled_back (struct journal *j, const char *fmt, ...)
    __attribute__ ((format (printf, 2, 3)));

#endif
