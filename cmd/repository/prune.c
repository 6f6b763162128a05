/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror backup-prune, backup-merge and backup-protect: which backups go, and which stay.
 */

#include "config.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/lock.h"
#include "backup/retention.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/far/far.h"
#include "cmd/repository/repository.h"
#include "cmd/units.h"
#include "cmd/worker.h"

enum { OPT_KEEP = 0x200 /* and a retention_rule */, OPT_DRY_RUN = 0x300, OPT_OFF };

static const struct cmd_option prune_options[] = {
  { "keep-last", OPT_KEEP + RETENTION_LAST, "N", "keep the last N backups of a disk" },
  { "keep-hourly", OPT_KEEP + RETENTION_HOURLY, "N", "keep the last one of each of N hours" },
  { "keep-daily", OPT_KEEP + RETENTION_DAILY, "N", "keep the last one of each of N days" },
  { "keep-weekly", OPT_KEEP + RETENTION_WEEKLY, "N", "keep the last one of each of N weeks" },
  { "keep-monthly", OPT_KEEP + RETENTION_MONTHLY, "N", "keep the last one of each of N months" },
  { "keep-yearly", OPT_KEEP + RETENTION_YEARLY, "N", "keep the last one of each of N years" },
  { "dry-run", OPT_DRY_RUN, NULL, "only say what would be kept, and why" },
  { "json", 'j', NULL, "print a JSON object" },
  CMD_OPTIONS_END,
};

struct pruning {
  struct opened o;
  unsigned keep[RETENTION_RULES];
  bool dry_run, json;
  _Atomic int *signal;
  enum retention_rule *kept_by; /* of each backup in the list: the first rule of any disk */
};

/* ---- which ones ---- */

static bool
is_readable (const struct backup_entry *e)
{
  return e->fault == NULL && !e->manifest.is_dropped;
}

/* Apply the rules to the backups of the disk ID.  False: out of memory. */
static bool
judge_disk (struct pruning *p, const char *id)
{
  const struct backup_list *list = &p->o.list;
  struct retention_backup *b = calloc (list->nr, sizeof *b);
  unsigned *of = calloc (list->nr, sizeof *of);
  size_t nr = 0;
  bool good = b != NULL && of != NULL;

  for (unsigned i = 0; good && i < list->nr; i++) {
    const struct backup_entry *e = &list->list[i];
    const struct manifest_disk *d = manifest_find_disk (&e->manifest, id);
    if (!is_readable (e) || d == NULL || d->file == NULL)
      continue;
    b[nr] = (struct retention_backup){ .time_s = e->manifest.ended_us / 1000000,
                                       .protected = e->manifest.is_protected };
    of[nr++] = i;
  }
  if (good)
    retention_apply (b, nr, p->keep);
  for (size_t i = 0; i < nr; i++)
    if (b[i].kept_by < p->kept_by[of[i]])
      p->kept_by[of[i]] = b[i].kept_by;
  free (of);
  free (b);
  return good;
}

/* A backup of several disks is kept if a rule keeps it for any of them. */
static bool
judge (struct pruning *p)
{
  const struct backup_list *list = &p->o.list;

  p->kept_by = calloc (list->nr + 1, sizeof *p->kept_by);
  if (p->kept_by == NULL)
    return false;
  for (unsigned i = 0; i < list->nr; i++)
    p->kept_by[i] = RETENTION_NONE;
  for (unsigned i = 0; i < list->nr; i++)
    for (unsigned d = 0; d < list->list[i].manifest.nr_disks; d++)
      if (!judge_disk (p, list->list[i].manifest.disks[d].id))
        return false;
  return true;
}

/* ---- doing it ---- */

/* The names of those that go, copied: the list is read again. */
static char **
names_that_go (const struct pruning *p, size_t *nr)
{
  const struct backup_list *list = &p->o.list;
  char **names = calloc (list->nr + 1, sizeof *names);

  *nr = 0;
  for (unsigned i = 0; names != NULL && i < list->nr; i++)
    if (is_readable (&list->list[i]) && p->kept_by[i] == RETENTION_NONE)
      names[(*nr)++] = text_copy (list->list[i].name);
  return names;
}

static json_t *
report (const struct pruning *p)
{
  json_t *kept = json_array (), *dropped = json_array ();

  for (unsigned i = 0; i < p->o.list.nr; i++) {
    const struct backup_entry *e = &p->o.list.list[i];
    if (!is_readable (e))
      continue;
    if (p->kept_by[i] == RETENTION_NONE)
      json_array_append_new (dropped, json_string (e->name));
    else
      json_array_append_new (kept, json_pack ("{s:s, s:s}", "backup", e->name, "kept-by",
                                              retention_name (p->kept_by[i])));
  }
  return json_pack ("{s:b, s:o, s:o}", "dry-run", p->dry_run, "kept", kept, "dropped", dropped);
}

