/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A state file to be damaged.  It is put together from format.h alone, so that the code which
 * writes such files is not needed to test the code which reads them, and it is the same in each
 * run.
 */

#ifndef NBDMIRROR_TESTS_FUZZ_STATE_H
#define NBDMIRROR_TESTS_FUZZ_STATE_H

#include <stdbool.h>

#include "dirty-bitmap/state/format.h"

#define FUZZ_DISK (UINT64_C (160) << 20)
#define FUZZ_BLOCK 4096u
#define FUZZ_AREAS 4u

enum fuzz_kind {
  FUZZ_RAW, /* nothing */
  FUZZ_JOB,
  FUZZ_JOB_AND_CHECKPOINTS,
  FUZZ_CHECKPOINTS,
  FUZZ_NR_KINDS
};

struct fuzz_file {
  struct state_layout layout;
  uint64_t size; /* bytes */
  uint8_t *data; /* a shared mapping of FD */
  int fd;        /* a memfd */
};

/* This boot's id in the files. */
extern const uint8_t fuzz_boot[16];

/* False: errno. */
bool fuzz_file_make (struct fuzz_file *f, enum fuzz_kind kind);

/* Make the checksum right of the page that the byte at OFFSET is in. */
void fuzz_file_seal (struct fuzz_file *f, uint64_t offset);

/* Where is the newer copy of L1?  FIRST and LENGTH in bytes. */
uint64_t fuzz_newest_l1 (const struct fuzz_file *f);

#endif
