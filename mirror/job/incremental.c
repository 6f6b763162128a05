/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What was changed since a checkpoint, and is the destination there?  See incremental.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/state/file.h"
#include "dirty-bitmap/state/recordings.h"
#include "mirror/job/incremental.h"
#include "mirror/job/sampling.h"
#include "mirror/job/standing.h"

#define ASK_MS 30000
#define TELL_MS 5000

void
incremental_free (struct incremental *inc)
{
  free (inc->bits);
  json_decref (inc->checkpoints);
  inc->checkpoints = NULL;
  inc->bits = NULL;
}

/* ---- asking the filter ---- */

static uint64_t
member (const json_t *o, const char *name)
{
  json_int_t v = json_integer_value (json_object_get (o, name));
  return v > 0 ? (uint64_t)v : 0;
}

/* Take the words that came as FD over.  0, or -1 with *ERROR. */
static int
take_words (struct incremental *inc, int fd, char **error)
{
  size_t bytes = (size_t)((inc->nr_blocks + 63) / 64 * 8);
  struct stat st;

  free (inc->bits);
  inc->bits = malloc (bytes + 8);
  if (inc->bits == NULL)
    return text_error (error, "out of memory");
  if (fd == -1 || fstat (fd, &st) == -1 || st.st_size < 0 || (uint64_t)st.st_size < bytes)
    return text_error (error, "the filter passed no map of the changes");
  void *p = bytes != 0 ? mmap (NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0) : NULL;
  if (p == MAP_FAILED)
    return text_error (error, "mmap: %s", strerror (errno));
  if (bytes != 0) {
    memcpy (inc->bits, p, bytes);
    munmap (p, bytes);
  }
  return 0;
}

enum job_result
incremental_ask (struct incremental *inc, char **error)
{
  CLEANUP_TEXT char *class_ = NULL;
  CLEANUP_FD int fd = -1;
  json_t *ret = NULL;
  const struct control_call call = { .command = "query-mirror-map",
                                     .args = json_pack ("{s:s}", "since", inc->sync->since),
                                     .timeout_ms = ASK_MS,
                                     .ret = &ret,
                                     .got_fd = &fd,
                                     .class_ = &class_ };

  /* The filter has answered: then it is its word, and not the connection. */
  if (control_client_call (inc->control, &call, error) == -1)
    return class_ != NULL ? JOB_REFUSED : JOB_FAILED;
  inc->size = member (ret, "size");
  inc->block_size = member (ret, "block-size");
  inc->nr_blocks = inc->block_size != 0 ? (inc->size + inc->block_size - 1) / inc->block_size : 0;
  json_decref (ret);
  if (inc->block_size == 0) {
    text_error (error, "the filter passed no map of the changes");
    return JOB_FAILED;
  }
  return take_words (inc, fd, error) == 0 ? JOB_COMPLETED : JOB_FAILED;
}

/* ---- reading a state file ---- */

/* As standing_list(). */
static json_t *
list_table (const struct state_table *t)
{
  json_t *list = json_array ();

  for (uint32_t i = 0; i < t->nr; i++) {
    char uuid[UUID_TEXT_BYTES];
    uuid_text (t->list[i].uuid, uuid);
    json_array_append_new (list, json_pack ("{s:s, s:s}", "name", t->list[i].name, "uuid", uuid));
  }
  return list;
}

/* FOUND's changes since the checkpoint, ORed into inc->bits. */
static int
take_found (struct incremental *inc, const struct state_found *found, struct state_io *io,
            char **error)
{
  const char *since = inc->sync->since;
  int i = found->table != NULL ? state_table_find (found->table, since) : -1;
  uint64_t nr_words = found->layout.geo.nr_words;

  if (i == -1)
    return text_error (error, "there is no checkpoint '%s'", since);
  if (!found->tracked || found->how == STATE_FROM_NOTHING)
    return text_error (error, "checkpoint '%s' is inconsistent: %s", since,
                       found->tracked ? found->reason : "nothing is recorded");
  inc->bits = calloc (nr_words + 1, 8);
  if (inc->bits == NULL)
    return text_error (error, "out of memory");
  if (state_changed_since (&found->layout, found->table, (uint32_t)i, io->read, io->opaque,
                           inc->bits, error)
      == -1)
    return -1;
  for (uint64_t w = 0; w < nr_words; w++)
    inc->bits[w] |= found->recorded[w];
  inc->checkpoints = list_table (found->table);
  inc->size = found->layout.geo.disk_size;
  inc->block_size = found->layout.geo.block_size;
  inc->nr_blocks = found->layout.geo.nr_blocks;
  return 0;
}

/* F is open, and nobody else has it. */
static int
read_file (struct incremental *inc, struct state_file *f, char **error)
{
  struct state_io io = state_file_io (f);
  struct state_identity now;
  struct state_found found;
  uint8_t boot[16];
  struct stat st;

  if (fstat (f->fd, &st) == -1)
    return text_error (error, "%s", strerror (errno));
  state_boot_id (boot);
  state_identity_of (f->disk_fd, &now);
  if (state_find (f->fd, (uint64_t)st.st_size, boot, &now, &found, error) == -1)
    return -1;
  int r = take_found (inc, &found, &io, error);
  state_found_free (&found);
  return r;
}

