/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See image.h.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <nbdkit-plugin.h>

#include "base/clock.h"
#include "base/text.h"
#include "nbd-plugin/image/image.h"
#include "nbd-plugin/image/internal.h"
#include "nbd-plugin/image/requests.h"

#define FIRST_START_MS 60000 /* for the server to answer, when nbdkit starts */
#define MAX_REPEATS 10       /* of one request: it may be what the server dies of */
#define LEAVE_MS 60000       /* for the server to write what it has in memory */
#define LENT_LOOK_MS 200

/* ---- one try --------------------------------------------------------------------------------- */

/* A request on its way. */
struct
try {
  struct image_request *request;
  struct change *change; /* under way in the log; NULL: no change, or it has ended */
  bool flush_after;      /* in place of FUA */
  struct nbd_handle *connection;
  uint64_t generation; /* of the connection */
  bool lost;           /* the connection has failed */
};

/* The lock is held: wait for a change while the image is lent.  False: the server is about to end,
 * or the client has gone.  nbdkit closes no connection then, so nobody says that the image is back.
 */
static bool
wait_for_return (struct image *i)
{
  struct timespec limit = clock_timespec (clock_ns () + LENT_LOOK_MS * NS_PER_MS);

  pthread_cond_clockwait (&i->free_connection, &i->lock, CLOCK_MONOTONIC, &limit);
  return i->state != LENT || nbdkit_nanosleep (0, 0) == 0;
}

/* Take a connection.  0; or EIO where there will be none any more; or ESHUTDOWN, and with t->lost:
 * the image was returned, and a server has to be started.  A flush gets none where no server has
 * the image: then everything that was acknowledged is durable. */
static int
take_connection (struct image *i, struct try *t)
{
  bool flush = t->request->action == IMAGE_FLUSH;

  t->connection = NULL;
  pthread_mutex_lock (&i->lock);
  while (i->state == RECOVERS || i->state == LENDING || (i->state == LENT && !flush)
         || (i->state == RUNS && i->nr_idle == 0)) {
    if (i->state != LENT)
      pthread_cond_wait (&i->free_connection, &i->lock);
    else if (!wait_for_return (i))
      break;
  }
  bool runs = i->state == RUNS;
  enum image_state state = i->state;
  bool away = flush && (state == LENT || state == RETURNED);
  t->lost = state == RETURNED && !away;
  t->generation = i->generation;
  if (runs) {
    t->connection = i->idle[--i->nr_idle];
    i->users++;
  }
  pthread_mutex_unlock (&i->lock);
  return runs || away ? 0 : state == LOST ? EIO : ESHUTDOWN;
}

/* The change of T has ended; the lock is held.  Returns what the caller frees. */
static struct change *
end_change (struct image *i, struct try *t, bool keep)
{
  struct change *c = t->change;

  t->change = NULL;
  if (c == NULL)
    return NULL;
  log_end (&i->log, c, keep);
  pthread_cond_broadcast (&i->changed);
  return keep ? NULL : c;
}

static void
give_connection_back (struct image *i, struct try *t, int err)
{
  struct change *gone = NULL;

  pthread_mutex_lock (&i->lock);
  if (!t->lost) {
    bool durable = t->flush_after || (t->request->flags & LIBNBD_CMD_FLAG_FUA) != 0;
    gone = end_change (i, t, err == 0 && !durable);
  }
  i->idle[i->nr_idle++] = t->connection;
  i->users--;
  if (i->state == RUNS)
    pthread_cond_signal (&i->free_connection);
  else
    pthread_cond_broadcast (&i->changed);
  pthread_mutex_unlock (&i->lock);
  change_free (gone);
}

/* Flush on the connection of T, and let the log forget what is durable now.  0 or an errno, and
 * t->lost. */
static int
flush (struct image *i, struct try *t)
{
  struct image_request r = { .action = IMAGE_FLUSH };

  pthread_mutex_lock (&i->lock);
  uint64_t mark = log_mark (&i->log);
  pthread_mutex_unlock (&i->lock);
  int err = request_send (t->connection, &r);
  t->lost = err != 0 && server_is_lost (t->connection, err);
  if (err != 0)
    return err;
  pthread_mutex_lock (&i->lock);
  struct change *gone = log_flushed (&i->log, mark);
  if (gone != NULL)
    pthread_cond_broadcast (&i->changed);
  pthread_mutex_unlock (&i->lock);
  change_free (gone);
  return 0;
}

