/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Verification of a live copy.  See live-verify.h.
 *
 * Locks: `lock` protects what both threads use.  It may be held when the engine's is taken
 * (make_dirty), never the other way round.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/text.h"
#include "digest/hash.h"
#include "mirror/endpoint/blocking.h"
#include "mirror/endpoint/buffers.h"
#include "mirror/job/live-verify.h"

#define RUN_BYTES (UINT64_C (4) << 20) /* looked at together, at most */
#define READ_BYTES (256u << 10)
#define QUIET_POLL_MS 10
#define LASTING_NS (30 * NS_PER_S)
#define VAIN_ROUNDS 4      /* so many that have verified little: the rest is in use */
#define ROUND_PAUSE_MS 500 /* blocks that were in use get a flush in the meantime */
#define SLICE_MS 100
#define END_NS ((uint64_t)(2 * NS_PER_S))

struct live_verify {
  /* Constant. */
  struct engine *engine;
  const struct region_geometry *geo;
  struct endpoint *source;
  char *const *dest_argv;
  unsigned nr_dest;
  struct endpoint_options options;
  pthread_t thread;

  /* The thread's. */
  struct digest_key key;
  bool digests;        /* the destination's are compared, else bytes */
  uint64_t run_blocks; /* looked at together, at most */
  struct endpoint *dest;
  struct channel *source_ch, *dest_ch;
  uint8_t *buffer;  /* of the source: READ_BYTES, or the whole run where bytes are compared */
  uint8_t *theirs;  /* of the destination: digests, or bytes */
  uint8_t *ours;    /* digests */
  uint64_t *todo;   /* a bit a block: not verified yet */
  uint64_t nr_todo; /* blocks */
  struct untouched look;
  uint8_t differs[UNTOUCHED_MAX];
  bool dest_done;
  int dest_error;

  pthread_mutex_t lock;
  bool stop;
  struct live_verify_view view;
  uint64_t quiet_ns;
  char *error;
};

/* ---- between the threads --------------------------------------------------------------------- */

static bool
stopped (struct live_verify *v)
{
  pthread_mutex_lock (&v->lock);
  bool stop = v->stop;
  pthread_mutex_unlock (&v->lock);
  return stop;
}

static void
fail (struct live_verify *v, const char *why)
{
  pthread_mutex_lock (&v->lock);
  if (v->error == NULL)
    v->error = text_copy (why);
  v->stop = true;
  pthread_mutex_unlock (&v->lock);
}

/* Wait until nothing that was in flight at SINCE_NS still is, as long as there is a chance. */
static void
wait_until_quiet (struct live_verify *v, uint64_t since_ns)
{
  bool quiet = false;

  while (!quiet && clock_ns () - since_ns < (uint64_t)LASTING_NS) {
    pthread_mutex_lock (&v->lock);
    quiet = v->quiet_ns >= since_ns || v->stop;
    v->view.wants_quiet = !quiet;
    pthread_mutex_unlock (&v->lock);
    if (!quiet) {
      engine_notify (v->engine);
      clock_sleep_ms (QUIET_POLL_MS);
    }
  }
  pthread_mutex_lock (&v->lock);
  v->view.wants_quiet = false;
  pthread_mutex_unlock (&v->lock);
}

/* A run of blocks is different. */
static void
make_dirty (struct live_verify *v, uint64_t first, uint64_t count)
{
  pthread_mutex_lock (&v->lock);
  if (!v->stop) {
    if (v->view.mismatches == 0)
      v->view.offset = first << v->geo->block_shift;
    v->view.mismatches += count;
    untouched_copy_again (v->engine, first, count);
  }
  pthread_mutex_unlock (&v->lock);
}

/* ---- looking at a run ------------------------------------------------------------------------ */

static void
on_dest (void *opaque, int err)
{
  struct live_verify *v = opaque;

  v->dest_error = err;
  v->dest_done = true;
}

/* Let the destination's request wait for as long as the bandwidth limit says. */
static void
pay (struct live_verify *v, uint64_t bytes)
{
  uint64_t wait;

  while (!stopped (v) && (wait = untouched_pay (v->engine, bytes)) > 0)
    clock_sleep_ms (wait / NS_PER_MS < SLICE_MS ? (unsigned)(wait / NS_PER_MS) + 1 : SLICE_MS);
}

