/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See stream.h.
 *
 *   a piece     from a stream                         to a stream
 *   FREE        it may be filled                      it may be read
 *   FILLING     bytes of the stream come into it      -
 *   BUSY        it is being written                   it is being read
 *   FULL        -                                     its bytes go into the stream
 *
 * Pieces are used in the order of their offsets: `next` is the one to begin with next, `oldest` the
 * one whose bytes go into the stream next.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "base/zero.h"
#include "mirror/endpoint/blocking.h"
#include "mirror/endpoint/buffers.h"
#include "mirror/endpoint/null.h"
#include "mirror/engine/allowance.h"
#include "mirror/engine/session.h"
#include "mirror/job/budget-status.h"
#include "mirror/job/stream.h"

#define PIECE_BYTES (256u << 10) /* or less, where the endpoint takes no more */
#define PIECES 16u
/* As in flush-turns.c: the last flush must end within the time limit of a request. */
#define FLUSH_BYTES (UINT64_C (4) << 30)
#define TICK_MS 100
#define WRITE_BYTES 65536u /* to a stream that may make us wait, at a time */

enum piece_state { PIECE_FREE, PIECE_FILLING, PIECE_BUSY, PIECE_FULL };

struct piece {
  struct stream *of;
  enum piece_state state;
  uint8_t *buf;
  uint32_t len, pos; /* bytes; POS of them have gone into the stream */
  uint64_t offset;
};

struct stream {
  const struct copy_options *o;
  bool to_stream;
  int fd;
  int own_fd; /* the same stream opened again, so that it does not block; or -1 */
  bool is_socket;
  struct endpoint *ep;
  struct channel *ch;
  struct allowance allowance;
  uint8_t *buffers;
  struct piece pieces[PIECES];
  uint32_t piece_bytes; /* of a full piece: whole blocks of the endpoint */
  unsigned next, oldest, nr_busy;
  uint64_t offset;    /* of the next piece */
  bool ended;         /* the stream, or the endpoint that is read */
  bool zero_last;     /* the last piece was written as zeroes */
  bool extended;      /* extend() was called */
  uint64_t unflushed; /* bytes, since a flush was begun */
  bool flushing;      /* one is in flight */
  bool last_flush;    /* that which covers everything was begun */
  uint64_t sent, saved, zeroes, start_ns;
  enum job_result result; /* if ERROR */
  char *error;
};

/* ---- errors --------------------------------------------------------------------------------- */

__attribute__ ((format (printf, 3, 4))) static void
fail (struct stream *s, enum job_result result, const char *format, ...)
{
  if (s->error != NULL)
    return;
  va_list args;
  va_start (args, format);
  s->error = text_vprintf (format, args);
  va_end (args);
  s->result = result;
}

static enum job_result
endpoint_fault (const struct stream *s)
{
  return s->to_stream ? JOB_FAILED : JOB_DEST_FAILED;
}

static void
request_failed (struct stream *s, const char *what, uint64_t offset, int err)
{
  fail (s, endpoint_fault (s), "%s: %s at offset %" PRIu64 ": %s", endpoint_name (s->ep), what,
        offset, channel_error (s->ch) != NULL ? channel_error (s->ch) : strerror (err));
}

/* ---- from a stream -------------------------------------------------------------------------- */

static void
on_written (void *opaque, int err)
{
  struct piece *p = opaque;

  p->of->nr_busy--;
  p->state = PIECE_FREE;
  if (err)
    request_failed (p->of, "write", p->offset, err);
}

/* The destination takes whole blocks only: behind an odd end goes what it has there.  Returns how
 * many bytes to write. */
static uint32_t
pad (struct stream *s, struct piece *p)
{
  uint32_t min = endpoint_info (s->ep)->min_block, odd = p->len % min;

  if (odd == 0)
    return p->len;
  uint8_t *block = buffers_new (min);
  int err = block == NULL ? ENOMEM : sync_read (s->ch, block, min, p->offset + p->len - odd);
  if (err)
    request_failed (s, "read of the last block", p->offset + p->len - odd, err);
  else
    memcpy (p->buf + p->len, block + odd, min - odd);
  free (block);
  return p->len + min - odd;
}

/* Start writing P.  False after a failure. */
static bool
start_write (struct stream *s, struct piece *p, bool zero)
{
  bool thick = s->o->sparse == ENGINE_SPARSE_NEVER;
  uint32_t len = zero ? p->len : pad (s, p);

  if (s->error != NULL)
    return false;
  p->state = PIECE_BUSY;
  s->nr_busy++;
  int r = 0;
  if (!zero)
    r = channel_write (s->ch, p->buf, len, p->offset, on_written, p);
  else if (thick)
    r = channel_zero_allocated (s->ch, len, p->offset, on_written, p);
  else if (s->o->dest_is_zero)
    on_written (p, 0);
  else
    r = channel_zero (s->ch, len, p->offset, on_written, p);
  if (r == -1)
    on_written (p, errno);
  return r == 0;
}

