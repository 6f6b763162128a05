/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Comparing two endpoints: which way to do it, and what comes after.  See verify.h.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/text.h"
#include "digest/hash.h"
#include "mirror/endpoint/blocking.h"
#include "mirror/endpoint/buffers.h"
#include "mirror/verify/verify.h"
#include "mirror/verify/walk.h"

#define PIECE (256u << 10) /* read at once: fits in a processor's cache */
#define UNIT 4096u
#define SECTOR 512u
/* Larger blocks mean fewer digests to send; of the first that differs, the whole is read. */
#define BLOCK (64u << 10)

struct verification {
  const struct verify_options *o;
  struct verify_report *report;
  struct endpoint *ep[2]; /* the disks */
  struct channel *ch[2];
  struct endpoint *digest_ep[2]; /* their digests, or NULL */
  struct channel *digest_ch[2];
  struct digest_key key;
  struct walk walk;
  struct range { /* o->differs: what the walk has noted */
    uint64_t offset, length;
  } * noted;
  size_t nr_noted;
  bool no_memory;
};

/* ---- opening --------------------------------------------------------------------------------- */

static int
open_disk (struct verification *v, unsigned side, char **error)
{
  char *const *argv = side == 0 ? v->o->a : v->o->b;
  unsigned nr = side == 0 ? v->o->nr_a : v->o->nr_b;
  struct endpoint_options options = v->o->endpoint;

  options.writable = options.create = false;
  options.ask_digests = !v->o->bytes;
  if (nr == 1)
    endpoint_read_others (&options);
  v->ep[side] = endpoint_open (argv, nr, &options, NULL, error);
  return v->ep[side] == NULL ? -1 : 0;
}

/* Without a channel for its digests the disk is read: so a failure is none. */
static void
open_digests (struct verification *v, unsigned side)
{
  char *const *argv = side == 0 ? v->o->a : v->o->b;
  unsigned nr = side == 0 ? v->o->nr_a : v->o->nr_b;
  struct endpoint_options options = v->o->endpoint;
  char *error = NULL;

  if (v->o->bytes || !endpoint_info (v->ep[side])->has_digests)
    return;
  options.digests = &v->key;
  endpoint_read_others (&options);
  v->digest_ep[side] = endpoint_open (argv, nr, &options, NULL, &error);
  if (v->digest_ep[side] != NULL
      && endpoint_info (v->digest_ep[side])->digests_of == endpoint_info (v->ep[side])->size)
    v->digest_ch[side] = channel_open (v->digest_ep[side], NULL, &error);
  text_free (error);
}

static int
open_channel (struct verification *v, unsigned side, char **error)
{
  if (v->ch[side] == NULL)
    v->ch[side] = channel_open (v->ep[side], NULL, error);
  return v->ch[side] == NULL ? -1 : 0;
}

/* May side SIDE be read and digested here? */
static bool
can_be_digested (const struct verification *v, unsigned side)
{
  const struct endpoint_info *info = endpoint_info (v->ep[side]);

  return info->min_block <= BLOCK && info->max_request >= BLOCK;
}

/* ---- differences ----------------------------------------------------------------------------- */

static void
note (void *opaque, uint64_t offset, uint64_t length)
{
  struct verification *v = opaque;

  if (v->nr_noted % 1024 == 0) {
    struct range *more = realloc (v->noted, (v->nr_noted + 1024) * sizeof *more);
    if (more == NULL) {
      v->no_memory = true;
      return;
    }
    v->noted = more;
  }
  v->noted[v->nr_noted++] = (struct range){ offset, length };
}

/* ---- the walk -------------------------------------------------------------------------------- */

static void
set_side (struct verification *v, unsigned side)
{
  struct walk_side *s = &v->walk.side[side];
  bool digests = v->digest_ch[side] != NULL;

  *s = (struct walk_side){ .walk = &v->walk,
                           .ep = digests ? v->digest_ep[side] : v->ep[side],
                           .ch = digests ? v->digest_ch[side] : v->ch[side],
                           .scale = digests ? BLOCK / DIGEST_SIZE : 1 };
  s->can_status = endpoint_info (s->ep)->can_status;
}