static int
ask_dest (struct live_verify *v, uint64_t offset, uint64_t length)
{
  uint32_t min = endpoint_info (v->dest)->min_block;
  uint64_t from = v->digests ? offset / v->key.block * DIGEST_SIZE : offset;
  uint64_t n
      = v->digests ? digest_count (&v->key, length) * DIGEST_SIZE : (length + min - 1) / min * min;

  v->dest_done = false;
  v->dest_error = 0;
  return channel_read (v->dest_ch, v->theirs, (uint32_t)n, from, on_dest, v) == -1 ? errno : 0;
}

/* Read the source meanwhile. */
static int
read_source (struct live_verify *v, uint64_t offset, uint64_t length)
{
  uint32_t min = endpoint_info (v->source)->min_block;

  for (uint64_t at = 0; at < length;) {
    uint32_t n = length - at < READ_BYTES ? (uint32_t)(length - at) : READ_BYTES;
    uint8_t *to = v->digests ? v->buffer : v->buffer + at;
    int err = sync_read (v->source_ch, to, (n + min - 1) / min * min, offset + at);
    if (err)
      return err;
    if (v->digests)
      digest_blocks (&v->key, to, n, v->ours + at / v->key.block * DIGEST_SIZE);
    at += n;
  }
  return 0;
}

static int
wait_for_dest (struct live_verify *v)
{
  while (!v->dest_done) {
    struct pollfd fds[CHANNEL_MAX_FDS];
    int timeout = 1000;
    unsigned n = channel_pollfds (v->dest_ch, fds, CHANNEL_MAX_FDS, &timeout);
    if (poll (fds, n, timeout) == -1 && errno != EINTR)
      return errno;
    if (channel_dispatch (v->dest_ch, fds, n) == -1 && !v->dest_done)
      return ESHUTDOWN;
  }
  return v->dest_error;
}

/* Read both sides.  False if the verification has failed. */
static bool
read_both (struct live_verify *v, uint64_t offset, uint64_t length)
{
  pay (v, v->digests ? digest_count (&v->key, length) * DIGEST_SIZE : length);
  int err = ask_dest (v, offset, length);
  int source_err = err ? 0 : read_source (v, offset, length);
  if (!err)
    err = wait_for_dest (v); /* also after an error of the source: the buffer is in use */
  if (!err && !source_err)
    return true;
  const char *why = channel_error (err ? v->dest_ch : v->source_ch);
  CLEANUP_TEXT char *text = text_printf ("%s: cannot read at offset %" PRIu64 ": %s",
                                         endpoint_name (err ? v->dest : v->source), offset,
                                         why ? why : strerror (err ? err : source_err));
  fail (v, text);
  return false;
}

/* Note which blocks differ.  How many. */
static uint64_t
compare (struct live_verify *v, uint64_t length)
{
  uint64_t nr = 0;

  for (uint64_t i = 0; i < v->look.count; i++) {
    uint64_t at = i << v->geo->block_shift;
    uint64_t n = length - at < v->geo->block_size ? length - at : v->geo->block_size;
    v->differs[i]
        = v->digests
              ? memcmp (v->ours + i * DIGEST_SIZE, v->theirs + i * DIGEST_SIZE, DIGEST_SIZE) != 0
              : memcmp (v->buffer + at, v->theirs + at, n) != 0;
    nr += v->differs[i];
  }
  return nr;
}

static bool
is_todo (const struct live_verify *v, uint64_t block)
{
  return v->todo[block / 64] & UINT64_C (1) << block % 64;
}

/* What the look has shown. */
static void
settle (struct live_verify *v)
{
  const struct untouched *u = &v->look;
  uint64_t verified = 0;

  for (uint64_t i = 0; i < u->count; i++) {
    uint64_t block = u->first + i, run = 0;
    if (!untouched_is (u, i))
      continue;
    while (i + run < u->count && untouched_is (u, i + run) && v->differs[i + run])
      run++;
    if (run > 0) {
      make_dirty (v, block, run);
      i += run - 1;
    } else if (is_todo (v, block)) {
      v->todo[block / 64] &= ~(UINT64_C (1) << block % 64);
      v->nr_todo--;
      verified += region_bytes (v->geo, block, 1);
    }
  }
  pthread_mutex_lock (&v->lock);
  v->view.verified_bytes += verified;
  pthread_mutex_unlock (&v->lock);
}

