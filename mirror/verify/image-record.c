/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What is kept of an image's digest.  See image-digest.h.
 *
 * The record is a text: what each of the image's files was when it was read, one line a file from
 * the image down its backing chain, and before them the digest.  Whether it still holds is decided
 * by writing these lines anew and comparing.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/child.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "mirror/verify/image-digest.h"

#define MAX_RECORD 65536
#define FIRST_LINE "nbdmirror-digest 1 "
#define SETTLED_US (2 * US_PER_S) /* the coarsest time stamps that file systems keep */

struct image_record {
  char *place; /* where it is kept */
  char *files; /* the lines */
  bool settled;
};

/* Add a line.  False if the file is nothing of which a digest can be kept. */
static bool
add_file (struct image_record *r, const char *path)
{
  struct stat st;

  if (stat (path, &st) == -1 || !S_ISREG (st.st_mode) || strchr (path, '\n') != NULL)
    return false;
  char *files
      = text_printf ("%s%ju %ju %jd %jd.%09ld %jd.%09ld %s\n", r->files, (uintmax_t)st.st_dev,
                     (uintmax_t)st.st_ino, (intmax_t)st.st_size, (intmax_t)st.st_mtim.tv_sec,
                     st.st_mtim.tv_nsec, (intmax_t)st.st_ctim.tv_sec, st.st_ctim.tv_nsec, path);
  text_free (r->files);
  r->files = files;
  if ((int64_t)st.st_ctim.tv_sec * US_PER_S + st.st_ctim.tv_nsec / NS_PER_US
      > clock_date_us () - SETTLED_US)
    r->settled = false;
  return true;
}

/* All files of an image that has a format: its own, and those below it. */
static bool
add_chain (struct image_record *r, const char *path, const char *format)
{
  const char *words[]
      = { "qemu-img", "info", "--force-share", "--backing-chain", "--output=json", "-f", format,
          path,       NULL };
  char *out = NULL;
  bool good = child_run (words, &out) == 0 && out != NULL;
  json_t *chain = good ? json_loads (out, 0, NULL) : NULL;
  size_t i;
  json_t *image;

  good = json_is_array (chain) && json_array_size (chain) > 0;
  json_array_foreach (chain, i, image)
  {
    const char *name = json_string_value (json_object_get (image, "filename"));
    json_t *specific = json_object_get (json_object_get (image, "format-specific"), "data");
    /* An image whose data is in another file is too rare to follow. */
    good = good && name != NULL && json_object_get (specific, "data-file") == NULL
           && add_file (r, name);
  }
  json_decref (chain);
  free (out);
  return good;
}

struct image_record *
image_record_look (const char *path, const char *format)
{
  struct image_record *r = calloc (1, sizeof *r);
  char *full = realpath (path, NULL);

  if (r == NULL || full == NULL)
    goto fail;
  r->settled = true;
  r->files = text_copy ("");
  r->place = text_printf ("%s.nbdmirror-digest", full);
  if (strcmp (format, "raw") == 0 ? !add_file (r, full) : !add_chain (r, full, format))
    goto fail;
  free (full);
  return r;

fail:
  free (full);
  image_record_free (r);
  return NULL;
}

void
image_record_free (struct image_record *r)
{
  if (r == NULL)
    return;
  text_free (r->place);
  text_free (r->files);
  free (r);
}

bool
image_record_same (const struct image_record *a, const struct image_record *b)
{
  return strcmp (a->files, b->files) == 0;
}

bool
image_record_read (const struct image_record *r, char text[DIGEST_WHOLE_TEXT])
{
  char record[MAX_RECORD];
  struct stat st;
  int fd = open (r->place, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

  if (fd == -1)
    return false;
  /* In a directory that is everybody's, anybody could have put it there. */
  bool ours = fstat (fd, &st) == 0 && S_ISREG (st.st_mode)
              && (st.st_uid == geteuid () || st.st_uid == 0) && !(st.st_mode & S_IWOTH);
  ssize_t n = ours ? read (fd, record, sizeof record - 1) : -1;
  fd_close (&fd);
  if (n <= 0)
    return false;
  record[n] = '\0';
  const char *p = record;
  if (strncmp (p, FIRST_LINE, strlen (FIRST_LINE)) != 0)
    return false;
  p += strlen (FIRST_LINE);
  if (strspn (p, "0123456789abcdef") != DIGEST_WHOLE_TEXT - 1 || p[DIGEST_WHOLE_TEXT - 1] != '\n'
      || strcmp (p + DIGEST_WHOLE_TEXT, r->files) != 0)
    return false;
  memcpy (text, p, DIGEST_WHOLE_TEXT - 1);
  text[DIGEST_WHOLE_TEXT - 1] = '\0';
  return true;
}

bool
image_record_write (const struct image_record *r, const char *text)
{
  CLEANUP_TEXT char *record = text_printf (FIRST_LINE "%s\n%s", text, r->files);
  CLEANUP_TEXT char *temporary = text_printf ("%s.%ld", r->place, (long)getpid ());

  if (!r->settled || strlen (record) >= MAX_RECORD) {
    errno = EAGAIN;
    return false;
  }
  int fd = open (temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd == -1)
    return false;
  size_t length = strlen (record);
  bool good = write (fd, record, length) == (ssize_t)length;
  fd_close (&fd);
  good = good && rename (temporary, r->place) == 0;
  if (!good) {
    int err = errno;
    unlink (temporary);
    errno = err;
  }
  return good;
}
