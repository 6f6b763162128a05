/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The digest of a whole image, made of the digests of its blocks: by it two hosts find out whether
 * they have the same base image.
 *
 * An image is followed by zeroes without end, as it is where it is the base of a larger disk.  So
 * zeroes at its end do not count, nor does its size, which some formats round up.  The last block's
 * digest is that of a whole block, filled up with zeroes.
 *
 * The seed is always the same, since the digest is kept and compared with those of other hosts.  So
 * it tells images apart that differ by accident (another release, a copy that was cut off, a bad
 * disk).  It does not stop somebody who makes two images on purpose for one digest.
 */

#ifndef NBDMIRROR_DIGEST_WHOLE_H
#define NBDMIRROR_DIGEST_WHOLE_H

#include "digest/hash.h"

#define DIGEST_WHOLE_TEXT 33 /* 32 hexadecimal digits and their end */

/* How the digests of blocks are computed. */
extern const struct digest_key digest_whole_key;

struct digest_whole;

/* NULL: out of memory.  To be freed with digest_whole_free(). */
struct digest_whole *digest_whole_new (void);
/* The digests of the next NR blocks. */
void digest_whole_add (struct digest_whole *w, const uint8_t *digests, uint64_t nr);
/* The next NR blocks hold nothing but zeroes. */
void digest_whole_add_zeroes (struct digest_whole *w, uint64_t nr);
/* The digest of all that was added. */
void digest_whole_text (const struct digest_whole *w, char text[DIGEST_WHOLE_TEXT]);
void digest_whole_free (struct digest_whole *w); /* NULL is allowed */

#endif