static void
verify_run (struct live_verify *v, uint64_t first, uint64_t count)
{
  uint64_t offset = first << v->geo->block_shift, length = region_bytes (v->geo, first, count);

  untouched_begin (v->engine, &v->look, first, count);
  bool good = read_both (v, offset, length);
  uint64_t now = clock_ns ();
  if (good && compare (v, length) > 0)
    wait_until_quiet (v, now);
  untouched_end (v->engine, &v->look);
  if (good && !stopped (v))
    settle (v);
}

/* ---- beginning ------------------------------------------------------------------------------- */

/* The destination, to be read: its digests if it serves them. */
static int
open_dest (struct live_verify *v, char **error)
{
  struct endpoint_options o = { .connect_timeout_ms = v->options.connect_timeout_ms,
                                .request_timeout_ms = v->options.request_timeout_ms,
                                .digests = &v->key };
  uint64_t size = v->geo->disk_size;
  char *why = NULL;

  if (v->nr_dest != 1)
    return text_error (error, "a destination that is a command has one connection only");
  v->dest = endpoint_open (v->dest_argv, v->nr_dest, &o, NULL, &why);
  text_free (why);
  /* Where the destination is larger, the digest of a short last block is of more than that. */
  if (v->dest != NULL && endpoint_info (v->dest)->digests_of != size && size % v->key.block != 0) {
    endpoint_close (v->dest);
    v->dest = NULL;
  }
  v->digests = v->dest != NULL;
  o.digests = NULL;
  if (v->dest == NULL)
    v->dest = endpoint_open (v->dest_argv, v->nr_dest, &o, NULL, error);
  if (v->dest == NULL)
    return -1;
  const struct endpoint_info *info = endpoint_info (v->dest);
  if ((v->digests ? info->digests_of : info->size) < size)
    return text_error (error, "%s is smaller than the disk", endpoint_name (v->dest));
  return 0;
}

static int
prepare (struct live_verify *v, char **error)
{
  uint64_t nr_words = (v->geo->nr_blocks + 63) / 64;

  if (open_dest (v, error) == -1)
    return -1;
  v->run_blocks = RUN_BYTES >> v->geo->block_shift;
  uint64_t most = v->digests ? RUN_BYTES : endpoint_info (v->dest)->max_request;
  while (v->run_blocks > 1 && v->run_blocks << v->geo->block_shift > most)
    v->run_blocks /= 2;
  v->buffer = buffers_new (RUN_BYTES);
  v->theirs = buffers_new (RUN_BYTES);
  v->ours = malloc (UNTOUCHED_MAX * DIGEST_SIZE);
  v->todo = malloc (nr_words * sizeof *v->todo + 1);
  if (v->buffer == NULL || v->theirs == NULL || v->ours == NULL || v->todo == NULL)
    return text_error (error, "out of memory");
  memset (v->todo, 0xff, nr_words * sizeof *v->todo);
  v->nr_todo = v->geo->nr_blocks;
  v->source_ch = channel_open (v->source, NULL, error);
  if (v->source_ch == NULL)
    return -1;
  v->dest_ch = channel_open (v->dest, NULL, error);
  return v->dest_ch == NULL ? -1 : 0;
}

/* ---- the thread ------------------------------------------------------------------------------ */

/* The next run that is to be looked at, from *FIRST on.  Returns its length in blocks, 0 if there
 * is none. */
static uint64_t
next_run (const struct live_verify *v, uint64_t *first)
{
  uint64_t block = *first, nr = v->geo->nr_blocks;

  while (block < nr && !is_todo (v, block))
    block += v->todo[block / 64] == 0 ? 64 - block % 64 : 1;
  if (block >= nr)
    return 0;
  *first = block;
  /* What is verified already and lies in between is read once more: long requests are fast. */
  uint64_t end = (block / v->run_blocks + 1) * v->run_blocks, last = block;
  for (uint64_t i = block; i < end && i < nr; i++)
    if (is_todo (v, i))
      last = i;
  return last - block + 1;
}

