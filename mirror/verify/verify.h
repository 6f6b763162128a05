/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Are two disks equal, up to the length of the first?
 *
 * Where a side's server serves digests (digest/export-name.h), the digests of its blocks are
 * compared with those of the other side, which is asked for them too, or is read and digested here.
 * The seed is chosen at random for each comparison.  Blocks whose digests differ are read, so the
 * offset that is told is exact.  Where neither side serves digests, both are read.
 */

#ifndef NBDMIRROR_MIRROR_VERIFY_VERIFY_H
#define NBDMIRROR_MIRROR_VERIFY_VERIFY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "mirror/endpoint/endpoint.h"

enum verify_result { VERIFY_EQUAL, VERIFY_DIFFERENT, VERIFY_FAILED, VERIFY_CANCELLED };

#define VERIFY_UNIT 4096u

struct verify_options {
  char *const *a, *const *b; /* as for endpoint_open() */
  unsigned nr_a, nr_b;
  struct endpoint_options endpoint;
  bool bytes;          /* read both sides, whatever their servers can do */
  _Atomic int *signal; /* not 0: stop */
  void *opaque;
  void (*progress) (void *opaque, uint64_t done, uint64_t size); /* bytes */
  /* Not NULL: go on after a difference, and tell each piece of VERIFY_UNIT bytes that differs, in
   * any order.  The disks must have the same size, but with PADDED B may be filled up to whole
   * sectors of 512 bytes. */
  void (*differs) (void *opaque, uint64_t offset, uint64_t length);
  bool padded;
};

struct verify_report {
  uint64_t size;           /* of A */
  uint64_t compared_bytes; /* of the disk, on each side: what is not zero on both of them */
  uint64_t offset;         /* the first difference */
  uint64_t size_b;
  bool digests_a, digests_b; /* the server's digests were used */
};

/* *ERROR (the caller frees it with text_free()) is set if VERIFY_FAILED.  B smaller than A is a
 * difference, at B's end if all before is equal.  Ranges that both sides' block status calls zero
 * are not looked at. */
enum verify_result verify_run (const struct verify_options *o, struct verify_report *report,
                               char **error);

#endif
