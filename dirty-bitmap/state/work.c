/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Writing the state file for guests that wait: commits of L1, and the thread that makes them.  A
 * loss is written here, too.  See state.h.
 */

#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "dirty-bitmap/state/internal.h"

#define RETRY_MS 1000  /* until a loss is written */
#define MOST_AHEAD 8u  /* extents */
#define MOST_WAIT_MS 2 /* for more writes to share a commit */

int
state_write_failed (struct state *s, const char *what)
{
  char reason[STATE_REASON_MAX + 1];

  snprintf (reason, sizeof reason, "%s: %s", what, strerror (errno));
  state_lose (s, reason);
  return -1;
}

/* ---- L1 ---- */

/* Build page P from the bits as they are now.  Under lock. */
static void
build_l1 (struct state *s, uint64_t p, uint8_t *page)
{
  struct state_page_id id = { .kind = STATE_L1, .number = p, .sequence = s->l1_sequence[p] + 1 };

  memcpy (id.uuid, s->super.epoch, 16);
  state_page_put_words (page, 0, &s->l1[p * STATE_PAGE_WORDS], STATE_PAGE_WORDS);
  state_page_seal (page, STATE_PAGE, &id);
}

/* How many pages are to be written?  Only who has io_lock makes them more or fewer. */
static uint64_t
dirty_l1_pages (struct state *s)
{
  uint64_t nr = 0;

  pthread_mutex_lock (&s->lock);
  for (uint64_t p = 0; p < s->layout.nr_l1_pages; p++)
    nr += s->l1_page_dirty[p] != 0;
  pthread_mutex_unlock (&s->lock);
  return nr;
}

/* Write page P to its older copy.  ALONE: durably; else the caller makes it durable. */
static int
write_l1_page (struct state *s, uint64_t p, bool alone)
{
  uint64_t copy = s->l1_copy[p] ^ 1u;
  uint64_t offset = s->layout.l1_offset + (2 * p + copy) * STATE_PAGE;
  uint8_t page[STATE_PAGE];

  pthread_mutex_lock (&s->lock);
  s->l1_page_dirty[p] = 0;
  build_l1 (s, p, page);
  pthread_mutex_unlock (&s->lock);
  return alone ? s->io.write_durable (s->io.opaque, page, sizeof page, offset)
               : s->io.write (s->io.opaque, page, sizeof page, offset);
}

/* A single page is made durable by itself: beside live maps that guests change all the time that
 * takes a tenth of what fdatasync() takes.  Several pages share one fdatasync(), because devices
 * that are slow to flush would be asked once for each of them. */
int
state_write_l1 (struct state *s)
{
  uint64_t nr = dirty_l1_pages (s), done = 0;
  bool alone = nr == 1 && s->io.write_durable != NULL;
  uint64_t *written = malloc ((nr + 1) * sizeof *written);

  if (written == NULL)
    return state_write_failed (s, "L1");
  for (uint64_t p = 0; done < nr && p < s->layout.nr_l1_pages; p++) {
    if (s->l1_page_dirty[p] == 0)
      continue;
    if (write_l1_page (s, p, alone) == -1) {
      free (written);
      return state_write_failed (s, "L1");
    }
    written[done++] = p;
  }
  if (nr != 0 && !alone && s->io.sync (s->io.opaque) == -1) {
    free (written);
    return state_write_failed (s, "L1");
  }
  for (uint64_t i = 0; i < done; i++) {
    s->l1_copy[written[i]] ^= 1u;
    s->l1_sequence[written[i]]++;
  }
  free (written);
  return 0;
}

/* A guest that writes in order comes to the next extents soon.  So they become hot together with E,
 * if it follows hot ones: as many as those are, and at most MOST_AHEAD.  They are pending, or
 * somebody would take their L1 bit, which is not durable yet, for that of an extent that cools.
 * Under lock. */
static void
ask_ahead (struct state *s, uint64_t e)
{
  uint64_t ahead = 0;

  while (ahead < MOST_AHEAD && ahead < e && atomic_load (&s->hot[e - ahead - 1]))
    ahead++;
  for (uint64_t i = e + 1; i <= e + ahead && i < s->layout.nr_extents; i++) {
    if (s->pending[i] || (s->l1[i / 64] >> (i % 64) & 1) != 0 || s->nr_hot >= s->hot_limit / 2)
      return;
    s->pending[i] = 1;
    s->nr_pending++;
  }
}

/* The same for each extent that a guest waits for. */
static void
look_ahead (struct state *s)
{
  uint64_t left = s->nr_pending;

  for (uint64_t e = s->layout.nr_extents; left > 0 && e-- > 0;) /* not those that are added */
    if (s->pending[e]) {
      left--;
      ask_ahead (s, e);
    }
}