enum job_result
incremental_read (struct incremental *inc, const char *source, int *lock, char **error)
{
  struct state_file f = STATE_FILE_INIT;
  CLEANUP_TEXT char *why = NULL;
  const char *path = inc->sync->state;
  int r = -1;

  *lock = -1;
  f.disk_fd = open (source, O_RDONLY | O_CLOEXEC);
  f.fd = open (path, O_RDWR | O_CLOEXEC);
  if (f.fd == -1 || f.disk_fd == -1)
    text_error (&why, "%s", strerror (errno));
  else if (state_file_lock (&f, NULL, &why) == 0)
    r = read_file (inc, &f, &why);
  if (r == 0) {
    *lock = f.fd;
    f.fd = -1;
  } else
    text_error (error, "%s: %s", f.fd != -1 && f.disk_fd == -1 ? source : path, why);
  state_file_close (&f);
  return r == 0 ? JOB_COMPLETED : JOB_REFUSED;
}

/* ---- the destination ---- */

struct proving {
  struct incremental *inc;
  bool failed; /* the filter could not be asked again */
  uint64_t most, told_ms;
  void *opaque;
  void (*message) (void *opaque, enum job_message kind, const char *text);
};

static bool
leave_out (void *opaque, uint64_t offset, uint64_t length, bool late)
{
  struct proving *p = opaque;
  struct incremental *inc = p->inc;
  CLEANUP_TEXT char *error = NULL;

  if (late && inc->control != NULL && incremental_ask (inc, &error) != JOB_COMPLETED) {
    p->failed = true;
    return false;
  }
  for (uint64_t b = offset / inc->block_size; b <= (offset + length - 1) / inc->block_size; b++)
    if (b >= inc->nr_blocks || (inc->bits[b / 64] >> (b % 64) & 1) != 0)
      return true;
  return false;
}

static void
keep (void *opaque, uint64_t offset, const uint8_t *data, uint32_t length)
{
  const struct proving *p = opaque;

  found_samples_add (p->inc->found, offset, data, length);
}

static void
tell (void *opaque, uint64_t compared)
{
  struct proving *p = opaque;

  if (clock_ms () - p->told_ms < TELL_MS)
    return;
  p->told_ms = clock_ms ();
  CLEANUP_TEXT char *text = text_printf (
      "the destination is being compared: %" PRIu64 " of %" PRIu64 " blocks", compared, p->most);
  p->message (p->opaque, JOB_NOTICE, text);
}

/* What does its server know?  Sets inc->proved, or refuses. */
static enum job_result
ask_destination (struct incremental *inc, const char *uri, char **error)
{
  CLEANUP_TEXT char *why = NULL;

  if (inc->checkpoints == NULL)
    inc->checkpoints = standing_list (inc->control, error);
  if (inc->checkpoints == NULL)
    return JOB_FAILED;
  enum job_result result
      = standing_prove (inc->checkpoints, inc->sync->since, uri, inc->from, &why);
  inc->proved = result == JOB_COMPLETED;
  if (inc->proved || inc->sync->trust_dest)
    return JOB_COMPLETED;
  text_error (error, "%s", why);
  return result;
}

enum job_result
incremental_prove (struct incremental *inc, struct endpoint *source, struct endpoint *dest,
                   const char *uri, const _Atomic int *signal, void *opaque,
                   void (*message) (void *opaque, enum job_message kind, const char *text),
                   char **error)
{
  struct proving p = { .inc = inc, .told_ms = clock_ms (), .opaque = opaque, .message = message };
  struct sampling s = { .ours = source,
                        .dest = dest,
                        .size = inc->size,
                        .prefer_data = true,
                        .leave_out = leave_out,
                        .equal = keep,
                        .progress = tell,
                        .opaque = &p,
                        .signal = signal };
  struct sampled found;

  enum job_result result = ask_destination (inc, uri, error);
  if (result != JOB_COMPLETED)
    return result;
  s.most = inc->proved ? FOUND_SAMPLES_COMPARED : inc->sync->trust_blocks;
  p.most = s.most != 0 ? s.most : SAMPLING_BLOCKS;
  /* Only the beginning of a block can be kept.  Trust asks for blocks from anywhere. */
  s.align = inc->proved ? (uint32_t)inc->block_size : 0;
  result = sampling_compare (&s, &found, error);
  if (result == JOB_REFUSED && !p.failed)
    text_error (error,
                "refused: %s does not stand at checkpoint '%s': it differs in the block at offset"
                " %" PRIu64 ", which was not changed since",
                endpoint_name (dest), inc->sync->since, found.where);
  else if (p.failed) {
    text_error (error, "the filter does not say any more what was changed");
    return JOB_FAILED;
  }
  if (result != JOB_COMPLETED)
    return result;
  if (inc->proved)
    return JOB_COMPLETED;
  CLEANUP_TEXT char *text
      = text_printf ("--trust-destination: %" PRIu64 " blocks that were not changed since '%s' were"
                     " compared, and are equal: this is a sample and no proof",
                     found.compared, inc->sync->since);
  message (opaque, JOB_NOTICE, text);
  return JOB_COMPLETED;
}

void
incremental_fill (const struct incremental *inc, struct region *r)
{
  uint64_t run = 0;

  for (uint64_t b = 0; b <= inc->nr_blocks; b++) {
    if (b % 64 == 0 && run == 0 && b < inc->nr_blocks && inc->bits[b / 64] == 0) {
      b += 63;
      continue;
    }
    if (b < inc->nr_blocks && (inc->bits[b / 64] >> (b % 64) & 1) != 0) {
      run++;
      continue;
    }
    if (run > 0)
      bitmap_mark (r, (b - run) * inc->block_size, run * inc->block_size);
    run = 0;
  }
}
