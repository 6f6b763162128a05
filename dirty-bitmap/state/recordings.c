/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Adding and removing checkpoints.  See recordings.h.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "base/uuid.h"
#include "dirty-bitmap/state/internal.h"
#include "dirty-bitmap/state/recordings.h"

/* An area that no recording of T has.  There is always one. */
static uint32_t
free_area (const struct state_table *t)
{
  for (uint32_t area = 0;; area++) {
    bool used = false;
    for (uint32_t i = 0; i < t->nr; i++)
      used |= t->list[i].area == area;
    if (!used)
      return area;
  }
}

static int
allocate_area (struct state *s, uint32_t area)
{
  return s->io.allocate (s->io.opaque, s->layout.areas_offset + area * s->layout.area_bytes,
                         s->layout.area_bytes);
}

static void
discard_area (struct state *s, uint32_t area)
{
  if (s->io.discard != NULL)
    s->io.discard (s->io.opaque, s->layout.areas_offset + area * s->layout.area_bytes,
                   s->layout.area_bytes);
}

/* Write every page of LIVE that has a bit set as C's recording, and make it durable.  C->blocks
 * says how many there are.  0, or -1 with errno. */
static int
write_recording (struct state *s, const _Atomic uint64_t *live, struct state_checkpoint *c)
{
  uint64_t area = s->layout.areas_offset + c->area * s->layout.area_bytes;

  c->blocks = 0;
  for (uint64_t p = 0; p < s->layout.nr_l2_pages; p++) {
    struct state_page_id id = { .kind = STATE_RECORDING, .number = p, .sequence = 1 };
    memcpy (id.uuid, c->recording, 16);
    int64_t set = state_write_page (s, &id, live, area, true);
    if (set == -1)
      return -1;
    c->blocks += (uint64_t)set;
  }
  return s->io.sync (s->io.opaque);
}

/* Nothing is recorded any more.  Without a job nothing is tracked either.  0, or -1 with errno. */
static int
end_recording (struct state *s)
{
  atomic_store (&s->marked[1], NULL);
  atomic_store (&s->marked[2], NULL);
  if (s->super.job)
    return 0;
  pthread_mutex_lock (&s->lock);
  atomic_store (&s->active, false);
  pthread_cond_broadcast (&s->committed);
  pthread_mutex_unlock (&s->lock);
  struct state_super super = s->super;
  super.status = STATE_CLEAN;
  return state_write_super (s, &super);
}

/* ---- adding ---- */

/* May NAME be added?  0, or -1 with *ERROR. */
static int
may_add (struct state *s, const char *name, char **error)
{
  const char *fault = state_name_fault (name);
  struct state_view now;

  state_look (s, &now);
  if (fault != NULL)
    return text_error (error, "'%s' cannot be a checkpoint's name: %s", name, fault);
  if (s->preparing)
    return text_error (error, "a checkpoint is being added already");
  if (s->table != NULL && state_table_find (s->table, name) != -1)
    return text_error (error, "there is a checkpoint '%s' already", name);
  if (s->table != NULL && s->table->nr == STATE_CHECKPOINTS_MAX)
    return text_error (error, "a disk has at most %u checkpoints", STATE_CHECKPOINTS_MAX);
  if (now.lost && s->super.job)
    return text_error (error,
                       "the state file is inconsistent: %s.  End the mirror job first, then a"
                       " checkpoint can begin anew",
                       now.reason);
  return 0;
}

static int
prepare (struct state *s, const struct state_layout *layout, _Atomic uint64_t *const slots[2],
         const uint8_t boot[16], const struct state_checkpoint *next, char **error)
{
  if (state_allocate (s, layout, error) == -1)
    return -1;
  s->slots[0] = slots[0];
  s->slots[1] = slots[1];
  s->next = *next;
  s->next.disk_size = layout->geo.disk_size;
  s->next.area = free_area (s->table);
  s->next_slot = s->table->recording ? 1 - s->table->slot : 0;
  if (allocate_area (s, s->next.area) == -1)
    return text_error (error, "there is no room for the recording: %s", strerror (errno));
  _Atomic uint64_t *live = s->slots[s->next_slot];
  for (uint64_t w = 0; w < layout->geo.nr_words; w++)
    if (atomic_load (&live[w]) != 0)
      atomic_store (&live[w], 0);
  struct state_super super = s->super;
  super.job = false;
  if (!atomic_load (&s->active)
      && (state_write_off (s) == -1 || state_begin_epoch (s, &super, boot) == -1))
    return text_error (error, "it cannot be written: %s", strerror (errno));
  s->preparing = true;
  s->changes++;
  atomic_store (&s->marked[1 + s->next_slot], live);
  return 0;
}

