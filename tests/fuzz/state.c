/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Fuzzes the reader of state files: whatever the bytes are, it gives an answer or refuses, and the
 * bitmaps are as large as the disk.  libFuzzer calls LLVMFuzzerTestOneInput(); replay.c does so
 * with the inputs that are kept.
 *
 * An input is a byte of flags, and then changes to a state file:
 *   flags  bits 0 and 1: which file (enum fuzz_kind); 4: the checksums of what is changed are made
 *          right; 8: it was written in this boot; 16: the disk is known
 *   change offset (3 bytes), length (1 byte), and the bytes to put there
 * For FUZZ_RAW the rest of the input is the file itself.
 *
 * Where the checksums are left as they were, more is known: the damaged file must not say that a
 * block is clean which was dirty before.
 */

#include "config.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/options.h"
#include "dirty-bitmap/samples.h"
#include "dirty-bitmap/state/recordings.h"
#include "tests/fuzz/state.h"

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

enum { FIX = 4, SAME_BOOT = 8, KNOWN_DISK = 16 };
enum { MOST_CHANGES = 64 };

static struct fuzz_file files[FUZZ_NR_KINDS];
static FILE *null;
static const uint8_t other_boot[16] = "another boot.";
static const struct state_identity disk_now = { .known = true, .device = 1, .inode = 2, .size = 3 };

#define MUST(condition)                                                                            \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      fprintf (stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                     \
      abort ();                                                                                    \
    }                                                                                              \
  } while (0)

/* ---- changing a file, and undoing it ---- */

struct undo {
  uint64_t offset;
  size_t length;
  uint8_t *was;
};

static struct {
  struct undo list[MOST_CHANGES];
  unsigned nr;
  bool live;   /* a live map was changed, which has no checksum */
  bool newest; /* so were the bits in L1's newer copy, so that they are lost */
} changes;

/* All that a change may reach: the page whose checksum is made right is 17 pages at most. */
static void
remember (struct fuzz_file *f, uint64_t offset, size_t length)
{
  enum { MARGIN = STATE_TABLE_PAGES * STATE_PAGE };
  uint64_t from = offset > MARGIN ? offset - MARGIN : 0, to = offset + length + MARGIN;

  to = to < f->size ? to : f->size;
  struct undo *u = &changes.list[changes.nr++];
  *u = (struct undo){ .offset = from, .length = to - from, .was = malloc (to - from) };
  MUST (u->was != NULL);
  memcpy (u->was, f->data + from, u->length);
}

static void
undo_all (struct fuzz_file *f)
{
  while (changes.nr > 0) {
    struct undo *u = &changes.list[--changes.nr];
    memcpy (f->data + u->offset, u->was, u->length);
    free (u->was);
  }
  changes.live = changes.newest = false;
}

static void
change_file (struct fuzz_file *f, const uint8_t *data, size_t size, bool fix)
{
  while (size > 4 && changes.nr < MOST_CHANGES) {
    uint64_t offset = (data[0] | (uint64_t)data[1] << 8 | (uint64_t)data[2] << 16) % f->size;
    size_t length = data[3] < size - 4 ? data[3] : size - 4;
    if (length > f->size - offset)
      length = f->size - offset;
    data += 4;
    size -= 4;
    remember (f, offset, length);
    memcpy (f->data + offset, data, length);
    if (fix && length != 0)
      fuzz_file_seal (f, offset);
    uint64_t newest = fuzz_newest_l1 (f) + STATE_PAGE_HEADER, end = offset + length;
    changes.live |= end > f->layout.live_offset && offset < f->layout.areas_offset;
    changes.newest |= end > newest && offset < newest + 8;
    data += length;
    size -= length;
  }
}

/* ---- what must be so ---- */

static int
read_fd (void *opaque, void *data, size_t length, uint64_t offset)
{
  const int *fd = opaque;
  ssize_t n = pread (*fd, data, length, (off_t)offset);

  errno = n >= 0 ? EIO : errno;
  return n == (ssize_t)length ? 0 : -1;
}

static int
write_nothing (void *opaque, const void *data, size_t length, uint64_t offset)
{
  (void)opaque, (void)data, (void)length, (void)offset;
  return 0;
}

static int
allocate_nothing (void *opaque, uint64_t offset, uint64_t length)
{
  (void)opaque, (void)offset, (void)length;
  return 0;
}

