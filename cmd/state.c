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
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/range-lock.h"
#include "base/text.h"
#include "base/uuid.h"
#include "cmd/cmd.h"
#include "cmd/units.h"
#include "dirty-bitmap/state/check.h"

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
  return range_is_locked (fd, 0, 0);
}

/* What a checkpoint's recording is like. */
struct recording {
  const char *state; /* active, frozen, damaged or inconsistent */
  char *reason;      /* owned: why it is damaged or inconsistent, or NULL */
  uint64_t blocks;   /* that are recorded */
  uint64_t bad_pages;
};

/* All that a file holds. */
struct contents {
  struct state_found found;
  bool used; /* by a server */
  unsigned samples;
  uint64_t bad_pages;           /* of all kinds */
  struct recording *recordings; /* one a checkpoint */
  uint32_t nr_checkpoints;
};

static void
look_at_recording (int fd, const struct state_found *f, uint32_t i, struct recording *r)
{
  const struct state_checkpoint *c = &f->table->list[i];

  if (c->inconsistent) {
    r->state = "inconsistent";
    r->reason = text_copy (c->fault);
  } else if (f->table->recording && i + 1 == f->table->nr) {
    r->state = f->how == STATE_FROM_NOTHING ? "inconsistent" : "active";
    r->reason = f->how == STATE_FROM_NOTHING ? text_copy (f->reason) : NULL;
    r->blocks = f->recorded_blocks;
  } else {
    bool ok = state_check_recording (fd, f, i, &r->blocks, &r->bad_pages, &r->reason) == 0;
    r->state = ok && r->bad_pages == 0 ? "frozen" : "damaged";
    if (ok && r->bad_pages != 0)
      r->reason = text_printf ("%" PRIu64 " pages are damaged: what they tell of counts as changed",
                               r->bad_pages);
  }
}

/* 0, or -1 with *ERROR. */
static int
look_at_rest (int fd, struct contents *c, char **error)
{
  const struct state_found *f = &c->found;
  unsigned bad = 0;

  if (state_check_samples (fd, f, &c->samples, &bad, error) == -1)
    return -1;
  c->bad_pages = f->bad_pages + bad;
  c->nr_checkpoints = f->table != NULL ? f->table->nr : 0;
  c->recordings = calloc (c->nr_checkpoints + 1, sizeof *c->recordings);
  if (c->recordings == NULL)
    return text_error (error, "out of memory");
  for (uint32_t i = 0; i < c->nr_checkpoints; i++) {
    look_at_recording (fd, f, i, &c->recordings[i]);
    c->bad_pages += c->recordings[i].bad_pages;
  }
  return 0;
}

/* Is everything in it as it should be? */
static bool
is_sound (const struct contents *c)
{
  bool sound = c->bad_pages == 0 && c->found.super.status != STATE_INCONSISTENT;

  for (uint32_t i = 0; i < c->nr_checkpoints; i++)
    sound &= strcmp (c->recordings[i].state, "damaged") != 0;
  return sound;
}

static void
contents_free (struct contents *c)
{
  for (uint32_t i = 0; c->recordings != NULL && i < c->nr_checkpoints; i++)
    text_free (c->recordings[i].reason);
  free (c->recordings);
  state_found_free (&c->found);
}

/* ---- output ---- */

static json_t *
checkpoints_json (const struct contents *c)
{
  json_t *list = json_array ();

  for (uint32_t i = 0; i < c->nr_checkpoints; i++) {
    const struct recording *r = &c->recordings[i];
    char uuid[UUID_TEXT_BYTES];
    uuid_text (c->found.table->list[i].uuid, uuid);
    json_array_append_new (list, json_pack ("{s:s, s:s, s:s, s:s?, s:I, s:I}", "name",
                                            c->found.table->list[i].name, "uuid", uuid, "recording",
                                            r->state, "reason", r->reason, "recorded-blocks",
                                            (json_int_t)r->blocks, "bad-pages",
                                            (json_int_t)r->bad_pages));
  }
  return list;
}