int
state_checkpoint_prepare (struct state *s, const struct state_layout *layout,
                          _Atomic uint64_t *const slots[2], const uint8_t boot[16],
                          const char *name, const uint8_t uuid[16], char **error)
{
  struct state_checkpoint next = { .created_us = clock_date_us () };

  memcpy (next.uuid, uuid, 16);
  uuid_make (next.recording);
  pthread_mutex_lock (&s->io_lock);
  int r = may_add (s, name, error);
  if (r == 0) {
    snprintf (next.name, sizeof next.name, "%s", name);
    r = prepare (s, layout, slots, boot, &next, error);
  }
  pthread_mutex_unlock (&s->io_lock);
  return r;
}

/* What was written before the checkpoint, and is not durable, may be something older after a power
 * failure.  The old recording knows of it, the next one does not.  So the disk is flushed first,
 * or, where nobody can do that, such extents are in the next one as a whole. */
static void
record_volatile (struct state *s)
{
  _Atomic uint64_t *live = s->slots[s->next_slot];

  pthread_mutex_lock (&s->lock);
  bool counted = s->may_settle; /* else nobody knows when the last write ended */
  pthread_mutex_unlock (&s->lock);
  for (uint64_t e = 0; e < s->layout.nr_extents; e++) {
    uint64_t first, count = state_extent_words (&s->layout, e, &first);
    if (counted && atomic_load (&s->touched[e]) < atomic_load (&s->flushed))
      continue;
    for (uint64_t i = 0; i < count; i++)
      atomic_store (&live[first + i], ~UINT64_C (0));
  }
}

/* 0, or -1 with errno. */
static int
commit (struct state *s)
{
  struct state_table *t = malloc (sizeof *t);

  if (t == NULL)
    return -1;
  *t = *s->table;
  int r = 0;
  if (s->io.sync_disk == NULL) {
    record_volatile (s);
    r = write_recording (s, s->slots[s->next_slot], &s->next);
  }
  if (r == 0 && t->recording)
    r = write_recording (s, s->slots[t->slot], &t->list[t->nr - 1]);
  if (r == 0 && !state_lost_page (s)) {
    t->list[t->nr++] = s->next;
    t->recording = true;
    t->slot = s->next_slot;
    uint32_t old = s->table->slot;
    bool had_one = s->table->recording;
    r = state_write_table (s, t);
    if (r == 0 && had_one)
      atomic_store (&s->marked[1 + old], NULL);
  }
  free (t);
  return r;
}

int
state_checkpoint_flush (struct state *s)
{
  return s->io.sync_disk != NULL ? state_sync_disk (s) : 0;
}

static void
say_lost (struct state *s, char **error)
{
  struct state_view now;

  state_look (s, &now);
  text_error (error, "the state file was lost: %s", now.reason);
}

int
state_checkpoint_commit (struct state *s, char **error)
{
  int r = -1;

  pthread_mutex_lock (&s->io_lock);
  if (!s->preparing)
    text_error (error, "no checkpoint is prepared");
  else if (!atomic_load (&s->active))
    say_lost (s, error);
  else if (commit (s) == -1) {
    text_error (error, "the state file cannot be written: %s", strerror (errno));
    state_write_failed (s, "checkpoint");
  } else if (!atomic_load (&s->active)) /* a guest's commit failed meanwhile */
    say_lost (s, error);
  else
    r = 0;
  s->preparing = false;
  s->changes++;
  pthread_mutex_unlock (&s->io_lock);
  return r;
}

void
state_checkpoint_abort (struct state *s)
{
  pthread_mutex_lock (&s->io_lock);
  if (s->preparing) {
    s->preparing = false;
    s->changes++;
    atomic_store (&s->marked[1 + s->next_slot], NULL);
    if (atomic_load (&s->active) && !s->table->recording && end_recording (s) == -1)
      state_write_failed (s, "superblock");
  }
  pthread_mutex_unlock (&s->io_lock);
}

/* ---- removing ---- */

static void
drop_entry (struct state_table *t, uint32_t i)
{
  memmove (&t->list[i], &t->list[i + 1], (t->nr - i - 1) * sizeof t->list[0]);
  t->nr--;
}

/* The active recording, which is checkpoint I's, becomes its parent's, with what that one's has. */
static int
merge_active (struct state *s, struct state_table *t, uint32_t i, uint64_t *bits)
{
  struct state_checkpoint *parent = &t->list[i - 1], *c = &t->list[i];
  _Atomic uint64_t *live = s->slots[t->slot];

  for (uint64_t w = 0; w < s->layout.geo.nr_words; w++)
    if (bits[w] != 0)
      atomic_fetch_or (&live[w], bits[w]);
  if (write_recording (s, live, c) == -1)
    return state_write_failed (s, "recording");
  memcpy (parent->recording, c->recording, 16);
  parent->area = c->area;
  parent->blocks = 0;
  drop_entry (t, i);
  return 0;
}