void
state_commit_now (struct state *s)
{
  uint64_t *taken = NULL, nr = 0;

  pthread_mutex_lock (&s->lock);
  if (atomic_load (&s->active))
    look_ahead (s);
  if (atomic_load (&s->active) && s->nr_pending != 0)
    taken = malloc (s->nr_pending * sizeof *taken);
  for (uint64_t e = 0; taken != NULL && nr < s->nr_pending; e++) {
    assert (e < s->layout.nr_extents);
    if (!s->pending[e])
      continue;
    taken[nr++] = e;
    s->nr_hot += (s->l1[e / 64] >> (e % 64) & 1) == 0;
    s->l1[e / 64] |= UINT64_C (1) << (e % 64);
    s->l1_page_dirty[e / (STATE_PAGE_WORDS * 64)] = 1;
  }
  pthread_mutex_unlock (&s->lock);
  if (taken == NULL)
    return;
  int r = state_write_l1 (s);
  pthread_mutex_lock (&s->lock);
  for (uint64_t i = 0; r == 0 && i < nr; i++) {
    s->pending[taken[i]] = 0;
    s->nr_pending--;
    atomic_store (&s->hot[taken[i]], 1);
  }
  s->commits++;
  pthread_cond_broadcast (&s->committed);
  if (s->nr_hot > s->hot_limit - s->hot_limit / 8) {
    s->hurry = true;
    pthread_cond_signal (&s->cool);
  }
  pthread_mutex_unlock (&s->lock);
  free (taken);
}

void
state_commit (struct state *s)
{
  pthread_mutex_lock (&s->io_lock);
  state_commit_now (s);
  pthread_mutex_unlock (&s->io_lock);
}

/* The file does not say what was lost: say it on the disk, which is often elsewhere. */
static void
unmark_disk (struct state *s)
{
  static const uint8_t none[16];

  if (!s->unmarked && s->io.mark_disk != NULL && memcmp (s->disk.mark, none, 16) != 0)
    s->unmarked = s->io.mark_disk (s->io.opaque, NULL) == 0;
}

void
state_write_loss (struct state *s)
{
  uint8_t page[STATE_PAGE];

  pthread_mutex_lock (&s->lock);
  bool unwritten = s->loss_unwritten;
  struct state_super super = s->super;
  memcpy (super.reason, s->reason, sizeof super.reason);
  pthread_mutex_unlock (&s->lock);
  if (!unwritten || super.sequence == 0)
    return;
  state_mark_all (s); /* again: a round that was under way may have dropped bits since */
  super.status = STATE_INCONSISTENT;
  super.sequence++;
  state_super_encode (&super, page);
  for (unsigned copy = 0; copy < 2; copy++)
    if (s->io.write (s->io.opaque, page, sizeof page, copy * STATE_PAGE) == -1
        || s->io.sync (s->io.opaque) == -1) {
      unmark_disk (s);
      return; /* tried again */
    }
  s->super = super;
  pthread_mutex_lock (&s->lock);
  s->loss_unwritten = false;
  pthread_mutex_unlock (&s->lock);
}

/* The guests that write all the time, NR of them, shared the last commit or came while it was made.
 * They come again at about the same time.  The first of them does not begin the next commit at
 * once, or the others would have to wait for it and for one more.  It waits for them, for a quarter
 * of the time that the last commit took.  Under lock. */
static void
gather (struct state *s, uint64_t nr, uint64_t took_ns)
{
  uint64_t wait = took_ns / 4 < MOST_WAIT_MS * NS_PER_MS ? took_ns / 4 : MOST_WAIT_MS * NS_PER_MS;
  uint64_t end = clock_ns () + wait;
  struct timespec until = clock_timespec (end);

  while (!s->stop && s->nr_pending < nr && clock_ns () < end)
    pthread_cond_timedwait (&s->work, &s->lock, &until);
}

void *
state_work (void *opaque)
{
  struct state *s = opaque;
  uint64_t next = 0, nr = 0, took_ns = 0;

  pthread_mutex_lock (&s->lock);
  while (!s->stop) {
    struct timespec until = clock_timespec (clock_ns () + RETRY_MS * NS_PER_MS);
    bool pending = s->nr_pending != 0 && atomic_load (&s->active);
    if (!pending && (!s->loss_unwritten || clock_ms () < next)) {
      pthread_cond_timedwait (&s->work, &s->lock, &until);
      continue;
    }
    if (pending)
      gather (s, nr, took_ns);
    bool lost = s->loss_unwritten;
    nr = s->nr_pending;
    pthread_mutex_unlock (&s->lock);
    if (pending) {
      uint64_t begun = clock_ns ();
      state_commit (s);
      took_ns = clock_ns () - begun;
    }
    if (lost) {
      pthread_mutex_lock (&s->io_lock);
      state_write_loss (s);
      pthread_mutex_unlock (&s->io_lock);
      next = clock_ms () + RETRY_MS;
    }
    pthread_mutex_lock (&s->lock);
    nr += pending ? s->nr_pending : 0;
  }
  pthread_mutex_unlock (&s->lock);
  /* The live maps say it in this boot only. */
  pthread_mutex_lock (&s->io_lock);
  state_write_loss (s);
  pthread_mutex_unlock (&s->io_lock);
  return NULL;
}

void
state_stop (struct state *s)
{
  pthread_mutex_lock (&s->lock);
  s->stop = true;
  pthread_cond_signal (&s->work);
  pthread_cond_signal (&s->cool);
  pthread_mutex_unlock (&s->lock);
}
