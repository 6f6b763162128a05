/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Layout, pages and superblocks of the state file.  See format.h.
 */

#include "config.h"

#include <assert.h>
#include <endian.h>
#include <pthread.h>
#include <string.h>

#include "base/zero.h"
#include "dirty-bitmap/samples.h"
#include "dirty-bitmap/state/format.h"

#define SUPER_MAGIC "NBDMSTAT" /* 8 bytes without a NUL */
#define PAGE_MAGIC 0x474d424eu /* "NBMG" */
#define INCOMPAT_KNOWN 0u
#define LIVE_ALIGN 65536u

_Static_assert(sizeof (struct sample) <= STATE_SAMPLE_BYTES - STATE_PAGE_HEADER,
               "a sample fits in its place");

/* ---- layout ---- */

static uint64_t
round_up (uint64_t n, uint64_t unit)
{
  return (n + unit - 1) / unit * unit;
}

int
state_layout_init (struct state_layout *l, uint64_t disk_size, uint32_t block_size)
{
  memset (l, 0, sizeof *l);
  if (region_geometry_init (&l->geo, disk_size, block_size) == -1)
    return -1;
  uint64_t most = UINT64_C (64) * block_size;
  l->extent_size = most > STATE_MIN_EXTENT ? most : STATE_MIN_EXTENT;
  l->nr_extents = round_up (disk_size, l->extent_size) / l->extent_size;
  l->words_per_extent = (uint32_t)(l->extent_size / block_size / 64);
  l->extents_per_page = STATE_PAGE_WORDS / l->words_per_extent;
  l->nr_l1_pages = round_up (l->nr_extents, STATE_PAGE_WORDS * 64) / (STATE_PAGE_WORDS * 64);
  l->nr_l2_pages = round_up (l->nr_extents, l->extents_per_page) / l->extents_per_page;
  l->note_offset = UINT64_C (2) * STATE_PAGE;
  l->l1_offset = STATE_TABLE_OFFSET + UINT64_C (2) * STATE_TABLE_PAGES * STATE_PAGE;
  l->samples_offset = l->l1_offset + 2 * l->nr_l1_pages * STATE_PAGE;
  l->l2_offset = l->samples_offset + UINT64_C (1) * SAMPLES_MAX * STATE_SAMPLE_BYTES;
  l->live_offset = round_up (l->l2_offset + l->nr_l2_pages * STATE_PAGE, LIVE_ALIGN);
  l->live_bytes = round_up (l->geo.nr_words * 8, LIVE_ALIGN);
  l->file_size = l->live_offset + l->live_bytes;
  l->recordings_offset = l->file_size;
  l->areas_offset = l->recordings_offset + 2 * l->live_bytes;
  l->area_bytes = round_up (l->nr_l2_pages * STATE_PAGE, LIVE_ALIGN);
  return 0;
}

uint64_t
state_extent_words (const struct state_layout *l, uint64_t e, uint64_t *first)
{
  assert (e < l->nr_extents);
  *first = e * l->words_per_extent;
  uint64_t left = l->geo.nr_words - *first;
  return left < l->words_per_extent ? left : l->words_per_extent;
}

/* ---- checksums ---- */

#define CRC_POLYNOMIAL 0x82f63b78u /* Castagnoli, bits reversed */

/* table[K][B] is what the byte B does to a checksum when K bytes follow it. */
static uint32_t crc_table[8][256];
static pthread_once_t crc_once = PTHREAD_ONCE_INIT;

static void
make_crc_table (void)
{
  for (uint32_t b = 0; b < 256; b++) {
    uint32_t crc = b;
    for (unsigned bit = 0; bit < 8; bit++)
      crc = crc >> 1 ^ (crc & 1 ? CRC_POLYNOMIAL : 0);
    crc_table[0][b] = crc;
  }
  for (uint32_t b = 0; b < 256; b++)
    for (unsigned k = 1; k < 8; k++)
      crc_table[k][b] = crc_table[k - 1][b] >> 8 ^ crc_table[0][crc_table[k - 1][b] & 255];
}

