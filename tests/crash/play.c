/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The guest, and whether a file forgets what it wrote.  See play.h.
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "dirty-bitmap/state/recordings.h"
#include "tests/crash/play.h"

void
play_violation (const struct play *p, const char *what, uint64_t block)
{
  printf ("VIOLATION after %llu states, seed %llu: %s, block %llu\n",
          (unsigned long long)p->nr_states, (unsigned long long)p->seed, what,
          (unsigned long long)block);
  exit (1);
}

/* Where used block U is: some in each extent, and some in a row. */
static uint64_t
place (unsigned u)
{
  uint64_t b = (uint64_t)(u / 4) * 337 + u % 4;
  return b < PLAY_BLOCKS ? b : PLAY_BLOCKS - 1 - u % 4;
}

/* ---- looking at a state of the file ---- */

static void
check_block (const struct play *p, const struct play_checkpoint *c, const uint64_t *bits,
             unsigned u, bool same_boot)
{
  const struct medium_block *b = &p->disk[u];
  uint64_t at = place (u);

  if ((bits[at / 64] >> (at % 64) & 1) != 0)
    return;
  if (b->completed != c->at_first[u] || b->completed != c->at_last[u])
    play_violation (p, "it was changed, and is not among the changes", at);
  if (same_boot)
    return;
  if (b->durable != b->completed)
    play_violation (p, "it may go back to what was durable, and is not among the changes", at);
  for (unsigned i = 0; i < b->nr; i++)
    if (b->late[i] != b->completed)
      play_violation (p, "it may go back or on, and is not among the changes", at);
}

static int
read_durable (void *opaque, void *data, size_t length, uint64_t offset)
{
  (void)opaque;
  memcpy (data, medium.durable + offset, length);
  return 0;
}

static void
check_changes (const struct play *p, const struct state_found *f, const struct play_checkpoint *c,
               unsigned at, bool same_boot)
{
  static uint64_t bits[PLAY_BLOCKS / 64 + 1];
  CLEANUP_TEXT char *error = NULL;

  memset (bits, 0, sizeof bits);
  if (state_changed_since (&p->layout, f->table, at, read_durable, NULL, bits, &error) == -1) {
    printf ("%s\n", error);
    play_violation (p, "a checkpoint is of no use", at);
  }
  for (uint64_t w = 0; w < p->layout.geo.nr_words; w++)
    bits[w] |= f->recorded[w];
  for (unsigned u = 0; u < PLAY_USED; u++)
    check_block (p, c, bits, u, same_boot);
}

static void
check_found (struct play *p, const struct state_found *f, bool same_boot)
{
  unsigned at = 0, nr = f->table != NULL ? f->table->nr : 0;

  p->nr_states++;
  p->nr_kinds[f->how]++;
  for (unsigned i = 0; i < p->nr_list; i++) {
    if (at < nr && strcmp (f->table->list[at].name, p->list[i].name) == 0) {
      if (!f->table->recording || f->recorded == NULL)
        play_violation (p, "nothing is recorded", 0);
      check_changes (p, f, &p->list[i], at++, same_boot);
      continue;
    }
    if (!(p->adding && i + 1 == p->nr_list) && (int)i != p->removing)
      play_violation (p, "a checkpoint is gone", i);
  }
  if (at != nr)
    play_violation (p, "there is a checkpoint that nobody added", at);
}

void
play_check (struct play *p, const uint8_t *boot, bool same_boot, struct state_found *f)
{
  CLEANUP_TEXT char *error = NULL;

  if (state_find (medium.fd, medium.size, boot, NULL, f, &error) == -1) {
    printf ("%s\n", error);
    play_violation (p, "the file is refused", 0);
  }
  check_found (p, f, same_boot);
}

void
play_check_cuts (struct play *p)
{
  struct state_found f;

  if (medium.off)
    return;
  for (unsigned n = 0; n < 2; n++) {
    medium_cut_begin ();
    play_check (p, p->other_boot, false, &f);
    state_found_free (&f);
    medium_cut_undo ();
  }
}

/* ---- the guest ---- */

static void
begin_write (struct play *p)
{
  struct play_write *w = &p->writes[medium_random (PLAY_WRITES)];

  if (w->active)
    return;
  w->first
      = (unsigned)(medium_random (3) != 0 ? medium_random (24) : medium_random (PLAY_USED / 4) * 4);
  w->count = 1;
  while (w->count < 4 && w->first + w->count < PLAY_USED
         && place (w->first + w->count) == place (w->first) + w->count && medium_random (2) == 0)
    w->count++;
  for (unsigned i = 0; i < PLAY_WRITES; i++) /* a guest does not write a block twice at a time */
    if (p->writes[i].active && p->writes[i].first < w->first + w->count
        && w->first < p->writes[i].first + p->writes[i].count)
      return;
  w->active = true;
  w->entered = w->waited_for = false;
}

void
play_go_on (struct play *p, struct play_write *w)
{
  if (!w->active)
    return;
  uint64_t offset = place (w->first) * PLAY_BLOCK, length = (uint64_t)w->count * PLAY_BLOCK;
  if (!w->entered) {
    if (!state_try_enter (&p->state, offset, length, &w->counted))
      return;
    w->entered = true;
    w->version = ++p->newest;
    for (unsigned u = w->first; u < w->first + w->count; u++)
      medium_block_begin (&p->disk[u], w->version);
    return;
  }
  for (unsigned u = w->first; u < w->first + w->count; u++)
    p->disk[u].completed = w->version;
  if (w->counted)
    state_leave (&p->state, offset, length);
  w->active = w->waited_for = false;
}

void
play_flush_disk (struct play *p)
{
  for (unsigned u = 0; u < PLAY_USED; u++)
    medium_block_flush (&p->disk[u]);
}

static void
flush (struct play *p)
{
  uint32_t begun = state_flush_begins (&p->state);
  play_flush_disk (p);
  state_flush_ended (&p->state, begun);
}

/* Anything but writing the state file may happen at any time. */
void
play_act (struct play *p)
{
  if (p->alone)
    return;
  p->alone = true;
  for (uint64_t n = medium_random (4); n > 0; n--) {
    uint64_t what = medium_random (64);
    if (what < 20)
      begin_write (p);
    else if (what < 63)
      play_go_on (p, &p->writes[medium_random (PLAY_WRITES)]);
    else if (medium_random (3) == 0)
      flush (p);
  }
  p->alone = false;
}

void
play_snapshot (const struct play *p, uint32_t *at)
{
  for (unsigned u = 0; u < PLAY_USED; u++)
    at[u] = p->disk[u].completed;
}

void
play_lose (struct play *p, bool power)
{
  memset (p->writes, 0, sizeof p->writes);
  for (unsigned u = 0; u < PLAY_USED; u++)
    if (power)
      medium_block_cut (&p->disk[u]);
    else
      medium_block_killed (&p->disk[u]);
}

void
play_begin (struct play *p)
{
  memset (p->writes, 0, sizeof p->writes);
  memset (p->disk, 0, sizeof p->disk);
  p->newest = 1;
  for (unsigned u = 0; u < PLAY_USED; u++)
    p->disk[u].durable = p->disk[u].completed = p->newest;
  p->nr_list = 0;
  p->adding = p->preparing = p->drained = false;
  p->removing = -1;
}
