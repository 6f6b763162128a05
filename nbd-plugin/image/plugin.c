/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdkit-image-plugin: a disk image in a format that qemu-nbd knows, as `serve --format` serves it.
 * A qemu-nbd that dies is started again, and the guest notices nothing but a pause.  This file has
 * nbdkit's callbacks and the parameters; image.h has the reasons.
 *
 * All clients share the connections of the one image, so a flush covers what any of them has
 * written.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "base/text.h"
#include "control/layers-export.h"
#include "control/lend-export.h"
#include "nbd-plugin/image/image.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#define MAX_REQUEST (32u << 20) /* what qemu-nbd takes, if it does not say */
/* One that fills the log could begin only while there is no other change, so perhaps never. */
#define MAX_PIECE ((uint32_t)LOG_LIMIT / 4)

/* Static, because nbdkit's callbacks before open() get no pointer.  Constant after config(), but
 * for IMAGE, which exists from after_fork() to cleanup(). */
static struct image_options options;
static char *path;              /* owned */
static const char *layers_name; /* of the export that tells layers apart; NULL: there is none */
static struct image *image;

/* What a connection is to.  Only the addresses count. */
static char disk_handle, layers_handle, lend_handle;

static int
image_config (const char *key, const char *value)
{
  if (strcmp (key, "image") == 0) {
    free (path);
    path = nbdkit_absolute_path (value);
    options.path = path;
    return path != NULL ? 0 : -1;
  }
  if (strcmp (key, "image-format") == 0) {
    options.format = nbdkit_strdup_intern (value);
    return options.format != NULL ? 0 : -1;
  }
  if (strcmp (key, "image-read-only") == 0) {
    int yes = nbdkit_parse_bool (value);
    options.read_only = yes == 1;
    return yes == -1 ? -1 : 0;
  }
  if (strcmp (key, "image-layers") == 0) {
    options.layers = true;
    layers_name = nbdkit_strdup_intern (value);
    return layers_name != NULL ? 0 : -1;
  }
  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

static int
image_config_complete (void)
{
  if (options.path != NULL && options.format != NULL)
    return 0;
  nbdkit_error ("the image plugin needs image=PATH and image-format=FORMAT");
  return -1;
}

#define image_config_help                                                                          \
  "image=<PATH>             (required) The image.\n"                                               \
  "image-format=<FORMAT>    (required) Its format, for instance qcow2; it is never guessed.\n"     \
  "image-read-only=<BOOL>   Open it for reading only.\n"                                           \
  "image-layers=<NAME>      A second export, which tells the image's layers apart."

static int
image_after_fork (void)
{
  char *error = NULL;

  image = image_open (&options, &error);
  if (image != NULL)
    return 0;
  nbdkit_error ("%s", error);
  text_free (error);
  return -1;
}

static void
image_cleanup (void)
{
  if (image != NULL)
    image_close (image);
  image = NULL;
}

static void
image_unload (void)
{
  free (path);
}

static void *
open_lent (void)
{
  int err = image_lend (image);

  if (err == 0)
    return &lend_handle;
  nbdkit_error ("%s: it cannot be lent: %s", options.path,
                err == EBUSY ? "somebody has it already" : strerror (err));
  return NULL;
}

static void *
image_opened (int readonly)
{
  const char *name = nbdkit_export_name ();

  (void)readonly;
  if (name == NULL)
    return NULL;
  if (strcmp (name, LEND_EXPORT) == 0)
    return open_lent ();
  if (layers_name == NULL || strcmp (name, layers_name) != 0)
    return &disk_handle;
  if (!image_facts (image)->layers || !image_facts (image)->extents) {
    nbdkit_error ("%s: qemu-nbd does not tell its layers apart", options.path);
    return NULL;
  }
  return &layers_handle;
}

static void
image_closed (void *handle)
{
  if (handle == &lend_handle)
    image_take_back (image);
}

static const char *
image_export_description (void *handle)
{
  if (handle == &lend_handle)
    return nbdkit_printf_intern (LEND_DESCRIPTION "%s", options.format);
  return handle == &layers_handle ? LAYERS_DESCRIPTION : NULL;
}

/* ---- what the image can do ------------------------------------------------------------------- */

static int64_t
image_get_size (void *handle)
{
  (void)handle;
  return image_facts (image)->size;
}

static uint32_t
max_request (void)
{
  uint32_t maximum = image_facts (image)->maximum;

  return maximum != 0 && maximum < MAX_REQUEST ? maximum : MAX_REQUEST;
}

static int
image_block_size (void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
  const struct image_facts *f = image_facts (image);

  (void)handle;
  *minimum = f->minimum != 0 ? f->minimum : 1;
  *preferred = f->preferred != 0 ? f->preferred : 4096;
  *maximum = max_request ();
  return 0;
}

static int
image_can_write (void *handle)
{
  return handle == &disk_handle && !image_facts (image)->read_only;
}

static int
image_can_flush (void *handle)
{
  return handle != &lend_handle && image_facts (image)->flush;
}

static int
image_is_rotational (void *handle)
{
  (void)handle;
  return image_facts (image)->rotational;
}

static int
image_can_trim (void *handle)
{
  (void)handle;
  return image_facts (image)->trim;
}

static int
image_can_zero (void *handle)
{
  (void)handle;
  return image_facts (image)->zero;
}

static int
image_can_fast_zero (void *handle)
{
  (void)handle;
  return image_facts (image)->fast_zero;
}

static int
image_can_fua (void *handle)
{
  const struct image_facts *f = image_facts (image);

  (void)handle;
  return f->fua ? NBDKIT_FUA_NATIVE : f->flush ? NBDKIT_FUA_EMULATE : NBDKIT_FUA_NONE;
}

static int
image_can_multi_conn (void *handle)
{
  (void)handle;
  return 1;
}

static int
image_can_cache (void *handle)
{
  return handle != &lend_handle && image_facts (image)->cache ? NBDKIT_CACHE_NATIVE
                                                              : NBDKIT_CACHE_NONE;
}

static int
image_can_extents (void *handle)
{
  return handle != &lend_handle && image_facts (image)->extents;
}

/* ---- requests -------------------------------------------------------------------------------- */

static int
failed (const struct image_request *r, const char *what, int err)
{
  if (err == ENOTSUP)
    nbdkit_debug ("%s at offset %" PRIu64 ": %s", what, r->offset, strerror (err));
  else
    nbdkit_error ("%s: %s at offset %" PRIu64 ": %s", options.path, what, r->offset,
                  strerror (err));
  errno = err;
  return -1;
}

static int
perform (struct image_request *r, const char *what)
{
  int err = image_do (image, r);

  return err == 0 ? 0 : failed (r, what, err);
}

/* The same for a request whose length qemu-nbd or the log limits. */
static int
perform_in_pieces (struct image_request *r, const char *what)
{
  uint64_t left = r->count;

  while (left > 0) {
    uint32_t most = max_request () < MAX_PIECE ? max_request () : MAX_PIECE;
    r->count = left < most ? (uint32_t)left : most;
    int err = image_do (image, r);
    if (err != 0)
      return failed (r, what, err);
    left -= r->count;
    r->offset += r->count;
    if (r->action == IMAGE_READ)
      r->buf = (char *)r->buf + r->count;
    else if (r->action == IMAGE_WRITE)
      r->data = (const char *)r->data + r->count;
  }
  return 0;
}

static uint32_t
flags_of (uint32_t flags)
{
  return ((flags & NBDKIT_FLAG_FUA) != 0 ? LIBNBD_CMD_FLAG_FUA : 0)
         | ((flags & NBDKIT_FLAG_FAST_ZERO) != 0 ? LIBNBD_CMD_FLAG_FAST_ZERO : 0)
         | ((flags & NBDKIT_FLAG_REQ_ONE) != 0 ? LIBNBD_CMD_FLAG_REQ_ONE : 0);
}

static int
image_pread (void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  struct image_request r = { .action = IMAGE_READ, .buf = buf, .count = count, .offset = offset };

  (void)flags;
  if (handle == &lend_handle)
    return failed (&r, "read of what is lent", EPERM);
  return perform_in_pieces (&r, "read");
}

static int
image_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  struct image_request r = {
    .action = IMAGE_WRITE, .data = buf, .count = count, .offset = offset, .flags = flags_of (flags)
  };

  (void)handle;
  return perform_in_pieces (&r, "write");
}

