/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Beginning what is tracked: a new job, or what a file says.  See state.h.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "base/uuid.h"
#include "dirty-bitmap/state/internal.h"
#include "dirty-bitmap/state/recordings.h"

/* Everything that is in memory only, for what the L1 bits in s->l1 stand for. */
static void
start_tracking (struct state *s)
{
  pthread_mutex_lock (&s->lock);
  s->nr_hot = 0;
  for (uint64_t e = 0; e < s->layout.nr_extents; e++) {
    bool hot = (s->l1[e / 64] >> (e % 64) & 1) != 0;
    s->nr_hot += hot;
    atomic_store (&s->hot[e], hot);
    /* What is in a cache may not be durable, whoever wrote it. */
    atomic_store (&s->touched[e], atomic_load (&s->tick));
    s->pending[e] = 0;
  }
  s->nr_pending = 0;
  memset (s->l1_page_dirty, 0, s->layout.nr_l1_pages);
  s->region = NULL;
  s->may_settle = false;
  s->lost = s->loss_unwritten = false;
  s->reason[0] = '\0';
  pthread_mutex_unlock (&s->lock);
  memset (s->l2_page_dirty, 0, s->layout.nr_l2_pages);
  memset (s->recorded_page_dirty, 0, s->layout.nr_l2_pages);
  atomic_store (&s->active, true);
}

/* The same for a job, which may begin beside a recording. */
static void
start_job (struct state *s)
{
  pthread_mutex_lock (&s->lock);
  s->region = NULL;
  s->may_settle = false;
  pthread_mutex_unlock (&s->lock);
  memset (s->l2_page_dirty, 0, s->layout.nr_l2_pages);
  s->flush_owed = true; /* what an earlier server dropped from the live map may wait for it */
  s->owed_tick = atomic_load (&s->tick);
  memset (s->sample_crc, 0, 64 * sizeof *s->sample_crc);
  atomic_store (&s->marked[0], s->live);
}

/* Under l1_lock as well. */
static int
begin_epoch (struct state *s, struct state_super *super, const uint8_t boot[16])
{
  const struct state_layout *l = &s->layout;
  uint8_t page[STATE_PAGE];

  uuid_make (super->epoch);
  memcpy (super->boot, boot, 16);
  super->disk_size = l->geo.disk_size;
  super->block_size = l->geo.block_size;
  super->status = STATE_ACTIVE;
  super->identity = s->disk;
  memset (super->next_mark, 0, sizeof super->next_mark);
  memset (super->reason, 0, sizeof super->reason);
  memcpy (s->l1_epoch, super->epoch, 16);
  memset (s->l1, 0, l->nr_l1_pages * STATE_PAGE_WORDS * 8);
  memset (page, 0, sizeof page);
  for (uint64_t p = 0; p < l->nr_l1_pages; p++) {
    struct state_page_id id = { .kind = STATE_L1, .number = p, .sequence = 1 };
    memcpy (id.uuid, super->epoch, 16);
    state_page_seal (page, sizeof page, &id);
    s->l1_sequence[p] = 1;
    s->l1_copy[p] = 0;
    if (s->io.write (s->io.opaque, page, sizeof page, l->l1_offset + 2 * p * STATE_PAGE) == -1)
      return -1;
  }
  if (s->io.sync (s->io.opaque) == -1 || state_write_super (s, super) == -1)
    return -1;
  if (s->unmarked && s->io.mark_disk (s->io.opaque, s->disk.mark) == 0)
    s->unmarked = false;
  start_tracking (s);
  return 0;
}

int
state_begin_epoch (struct state *s, struct state_super *super, const uint8_t boot[16])
{
  pthread_mutex_lock (&s->l1_lock); /* a commit of the last epoch may be under way */
  int r = begin_epoch (s, super, boot), saved = errno;
  pthread_mutex_unlock (&s->l1_lock);
  errno = saved;
  return r;
}

/* The live map of a job that begins has what was changed since checkpoint SINCE: BITS, which has
 * that of the frozen recordings, and the active one.  Until the superblock says that there is a job
 * it means nothing to anybody who reads the file; so an older job has to be gone from it. */
