/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proving the base.  See base-proof.h.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "digest/export-name.h"
#include "mirror/endpoint/blocking.h"
#include "mirror/job/base-proof.h"
#include "mirror/job/sampling.h"
#include "mirror/verify/image-digest.h"

#define POLL_MS 100
#define TELL_MS 5000

struct proving {
  const struct base_proof *p;
  uint64_t told_ms, looked_ms;
};

static void
tell (struct proving *v, const char *whose, uint64_t done, uint64_t size)
{
  uint64_t now = clock_ms ();

  if (v->p->look != NULL && now - v->looked_ms >= POLL_MS) {
    v->looked_ms = now;
    v->p->look (v->p->opaque);
  }
  if (now - v->told_ms < TELL_MS)
    return;
  v->told_ms = now;
  CLEANUP_TEXT char *text
      = text_printf ("the digest of %s base image is being computed: %u %%", whose,
                     size ? (unsigned)(100 * (double)done / (double)size) : 100);
  v->p->message (v->p->opaque, JOB_NOTICE, text);
}

/* ---- by digests ------------------------------------------------------------------------------ */

static bool
on_progress (void *opaque, uint64_t done, uint64_t size)
{
  struct proving *v = opaque;

  tell (v, "our", done, size);
  return !job_signal_ends (atomic_load (v->p->signal));
}

/* Wait until the destination has computed its digest.  CH reads what it tells. */
static enum job_result
wait_for_theirs (struct proving *v, struct channel *ch, char text[DIGEST_WHOLE_TEXT], bool *written,
                 char **error)
{
  const struct base_proof *p = v->p;
  _Alignas(4096) char told[4096];
  uint64_t done, size;

  while (!job_signal_ends (atomic_load (p->signal))) {
    int err = sync_read (ch, told, DIGEST_BASE_SIZE, 0);
    if (err) {
      text_error (error, "%s: %s", p->dest_argv[0], strerror (err));
      return JOB_DEST_FAILED;
    }
    told[DIGEST_BASE_SIZE - 1] = '\0';
    size_t length = strcspn (told, "\n");
    /* A text without its end was read while it was changed. */
    if (told[length] == '\n' && strncmp (told, "done ", 5) == 0
        && strspn (told + 5, "0123456789abcdef") == DIGEST_WHOLE_TEXT - 1
        && length == 5 + DIGEST_WHOLE_TEXT - 1) {
      memcpy (text, told + 5, DIGEST_WHOLE_TEXT - 1);
      text[DIGEST_WHOLE_TEXT - 1] = '\0';
      *written = strcmp (told + length + 1, DIGEST_BASE_WRITTEN) == 0;
      return JOB_COMPLETED;
    }
    if (told[length] == '\n' && strncmp (told, "failed ", 7) == 0) {
      text_error (error, "the destination cannot compute the digest of its base image: %.*s",
                  (int)length - 7, told + 7);
      return JOB_DEST_FAILED;
    }
    if (sscanf (told, "computing %" SCNu64 " %" SCNu64, &done, &size) == 2)
      tell (v, "the destination's", done, size);
    clock_sleep_ms (POLL_MS);
  }
  text_error (error, "cancelled while the base images were compared");
  return JOB_CANCELLED;
}

/* The digest of our base, which must be the one that the job began with.  The destination computes
 * meanwhile. */
static enum job_result
compute_ours (struct proving *v, char *digest, char **error)
{
  const struct base_proof *p = v->p;
  const char *format = p->sync->base_format != NULL ? p->sync->base_format : "raw";
  const struct image_digest_options o
      = { .path = p->sync->base, .format = format, .opaque = v, .progress = on_progress };
  bool kept;

  if (image_digest (p->base, &o, digest, &kept, error) == -1)
    return job_signal_ends (atomic_load (p->signal)) ? JOB_CANCELLED : JOB_FAILED;
  /* What is not visited yet was left as in that base, and nothing says so but this record. */
  bool needed = p->resumed && (p->recorded != NULL || p->sync->mode == ENGINE_SYNC_BASE);
  if (!needed || (p->recorded != NULL && strcmp (digest, p->recorded) == 0))
    return JOB_COMPLETED;
  text_error (error,
              "refused: the job that is left over was begun with another base image: the digest of"
              " %s is %s, that of the job's base was %s",
              p->sync->base, digest, p->recorded != NULL ? p->recorded : "not recorded");
  return JOB_REFUSED;
}

static enum job_result
prove_by_digests (struct proving *v, struct endpoint *theirs, const char *our_text, char **error)
{
  const struct base_proof *p = v->p;
  char their_text[DIGEST_WHOLE_TEXT];
  bool written = false;

  struct channel *ch = channel_open (theirs, NULL, error);
  if (ch == NULL)
    return JOB_DEST_FAILED;
  enum job_result result = wait_for_theirs (v, ch, their_text, &written, error);
  channel_close (ch);
  if (result == JOB_COMPLETED && strcmp (our_text, their_text) != 0) {
    text_error (error,
                "refused: the destination has another base image: the digest of %s is %s, the"
                " destination's base has %s",
                p->sync->base, our_text, their_text);
    return JOB_REFUSED;
  }
  /* What an earlier job has sent is found by its own resumed workers alone (REGION_VISITED). */
  if (result == JOB_COMPLETED && written && !p->resumed) {
    text_error (error,
                "refused: %s has its base, but may hold more: it is no new image, or was written to"
                " since; use --sync compare",
                p->dest_argv[0]);
    return JOB_REFUSED;
  }
  return result;
}

