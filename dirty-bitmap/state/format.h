/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The state file's format: where its parts stand, and what a page holds.  nbdmirror-state(5)
 * describes it byte by byte.  Pure functions of memory; nothing here reads or writes a file.
 *
 * All numbers are little-endian, but for the live map, which is only ever read on the host, and in
 * the boot, that wrote it.
 */

#ifndef NBDMIRROR_DIRTY_BITMAP_STATE_FORMAT_H
#define NBDMIRROR_DIRTY_BITMAP_STATE_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dirty-bitmap/region.h"

/* What a file begins with, up to its NUL, from when it gets its room to the first superblock. */
#define STATE_BEGUN "nbdmirror state file, not begun"

#define STATE_PAGE 4096u
#define STATE_PAGE_HEADER 64u
#define STATE_PAGE_WORDS ((STATE_PAGE - STATE_PAGE_HEADER) / 8) /* 504 */
#define STATE_VERSION 2u
#define STATE_REASON_MAX 255u
#define STATE_NOTE_PAGES 9u /* a note: what the filter keeps of the job, as text */
#define STATE_NOTE_MAX (STATE_NOTE_PAGES * STATE_PAGE - STATE_PAGE_HEADER)
#define STATE_SAMPLE_BYTES 8192u
#define STATE_TABLE_PAGES 17u                                        /* the table of checkpoints */
#define STATE_TABLE_OFFSET ((2 + 2 * STATE_NOTE_PAGES) * STATE_PAGE) /* of the first of two */
#define STATE_CHECKPOINTS_MAX 256u
#define STATE_NAME_MAX 111u /* bytes of a checkpoint's name */
#define STATE_FAULT_MAX 79u /* bytes of the reason why a recording is inconsistent */
#define STATE_AREAS_MAX (STATE_CHECKPOINTS_MAX + 2) /* one for the next, one for a merged one */

#define STATE_MIN_EXTENT (UINT64_C (4) << 20)

/* Where the parts stand; follows from the disk's geometry alone. */
struct state_layout {
  struct region_geometry geo;
  uint64_t extent_size;      /* bytes: 4 MiB, or 64 blocks if those are more */
  uint64_t nr_extents;       /* the last one may be short */
  uint32_t words_per_extent; /* 64-bit words of fine bits */
  uint32_t extents_per_page; /* on an L2 page */
  uint64_t nr_l1_pages;      /* each of them twice */
  uint64_t nr_l2_pages;
  uint64_t note_offset;    /* two notes of STATE_NOTE_PAGES */
  uint64_t l1_offset;      /* page p, copy c at l1_offset + (2 p + c) * STATE_PAGE */
  uint64_t samples_offset; /* SAMPLES_MAX of STATE_SAMPLE_BYTES */
  uint64_t l2_offset;
  uint64_t live_offset;       /* the live map, nr_words words; at a multiple of 64 KiB */
  uint64_t live_bytes;        /* of a live map, up to the next multiple of 64 KiB */
  uint64_t file_size;         /* of a file that has no recordings */
  uint64_t recordings_offset; /* two live maps of recordings */
  uint64_t areas_offset;      /* area N at areas_offset + N * area_bytes: nr_l2_pages pages */
  uint64_t area_bytes;
};

/* 0, or -1 with errno as region_geometry_init().  BLOCK_SIZE is not 0. */
int state_layout_init (struct state_layout *l, uint64_t disk_size, uint32_t block_size);

/* The bits of extent E in the region's arrays: *FIRST word and how many. */
uint64_t state_extent_words (const struct state_layout *l, uint64_t e, uint64_t *first);

/* ---- pages ---- */

enum state_page_kind {
  STATE_L1 = 1,
  STATE_L2,
  STATE_NOTE,
  STATE_SAMPLE,
  STATE_TABLE,
  STATE_RECORDING
};

struct state_page_id {
  enum state_page_kind kind;
  uint64_t number;
  uint64_t sequence;
  uint8_t uuid[16]; /* of the job, the recording, or (L1) the epoch; zeroes for the table */
};

/* What a page turned out to be. */
enum state_page_state {
  STATE_PAGE_GOOD,
  STATE_PAGE_UNWRITTEN, /* zeroes, or it has another UUID: nothing was ever recorded */
  STATE_PAGE_BAD        /* torn or damaged */
};

