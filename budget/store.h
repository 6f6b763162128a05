/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The file of a budget: memory that all its members share.
 *
 * It lies in a directory of the user's own, /dev/shm/nbdmirror-UID with mode 0700 (or what the
 * environment variable NBDMIRROR_BUDGETS says), and is gone after a reboot.  A directory or a file
 * that belongs to somebody else, that others may write to, or that is a symbolic link, is refused.
 *
 * There is no lock that anybody would wait for.  Two words are what members agree on: how much has
 * been spent, and the rate.  A member that is killed or stopped at any instant leaves both as they
 * are at a moment between two requests.
 *
 *   slot           one for each member
 *   its lock       an open-file-description lock on the byte with the slot's number, which ends
 *                  with the process, however that ends: who holds it has the slot
 *   wanted_ns      when the member last wanted to send.  Who has not wanted for a second, because
 *                  it is idle, stopped or dead, has no share
 */

#ifndef NBDMIRROR_BUDGET_STORE_H
#define NBDMIRROR_BUDGET_STORE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define BUDGET_MAGIC "nbdmbdgt"
#define BUDGET_VERSION 1
#define BUDGET_SLOTS 1024u
#define BUDGET_LABEL 72
#define BUDGET_ABSENT_NS UINT64_C (1000000000)

struct budget_slot {
  _Alignas(64) _Atomic uint64_t wanted_ns; /* clock_ns(); 0: never */
  _Atomic uint64_t used;                   /* bytes a second, lately */
  _Atomic uint64_t bytes;                  /* spent since it joined */
  _Atomic uint32_t hungry;                 /* it had to wait for the budget lately */
  _Atomic uint32_t weight;
  _Atomic uint32_t pid;
  char label[BUDGET_LABEL]; /* what it copies, for people; not terminated if it is long */
};

struct budget_memory {
  char magic[8];
  uint32_t version, nr_slots;
  _Atomic uint64_t rate; /* bytes a second; 0: no limit */
  _Atomic uint32_t top;  /* slots from here on were never used */
  /* What was spent is paid for at this time (clock_ns()), at the rate of when it was spent. */
  _Alignas(64) _Atomic uint64_t paid_ns;
  _Atomic uint64_t bytes; /* spent in all */
  struct budget_slot slots[BUDGET_SLOTS];
};

struct budget_file {
  int fd;
  struct budget_memory *memory;
};

/* Open the directory; the caller closes *FD, which is -1 without success.  0; 1 if it is missing
 * and CREATE does not say to make it; -1 with *ERROR. */
int budget_directory (bool create, int *fd, char **error);

/* Open and check the budget NAME in the directory DIR.  0; 1 if there is none; -1 with *ERROR. */
int budget_file_open (int dir, const char *name, struct budget_file *f, char **error);
/* Create it with RATE.  0; 1 if it is there already; -1 with *ERROR. */
int budget_file_create (int dir, const char *name, uint64_t rate, char **error);
/* Change the rate at NOW_NS.  A debt stays, in bytes. */
void budget_file_set_rate (struct budget_file *f, uint64_t rate, uint64_t now_ns);
/* Remove the budget F, which is called NAME in DIR.  0; 1 if it is gone, and NAME may be another
 * one now; -1 with *ERROR, also if somebody is a member. */
int budget_file_remove (int dir, const char *name, const struct budget_file *f, char **error);
void budget_file_close (struct budget_file *f);

/* Has the member wanted to send in the last second?  The clock is the same one in all processes,
 * but the caller may have read it a little earlier. */
static inline bool
budget_is_active (const struct budget_slot *s, uint64_t now_ns)
{
  uint64_t wanted = atomic_load (&s->wanted_ns);
  uint64_t apart = wanted < now_ns ? now_ns - wanted : wanted - now_ns;

  return wanted != 0 && apart <= BUDGET_ABSENT_NS;
}

/* Take the slots FIRST to FIRST + COUNT - 1, if nobody has one of them. */
bool budget_lock (int fd, unsigned first, unsigned count);
/* Has another one the slot? */
bool budget_is_locked (int fd, unsigned slot);
/* Has another one taken all slots, to remove the budget?  A member has one. */
bool budget_is_being_removed (int fd);

#endif