static int
take_changes (struct state *s, const char *since, uint64_t *bits, char **error)
{
  uint64_t nr_words = s->layout.geo.nr_words;
  struct state_super super = s->super;

  super.job = false;
  if (s->super.job && state_write_super (s, &super) == -1)
    return text_error (error, "it cannot be written: %s", strerror (errno));
  for (uint64_t w = 0; w < nr_words; w++)
    if (atomic_load (&s->live[w]) != 0) /* a page that is only read need not be written again */
      atomic_store (&s->live[w], 0);
  atomic_store (&s->marked[0], s->live); /* before the active recording is looked at (guest.c) */
  int r = state_add_active (s, since, bits, error);
  for (uint64_t w = 0; r == 0 && w < nr_words; w++)
    if (bits[w] != 0)
      atomic_fetch_or (&s->live[w], bits[w]);
  if (r == -1)
    atomic_store (&s->marked[0], NULL);
  return r;
}

static int
begin_job (struct state *s, const uint8_t uuid[16], const uint8_t boot[16], const char *since,
           uint64_t *changes, char **error)
{
  atomic_store (&s->marked[0], NULL);
  /* No page bears the new job's UUID yet, which means: everything is dirty. */
  for (uint64_t w = 0; since == NULL && w < s->layout.geo.nr_words; w++)
    atomic_store (&s->live[w], ~UINT64_C (0));
  s->note_sequence = 0;
  s->note_copy = 1;
  s->note[0] = s->wanted_note[0] = '\0';
  if (since != NULL && take_changes (s, since, changes, error) == -1)
    return -1;
  struct state_super super = s->super;
  bool beside = atomic_load (&s->active);
  super.job = true;
  memcpy (super.uuid, uuid, 16);
  if (state_lost_page (s) || state_write_off (s) == -1
      || (beside ? state_write_super (s, &super) : state_begin_epoch (s, &super, boot)) == -1)
    return text_error (error, "it cannot be written: %s", strerror (errno));
  start_job (s);
  /* What is clear has to be written, for an unwritten page is all dirty. */
  if (since != NULL)
    memset (s->l2_page_dirty, 1, s->layout.nr_l2_pages);
  return 0;
}

int
state_begin (struct state *s, const struct state_layout *layout, _Atomic uint64_t *live,
             const uint8_t uuid[16], const uint8_t boot[16], const char *since, char **error)
{
  uint64_t *changes = since != NULL ? calloc (layout->geo.nr_words + 1, 8) : NULL;

  if (since != NULL && changes == NULL)
    return text_error (error, "out of memory");
  pthread_mutex_lock (&s->io_lock);
  int r = state_allocate (s, layout, error);
  pthread_mutex_unlock (&s->io_lock);
  if (r == 0 && since != NULL)
    r = state_frozen_since (s, since, changes, error);
  if (r == 0) {
    pthread_mutex_lock (&s->io_lock);
    s->live = live;
    r = begin_job (s, uuid, boot, since, changes, error);
    if (r == -1) { /* the file may say either, and the job before is not marked any more */
      atomic_store (&s->marked[0], live);
      state_lose (s, "a job could not begin");
    }
    pthread_mutex_unlock (&s->io_lock);
  }
  free (changes);
  return r;
}

/* The found BITS into LIVE, before the superblock says that LIVE counts.  False: it is lost. */
static bool
fill (struct state *s, _Atomic uint64_t *live, const uint64_t *bits)
{
  for (uint64_t w = 0; w < s->layout.geo.nr_words; w++)
    atomic_store (&live[w], bits[w]);
  return !state_lost_page (s);
}

/* The live maps may have bits that the pages of cold extents have not: what a worker set dirty, and
 * what a loss set that could not be written.  Nothing tells any more in which pages. */
static void
owe_all_pages (struct state *s)
{
  memset (s->l2_page_dirty, 1, s->layout.nr_l2_pages);
  memset (s->recorded_page_dirty, 1, s->layout.nr_l2_pages);
  s->added = true;
}

/* What F says of the job, into memory. */
static void
continue_job (struct state *s, const struct state_found *f, _Atomic uint64_t *live)
{
  s->live = live;
  s->note_sequence = f->note_sequence;
  s->note_copy = f->note_copy;
  if (f->how != STATE_FROM_NOTHING) /* else it is not written for the job's new UUID yet */
    memcpy (s->note, f->note, sizeof s->note);
  memcpy (s->wanted_note, f->note, sizeof s->wanted_note);
  start_job (s);
}