static int
sync_nothing (void *opaque)
{
  (void)opaque;
  return 0;
}

static uint64_t
check_bits (const struct state_found *f, const uint64_t *bits)
{
  const struct region_geometry *geo = &f->layout.geo;
  uint64_t n = 0;

  for (uint64_t w = 0; w < geo->nr_words; w++)
    n += (uint64_t)__builtin_popcountll (bits[w]);
  if (geo->nr_blocks % 64 != 0)
    MUST ((bits[geo->nr_words - 1] >> geo->nr_blocks % 64) == 0);
  return n;
}

/* Every block that A has must be in B. */
static void
must_have (const struct state_found *a, const uint64_t *in_a, const uint64_t *in_b)
{
  for (uint64_t w = 0; w < a->layout.geo.nr_words; w++)
    MUST ((in_a[w] & ~in_b[w]) == 0);
}

static void
check_found (const struct state_found *f)
{
  const struct region_geometry *geo = &f->layout.geo;

  MUST (geo->disk_size == f->super.disk_size);
  MUST (geo->nr_words * 64 * geo->block_size >= f->super.disk_size);
  MUST (f->bits != NULL || f->recorded != NULL);
  if (f->bits != NULL)
    MUST (check_bits (f, f->bits) == f->dirty_blocks && f->fine_blocks <= f->dirty_blocks);
  if (f->recorded != NULL)
    MUST (check_bits (f, f->recorded) == f->recorded_blocks);
}

/* A server goes on from there: nothing is lost on the way, and checkpoints can be asked and removed
 * until none is left.  CHANGED is what the first one was before the damage, or NULL; if EMPTY it is
 * to be found out. */
static void
check_server (const struct fuzz_file *file, const struct state_found *f, uint64_t *changed,
              bool empty)
{
  int fd = file->fd;
  const struct state_io io = { .read = read_fd,
                               .allocate = allocate_nothing,
                               .write = write_nothing,
                               .sync = sync_nothing,
                               .opaque = &fd };
  uint64_t words = f->layout.geo.nr_words + 1;
  _Atomic uint64_t *maps = calloc (3 * words, 8);
  _Atomic uint64_t *const slots[2] = { maps + words, maps + 2 * words };
  uint64_t *bits = calloc (words, 8);
  struct state s;

  MUST (maps != NULL && bits != NULL);
  state_init (&s, &io);
  MUST (state_continue (&s, f, maps, slots, other_boot, other_boot, NULL) == 0);
  if (f->bits != NULL)
    MUST (memcmp ((void *)maps, f->bits, f->layout.geo.nr_words * 8) == 0);
  if (changed != NULL && s.table->nr > 0
      && state_changed_now (&s, s.table->list[0].name, bits, NULL) == 0) {
    if (empty)
      memcpy (changed, bits, words * 8);
    else
      must_have (f, changed, bits);
  }
  while (s.table->nr > 0) {
    char *error = NULL, name[STATE_NAME_MAX + 1];
    memcpy (name, s.table->list[s.table->nr / 2].name, sizeof name);
    memset (bits, 0, words * 8);
    if (state_changed_now (&s, name, bits, &error) == 0 && f->recorded != NULL)
      must_have (f, f->recorded, bits);
    text_free (error);
    error = NULL;
    bool removed = state_checkpoint_remove (&s, name, &error) == 0;
    text_free (error);
    if (!removed)
      break;
  }
  state_destroy (&s);
  free (bits);
  free ((void *)maps);
}

/* The same options as a user's.  What it prints as JSON must be JSON. */
static void
check_command (const struct subcommand *sc, const char *path, const char *option, bool json)
{
  char *argv[] = { (char *)sc->name, (char *)path, (char *)option, NULL };
  struct cmd_operand operands[4];
  struct cmd_line line = { .argc = option != NULL ? 3 : 2, .argv = argv, .operands = operands };
  FILE *old = stdout, *old_stderr = stderr;
  char *text = NULL;
  size_t size = 0;

  stdout = open_memstream (&text, &size);
  MUST (stdout != NULL);
  stderr = null;
  optind = 0;
  cmd_set_subcommand (sc);
  int status = sc->run (&line);
  fclose (stdout);
  stdout = old;
  stderr = old_stderr;
  MUST (status == EXIT_DONE || status == EXIT_ERROR);
  for (size_t i = 0; i < size; i++)
    MUST (((unsigned char)text[i] >= 0x20 && text[i] != 0x7f) || text[i] == '\n');
  json_t *value = json && size != 0 ? json_loads (text, 0, NULL) : NULL;
  if (json && size != 0)
    MUST (json_is_object (value));
  MUST (size != 0 || status == EXIT_ERROR);
  json_decref (value);
  free (text);
}

