/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Reading recordings: what was changed since a checkpoint.  See recordings.h.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "dirty-bitmap/state/recordings.h"

/* Page P, read from AT.  How many bits of it are set, or -1 if it is damaged; then all are. */
static int64_t
take_page (const struct state_layout *l, const struct state_checkpoint *c, const uint8_t *at,
           uint64_t p, uint64_t *bits)
{
  uint32_t words = l->extents_per_page * l->words_per_extent;
  uint64_t first = p * words, sequence;
  int64_t set = 0;
  enum state_page_state is
      = state_page_check (at, STATE_PAGE, STATE_RECORDING, p, c->recording, &sequence);

  if (is == STATE_PAGE_UNWRITTEN)
    return 0;
  for (uint32_t w = 0; w < words && first + w < l->geo.nr_words; w++) {
    uint64_t v = is == STATE_PAGE_GOOD ? state_page_word (at, w) : ~UINT64_C (0);
    if (v != 0) /* what is not touched takes no memory */
      bits[first + w] |= v;
    set += __builtin_popcountll (v);
  }
  return is == STATE_PAGE_GOOD ? set : -1;
}

int
state_read_recording (const struct state_layout *l, const struct state_checkpoint *c,
                      state_reader *read, void *opaque, uint64_t *bits, uint64_t *bad, char **error)
{
  enum { AT_ONCE = 64 };
  uint8_t *pages = malloc ((size_t)AT_ONCE * STATE_PAGE);
  uint64_t found = 0, offset = l->areas_offset + c->area * l->area_bytes;

  *bad = 0;
  if (pages == NULL)
    return text_error (error, "out of memory");
  for (uint64_t p = 0; p < l->nr_l2_pages; p += AT_ONCE) {
    uint64_t n = l->nr_l2_pages - p < AT_ONCE ? l->nr_l2_pages - p : AT_ONCE;
    if (read (opaque, pages, n * STATE_PAGE, offset + p * STATE_PAGE) == -1) {
      free (pages);
      return text_error (error, "the recording of checkpoint '%s' cannot be read: %s", c->name,
                         strerror (errno));
    }
    for (uint64_t i = 0; i < n; i++) {
      int64_t set = take_page (l, c, pages + i * STATE_PAGE, p + i, bits);
      *bad += set == -1;
      found += set > 0 ? (uint64_t)set : 0;
    }
  }
  free (pages);
  if (*bad == 0 && found < c->blocks)
    return text_error (error,
                       "the recording of checkpoint '%s' is damaged: it has %" PRIu64 " of %" PRIu64
                       " blocks",
                       c->name, found, c->blocks);
  return 0;
}

int
state_changed_since (const struct state_layout *l, const struct state_table *t, uint32_t from,
                     state_reader *read, void *opaque, uint64_t *bits, char **error)
{
  int fault = state_table_fault (t, from);
  uint64_t bad;

  if (fault != -1)
    return text_error (error, "checkpoint '%s' is inconsistent: %s", t->list[from].name,
                       t->list[fault].fault);
  for (uint32_t i = from; i + 1 < t->nr; i++)
    if (state_read_recording (l, &t->list[i], read, opaque, bits, &bad, error) == -1)
      return -1;
  return 0;
}

int
state_frozen_since (struct state *s, const char *since, uint64_t *bits, char **error)
{
  const struct state_table *t = s->table; /* only our thread changes it and its recordings */
  int from = t != NULL ? state_table_find (t, since) : -1;

  if (from == -1)
    return text_error (error, "there is no checkpoint '%s'", since);
  return state_changed_since (&s->layout, t, (uint32_t)from, s->io.read, s->io.opaque, bits, error);
}

int
state_add_active (struct state *s, const char *since, uint64_t *bits, char **error)
{
  if (!atomic_load (&s->active))
    return text_error (error, "checkpoint '%s' is inconsistent: the state file was lost", since);
  for (uint64_t w = 0; w < s->layout.geo.nr_words; w++) {
    uint64_t v = atomic_load (&s->slots[s->table->slot][w]);
    if (v != 0)
      bits[w] |= v;
  }
  return 0;
}

int
state_changed_now (struct state *s, const char *since, uint64_t *bits, char **error)
{
  return state_frozen_since (s, since, bits, error) == -1
             ? -1
             : state_add_active (s, since, bits, error);
}
