/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror digest: the digest of an image, by which two hosts find out whether they have the same.
 * `receive` runs it for the base of its disk, and hands on what it says to --status-fd.
 */

#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/worker.h"
#include "digest/export-name.h"
#include "mirror/verify/image-digest.h"

#define TELL_MS 100

enum { OPT_FORMAT = 0x200, OPT_STATUS_FD };

static const struct cmd_option options[] = {
  { "format", OPT_FORMAT, "FORMAT", "the image's format, for instance qcow2 (default raw)" },
  { "status-fd", OPT_STATUS_FD, "N",
    "keep a file up to date that is open as descriptor N (for nbdmirror receive)" },
  CMD_OPTIONS_END,
};

struct digesting {
  int status_fd; /* -1: none */
  uint64_t told_ms;
  _Atomic int *signal;
};

/* One write, so that a reader sees the old text or the new one. */
static void
tell (const struct digesting *d, const char *text)
{
  char all[DIGEST_BASE_SIZE] = "";

  if (d->status_fd == -1)
    return;
  snprintf (all, sizeof all, "%s", text);
  if (pwrite (d->status_fd, all, sizeof all, 0) == -1)
    cmd_say ("--status-fd %d: %m", d->status_fd);
}

static bool
progress (void *opaque, uint64_t done, uint64_t size)
{
  struct digesting *d = opaque;
  uint64_t now = clock_ms ();

  if (now - d->told_ms >= TELL_MS) {
    CLEANUP_TEXT char *text = text_printf ("computing %" PRIu64 " %" PRIu64 "\n", done, size);
    d->told_ms = now;
    tell (d, text);
  }
  return atomic_load (d->signal) == 0;
}

static int
digest_image (struct digesting *d, const char *path, const char *format)
{
  const struct image_digest_options o
      = { .path = path, .format = format, .opaque = d, .progress = progress };
  const struct endpoint_options eo = { .writable = false };
  char text[DIGEST_WHOLE_TEXT], *error = NULL;
  bool kept;
  int r = -1;

  struct endpoint *ep = sync_open_image (path, format, &eo, &error);
  if (ep != NULL) {
    r = image_digest (ep, &o, text, &kept, &error);
    endpoint_close (ep);
  }
  if (r == 0) {
    CLEANUP_TEXT char *done = text_printf ("done %s\n", text);
    tell (d, done);
    printf ("%s  %s\n", text, path);
    return EXIT_DONE;
  }
  bool cancelled = atomic_load (d->signal) != 0;
  CLEANUP_TEXT char *failed = text_printf ("failed %.400s\n", error);
  tell (d, failed);
  if (!cancelled)
    cmd_say ("%s", error);
  text_free (error);
  return cancelled ? EXIT_CANCELLED : EXIT_ERROR;
}

static int
run (struct cmd_line *line)
{
  struct digesting d = { .status_fd = -1 };
  const char *format = "raw";
  int c;

  while ((c = cmd_getopt (line)) != -1)
    switch (c) {
    case OPT_FORMAT:
      format = optarg;
      break;
    case OPT_STATUS_FD: {
      char *end;
      d.status_fd = (int)strtoul (optarg, &end, 10);
      if (*optarg == '\0' || *end != '\0' || d.status_fd <= STDERR_FILENO)
        return cmd_usage_error ("--status-fd %s: must be the number of an open descriptor", optarg);
      break;
    }
    default:
      return line->status;
    }
  if (!cmd_operands_ok (line, 1, 1, "IMAGE"))
    return line->status;
  if (line->operands[0].nr_args != 1)
    return cmd_usage_error ("IMAGE is the path of an image, or an NBD URI");
  if (worker_signals (&d.signal) == -1)
    return EXIT_ERROR;
  return digest_image (&d, line->operands[0].argv[0], format);
}

const struct subcommand subcommand_digest = {
  "digest",
  "IMAGE [OPTIONS]",
  "Compute the digest of an image.",
  "Prints the digest of IMAGE's contents, by which two hosts find out whether they have the same\n"
  "base image.  It is kept beside the image and computed again when the image has changed.\n",
  options,
  NULL,
  "Example:\n"
  "  nbdmirror digest /srv/base.qcow2 --format qcow2\n",
  run,
};