static void
on_flushed (void *opaque, int err)
{
  struct stream *s = opaque;

  s->flushing = false;
  if (err)
    request_failed (s, "flush", s->offset, err);
}

static void
begin_flush (struct stream *s)
{
  s->flushing = true;
  s->unflushed = 0;
  if (channel_flush (s->ch, on_flushed, s) == -1)
    on_flushed (s, errno);
}

/* Write what the stream has filled. */
static void
send_piece (struct stream *s, struct piece *p)
{
  const struct endpoint_info *info = endpoint_info (s->ep);

  if (p->offset + p->len > info->size) {
    fail (s, JOB_REFUSED, "%s is too small: it has %" PRIu64 " bytes, and the stream has more",
          endpoint_name (s->ep), info->size);
    return;
  }
  bool zero = p->len == s->piece_bytes && info->can_zero && all_zero (p->buf, p->len);
  if (!start_write (s, p, zero))
    return;
  s->zero_last = zero;
  *(zero ? &s->zeroes : &s->sent) += p->len;
  if (!zero)
    allowance_take (&s->allowance, p->len, clock_ns ());
  s->offset += p->len;
  s->next = (s->next + 1) % PIECES;
  s->unflushed += p->len;
  if (s->unflushed >= FLUSH_BYTES && info->can_flush && !s->flushing)
    begin_flush (s);
}

static bool
may_receive (const struct stream *s)
{
  enum piece_state state = s->pieces[s->next].state;

  return !s->ended && (state == PIECE_FREE || state == PIECE_FILLING);
}

/* The stream has bytes, or has ended. */
static void
receive (struct stream *s)
{
  struct piece *p = &s->pieces[s->next];

  if (p->state == PIECE_FREE)
    *p = (struct piece){ .of = s, .state = PIECE_FILLING, .buf = p->buf, .offset = s->offset };
  ssize_t n = read (s->fd, p->buf + p->len, s->piece_bytes - p->len);
  if (n == -1 && (errno == EINTR || errno == EAGAIN))
    return;
  if (n == -1) {
    fail (s, JOB_FAILED, "standard input: %s", strerror (errno));
    return;
  }
  p->len += (uint32_t)n;
  s->ended = n == 0;
  if (p->len == s->piece_bytes || (s->ended && p->len > 0))
    send_piece (s, p);
}

/* A local file that ends with zeroes does not have their length yet. */
static void
extend (struct stream *s)
{
  struct piece *p = &s->pieces[s->next];

  s->extended = true;
  if (!s->zero_last || endpoint_info (s->ep)->is_nbd)
    return;
  *p = (struct piece){ .of = s, .buf = p->buf, .len = 1, .offset = s->offset - 1 };
  p->buf[0] = 0;
  p->state = PIECE_BUSY;
  s->nr_busy++;
  if (channel_write (s->ch, p->buf, 1, p->offset, on_written, p) == -1)
    on_written (p, errno);
}

/* Returns true when everything is written and flushed. */
static bool
advance_from_stream (struct stream *s)
{
  if (!s->ended || s->nr_busy > 0 || s->flushing)
    return false;
  if (!s->extended)
    extend (s);
  if (s->nr_busy > 0 || s->error != NULL)
    return false;
  if (!endpoint_info (s->ep)->can_flush || s->last_flush)
    return true;
  s->last_flush = true;
  begin_flush (s);
  return false;
}

/* ---- to a stream ---------------------------------------------------------------------------- */

static void
on_read (void *opaque, int err)
{
  struct piece *p = opaque;

  p->of->nr_busy--;
  p->state = PIECE_FULL;
  if (err)
    request_failed (p->of, "read", p->offset, err);
}

static bool
may_send (const struct stream *s)
{
  return s->pieces[s->oldest].state == PIECE_FULL;
}

/* The stream takes bytes. */
static void
send_to_stream (struct stream *s)
{
  struct piece *p = &s->pieces[s->oldest];
  const uint8_t *from = p->buf + p->pos;
  size_t left = p->len - p->pos;
  ssize_t n;

  if (s->is_socket)
    n = send (s->fd, from, left, MSG_DONTWAIT | MSG_NOSIGNAL);
  else if (s->own_fd != -1)
    n = write (s->own_fd, from, left);
  else
    n = write (s->fd, from, left < WRITE_BYTES ? left : WRITE_BYTES);
  if (n == -1 && (errno == EINTR || errno == EAGAIN))
    return;
  if (n == -1) {
    fail (s, JOB_FAILED, "standard output: %s", strerror (errno));
    return;
  }
  s->sent += (uint64_t)n;
  p->pos += (uint32_t)n;
  if (p->pos < p->len)
    return;
  p->state = PIECE_FREE;
  s->oldest = (s->oldest + 1) % PIECES;
}