static enum verify_result
run_walk (struct verification *v, uint64_t size, bool by_digests, char **error)
{
  struct walk *w = &v->walk;
  uint32_t piece = PIECE;

  *w = (struct walk){ .size = size,
                      .unit = by_digests ? BLOCK : UNIT,
                      .differs = UINT64_MAX,
                      .note = v->o->differs != NULL ? note : NULL,
                      .opaque = v };
  for (unsigned side = 0; side < 2; side++) {
    set_side (v, side);
    const struct endpoint_info *info = endpoint_info (w->side[side].ep);
    if (info->min_block > w->unit)
      w->unit = info->min_block;
    while (w->side[side].scale == 1 && piece > info->max_request && piece > w->unit)
      piece /= 2;
  }
  if ((by_digests ? by_digests_init (w, &v->key, piece) : by_bytes_init (w, piece)) == -1) {
    text_error (error, "out of memory");
    return VERIFY_FAILED;
  }
  enum verify_result result = walk_all (w, v->o, error);
  v->report->compared_bytes += w->compared_bytes;
  v->report->offset = w->differs;
  return result;
}

/* ---- bytes of one block ---------------------------------------------------------------------- */

/* Tell each piece of LENGTH bytes at OFFSET that differs.  True if there is one. */
static bool
tell (const struct verification *v, uint8_t *buf[2], uint64_t offset, uint32_t length)
{
  bool any = false;

  for (uint32_t at = 0; at < length; at += VERIFY_UNIT) {
    uint32_t n = length - at < VERIFY_UNIT ? length - at : VERIFY_UNIT;
    if (memcmp (buf[0] + at, buf[1] + at, n) == 0)
      continue;
    any = true;
    v->o->differs (v->o->opaque, offset + at, n);
  }
  return any;
}

/* Read LENGTH bytes at OFFSET (of a block) from both sides and find the first that differs, or
 * tell all that do. */
static enum verify_result
compare_block (struct verification *v, uint64_t offset, uint32_t length, char **error)
{
  uint8_t *memory = buffers_new (2 * BLOCK), *buf[2] = { memory, memory + BLOCK };
  enum verify_result result = VERIFY_FAILED;

  if (memory == NULL) {
    text_error (error, "out of memory");
    return result;
  }
  for (unsigned side = 0; side < 2; side++) {
    uint32_t min = endpoint_info (v->ep[side])->min_block;
    if (open_channel (v, side, error) == -1)
      goto out;
    int err = sync_read (v->ch[side], buf[side], (length + min - 1) / min * min, offset);
    if (err) {
      text_error (error, "%s: cannot read at offset %" PRIu64 ": %s", endpoint_name (v->ep[side]),
                  offset, strerror (err));
      goto out;
    }
  }
  result = VERIFY_EQUAL;
  if (v->o->differs != NULL) {
    result = tell (v, buf, offset, length) ? VERIFY_DIFFERENT : VERIFY_EQUAL;
    goto out;
  }
  for (uint32_t i = 0; i < length; i++)
    if (buf[0][i] != buf[1][i]) {
      v->report->offset = offset + i;
      result = VERIFY_DIFFERENT;
      break;
    }

out:
  free (memory);
  return result;
}

/* ---- the two ways ---------------------------------------------------------------------------- */

static enum verify_result
compare_by_bytes (struct verification *v, uint64_t size, char **error)
{
  if (open_channel (v, 0, error) == -1 || open_channel (v, 1, error) == -1)
    return VERIFY_FAILED;
  return run_walk (v, size, false, error);
}