/* ---- by the digests of all blocks ------------------------------------------------------------ */

static void
on_their_progress (void *opaque, uint64_t done)
{
  struct proving *v = opaque;

  tell (v, "the destination's", done, v->p->size);
}

/* The destination is to be a copy of the base.  What an earlier worker has written there is not. */
static enum job_result
prove_copy (struct proving *v, struct endpoint *digests, const char *our_text, char **error)
{
  const struct base_proof *p = v->p;
  char their_text[DIGEST_WHOLE_TEXT];

  if (p->resumed)
    return JOB_COMPLETED; /* compute_ours() has compared with the base that was proved then */
  enum job_result result = copied_base_digest (p, digests, on_their_progress, v, their_text, error);
  if (result != JOB_COMPLETED || strcmp (our_text, their_text) == 0)
    return result;
  text_error (error,
              "refused: the destination does not hold the base image: the digest of %s is %s, that"
              " of what the destination holds is %s",
              p->sync->base, our_text, their_text);
  return JOB_REFUSED;
}

/* ---- by a sample ----------------------------------------------------------------------------- */

static void
keep (void *opaque, uint64_t offset, const uint8_t *data, uint32_t length)
{
  found_samples_add (opaque, offset, data, length);
}

/* Compare blocks, and keep some in FOUND.  After a proof by digests only few are needed. */
static enum job_result
compare_samples (struct proving *v, bool proved, struct found_samples *found, char **error)
{
  const struct base_proof *p = v->p;
  const struct sampling s = { .ours = p->base,
                              .dest = p->dest,
                              .size = p->size,
                              .prefer_data = true,
                              .most = proved ? FOUND_SAMPLES_COMPARED : 0,
                              .align = proved ? p->block_size : 0,
                              .equal = keep,
                              .opaque = found,
                              .signal = p->signal };
  struct sampled is;
  enum job_result result = sampling_compare (&s, &is, error);

  if (result == JOB_REFUSED)
    text_error (error,
                "refused: the destination does not hold the base image: it differs from %s"
                " in the block at offset %" PRIu64,
                p->sync->base, is.where);
  if (result != JOB_COMPLETED || proved)
    return result;
  CLEANUP_TEXT char *text = text_printf (
      "--trust-base: %" PRIu64 " of the destination's %" PRIu64 " blocks were"
      " compared with the base image, and are equal%s",
      is.compared, is.blocks, is.compared < is.blocks ? ": this is a sample and no proof" : "");
  p->message (p->opaque, JOB_NOTICE, text);
  return JOB_COMPLETED;
}

/* ---------------------------------------------------------------------------------------------- */

struct endpoint *
base_open_at_dest (const struct base_proof *p, struct endpoint_options *options, int *errnum,
                   char **error)
{
  options->connect_timeout_ms = p->dest_options->connect_timeout_ms;
  options->request_timeout_ms = p->dest_options->request_timeout_ms;
  struct endpoint *ep = endpoint_open (p->dest_argv, p->nr_dest, options, errnum, error);

  if (ep == NULL || endpoint_same_server (p->dest, ep))
    return ep;
  text_error (error, "%s: another server answers than the one that would be written to",
              p->dest_argv[0]);
  *errnum = ESTALE;
  endpoint_close (ep);
  return NULL;
}

enum job_result
base_prove (const struct base_proof *p, char *digest, struct found_samples *found, char **error)
{
  struct proving v = { .p = p, .told_ms = clock_ms () };
  struct endpoint_options options = { .base_digest = true };
  int errnum = 0;
  char *why = NULL, ours[DIGEST_WHOLE_TEXT];
  enum job_result result = JOB_COMPLETED;

  struct endpoint *theirs = base_open_at_dest (p, &options, &errnum, &why);
  struct endpoint *copy = NULL;
  /* Of a job that is resumed only its record says that there was a proof. */
  if (theirs == NULL && !p->sync->trust_base && !p->other_wrote
      && (!p->resumed || p->recorded != NULL))
    copy = copied_base_open (p, &why);
  if (theirs == NULL && copy == NULL && !p->sync->trust_base) {
    text_error (
        error,
        "refused: whether the destination has the same base image is not known (%s); nbdmirror"
        " receive --backing tells it; --trust-base goes on after a look at %d random blocks",
        why, SAMPLING_BLOCKS);
    result = JOB_REFUSED;
  }
  if (result == JOB_COMPLETED && p->sync->mode == ENGINE_SYNC_TOP && !p->sync->base_is_known)
    result = source_base_sample (p, error);
  char *text = digest != NULL ? digest : ours;
  if (result == JOB_COMPLETED && (theirs != NULL || copy != NULL || digest != NULL))
    result = compute_ours (&v, text, error);
  if (result == JOB_COMPLETED && theirs != NULL)
    result = prove_by_digests (&v, theirs, text, error);
  else if (result == JOB_COMPLETED && copy != NULL)
    result = prove_copy (&v, copy, text, error);
  if (result == JOB_COMPLETED && !p->resumed)
    result = compare_samples (&v, theirs != NULL || copy != NULL, found, error);
  text_free (why);
  if (theirs != NULL)
    endpoint_close (theirs);
  if (copy != NULL)
    endpoint_close (copy);
  return result;
}
