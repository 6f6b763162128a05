/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a destination was found to hold before a job that leaves something out has sent anything to
 * it.  These samples go into the region, so that a worker that is killed early is followed by one
 * that recognises the destination (R13), and need not send everything.
 */

#ifndef NBDMIRROR_MIRROR_JOB_FOUND_SAMPLES_H
#define NBDMIRROR_MIRROR_JOB_FOUND_SAMPLES_H

#include "dirty-bitmap/samples.h"

/* How many blocks are compared to find them, where nothing else asks for more.  It is enough to
 * find out as well if all that was proved was a mistake. */
#define FOUND_SAMPLES_COMPARED 64u

struct found_samples {
  uint64_t offset[SAMPLES_FOUND]; /* bytes */
  struct sample list[SAMPLES_FOUND];
  unsigned nr;
};

/* As struct sampling's `equal`, with a struct found_samples as OPAQUE. */
void found_samples_add (struct found_samples *f, uint64_t offset, const uint8_t *data,
                        uint32_t length);

/* Into R, as far as they are the beginnings of its blocks, and no late request of an earlier job
 * can change them.  Nothing was sent yet. */
void found_samples_keep (const struct found_samples *f, struct region *r);

#endif
