/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The shared region's layout, its creation and its checks.
 *
 *   header | summary x 5 | array x 5 | urgent slots | samples
 *
 * each at a multiple of REGION_ALIGN.  The layout follows from disk size and block size alone, so
 * region_map() computes it anew and compares: what a header says is never used, only agreed with.
 * Untouched pages of a memfd take no memory, hence nothing is cleared here that is zero already:
 * an idle region of a 16 TiB disk costs one page.
 */

#include "config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/text.h"
#include "dirty-bitmap/region.h"
#include "dirty-bitmap/samples.h"
#include "dirty-bitmap/urgent.h"

/* The largest page size in use on Linux hosts, so that every part starts on its own page. */
#define REGION_ALIGN 65536u

#define REGION_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2,
               "atomics shared between processes must be lock-free");
_Static_assert(sizeof (_Atomic uint64_t) == 8, "a word of an array is 64 bits");
_Static_assert(sizeof (struct region_header) <= REGION_ALIGN, "the header fits in its part");

static uint64_t
div_up (uint64_t n, uint64_t d)
{
  return n / d + (n % d != 0);
}

/* Reserve BYTES of the layout at *END and step over them. */
static size_t
place (uint64_t *end, uint64_t bytes)
{
  uint64_t offset = *end;

  *end = div_up (offset + bytes, REGION_ALIGN) * REGION_ALIGN;
  return (size_t)offset;
}

uint64_t
region_max_disk_size (uint32_t block_size)
{
  return UINT64_C (8) * REGION_LIMIT_ARRAY_BYTES * block_size;
}

int
region_geometry_init (struct region_geometry *geo, uint64_t disk_size, uint32_t block_size)
{
  uint64_t end = 0;

  if (block_size == 0) {
    block_size = REGION_MIN_BLOCK_SIZE;
    while (block_size < REGION_MAX_BLOCK_SIZE
           && div_up (disk_size, block_size) > UINT64_C (8) * REGION_MAX_ARRAY_BYTES)
      block_size *= 2;
  }
  if (block_size < REGION_MIN_BLOCK_SIZE || block_size > REGION_MAX_BLOCK_SIZE
      || (block_size & (block_size - 1)) != 0) {
    errno = EINVAL;
    return -1;
  }
  if (disk_size > region_max_disk_size (block_size)) {
    errno = EFBIG;
    return -1;
  }

  memset (geo, 0, sizeof *geo);
  geo->disk_size = disk_size;
  geo->block_size = block_size;
  geo->block_shift = (uint32_t)__builtin_ctz (block_size);
  geo->nr_blocks = div_up (disk_size, block_size);
  geo->nr_words = div_up (geo->nr_blocks, 64);
  geo->nr_summary = div_up (geo->nr_words, 64);
  place (&end, sizeof (struct region_header));
  for (int a = 0; a < REGION_NR_ARRAYS; a++)
    geo->summary_offset[a] = place (&end, geo->nr_summary * 8);
  for (int a = 0; a < REGION_NR_ARRAYS; a++)
    geo->array_offset[a] = place (&end, geo->nr_words * 8);
  geo->urgent_offset = place (&end, URGENT_TABLE_BYTES);
  geo->samples_offset = place (&end, SAMPLES_TABLE_BYTES);
  if (end > SIZE_MAX / 2) {
    errno = EFBIG;
    return -1;
  }
  geo->region_size = (size_t)end;
  return 0;
}

uint64_t
region_bytes (const struct region_geometry *geo, uint64_t first, uint64_t count)
{
  assert (first <= geo->nr_blocks && count <= geo->nr_blocks - first);
  if (count == 0)
    return 0;
  uint64_t end
      = first + count == geo->nr_blocks ? geo->disk_size : (first + count) << geo->block_shift;
  return end - (first << geo->block_shift);
}

uint64_t
region_wire_bytes (const struct region *r)
{
  uint64_t saved = atomic_load (&r->hdr->saved_bytes); /* first: it never overtakes what was sent */
  uint64_t sent = atomic_load (&r->hdr->sent_bytes);

  return sent > saved ? sent - saved : 0;
}