/* Ask for the next pieces.  Returns true when the stream has got everything, and a file holds it.
 */
static bool
advance_to_stream (struct stream *s)
{
  uint64_t size = endpoint_info (s->ep)->size;

  while (s->offset < size && s->pieces[s->next].state == PIECE_FREE && channel_room (s->ch) > 0
         && allowance_wait (&s->allowance, clock_ns ()) == 0) {
    struct piece *p = &s->pieces[s->next];
    uint64_t left = size - s->offset;
    *p = (struct piece){ .of = s,
                         .state = PIECE_BUSY,
                         .buf = p->buf,
                         .len = left < s->piece_bytes ? (uint32_t)left : s->piece_bytes,
                         .offset = s->offset };
    s->nr_busy++;
    if (channel_read (s->ch, p->buf, p->len, p->offset, on_read, p) == -1) {
      on_read (p, errno);
      return false;
    }
    allowance_take (&s->allowance, p->len, clock_ns ());
    s->offset += p->len;
    s->next = (s->next + 1) % PIECES;
  }
  if (s->offset < size || s->sent < size)
    return false;
  /* A pipe has nothing to flush, and says so. */
  if (fdatasync (s->fd) == -1 && errno != EINVAL && errno != EROFS && errno != ENOTSUP)
    fail (s, JOB_FAILED, "standard output: %s", strerror (errno));
  return true;
}

/* ---- the whole ------------------------------------------------------------------------------ */

static json_t *
make_status (const struct stream *s, const char *state)
{
  double total = (double)(clock_ns () - s->start_ns) / NS_PER_S;
  bool completed = strcmp (state, "completed") == 0;
  uint64_t done = s->to_stream ? s->sent : s->offset;
  json_t *size = s->to_stream ? json_integer ((json_int_t)endpoint_info (s->ep)->size)
                 : completed  ? json_integer ((json_int_t)s->offset)
                              : json_null ();
  json_t *left = s->to_stream ? json_integer ((json_int_t)(endpoint_info (s->ep)->size - s->sent))
                              : json_null ();
  json_t *rate = total > 0 ? json_real ((double)done / total) : json_null ();

  json_t *o = json_pack ("{s:s, s:I, s:o, s:o, s:I, s:I, s:I, s:I, s:o, s:f}", "state", state,
                         "pass", (json_int_t)1, "size", size, "dirty-bytes", left, "sent-bytes",
                         (json_int_t)s->sent, "wire-bytes", (json_int_t)(s->sent - s->saved),
                         "zero-bytes", (json_int_t)s->zeroes, "bandwidth-limit",
                         (json_int_t)s->o->rate_limit, "bandwidth", rate, "total-s", total);
  budget_status_add (o, s->o->budget);
  return o;
}

/* Open the endpoint.  False: s->error says why not. */
static bool
open_endpoint (struct stream *s)
{
  const struct copy_options *o = s->o;
  struct endpoint_options opts = o->dest.endpoint;
  char *const *name = s->to_stream ? o->source : o->dest.dest;
  unsigned nr = s->to_stream ? o->nr_source : o->dest.nr_dest;
  char *error = NULL;
  int errnum = 0;

  opts.writable = opts.create = opts.grows = !s->to_stream;
  if (s->to_stream && nr == 1)
    endpoint_read_others (&opts);
  if (nr == 1 && strcmp (name[0], ENDPOINT_NULL) == 0) {
    opts.create_size = INT64_MAX;
    s->ep = endpoint_null_open (&opts, &errnum, &error);
  } else
    s->ep = endpoint_open (name, nr, &opts, &errnum, &error);
  if (s->ep != NULL)
    s->ch = channel_open (s->ep, &errnum, &error);
  if (s->ch == NULL)
    fail (s, errnum == EROFS || errnum == ENDPOINT_BAD_NAME ? JOB_REFUSED : endpoint_fault (s),
          "%s", error);
  text_free (error);
  error = s->ch != NULL && !s->to_stream
              ? session_refusal (s->ep, 0, PIECE_BYTES, o->dest.allow_no_flush)
              : NULL;
  if (error != NULL)
    fail (s, JOB_REFUSED, "refused: %s", error);
  text_free (error);
  return s->error == NULL;
}

/* A pipe is opened once more, so that writing to it never blocks, and whoever shares our standard
 * output is not affected. */