/* Eight bytes a step: a server that starts reads all pages. */
static uint32_t
crc_go_on (uint32_t crc, const uint8_t *p, size_t length)
{
  pthread_once (&crc_once, make_crc_table);
  for (; length >= 8; length -= 8, p += 8) {
    uint32_t low, high;
    memcpy (&low, p, 4);
    memcpy (&high, p + 4, 4);
    low = le32toh (low) ^ crc;
    high = le32toh (high);
    crc = 0;
    for (unsigned k = 0; k < 4; k++)
      crc ^= crc_table[7 - k][low >> 8 * k & 255] ^ crc_table[3 - k][high >> 8 * k & 255];
  }
  for (size_t i = 0; i < length; i++)
    crc = crc >> 8 ^ crc_table[0][(crc ^ p[i]) & 255];
  return crc;
}

uint32_t
state_crc32c (const void *data, size_t length)
{
  return ~crc_go_on (~UINT32_C (0), data, length);
}

/* The checksum over SIZE bytes in which the 4 bytes at AT count as zero. */
static uint32_t
checksum_without (const uint8_t *page, size_t size, size_t at)
{
  static const uint8_t zeroes[4];
  uint32_t crc = crc_go_on (~UINT32_C (0), page, at);

  crc = crc_go_on (crc, zeroes, 4);
  return ~crc_go_on (crc, page + at + 4, size - at - 4);
}

/* ---- little-endian fields ---- */

static void
put32 (uint8_t *p, uint32_t v)
{
  v = htole32 (v);
  memcpy (p, &v, 4);
}

static void
put64 (uint8_t *p, uint64_t v)
{
  v = htole64 (v);
  memcpy (p, &v, 8);
}

static uint32_t
get32 (const uint8_t *p)
{
  uint32_t v;
  memcpy (&v, p, 4);
  return le32toh (v);
}

static uint64_t
get64 (const uint8_t *p)
{
  uint64_t v;
  memcpy (&v, p, 8);
  return le64toh (v);
}

/* ---- pages ---- */

enum { P_MAGIC = 0, P_CRC = 4, P_KIND = 8, P_NUMBER = 16, P_SEQUENCE = 24, P_UUID = 32 };

void
state_page_seal (uint8_t *page, size_t size, const struct state_page_id *id)
{
  memset (page, 0, STATE_PAGE_HEADER);
  put32 (page + P_MAGIC, PAGE_MAGIC);
  put32 (page + P_KIND, (uint32_t)id->kind);
  put64 (page + P_NUMBER, id->number);
  put64 (page + P_SEQUENCE, id->sequence);
  memcpy (page + P_UUID, id->uuid, 16);
  put32 (page + P_CRC, state_crc32c (page, size));
}

enum state_page_state
state_page_check (const uint8_t *page, size_t size, enum state_page_kind kind, uint64_t number,
                  const uint8_t uuid[16], uint64_t *sequence)
{
  if (all_zero (page, size))
    return STATE_PAGE_UNWRITTEN;
  if (get32 (page + P_MAGIC) != PAGE_MAGIC
      || get32 (page + P_CRC) != checksum_without (page, size, P_CRC)
      || get32 (page + P_KIND) != (uint32_t)kind || get64 (page + P_NUMBER) != number)
    return STATE_PAGE_BAD;
  if (memcmp (page + P_UUID, uuid, 16) != 0)
    return STATE_PAGE_UNWRITTEN;
  *sequence = get64 (page + P_SEQUENCE);
  return *sequence != UINT64_MAX ? STATE_PAGE_GOOD : STATE_PAGE_BAD; /* nothing could follow */
}

void
state_page_put_words (uint8_t *page, uint32_t at, const uint64_t *words, uint32_t count)
{
  assert (at + count <= STATE_PAGE_WORDS);
  for (uint32_t i = 0; i < count; i++)
    put64 (page + STATE_PAGE_HEADER + (at + i) * 8, words[i]);
}

