/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A guest that writes while checkpoints come and go, and what each of them must remember.
 *
 * Everything happens in one thread, in an order that medium_random() chooses.  struct play is one
 * run: the guest's disk, its writes, the checkpoints, and the server that tracks the writes.
 * checkpoints.c plays the server.  A check that fails prints the seed and ends the program.
 */

#ifndef NBDMIRROR_TESTS_CRASH_PLAY_H
#define NBDMIRROR_TESTS_CRASH_PLAY_H

#include <stdbool.h>
#include <stdint.h>

#include "dirty-bitmap/state/state.h"
#include "tests/crash/medium.h"

#define PLAY_BLOCK 8192u
/* Two pages of fine bits in each recording: 63 extents of 512 blocks a page. */
#define PLAY_EXTENTS 66u
#define PLAY_BLOCKS (PLAY_EXTENTS * 512 - 7) /* an odd tail */
#define PLAY_USED 400u                       /* blocks that are written, spread over the disk */
#define PLAY_WRITES 4u                       /* at a time */
#define PLAY_CHECKPOINTS 5u                  /* at a time */

/* Used block U is number U of those that are written. */
struct play_checkpoint {
  char name[16];
  /* What the used blocks held at its first and at its last possible instant. */
  uint32_t at_first[PLAY_USED], at_last[PLAY_USED];
};

struct play_write {
  bool active, entered, counted;
  bool waited_for;       /* a checkpoint waits until it has ended */
  unsigned first, count; /* used blocks */
  uint32_t version;
};

struct play {
  struct medium_block disk[PLAY_USED];
  uint32_t newest; /* version that was written */
  struct play_write writes[PLAY_WRITES];
  bool alone; /* only the server runs */

  /* The checkpoints that the file must have. */
  struct play_checkpoint list[PLAY_CHECKPOINTS + 1];
  unsigned nr_list;
  bool adding;    /* the last one of the list may be missing */
  int removing;   /* this one may be missing; -1: none */
  bool preparing; /* a checkpoint is prepared, */
  bool drained;   /* and every write that began before has ended */

  /* The server.  Where there is no SYNC, only the guest's flushes make the disk durable. */
  struct state state;
  struct state_layout layout;
  struct region *region;
  _Atomic uint64_t *live, *slots[2];
  uint8_t boot[16], other_boot[16];
  bool can_sync;
  bool cooling;       /* a round of it is under way, */
  bool controls;      /* and the control thread does something meanwhile */
  uint64_t cut_after; /* so many looks at the file from now the power fails; 0: it does not */

  /* Of all runs. */
  uint64_t seed, nr_states, wanted_states, nr_runs, nr_names, nr_kinds[5];
};

/* A new run: no write, no checkpoint, every block durable. */
void play_begin (struct play *p);

/* The guest does something, or nothing. */
void play_act (struct play *p);

/* Write W goes on: it enters, or it ends. */
void play_go_on (struct play *p, struct play_write *w);

/* Everything that was written is durable. */
void play_flush_disk (struct play *p);

/* The server is gone: no write is under way.  POWER: the power is, too. */
void play_lose (struct play *p, bool power);

/* What the used blocks hold now. */
void play_snapshot (const struct play *p, uint32_t *at);

/* Look at the file, as a server would that starts at the disk NOW looks like, and check what it
 * finds.  The caller frees *F.  play_check_cuts() does it for two states that a cut allows. */
void play_check (struct play *p, const uint8_t *boot, bool same_boot, struct state_found *f);
void play_check_cuts (struct play *p);

void __attribute__ ((noreturn))
play_violation (const struct play *p, const char *what, uint64_t block);

#endif