/* The frozen recordings of checkpoint I and its parent become one, in an area of its own. */
static int
merge_frozen (struct state *s, struct state_table *t, uint32_t i, const uint64_t *bits)
{
  struct state_checkpoint *parent = &t->list[i - 1];
  uint32_t area = free_area (t);

  if (allocate_area (s, area) == -1)
    return -1;
  parent->area = area;
  uuid_make (parent->recording);
  /* Nobody else has BITS. */
  if (write_recording (s, (const _Atomic uint64_t *)bits, parent) == -1)
    return state_write_failed (s, "recording");
  drop_entry (t, i);
  return 0;
}

/* What is to be merged where checkpoint I is removed: the frozen recordings of it and its parent.
 * *BITS (owned by the caller) stays NULL if there is nothing to merge.  A guest's first touch does
 * not wait for it: only our thread changes what is frozen.  0, or -1 with *ERROR. */
static int
read_both (struct state *s, uint32_t i, uint64_t **bits, char **error)
{
  const struct state_table *t = s->table;
  uint64_t bad;
  int r = 0;

  *bits = NULL;
  if (i == 0 || state_table_fault (t, i - 1) != -1)
    return 0;
  *bits = calloc (s->layout.geo.nr_words + 1, 8);
  if (*bits == NULL)
    return text_error (error, "out of memory");
  for (uint32_t k = i - 1; r == 0 && k <= i && k + 1 < t->nr; k++)
    r = state_read_recording (&s->layout, &t->list[k], s->io.read, s->io.opaque, *bits, &bad,
                              error);
  return r;
}

/* Checkpoint I, which has a parent, in T.  BITS is what read_both() has found.  0, or -1 with
 * *ERROR; nothing was removed then. */
static int
merge (struct state *s, struct state_table *t, uint32_t i, uint64_t *bits, char **error)
{
  int fault = state_table_fault (t, i - 1);

  if (fault != -1) {
    struct state_checkpoint *parent = &t->list[i - 1];
    parent->inconsistent = true;
    if ((uint32_t)fault != i - 1)
      memcpy (parent->fault, t->list[fault].fault, sizeof parent->fault);
    if (i + 1 == t->nr)
      t->recording = false;
    drop_entry (t, i);
    return 0;
  }
  int r = i + 1 == t->nr ? merge_active (s, t, i, bits) : merge_frozen (s, t, i, bits);
  return r == 0 ? 0 : text_error (error, "it cannot be written: %s", strerror (errno));
}

/* Remove checkpoint I, with T as room for the new table. */
static int
remove_it (struct state *s, int i, struct state_table *t, uint64_t *bits, char **error)
{
  struct state_view now;

  *t = *s->table;
  state_look (s, &now);
  if (s->preparing)
    return text_error (error, "a checkpoint is being added");
  if (now.lost)
    return text_error (error, "the state file is inconsistent: %s", now.reason);
  uint32_t areas[2] = { t->list[i].area, i > 0 ? t->list[i - 1].area : t->list[i].area };
  bool recorded = t->recording;
  if (i > 0) {
    if (merge (s, t, (uint32_t)i, bits, error) == -1)
      return -1;
  } else {
    t->recording &= t->nr > 1;
    drop_entry (t, 0);
  }
  if (state_lost_page (s) || state_write_table (s, t) == -1
      || (recorded && !t->recording && end_recording (s) == -1)) {
    text_error (error, "it cannot be written: %s", strerror (errno));
    return state_write_failed (s, "checkpoint");
  }
  for (unsigned a = 0; a < 2; a++) {
    bool used = a == 1 && areas[1] == areas[0];
    for (uint32_t k = 0; k < t->nr; k++)
      used |= t->list[k].area == areas[a];
    if (!used && s->layout.area_bytes != 0)
      discard_area (s, areas[a]);
  }
  return 0;
}

int
state_checkpoint_remove (struct state *s, const char *name, char **error)
{
  int i = s->table != NULL ? state_table_find (s->table, name) : -1;

  if (i == -1)
    return text_error (error, "there is no checkpoint '%s'", name);
  struct state_table *t = malloc (sizeof *t);
  if (t == NULL)
    return text_error (error, "out of memory");
  uint64_t *bits;
  int r = read_both (s, (uint32_t)i, &bits, error);
  if (r == 0) {
    pthread_mutex_lock (&s->io_lock);
    r = remove_it (s, i, t, bits, error);
    pthread_mutex_unlock (&s->io_lock);
  }
  free (bits);
  free (t);
  return r;
}