/* The same of the active recording. */
static int
continue_recording (struct state *s, const struct state_found *f, _Atomic uint64_t *const slots[2])
{
  s->slots[0] = slots[0];
  s->slots[1] = slots[1];
  _Atomic uint64_t *live = s->slots[s->table->slot];
  if (!fill (s, live, f->recorded))
    return -1;
  atomic_store (&s->marked[1 + s->table->slot], live);
  return f->how == STATE_FROM_NOTHING ? state_break_recording (s, f->reason, true) : 0;
}

/* state_bury() the pages of L1 that are torn. */
static int
bury_torn_l1 (struct state *s)
{
  const struct state_layout *l = &s->layout;
  uint8_t page[STATE_PAGE];
  uint64_t sequence;

  for (uint64_t p = 0; p < l->nr_l1_pages; p++) {
    uint64_t offset = l->l1_offset + (2 * p + (s->l1_copy[p] ^ 1u)) * STATE_PAGE;
    if (s->io.read (s->io.opaque, page, sizeof page, offset) == -1)
      return -1;
    if (state_page_check (page, sizeof page, STATE_L1, p, s->super.epoch, &sequence)
            == STATE_PAGE_BAD
        && state_bury (s, offset) == -1)
      return -1;
  }
  return 0;
}

int
state_continue (struct state *s, const struct state_found *f, _Atomic uint64_t *live,
                _Atomic uint64_t *const slots[2], const uint8_t uuid[16], const uint8_t boot[16],
                char **error)
{
  struct state_super super = f->super;
  int r = -1;

  super.status = STATE_ACTIVE;
  memcpy (super.boot, boot, 16);
  memset (super.reason, 0, sizeof super.reason);
  memset (super.next_mark, 0, sizeof super.next_mark);
  super.identity = s->disk;
  if (f->how == STATE_FROM_NOTHING)
    memcpy (super.uuid, uuid, 16);
  pthread_mutex_lock (&s->io_lock);
  s->super = f->super;
  if (state_allocate (s, &f->layout, error) == 0) {
    *s->table = *f->table;
    s->table_copy = f->table_copy;
    memcpy (s->l1_epoch, f->super.epoch, 16);
    memcpy (s->l1, f->l1, f->layout.nr_l1_pages * STATE_PAGE_WORDS * 8);
    memcpy (s->l1_sequence, f->l1_sequence, f->layout.nr_l1_pages * 8);
    memcpy (s->l1_copy, f->l1_copy, f->layout.nr_l1_pages);
    /* The recording first: the superblock must not say that all is well before the table says what
     * is not. */
    if (bury_torn_l1 (s) == 0 && (f->recorded == NULL || continue_recording (s, f, slots) == 0)
        && (f->bits == NULL || fill (s, live, f->bits)) && state_write_super (s, &super) == 0) {
      start_tracking (s);
      if (f->bits != NULL)
        continue_job (s, f, live);
      if (f->how == STATE_FROM_LIVE)
        owe_all_pages (s);
      r = 0;
    } else
      text_error (error, "it cannot be written: %s", strerror (errno));
  }
  pthread_mutex_unlock (&s->io_lock);
  return r;
}

int
state_announce_mark (struct state *s, struct state_found *f, const struct state_identity *now,
                     const uint8_t mark[16])
{
  struct state_super super = f->super;

  if (f->how == STATE_FROM_NOTHING)
    return 0;
  /* It may be the one that a server announced which was killed at its start. */
  memcpy (super.identity.mark, now->mark, 16);
  super.identity.ctime_ns = now->ctime_ns;
  memcpy (super.next_mark, mark, 16);
  pthread_mutex_lock (&s->io_lock);
  s->super = f->super;
  int r = state_write_super (s, &super);
  f->super = s->super;
  pthread_mutex_unlock (&s->io_lock);
  return r;
}

int
state_know (struct state *s, const struct state_found *f)
{
  s->super = f->super;
  if (f->table == NULL)
    return 0;
  s->table = malloc (sizeof *s->table);
  if (s->table == NULL)
    return -1;
  *s->table = *f->table;
  s->table_copy = f->table_copy;
  return 0;
}
