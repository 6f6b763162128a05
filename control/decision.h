/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The decision word of a hand-off: one 32-bit word in a sealed memfd, which the coordinator shares
 * with the filters of all disks.  It changes once, by compare-and-swap.  So all disks commit or
 * none does, whoever dies and whenever that is.
 *
 * The functions that read and change the word may be called from any thread and process.
 */

#ifndef NBDMIRROR_CONTROL_DECISION_H
#define NBDMIRROR_CONTROL_DECISION_H

#include <stdatomic.h>
#include <stdint.h>

enum decision_value { DECISION_UNDECIDED = 0, DECISION_COMMIT = 1, DECISION_ABORT = 2 };

struct decision {
  _Atomic uint32_t *word; /* mapped, shared */
  int fd;                 /* owned */
};

/* The coordinator creates a word.  NULL with *ERROR set (the caller frees it with text_free()). */
struct decision *decision_create (char **error);

/* A filter maps the word that it received as FD, which stays the caller's.  FD is refused unless it
 * is a memfd of the right size that is sealed against shrinking: otherwise to read the word could
 * raise SIGBUS.  NULL with *ERROR set (the caller frees it with text_free()). */
struct decision *decision_map (int fd, char **error);
void decision_free (struct decision *d); /* NULL allowed; changes nothing */

enum decision_value decision_get (const struct decision *d);
/* Compare-and-swap undecided to VALUE; returns what the word says afterwards. */
enum decision_value decision_try (struct decision *d, enum decision_value value);

#endif
