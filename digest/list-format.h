/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The parts of a list of digests as they lie in the file (list.h).
 */

#ifndef NBDMIRROR_DIGEST_LIST_FORMAT_H
#define NBDMIRROR_DIGEST_LIST_FORMAT_H

#include <endian.h>
#include <stdint.h>

#define DIGEST_LIST_MAGIC "nbdmdig1"
#define DIGEST_LIST_COMPLETE 1u
#define DIGEST_LIST_PIECE (64u << 10) /* bytes: a block of the list's own digest */

enum { DIGEST_LIST_ZERO, DIGEST_LIST_DATA };

struct digest_list_header {
  char magic[8];
  uint32_t block, flags;
  uint64_t blocks;
};

struct digest_list_run {
  uint64_t first;
  uint32_t nr, kind;
};

#endif