uint64_t
state_page_word (const uint8_t *page, uint32_t at)
{
  assert (at < STATE_PAGE_WORDS);
  return get64 (page + STATE_PAGE_HEADER + at * 8);
}

/* ---- texts ---- */

/* The bytes of the UTF-8 sequence at P, or 0 if it is none. */
static size_t
utf8_length (const char *p)
{
  unsigned char c = (unsigned char)*p;
  size_t n = c < 0x80 ? 1 : c >= 0xf0 && c < 0xf5 ? 4 : c >= 0xe0 ? 3 : c >= 0xc2 ? 2 : 0;

  if (c >= 0xf5)
    return 0;
  for (size_t i = 1; i < n; i++)
    if (((unsigned char)p[i] & 0xc0) != 0x80)
      return 0;
  unsigned char second = n > 2 ? (unsigned char)p[1] : 0;
  bool overlong = (c == 0xe0 && second < 0xa0) || (c == 0xf0 && second < 0x90);
  bool no_character = (c == 0xed && second > 0x9f) || (c == 0xf4 && second > 0x8f);
  return overlong || no_character ? 0 : n;
}

/* Users see TEXT on a terminal and in JSON: what is no character of a line becomes '?'. */
static void
clean_text (char *text)
{
  for (char *p = text; *p != '\0';) {
    size_t n = utf8_length (p);
    if (n == 0 || (n == 1 && ((unsigned char)*p < 0x20 || *p == 0x7f))) {
      *p = '?';
      n = 1;
    }
    p += n;
  }
}

/* ---- the superblock ---- */

enum {
  S_MAGIC = 0,
  S_CRC = 8,
  S_VERSION = 12,
  S_COMPAT = 16,
  S_INCOMPAT = 20,
  S_SEQUENCE = 24,
  S_UUID = 32,
  S_BOOT = 48,
  S_DISK_SIZE = 64,
  S_BLOCK_SIZE = 72,
  S_STATUS = 76,
  S_JOB = 80,
  S_ID_KNOWN = 84,
  S_ID_DEVICE = 88,
  S_ID_INODE = 96,
  S_ID_SIZE = 104,
  S_ID_MTIME = 112,
  S_ID_CTIME = 120,
  S_REASON = 128,
  S_EPOCH = 384,
  S_MARK = 400,
  S_NEXT_MARK = 416,
  S_END = 432
};

/* Both copies are written in place, one after the other.  A disk writes a sector as a whole, and
 * what follows the first one is zero in each version; so a superblock that was being written is the
 * old one or the new one, and is never torn. */
_Static_assert(S_END <= 512, "the superblock's fields are in one sector");

void
state_super_encode (const struct state_super *s, uint8_t page[STATE_PAGE])
{
  memset (page, 0, STATE_PAGE);
  memcpy (page + S_MAGIC, SUPER_MAGIC, 8);
  put32 (page + S_VERSION, STATE_VERSION);
  put64 (page + S_SEQUENCE, s->sequence);
  memcpy (page + S_UUID, s->uuid, 16);
  memcpy (page + S_BOOT, s->boot, 16);
  put64 (page + S_DISK_SIZE, s->disk_size);
  put32 (page + S_BLOCK_SIZE, s->block_size);
  put32 (page + S_STATUS, (uint32_t)s->status);
  put32 (page + S_JOB, s->job);
  put32 (page + S_ID_KNOWN, s->identity.known);
  put64 (page + S_ID_DEVICE, s->identity.device);
  put64 (page + S_ID_INODE, s->identity.inode);
  put64 (page + S_ID_SIZE, s->identity.size);
  put64 (page + S_ID_MTIME, (uint64_t)s->identity.mtime_ns);
  put64 (page + S_ID_CTIME, (uint64_t)s->identity.ctime_ns);
  memcpy (page + S_REASON, s->reason, strnlen (s->reason, STATE_REASON_MAX));
  memcpy (page + S_EPOCH, s->epoch, 16);
  memcpy (page + S_MARK, s->identity.mark, 16);
  memcpy (page + S_NEXT_MARK, s->next_mark, 16);
  put32 (page + S_CRC, state_crc32c (page, STATE_PAGE));
}

