/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Before anything is left out because the destination's base image holds it, both bases are proved
 * to be the same: by the digests of their whole contents (digest/whole.h), which each side computes
 * once and keeps.  `nbdmirror receive --backing` tells its own.  A destination that is a copy of
 * the base, and whose server serves digests of its blocks, is read by that server for this.  For
 * other servers the user may accept a sample, which finds a wrong base but proves nothing.
 */

#ifndef NBDMIRROR_MIRROR_JOB_BASE_PROOF_H
#define NBDMIRROR_MIRROR_JOB_BASE_PROOF_H

#include <stdatomic.h>
#include <stdbool.h>

#include "digest/whole.h"
#include "mirror/endpoint/endpoint.h"
#include "mirror/job/found-samples.h"
#include "mirror/job/job.h"

struct base_proof {
  const struct sync_options *sync;
  struct endpoint *base;   /* sync->base, opened */
  struct endpoint *source; /* the disk, opened */
  struct endpoint *dest;   /* opened, nothing was written */
  char *const *dest_argv;
  unsigned nr_dest;
  const struct endpoint_options *dest_options; /* its time limits are taken */
  uint64_t size; /* of the disk that is copied: what the destination holds after it is nobody's */
  uint32_t block_size; /* that is tracked, bytes */
  bool resumed;        /* an earlier worker has written there: a sample would say nothing */
  bool other_wrote; /* a job is left over there that this one does not go on with: late requests of
                       its worker may still change what was compared */
  const char *recorded; /* the digest of the base that it went by; NULL: none */
  _Atomic int *signal;  /* not 0: stop */
  void *opaque;
  void (*message) (void *opaque, enum job_message kind, const char *text);
  void (*look) (
      void *opaque); /* NULL, or called several times a second while digests are computed */
};

/* JOB_COMPLETED: it is the same base, or the user trusts that it is.  Else JOB_REFUSED,
 * JOB_DEST_FAILED, JOB_FAILED or JOB_CANCELLED, with *ERROR (the caller frees it with text_free()).
 * DIGEST is set to the base's, to be recorded in the job: a worker that resumes it must go by the
 * same.  It may be NULL where no job remains, and then is computed only where the destination tells
 * its own.  Unless the job is resumed, FOUND gets samples of the destination.  Takes as long as the
 * bases are read, on both sides at the same time. */
enum job_result base_prove (const struct base_proof *p, char *digest, struct found_samples *found,
                            char **error);

/* Open the destination once more, with OPTIONS for digests, and its time limits.  NULL with *ERROR,
 * and *ERRNUM: ESTALE if another server answers than at p->dest, which proves nothing (R13). */
struct endpoint *base_open_at_dest (const struct base_proof *p, struct endpoint_options *options,
                                    int *errnum, char **error);

/* ---- copied-base.c ---- */

/* The digests of the destination's blocks, or NULL where its server serves none.  *ERROR is changed
 * only if another server answers. */
struct endpoint *copied_base_open (const struct base_proof *p, char **error);

/* With these: the digest of what the destination holds, as if it were a base image.  PROGRESS is
 * told the bytes that were read.  JOB_COMPLETED with TEXT, or as base_prove(). */
enum job_result copied_base_digest (const struct base_proof *p, struct endpoint *digests,
                                    void (*progress) (void *opaque, uint64_t done), void *opaque,
                                    char text[DIGEST_WHOLE_TEXT], char **error);

/* ---- source-base.c ---- */

/* With ENGINE_SYNC_TOP the user says what the source's lower layers hold.  That is left out unread,
 * so a wrong base would be noticed by nobody: a sample of the source is compared with it.  Results
 * as above. */
enum job_result source_base_sample (const struct base_proof *p, char **error);

#endif