static void
remember_flush_error (struct image *i, int err)
{
  pthread_mutex_lock (&i->lock);
  i->flush_error = err;
  pthread_mutex_unlock (&i->lock);
}

/* A change has failed on a connection that works. */
static void
settle_failed_change (struct image *i, struct try *t, int err)
{
  if (err == ENOTSUP) /* a fast zero that would not be fast, and has changed nothing */
    return;
  int flush_err = flush (i, t);
  if (flush_err != 0 && !t->lost)
    remember_flush_error (i, flush_err);
}

/* 0 or an errno, and t->lost. */
static int
send_once (struct image *i, struct try *t)
{
  struct image_request *r = t->request;

  t->lost = false;
  int err = take_connection (i, t);
  if (err != 0 || t->connection == NULL)
    return err;
  if (r->action == IMAGE_FLUSH)
    err = flush (i, t);
  else {
    struct image_request without_fua = *r;
    without_fua.flags &= ~LIBNBD_CMD_FLAG_FUA;
    err = request_send (t->connection, t->flush_after ? &without_fua : r);
    t->lost = err != 0 && server_is_lost (t->connection, err);
    if (err == 0 && t->flush_after)
      err = flush (i, t);
    else if (err != 0 && !t->lost && t->change != NULL)
      settle_failed_change (i, t, err);
  }
  give_connection_back (i, t, err);
  return err;
}

/* ---- the recovery ---------------------------------------------------------------------------- */

void
image_use_server (struct image *i)
{
  for (unsigned n = 0; n < i->server.nr_connections; n++)
    i->idle[n] = i->server.connection[n];
  i->nr_idle = i->server.nr_connections;
}

void
image_change_state (struct image *i, enum image_state state)
{
  i->state = state;
  pthread_cond_broadcast (&i->changed);
  pthread_cond_broadcast (&i->free_connection);
}

/* A connection to the server GENERATION has failed, or it was lent and returned.  Returns when
 * there is a new one, or will be none. */
static void
recover (struct image *i, uint64_t generation)
{
  struct change *gone = NULL;

  pthread_mutex_lock (&i->lock);
  bool returned = i->state == RETURNED;
  if ((i->state == RUNS || returned) && i->generation == generation) {
    i->state = RECOVERS;
    server_kill (&i->server);
    while (i->users > 0)
      pthread_cond_wait (&i->changed, &i->lock);
    pthread_mutex_unlock (&i->lock);
    bool runs = recovery_start (i, returned);
    pthread_mutex_lock (&i->lock);
    i->nr_idle = 0;
    if (runs) {
      image_use_server (i);
      gone = log_flushed (&i->log, log_mark (&i->log));
    }
    i->generation++;
    image_change_state (i, runs ? RUNS : returned ? RETURNED : LOST);
  }
  while (i->state == RECOVERS)
    pthread_cond_wait (&i->changed, &i->lock);
  pthread_mutex_unlock (&i->lock);
  change_free (gone);
}

/* 0 or an errno. */
static int
send_until_done (struct image *i, struct try *t)
{
  for (unsigned times = 0;; times++) {
    int err = send_once (i, t);
    if (!t->lost)
      return err;
    recover (i, t->generation);
    if (times == MAX_REPEATS) {
      nbdkit_error ("%s: qemu-nbd has ended %u times during one request at offset %" PRIu64
                    ": that request fails",
                    i->options.path, times + 1, t->request->offset);
      return EIO;
    }
  }
}

/* ---- changes --------------------------------------------------------------------------------- */

/* The lock is held, and this thread has set i->flushing.  0 or an errno. */
static int
flush_for_room (struct image *i)
{
  struct image_request r = { .action = IMAGE_FLUSH };
  struct try t = { .request = &r };

  pthread_mutex_unlock (&i->lock);
  int err = send_until_done (i, &t);
  pthread_mutex_lock (&i->lock);
  i->flushing = false;
  if (err != 0)
    i->flush_error = err;
  pthread_cond_broadcast (&i->changed);
  return err;
}

