/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Does the source lie on the base that the user names?  See base-proof.h.
 *
 * A guest may write meanwhile.  What it wrote is in the top layer from then on, and so is left out
 * when it is asked again.
 */

#include "config.h"

#include <inttypes.h>
#include <string.h>

#include "base/text.h"
#include "mirror/endpoint/blocking.h"
#include "mirror/job/base-proof.h"
#include "mirror/job/sampling.h"

struct layers {
  struct channel *ch;
  int error; /* of the last question that was not answered */
};

/* Does the top layer hold some of it, or nobody any? */
static bool
is_above (void *opaque, uint64_t offset, uint64_t length, bool late)
{
  struct layers *l = opaque;
  struct endpoint_extent x;

  (void)late;
  int err = sync_status (l->ch, length, offset, &x);
  if (err)
    l->error = err;
  return err || !x.lower || x.length < length;
}

enum job_result
source_base_sample (const struct base_proof *p, char **error)
{
  struct layers l = { .ch = channel_open (p->source, NULL, error) };
  const struct sampling s = { .ours = p->base,
                              .dest = p->source,
                              .size = endpoint_info (p->source)->size,
                              .prefer_data = true,
                              .leave_out = is_above,
                              .opaque = &l,
                              .signal = p->signal };
  struct sampled found;

  if (l.ch == NULL)
    return JOB_FAILED;
  enum job_result result = sampling_compare (&s, &found, error);
  channel_close (l.ch);
  if (result == JOB_REFUSED)
    text_error (error,
                "refused: %s does not lie on the base image %s: it differs from that in the block"
                " at offset %" PRIu64 ", which its top layer does not hold",
                endpoint_name (p->source), p->sync->base, found.where);
  else if (result == JOB_COMPLETED && l.error) {
    text_error (error, "%s does not tell its layers: %s", endpoint_name (p->source),
                strerror (l.error));
    result = JOB_FAILED;
  }
  if (result != JOB_COMPLETED)
    return result == JOB_DEST_FAILED ? JOB_FAILED : result;
  CLEANUP_TEXT char *text
      = text_printf ("--sync top: %" PRIu64 " of the source's %" PRIu64 " blocks were compared with"
                     " %s where its top layer does not hold them, and are equal: this is a sample"
                     " and no proof",
                     found.compared, found.blocks, p->sync->base);
  p->message (p->opaque, JOB_NOTICE, text);
  return JOB_COMPLETED;
}
