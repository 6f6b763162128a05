/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A budget: a bandwidth limit that all jobs of one user on one host share, by a name.
 *
 * Members spend from one account, so together they never spend more than the budget's rate.  Each
 * limits itself to its fair share besides (share.h), which it works out from what the others say
 * about themselves, 20 times a second.  There is no daemon, and no member waits for another: one
 * that is killed or stopped is left out of the shares a second later, and the account goes on
 * meanwhile (store.h).
 *
 * Rates are bytes a second, times clock_ns().  Errors are texts of base/text.h.
 */

#ifndef NBDMIRROR_BUDGET_BUDGET_H
#define NBDMIRROR_BUDGET_BUDGET_H

#include <stdbool.h>
#include <stdint.h>

#define BUDGET_NAME_MAX 64
#define BUDGET_WEIGHT_MAX 100
#define BUDGET_RATE_MIN 65536 /* so that no request is paid for longer than some seconds */

/* A member, for one thread at a time. */
struct budget;

/* NULL, or what is wrong with NAME (a constant text). */
const char *budget_name_problem (const char *name);

/* Join the budget NAME, with a weight of 1 to BUDGET_WEIGHT_MAX.  LABEL tells people what the job
 * is.  NULL with *ERROR. */
struct budget *budget_join (const char *name, unsigned weight, const char *label, char **error);
void budget_leave (struct budget *b); /* NULL is allowed */

/* Nanoseconds until the member may send, but at most a tenth of a second: then ask again.  0: now.
 * Call it only when there is something to send, since that is what a share is given for. */
uint64_t budget_wait (struct budget *b, uint64_t now_ns);
/* Pay for BYTES, after budget_wait() has said 0. */
void budget_take (struct budget *b, uint64_t bytes, uint64_t now_ns);
/* Give back what was paid for and not sent. */
void budget_give (struct budget *b, uint64_t bytes);

const char *budget_name (const struct budget *b);
/* The whole budget; 0: no limit.  Any thread. */
uint64_t budget_rate (const struct budget *b);
/* Its present share; 0: no limit.  Any thread. */
uint64_t budget_share (const struct budget *b);

/* ---- for people (list.c) ---- */

struct budget_member {
  uint64_t pid, weight, bytes, used; /* used: bytes a second */
  bool active;                       /* it has wanted to send in the last second */
  char label[80];
};

struct budget_view {
  char name[BUDGET_NAME_MAX + 1];
  uint64_t rate, bytes;
  unsigned nr_members;
  struct budget_member *members; /* owned */
};

/* Set the rate, of a new budget too; 0: no limit.  0, or -1 with *ERROR. */
int budget_set (const char *name, uint64_t rate, char **error);
/* 0; -1 with *ERROR, also if somebody is a member. */
int budget_remove (const char *name, char **error);
/* 0, 1 if there is none, or -1 with *ERROR. */
int budget_look (const char *name, struct budget_view *view, char **error);
void budget_view_free (struct budget_view *view);
/* All names, sorted; the caller frees each with text_free() and the array with free().  The number
 * of them, or -1 with *ERROR. */
int budget_names (char ***names, char **error);

#endif