enum state_super_result
state_super_decode (const uint8_t page[STATE_PAGE], struct state_super *s)
{
  struct region_geometry geo;

  memset (s, 0, sizeof *s);
  if (memcmp (page + S_MAGIC, SUPER_MAGIC, 8) != 0
      || get32 (page + S_CRC) != checksum_without (page, STATE_PAGE, S_CRC))
    return STATE_SUPER_BAD;
  if (get32 (page + S_VERSION) != STATE_VERSION
      || (get32 (page + S_INCOMPAT) & ~INCOMPAT_KNOWN) != 0)
    return STATE_SUPER_UNKNOWN;
  s->sequence = get64 (page + S_SEQUENCE);
  memcpy (s->uuid, page + S_UUID, 16);
  memcpy (s->boot, page + S_BOOT, 16);
  s->disk_size = get64 (page + S_DISK_SIZE);
  s->block_size = get32 (page + S_BLOCK_SIZE);
  s->status = (enum state_status)get32 (page + S_STATUS);
  s->job = get32 (page + S_JOB) != 0;
  s->identity.known = get32 (page + S_ID_KNOWN) != 0;
  s->identity.device = get64 (page + S_ID_DEVICE);
  s->identity.inode = get64 (page + S_ID_INODE);
  s->identity.size = get64 (page + S_ID_SIZE);
  s->identity.mtime_ns = (int64_t)get64 (page + S_ID_MTIME);
  s->identity.ctime_ns = (int64_t)get64 (page + S_ID_CTIME);
  memcpy (s->reason, page + S_REASON, STATE_REASON_MAX);
  clean_text (s->reason);
  memcpy (s->epoch, page + S_EPOCH, 16);
  memcpy (s->identity.mark, page + S_MARK, 16);
  memcpy (s->next_mark, page + S_NEXT_MARK, 16);
  if (s->sequence == 0 || s->sequence == UINT64_MAX || s->status < STATE_CLEAN
      || s->status > STATE_INCONSISTENT || (s->job && s->block_size == 0)
      || (s->block_size != 0 && region_geometry_init (&geo, s->disk_size, s->block_size) == -1))
    return STATE_SUPER_BAD;
  return STATE_SUPER_GOOD;
}

/* ---- the table of checkpoints ---- */

#define TABLE_BYTES (STATE_TABLE_PAGES * STATE_PAGE)

enum { T_NR = STATE_PAGE_HEADER, T_SLOT = 68, T_RECORDING = 72, T_LIST = 128 };
enum {
  C_NAME = 0,
  C_UUID = 112,
  C_RECORDING = 128,
  C_CREATED = 144,
  C_DISK_SIZE = 152,
  C_BLOCKS = 160,
  C_AREA = 168,
  C_INCONSISTENT = 172,
  C_FAULT = 176,
  C_BYTES = 256
};
_Static_assert(T_LIST + STATE_CHECKPOINTS_MAX * C_BYTES <= TABLE_BYTES, "the table fits");

void
state_table_encode (const struct state_table *t, uint8_t *pages)
{
  struct state_page_id id = { .kind = STATE_TABLE, .sequence = t->sequence };

  memset (pages, 0, TABLE_BYTES);
  put32 (pages + T_NR, t->nr);
  put32 (pages + T_SLOT, t->slot);
  put32 (pages + T_RECORDING, t->recording);
  for (uint32_t i = 0; i < t->nr; i++) {
    const struct state_checkpoint *c = &t->list[i];
    uint8_t *p = pages + T_LIST + i * C_BYTES;
    memcpy (p + C_NAME, c->name, strnlen (c->name, STATE_NAME_MAX));
    memcpy (p + C_UUID, c->uuid, 16);
    memcpy (p + C_RECORDING, c->recording, 16);
    put64 (p + C_CREATED, (uint64_t)c->created_us);
    put64 (p + C_DISK_SIZE, c->disk_size);
    put64 (p + C_BLOCKS, c->blocks);
    put32 (p + C_AREA, c->area);
    put32 (p + C_INCONSISTENT, c->inconsistent);
    memcpy (p + C_FAULT, c->fault, strnlen (c->fault, STATE_FAULT_MAX));
  }
  state_page_seal (pages, TABLE_BYTES, &id);
}