static void
look_at_stream (struct stream *s)
{
  struct stat st;

  s->own_fd = -1;
  if (fstat (s->fd, &st) == -1)
    return;
  s->is_socket = S_ISSOCK (st.st_mode);
  if (s->to_stream && S_ISFIFO (st.st_mode)) {
    CLEANUP_TEXT char *path = text_printf ("/proc/self/fd/%d", s->fd);
    s->own_fd = open (path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
  }
}

static bool
prepare (struct stream *s)
{
  if (!open_endpoint (s))
    return false;
  const struct endpoint_info *info = endpoint_info (s->ep);
  s->piece_bytes = info->max_request < PIECE_BYTES ? info->max_request : PIECE_BYTES;
  uint32_t room = s->piece_bytes + info->min_block;
  room += 4096 - room % 4096;
  s->buffers = buffers_new ((size_t)room * PIECES);
  if (s->buffers == NULL) {
    fail (s, JOB_FAILED, "out of memory");
    return false;
  }
  for (unsigned i = 0; i < PIECES; i++)
    s->pieces[i] = (struct piece){ .of = s, .buf = s->buffers + (size_t)i * room };
  allowance_init (&s->allowance, s->o->rate_limit, s->o->budget, clock_ns ());
  look_at_stream (s);
  return true;
}

/* Could more go over the line now?  Only then the budget is asked, whose share is for those who
 * have something to send. */
static bool
has_work (struct stream *s)
{
  struct pollfd input = { .fd = s->fd, .events = POLLIN };

  if (s->to_stream)
    return s->offset < endpoint_info (s->ep)->size && s->pieces[s->next].state == PIECE_FREE;
  return may_receive (s) && poll (&input, 1, 0) == 1;
}

/* Wait for something to do, and do it. */
static void
turn (struct stream *s)
{
  struct pollfd fds[2 + CHANNEL_MAX_FDS];
  bool work = has_work (s);
  uint64_t wait = work ? allowance_wait (&s->allowance, clock_ns ()) : 0;
  int timeout = TICK_MS;
  bool ready = s->to_stream ? may_send (s) : wait == 0 && may_receive (s);

  if (wait > 0 && wait < TICK_MS * NS_PER_MS)
    timeout = (int)(wait / NS_PER_MS) + 1;
  fds[0] = (struct pollfd){ .fd = s->o->signal_fd, .events = POLLIN };
  fds[1] = (struct pollfd){ .fd = ready ? s->fd : -1, .events = s->to_stream ? POLLOUT : POLLIN };
  unsigned n = channel_pollfds (s->ch, fds + 2, CHANNEL_MAX_FDS, &timeout);
  if (poll (fds, 2 + n, timeout) == -1 && errno != EINTR) {
    fail (s, JOB_FAILED, "poll: %s", strerror (errno));
    return;
  }
  if (channel_dispatch (s->ch, fds + 2, n) == -1)
    fail (s, endpoint_fault (s), "%s", channel_error (s->ch));
  uint64_t saved = channel_take_saved (s->ch);
  s->saved += saved;
  if (saved > 0)
    allowance_give (&s->allowance, saved);
  if (s->error == NULL && fds[1].revents != 0) {
    if (s->to_stream)
      send_to_stream (s);
    else if (work) /* what has come only now may go when the budget was asked */
      receive (s);
  }
}

static enum job_result
copy (struct stream *s)
{
  uint64_t next = 0;

  while (s->error == NULL) {
    if (atomic_load (s->o->signal) != JOB_SIGNAL_NONE)
      return JOB_CANCELLED;
    if (s->to_stream ? advance_to_stream (s) : advance_from_stream (s))
      break;
    if (s->error == NULL)
      turn (s);
    if (s->o->progress != NULL && clock_ns () >= next) {
      json_t *status = make_status (s, "copying");
      s->o->progress (s->o->opaque, status);
      json_decref (status);
      next = clock_ns () + TICK_MS * NS_PER_MS;
    }
  }
  return s->error == NULL ? JOB_COMPLETED : s->result;
}

enum job_result
stream_run (const struct copy_options *o, int fd, bool to_stream, json_t **report)
{
  struct stream *s = calloc (1, sizeof *s);

  *report = NULL;
  if (s == NULL) {
    o->message (o->opaque, JOB_ERROR, "out of memory");
    return JOB_FAILED;
  }
  *s = (struct stream){ .o = o, .fd = fd, .own_fd = -1, .to_stream = to_stream };
  s->start_ns = clock_ns ();
  enum job_result result = prepare (s) ? copy (s) : s->result;
  if (s->ch != NULL)
    *report = make_status (s, copy_end_name (result));
  if (s->error != NULL)
    o->message (o->opaque, JOB_ERROR, s->error);
  /* Closing completes what is in flight: before the pieces are gone. */
  channel_close (s->ch);
  endpoint_close (s->ep);
  fd_close (&s->own_fd);
  text_free (s->error);
  free (s->buffers);
  free (s);
  return result;
}
