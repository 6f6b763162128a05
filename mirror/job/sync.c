/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What to send.  See sync.h.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/text.h"
#include "mirror/endpoint/uri.h"
#include "mirror/job/sync.h"

static const char *const names[] = {
  [ENGINE_SYNC_FULL] = "full",
  [ENGINE_SYNC_TOP] = "top",
  [ENGINE_SYNC_BASE] = "base",
  [ENGINE_SYNC_COMPARE] = "compare",
  [ENGINE_SYNC_INCREMENTAL] = "incremental",
};

const char *
sync_name (enum engine_sync mode)
{
  return names[mode];
}

bool
sync_parse (const char *name, enum engine_sync *mode)
{
  for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
    if (strcmp (name, names[i]) == 0) {
      *mode = (enum engine_sync)i;
      return true;
    }
  return false;
}

bool
sync_take (const char *name, struct sync_options *o)
{
  o->automatic = strcmp (name, "auto") == 0;
  if (!o->automatic)
    return sync_parse (name, &o->mode);
  o->mode = ENGINE_SYNC_INCREMENTAL;
  return true;
}

const char *
sync_word (const struct sync_options *o)
{
  return o->automatic ? "auto" : sync_name (o->mode);
}

const char *
sync_fault (const struct sync_options *o)
{
  if (o->mode == ENGINE_SYNC_BASE && o->base == NULL)
    return "--sync base needs --base IMAGE";
  if (o->mode != ENGINE_SYNC_BASE && o->mode != ENGINE_SYNC_TOP && o->base != NULL)
    return "--base goes with --sync base or --sync top";
  if (o->base == NULL && o->base_format != NULL)
    return "--base-format goes with --base";
  if (o->mode == ENGINE_SYNC_TOP)
    return o->base != NULL || o->trust_base
               ? NULL
               : "--sync top needs --base IMAGE, so that it can be checked that the destination has"
                 " the same base; with --trust-base alone nothing is checked";
  if (o->base == NULL && o->trust_base)
    return "--trust-base goes with --base";
  if (o->mode == ENGINE_SYNC_INCREMENTAL && o->since == NULL && o->trust_dest)
    return "--trust-destination needs --since NAME";
  if ((o->mode != ENGINE_SYNC_INCREMENTAL || o->automatic)
      && (o->since != NULL || o->state != NULL || o->trust_dest))
    return "--since, --state and --trust-destination go with --sync incremental";
  return NULL;
}

bool
sync_may_send_clean (enum engine_sync mode, bool persistent)
{
  return mode == ENGINE_SYNC_FULL && !persistent;
}

/* A file that we would make holds nothing, so no base either.  A sample of a base that is nearly
 * empty would not notice. */
static char *
refuse_new_file (const struct session_options *dest, const char *what)
{
  const char *path = dest->endpoint.image;
  struct stat st;

  if (path == NULL) {
    if (dest->nr_dest != 1 || uri_kind (dest->dest[0]) != URI_NONE)
      return NULL;
    path = dest->dest[0];
  }
  bool there = stat (path, &st) == 0;
  if (there ? S_ISREG (st.st_mode) && st.st_size == 0 : errno == ENOENT)
    return text_printf ("%s %s, so it does not hold %s", path,
                        there ? "is empty" : "does not exist", what);
  return NULL;
}

char *
sync_refusal (const struct sync_options *o, const struct endpoint *source,
              const struct session_options *dest)
{
  if (o->mode == ENGINE_SYNC_TOP && !endpoint_info (source)->can_layers)
    return text_printf ("%s does not tell its layers apart, which --sync top needs: serve the disk "
                        "with nbdmirror serve --format, or with qemu-nbd --allocation-depth",
                        endpoint_name (source));
  if (o->mode == ENGINE_SYNC_TOP || o->mode == ENGINE_SYNC_BASE)
    return refuse_new_file (dest,
                            "the base: make it an overlay on the base, or a copy of it, first");
  if (o->mode == ENGINE_SYNC_INCREMENTAL)
    return refuse_new_file (dest, "what the disk held at the checkpoint");
  return NULL;
}

/* Through qemu-nbd, which takes any number of connections, and none but reads. */
static struct endpoint *
open_through_qemu_nbd (const char *image, const char *format, const struct endpoint_options *eo,
                       char **error)
{
  char *path = realpath (image, NULL);
  if (path == NULL) {
    text_error (error, "%s: %s", image, strerror (errno));
    return NULL;
  }
  CLEANUP_TEXT char *option = text_printf ("--format=%s", format);
  const char *argv[]
      = { "[", "qemu-nbd", "--read-only", "--persistent", "--shared=0", option, path, "]" };
  struct endpoint *ep
      = endpoint_open ((char *const *)argv, sizeof argv / sizeof argv[0], eo, NULL, error);
  free (path);
  return ep;
}

struct endpoint *
sync_open_image (const char *image, const char *format, const struct endpoint_options *eo,
                 char **error)
{
  struct endpoint_options reading = { .connect_timeout_ms = eo->connect_timeout_ms,
                                      .request_timeout_ms = eo->request_timeout_ms };
  char *name[] = { (char *)image, NULL };

  if (format != NULL && strcmp (format, "raw") != 0)
    return open_through_qemu_nbd (image, format, &reading, error);
  endpoint_read_others (&reading);
  return endpoint_open (name, 1, &reading, NULL, error);
}

int
sync_open_base (const struct sync_options *o, const struct endpoint_options *eo,
                struct endpoint **base, char **error)
{
  char *why = NULL;

  *base = NULL;
  if (o->base == NULL)
    return 0;
  *base = sync_open_image (o->base, o->base_format, eo, &why);
  if (*base != NULL)
    return 0;
  text_error (error, "base image: %s", why);
  text_free (why);
  return -1;
}
