/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Threads that compress.  See compressor.h.
 */

#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "compress/compressor.h"
#include "compress/level.h"
#include "compress/pack.h"

#define THREADS_MAX 4u
#define SHORTEST 512 /* shorter writes are sent as they are */

struct thread {
  struct compressor *of;
  struct packer *packer;
  struct squeeze_queue *working_for; /* under the lock; NULL: idle */
  pthread_t id;
};

struct compressor {
  uint32_t align;
  unsigned nr_threads;
  struct thread threads[THREADS_MAX];

  pthread_mutex_t lock; /* all below, and the queues */
  pthread_cond_t work, ended;
  struct level level;
  unsigned in_flight; /* writes between squeeze_begin() and squeeze_end() */
  struct squeeze *first, *last;
  bool stop;
};

struct squeeze_queue {
  struct compressor *of;
  int fd;
  struct squeeze *first, *last; /* done */
  unsigned in_flight;
};

static void
append (struct squeeze **first, struct squeeze **last, struct squeeze *s)
{
  s->next = NULL;
  if (*last != NULL)
    (*last)->next = s;
  else
    *first = s;
  *last = s;
}

static struct squeeze *
take_first (struct squeeze **first, struct squeeze **last)
{
  struct squeeze *s = *first;

  if (s != NULL) {
    *first = s->next;
    if (*first == NULL)
      *last = NULL;
  }
  return s;
}

/* ---- the threads ---- */

/* What remains must be clearly less, or the work of unpacking it is not worth it. */
static void
compress_one (struct thread *t, struct squeeze *s)
{
  size_t room = s->length - s->length / 16;

  s->pack = malloc (room);
  if (s->pack == NULL)
    return;
  s->pack_length = pack (t->packer, s->level, t->of->align, s->data, s->length, s->pack, room);
  if (s->pack_length == 0) {
    free (s->pack);
    s->pack = NULL;
    return;
  }
  void *smaller = realloc (s->pack, s->pack_length);
  if (smaller != NULL)
    s->pack = smaller;
}

static void *
compress_thread (void *opaque)
{
  struct thread *t = opaque;
  struct compressor *c = t->of;

  pthread_mutex_lock (&c->lock);
  for (;;) {
    while (c->first == NULL && !c->stop)
      pthread_cond_wait (&c->work, &c->lock);
    struct squeeze *s = take_first (&c->first, &c->last);
    if (s == NULL)
      break;
    struct squeeze_queue *q = t->working_for = s->queue;
    pthread_mutex_unlock (&c->lock);

    uint64_t begun = clock_ns ();
    compress_one (t, s);
    uint64_t took = clock_ns () - begun;

    pthread_mutex_lock (&c->lock);
    level_compressed (&c->level, s->level, s->length, s->pack != NULL ? s->pack_length : s->length,
                      took);
    t->working_for = NULL;
    bool was_empty = q->first == NULL;
    append (&q->first, &q->last, s);
    if (was_empty)
      fd_wake (q->fd);
    pthread_cond_broadcast (&c->ended);
  }
  pthread_mutex_unlock (&c->lock);
  return NULL;
}

/* A signal is the business of the process's first thread. */
static int
start_thread (struct compressor *c, struct thread *t)
{
  sigset_t all, old;

  *t = (struct thread){ .of = c, .packer = packer_new () };
  if (t->packer == NULL)
    return ENOMEM;
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &old);
  int err = pthread_create (&t->id, NULL, compress_thread, t);
  pthread_sigmask (SIG_SETMASK, &old, NULL);
  if (err != 0)
    packer_free (t->packer);
  return err;
}

struct compressor *
compressor_new (int max_level, uint32_t align, unsigned nr_threads)
{
  long cores = sysconf (_SC_NPROCESSORS_ONLN);
  unsigned nr = nr_threads > 0 ? nr_threads : cores > 0 ? (unsigned)cores : 1;
  struct compressor *c = calloc (1, sizeof *c);

  if (c == NULL)
    return NULL;
  if (nr > THREADS_MAX)
    nr = THREADS_MAX;
  c->align = align;
  pthread_mutex_init (&c->lock, NULL);
  pthread_cond_init (&c->work, NULL);
  pthread_cond_init (&c->ended, NULL);
  level_init (&c->level, max_level, nr, clock_ns ());
  while (c->nr_threads < nr) {
    int err = start_thread (c, &c->threads[c->nr_threads]);
    if (err != 0) {
      compressor_free (c);
      errno = err;
      return NULL;
    }
    c->nr_threads++;
  }
  return c;
}