/* Wait until C may begin.  0 or an errno. */
static int
begin_change (struct image *i, struct try *t, struct change *c)
{
  int err = 0;

  pthread_mutex_lock (&i->lock);
  while (err == 0) {
    bool has_room = log_has_room (&i->log, c, LOG_LIMIT);
    if (i->state == LOST)
      err = EIO;
    else if (has_room && !log_collides (&i->log, c->offset, c->count))
      break;
    else if (!has_room && !i->flushing && i->log.first != NULL) {
      i->flushing = true;
      err = flush_for_room (i);
    } else
      pthread_cond_wait (&i->changed, &i->lock);
  }
  if (err == 0) {
    log_begin (&i->log, c);
    t->change = c;
    t->flush_after = (t->request->flags & LIBNBD_CMD_FLAG_FUA) != 0
                     && log_overlaps (&i->log, c->offset, c->count);
  }
  pthread_mutex_unlock (&i->lock);
  return err;
}

/* A change has ended well. */
static void
keep_log_short (struct image *i)
{
  pthread_mutex_lock (&i->lock);
  if (i->log.size > LOG_LIMIT / 2 && !i->flushing && i->log.first != NULL) {
    i->flushing = true;
    flush_for_room (i);
  }
  pthread_mutex_unlock (&i->lock);
}

static int
change (struct image *i, struct image_request *r)
{
  struct try t = { .request = r };
  struct change *c = request_change (r);

  if (c == NULL)
    return ENOMEM;
  int err = begin_change (i, &t, c);
  if (err != 0) {
    change_free (c);
    return err;
  }
  err = send_until_done (i, &t);
  if (t.change != NULL) { /* given up */
    pthread_mutex_lock (&i->lock);
    c = end_change (i, &t, false);
    pthread_mutex_unlock (&i->lock);
    change_free (c);
  }
  if (err == 0)
    keep_log_short (i);
  return err;
}

static int
flush_for_guest (struct image *i, struct image_request *r)
{
  struct try t = { .request = r };
  int err = send_until_done (i, &t);

  pthread_mutex_lock (&i->lock);
  if (err == 0)
    err = i->flush_error;
  i->flush_error = 0;
  pthread_mutex_unlock (&i->lock);
  return err;
}

int
image_do (struct image *i, struct image_request *r)
{
  struct try t = { .request = r };

  if (r->action == IMAGE_WRITE || r->action == IMAGE_ZERO || r->action == IMAGE_TRIM)
    return change (i, r);
  return r->action == IMAGE_FLUSH ? flush_for_guest (i, r) : send_until_done (i, &t);
}

/* ---- beginning and end ----------------------------------------------------------------------- */

struct image *
image_open (const struct image_options *o, char **error)
{
  struct image *i = calloc (1, sizeof *i);

  if (i == NULL) {
    text_error (error, "%s: %s", o->path, strerror (errno));
    return NULL;
  }
  i->options = *o;
  int r = stat (o->path, &i->file) == 0
              ? server_start (&i->server, o, clock_ms () + FIRST_START_MS, error)
              : text_error (error, "%s: %s", o->path, strerror (errno));
  if (r == -1) {
    free (i);
    return NULL;
  }
  i->facts = i->server.facts;
  pthread_mutex_init (&i->lock, NULL);
  pthread_cond_init (&i->free_connection, NULL);
  pthread_cond_init (&i->changed, NULL);
  image_use_server (i);
  return i;
}

void
image_close (struct image *i)
{
  struct image_request r = { .action = IMAGE_FLUSH };

  /* The server may have died after the last request. */
  int err = i->state == RUNS && i->log.first != NULL ? image_do (i, &r) : 0;
  if (err != 0)
    nbdkit_error ("%s: the last flush failed: %s", i->options.path, strerror (err));
  if (i->state == RUNS && !server_leave (&i->server, LEAVE_MS))
    nbdkit_error ("%s: qemu-nbd still writes after %d s, it is left alone", i->options.path,
                  LEAVE_MS / 1000);
  change_free (i->log.first);
  pthread_cond_destroy (&i->changed);
  pthread_cond_destroy (&i->free_connection);
  pthread_mutex_destroy (&i->lock);
  free (i);
}

const struct image_facts *
image_facts (const struct image *i)
{
  return &i->facts;
}