static enum verify_result
compare_by_digests (struct verification *v, uint64_t size, char **error)
{
  /* Where one disk is longer, the block at the other's end has another digest there. */
  uint32_t rest = v->report->size == v->report->size_b ? 0 : (uint32_t)(size % BLOCK);

  for (unsigned side = 0; side < 2; side++)
    if (v->digest_ch[side] == NULL && open_channel (v, side, error) == -1)
      return VERIFY_FAILED;
  enum verify_result result = run_walk (v, size - rest, true, error);
  if (result == VERIFY_EQUAL && rest > 0)
    return compare_block (v, size - rest, rest, error);
  if (result != VERIFY_DIFFERENT)
    return result;
  uint64_t offset = v->walk.differs;
  uint32_t length = size - offset < BLOCK ? (uint32_t)(size - offset) : BLOCK;
  result = compare_block (v, offset, length, error);
  if (result == VERIFY_EQUAL) {
    text_error (error,
                "the digests of %" PRIu32 " bytes at offset %" PRIu64 " differed, and the bytes do"
                " not any more: one of the disks is being written to",
                length, offset);
    return VERIFY_FAILED;
  }
  return result;
}

static enum verify_result
compare (struct verification *v, char **error)
{
  struct verify_report *r = v->report;

  r->size = endpoint_info (v->ep[0])->size;
  r->size_b = endpoint_info (v->ep[1])->size;
  for (unsigned side = 0; side < 2; side++)
    if (can_be_digested (v, 1 - side))
      open_digests (v, side);
  r->digests_a = v->digest_ch[0] != NULL;
  r->digests_b = v->digest_ch[1] != NULL;
  uint64_t size = r->size < r->size_b ? r->size : r->size_b;
  bool padded = v->o->padded && r->size_b == (r->size + SECTOR - 1) / SECTOR * SECTOR;
  if (v->o->differs != NULL && r->size != r->size_b && !padded) {
    text_error (error, "%s and %s do not have the same size", endpoint_name (v->ep[0]),
                endpoint_name (v->ep[1]));
    return VERIFY_FAILED;
  }
  enum verify_result result = r->digests_a || r->digests_b ? compare_by_digests (v, size, error)
                                                           : compare_by_bytes (v, size, error);
  if (result == VERIFY_EQUAL && r->size_b < r->size) {
    r->offset = r->size_b;
    result = VERIFY_DIFFERENT;
  }
  return result;
}

/* o->differs: the walk has noted where it is worth to look. */
static enum verify_result
look_at_noted (struct verification *v, enum verify_result result, char **error)
{
  bool any = false;

  if (v->no_memory) {
    text_error (error, "out of memory");
    return VERIFY_FAILED;
  }
  for (size_t i = 0; i < v->nr_noted && (result == VERIFY_EQUAL || result == VERIFY_DIFFERENT);
       i++) {
    result = compare_block (v, v->noted[i].offset, (uint32_t)v->noted[i].length, error);
    any |= result == VERIFY_DIFFERENT;
    if (atomic_load (v->o->signal))
      result = VERIFY_CANCELLED;
  }
  return any && result == VERIFY_EQUAL ? VERIFY_DIFFERENT : result;
}

enum verify_result
verify_run (const struct verify_options *o, struct verify_report *report, char **error)
{
  struct verification v = { .o = o, .report = report, .key = { .block = BLOCK } };
  enum verify_result result = VERIFY_FAILED;

  *error = NULL;
  *report = (struct verify_report){ 0 };
  if (getrandom (&v.key.seed, sizeof v.key.seed, 0) != (ssize_t)sizeof v.key.seed)
    text_error (error, "no random number: %s", strerror (errno));
  else if (open_disk (&v, 0, error) == 0 && open_disk (&v, 1, error) == 0)
    result = compare (&v, error);
  if (o->differs != NULL && result == VERIFY_EQUAL)
    result = look_at_noted (&v, result, error);
  free (v.noted);
  for (unsigned side = 0; side < 2; side++) {
    /* Closing a channel completes what is in flight: the walk's memory is still there. */
    if (v.digest_ch[side])
      channel_close (v.digest_ch[side]);
    if (v.ch[side])
      channel_close (v.ch[side]);
    if (v.digest_ep[side])
      endpoint_close (v.digest_ep[side]);
    if (v.ep[side])
      endpoint_close (v.ep[side]);
  }
  if (v.walk.method)
    v.walk.method->end (&v.walk);
  return result;
}
