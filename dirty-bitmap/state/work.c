/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Writing the state file for guests that wait: commits of L1, and the thread that makes them.  A
 * loss is written here, too.  See state.h.
 */

#include "config.h"

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

  memcpy (id.uuid, s->l1_epoch, 16);
  state_page_put_words (page, 0, &s->l1[p * STATE_PAGE_WORDS], STATE_PAGE_WORDS);
  state_page_seal (page, STATE_PAGE, &id);
}

/* Write page P to its older copy, if it was changed. */
static int
write_l1_page (struct state *s, uint64_t p, bool *changed)
{
  uint64_t copy = s->l1_copy[p] ^ 1u;
  uint64_t offset = s->layout.l1_offset + (2 * p + copy) * STATE_PAGE;
  uint8_t page[STATE_PAGE];

  pthread_mutex_lock (&s->lock);
  *changed = s->l1_page_dirty[p] != 0;
  s->l1_page_dirty[p] = 0;
  if (*changed)
    build_l1 (s, p, page);
  pthread_mutex_unlock (&s->lock);
  return *changed ? s->io.write (s->io.opaque, page, sizeof page, offset) : 0;
}

/* Where that can be done, these pages alone are made durable: beside live maps that guests change
 * all the time that takes a tenth of what fdatasync() takes. */
static int
sync_l1 (struct state *s)
{
  return s->io.sync_l1 != NULL ? s->io.sync_l1 (s->io.opaque) : s->io.sync (s->io.opaque);
}

int
state_write_l1 (struct state *s)
{
  bool changed, any = false;

  for (uint64_t p = 0; p < s->layout.nr_l1_pages; p++) {
    if (write_l1_page (s, p, &changed) == -1)
      return state_write_failed (s, "L1");
    s->l1_written[p] = changed;
    any |= changed;
  }
  if (any && sync_l1 (s) == -1)
    return state_write_failed (s, "L1");
  for (uint64_t p = 0; any && p < s->layout.nr_l1_pages; p++) {
    s->l1_copy[p] ^= s->l1_written[p];
    s->l1_sequence[p] += s->l1_written[p];
  }
  return 0;
}

void
state_ask (struct state *s, uint64_t e)
{
  if (s->pending[e])
    return;
  s->pending[e] = 1;
  s->asked[s->nr_pending++] = e;
  s->asked_ns = clock_ns ();
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
    state_ask (s, i);
  }
}

/* Set the L1 bits of what guests wait for, and of what they will ask for next.  How many extents
 * that are: the first of `asked`.  Under lock. */
static uint64_t
take_asked (struct state *s)
{
  uint64_t nr = s->nr_pending;

  for (uint64_t i = 0; i < nr; i++)
    ask_ahead (s, s->asked[i]);
  for (uint64_t i = 0; i < s->nr_pending; i++) {
    uint64_t e = s->asked[i];
    s->nr_hot += (s->l1[e / 64] >> (e % 64) & 1) == 0;
    s->l1[e / 64] |= UINT64_C (1) << (e % 64);
    s->l1_page_dirty[e / (STATE_PAGE_WORDS * 64)] = 1;
  }
  return s->nr_pending;
}

/* The L1 bits of the first NR of `asked` are durable.  Under lock. */
static void
make_hot (struct state *s, uint64_t nr)
{
  for (uint64_t i = 0; i < nr; i++) {
    s->pending[s->asked[i]] = 0;
    atomic_store (&s->hot[s->asked[i]], 1);
  }
  s->nr_pending -= nr;
  memmove (s->asked, s->asked + nr, s->nr_pending * sizeof *s->asked);
}

static void
commit (struct state *s)
{
  pthread_mutex_lock (&s->lock);
  uint64_t asked = s->nr_pending, nr = atomic_load (&s->active) ? take_asked (s) : 0;
  pthread_mutex_unlock (&s->lock);
  if (nr == 0)
    return;
  int r = state_write_l1 (s);
  pthread_mutex_lock (&s->lock);
  if (r == 0)
    make_hot (s, nr);
  s->commits++;
  s->expected = asked + s->nr_pending;
  s->committed_ns = clock_ns ();
  if (s->nr_hot > s->hot_limit - s->hot_limit / 8) {
    s->hurry = true;
    pthread_cond_signal (&s->cool);
  }
  pthread_mutex_unlock (&s->lock);
  pthread_cond_broadcast (&s->committed); /* who wakes up finds the lock free */
}

void
state_commit (struct state *s)
{
  pthread_mutex_lock (&s->l1_lock);
  commit (s);
  pthread_mutex_unlock (&s->l1_lock);
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
  state_mark_all (s); /* again: a checkpoint may have been prepared since */
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

/* The guests that write all the time shared the last commit, or came while it was made.  They come
 * again at about the same time.  The first of them does not begin the next commit at once, or the
 * others would have to wait for it and for one more.  It waits for them, for a quarter of the time
 * that the last commit took, TOOK_NS.  But where nobody has come for so long that the waiting costs
 * all of them more than one who is late would lose, the rest has to wait for the next one.  Under
 * lock. */
static void
gather (struct state *s, uint64_t took_ns)
{
  uint64_t most = took_ns / 4 < MOST_WAIT_MS * NS_PER_MS ? took_ns / 4 : MOST_WAIT_MS * NS_PER_MS;
  uint64_t lull = took_ns / (s->expected + 1), latest = clock_ns () + most, now;

  s->wake_at = s->expected;
  while (!s->stop && s->nr_pending < s->expected && (now = clock_ns ()) < latest) {
    bool came = s->asked_ns > s->committed_ns;
    if (came && now >= s->asked_ns + lull)
      break;
    uint64_t next = came ? s->asked_ns + lull : now + lull;
    struct timespec until = clock_timespec (next < latest ? next : latest);
    pthread_cond_timedwait (&s->work, &s->lock, &until);
  }
  s->wake_at = UINT64_MAX;
}

/* Until something is asked for, a loss is to be written again, at NEXT_MS, or it is over.  Under
 * lock. */
static void
wait_for_work (struct state *s, uint64_t next_ms)
{
  while (!s->stop && !(s->nr_pending != 0 && atomic_load (&s->active))
         && !(s->loss_unwritten && clock_ms () >= next_ms)) {
    struct timespec until = clock_timespec (clock_ns () + RETRY_MS * NS_PER_MS);
    s->wake_at = 1;
    pthread_cond_timedwait (&s->work, &s->lock, &until);
  }
}

void *
state_work (void *opaque)
{
  struct state *s = opaque;
  uint64_t next = 0, took_ns = 0;

  pthread_mutex_lock (&s->lock);
  for (;;) {
    wait_for_work (s, next);
    if (s->stop)
      break;
    gather (s, took_ns);
    bool lost = s->loss_unwritten;
    pthread_mutex_unlock (&s->lock);
    uint64_t begun = clock_ns ();
    state_commit (s);
    took_ns = clock_ns () - begun;
    if (lost) {
      pthread_mutex_lock (&s->io_lock);
      state_write_loss (s);
      pthread_mutex_unlock (&s->io_lock);
      next = clock_ms () + RETRY_MS;
    }
    pthread_mutex_lock (&s->lock);
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
