/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * How fast can an endpoint be read, and how much of it is data?  For a dry run: nothing is written.
 *
 * First its block status is asked, from the beginning, for at most half the time; then what it says
 * is data is read, several requests at a time, until the time is up or the end is reached; a disk
 * that is all holes is read as it is.
 */

#ifndef NBDMIRROR_MIRROR_JOB_READ_TEST_H
#define NBDMIRROR_MIRROR_JOB_READ_TEST_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "mirror/endpoint/endpoint.h"

struct read_test {
  /* Set by the caller. */
  struct endpoint *ep;     /* borrowed */
  uint64_t size;           /* bytes of it that count */
  uint64_t limit;          /* read at most so many bytes a second; 0: no limit */
  _Atomic uint64_t end_ns; /* stop then; may be set to 0 at any time */

  /* Results. */
  uint64_t mapped_bytes; /* how far block status was asked */
  uint64_t data_bytes;   /* what it called data up to there */
  uint64_t read_bytes, read_ns;
  uint64_t rtt_ns; /* the shortest small read; 0: none */
  char *error;     /* NULL, or why it stopped; owned */

  pthread_t thread;
};

/* Start in a thread of its own.  0, or an errno. */
int read_test_start (struct read_test *p);
void read_test_join (struct read_test *p);

/* Bytes a second, or 0 if nothing could be measured. */
double read_test_rate (const struct read_test *p);

#endif
