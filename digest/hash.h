/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The digest of a block of a disk: 16 bytes that differ where the blocks differ.
 *
 * It is XXH3 with 128 bits and a seed, in its canonical form (most significant byte first).  A
 * block that holds nothing but zeroes has the digest of 16 zero bytes instead, so that where the
 * disk is a hole its digests are a hole as well, and nobody has to read either.
 *
 * XXH3 is no cryptographic hash: whoever knows the seed can make two blocks with one digest.  So
 * the seed is chosen at random by the one who compares, after the blocks were written.  Then two
 * blocks that differ have the same digest by chance only, once in 2^128.
 *
 * Any thread may call these functions.  They keep no state and cannot fail.
 */

#ifndef NBDMIRROR_DIGEST_HASH_H
#define NBDMIRROR_DIGEST_HASH_H

#include <stddef.h>
#include <stdint.h>

#define DIGEST_SIZE 16u /* bytes */

/* Blocks are a power of two, within these bounds (bytes). */
#define DIGEST_BLOCK_MIN 4096u
#define DIGEST_BLOCK_MAX (1u << 20)

struct digest_key {
  uint64_t seed;
  uint32_t block; /* bytes */
};

/* The number of blocks in LENGTH bytes; the last one may be shorter. */
static inline uint64_t
digest_count (const struct digest_key *key, uint64_t length)
{
  return length / key->block + (length % key->block != 0);
}

/* Put the digests of LENGTH bytes of DATA into OUT, which has room for digest_count() of them. DATA
 * begins at the beginning of a block.  Where its end is not the end of a block, the disk ends
 * there. */
void digest_blocks (const struct digest_key *key, const void *data, size_t length, uint8_t *out);

#endif
