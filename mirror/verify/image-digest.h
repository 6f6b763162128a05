/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The digest of a whole image (digest/whole.h): computed once, at the speed at which the image can
 * be read, and kept beside it in IMAGE.nbdmirror-digest.
 *
 * What is kept counts only while the image, and every image below it, is the same file with the
 * same size and the same times of change, to the nanosecond.  An extended attribute would not do:
 * setting one changes the time by which a change is noticed.  Nothing is kept of what is no regular
 * file, where a change leaves no trace, nor of what was changed in the last seconds: another change
 * could have the same time.
 */

#ifndef NBDMIRROR_MIRROR_VERIFY_IMAGE_DIGEST_H
#define NBDMIRROR_MIRROR_VERIFY_IMAGE_DIGEST_H

#include <stdbool.h>
#include <stdint.h>

#include "digest/whole.h"
#include "mirror/endpoint/endpoint.h"

struct image_digest_options {
  const char *path; /* of the image, or a URI; NULL: what was kept is neither looked at nor made */
  const char *format; /* as qemu-nbd names it; "raw" */
  uint64_t size;      /* bytes of a disk in a larger place, all that counts; 0: all of it */
  void *opaque;
  /* Called now and then while it is computed; false: stop. */
  bool (*progress) (void *opaque, uint64_t done, uint64_t size); /* bytes */
  /* NULL, or called with the digests of the next NR blocks (digest_whole_key), in ascending order;
   * DIGESTS is NULL if they are zero.  With a path, what was kept is enough and nothing is read. */
  void (*blocks) (void *opaque, uint64_t first, const uint8_t *digests, uint64_t nr);
  /* Read only what the image's top layer holds, whose server must tell it (`layers`), and pass over
   * the blocks below: `blocks` gets no others, and the digest means nothing. */
  bool top_only;
};

/* EP is the image, opened for reading.  *KEPT: it did not have to be computed.  0, or -1 with
 * *ERROR (the caller frees it with text_free()). */
int image_digest (struct endpoint *ep, const struct image_digest_options *o,
                  char text[DIGEST_WHOLE_TEXT], bool *kept, char **error);

/* ---- image-record.c: what is kept ---- */

struct image_record;

/* Look at the files of an image now.  NULL if nothing can be kept of it. */
struct image_record *image_record_look (const char *path, const char *format);
/* Are the files the same, unchanged, as when they were looked at? */
bool image_record_same (const struct image_record *a, const struct image_record *b);
/* What was kept of an image that is still as in R.  False if nothing. */
bool image_record_read (const struct image_record *r, char text[DIGEST_WHOLE_TEXT]);
/* Keep it.  False with errno: then it is computed again the next time. */
bool image_record_write (const struct image_record *r, const char *text);
void image_record_free (struct image_record *r); /* NULL is allowed */

#endif