/* Write everything of the header that is not zero. */
static void
fill_header (struct region_header *hdr, const struct region_geometry *geo, const uint8_t uuid[16])
{
  memcpy (hdr->magic, REGION_MAGIC, sizeof hdr->magic);
  hdr->version = REGION_VERSION;
  hdr->header_size = sizeof *hdr;
  hdr->region_size = geo->region_size;
  hdr->disk_size = geo->disk_size;
  hdr->block_size = geo->block_size;
  hdr->nr_blocks = geo->nr_blocks;
  for (int a = 0; a < REGION_NR_ARRAYS; a++) {
    hdr->array_offset[a] = geo->array_offset[a];
    hdr->summary_offset[a] = geo->summary_offset[a];
  }
  hdr->urgent_offset = geo->urgent_offset;
  hdr->samples_offset = geo->samples_offset;
  memcpy (hdr->tracker_uuid, uuid, sizeof hdr->tracker_uuid);
}

/* Make a struct region that owns FD, and map it.  FD is closed on failure. */
static struct region *
map_fd (int fd, const struct region_geometry *geo, char **error)
{
  struct region *r = calloc (1, sizeof *r);
  if (r == NULL) {
    text_error (error, "shared region: %s", strerror (errno));
    close (fd);
    return NULL;
  }
  void *addr = mmap (NULL, geo->region_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (addr == MAP_FAILED) {
    text_error (error, "shared region: mmap of %zu bytes: %s", geo->region_size, strerror (errno));
    free (r);
    close (fd);
    return NULL;
  }
  r->geo = *geo;
  r->hdr = addr;
  r->fd = fd;
  return r;
}

struct region *
region_create (const struct region_geometry *geo, const uint8_t uuid[16], char **error)
{
  int fd = memfd_create ("nbdmirror-region", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd == -1) {
    text_error (error, "shared region: memfd_create: %s", strerror (errno));
    return NULL;
  }
  if (ftruncate (fd, (off_t)geo->region_size) == -1) {
    text_error (error, "shared region: ftruncate to %zu bytes: %s", geo->region_size,
                strerror (errno));
    close (fd);
    return NULL;
  }
  if (fcntl (fd, F_ADD_SEALS, REGION_SEALS) == -1) {
    text_error (error, "shared region: sealing it: %s", strerror (errno));
    close (fd);
    return NULL;
  }
  struct region *r = map_fd (fd, geo, error);
  if (r == NULL)
    return NULL;
  memcpy (r->tracker_uuid, uuid, sizeof r->tracker_uuid);
  fill_header (r->hdr, geo, uuid);
  return r;
}

/* The part of the header that never changes, as read from an untrusted region. */
union header_copy {
  char bytes[offsetof (struct region_header, count)];
  struct region_header hdr;
};

/* One number of the header against what it must be. */
static bool
field_is (const char *name, uint64_t got, uint64_t want, char **error)
{
  if (got == want)
    return true;
  text_error (error, "shared region: %s is %" PRIu64 ", expected %" PRIu64, name, got, want);
  return false;
}

/* Refuse a header that is not exactly what fill_header() writes for GEO, its own geometry. */
static bool
check_layout (const struct region_header *hdr, const struct region_geometry *geo, char **error)
{
  static const char *const array_name[REGION_NR_ARRAYS] = {
    "array_offset of dirty",      "array_offset of claimed A", "array_offset of claimed B",
    "array_offset of quarantine", "array_offset of visited",
  };
  static const char *const summary_name[REGION_NR_ARRAYS] = {
    "summary_offset of dirty",      "summary_offset of claimed A", "summary_offset of claimed B",
    "summary_offset of quarantine", "summary_offset of visited",
  };

  if (!field_is ("nr_blocks", hdr->nr_blocks, geo->nr_blocks, error)
      || !field_is ("region_size", hdr->region_size, geo->region_size, error)
      || !field_is ("urgent_offset", hdr->urgent_offset, geo->urgent_offset, error)
      || !field_is ("samples_offset", hdr->samples_offset, geo->samples_offset, error))
    return false;
  for (int a = 0; a < REGION_NR_ARRAYS; a++)
    if (!field_is (array_name[a], hdr->array_offset[a], geo->array_offset[a], error)
        || !field_is (summary_name[a], hdr->summary_offset[a], geo->summary_offset[a], error))
      return false;
  return true;
}

/* Check the private copy of a header and compute its geometry. */
static bool
check_header (const struct region_header *hdr, struct region_geometry *geo, char **error)
{
  if (memcmp (hdr->magic, REGION_MAGIC, sizeof hdr->magic) != 0) {
    text_error (error, "shared region: magic is wrong: this is no nbdmirror region");
    return false;
  }
  if (!field_is ("version", hdr->version, REGION_VERSION, error)
      || !field_is ("header_size", hdr->header_size, sizeof *hdr, error))
    return false;
  /* 0 would ask region_geometry_init for the default. */
  if (hdr->block_size == 0 || hdr->block_size > REGION_MAX_BLOCK_SIZE) {
    text_error (error, "shared region: block_size %" PRIu64 " is out of bounds", hdr->block_size);
    return false;
  }
  if (region_geometry_init (geo, hdr->disk_size, (uint32_t)hdr->block_size) == -1) {
    if (errno == EFBIG)
      text_error (error,
                  "shared region: disk_size %" PRIu64 " is too large for block_size %" PRIu64,
                  hdr->disk_size, hdr->block_size);
    else
      text_error (error, "shared region: block_size %" PRIu64 " is no power of two from %u to %u",
                  hdr->block_size, REGION_MIN_BLOCK_SIZE, REGION_MAX_BLOCK_SIZE);
    return false;
  }
  return check_layout (hdr, geo, error);
}

/* Read and check what FD holds.  The seals come first: without them another process could shrink
 * the file behind a check, and the next access would be a SIGBUS. */
static bool
check_fd (int fd, union header_copy *copy, struct region_geometry *geo, char **error)
{
  int seals = fcntl (fd, F_GET_SEALS);
  struct stat st;

  if (seals == -1) {
    text_error (error, "shared region: descriptor is no memfd: %s", strerror (errno));
    return false;
  }
  if ((seals & REGION_SEALS) != REGION_SEALS) {
    text_error (error, "shared region: seals 0x%x lack 0x%x (shrink, grow and seal are required)",
                (unsigned)seals, (unsigned)(REGION_SEALS & ~seals));
    return false;
  }
  if (fstat (fd, &st) == -1) {
    text_error (error, "shared region: fstat: %s", strerror (errno));
    return false;
  }
  if (!S_ISREG (st.st_mode) || st.st_size < (off_t)sizeof *copy) {
    text_error (error, "shared region: size %jd is too small for a header", (intmax_t)st.st_size);
    return false;
  }
  ssize_t n = pread (fd, copy, sizeof *copy, 0);
  if (n != (ssize_t)sizeof *copy) {
    text_error (error, "shared region: reading the header: %s",
                n == -1 ? strerror (errno) : "short read");
    return false;
  }
  if (!check_header (&copy->hdr, geo, error))
    return false;
  return field_is ("file size", (uint64_t)st.st_size, geo->region_size, error);
}

struct region *
region_map (int fd, char **error)
{
  union header_copy copy;
  struct region_geometry geo;
  int own = fcntl (fd, F_DUPFD_CLOEXEC, 0);
  if (own == -1) {
    text_error (error, "shared region: descriptor %d: %s", fd, strerror (errno));
    return NULL;
  }
  if (!check_fd (own, &copy, &geo, error)) {
    close (own);
    return NULL;
  }
  struct region *r = map_fd (own, &geo, error);
  if (r != NULL)
    memcpy (r->tracker_uuid, copy.hdr.tracker_uuid, sizeof r->tracker_uuid);
  return r;
}

void
region_free (struct region *r)
{
  if (r == NULL)
    return;
  munmap (r->hdr, r->geo.region_size);
  close (r->fd);
  free (r);
}
