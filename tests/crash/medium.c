/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a power cut leaves.  See medium.h.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/crash/medium.h"

#define SECTOR 512

struct medium_file medium;
static uint8_t *saved;
static uint64_t rng;

void
medium_seed (uint64_t seed)
{
  rng = seed * UINT64_C (0x9e3779b97f4a7c15) + 1;
}

uint64_t
medium_random (uint64_t below)
{
  rng ^= rng << 13;
  rng ^= rng >> 7;
  rng ^= rng << 17;
  return rng % below;
}

/* ---- the file ---- */

int
medium_open (size_t size)
{
  medium.size = size;
  medium.fd = memfd_create ("state", MFD_CLOEXEC);
  if (medium.fd == -1 || ftruncate (medium.fd, (off_t)size) == -1)
    return -1;
  medium.durable = mmap (NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, medium.fd, 0);
  medium.cached = calloc (1, size);
  saved = calloc (1, size);
  return medium.durable == MAP_FAILED || medium.cached == NULL || saved == NULL ? -1 : 0;
}

void
medium_clear (void)
{
  medium_forget_late ();
  memset (medium.durable, 0, medium.size);
  memset (medium.cached, 0, medium.size);
}

static void
apply_part (unsigned i, bool all)
{
  for (size_t at = 0; at < medium.late[i].length; at += SECTOR)
    if (all || medium_random (2) == 0)
      memcpy (medium.durable + medium.late[i].offset + at, medium.late[i].data + at, SECTOR);
}

void
medium_cut_begin (void)
{
  for (unsigned i = 0; i < medium.nr_late; i++)
    memcpy (saved + medium.late[i].offset, medium.durable + medium.late[i].offset,
            medium.late[i].length);
  for (unsigned i = 0; i < medium.nr_late; i++) {
    uint64_t how = medium_random (3);
    if (how != 0)
      apply_part (i, how == 1);
  }
}

void
medium_cut_undo (void)
{
  for (unsigned i = 0; i < medium.nr_late; i++)
    memcpy (medium.durable + medium.late[i].offset, saved + medium.late[i].offset,
            medium.late[i].length);
}

void
medium_forget_late (void)
{
  for (unsigned i = 0; i < medium.nr_late; i++)
    free (medium.late[i].data);
  medium.nr_late = 0;
}

void
medium_cut_for_good (void)
{
  medium_cut_begin ();
  medium_forget_late ();
  memcpy (medium.cached, medium.durable, medium.size);
}

/* The first NR writes of all are durable, where they begin from BEGIN to END. */
static void
settle_some (uint64_t nr, uint64_t begin, uint64_t end)
{
  unsigned kept = 0;

  for (unsigned i = 0; i < medium.nr_late; i++)
    if (medium.late[i].number < nr && medium.late[i].offset >= begin
        && medium.late[i].offset < end) {
      memcpy (medium.durable + medium.late[i].offset, medium.late[i].data, medium.late[i].length);
      free (medium.late[i].data);
    } else
      medium.late[kept++] = medium.late[i];
  medium.nr_late = kept;
}

void
medium_settle (void)
{
  settle_some (UINT64_MAX, 0, UINT64_MAX);
}

int
medium_read (void *opaque, void *data, size_t length, uint64_t offset)
{
  (void)opaque;
  memcpy (data, medium.cached + offset, length);
  return 0;
}

static int
no_power (void)
{
  errno = EIO;
  return -1;
}

int
medium_write (void *opaque, const void *data, size_t length, uint64_t offset)
{
  (void)opaque;
  if (medium.off)
    return no_power ();
  if (medium.nr_late == MEDIUM_WRITES || length % SECTOR != 0 || offset + length > medium.size) {
    printf ("too many writes without a sync, or a write that does not fit\n");
    exit (1);
  }
  uint8_t *copy = malloc (length);
  if (copy == NULL)
    return -1;
  memcpy (copy, data, length);
  medium.late[medium.nr_late].number = medium.nr_writes++;
  medium.late[medium.nr_late].offset = offset;
  medium.late[medium.nr_late].length = length;
  medium.late[medium.nr_late++].data = copy;
  memcpy (medium.cached + offset, data, length);
  medium.cut ();
  medium.others ();
  return medium.off ? no_power () : 0;
}

/* What others write while it goes on may be durable or not. */
static int
sync_some (uint64_t begin, uint64_t end)
{
  uint64_t nr = medium.nr_writes;

  if (medium.off)
    return no_power ();
  medium.cut ();
  medium.others ();
  if (medium.off)
    return no_power ();
  settle_some (nr, begin, end);
  medium.cut ();
  return 0;
}

int
medium_sync (void *opaque)
{
  (void)opaque;
  return sync_some (0, UINT64_MAX);
}

int
medium_sync_l1 (void *opaque)
{
  (void)opaque;
  return sync_some (medium.l1_begin, medium.l1_end);
}

bool
medium_writes_l1 (void)
{
  return medium.nr_late != 0 && medium.late[medium.nr_late - 1].offset >= medium.l1_begin
         && medium.late[medium.nr_late - 1].offset < medium.l1_end;
}

/* ---- the disk ---- */

void
medium_block_begin (struct medium_block *b, uint32_t version)
{
  if (b->nr == MEDIUM_VERSIONS)
    medium_block_flush (b);
  b->late[b->nr++] = version;
}

void
medium_block_flush (struct medium_block *b)
{
  unsigned kept = 0;

  b->durable = b->completed;
  for (unsigned i = 0; i < b->nr; i++)
    if (b->late[i] > b->completed)
      b->late[kept++] = b->late[i];
  b->nr = kept;
}

void
medium_block_cut (struct medium_block *b)
{
  if (b->nr != 0 && medium_random (2) == 0)
    b->durable = b->late[medium_random (b->nr)];
  b->completed = b->durable;
  b->nr = 0;
}

void
medium_block_killed (struct medium_block *b)
{
  for (unsigned i = 0; i < b->nr; i++)
    if (b->late[i] > b->completed) {
      if (medium_random (2) == 0)
        b->completed = b->late[i];
      else
        b->late[i] = b->completed; /* it never reached the cache */
    }
}
