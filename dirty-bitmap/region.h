/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The shared region: a sealed memfd that the nbdkit filter and one mirror worker both map.  It
 * holds five bit arrays of the disk's blocks, each with a summary, their counters, the claim
 * sets' entry counts, the slots of the synchronous gate (urgent.h), and the samples by which a
 * destination is recognised (samples.h).
 *
 * Trust: a worker may scribble over every byte of the region.  Each side therefore keeps its own
 * copy of the geometry (struct region below, private memory) and uses no offset, size or index
 * read from shared memory after region_map() has checked it.
 *
 * All shared words are C11 atomics that are lock-free, hence also between processes.
 */

#ifndef NBDMIRROR_DIRTY_BITMAP_REGION_H
#define NBDMIRROR_DIRTY_BITMAP_REGION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REGION_MAGIC "NBDMIRR" /* 8 bytes with the NUL */
#define REGION_VERSION 4u

#define REGION_MIN_BLOCK_SIZE 4096u
#define REGION_MAX_BLOCK_SIZE (1024u * 1024u)
#define REGION_MAX_ARRAY_BYTES (32u * 1024 * 1024)     /* limit at which the default block grows */
#define REGION_LIMIT_ARRAY_BYTES (1024u * 1024 * 1024) /* no array is ever larger than this */
#define REGION_URGENT_WORDS 16u                        /* 64 urgent slots each */

enum region_array {
  REGION_DIRTY,      /* differs, or may differ, from the destination */
  REGION_CLAIMED_A,  /* claim set 0: being copied, or written and not yet flushed */
  REGION_CLAIMED_B,  /* claim set 1 */
  REGION_QUARANTINE, /* a dead session's request for it may still be applied (R12) */
  /* This job has written it, or found out that it need not be written.  Whoever copies sets the bit
   * before the write is sent.  It is cleared only where a compare job begins again, with all blocks
   * dirty.  A block without it is at the destination as it was before the job. */
  REGION_VISITED,
  REGION_NR_ARRAYS
};

/* The size and block arithmetic of one disk; plain values, no shared memory. */
struct region_geometry {
  uint64_t disk_size;   /* bytes */
  uint32_t block_size;  /* bytes, power of two */
  uint32_t block_shift; /* log2 of it */
  uint64_t nr_blocks;   /* the last one may be short */
  uint64_t nr_words;    /* 64-bit words in one array */
  uint64_t nr_summary;  /* 64-bit words in one summary: one bit for each word */
  size_t region_size;   /* bytes of the whole region, a multiple of the page size */
  size_t array_offset[REGION_NR_ARRAYS];
  size_t summary_offset[REGION_NR_ARRAYS];
  size_t urgent_offset;
  size_t samples_offset;
};

/* What stands at the region's first byte.  Written by the filter before the descriptor is passed;
 * the atomics at the end are the only part that changes later. */
struct region_header {
  char magic[8];
  uint32_t version;
  uint32_t header_size;
  uint64_t region_size;
  uint64_t disk_size;
  uint64_t block_size;
  uint64_t nr_blocks;
  uint64_t array_offset[REGION_NR_ARRAYS];
  uint64_t summary_offset[REGION_NR_ARRAYS];
  uint64_t urgent_offset;
  uint64_t samples_offset;
  uint8_t tracker_uuid[16];

