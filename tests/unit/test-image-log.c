/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The log of changes that a server has acknowledged and not made durable: what is kept, in which
 * order, and what a flush lets it forget.  At the end it plays many random histories against a
 * model that knows everything.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "tests/unit/unit.h"

#include "nbd-plugin/image/log.h"

static struct change *
begin (struct change_log *log, uint64_t offset, const char *data)
{
  struct change *c = change_new (CHANGE_WRITE, offset, (uint32_t)strlen (data), 0, data);

  cr_assert_not_null (c);
  log_begin (log, c);
  return c;
}

/* The data of all that is kept, in order. */
static const char *
kept (const struct change_log *log)
{
  static char text[200];
  size_t n = 0;

  for (const struct change *c = log->first; c != NULL; c = c->next) {
    memcpy (text + n, c->data, c->count);
    n += c->count;
    cr_assert_eq (c->next == NULL, c == log->last);
  }
  text[n] = '\0';
  return text;
}

Test (image_log, keeps_the_order_in_which_changes_end)
{
  struct change_log log = { 0 };
  struct change *a = begin (&log, 0, "a"), *b = begin (&log, 10, "b"), *c = begin (&log, 20, "c");

  cr_assert_str_eq (kept (&log), "");
  log_end (&log, b, true);
  log_end (&log, c, true);
  log_end (&log, a, true);
  cr_assert_str_eq (kept (&log), "bca");
  cr_assert_null (log.under_way);
  change_free (log_flushed (&log, log_mark (&log)));
  cr_assert_eq (log.size, 0);
}

Test (image_log, a_flush_covers_only_what_had_ended_before_it)
{
  struct change_log log = { 0 };
  struct change *a = begin (&log, 0, "a"), *b = begin (&log, 10, "b");

  log_end (&log, a, true);
  uint64_t mark = log_mark (&log);
  log_end (&log, b, true);
  change_free (log_flushed (&log, mark));
  cr_assert_str_eq (kept (&log), "b");
  cr_assert_eq (log.size, b->size);

  /* The same flush again, and an older one, change nothing. */
  cr_assert_null (log_flushed (&log, mark));
  cr_assert_null (log_flushed (&log, 0));
  cr_assert_str_eq (kept (&log), "b");
  change_free (log_flushed (&log, log_mark (&log)));
  cr_assert_str_eq (kept (&log), "");
  cr_assert_null (log.last);

  /* It can be used again when it was empty. */
  log_end (&log, begin (&log, 0, "c"), true);
  cr_assert_str_eq (kept (&log), "c");
  change_free (log_flushed (&log, log_mark (&log)));
}

Test (image_log, forgets_what_is_not_kept)
{
  struct change_log log = { 0 };
  struct change *a = begin (&log, 0, "a"), *b = begin (&log, 1, "b");

  log_end (&log, a, false);
  change_free (a);
  cr_assert_str_eq (kept (&log), "");
  cr_assert_eq (log.size, b->size);
  log_end (&log, b, false);
  change_free (b);
  cr_assert_eq (log.size, 0);
}

Test (image_log, finds_what_overlaps)
{
  struct change_log log = { 0 };
  struct change *a = begin (&log, 10, "0123456789");

  cr_assert (!log_collides (&log, 0, 10));
  cr_assert (log_collides (&log, 0, 11));
  cr_assert (log_collides (&log, 12, 1));
  cr_assert (log_collides (&log, 5, 100));
  cr_assert (log_collides (&log, 19, 1));
  cr_assert (!log_collides (&log, 20, 1));
  cr_assert (!log_overlaps (&log, 12, 1), "under way is not kept");
  log_end (&log, a, true);
  cr_assert (!log_collides (&log, 12, 1), "kept is not under way");
  cr_assert (log_overlaps (&log, 19, UINT32_MAX));
  cr_assert (!log_overlaps (&log, 20, UINT32_MAX));
  change_free (log_flushed (&log, log_mark (&log)));
}

