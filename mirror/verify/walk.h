/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Walking along two disks side by side: what the two ways to compare them share.
 *
 * One thread, many requests: the disk is walked in ascending order in pieces, and each piece is
 * looked at on both sides at the same time.  Pieces end in any order.  What counts is the lowest
 * offset that differs: after a difference only pieces below it still matter, and those are all in
 * flight already.  What both sides' block status calls zero is not looked at.
 */

#ifndef NBDMIRROR_MIRROR_VERIFY_WALK_H
#define NBDMIRROR_MIRROR_VERIFY_WALK_H

#include <stdbool.h>
#include <stdint.h>

#include "mirror/endpoint/endpoint.h"
#include "mirror/verify/verify.h"

struct walk;

struct walk_side {
  struct walk *walk;
  struct endpoint *ep;
  struct channel *ch;
  /* One byte of this endpoint stands for so many of the disk: 1, or in an export of digests the
   * bytes of a block for each byte of its digest. */
  uint32_t scale;

  /* What block status said last: from `offset` on, `length` bytes of the disk are (not) zero. */
  bool can_status, pending, zero;
  uint64_t offset, length;
};

/* How the pieces are compared. */
struct walk_method {
  /* Start what can be started now.  Sets walk->next to what was not dealt with yet. */
  void (*fill) (struct walk *w);
  void (*end) (struct walk *w); /* after the channels were closed */
};

struct walk {
  const struct walk_method *method;
  struct walk_side side[2];
  void *pieces;     /* of the method */
  unsigned active;  /* pieces that were started and have not ended */
  uint64_t size;    /* to compare, bytes */
  uint32_t unit;    /* next is a multiple of this */
  uint64_t next;    /* the first byte that was not dealt with yet */
  uint64_t differs; /* the lowest offset known to differ; UINT64_MAX: none */
  /* Not NULL: each range that differs is told, and `differs` stays. */
  void (*note) (void *opaque, uint64_t offset, uint64_t length);
  void *opaque;
  uint64_t compared_bytes; /* of the disk, on each side */
  int error;               /* the first one; an errno */
  unsigned error_side;
  uint64_t error_offset;
};

/* Is there more to start? */
bool walk_goes_on (const struct walk *w);

/* Pass over what is zero on both sides.  How many bytes from next on are then to be looked at (at
 * most to where that changes); 0: that is not known yet, or everything is dealt with. */
uint64_t walk_skip_zeroes (struct walk *w);

/* The blocks of LENGTH bytes at OFFSET differ, first in the byte AT.  True: go on looking. */
bool walk_differs (struct walk *w, uint64_t offset, uint64_t length, uint64_t at);

/* Note that side SIDE cannot be read at OFFSET. */
void walk_error (struct walk *w, unsigned side, uint64_t offset, int error);

/* Walk to the end, or to a difference.  *ERROR (the caller frees it with text_free()) if the result
 * is VERIFY_FAILED. */
enum verify_result walk_all (struct walk *w, const struct verify_options *o, char **error);

/* ---- the methods: -1 if there is no memory; else to be ended with w->method->end() ---- */

/* PIECE is the most that both sides read at once, bytes; at least w->unit. */
int by_bytes_init (struct walk *w, uint32_t piece);

struct digest_key;
/* The sides whose scale is not 1 are exports of digests with KEY; of the others the digests are
 * computed here.  After the walk `differs` is the beginning of a block. */
int by_digests_init (struct walk *w, const struct digest_key *key, uint32_t piece);

#endif