  /* Bits set in each array.  Exact whenever no bitmap call is running on that array; while one
   * runs it may be off by that call's blocks, and may even be below zero for an instant. */
  _Alignas(64) _Atomic int64_t count[REGION_NR_ARRAYS];
  _Alignas(64) _Atomic uint64_t dirtied_total; /* blocks turned from clean to dirty by the guest */
  _Atomic uint64_t session;                    /* goes up at every lost session (R5) */
  _Atomic uint64_t sent_bytes, zero_bytes;     /* by the job's workers: payload, WRITE_ZEROES */
  _Atomic uint64_t skipped_bytes; /* the destination had them already, so they were not sent */
  _Atomic uint32_t watched;       /* the worker sleeps until a block turns dirty */
  _Atomic uint64_t saved_bytes;   /* of sent_bytes: not on the wire, because they were compressed */
  _Atomic uint32_t sent_is_durable;         /* 1: some of what was sent was flushed (samples.h) */
  _Alignas(64) _Atomic uint32_t active_set; /* 0 or 1 */
  _Atomic uint32_t entries[2];              /* copiers counted in each claim set (R4) */
  /* How often summary bits of each array began and ended to be taken away.  While the two differ,
   * a non-empty word may lack its summary bit: bitmap_empty() then says no. */
  _Alignas(64) _Atomic uint64_t clears_begun[REGION_NR_ARRAYS];
  _Atomic uint64_t clears_done[REGION_NR_ARRAYS];
  /* How often blocks turned dirty without a guest, and claimed ones came back: counted up once they
   * are dirty.  See claims_all_empty(); a state file takes them in. */
  _Atomic uint64_t given_back;

  /* The synchronous gate; urgent.h says what they mean. */
  _Alignas(64) _Atomic uint32_t wake_worker; /* futex: goes up at each request */
  _Atomic uint32_t worker_sleeps;            /* threads of the worker that wait for it */
  _Atomic uint64_t sync_epoch;               /* written by the filter */
  _Alignas(64) _Atomic uint64_t urgent_posted[REGION_URGENT_WORDS]; /* a bit a slot: look there */
  _Alignas(64) _Atomic uint64_t progress;                           /* written by the worker */
  _Atomic uint64_t synced_epoch;                                    /* written by the worker */
};

/* One process's view of a region. */
struct region {
  struct region_geometry geo;   /* private copy, checked */
  struct region_header *hdr;    /* start of the mapping */
  int fd;                       /* owned; close-on-exec */
  uint8_t tracker_uuid[16];     /* private copy */
  _Atomic uint32_t urgent_next; /* where this process looks for the next urgent slot; a hint */
};

/* Fill GEO for a disk of DISK_SIZE bytes (0 is allowed: no blocks).  BLOCK_SIZE in bytes; 0 takes
 * the default: 4 KiB, doubled until one array fits in REGION_MAX_ARRAY_BYTES or the block is 1 MiB.
 * Arrays may then, or with a BLOCK_SIZE asked for, grow to REGION_LIMIT_ARRAY_BYTES (8 PiB of disk
 * in 1 MiB blocks, 32 TiB in 4 KiB blocks).  Returns 0, or -1 with errno EINVAL if the block size
 * is no power of two within the limits, EFBIG if the disk is too large for it.  Pure. */
int region_geometry_init (struct region_geometry *geo, uint64_t disk_size, uint32_t block_size);

/* The largest disk, in bytes, that can be tracked in blocks of BLOCK_SIZE bytes. */
uint64_t region_max_disk_size (uint32_t block_size);

/* Bytes of disk covered by COUNT blocks from FIRST: the last block of a disk may be short. */
uint64_t region_bytes (const struct region_geometry *geo, uint64_t first, uint64_t count);

/* What was sent took so many bytes of the line: fewer than sent_bytes if it was compressed.  Any
 * process, any thread. */
uint64_t region_wire_bytes (const struct region *r);

/* Create a sealed memfd (F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL) of GEO with all bits clear, and
 * map it. Returns a region to be freed with region_free(), or NULL with *ERROR set to a message
 * that the caller frees. */
struct region *region_create (const struct region_geometry *geo, const uint8_t uuid[16],
                              char **error);

/* Map a region that another process created.  FD is duplicated.  Checks seals, size, magic,
 * version and every offset, and refuses whatever does not agree, naming the field.  Returns NULL
 * with *ERROR set (caller frees) on failure. */
struct region *region_map (int fd, char **error);

/* Unmap and close.  NULL is allowed. */
void region_free (struct region *r);

#endif