static void
one_round (struct live_verify *v)
{
  uint64_t first = 0, count;

  while (!stopped (v) && (count = next_run (v, &first)) > 0) {
    verify_run (v, first, count);
    first += count;
  }
}

/* Until all is verified, or what is left is in use all the time. */
static void
all_rounds (struct live_verify *v)
{
  unsigned vain = 0;

  for (unsigned round = 0; v->nr_todo > 0 && vain < VAIN_ROUNDS && !stopped (v); round++) {
    uint64_t before = v->nr_todo;
    for (unsigned ms = 0; round > 0 && ms < ROUND_PAUSE_MS && !stopped (v); ms += SLICE_MS)
      clock_sleep_ms (SLICE_MS);
    one_round (v);
    vain = v->nr_todo > before / 8 * 7 ? vain + 1 : 0;
  }
}

static void *
run (void *opaque)
{
  struct live_verify *v = opaque;
  char *error = NULL;

  if (prepare (v, &error) == 0) {
    pthread_mutex_lock (&v->lock);
    v->view.digests = v->digests;
    pthread_mutex_unlock (&v->lock);
    all_rounds (v);
  } else
    fail (v, error);
  text_free (error);
  if (v->dest_ch != NULL)
    channel_close (v->dest_ch);
  if (v->source_ch != NULL)
    channel_close (v->source_ch);
  if (v->dest != NULL)
    endpoint_close (v->dest);
  pthread_mutex_lock (&v->lock);
  v->view.unsettled_bytes = v->nr_todo << v->geo->block_shift;
  v->view.error = v->error;
  v->view.state = v->stop ? LIVE_VERIFY_FAILED : LIVE_VERIFY_DONE;
  pthread_mutex_unlock (&v->lock);
  engine_notify (v->engine);
  return NULL;
}

/* ---- for the job's thread -------------------------------------------------------------------- */

static void
free_all (struct live_verify *v)
{
  free (v->buffer);
  free (v->theirs);
  free (v->ours);
  free (v->todo);
  text_free (v->error);
  pthread_mutex_destroy (&v->lock);
  free (v);
}

struct live_verify *
live_verify_start (struct engine *engine, struct endpoint *source, char *const *dest,
                   unsigned nr_dest, const struct endpoint_options *options, char **error)
{
  struct live_verify *v = calloc (1, sizeof *v);

  if (v == NULL) {
    text_error (error, "out of memory");
    return NULL;
  }
  pthread_mutex_init (&v->lock, NULL);
  v->engine = engine;
  v->geo = &engine->region->geo;
  v->source = source;
  v->dest_argv = dest;
  v->nr_dest = nr_dest;
  v->options = *options;
  v->key.block = v->geo->block_size;
  if (getrandom (&v->key.seed, sizeof v->key.seed, 0) != (ssize_t)sizeof v->key.seed)
    text_error (error, "no random number: %s", strerror (errno));
  else {
    int err = pthread_create (&v->thread, NULL, run, v);
    if (err == 0)
      return v;
    text_error (error, "no thread: %s", strerror (err));
  }
  free_all (v);
  return NULL;
}

struct live_verify_view
live_verify_look (struct live_verify *v)
{
  pthread_mutex_lock (&v->lock);
  struct live_verify_view view = v->view;
  pthread_mutex_unlock (&v->lock);
  return view;
}

void
live_verify_quiet (struct live_verify *v, uint64_t since_ns)
{
  pthread_mutex_lock (&v->lock);
  if (since_ns > v->quiet_ns)
    v->quiet_ns = since_ns;
  pthread_mutex_unlock (&v->lock);
}

void
live_verify_stop (struct live_verify *v, const char *why)
{
  fail (v, why);
}

bool
live_verify_end (struct live_verify *v)
{
  if (v == NULL)
    return true;
  fail (v, "ended");
  struct timespec until = clock_timespec ((uint64_t)clock_date_us () * NS_PER_US + END_NS);
  if (pthread_timedjoin_np (v->thread, NULL, &until) != 0)
    return false;
  free_all (v);
  return true;
}
