/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Checking recordings and samples.  See check.h.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "dirty-bitmap/samples.h"
#include "dirty-bitmap/state/check.h"
#include "dirty-bitmap/state/file.h"
#include "dirty-bitmap/state/recordings.h"

#define TRIES 3 /* a page that a server writes just now is good a moment later */

/* Is there a good sample in place I?  -1 with errno if it cannot be read. */
static int
check_sample (struct state_io *io, const struct state_found *f, unsigned i,
              enum state_page_state *is)
{
  uint8_t page[STATE_SAMPLE_BYTES];
  uint64_t sequence, offset = f->layout.samples_offset + i * STATE_SAMPLE_BYTES;

  *is = STATE_PAGE_BAD;
  for (unsigned n = 0; n < TRIES && *is == STATE_PAGE_BAD; n++) {
    if (io->read (io->opaque, page, sizeof page, offset) == -1)
      return -1;
    *is = state_page_check (page, sizeof page, STATE_SAMPLE, i, f->super.uuid, &sequence);
  }
  struct sample s;
  memcpy (&s, page + STATE_PAGE_HEADER, sizeof s);
  if (*is == STATE_PAGE_GOOD && s.length == 0)
    *is = STATE_PAGE_UNWRITTEN; /* there was one */
  return 0;
}

int
state_check_samples (int fd, const struct state_found *f, unsigned *good, unsigned *bad,
                     char **error)
{
  struct state_file file = STATE_FILE_INIT;

  *good = *bad = 0;
  file.fd = fd;
  struct state_io io = state_file_io (&file);
  for (unsigned i = 0; f->super.job && i < SAMPLES_MAX; i++) {
    enum state_page_state is;
    if (check_sample (&io, f, i, &is) == -1)
      return text_error (error, "the samples cannot be read: %s", strerror (errno));
    *good += is == STATE_PAGE_GOOD;
    *bad += is == STATE_PAGE_BAD;
  }
  return 0;
}

int
state_check_recording (int fd, const struct state_found *f, uint32_t i, uint64_t *blocks,
                       uint64_t *bad, char **error)
{
  struct state_file file = STATE_FILE_INIT;
  struct state_layout l;

  *blocks = *bad = 0;
  if (state_layout_init (&l, f->super.disk_size, f->super.block_size) == -1)
    return text_error (error, "the superblock does not tell the disk's size");
  uint64_t *bits = calloc (l.geo.nr_words + 1, 8);
  if (bits == NULL)
    return text_error (error, "out of memory");
  file.fd = fd;
  struct state_io io = state_file_io (&file);
  int r = state_read_recording (&l, &f->table->list[i], io.read, io.opaque, bits, bad, error);
  for (uint64_t w = 0; r == 0 && w < l.geo.nr_words; w++)
    *blocks += (uint64_t)__builtin_popcountll (bits[w]);
  if (*blocks > l.geo.nr_blocks)
    *blocks = l.geo.nr_blocks;
  free (bits);
  return r;
}