Test (image_log, has_room_up_to_the_limit_and_for_one_large_change_alone)
{
  struct change_log log = { 0 };
  struct change *large = change_new (CHANGE_ZERO, 0, UINT32_MAX, 0, NULL);

  cr_assert_lt (large->size, 200, "a zero has no data");
  cr_assert (log_has_room (&log, large, 1), "an empty log has room for anything");
  size_t size = large->size;
  log_begin (&log, large);
  struct change *next = change_new (CHANGE_TRIM, 0, 1, 0, NULL);
  cr_assert (log_has_room (&log, next, 2 * size));
  cr_assert (!log_has_room (&log, next, 2 * size - 1));
  cr_assert (!log_has_room (&log, next, size - 1));
  log_end (&log, large, false);
  change_free (large);
  change_free (next);
}

/* ---- random histories ------------------------------------------------------------------------ */

#define DISK 64
#define MOST 8

struct history {
  struct change_log log;
  unsigned seed;
  unsigned char now[DISK];     /* the disk as the server shows it */
  unsigned char durable[DISK]; /* as it is after a crash, at the worst */
  struct change *under_way[MOST];
  unsigned nr;
  bool flushing;
  uint64_t mark;
  unsigned char flushed[DISK]; /* the disk when the flush began */
};

static unsigned
pick (struct history *h, unsigned n)
{
  return (unsigned)rand_r (&h->seed) % n;
}

static void
begin_one (struct history *h)
{
  unsigned char data[DISK];
  unsigned offset = pick (h, DISK), count = 1 + pick (h, DISK - offset);

  memset (data, (int)pick (h, 256), count);
  if (h->nr == MOST || log_collides (&h->log, offset, count))
    return;
  h->under_way[h->nr] = change_new (CHANGE_WRITE, offset, count, 0, data);
  log_begin (&h->log, h->under_way[h->nr++]);
}

static void
end_one (struct history *h)
{
  if (h->nr == 0)
    return;
  unsigned n = pick (h, h->nr);
  struct change *c = h->under_way[n];
  h->under_way[n] = h->under_way[--h->nr];
  memcpy (h->now + c->offset, c->data, c->count);
  log_end (&h->log, c, true);
}

static void
flush_some (struct history *h)
{
  if (!h->flushing) {
    h->mark = log_mark (&h->log);
    memcpy (h->flushed, h->now, DISK);
  } else {
    change_free (log_flushed (&h->log, h->mark));
    memcpy (h->durable, h->flushed, DISK);
  }
  h->flushing = !h->flushing;
}

/* A crash leaves each byte as it was durable or as it was written since. */
static void
crash_and_replay (struct history *h)
{
  for (unsigned i = 0; i < DISK; i++)
    if (pick (h, 2) == 0)
      h->durable[i] = h->now[i];
  for (const struct change *c = h->log.first; c != NULL; c = c->next)
    memcpy (h->durable + c->offset, c->data, c->count);
  cr_assert (memcmp (h->durable, h->now, DISK) == 0, "a replay does not give the disk back");
  change_free (log_flushed (&h->log, log_mark (&h->log)));
  h->flushing = false;
}

Test (image_log, a_replay_gives_back_all_that_has_ended)
{
  for (unsigned seed = 1; seed <= 300; seed++) {
    struct history h = { .seed = seed };

    for (unsigned step = 0; step < 400; step++) {
      unsigned what = pick (&h, 40);
      if (what < 18)
        begin_one (&h);
      else if (what < 34)
        end_one (&h);
      else if (what < 39)
        flush_some (&h);
      else
        crash_and_replay (&h);
    }
    while (h.nr > 0)
      end_one (&h);
    crash_and_replay (&h);
    cr_assert_eq (h.log.size, 0, "the log is empty, and %zu bytes are counted", h.log.size);
  }
}