/* A line for each backup; for text_free(). */
static char *
report_text (const struct pruning *p)
{
  char *text = text_copy ("");

  for (unsigned i = 0; i < p->o.list.nr; i++) {
    const struct backup_entry *e = &p->o.list.list[i];
    CLEANUP_TEXT char *before = text;
    if (!is_readable (e))
      text = text_printf ("%s%s: %s\n", before, e->name,
                          e->fault != NULL ? e->fault : "being pruned");
    else if (p->kept_by[i] == RETENTION_NONE)
      text = text_printf ("%s%s: %s\n", before, e->name, p->dry_run ? "would be pruned" : "pruned");
    else
      text = text_printf ("%s%s: kept (%s)\n", before, e->name, retention_name (p->kept_by[i]));
  }
  return text;
}

static int
prune (struct pruning *p)
{
  char freed_text[UNITS_BUF];
  size_t nr;
  char **names = judge (p) ? names_that_go (p, &nr) : NULL;
  int64_t freed = 0;

  if (names == NULL) {
    cmd_say ("out of memory");
    return EXIT_ERROR;
  }
  json_t *all = report (p);
  CLEANUP_TEXT char *text = report_text (p); /* of the list as it is before */
  int status = EXIT_DONE;
  if (p->dry_run && !p->json)
    printf ("%s", text);
  if (!p->dry_run) {
    status = drop_backups (&p->o, names, nr, p->signal, &freed);
    json_object_set_new (all, "freed-bytes", json_integer ((json_int_t)freed));
    if (status == EXIT_DONE && !p->json)
      printf ("%s%zu backup%s pruned, %s freed\n", text, nr, nr == 1 ? "" : "s",
              units_format_size (freed_text, freed > 0 ? (uint64_t)freed : 0));
  }
  if (p->json && status == EXIT_DONE) {
    json_dumpf (all, stdout, JSON_INDENT (2));
    putchar ('\n');
  }
  json_decref (all);
  for (size_t i = 0; i < nr; i++)
    text_free (names[i]);
  free (names);
  return status;
}

static int
run_prune (struct cmd_line *line)
{
  struct pruning p = { .dry_run = false };
  bool any = false;
  int c;

  while ((c = cmd_getopt (line)) != -1)
    if (c >= OPT_KEEP && c < OPT_KEEP + RETENTION_RULES) {
      char *end;
      unsigned long n = strtoul (optarg, &end, 10);
      if (*optarg < '0' || *optarg > '9' || *end != '\0' || n > 1000000)
        return cmd_usage_error ("--keep-%s %s: must be a number of backups",
                                retention_name ((enum retention_rule) (c - OPT_KEEP)), optarg);
      p.keep[c - OPT_KEEP] = (unsigned)n;
      any |= n > 0;
    } else if (c == OPT_DRY_RUN)
      p.dry_run = true;
    else if (c == 'j')
      p.json = true;
    else
      return line->status;
  if (!cmd_operands_ok (line, 1, 1, "REPO"))
    return line->status;
  int status;
  if (far_pass_on (line, &status))
    return status;
  if (!any)
    return cmd_usage_error ("say what to keep, for instance --keep-daily 7 --keep-weekly 4");
  if (worker_signals (&p.signal) == -1)
    return EXIT_ERROR;
  status = opened_open (&p.o, line->operands[0].argv[0]);
  if (status == EXIT_DONE)
    status = prune (&p);
  free (p.kept_by);
  opened_close (&p.o);
  return status;
}

const struct subcommand subcommand_backup_prune = {
  "backup-prune",
  "REPO --keep-… N [OPTIONS]",
  "Remove backups that are not to be kept.",
  "Removes the backups in REPO that no rule keeps, for each disk on its own.  Each rule keeps the\n"
  "last backup of each of the last N periods that have one, and does not count those again that a\n"
  "rule before it keeps: so the rules add up.  A rule that finds fewer than N keeps the oldest\n"
  "backup as well.  Files that a later backup needs are merged into it, so a chain may go on for\n"
  "ever.  All backups that are kept can be restored at every instant, also when this is killed;\n"
  "the next call goes on then.\n",
  prune_options,
  NULL,
  "Example:\n"
  "  nbdmirror backup-prune /srv/backup --keep-daily 7 --keep-weekly 4 --keep-monthly 12\n",
  run_prune,
};

/* ---- backup-merge ---- */

/* Is there a later backup for each disk of E, into which it can be merged? */
static bool
has_later (const struct opened *o, const struct backup_entry *e)
{
  for (unsigned d = 0; d < e->manifest.nr_disks; d++) {
    bool later = e->manifest.disks[d].file == NULL;
    for (unsigned i = 0; i < o->list.nr; i++) {
      const struct backup_entry *x = &o->list.list[i];
      const struct manifest_disk *same = manifest_find_disk (&x->manifest, e->manifest.disks[d].id);
      later |= is_readable (x) && x->manifest.sequence > e->manifest.sequence && same != NULL
               && same->file != NULL;
    }
    if (!later)
      return false;
  }
  return true;
}

