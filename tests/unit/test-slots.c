/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A slot that finds its channel full waits for room, and goes on from where it was: whoever reads
 * back, or looks for what differs, is no exception.  The channels have one place each, and do a
 * request when the test lets them.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "tests/unit/engine-fixture.h"

#include "mirror/endpoint/internal.h"
#include "mirror/engine/slot-data.h"

#define BLOCKS 64u

/* ---- a disk in memory ---- */

struct disk {
  struct endpoint ep;
  uint8_t data[BLOCKS * BLOCK];
};

static int
disk_start (struct channel *ch, struct op *op)
{
  (void)ch;
  (void)op;
  return 0;
}

/* Do what has been asked for. */
static void
disk_dispatch (struct channel *ch, const struct pollfd *fds, unsigned nr, int64_t now)
{
  struct disk *disk = (struct disk *)ch->ep;

  (void)fds;
  (void)nr;
  (void)now;
  while (ch->in_flight.first) {
    struct op *op = ch->in_flight.first;
    if (op->kind == OP_READ)
      memcpy (op->buf, disk->data + op->offset, op->len);
    else if (op->kind == OP_WRITE)
      memcpy (disk->data + op->offset, op->buf, op->len);
    op_done (op, 0);
  }
}

static void
disk_stop (struct channel *ch)
{
  (void)ch; /* nothing is done by itself */
}

static void
disk_channel_free (struct channel *ch)
{
  channel_uninit (ch);
  free (ch);
}

static const struct endpoint_ops disk_ops = { .start = disk_start,
                                              .dispatch = disk_dispatch,
                                              .stop = disk_stop,
                                              .channel_free = disk_channel_free };

static void
disk_init (struct disk *disk, const char *name)
{
  disk->ep = (struct endpoint){
    .ops = &disk_ops,
    .name = (char *)(uintptr_t)name,
    .opts = { .writable = true },
    .info
    = { .size = sizeof disk->data, .min_block = 1, .max_request = 4 * BLOCK, .can_zero = true },
  };
  for (size_t i = 0; i < sizeof disk->data; i++)
    disk->data[i] = (uint8_t)(i % 251 + 1);
}

static struct channel *
disk_channel (struct disk *disk)
{
  struct channel *ch = calloc (1, sizeof *ch);

  cr_assert (ch != NULL && channel_init (ch, &disk->ep, 1) == 0);
  return ch;
}

/* ---- a copier without a thread ---- */

static struct disk source, dest, base;
static struct target target;
static struct slots ss;
static bool failed;

static void
fail (void *opaque, const char *why)
{
  (void)opaque;
  (void)why;
  failed = true;
}

static void
begin (bool with_base)
{
  engine_setup (BLOCKS, false);
  disk_init (&source, "source");
  source.ep.info.max_request = BLOCKS * BLOCK;
  disk_init (&dest, "destination");
  disk_init (&base, "base");
  if (with_base) {
    e->options.sync = ENGINE_SYNC_BASE;
    e->options.base = &base.ep;
  }
  target = (struct target){ .endpoint = &dest.ep, .min_block = 1, .fail = fail };
  failed = false;
  cr_assert_eq (slots_init (&ss, e, &target, 1), 0);
  ss.source = disk_channel (&source);
  ss.dest = disk_channel (&dest);
  ss.beside = with_base ? disk_channel (&base) : NULL;
}

static void
end (void)
{
  channel_close (ss.beside);
  channel_close (ss.source);
  channel_close (ss.dest);
  slots_destroy (&ss);
  teardown ();
}

static void
let (struct channel *ch)
{
  cr_assert_eq (channel_dispatch (ch, NULL, 0), 0);
}

/* What a copier does with a task of WORK. */
static struct slot *
begin_task (enum engine_work work, uint64_t first, uint64_t count)
{
  struct slot *sl = slots_find_free (&ss, count * BLOCK);

  sl->task = expect (work, first, count);
  sl->offset = first * BLOCK;
  sl->length = count * BLOCK;
  slot_data_start (sl, work == WORK_VERIFY);
  return sl;
}

static void
nothing (void *opaque, int err)
{
  (void)opaque;
  (void)err;
}

/* Somebody else takes the channel's place. */
static void
occupy (struct channel *ch)
{
  static uint8_t buf[BLOCK] __attribute__ ((aligned (4096)));

  cr_assert_eq (channel_read (ch, buf, BLOCK, 0, nothing, NULL), 0);
  cr_assert_eq (channel_room (ch), 0);
}

/* ---- the tests ---- */

/* A block in quarantine that need not be written, since the destination is zero as the user says.
 */
Test (slots, who_reads_back_waits_for_room)
{
  begin (false);
  e->options.dest_is_zero = true;
  e->grace_end_ns = 1;
  mark (8, 6);
  bitmap_set (r, REGION_QUARANTINE, 8, 6);
  memset (source.data + 8 * BLOCK, 0, 6 * BLOCK);
  memset (dest.data + 8 * BLOCK, 0, 6 * BLOCK);
  const struct slot *sl = begin_task (WORK_VERIFY, 8, 6);
  occupy (ss.dest);
  let (ss.source);
  cr_assert_not (failed, "a full channel is no fault of the destination");
  cr_assert (sl->in_use && sl->data.state == DATA_READ_BACK);
  let (ss.dest);
  slots_resume (&ss);
  let (ss.dest); /* four blocks, */
  cr_assert_eq (bitmap_count (r, REGION_QUARANTINE), 6);
  let (ss.dest); /* and two */
  cr_assert_eq (bitmap_count (r, REGION_QUARANTINE), 0);
  cr_assert (!sl->in_use && !failed);
  end ();
}

Test (slots, who_looks_at_the_base_waits_for_room)
{
  begin (true);
  mark (8, 6);
  base.data[9 * BLOCK] ^= 1;
  occupy (ss.beside);
  const struct slot *sl = begin_task (WORK_DATA, 8, 6);
  let (ss.source);
  let (ss.beside);
  slots_resume (&ss);
  let (ss.beside); /* four blocks, */
  let (ss.beside); /* and two */
  let (ss.dest);   /* the block that differs */
  cr_assert (!sl->in_use && !failed);
  cr_assert_eq (atomic_load (&r->hdr->skipped_bytes), 5 * BLOCK);
  cr_assert_eq (atomic_load (&r->hdr->sent_bytes), BLOCK);
  end ();
}

static unsigned
length (const struct slot *list)
{
  unsigned n = 0;

  for (; list != NULL; list = list->next)
    n++;
  return n;
}

/* What the forecast believes is what copiers have. */
Test (slots, of_a_session)
{
  static const enum engine_sync modes[] = { ENGINE_SYNC_FULL, ENGINE_SYNC_COMPARE };

  engine_setup (BLOCKS, false);
  disk_init (&dest, "destination");
  target = (struct target){ .endpoint = &dest.ep, .min_block = 1, .fail = fail };
  for (unsigned n = 1; n <= 4; n++)
    for (unsigned i = 0; i < 2; i++) {
      const struct slots_division d = slots_of_session (n, BLOCK, modes[i]);
      e->options.sync = modes[i];
      cr_assert_eq (slots_init (&ss, e, &target, n), 0);
      cr_assert_eq (d.nr_long, n * length (ss.free_long));
      cr_assert_eq (d.nr_short, n * length (ss.free_short));
      cr_assert_eq (d.nr_seconds, n * ss.nr_seconds);
      slots_destroy (&ss);
    }
  teardown ();
}
