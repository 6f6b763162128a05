/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror backup-list: which backups a repository holds, and which of them are damaged as far as
 * can be seen without reading them.
 */

#include "config.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "backup/chain.h"
#include "base/text.h"
#include "cmd/far/far.h"
#include "cmd/repository/repository.h"
#include "cmd/units.h"

static const struct cmd_option options[] = {
  { "json", 'j', NULL, "print a JSON array, the oldest backup first" },
  CMD_OPTIONS_END,
};

/* NULL, or what is wrong with this disk (for text_free()). */
static char *
disk_fault (const struct opened *o, const struct backup_entry *e, const struct manifest_disk *d)
{
  if (d->file == NULL)
    return text_copy (d->error != NULL ? d->error : "it was not backed up");
  return chain_fault_once (&o->store.repo, &o->list, e->name, d->id);
}

/* ---- JSON ---- */

/* The manifest as it is, and what is wrong. */
static json_t *
entry_json (const struct opened *o, const struct backup_entry *e)
{
  if (e->fault != NULL)
    return json_pack ("{s:s, s:o}", "name", e->name, "fault", manifest_text_to_json (e->fault));
  json_t *all = manifest_to_json (&e->manifest);
  json_t *disks = json_object_get (all, "disks");
  for (unsigned i = 0; i < e->manifest.nr_disks; i++) {
    CLEANUP_TEXT char *fault = disk_fault (o, e, &e->manifest.disks[i]);
    json_object_set_new (json_array_get (disks, i), "fault", manifest_text_or_null (fault));
  }
  json_object_set_new (all, "fault", json_null ());
  return all;
}

/* ---- text ---- */

static void
print_disk (const struct opened *o, const struct backup_entry *e, const struct manifest_disk *d)
{
  char size[UNITS_BUF], file[UNITS_BUF];
  CLEANUP_TEXT char *fault = disk_fault (o, e, d);

  if (d->file != NULL)
    printf ("  %s: %s, %s of %s%s%s\n", d->id, d->full ? "full" : "incremental",
            units_format_size (file, d->file_bytes), units_format_size (size, d->size),
            d->full && d->reason != NULL ? ": " : "",
            d->full && d->reason != NULL ? d->reason : "");
  else
    printf ("  %s:\n", d->id);
  if (fault != NULL)
    printf ("    broken: %s\n", fault);
}

static void
print_entry (const struct opened *o, const struct backup_entry *e)
{
  const struct manifest *m = &e->manifest;
  char when[BACKUP_TIME_TEXT];

  if (e->fault != NULL) {
    printf ("%s  broken: %s\n", e->name, e->fault);
    return;
  }
  format_backup_time (when, m->ended_us);
  printf ("%s  %s  %s%s%s\n", e->name, when, m->guest_frozen ? "guest-frozen" : "crash-consistent",
          m->is_protected ? ", protected" : "", m->is_dropped ? ", being pruned" : "");
  for (unsigned i = 0; i < m->nr_disks && !m->is_dropped; i++)
    print_disk (o, e, &m->disks[i]);
  for (unsigned i = 0; i < m->nr_includes; i++)
    printf ("  file %s (%" PRIu64 " bytes)\n", m->includes[i].source, m->includes[i].bytes);
}

/* ---------------------------------------------------------------------------------------------- */

static int
run (struct cmd_line *line)
{
  struct opened o;
  bool json = false;
  int c;

  while ((c = cmd_getopt (line)) != -1)
    switch (c) {
    case 'j':
      json = true;
      break;
    default:
      return line->status;
    }
  if (!cmd_operands_ok (line, 1, 1, "REPO"))
    return line->status;
  int status;
  if (far_pass_on (line, &status))
    return status;
  status = opened_open (&o, line->operands[0].argv[0]);
  json_t *all = json_array ();
  for (unsigned i = 0; status == EXIT_DONE && i < o.list.nr; i++)
    if (json)
      json_array_append_new (all, entry_json (&o, &o.list.list[i]));
    else
      print_entry (&o, &o.list.list[i]);
  if (status == EXIT_DONE && json) {
    json_dumpf (all, stdout, JSON_INDENT (2));
    putchar ('\n');
  } else if (status == EXIT_DONE && o.list.nr == 0)
    printf ("no backups\n");
  json_decref (all);
  opened_close (&o);
  return status;
}

const struct subcommand subcommand_backup_list = {
  "backup-list",
  "REPO [OPTIONS]",
  "List the backups of a repository.",
  "Shows the backups in REPO, the oldest first: when each was made, whether it is full or\n"
  "incremental, how large its files are, and what is missing or has another size than was\n"
  "recorded.  No file is read; 'nbdmirror backup-verify' does that.\n",
  options,
  NULL,
  "Example:\n"
  "  nbdmirror backup-list /srv/backup\n",
  run,
};