/* Write ID and the checksum into the first STATE_PAGE_HEADER bytes of the SIZE bytes at PAGE; the
 * rest is there already. */
void state_page_seal (uint8_t *page, size_t size, const struct state_page_id *id);

/* Is this page KIND's number NUMBER, of UUID?  *SEQUENCE is set if it is good. */
enum state_page_state state_page_check (const uint8_t *page, size_t size, enum state_page_kind kind,
                                        uint64_t number, const uint8_t uuid[16],
                                        uint64_t *sequence);

/* Words of the payload. */
void state_page_put_words (uint8_t *page, uint32_t at, const uint64_t *words, uint32_t count);
uint64_t state_page_word (const uint8_t *page, uint32_t at);

/* ---- the superblock ---- */

enum state_status { STATE_CLEAN = 1, STATE_ACTIVE, STATE_INCONSISTENT };

/* What tells whether the raw image was changed behind the tracker's back. */
struct state_identity {
  /* An extended attribute of the file: a new one for each server that begins to track it.  A server
   * without a state file removes it.  Zeroes: there is none. */
  uint8_t mark[16];
  /* The mark, the inode and the size are known while the file is in use, too; 0: the inode is not,
   * or the size. */
  uint64_t inode, size;
  bool known; /* the following are */
  uint64_t device;
  int64_t mtime_ns, ctime_ns; /* since 1970 */
};

struct state_super {
  uint64_t sequence;
  uint8_t uuid[16];  /* of the tracker: a new one for each job */
  uint8_t boot[16];  /* the boot that wrote the live maps */
  uint8_t epoch[16]; /* of L1: a new one whenever tracking begins after a time without any */
  uint64_t disk_size;
  uint32_t block_size;
  enum state_status status;
  bool job; /* there is one; recordings are in the table */
  struct state_identity identity;
  uint8_t next_mark[16]; /* the disk may have this one already; zeroes: no server is starting */
  char reason[STATE_REASON_MAX + 1]; /* why it is inconsistent */
};

/* Encode into a page. */
void state_super_encode (const struct state_super *s, uint8_t page[STATE_PAGE]);

enum state_super_result {
  STATE_SUPER_GOOD,
  STATE_SUPER_BAD,    /* no superblock, torn or damaged */
  STATE_SUPER_UNKNOWN /* of a version or with a feature that is not known here */
};
enum state_super_result state_super_decode (const uint8_t page[STATE_PAGE], struct state_super *s);

/* ---- the table of checkpoints ---- */

/* A checkpoint begins a recording, which has what the guest has changed since.  The next one
 * freezes it and begins its own.  What was changed since a checkpoint is in its recording and in
 * all later ones. */
struct state_checkpoint {
  char name[STATE_NAME_MAX + 1];
  uint8_t uuid[16];
  uint8_t recording[16]; /* the UUID of its recording's pages */
  int64_t created_us;    /* since 1970 */
  uint64_t disk_size;
  uint64_t blocks; /* in its recording, once that is frozen */
  uint32_t area;   /* where its recording is */
  bool inconsistent;
  char fault[STATE_FAULT_MAX + 1]; /* why */
};

struct state_table {
  uint64_t sequence;
  uint32_t nr;
  uint32_t slot;  /* which of the two live maps the recording has that is active */
  bool recording; /* the last checkpoint's is */
  struct state_checkpoint list[STATE_CHECKPOINTS_MAX]; /* each one's parent is the one before */
};

/* Encode into the payload of STATE_TABLE_PAGES pages, and seal them. */
void state_table_encode (const struct state_table *t, uint8_t *pages);

/* STATE_PAGE_GOOD and *T; or what the pages are instead. */
enum state_page_state state_table_decode (const uint8_t *pages, struct state_table *t);

/* The index of the checkpoint NAME, or -1. */
int state_table_find (const struct state_table *t, const char *name);

/* NULL, or what is wrong with NAME (a constant): it has 1 to STATE_NAME_MAX bytes, as a file's name
 * would have, in UTF-8, does not begin with a dot or a dash, and has no control character. */
const char *state_name_fault (const char *name);

/* Which is the first, from FROM on, whose recording is inconsistent?  -1: none.  Where nothing is
 * being recorded, the last one is. */
int state_table_fault (const struct state_table *t, uint32_t from);

/* CRC-32C of LENGTH bytes. */
uint32_t state_crc32c (const void *data, size_t length);

#endif
