/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * An empty qcow2 file that we make is what `qemu-img create` makes: QEMU tells the same of both,
 * and finds no fault.
 */

#include "config.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/unit.h"

#include "backup/qcow2-head.h"
#include "backup/qcow2-new.h"
#include "base/child.h"
#include "base/text.h"

#define BASE "base.qcow2"

static char folder[32];

static void
set_up (void)
{
  strcpy (folder, "/tmp/nbdmirror-test-new.XXXXXX");
  cr_assert_not_null (mkdtemp (folder));
}

static void
tear_down (void)
{
  cr_assert_eq (rmdir (folder), 0, "a file was left");
}

static char *
in_folder (const char *name)
{
  return text_printf ("%s/%s", folder, name);
}

/* Is there a qemu-img, and does it say of the file NAME what it says of one of its own? */
static void
ask_qemu (const char *name, const char *backing, uint64_t size, bool zstd)
{
  static const char script[]
      = "command -v qemu-img >/dev/null || exit 0\n"
        "cd \"$1\" && qemu-img check -q \"$2\" || exit 2\n"
        "qemu-img create -q -f qcow2 -o \"compression_type=$4\" ${5:+-b \"$5\" -F qcow2}"
        " other.qcow2 \"$3\" || exit 3\n"
        "tell () { qemu-img info \"$1\" | sed '/^Child node/,$d' |"
        " grep -v -e '^image:' -e '^disk size:'; }\n"
        "tell \"$2\" >a; tell other.qcow2 >b; cmp a b || { diff a b; false; }\n"
        "status=$?; rm -f a b other.qcow2; exit $status\n";
  CLEANUP_TEXT char *bytes = text_printf ("%llu", (unsigned long long)size);
  const char *words[] = { "sh",
                          "-c",
                          script,
                          "sh",
                          folder,
                          name,
                          bytes,
                          zstd ? "zstd" : "zlib",
                          backing != NULL ? backing : "",
                          NULL };

  cr_assert_eq (child_run (words, NULL), 0, "%s of %s bytes", name, bytes);
}

static void
make (const char *name, const char *backing, uint64_t size, bool zstd)
{
  CLEANUP_TEXT char *path = in_folder (name);
  char *error = NULL;
  int fd = qcow2_new (path, backing, size, zstd, &error);

  cr_assert_neq (fd, -1, "%s", error);
  close (fd);
}

static void
forget (const char *name)
{
  CLEANUP_TEXT char *path = in_folder (name);

  cr_assert_eq (unlink (path), 0);
}

static void
has_backing (const char *name, const char *backing)
{
  int dir = open (folder, O_RDONLY | O_DIRECTORY);
  char found[QCOW2_NAME_MAX + 1], *error = NULL;

  cr_assert_eq (qcow2_head_read (dir, name, found, &error), 0, "%s", error);
  cr_assert_str_eq (found, backing != NULL ? backing : "");
  close (dir);
}

Test (qcow2_new, as_qemu_makes_it, .init = set_up, .fini = tear_down)
{
  static const uint64_t sizes[]
      = { 0, 512, 512 << 20, (512 << 20) + 512, UINT64_C (64) << 30, UINT64_C (9) << 40 };

  for (unsigned i = 0; i < 2 * (sizeof sizes / sizeof sizes[0]); i++) {
    uint64_t size = sizes[i / 2];
    const char *backing = i % 2 == 1 ? BASE : NULL;
    bool zstd = i / 2 % 2 == 1;
    make (BASE, NULL, 1 << 20, false);
    make ("new name.qcow2", backing, size, zstd);
    has_backing ("new name.qcow2", backing);
    ask_qemu ("new name.qcow2", backing, size, zstd);
    forget ("new name.qcow2");
    forget (BASE);
  }
}

Test (qcow2_new, rounds_up, .init = set_up, .fini = tear_down)
{
  make ("odd", NULL, 20000001, false);
  ask_qemu ("odd", NULL, 20000256, false);
  forget ("odd");
}

static void
has_to_fail (const char *backing, uint64_t size)
{
  CLEANUP_TEXT char *path = in_folder ("refused");
  char *error = NULL;

  cr_assert_eq (qcow2_new (path, backing, size, false, &error), -1);
  cr_assert_not_null (error);
  text_free (error);
}

Test (qcow2_new, refused, .init = set_up, .fini = tear_down)
{
  CLEANUP_TEXT char *path = in_folder ("refused");
  char name[QCOW2_NAME_MAX + 2];
  struct stat st;

  has_to_fail (NULL, UINT64_MAX);
  memset (name, 'x', sizeof name - 1);
  name[sizeof name - 1] = '\0';
  has_to_fail (name, 512);
  cr_assert_neq (stat (path, &st), 0, "something was left");

  int fd = open (path, O_WRONLY | O_CREAT, 0600); /* of somebody else */
  cr_assert_eq (write (fd, "x", 1), 1);
  close (fd);
  has_to_fail (NULL, 512);
  cr_assert (stat (path, &st) == 0 && st.st_size == 1, "it was overwritten");
  forget ("refused");
}
