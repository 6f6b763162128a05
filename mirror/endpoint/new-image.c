/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See new-image.h.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <unistd.h>

#include "base/child.h"
#include "base/text.h"
#include "mirror/endpoint/internal.h"
#include "mirror/endpoint/new-image.h"

int
new_image_make (const struct endpoint_options *opts, bool *made, int *errnum, char **error)
{
  *made = false;
  if (!opts->create || !opts->writable || opts->image == NULL || access (opts->image, F_OK) == 0
      || errno != ENOENT)
    return 0;
  CLEANUP_TEXT char *size = text_printf ("%" PRIu64, opts->create_size);
  const char *const words[]
      = { "qemu-img", "create", "-q", "-f", opts->image_format, opts->image, size, NULL };
  int r = child_run (words, NULL);
  if (r == 0) {
    *made = true;
    return 0;
  }
  unlink (opts->image);
  if (r == -1 || r == 127)
    endpoint_fail (errnum, error, EIO, "%s: qemu-img cannot be run: is qemu-utils installed?",
                   opts->image);
  else
    endpoint_fail (errnum, error, EIO, "%s: qemu-img cannot make it as %s", opts->image,
                   opts->image_format);
  return -1;
}