/* Does it make sense?  A checksum proves only that it is what somebody wrote.  A last checkpoint
 * whose changes nobody records is inconsistent. */
static bool
table_ok (const struct state_table *t)
{
  if (t->slot > 1 || (t->recording && t->nr == 0)
      || (!t->recording && t->nr != 0 && !t->list[t->nr - 1].inconsistent))
    return false;
  for (uint32_t i = 0; i < t->nr; i++)
    if (t->list[i].area >= STATE_AREAS_MAX || state_name_fault (t->list[i].name) != NULL
        || state_table_find (t, t->list[i].name) != (int)i)
      return false;
  return true;
}

enum state_page_state
state_table_decode (const uint8_t *pages, struct state_table *t)
{
  static const uint8_t nobody[16];

  memset (t, 0, sizeof *t);
  enum state_page_state is
      = state_page_check (pages, TABLE_BYTES, STATE_TABLE, 0, nobody, &t->sequence);
  if (is != STATE_PAGE_GOOD)
    return is;
  uint32_t nr = get32 (pages + T_NR);
  if (nr > STATE_CHECKPOINTS_MAX)
    return STATE_PAGE_BAD;
  t->nr = nr;
  t->slot = get32 (pages + T_SLOT);
  t->recording = get32 (pages + T_RECORDING) != 0;
  for (uint32_t i = 0; i < nr; i++) {
    struct state_checkpoint *c = &t->list[i];
    const uint8_t *p = pages + T_LIST + i * C_BYTES;
    memcpy (c->name, p + C_NAME, STATE_NAME_MAX);
    memcpy (c->uuid, p + C_UUID, 16);
    memcpy (c->recording, p + C_RECORDING, 16);
    c->created_us = (int64_t)get64 (p + C_CREATED);
    c->disk_size = get64 (p + C_DISK_SIZE);
    c->blocks = get64 (p + C_BLOCKS);
    c->area = get32 (p + C_AREA);
    c->inconsistent = get32 (p + C_INCONSISTENT) != 0;
    memcpy (c->fault, p + C_FAULT, STATE_FAULT_MAX);
    clean_text (c->fault);
  }
  return table_ok (t) ? STATE_PAGE_GOOD : STATE_PAGE_BAD;
}

int
state_table_find (const struct state_table *t, const char *name)
{
  for (uint32_t i = 0; i < t->nr; i++)
    if (strcmp (t->list[i].name, name) == 0)
      return (int)i;
  return -1;
}

const char *
state_name_fault (const char *name)
{
  size_t length = strlen (name);

  if (length == 0)
    return "it is empty";
  if (length > STATE_NAME_MAX)
    return "it has more than 111 bytes";
  if (name[0] == '.' || name[0] == '-')
    return "it begins with a dot or a dash";
  for (const char *p = name; *p != '\0'; p++)
    if ((unsigned char)*p < 0x20 || *p == 0x7f || *p == '/')
      return "it has a slash or a control character";
  for (const char *p = name; *p != '\0'; p += utf8_length (p))
    if (utf8_length (p) == 0)
      return "it is not UTF-8";
  return NULL;
}

int
state_table_fault (const struct state_table *t, uint32_t from)
{
  for (uint32_t i = from; i < t->nr; i++)
    if (t->list[i].inconsistent)
      return (int)i;
  return -1;
}
