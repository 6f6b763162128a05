/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What is kept with a job beside its bits: the destination's samples, and a note of the filter's.
 * See state.h.
 */

#include "config.h"

#include <string.h>

#include "dirty-bitmap/samples.h"
#include "dirty-bitmap/state/internal.h"

int
state_write_samples (struct state *s, bool *any)
{
  uint8_t page[STATE_SAMPLE_BYTES];

  for (unsigned i = 0; i < SAMPLES_MAX; i++) {
    struct state_page_id id = { .kind = STATE_SAMPLE, .number = i, .sequence = 1 };
    struct sample sample = { .length = 0 };

    pthread_mutex_lock (&s->lock);
    bool early = s->added;
    if (s->region != NULL) {
      samples_get (s->region, i, &sample);
      early |= atomic_load (&s->region->hdr->given_back) != s->given_back;
    }
    pthread_mutex_unlock (&s->lock);
    uint32_t crc = state_crc32c (&sample, sizeof sample);
    if (crc == s->sample_crc[i])
      continue;
    if (early) { /* what is to be copied to this destination is not durable (cool.c) */
      memset (&sample, 0, sizeof sample);
      crc = state_crc32c (&sample, sizeof sample);
    }
    memset (page, 0, sizeof page);
    memcpy (page + STATE_PAGE_HEADER, &sample, sizeof sample);
    memcpy (id.uuid, s->super.uuid, 16);
    state_page_seal (page, sizeof page, &id);
    if (s->io.write (s->io.opaque, page, sizeof page,
                     s->layout.samples_offset + i * STATE_SAMPLE_BYTES)
        == -1)
      return state_write_failed (s, "samples");
    s->sample_crc[i] = crc;
    *any = true;
  }
  return 0;
}

int
state_write_note (struct state *s, bool *any)
{
  uint8_t page[STATE_NOTE_PAGES * STATE_PAGE];
  struct state_page_id id = { .kind = STATE_NOTE, .sequence = s->note_sequence + 1 };

  pthread_mutex_lock (&s->lock);
  bool same = strcmp (s->note, s->wanted_note) == 0;
  memcpy (s->note, s->wanted_note, sizeof s->note);
  pthread_mutex_unlock (&s->lock);
  if (same)
    return 0;
  memset (page, 0, sizeof page);
  memcpy (page + STATE_PAGE_HEADER, s->note, strlen (s->note));
  memcpy (id.uuid, s->super.uuid, 16);
  state_page_seal (page, sizeof page, &id);
  s->note_copy ^= 1u;
  s->note_sequence++;
  if (s->io.write (s->io.opaque, page, sizeof page,
                   s->layout.note_offset + s->note_copy * sizeof page)
      == -1)
    return state_write_failed (s, "note");
  *any = true;
  return 0;
}
