/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * SOURCE and DEST as local images in another format than raw: --source-format, --dest-format and
 * `serve --format`.  qemu-nbd reads and writes them.
 */

#ifndef NBDMIRROR_CMD_IMAGE_H
#define NBDMIRROR_CMD_IMAGE_H

#include <limits.h>
#include <stdbool.h>

#include "cmd/cmd.h"
#include "mirror/endpoint/endpoint.h"

#define IMAGE_WORDS 10

/* Room for the command that stands for an image. */
struct image {
  char path[PATH_MAX]; /* absolute; "" where there is no such command */
  char *words[IMAGE_WORDS];
};

/* Does PATH, a regular file or a block device, begin like a container?  Returns EXIT_DONE if not,
 * or if it cannot be read: whoever opens it next says why.  Else EXIT_REFUSED, after a message that
 * names both ways out: OPTION raw and OPTION with the format's name. */
int image_refuse_container (const char *path, const char *option);

/* OPTION says that OP is in FORMAT (NULL: it says nothing).  A local image in another format than
 * raw becomes the command of a qemu-nbd that serves it; IMAGE holds that command, and must live as
 * long as OP.  A local file that begins like a container is refused if FORMAT is NULL.  A file that
 * is missing is no fault if it is WRITABLE.  True, or false after a message, with line->status. */
bool image_place (struct cmd_line *line, struct cmd_operand *op, const char *option,
                  const char *format, bool writable, struct image *image);

/* Tell OPTS, of the endpoint that is opened by the command of IMAGE, which image it is, so that it
 * can be created.  IMAGE and FORMAT must live as long as the endpoint. */
void image_to_create (const struct image *image, const char *format, struct endpoint_options *opts);

/* The image below PATH, a local image in FORMAT, and its format, as PATH records them.  EXIT_DONE
 * with *BASE and *BASE_FORMAT (base/text.h, the caller frees them), or an exit status after a
 * message. */
int image_base (const char *path, const char *format, char **base, char **base_format);

/* Can PATH be opened in FORMAT, without a guess at the format of anything below it?  An overlay
 * whose base has no recorded format is refused: QEMU would look at the base's first block, which is
 * a guest's.  EXIT_DONE, or an exit status after a message. */
int image_check (const char *path, const char *format);

/* Does no other program write to PATH, which image_check() could read?  As far as qemu's locks tell
 * now.  EXIT_DONE, or an exit status after a message. */
int image_unused (const char *path, const char *format);

#endif
