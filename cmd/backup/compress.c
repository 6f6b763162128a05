/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup --compress: the file is compressed when it is complete.
 *
 * It cannot be compressed while it is written: qcow2 does not overwrite a compressed cluster, and
 * takes whole clusters only, while a guest goes on to change what was copied already.  So qemu-img
 * writes a second file, which then replaces the first one.
 *
 * That a file is to be compressed is told by its header: it was made for zstd.
 */

#include "config.h"

#include <endian.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "base/text.h"
#include "cmd/backup/store.h"

#define LOOK_MS 200

/* In the header of a qcow2 file (QEMU's docs/interop/qcow2.txt). */
#define INCOMPATIBLE_AT 72
#define COMPRESSION_TYPE_BIT (UINT64_C (1) << 3)
#define COMPRESSION_TYPE_AT 104
#define ZSTD 1

bool
store_will_compress (int fd)
{
  uint8_t header[COMPRESSION_TYPE_AT + 1];
  uint64_t incompatible;

  if (pread (fd, header, sizeof header, 0) != (ssize_t)sizeof header)
    return false;
  memcpy (&incompatible, header + INCOMPATIBLE_AT, sizeof incompatible);
  return (be64toh (incompatible) & COMPRESSION_TYPE_BIT) != 0
         && header[COMPRESSION_TYPE_AT] == ZSTD;
}

/* Run WORDS to their end, or until we are asked to stop. */
static int
run (const struct store *s, char *const *words, char **error)
{
  const struct child_options how = { .output_to_stderr = true, .end_with_us = true };
  int status = 0;
  pid_t pid = child_start (words, &how);

  if (pid == -1)
    return text_error (error, "qemu-img cannot be run: %s", strerror (errno));
  while (!child_ended (pid, LOOK_MS, &status))
    if (s->go_on != NULL && !s->go_on (s->opaque))
      kill (pid, SIGKILL);
  if (WIFEXITED (status) && WEXITSTATUS (status) == 0)
    return 0;
  return text_error (error, "it cannot be compressed: qemu-img has failed");
}

int
store_compress (const struct store *s, const struct manifest_disk *m, int fd, char **error)
{
  CLEANUP_TEXT char *path = repository_path (&s->repo, m->file);
  CLEANUP_TEXT char *temporary = text_printf ("%s.tmp", path);
  const char *slash = m->parent_file != NULL ? strrchr (m->parent_file, '/') : NULL;
  const char *words[20] = { "qemu-img", "convert", "-c",
                            "-f",       "qcow2",   "-O",
                            "qcow2",    "-o",      "compression_type=zstd" };
  unsigned n = 9;

  if (!store_will_compress (fd))
    return 0;
  if (slash != NULL) {
    words[n++] = "-F";
    words[n++] = "qcow2";
    words[n++] = "-B"; /* only what the file itself holds is written */
    words[n++] = slash + 1;
  }
  words[n++] = path;
  words[n++] = temporary;
  /* What the disk did not take could be read back as something else. */
  int r = store_write_out (s, fd) == 0 ? 0 : text_error (error, "%s: %s", path, strerror (errno));
  if (r == 0)
    r = run (s, (char *const *)words, error);
  if (r == 0)
    r = repository_sync (temporary, error);
  if (r == 0 && rename (temporary, path) == -1)
    r = text_error (error, "%s: %s", temporary, strerror (errno));
  if (r == -1)
    unlink (temporary);
  return r == 0 ? 1 : -1;
}
