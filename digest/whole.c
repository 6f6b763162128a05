/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The digest of a whole image.  See whole.h.
 */

#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "digest/whole.h"

const struct digest_key digest_whole_key = { .seed = 0x6e62646d6972726f, .block = 64u << 10 };

static const uint8_t zeroes[64 * DIGEST_SIZE];

struct digest_whole {
  XXH3_state_t *state;
  uint64_t zeroes; /* blocks, not in state yet: they count if something follows */
};

struct digest_whole *
digest_whole_new (void)
{
  struct digest_whole *w = calloc (1, sizeof *w);

  if (w == NULL)
    return NULL;
  w->state = XXH3_createState ();
  if (w->state == NULL) {
    free (w);
    return NULL;
  }
  XXH3_128bits_reset_withSeed (w->state, digest_whole_key.seed);
  return w;
}

void
digest_whole_free (struct digest_whole *w)
{
  if (w == NULL)
    return;
  XXH3_freeState (w->state);
  free (w);
}

void
digest_whole_add_zeroes (struct digest_whole *w, uint64_t nr)
{
  w->zeroes += nr;
}

void
digest_whole_add (struct digest_whole *w, const uint8_t *digests, uint64_t nr)
{
  for (uint64_t i = 0; i < nr; i++, digests += DIGEST_SIZE) {
    if (memcmp (digests, zeroes, DIGEST_SIZE) == 0) {
      w->zeroes++;
      continue;
    }
    for (; w->zeroes >= 64; w->zeroes -= 64)
      XXH3_128bits_update (w->state, zeroes, sizeof zeroes);
    XXH3_128bits_update (w->state, zeroes, w->zeroes * DIGEST_SIZE);
    w->zeroes = 0;
    XXH3_128bits_update (w->state, digests, DIGEST_SIZE);
  }
}

void
digest_whole_text (const struct digest_whole *w, char text[DIGEST_WHOLE_TEXT])
{
  XXH128_hash_t h = XXH3_128bits_digest (w->state);

  snprintf (text, DIGEST_WHOLE_TEXT, "%016" PRIx64 "%016" PRIx64, (uint64_t)h.high64,
            (uint64_t)h.low64);
}
