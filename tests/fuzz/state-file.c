/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A state file to be damaged.  See state.h.
 */

#include "config.h"

#include <endian.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fuzz/state.h"

enum { TABLE_BYTES = STATE_TABLE_PAGES * STATE_PAGE, NOTE_BYTES = STATE_NOTE_PAGES * STATE_PAGE };
enum { SUPER_CRC = 8, PAGE_CRC = 4 };

const uint8_t fuzz_boot[16] = "this boot's id!";
static const uint8_t tracker[16] = "the job's UUID.", epoch[16] = "L1's epoch UUID";

static void
put_page (struct fuzz_file *f, uint64_t offset, size_t size, enum state_page_kind kind,
          uint64_t number, uint64_t sequence, const uint8_t uuid[16])
{
  struct state_page_id id = { .kind = kind, .number = number, .sequence = sequence };

  memcpy (id.uuid, uuid, 16);
  state_page_seal (f->data + offset, size, &id);
}

/* Each third extent is hot in the newer copy, and none in the older one. */
static void
put_l1 (struct fuzz_file *f)
{
  uint64_t words[1] = { 0 };

  for (unsigned e = 0; e < f->layout.nr_extents; e += 3)
    words[0] |= UINT64_C (1) << e;
  put_page (f, f->layout.l1_offset, STATE_PAGE, STATE_L1, 0, 1, epoch);
  state_page_put_words (f->data + fuzz_newest_l1 (f), 0, words, 1);
  put_page (f, fuzz_newest_l1 (f), STATE_PAGE, STATE_L1, 0, 2, epoch);
}

/* Fine bits, in pages at OFFSET and in a live map; SALT makes them differ. */
static void
put_fine (struct fuzz_file *f, uint64_t offset, uint64_t live, enum state_page_kind kind,
          const uint8_t uuid[16], uint64_t salt)
{
  const struct state_layout *l = &f->layout;
  uint32_t per_page = l->extents_per_page * l->words_per_extent;

  for (uint64_t w = 0; w < l->geo.nr_words; w++) {
    uint64_t bits = UINT64_C (0x8000400020001) * (w % 5 == salt % 5) << (salt % 8);
    state_page_put_words (f->data + offset + w / per_page * STATE_PAGE, (uint32_t)(w % per_page),
                          &bits, 1);
    if (live != 0)
      memcpy (f->data + live + w * 8, &bits, 8);
  }
  for (uint64_t p = 0; p < l->nr_l2_pages; p++)
    put_page (f, offset + p * STATE_PAGE, STATE_PAGE, kind, p, 1, uuid);
}

static void
put_job (struct fuzz_file *f)
{
  static const char note[] = "{\"instance\": \"x\", \"session\": 3, \"sent-bytes\": 4096}";
  const struct state_layout *l = &f->layout;

  put_fine (f, l->l2_offset, l->live_offset, STATE_L2, tracker, 1);
  memcpy (f->data + l->note_offset + STATE_PAGE_HEADER, note, sizeof note);
  put_page (f, l->note_offset, NOTE_BYTES, STATE_NOTE, 0, 1, tracker);
  for (unsigned i = 0; i < 2; i++) {
    uint8_t *sample = f->data + l->samples_offset + i * STATE_SAMPLE_BYTES;
    uint32_t length = htole32 (512);
    sample[STATE_PAGE_HEADER] = (uint8_t)(i + 7);
    memcpy (sample + STATE_PAGE_HEADER + 8, &length, 4);
    put_page (f, l->samples_offset + i * STATE_SAMPLE_BYTES, STATE_SAMPLE_BYTES, STATE_SAMPLE, i, 1,
              tracker);
  }
}

static void
put_checkpoints (struct fuzz_file *f)
{
  static struct state_table t;
  const struct state_layout *l = &f->layout;

  t = (struct state_table){ .sequence = 5, .nr = 3, .slot = 1, .recording = true };
  for (uint32_t i = 0; i < t.nr; i++) {
    struct state_checkpoint *c = &t.list[i];
    *c = (struct state_checkpoint){ .created_us = i + 1, .disk_size = FUZZ_DISK, .area = i };
    c->name[0] = (char)('a' + i);
    c->uuid[0] = c->recording[0] = (uint8_t)(i + 1);
    bool active = i + 1 == t.nr;
    uint64_t area = l->areas_offset + i * l->area_bytes;
    put_fine (f, area, active ? l->recordings_offset + l->live_bytes : 0, STATE_RECORDING,
              c->recording, i + 2);
    for (uint64_t w = 0; !active && w < l->geo.nr_words; w++)
      c->blocks += w % 5 == (i + 2) % 5 ? 4 : 0;
  }
  for (unsigned copy = 0; copy < 2; copy++)
    state_table_encode (&t, f->data + STATE_TABLE_OFFSET + copy * TABLE_BYTES);
}

bool
fuzz_file_make (struct fuzz_file *f, enum fuzz_kind kind)
{
  struct state_super super = { .sequence = 9,
                               .disk_size = FUZZ_DISK,
                               .block_size = FUZZ_BLOCK,
                               .status = STATE_ACTIVE,
                               .job = kind != FUZZ_CHECKPOINTS };

  if (state_layout_init (&f->layout, FUZZ_DISK, FUZZ_BLOCK) == -1)
    return false;
  f->size = f->layout.areas_offset + FUZZ_AREAS * f->layout.area_bytes;
  f->fd = memfd_create ("fuzz", MFD_CLOEXEC);
  if (f->fd == -1 || ftruncate (f->fd, (off_t)f->size) == -1)
    return false;
  f->data = mmap (NULL, f->size, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);
  if (f->data == MAP_FAILED)
    return false;
  if (kind == FUZZ_RAW)
    return true;
  memcpy (super.uuid, tracker, 16);
  memcpy (super.boot, fuzz_boot, 16);
  memcpy (super.epoch, epoch, 16);
  state_super_encode (&super, f->data);
  state_super_encode (&super, f->data + STATE_PAGE);
  put_l1 (f);
  if (super.job)
    put_job (f);
  if (kind != FUZZ_JOB)
    put_checkpoints (f);
  return true;
}

uint64_t
fuzz_newest_l1 (const struct fuzz_file *f)
{
  return f->layout.l1_offset + STATE_PAGE;
}

static void
put_crc (uint8_t *page, size_t size, size_t at)
{
  memset (page + at, 0, 4);
  uint32_t crc = htole32 (state_crc32c (page, size));
  memcpy (page + at, &crc, 4);
}

void
fuzz_file_seal (struct fuzz_file *f, uint64_t offset)
{
  const struct state_layout *l = &f->layout;
  uint64_t from = 0;
  size_t size = STATE_PAGE;

  if (offset >= l->live_offset && offset < l->areas_offset)
    return; /* live maps have none */
  if (offset >= l->note_offset && offset < STATE_TABLE_OFFSET) {
    from = l->note_offset;
    size = NOTE_BYTES;
  } else if (offset >= STATE_TABLE_OFFSET && offset < l->l1_offset) {
    from = STATE_TABLE_OFFSET;
    size = TABLE_BYTES;
  } else if (offset >= l->samples_offset && offset < l->l2_offset) {
    from = l->samples_offset;
    size = STATE_SAMPLE_BYTES;
  }
  uint8_t *page = f->data + from + (offset - from) / size * size;
  put_crc (page, size, offset < l->note_offset ? SUPER_CRC : PAGE_CRC);
}