static int
merge (struct opened *o, const char *name, _Atomic int *signal)
{
  const struct backup_entry *e = repository_find (&o->list, name);
  CLEANUP_TEXT char *copy = text_copy (name);
  char *names[] = { copy }, freed_text[UNITS_BUF];
  int64_t freed = 0;

  if (e == NULL)
    cmd_say ("%s: there is no backup %s", o->store.repo.path, name);
  else if (e->fault != NULL)
    cmd_say ("backup %s: %s", name, e->fault);
  else if (e->manifest.is_protected)
    cmd_say ("refused: backup %s is protected ('nbdmirror backup-protect --off' ends that)", name);
  else if (!has_later (o, e))
    cmd_say ("refused: backup %s is the last one of a disk, so there is none to merge it into",
             name);
  else {
    int status = drop_backups (o, names, 1, signal, &freed);
    if (status == EXIT_DONE)
      printf ("%s: merged into the next one, %s freed\n", name,
              units_format_size (freed_text, freed > 0 ? (uint64_t)freed : 0));
    return status;
  }
  return e == NULL || e->fault != NULL ? EXIT_ERROR : EXIT_REFUSED;
}

static int
run_merge (struct cmd_line *line)
{
  _Atomic int *signal;
  struct opened o;

  if (cmd_getopt (line) != -1)
    return line->status;
  if (!cmd_operands_ok (line, 2, 2, "REPO NAME"))
    return line->status;
  int status;
  if (far_pass_on (line, &status))
    return status;
  if (worker_signals (&signal) == -1)
    return EXIT_ERROR;
  status = opened_open (&o, line->operands[0].argv[0]);
  if (status == EXIT_DONE)
    status = merge (&o, line->operands[1].argv[0], signal);
  opened_close (&o);
  return status;
}

const struct subcommand subcommand_backup_merge = {
  "backup-merge",
  "REPO NAME",
  "Merge a backup into the next one.",
  "Removes the backup NAME from REPO.  What the next backup of a disk needs of it is merged into\n"
  "that one, so all others can be restored as before, at every instant.\n",
  NULL,
  NULL,
  "Example:\n"
  "  nbdmirror backup-merge /srv/backup 20260131T235959Z\n",
  run_merge,
};

/* ---- backup-protect ---- */

static const struct cmd_option protect_options[] = {
  { "off", OPT_OFF, NULL, "protect it no more" },
  CMD_OPTIONS_END,
};

/* The manifest is read again under the lock. */
static int
protect (struct opened *o, const char *name, bool on)
{
  CLEANUP_FD int lock = -1;
  char *error = NULL;
  struct backup_list now = { .nr = 0 };
  int status = EXIT_ERROR;

  if (repository_lock (&o->store.repo, NULL, &lock, &error) == 0
      && repository_list (&o->store.repo, &now, &error) == 0) {
    struct backup_entry *e = repository_find (&now, name);
    if (e == NULL)
      text_error (&error, "%s: there is no backup %s", o->store.repo.path, name);
    else if (e->fault != NULL)
      text_error (&error, "backup %s: %s", name, e->fault);
    else if (e->manifest.is_dropped)
      text_error (&error, "backup %s is being pruned: it cannot be protected any more", name);
    else {
      e->manifest.is_protected = on;
      if (repository_write (&o->store.repo, &e->manifest, &error) == 0)
        status = EXIT_DONE;
    }
  }
  if (error != NULL)
    cmd_say ("%s", error);
  text_free (error);
  repository_list_free (&now);
  return status;
}

static int
run_protect (struct cmd_line *line)
{
  bool on = true;
  struct opened o;
  int c;

  while ((c = cmd_getopt (line)) != -1) {
    if (c != OPT_OFF)
      return line->status;
    on = false;
  }
  if (!cmd_operands_ok (line, 2, 2, "REPO NAME"))
    return line->status;
  int status;
  if (far_pass_on (line, &status))
    return status;
  status = opened_open (&o, line->operands[0].argv[0]);
  if (status == EXIT_DONE)
    status = protect (&o, line->operands[1].argv[0], on);
  opened_close (&o);
  return status;
}

const struct subcommand subcommand_backup_protect = {
  "backup-protect",
  "REPO NAME [--off]",
  "Protect a backup from being pruned.",
  "The backup NAME in REPO is kept by 'nbdmirror backup-prune', whatever its rules say.\n",
  protect_options,
  NULL,
  "Example:\n"
  "  nbdmirror backup-protect /srv/backup 20260131T235959Z\n",
  run_protect,
};
