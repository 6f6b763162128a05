/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The digest of a block.  See hash.h.
 */

#include "config.h"

#include <string.h>
#include <xxhash.h>

/* It makes XXH3_128bits_withSeed() choose the fastest version that this processor can run. */
#if defined HAVE_XXH_X86DISPATCH_H && defined HAVE_XXH3_128BITS_WITHSEED_DISPATCH
#include <xxh_x86dispatch.h>
#endif

#include "base/zero.h"
#include "digest/hash.h"

void
digest_blocks (const struct digest_key *key, const void *data, size_t length, uint8_t *out)
{
  const uint8_t *p = data;

  while (length > 0) {
    size_t n = length < key->block ? length : key->block;
    if (all_zero (p, n)) /* five times as fast as the hash */
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
