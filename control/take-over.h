/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A disk that was received goes over to its guest, and from that instant on what the guest changes
 * is recorded.  Two filters of one server have to agree on the instant: the receive filter, which
 * knows when the disk is sealed, and the mirror filter below it, which records.  `nbdmirror receive
 * --control` gives both a page of memory, and an eventfd that wakes the mirror filter.
 *
 *   RECEIVING --the disk is sealed, and nothing of a mirror is in flight--> ASKED
 *   ASKED --the mirror filter records--> DONE
 *     +-----the guest has waited too long--> MISSED
 *
 * The guest's first mutation waits for DONE or MISSED.  Both are set by compare-and-swap.  The
 * mirror filter sets DONE only when it records already, so a mutation that follows is recorded; and
 * if it finds MISSED, its recording has missed something and is dropped.
 */

#ifndef NBDMIRROR_CONTROL_TAKE_OVER_H
#define NBDMIRROR_CONTROL_TAKE_OVER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>

enum take_over_state { TAKE_OVER_RECEIVING, TAKE_OVER_ASKED, TAKE_OVER_DONE, TAKE_OVER_MISSED };

struct take_over_page {
  _Atomic uint32_t state;
  int32_t wake_fd;  /* an eventfd, inherited by its number; constant */
  uint32_t records; /* there is a state file, so a checkpoint can begin; constant */
  uint8_t uuid[16]; /* the checkpoint that begins; zeroes: none.  Constant from ASKED on */
};

/* The name of that checkpoint. */
#define TAKE_OVER_CHECKPOINT "received"

/* Map the page FD.  NULL with errno. */
static inline struct take_over_page *
take_over_map (int fd)
{
  void *p = mmap (NULL, sizeof (struct take_over_page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

  return p != MAP_FAILED ? p : NULL;
}

static inline bool
take_over_change (struct take_over_page *p, uint32_t from, enum take_over_state to)
{
  return atomic_compare_exchange_strong (&p->state, &from, (uint32_t)to);
}

#endif