static int
image_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  struct image_request r
      = { .action = IMAGE_TRIM, .count = count, .offset = offset, .flags = flags_of (flags) };

  (void)handle;
  return perform (&r, "trim");
}

static int
image_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  struct image_request r
      = { .action = IMAGE_ZERO, .count = count, .offset = offset, .flags = flags_of (flags) };

  (void)handle;
  if ((flags & NBDKIT_FLAG_MAY_TRIM) == 0)
    r.flags |= LIBNBD_CMD_FLAG_NO_HOLE;
  return perform (&r, "zero");
}

static int
image_flush (void *handle, uint32_t flags)
{
  struct image_request r = { .action = IMAGE_FLUSH };

  (void)handle, (void)flags;
  return perform (&r, "flush");
}

static int
image_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  struct image_request r = { .action = IMAGE_CACHE, .count = count, .offset = offset };

  (void)handle, (void)flags;
  return perform_in_pieces (&r, "cache");
}

static int
tell_extent (void *opaque, uint64_t offset, uint64_t length, uint32_t type)
{
  return nbdkit_add_extent (opaque, offset, length, type);
}

static int
image_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags,
               struct nbdkit_extents *extents)
{
  struct image_extents list = { 0 };
  struct image_request r = { .action = IMAGE_STATUS,
                             .count = count,
                             .offset = offset,
                             .flags = flags_of (flags),
                             .extents = &list };

  int err = image_do (image, &r);
  if (err == 0)
    err = extents_tell (&list, handle == &layers_handle, tell_extent, extents);
  extents_free (&list);
  return err == 0 ? 0 : failed (&r, "block status", err);
}

static struct nbdkit_plugin plugin = {
  .name = "image",
  .longname = "nbdmirror image plugin",
  .version = PACKAGE_VERSION,
  .description = "disk images in qemu-nbd's formats, with a qemu-nbd that may die",
  .unload = image_unload,
  .config = image_config,
  .config_complete = image_config_complete,
  .config_help = image_config_help,
  .magic_config_key = "image",
  .after_fork = image_after_fork,
  .cleanup = image_cleanup,
  .open = image_opened,
  .close = image_closed,
  .export_description = image_export_description,
  .get_size = image_get_size,
  .block_size = image_block_size,
  .can_write = image_can_write,
  .can_flush = image_can_flush,
  .is_rotational = image_is_rotational,
  .can_trim = image_can_trim,
  .can_zero = image_can_zero,
  .can_fast_zero = image_can_fast_zero,
  .can_fua = image_can_fua,
  .can_multi_conn = image_can_multi_conn,
  .can_cache = image_can_cache,
  .can_extents = image_can_extents,
  .pread = image_pread,
  .pwrite = image_pwrite,
  .trim = image_trim,
  .zero = image_zero,
  .flush = image_flush,
  .cache = image_cache,
  .extents = image_extents,
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN (plugin)
