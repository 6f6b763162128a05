/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Compare two endpoints byte by byte, up to the length of the first.
 */

#ifndef NBDMIRROR_MIRROR_VERIFY_VERIFY_H
#define NBDMIRROR_MIRROR_VERIFY_VERIFY_H

#include <stdatomic.h>
#include <stdint.h>

#include "mirror/endpoint/endpoint.h"

enum verify_result { VERIFY_EQUAL, VERIFY_DIFFERENT, VERIFY_FAILED, VERIFY_CANCELLED };

struct verify_options {
  char *const *a, *const *b; /* as for endpoint_open() */
  unsigned nr_a, nr_b;
  struct endpoint_options endpoint;
  _Atomic int *signal; /* not 0: stop */
  void *opaque;
  void (*progress) (void *opaque, uint64_t done, uint64_t size); /* bytes */
};

struct verify_report {
  uint64_t size;       /* of A */
  uint64_t read_bytes; /* read on each side, and compared */
  uint64_t offset;     /* the first difference */
  uint64_t size_b;
};

/* *ERROR (caller frees) is set if VERIFY_FAILED.  B smaller than A is a difference, at B's end if
 * all before is equal.  Ranges that both sides' block status calls zero are not read. */
enum verify_result verify_run (const struct verify_options *o, struct verify_report *report,
                               char **error);

#endif