static void
print_json (const struct contents *c)
{
  const struct state_found *f = &c->found;
  char uuid[UUID_TEXT_BYTES];

  uuid_text (f->super.uuid, uuid);
  json_t *note = json_loads (f->note, 0, NULL);
  json_t *o = json_pack (
      "{s:b, s:b, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:I, s:o, s:o}", "job",
      f->super.job, "in-use", c->used, "status",
      f->super.job ? status_names[f->super.status] : "idle", "recovery", recovery_names[f->how],
      "tracker", uuid, "size", (json_int_t)f->super.disk_size, "block-size",
      (json_int_t)f->super.block_size, "extent-size", (json_int_t)f->layout.extent_size,
      "hot-extents", (json_int_t)f->l1_extents, "dirty-blocks", (json_int_t)f->dirty_blocks,
      "over-marked-blocks", (json_int_t)(f->dirty_blocks - f->fine_blocks), "bad-pages",
      (json_int_t)c->bad_pages, "reason", f->reason, "samples", (json_int_t)c->samples,
      "checkpoints", checkpoints_json (c), "note", note != NULL ? note : json_null ());
  json_dumpf (o, stdout, JSON_INDENT (2));
  putchar ('\n');
  json_decref (o);
}

static void
print_tracking (const struct contents *c)
{
  static const char *const meaning[] = {
    "",
    "the last server ended cleanly: the fine bits count",
    "the last server was killed in this boot: the live map counts",
    "the last server was killed, or the power failed: hot extents count as dirty",
    "every block counts as dirty",
  };
  const struct state_found *f = &c->found;
  char size[UNITS_BUF], dirty[UNITS_BUF], over[UNITS_BUF], uuid[UUID_TEXT_BYTES];
  unsigned shift = f->layout.geo.block_shift;

  uuid_text (f->super.uuid, uuid);
  printf ("tracker      %s\n", uuid);
  printf ("disk         %s in blocks of %" PRIu32 "\n",
          units_format_size (size, f->super.disk_size), f->super.block_size);
  if (f->super.job) {
    printf ("status       %s\n", status_names[f->super.status]);
    printf ("hot extents  %" PRIu64 "\n", f->l1_extents);
  }
  printf ("recovery     %s: %s\n", recovery_names[f->how], meaning[f->how]);
  if (f->reason[0] != '\0')
    printf ("reason       %s\n", f->reason);
  if (!f->super.job)
    return;
  printf ("dirty        %s, of which %s because their extents were hot\n",
          units_format_size (dirty, f->dirty_blocks << shift),
          units_format_size (over, (f->dirty_blocks - f->fine_blocks) << shift));
  printf ("samples      %u\n", c->samples);
}

static void
print_text (const struct contents *c)
{
  if (c->used)
    printf ("in use by a server: what follows changes\n");
  if (c->found.how != STATE_NO_JOB)
    print_tracking (c);
  if (!c->found.super.job)
    printf ("no job\n");
  for (uint32_t i = 0; i < c->nr_checkpoints; i++) {
    const struct recording *r = &c->recordings[i];
    char size[UNITS_BUF];
    printf ("checkpoint   %s: %s, %s recorded%s%s\n", c->found.table->list[i].name, r->state,
            units_format_size (size, r->blocks * c->found.super.block_size),
            r->reason != NULL ? ": " : "", r->reason != NULL ? r->reason : "");
  }
  printf ("bad pages    %" PRIu64 "\n", c->bad_pages);
}

static int
show (const char *path, const char *disk, bool json)
{
  CLEANUP_FD int fd = open (path, O_RDONLY | O_CLOEXEC);
  CLEANUP_FD int disk_fd = disk != NULL ? open (disk, O_RDONLY | O_CLOEXEC) : -1;
  CLEANUP_TEXT char *error = NULL;
  struct contents c = { .used = fd != -1 && in_use (fd) };
  struct state_identity now;
  uint8_t boot[16];
  struct stat st;

  if (fd == -1 || fstat (fd, &st) == -1 || (disk != NULL && disk_fd == -1)) {
    cmd_say ("%s: %s", fd == -1 ? path : disk, strerror (errno));
    return EXIT_ERROR;
  }
  state_boot_id (boot);
  state_identity_of (disk_fd, &now);
  int status = EXIT_ERROR;
  if (state_find (fd, (uint64_t)st.st_size, boot, disk != NULL ? &now : NULL, &c.found, &error)
          == -1
      || look_at_rest (fd, &c, &error) == -1)
    cmd_say ("%s: %s", path, error);
  else {
    json ? print_json (&c) : print_text (&c);
    status = is_sound (&c) ? EXIT_DONE : EXIT_ERROR;
  }
  contents_free (&c);
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
  "FILE is what --state of serve, or mirror-state= of the filter, named.\n"
  "Every checksum is checked, also those of checkpoints and samples.\n"
  "Told is what the next server would take for dirty.  Nothing is changed.\n"
  "Exit status 0: all is well; 1: it is damaged, inconsistent, or no state file.\n",
  options,
  NULL,
  "Example:\n"
  "  nbdmirror state /var/lib/nbdmirror/vm1.state --disk /srv/vm1.img\n",
  run,
};
