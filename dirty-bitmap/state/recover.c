/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Reading a state file, and saying what its job must take for dirty, and its active recording for
 * changed.  See state.h.
 *
 * Whatever cannot be read, or does not fit, counts as dirty: a page of L2 that is torn makes its
 * extents dirty, and a page of L1 of which both copies are torn all of its.  One torn copy of an L1
 * page is what an interrupted write leaves: the other one is what was durable before, and no write
 * that needed the torn one has begun.  But it may as well be the newer one, which was damaged
 * later; so what it still says is believed, too.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "base/tracked-mark.h"
#include "dirty-bitmap/samples.h"
#include "dirty-bitmap/state/state.h"

static int
read_at (int fd, void *data, size_t length, uint64_t offset)
{
  for (size_t done = 0; done < length;) {
    ssize_t n = pread (fd, (char *)data + done, length - done, (off_t)(offset + done));
    if (n == -1 && errno == EINTR)
      continue;
    if (n == 0)
      errno = EIO; /* shorter than it was */
    if (n <= 0)
      return -1;
    done += (size_t)n;
  }
  return 0;
}

void
state_boot_id (uint8_t boot[16])
{
  char text[64] = "";
  unsigned n = 0;
  int fd = open ("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);

  memset (boot, 0, 16);
  if (fd == -1)
    return;
  ssize_t got = read (fd, text, sizeof text - 1);
  close (fd);
  for (const char *p = text; got > 0 && n < 16 && *p != '\0'; p++) {
    unsigned byte;
    if (*p != '-' && sscanf (p, "%2x", &byte) == 1) {
      boot[n++] = (uint8_t)byte;
      p++;
    }
  }
}

void
state_identity_of (int fd, struct state_identity *id)
{
  struct stat st;

  memset (id, 0, sizeof *id);
  if (fstat (fd, &st) == -1 || !S_ISREG (st.st_mode))
    return; /* a device's times say nothing about its contents */
  if (fgetxattr (fd, TRACKED_MARK_ATTRIBUTE, id->mark, sizeof id->mark) != (ssize_t)sizeof id->mark)
    memset (id->mark, 0, sizeof id->mark);
  id->known = true;
  id->device = st.st_dev;
  id->inode = st.st_ino;
  id->size = (uint64_t)st.st_size;
  id->mtime_ns = st.st_mtim.tv_sec * NS_PER_S + st.st_mtim.tv_nsec;
  id->ctime_ns = st.st_ctim.tv_sec * NS_PER_S + st.st_ctim.tv_nsec;
}

/* The newer of the two superblocks.  0, or -1 with *ERROR.  A file that has its room, but no
 * superblock yet, begins with STATE_BEGUN: s->sequence is 0 then.  Nothing but zeroes is not taken
 * for a state file, because it may be a new disk that was named by mistake. */
static int
find_super (int fd, struct state_super *s, uint64_t *bad, char **error)
{
  static const uint8_t zeroes[STATE_PAGE];
  uint8_t page[STATE_PAGE];
  bool found = false, begun = false;
  unsigned damaged = 0;

  memset (s, 0, sizeof *s);
  for (unsigned copy = 0; copy < 2; copy++) {
    struct state_super one;
    if (read_at (fd, page, sizeof page, copy * STATE_PAGE) == -1)
      return text_error (error, "the superblock cannot be read: %s", strerror (errno));
    if (copy == 0)
      begun = memcmp (page, STATE_BEGUN, sizeof STATE_BEGUN) == 0;
    else
      begun = begun && memcmp (page, zeroes, sizeof page) == 0;
    switch (state_super_decode (page, &one)) {
    case STATE_SUPER_UNKNOWN:
      return text_error (error, "it was written by another version of nbdmirror");
    case STATE_SUPER_GOOD:
      if (!found || one.sequence > s->sequence)
        *s = one;
      found = true;
      break;
    case STATE_SUPER_BAD:
      damaged += memcmp (page, zeroes, sizeof page) != 0;
      break;
    }
  }
  *bad = found ? damaged : 0;
  return found || begun
             ? 0
             : text_error (error, "it is not a state file, or its superblocks are damaged");
}

static bool
zero_id (const uint8_t id[16])
{
  static const uint8_t zero[16];
  return memcmp (id, zero, 16) == 0;
}

/* Does the disk bear MARK?  A disk without any is nobody's. */
static bool
bears (const struct state_identity *now, const uint8_t mark[16])
{
  return !zero_id (mark) && memcmp (now->mark, mark, 16) == 0;
}

/* Is what S knows of the disk what it looks like NOW?  All of it after a clean end; else what is
 * known of a disk that is in use. */
static bool
same_disk (const struct state_super *s, const struct state_identity *now)
{
  const struct state_identity *id = &s->identity;
  bool clean = s->status == STATE_CLEAN;
  bool starting = bears (now, s->next_mark);

  if (!starting && (clean || !zero_id (id->mark)) && memcmp (id->mark, now->mark, 16) != 0)
    return false;
  if (id->inode != 0 && id->inode != now->inode)
    return false;
  return !clean
         || (id->device == now->device && id->size == now->size && id->mtime_ns == now->mtime_ns
             && (starting || id->ctime_ns == now->ctime_ns)); /* a new mark changes it */
}

bool
state_disk_was_resized (const struct state_super *s, const struct state_identity *now)
{
  const struct state_identity *id = &s->identity;

  /* Of another disk, the size says nothing about the state.  Nor is the size that is served looked
   * at: a filter may round it. */
  return now->known && (id->size != 0 || s->disk_size == 0) && now->size != id->size
         && id->inode == now->inode && (bears (now, id->mark) || bears (now, s->next_mark));
}

/* How far is the file to be believed? */
static enum state_recovery
trust (const struct state_super *s, const uint8_t boot[16], const struct state_identity *now,
       char *reason)
{
  if (s->status != STATE_INCONSISTENT && now != NULL && state_disk_was_resized (s, now)) {
    snprintf (reason, STATE_REASON_MAX,
              "the disk was resized from %" PRIu64 " to %" PRIu64 " bytes: a server begins anew",
              s->identity.size, now->size);
    return STATE_FROM_NOTHING;
  }
  switch (s->status) {
  case STATE_CLEAN:
    if (!s->identity.known || now == NULL)
      return STATE_FROM_CLEAN;
    if (now->known && same_disk (s, now))
      return STATE_FROM_CLEAN;
    snprintf (reason, STATE_REASON_MAX, "the disk was changed while it was not tracked");
    return STATE_FROM_NOTHING;
  case STATE_ACTIVE:
    if (now != NULL && !same_disk (s, now)) {
      snprintf (reason, STATE_REASON_MAX,
                "the disk was used without this state file, or is another one");
      return STATE_FROM_NOTHING;
    }
    return !zero_id (boot) && memcmp (s->boot, boot, 16) == 0 ? STATE_FROM_LIVE : STATE_FROM_L1;
  case STATE_INCONSISTENT:
    break;
  }
  memcpy (reason, s->reason, STATE_REASON_MAX + 1);
  return STATE_FROM_NOTHING;
}

static void
set_bits (uint64_t *bits, uint64_t first, uint64_t count)
{
  for (uint64_t i = first; i < first + count; i++)
    bits[i / 64] |= UINT64_C (1) << (i % 64);
}

static int
find_l1 (int fd, struct state_found *f)
{
  const struct state_layout *l = &f->layout;
  uint8_t pages[2][STATE_PAGE];

  for (uint64_t p = 0; p < l->nr_l1_pages; p++) {
    int best = -1, bad = -1;
    if (read_at (fd, pages, sizeof pages, l->l1_offset + 2 * p * STATE_PAGE) == -1)
      return -1;
    for (int c = 0; c < 2; c++) {
      uint64_t sequence;
      switch (state_page_check (pages[c], STATE_PAGE, STATE_L1, p, f->super.epoch, &sequence)) {
      case STATE_PAGE_GOOD:
        if (best == -1 || sequence > f->l1_sequence[p]) {
          best = c;
          f->l1_sequence[p] = sequence;
        }
        break;
      case STATE_PAGE_BAD:
        f->bad_pages++;
        bad = c;
        break;
      case STATE_PAGE_UNWRITTEN:
        break;
      }
    }
    f->l1_copy[p] = best == -1 ? 1 : (uint8_t)best;
    for (uint32_t w = 0; w < STATE_PAGE_WORDS; w++)
      f->l1[p * STATE_PAGE_WORDS + w]
          = best == -1 ? ~UINT64_C (0)
                       : state_page_word (pages[best], w)
                             | (bad != -1 ? state_page_word (pages[bad], w) : 0);
  }
  return 0;
}

/* The pages of KIND and UUID from OFFSET on, into BITS.  What was never written counts as set in a
 * job, and as clear in a recording, which begins with nothing. */
static int
find_fine (int fd, struct state_found *f, enum state_page_kind kind, const uint8_t uuid[16],
           uint64_t offset, uint64_t *bits)
{
  const struct state_layout *l = &f->layout;
  uint32_t words = l->extents_per_page * l->words_per_extent;
  uint64_t unwritten = kind == STATE_L2 ? ~UINT64_C (0) : 0;
  uint8_t page[STATE_PAGE];

  for (uint64_t p = 0; p < l->nr_l2_pages; p++) {
    uint64_t sequence, first = p * words;
    if (read_at (fd, page, sizeof page, offset + p * STATE_PAGE) == -1)
      return -1;
    enum state_page_state is = state_page_check (page, STATE_PAGE, kind, p, uuid, &sequence);
    f->bad_pages += is == STATE_PAGE_BAD;
    for (uint32_t w = 0; w < words && first + w < l->geo.nr_words; w++)
      bits[first + w] = is == STATE_PAGE_GOOD  ? state_page_word (page, w)
                        : is == STATE_PAGE_BAD ? ~UINT64_C (0)
                                               : unwritten;
  }
  return 0;
}

/* Bits behind the last block mean nothing: never count or set them. */
static uint64_t
count_bits (const struct state_found *f, uint64_t *bits)
{
  const struct region_geometry *geo = &f->layout.geo;
  uint64_t n = 0;

  if (geo->nr_blocks % 64 != 0)
    bits[geo->nr_words - 1] &= ~UINT64_C (0) >> (64 - geo->nr_blocks % 64);
  for (uint64_t w = 0; w < geo->nr_words; w++)
    n += (uint64_t)__builtin_popcountll (bits[w]);
  return n;
}

static void
spread_l1 (struct state_found *f)
{
  for (uint64_t e = 0; e < f->layout.nr_extents; e++) {
    uint64_t first;
    if ((f->l1[e / 64] >> (e % 64) & 1) == 0)
      continue;
    f->l1_extents++;
    if (f->how != STATE_FROM_L1)
      continue;
    uint64_t count = state_extent_words (&f->layout, e, &first);
    if (f->bits != NULL)
      memset (&f->bits[first], 0xff, count * 8);
    if (f->recorded != NULL)
      memset (&f->recorded[first], 0xff, count * 8);
  }
}

/* The newer of the two notes; without one the note is empty. */
static int
find_note (int fd, struct state_found *f)
{
  uint8_t note[STATE_NOTE_PAGES * STATE_PAGE];

  for (uint8_t c = 0; c < 2; c++) {
    uint64_t sequence;
    if (read_at (fd, note, sizeof note, f->layout.note_offset + c * sizeof note) == -1)
      return -1;
    enum state_page_state is
        = state_page_check (note, sizeof note, STATE_NOTE, 0, f->super.uuid, &sequence);
    f->bad_pages += is == STATE_PAGE_BAD;
    if (is != STATE_PAGE_GOOD || sequence <= f->note_sequence)
      continue;
    f->note_sequence = sequence;
    f->note_copy = c;
    memcpy (f->note, note + STATE_PAGE_HEADER, STATE_NOTE_MAX);
    f->note[STATE_NOTE_MAX - 1] = '\0';
  }
  return 0;
}

/* The newer of the two tables.  Without one there are no checkpoints. */
static int
find_table (int fd, uint64_t size, struct state_found *f)
{
  enum { BYTES = STATE_TABLE_PAGES * STATE_PAGE };
  uint8_t *pages = malloc (BYTES);
  struct state_table *one = malloc (sizeof *one);
  int r = pages == NULL || one == NULL ? -1 : 0;

  for (unsigned copy = 0; r == 0 && size >= STATE_TABLE_OFFSET + 2 * BYTES && copy < 2; copy++) {
    r = read_at (fd, pages, BYTES, STATE_TABLE_OFFSET + copy * BYTES);
    if (r == -1)
      break;
    enum state_page_state is = state_table_decode (pages, one);
    f->bad_pages += is == STATE_PAGE_BAD;
    if (is == STATE_PAGE_GOOD && one->sequence > f->table->sequence) {
      *f->table = *one;
      f->table_copy = (uint8_t)copy;
    }
  }
  free (one);
  free (pages);
  return r;
}

/* The fine bits of one bitmap: from its live map, its pages, or nothing. */
static int
find_bits (int fd, struct state_found *f, uint64_t live_offset, enum state_page_kind kind,
           const uint8_t uuid[16], uint64_t pages_offset, uint64_t **bits)
{
  const struct region_geometry *geo = &f->layout.geo;

  *bits = calloc (geo->nr_words + 1, 8);
  if (*bits == NULL)
    return -1;
  if (f->how == STATE_FROM_NOTHING)
    set_bits (*bits, 0, geo->nr_blocks);
  else if (f->how == STATE_FROM_LIVE)
    return read_at (fd, *bits, geo->nr_words * 8, live_offset);
  else
    return find_fine (fd, f, kind, uuid, pages_offset, *bits);
  return 0;
}

static int
find_tracked (int fd, const uint8_t boot[16], const struct state_identity *now,
              struct state_found *f)
{
  const struct state_layout *l = &f->layout;
  const struct state_table *t = f->table;

  f->l1 = calloc (l->nr_l1_pages * STATE_PAGE_WORDS + 1, 8);
  f->l1_sequence = calloc (l->nr_l1_pages + 1, 8);
  f->l1_copy = calloc (l->nr_l1_pages + 1, 1);
  if (f->l1 == NULL || f->l1_sequence == NULL || f->l1_copy == NULL)
    return -1;
  f->how = trust (&f->super, boot, now, f->reason);
  if (find_l1 (fd, f) == -1 || find_note (fd, f) == -1)
    return -1;
  if (f->super.job
      && find_bits (fd, f, l->live_offset, STATE_L2, f->super.uuid, l->l2_offset, &f->bits) == -1)
    return -1;
  if (t->recording) {
    const struct state_checkpoint *c = &t->list[t->nr - 1];
    if (find_bits (fd, f, l->recordings_offset + t->slot * l->live_bytes, STATE_RECORDING,
                   c->recording, l->areas_offset + c->area * l->area_bytes, &f->recorded)
        == -1)
      return -1;
  }
  f->fine_blocks = f->bits != NULL ? count_bits (f, f->bits) : 0;
  spread_l1 (f);
  f->dirty_blocks = f->bits != NULL ? count_bits (f, f->bits) : 0;
  f->recorded_blocks = f->recorded != NULL ? count_bits (f, f->recorded) : 0;
  return 0;
}

/* How long must the file be for what it says? */
static uint64_t
needed_size (const struct state_found *f)
{
  uint64_t areas = 0;

  for (uint32_t i = 0; i < f->table->nr; i++)
    if (!f->table->list[i].inconsistent && f->table->list[i].area >= areas)
      areas = f->table->list[i].area + UINT64_C (1);
  if (f->table->recording && f->table->list[f->table->nr - 1].area >= areas)
    areas = f->table->list[f->table->nr - 1].area + UINT64_C (1);
  return areas != 0 ? f->layout.areas_offset + areas * f->layout.area_bytes : f->layout.file_size;
}

/* A server that was killed before it gave the file its room left no more than this. */
static bool
has_only_begun (int fd, uint64_t size)
{
  char text[sizeof STATE_BEGUN];

  return size >= sizeof text && read_at (fd, text, sizeof text, 0) == 0
         && memcmp (text, STATE_BEGUN, sizeof text) == 0;
}

int
state_find (int fd, uint64_t size, const uint8_t boot[16], const struct state_identity *now,
            struct state_found *f, char **error)
{
  memset (f, 0, sizeof *f);
  if (size == 0)
    return 0;
  if (size < UINT64_C (2) * STATE_PAGE && has_only_begun (fd, size))
    return 0;
  if (size < UINT64_C (2) * STATE_PAGE)
    return text_error (error, "it is not a state file");
  if (find_super (fd, &f->super, &f->bad_pages, error) == -1)
    return -1;
  f->table = calloc (1, sizeof *f->table);
  if (f->super.sequence == 0 && f->table != NULL)
    return 0;
  if (f->table != NULL && find_table (fd, size, f) == 0) {
    f->tracked = f->super.job || f->table->recording;
    if (!f->tracked)
      return 0;
    if (f->super.block_size != 0
        && state_layout_init (&f->layout, f->super.disk_size, f->super.block_size) == 0
        && size >= needed_size (f)) {
      if (find_tracked (fd, boot, now, f) == 0)
        return 0;
    } else {
      state_found_free (f);
      return text_error (error, "it is shorter than its superblock says");
    }
  }
  int saved = errno;
  state_found_free (f);
  return text_error (error, "it cannot be read: %s", strerror (saved));
}

void
state_found_free (struct state_found *f)
{
  free (f->bits);
  free (f->recorded);
  free (f->table);
  free (f->l1);
  free (f->l1_sequence);
  free (f->l1_copy);
  f->bits = f->recorded = f->l1 = f->l1_sequence = NULL;
  f->table = NULL;
  f->l1_copy = NULL;
}

/* Does the file itself say that BLOCK is clean, whatever the live map says? */
static bool
is_clean_in_pages (int fd, const struct state_found *f, uint64_t block)
{
  const struct state_layout *l = &f->layout;
  uint64_t w = block / 64, e = w / l->words_per_extent, p = e / l->extents_per_page, sequence;
  uint8_t page[STATE_PAGE];

  if ((f->l1[e / 64] >> (e % 64) & 1) != 0
      || read_at (fd, page, sizeof page, l->l2_offset + p * STATE_PAGE) == -1
      || state_page_check (page, STATE_PAGE, STATE_L2, p, f->super.uuid, &sequence)
             != STATE_PAGE_GOOD)
    return false;
  uint64_t in_page = w - p * l->extents_per_page * l->words_per_extent;
  return (state_page_word (page, (uint32_t)in_page) >> (block % 64) & 1) == 0;
}

bool
state_find_sample (int fd, const struct state_found *f, unsigned i, struct sample *out)
{
  uint8_t page[STATE_SAMPLE_BYTES];
  uint64_t sequence;

  if (read_at (fd, page, sizeof page, f->layout.samples_offset + i * STATE_SAMPLE_BYTES) == -1
      || state_page_check (page, sizeof page, STATE_SAMPLE, i, f->super.uuid, &sequence)
             != STATE_PAGE_GOOD)
    return false;
  memcpy (out, page + STATE_PAGE_HEADER, sizeof *out);
  if (out->length < 1 || out->length > SAMPLE_BYTES || out->block >= f->layout.geo.nr_blocks)
    return false;
  /* The live map lets go of a block as soon as it is flushed, and the samples in the file follow
   * only later in the round: a server that is killed in between leaves an old one. */
  return f->how != STATE_FROM_LIVE || is_clean_in_pages (fd, f, out->block);
}
