/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a power cut leaves: of a state file, and of the source's disk.
 *
 * Of the file there is all that was written before the last completed sync, and any part of what
 * came later, with tears of 512 bytes.  Of each block of the disk there is what was durable, or
 * any version that was written, or was being written, since.  A block's content is a number,
 * counted up at each write.
 */

#ifndef NBDMIRROR_TESTS_CRASH_MEDIUM_H
#define NBDMIRROR_TESTS_CRASH_MEDIUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dirty-bitmap/state/state.h"

#define MEDIUM_WRITES 512
#define MEDIUM_VERSIONS 64

struct medium_file {
  int fd;           /* a memfd that holds what is durable */
  uint8_t *durable; /* its mapping */
  uint8_t *cached;  /* what a reader sees: all writes */
  size_t size;
  struct {
    uint64_t number; /* of all writes */
    uint64_t offset;
    size_t length;
    uint8_t *data;
  } late[MEDIUM_WRITES]; /* since the last sync */
  unsigned nr_late;
  uint64_t nr_writes;
  uint64_t l1_begin, l1_end; /* where L1 is; the same where that does not matter */
  bool off; /* the power: what is written then is lost, and the writer is told so */

  /* Called before and after each write and sync: look at what a cut leaves here; and let others go
   * on meanwhile, who may write as well. */
  void (*cut) (void);
  void (*others) (void);
};
extern struct medium_file medium;

/* One block of the disk. */
struct medium_block {
  uint32_t durable;
  uint32_t late[MEDIUM_VERSIONS]; /* written, or being written, since the last flush */
  unsigned nr;
  uint32_t completed; /* what a reader sees */
};

uint64_t medium_random (uint64_t below);
void medium_seed (uint64_t seed);

/* 0, or -1 with errno. */
int medium_open (size_t size);
/* Zeroes. */
void medium_clear (void);

/* For struct state_io. */
int medium_read (void *opaque, void *data, size_t length, uint64_t offset);
int medium_write (void *opaque, const void *data, size_t length, uint64_t offset);
int medium_sync (void *opaque);
int medium_sync_l1 (void *opaque);

/* May somebody be writing L1?  For `others`. */
bool medium_writes_l1 (void);

/* Put a random state that a cut allows into medium.durable.  Undo brings back what was. */
void medium_cut_begin (void);
void medium_cut_undo (void);
/* The power is cut: one of these states is all that there is. */
void medium_cut_for_good (void);
/* Everything that was written is durable. */
void medium_settle (void);
/* Forget what is late. */
void medium_forget_late (void);

/* The disk.  A write of VERSION begins, and ends. */
void medium_block_begin (struct medium_block *b, uint32_t version);
/* What was completed is durable; what is being written may be either way. */
void medium_block_flush (struct medium_block *b);
/* A cut, and a kill of the server only: the content is one of those that are possible. */
void medium_block_cut (struct medium_block *b);
void medium_block_killed (struct medium_block *b);

#endif