void
compressor_free (struct compressor *c)
{
  if (c == NULL)
    return;
  pthread_mutex_lock (&c->lock);
  c->stop = true;
  pthread_cond_broadcast (&c->work);
  pthread_mutex_unlock (&c->lock);
  for (unsigned i = 0; i < c->nr_threads; i++) {
    pthread_join (c->threads[i].id, NULL);
    packer_free (c->threads[i].packer);
  }
  pthread_cond_destroy (&c->ended);
  pthread_cond_destroy (&c->work);
  pthread_mutex_destroy (&c->lock);
  free (c);
}

/* ---- queues ---- */

struct squeeze_queue *
squeeze_queue_new (struct compressor *c)
{
  struct squeeze_queue *q = calloc (1, sizeof *q);

  if (q == NULL)
    return NULL;
  q->of = c;
  q->fd = fd_wake_new ();
  if (q->fd != -1)
    return q;
  int err = errno;
  free (q);
  errno = err;
  return NULL;
}

int
squeeze_queue_fd (const struct squeeze_queue *q)
{
  return q->fd;
}

/* Take what is Q's out of the list of work. */
static void
forget_work (struct compressor *c, const struct squeeze_queue *q)
{
  struct squeeze *s = c->first;

  c->first = c->last = NULL;
  while (s != NULL) {
    struct squeeze *next = s->next;
    if (s->queue != q)
      append (&c->first, &c->last, s);
    s = next;
  }
}

static bool
is_worked_for (const struct compressor *c, const struct squeeze_queue *q)
{
  for (unsigned i = 0; i < c->nr_threads; i++)
    if (c->threads[i].working_for == q)
      return true;
  return false;
}

static void
left (struct compressor *c, unsigned nr)
{
  c->in_flight -= nr;
  if (c->in_flight == 0)
    level_idle (&c->level);
}

void
squeeze_queue_free (struct squeeze_queue *q)
{
  if (q == NULL)
    return;
  struct compressor *c = q->of;
  pthread_mutex_lock (&c->lock);
  forget_work (c, q);
  while (is_worked_for (c, q))
    pthread_cond_wait (&c->ended, &c->lock);
  left (c, q->in_flight);
  pthread_mutex_unlock (&c->lock);
  fd_close (&q->fd);
  free (q);
}

/* ---- writes ---- */

bool
squeeze_begin (struct squeeze_queue *q, struct squeeze *s)
{
  struct compressor *c = q->of;

  s->queue = q;
  s->pack = NULL;
  pthread_mutex_lock (&c->lock);
  c->in_flight++;
  q->in_flight++;
  s->level = level_next (&c->level, clock_ns (), &s->tag);
  bool taken = s->level > 0 && s->length >= SHORTEST && s->length <= PACK_MAX_CONTENT;
  if (taken) {
    append (&c->first, &c->last, s);
    pthread_cond_signal (&c->work);
  }
  pthread_mutex_unlock (&c->lock);
  return taken;
}

struct squeeze *
squeeze_next (struct squeeze_queue *q)
{
  struct compressor *c = q->of;

  pthread_mutex_lock (&c->lock);
  if (q->first == NULL)
    fd_wake_clear (q->fd);
  struct squeeze *s = take_first (&q->first, &q->last);
  pthread_mutex_unlock (&c->lock);
  return s;
}

void
squeeze_drop (struct squeeze *s)
{
  free (s->pack);
  s->pack = NULL;
}

void
squeeze_end (struct squeeze_queue *q, struct squeeze *s, bool ok)
{
  struct compressor *c = q->of;
  uint64_t wire = s->pack != NULL ? s->pack_length : s->length;

  squeeze_drop (s);
  pthread_mutex_lock (&c->lock);
  if (ok)
    level_replied (&c->level, s->tag, s->length, wire, clock_ns ());
  q->in_flight--;
  left (c, 1);
  pthread_mutex_unlock (&c->lock);
}
