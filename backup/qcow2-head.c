/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See qcow2-head.h.
 */

#include "config.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/qcow2-head.h"
#include "backup/qcow2-layout.h"
#include "base/fd.h"
#include "base/text.h"

#define HEAD_2 72U /* bytes of a head of version 2 */
#define OTHER_DATA_FILE UINT64_C (4)
#define EXTENSION_DATA_FILE 0x44415441U
#define EXTENSIONS_MAX 65536U /* the head and its extensions lie in the first cluster */

struct head {
  uint8_t bytes[EXTENSIONS_MAX];
  size_t nr;
};

static uint32_t
number (const struct head *h, size_t at)
{
  uint32_t n;

  memcpy (&n, h->bytes + at, sizeof n);
  return be32toh (n);
}

static uint64_t
long_number (const struct head *h, size_t at)
{
  return (uint64_t)number (h, at) << 32 | number (h, at + 4);
}

/* Look at the extensions from AT on.  -1 with *ERROR. */
static int
read_extensions (const struct head *h, size_t at, const char *file, bool *is_qcow2, char **error)
{
  *is_qcow2 = false;
  while (at + 8 <= h->nr) {
    uint32_t type = number (h, at), length = number (h, at + 4);
    const uint8_t *data = h->bytes + at + 8;
    if (type == QCOW2_EXTENSION_END)
      return 0;
    if (length > h->nr - at - 8)
      break;
    if (type == EXTENSION_DATA_FILE)
      return text_error (error, "%s keeps its data in another file", file);
    if (type == QCOW2_EXTENSION_FORMAT)
      *is_qcow2 = length == 5 && memcmp (data, "qcow2", 5) == 0;
    at += 8 + (((size_t)length + 7) & ~(size_t)7);
  }
  return text_error (error, "%s: the extensions of its head do not end", file);
}

static int
read_backing (const struct head *h, int fd, const char *file, bool is_qcow2,
              char backing[QCOW2_NAME_MAX + 1], char **error)
{
  uint64_t offset = long_number (h, 8);
  uint32_t length = number (h, 16);

  if (offset == 0)
    return 0;
  if (length == 0 || length > QCOW2_NAME_MAX || offset > INT64_MAX - QCOW2_NAME_MAX
      || pread (fd, backing, length, (off_t)offset) != (ssize_t)length)
    return text_error (error, "%s: the name of its backing file cannot be read", file);
  backing[length] = '\0';
  if (strlen (backing) != length)
    return text_error (error, "%s: the name of its backing file has a NUL", file);
  return is_qcow2
             ? 0
             : text_error (error, "%s does not say that its backing file is a qcow2 file", file);
}

int
qcow2_head_read (int dir, const char *file, char backing[QCOW2_NAME_MAX + 1], char **error)
{
  CLEANUP_FD int fd = openat (dir, file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  struct head h;
  struct stat st;
  bool is_qcow2;

  backing[0] = '\0';
  if (fd == -1 && errno == ELOOP)
    return text_error (error, "%s is a symbolic link", file);
  if (fd == -1 || fstat (fd, &st) == -1)
    return text_error (error, "%s: %s", file, strerror (errno));
  if (!S_ISREG (st.st_mode))
    return text_error (error, "%s is no regular file", file);
  ssize_t n = pread (fd, h.bytes, sizeof h.bytes, 0);
  h.nr = n > 0 ? (size_t)n : 0;
  if (h.nr < HEAD_2 || number (&h, 0) != QCOW2_MAGIC)
    return text_error (error, "%s is no qcow2 file", file);
  uint32_t version = number (&h, 4), length = HEAD_2;
  if (version == 3 && h.nr >= 104) {
    length = number (&h, 100);
    if ((long_number (&h, 72) & OTHER_DATA_FILE) != 0)
      return text_error (error, "%s keeps its data in another file", file);
  } else if (version != 2)
    return text_error (error, "%s is a qcow2 file of an unknown version", file);
  if (length < HEAD_2 || length > h.nr
      || read_extensions (&h, length, file, &is_qcow2, error) == -1)
    return length < HEAD_2 || length > h.nr
               ? text_error (error, "%s: its head has a wrong length", file)
               : -1;
  return read_backing (&h, fd, file, is_qcow2, backing, error);
}