/* What the undamaged file says, in the same boot and for the same disk. */
static void
check_damage (enum fuzz_kind kind, unsigned flags, const struct state_found *f)
{
  static struct state_found whole[FUZZ_NR_KINDS][2];
  static uint64_t changed[FUZZ_NR_KINDS][2][FUZZ_DISK / FUZZ_BLOCK / 64 + 1];
  static bool known[FUZZ_NR_KINDS][2];
  bool same_boot = (flags & SAME_BOOT) != 0;
  struct state_found *w = &whole[kind][same_boot];

  MUST (known[kind][same_boot] || f == NULL);
  if (f == NULL) {
    if (!known[kind][same_boot])
      MUST (state_find (files[kind].fd, files[kind].size, same_boot ? fuzz_boot : other_boot, NULL,
                        w, NULL)
            == 0);
    check_server (&files[kind], w, changed[kind][same_boot], true);
    known[kind][same_boot] = true;
    return;
  }
  if ((same_boot && changes.live) || (!same_boot && changes.newest))
    return;
  if (f->bits != NULL)
    must_have (w, w->bits, f->bits);
  if (f->recorded != NULL)
    must_have (w, w->recorded, f->recorded);
  check_server (&files[kind], f, changed[kind][same_boot], false);
}

static void
prepare (void)
{
  for (int kind = 0; kind < FUZZ_NR_KINDS; kind++) {
    MUST (fuzz_file_make (&files[kind], (enum fuzz_kind)kind));
    if (kind == FUZZ_RAW)
      continue;
    check_damage ((enum fuzz_kind)kind, 0, NULL);
    check_damage ((enum fuzz_kind)kind, SAME_BOOT, NULL);
  }
  null = fopen ("/dev/null", "w");
  MUST (null != NULL);
}

static void
look (enum fuzz_kind kind, unsigned flags, uint64_t size)
{
  const struct fuzz_file *file = &files[kind];
  CLEANUP_TEXT char *error = NULL;
  struct state_found f;
  char path[64];

  int r = state_find (file->fd, size, flags & SAME_BOOT ? fuzz_boot : other_boot,
                      flags & KNOWN_DISK ? &disk_now : NULL, &f, &error);
  MUST (r == 0 || (error != NULL && error[0] != '\0'));
  if (r == 0) {
    for (unsigned i = 0; f.super.job && i < SAMPLES_MAX; i++) {
      struct sample sample;
      if (state_find_sample (file->fd, &f, i, &sample))
        MUST (sample.block < f.layout.geo.nr_blocks && sample.length <= sizeof sample.data);
    }
    if (f.tracked) {
      check_found (&f);
      if (kind != FUZZ_RAW && (flags & FIX) == 0)
        check_damage (kind, flags, &f);
      else
        check_server (file, &f, NULL, false);
    }
    state_found_free (&f);
  }
  snprintf (path, sizeof path, "/proc/self/fd/%d", file->fd);
  check_command (&subcommand_state, path, flags & KNOWN_DISK ? "--disk=/dev/null" : NULL, false);
  check_command (&subcommand_state, path, "--json", true);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  if (files[FUZZ_JOB].data == NULL)
    prepare ();
  if (size == 0)
    return 0;
  enum fuzz_kind kind = (enum fuzz_kind) (data[0] & 3);
  struct fuzz_file *f = &files[kind];
  if (kind == FUZZ_RAW) {
    size_t length = size - 1 < f->size ? size - 1 : f->size;
    memcpy (f->data, data + 1, length);
    look (kind, data[0], length);
    memset (f->data, 0, length);
    return 0;
  }
  change_file (f, data + 1, size - 1, (data[0] & FIX) != 0);
  look (kind, data[0], f->size);
  undo_all (f);
  return 0;
}
