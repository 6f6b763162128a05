/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What proves that a destination is the right one: no zeroes, which an empty disk has as well.
 */

#include "config.h"

#include <string.h>

#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/samples.h"
#include "mirror/engine/identity.h"
#include "tests/unit/endpoint-fixture.h"
#include "tests/unit/fixture.h"

#define BLOCKS 100u

static void
put (struct region *r, uint64_t block, int fill)
{
  struct sample s = { .block = block, .length = BLOCK, .kind = SAMPLE_SENT };

  memset (s.data, fill, BLOCK);
  samples_put (r, &s);
}

/* Zeroes prove nothing, whatever was sent, nor does what is in quarantine. */
ENDPOINT_TEST (what_is_provable)
{
  struct region *r = fixture_region (BLOCKS);

  cr_assert (!identity_is_provable (r));
  put (r, 1, 0);
  cr_assert (!identity_is_provable (r));
  put (r, 2, 7);
  cr_assert (identity_is_provable (r));
  bitmap_set (r, REGION_QUARANTINE, 2, 1);
  cr_assert (!identity_is_provable (r));
  region_free (r);
}

/* What was found there proves enough until something that was sent is durable. */
ENDPOINT_TEST (what_was_found)
{
  struct region *r = fixture_region (BLOCKS);
  struct sample s = { .block = 3, .length = BLOCK, .kind = SAMPLE_FOUND };

  memset (s.data, 7, BLOCK);
  samples_put (r, &s);
  cr_assert (identity_is_provable (r));
  bitmap_set (r, REGION_QUARANTINE, 3, 1);
  cr_assert (identity_is_provable (r), "nothing was sent there");
  atomic_store (&r->hdr->sent_is_durable, 1);
  cr_assert (!identity_is_provable (r), "another disk has that as well");
  put (r, 5, 0);
  cr_assert (!identity_is_provable (r), "it may have had these zeroes before");
  put (r, 4, 8);
  cr_assert (identity_is_provable (r));
  region_free (r);
}

/* A disk begins with zeroes, and another connection leads to an empty disk: the few samples that
 * are read there are enough to see it. */
ENDPOINT_TEST (zeroes_come_last)
{
  struct endpoint_options create
      = { .writable = true, .create = true, .create_size = BLOCKS * BLOCK };
  struct region *r = fixture_region (BLOCKS);
  struct endpoint *empty = must_open (in_dir ("empty"), &create);
  struct channel *ch = must_channel (empty);
  char *error;

  for (uint64_t b = 0; b < SAMPLES_MAX - 1; b++)
    put (r, b, 0);
  cr_assert_eq (identity_check_each (&ch, 1, empty, r, &error), IDENTITY_SAME);
  text_free (error);
  put (r, BLOCKS - 2, 7);
  cr_assert_eq (identity_check_each (&ch, 1, empty, r, &error), IDENTITY_OTHER);
  cr_assert (strstr (error, "is not the destination") != NULL);
  text_free (error);
  channel_close (ch);
  endpoint_close (empty);
  region_free (r);
}
