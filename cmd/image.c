/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See image.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "base/child.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/container.h"
#include "cmd/image.h"
#include "mirror/endpoint/uri.h"

int
image_refuse_container (const char *path, const char *option)
{
  uint8_t head[CONTAINER_HEAD];
  struct stat st;

  /* Looked at before it is opened: opening a fifo would wait. */
  if (stat (path, &st) == -1 || (!S_ISREG (st.st_mode) && !S_ISBLK (st.st_mode)))
    return EXIT_DONE;
  int fd = open (path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
  ssize_t n = fd == -1 ? -1 : pread (fd, head, sizeof head, 0);
  fd_close (&fd);
  const char *format = n > 0 ? container_format (head, (size_t)n) : NULL;
  if (format == NULL)
    return EXIT_DONE;
  cmd_say ("%s: begins like a container in the format %s, which is not a raw disk: give %s %s if "
           "it is one, or %s raw if these bytes are the disk's own",
           path, format, option, format, option);
  return EXIT_REFUSED;
}

/* What qemu-img tells of it, a new reference; or NULL after a message. */
static json_t *
describe (const char *path, const char *format)
{
  const char *const words[]
      = { "qemu-img", "info", "--force-share", "--output=json", "-f", format, path, NULL };
  char *output = NULL;

  int r = child_run (words, &output);
  json_t *info = r == 0 && output != NULL ? json_loads (output, 0, NULL) : NULL;
  free (output);
  if (info == NULL) {
    if (r == -1 || r == 127)
      cmd_say ("%s: qemu-img cannot be run: is qemu-utils installed?", path);
    else
      cmd_say ("%s: qemu-img cannot read it as %s", path, format);
  }
  return info;
}

int
image_check (const char *path, const char *format)
{
  json_t *info = describe (path, format);
  if (info == NULL)
    return EXIT_ERROR;
  const char *base = json_string_value (json_object_get (info, "backing-filename"));
  bool guess = base != NULL && json_object_get (info, "backing-filename-format") == NULL;
  if (guess)
    cmd_say ("%s: the format of its base %s is not recorded, and it is not guessed: record it with "
             "'qemu-img rebase -u -b %s -F FORMAT %s'",
             path, base, base, path);
  json_decref (info);
  return guess ? EXIT_REFUSED : EXIT_DONE;
}

int
image_unused (const char *path, const char *format)
{
  const char *const words[] = { "qemu-img", "info", "-f", format, path, NULL };
  char *output = NULL;

  int r = child_run (words, &output);
  free (output);
  if (r == 0)
    return EXIT_DONE;
  cmd_say ("%s: in use, as qemu-img says: end the program that has it open first", path);
  return EXIT_ERROR;
}

int
image_base (const char *path, const char *format, char **base, char **base_format)
{
  json_t *info = describe (path, format);
  if (info == NULL)
    return EXIT_ERROR;
  const char *name = json_string_value (json_object_get (info, "full-backing-filename"));
  if (name == NULL)
    name = json_string_value (json_object_get (info, "backing-filename"));
  const char *its_format = json_string_value (json_object_get (info, "backing-filename-format"));
  bool known = name != NULL && its_format != NULL;
  if (known) {
    *base = text_copy (name);
    *base_format = text_copy (its_format);
  } else
    cmd_say ("refused: %s has no base below it, which --sync top needs", path);
  json_decref (info);
  return known ? EXIT_DONE : EXIT_REFUSED;
}

static void
fill (struct image *image, const char *format, bool writable)
{
  const char *const words[IMAGE_WORDS] = { "[",
                                           "qemu-nbd",
                                           "--format",
                                           format,
                                           "--persistent",
                                           "--shared=0",
                                           "--allocation-depth",
                                           writable ? "--discard=unmap" : "--read-only",
                                           image->path,
                                           "]" };

  for (unsigned i = 0; i < IMAGE_WORDS; i++)
    image->words[i] = (char *)words[i]; /* exec leaves them alone */
}

/* The absolute path of a file that may be missing.  False with errno. */
static bool
absolute_path (const char *path, bool may_be_missing, char absolute[PATH_MAX])
{
  if (realpath (path, absolute) != NULL)
    return true;
  if (errno != ENOENT || !may_be_missing)
    return false;
  const char *slash = strrchr (path, '/'), *name = slash ? slash + 1 : path;
  CLEANUP_TEXT char *folder
      = slash ? text_printf ("%.*s", (int)(slash - path) + 1, path) : text_copy (".");
  struct stat st;
  if (realpath (folder, absolute) == NULL)
    return false;
  size_t used = strlen (absolute);
  int n = snprintf (absolute + used, PATH_MAX - used, "/%s", name);
  if (*name == '\0' || lstat (path, &st) == 0) { /* a dangling link */
    errno = ENOENT;
    return false;
  }
  errno = ENAMETOOLONG;
  return n > 0 && (size_t)n < PATH_MAX - used;
}

void
image_to_create (const struct image *image, const char *format, struct endpoint_options *opts)
{
  if (image->path[0] == '\0')
    return;
  opts->image = image->path;
  opts->image_format = format;
}

/* A new file is raw unless a format is given, which its name may belie. */
static void
warn_of_name (const char *path, const char *option)
{
  static const char *const suffixes[] = { ".qcow2", ".qed", ".vmdk", ".vdi", ".vhdx" };
  const char *suffix = strrchr (path, '.');

  if (suffix == NULL || access (path, F_OK) == 0)
    return;
  for (size_t i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++)
    if (strcmp (suffix, suffixes[i]) == 0)
      cmd_warning ("%s is going to be a raw file, whatever its name says: '%s %s' makes an image",
                   path, option, suffix + 1);
}

bool
image_place (struct cmd_line *line, struct cmd_operand *op, const char *option, const char *format,
             bool writable, struct image *image)
{
  bool local = op->nr_args == 1 && uri_kind (op->argv[0]) == URI_NONE;

  image->path[0] = '\0';
  if (!local && format != NULL)
    line->status = cmd_usage_error ("%s is for a local image; the server of %s knows its format",
                                    option, op->argv[0]);
  else if (!local || (format != NULL && strcmp (format, "raw") == 0))
    return true;
  else if (format == NULL) {
    line->status = image_refuse_container (op->argv[0], option);
    if (line->status == EXIT_DONE && writable)
      warn_of_name (op->argv[0], option);
    return line->status == EXIT_DONE;
  } else if (!absolute_path (op->argv[0], writable, image->path)) {
    cmd_say ("%s: %s", op->argv[0], strerror (errno));
    line->status = EXIT_ERROR;
  } else if (access (image->path, F_OK) == 0 || errno != ENOENT)
    line->status = image_check (image->path, format);
  if (line->status != EXIT_DONE)
    return false;
  fill (image, format, writable);
  op->argv = image->words;
  op->nr_args = IMAGE_WORDS;
  return true;
}
