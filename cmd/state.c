/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror state: what a state file holds, and what a server would do with it.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/text.h"
#include "base/uuid.h"
#include "cmd/cmd.h"
#include "cmd/units.h"
#include "dirty-bitmap/state/state.h"

enum { OPT_DISK = 0x100 };

static const struct cmd_option options[] = {
  { "disk", OPT_DISK, "FILE", "the disk that it belongs to: was it changed meanwhile?" },
  { "json", 'j', NULL, "print a JSON object" },
  CMD_OPTIONS_END,
};

static const char *const status_names[] = { NULL, "clean", "active", "inconsistent" };
static const char *const recovery_names[] = { "none", "clean", "exact", "extents", "everything" };

/* Is a server using it? */
static bool
in_use (int fd)
{
  struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

  return fcntl (fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static void
print_json (const struct state_found *f, bool used)
{
  char uuid[UUID_TEXT_BYTES];

  uuid_text (f->super.uuid, uuid);
  json_t *note = json_loads (f->note, 0, NULL);
  json_t *o = json_pack (
      "{s:b, s:b, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:o}", "job", f->super.job,
      "in-use", used, "status", f->super.job ? status_names[f->super.status] : "idle", "recovery",
      recovery_names[f->how], "tracker", uuid, "size", (json_int_t)f->super.disk_size, "block-size",
      (json_int_t)f->super.block_size, "extent-size", (json_int_t)f->layout.extent_size,
      "hot-extents", (json_int_t)f->l1_extents, "dirty-blocks", (json_int_t)f->dirty_blocks,
      "over-marked-blocks", (json_int_t)(f->dirty_blocks - f->fine_blocks), "bad-pages",
      (json_int_t)f->bad_pages, "reason", f->reason, "note", note != NULL ? note : json_null ());
  json_dumpf (o, stdout, JSON_INDENT (2));
  putchar ('\n');
  json_decref (o);
}

static void
print_text (const struct state_found *f, bool used)
{
  static const char *const meaning[] = {
    "",
    "the last server ended cleanly: the fine bits count",
    "the last server was killed in this boot: the live map counts",
    "the last server was killed, or the power failed: hot extents count as dirty",
    "every block counts as dirty",
  };
  char size[UNITS_BUF], dirty[UNITS_BUF], over[UNITS_BUF], uuid[UUID_TEXT_BYTES];

  if (used)
    printf ("in use by a server: what follows changes\n");
  if (!f->super.job) {
    printf ("no job\n");
    return;
  }
  unsigned shift = f->layout.geo.block_shift;
  uuid_text (f->super.uuid, uuid);
  printf ("tracker      %s\n", uuid);
  printf ("disk         %s in blocks of %" PRIu32 "\n",
          units_format_size (size, f->super.disk_size), f->super.block_size);
  printf ("status       %s\n", status_names[f->super.status]);
  printf ("hot extents  %" PRIu64 "\n", f->l1_extents);
  printf ("recovery     %s: %s\n", recovery_names[f->how], meaning[f->how]);
  if (f->reason[0] != '\0')
    printf ("reason       %s\n", f->reason);
  printf ("dirty        %s, of which %s because their extents were hot\n",
          units_format_size (dirty, f->dirty_blocks << shift),
          units_format_size (over, (f->dirty_blocks - f->fine_blocks) << shift));
  printf ("bad pages    %" PRIu64 "\n", f->bad_pages);
}

static int
show (const char *path, const char *disk, bool json)
{
  CLEANUP_FD int fd = open (path, O_RDONLY | O_CLOEXEC);
  CLEANUP_FD int disk_fd = disk != NULL ? open (disk, O_RDONLY | O_CLOEXEC) : -1;
  CLEANUP_TEXT char *error = NULL;
  struct state_identity now;
  struct state_found found;
  uint8_t boot[16];
  struct stat st;

  if (fd == -1 || fstat (fd, &st) == -1 || (disk != NULL && disk_fd == -1)) {
    cmd_say ("%s: %s", fd == -1 ? path : disk, strerror (errno));
    return EXIT_ERROR;
  }
  state_boot_id (boot);
  state_identity_of (disk_fd, &now);
  if (state_find (fd, (uint64_t)st.st_size, boot, disk != NULL ? &now : NULL, &found, &error)
      == -1) {
    cmd_say ("%s: %s", path, error);
    return EXIT_ERROR;
  }
  if (json)
    print_json (&found, in_use (fd));
  else
    print_text (&found, in_use (fd));
  int status
      = found.bad_pages != 0 || found.super.status == STATE_INCONSISTENT ? EXIT_ERROR : EXIT_DONE;
  state_found_free (&found);
  return status;
}

static int
run (struct cmd_line *line)
{
  const char *disk = NULL;
  bool json = false;
  int c;

  while ((c = cmd_getopt (line)) != -1)
    switch (c) {
    case OPT_DISK:
      disk = optarg;
      break;
    case 'j':
      json = true;
      break;
    default:
      return line->status;
    }
  if (!cmd_operands_ok (line, 1, 1, "FILE"))
    return line->status;
  return show (line->operands[0].argv[0], disk, json);
}

const struct subcommand subcommand_state = {
  "state",
  "FILE [OPTIONS]",
  "Show a state file, and check it.",
  "FILE is what --state of serve, or mirror-state= of the filter, named.  Every checksum is "
  "checked.\n"
  "Told is what the next server would take for dirty.  Nothing is changed.\n"
  "Exit status 0: all is well; 1: it is damaged, inconsistent, or no state file.\n",
  options,
  NULL,
  "Example:\n"
  "  nbdmirror state /var/lib/nbdmirror/vm1.state --disk /srv/vm1.img\n",
  run,
};
