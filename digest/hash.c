/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The digest of a block.  See hash.h.
 */

#include "config.h"

#include <stdbool.h>
#include <string.h>
#include <xxhash.h>

/* It makes XXH3_128bits_withSeed() choose the fastest version that this processor can run. */
#if defined HAVE_XXH_X86DISPATCH_H && defined HAVE_XXH3_128BITS_WITHSEED_DISPATCH
#include <xxh_x86dispatch.h>
#endif

#include "digest/hash.h"

/* memcmp() gives up at the first byte that is not zero, so this costs nothing where there is data,
 * and is five times as fast as the hash where there is none. */
static bool
is_zero (const uint8_t *data, size_t length)
{
  return data[0] == 0 && memcmp (data, data + 1, length - 1) == 0;
}

void
digest_blocks (const struct digest_key *key, const void *data, size_t length, uint8_t *out)
{
  const uint8_t *p = data;

  while (length > 0) {
    size_t n = length < key->block ? length : key->block;
    if (is_zero (p, n))
      memset (out, 0, DIGEST_SIZE);
    else {
      XXH128_canonical_t canonical;
      XXH128_canonicalFromHash (&canonical, XXH3_128bits_withSeed (p, n, key->seed));
      memcpy (out, canonical.digest, DIGEST_SIZE);
    }
    p += n;
    length -= n;
    out += DIGEST_SIZE;
  }
}
