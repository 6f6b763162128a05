/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror backup-verify: can every backup be restored to what it was?
 *
 * Each file is looked at once, however many backups need it: its structure (qemu-img check) and its
 * digest.  Then each disk is read through its whole chain, and the digest compared with the one
 * that was recorded when the backup was made.
 */

#include "config.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/chain.h"
#include "base/child.h"
#include "base/text.h"
#include "cmd/far/far.h"
#include "cmd/repository/boot.h"
#include "cmd/repository/compare.h"
#include "cmd/repository/repository.h"
#include "cmd/worker.h"
#include "digest/list.h"

#define BOOT_LIMIT_MS 120000

enum {
  OPT_AT = 0x200,
  OPT_DISK,
  OPT_QUICK,
  OPT_BOOT,
  OPT_MARK,
  OPT_LIMIT,
  OPT_COMPARE,
  OPT_CONTROL
};

static const struct cmd_option options[] = {
  { "at", OPT_AT, "NAME|TIME",
    "only this backup: its name, or the last one that had ended by TIME" },
  { "disk", OPT_DISK, "DISK", "only this disk" },
  { "quick", OPT_QUICK, NULL, "read no contents: look at manifests, files and their sizes only" },
  { "boot", OPT_BOOT, "COMMAND",
    "start a guest from each backup: run COMMAND with /bin/sh, which finds the disks' URIs in its "
    "environment, and wait for --mark in what it prints" },
  { "mark", OPT_MARK, "TEXT",
    "what COMMAND prints when the guest is up (not the --mark of 'checkpoint verify')" },
  { "boot-limit", OPT_LIMIT, "TIME", "how long that may take (default 120s)" },
  { "compare", OPT_COMPARE, NULL,
    "read no old backups: compare each disk with its last backup, and tell and record what the "
    "tracking has missed" },
  { "control", OPT_CONTROL, "DISK=CONTROL",
    "with --compare: the control socket of DISK, if it is not that of the backup" },
  { "json", 'j', NULL, "print a JSON array, and no progress" },
  CMD_OPTIONS_END,
};

/* A file that was looked at. */
struct looked {
  const char *file; /* of a manifest */
  char *fault;      /* owned; NULL: it is good */
};

struct verifying {
  struct opened o;
  struct selected only; /* entry NULL: all */
  const char *disk;     /* NULL: all */
  bool quick, json;
  struct boot boot;
  _Atomic int *signal;
  struct looked *looked; /* owned */
  unsigned nr_looked;
  json_t *report;
  unsigned nr_good, nr_bad;
  unsigned nr_failed; /* when they were made */
  bool passed_over;   /* a prune is changing one */
  int status;         /* of an error that ends it, or EXIT_DONE */
};

/* ---- files ---- */

/* What is wrong with the structure of PATH, or NULL.  Without the files below it, which are looked
 * at by themselves: opening them takes the longer, the longer the chain is.  A name that is not
 * UTF-8 cannot be said in this way. */
static char *
structure_fault (const char *path)
{
  json_t *alone
      = json_pack ("{s:n, s:{s:s, s:s}}", "backing", "file", "driver", "file", "filename", path);
  char *text = alone != NULL ? json_dumps (alone, 0) : NULL;
  CLEANUP_TEXT char *name = text != NULL ? text_printf ("json:%s", text) : text_copy (path);
  const char *const words[] = { "qemu-img", "check", "-q", "-f", "qcow2", name, NULL };
  char *output = NULL;
  int r = child_run (words, &output);

  free (output);
  free (text);
  json_decref (alone);
  if (r == 0 || r == 3) /* 3: clusters are lost, which costs room and nothing else */
    return NULL;
  return r == -1 || r == 127 ? text_copy ("qemu-img cannot be run: is qemu-utils installed?")
                             : text_printf ("qemu-img check says that it is damaged (%d)", r);
}

/* The same of the file of D, whatever is below it. */
static char *
look_at_file (struct verifying *v, const struct manifest_disk *d)
{
  CLEANUP_TEXT char *path = repository_path (&v->o.store.repo, d->file);
  char digest[DIGEST_WHOLE_TEXT];
  char *fault = structure_fault (path);

  if (fault != NULL || d->file_digest == NULL)
    return fault;
  int status = digest_of (path, "raw", false, v->signal, digest);
  if (status == EXIT_CANCELLED)
    v->status = status;
  if (status != EXIT_DONE)
    return text_copy ("it cannot be read");
  return strcmp (digest, d->file_digest) != 0
             ? text_copy ("its bytes are not those that were written")
             : NULL;
}

/* NULL, or what is wrong with the file of D (borrowed). */
static const char *
file_fault (struct verifying *v, const struct manifest_disk *d)
{
  for (unsigned i = 0; i < v->nr_looked; i++)
    if (strcmp (v->looked[i].file, d->file) == 0)
      return v->looked[i].fault;
  struct looked *more = realloc (v->looked, (v->nr_looked + 1) * sizeof *more);
  if (more == NULL) {
    v->status = EXIT_ERROR;
    return "out of memory";
  }
  v->looked = more;
  more[v->nr_looked] = (struct looked){ .file = d->file, .fault = look_at_file (v, d) };
  return more[v->nr_looked++].fault;
}

/* ---- a disk ---- */

/* Of every file in the chain, which chain_fault() found to be complete: NULL, or the first fault.
 */
static char *
files_fault (struct verifying *v, const struct backup_entry *e, const struct manifest_disk *d)
{
  while (d != NULL && v->status == EXIT_DONE) {
    const char *fault = file_fault (v, d);
    if (fault != NULL)
      return text_printf ("%s: %s", d->file, fault);
    if (d->full)
      return NULL;
    e = repository_find (&v->o.list, d->parent_backup);
    d = e != NULL ? manifest_find_disk (&e->manifest, d->id) : NULL;
  }
  return NULL;
}

static char *
contents_fault (struct verifying *v, const struct manifest_disk *d)
{
  CLEANUP_TEXT char *path = repository_path (&v->o.store.repo, d->file);
  char digest[DIGEST_WHOLE_TEXT];

  if (d->digest == NULL)
    return text_copy ("no digest of it was recorded");
  int status = digest_of (path, "qcow2", !v->json, v->signal, digest);
  if (status == EXIT_CANCELLED)
    v->status = status;
  if (status != EXIT_DONE)
    return text_copy ("it cannot be read");
  if (strcmp (digest, d->digest) == 0)
    return NULL;
  return text_printf ("it holds other data than were backed up: its digest is %s, and was %s",
                      digest, d->digest);
}

/* A list of digests that is damaged harms no backup. */
static void
look_at_list (const struct verifying *v, const struct manifest_disk *d)
{
  CLEANUP_TEXT char *path = repository_path (&v->o.store.repo, d->digests_file);
  const struct digest_list_kept list = { .path = path, .own = d->digests_own };
  CLEANUP_TEXT char *error = NULL;
  uint64_t blocks;
  bool complete;

  if (digest_list_check (&list, &complete, &blocks, &error) == -1)
    cmd_warning ("a list of digests cannot be used, so the next backup reads all of '%s': %s",
                 d->id, error);
}

static char *
disk_fault (struct verifying *v, const struct backup_entry *e, const struct manifest_disk *d)
{
  /* What is read takes long, so the whole chain is looked at right before. */
  char *fault = v->quick ? chain_fault_once (&v->o.store.repo, &v->o.list, e->name, d->id)
                         : chain_fault (&v->o.store.repo, &v->o.list, e->name, d->id);
  if (fault == NULL && !v->quick)
    fault = files_fault (v, e, d);
  if (fault == NULL && !v->quick)
    fault = contents_fault (v, d);
  if (!v->quick && d->digests_file != NULL)
    look_at_list (v, d);
  return fault;
}

/* ---- beside a prune ---- */

static void
forget_looked (struct verifying *v)
{
  for (unsigned i = 0; i < v->nr_looked; i++)
    text_free (v->looked[i].fault);
  free (v->looked);
  v->looked = NULL;
  v->nr_looked = 0;
}

/* FAULT was found in the disk ID of the backup NAME, by the manifests as they were at our start.
 * Where a prune has changed them since, look once more, by what they are now.  FAULT is freed, and
 * what is wrong now returned; *SKIP: that backup is gone, or still being changed. */
static char *
look_again (struct verifying *v, const char *name, const char *id, char *fault, bool *skip)
{
  struct verifying again = *v; /* by another list, of which nothing has been looked at */

  *skip = false;
  if (repository_list (&v->o.store.repo, &again.o.list, NULL) == -1)
    return fault;
  again.looked = NULL;
  again.nr_looked = 0;
  const struct backup_entry *e = repository_find (&again.o.list, name);
  const struct manifest_disk *d = e != NULL ? manifest_find_disk (&e->manifest, id) : NULL;
  *skip = e == NULL || e->manifest.is_dropped;
  if (!*skip && d != NULL && d->file != NULL) {
    if (!chain_is_same (&v->o.list, &again.o.list, name, id)) {
      text_free (fault);
      fault = disk_fault (&again, e, d);
      v->status = again.status;
    }
    *skip = fault != NULL && v->status == EXIT_DONE
            && chain_is_being_pruned (&v->o.store.repo, &again.o.list, name, id);
    if (*skip)
      cmd_warning ("backup %s of '%s' was not looked at: it is being changed by a prune", name, id);
    v->passed_over |= *skip;
  }
  forget_looked (&again);
  repository_list_free (&again.o.list);
  return fault;
}

/* ---- backups ---- */

static void
tell (struct verifying *v, const char *backup, const char *disk, const char *fault)
{
  if (fault != NULL)
    v->nr_bad++;
  else
    v->nr_good++;
  if (v->json)
    json_array_append_new (v->report, json_pack ("{s:s, s:s?, s:b, s:o}", "backup", backup, "disk",
                                                 disk, "good", fault == NULL, "fault",
                                                 manifest_text_or_null (fault)));
  else
    printf ("%s%s%s: %s\n", backup, disk != NULL ? " " : "", disk != NULL ? disk : "",
            fault != NULL ? fault : "good");
  fflush (stdout);
}

/* The disk D has failed when the backup was made.  That was told then, and nothing is damaged: it
 * counts only if this backup is asked for. */
static void
tell_failed (struct verifying *v, const char *backup, const struct manifest_disk *d)
{
  CLEANUP_TEXT char *why = text_printf ("it was not backed up: %s", d->error);

  tell (v, backup, d->id, why);
  if (v->only.entry == NULL) {
    v->nr_bad--;
    v->nr_failed++;
  }
}

static void
boot_entry (struct verifying *v, const struct backup_entry *e)
{
  char *fault = boot_backup (&v->boot, e);

  if (fault == NULL && !v->json)
    printf ("%s: booted\n", e->name);
  if (fault != NULL)
    tell (v, e->name, NULL, fault);
  text_free (fault);
}

static void
verify_entry (struct verifying *v, const struct backup_entry *e)
{
  if (e->fault != NULL) {
    tell (v, e->name, NULL, e->fault);
    return;
  }
  unsigned bad = v->nr_bad;
  bool complete = true;
  for (unsigned i = 0; i < e->manifest.nr_disks && v->status == EXIT_DONE; i++) {
    const struct manifest_disk *d = &e->manifest.disks[i];
    if (v->disk != NULL && strcmp (v->disk, d->id) != 0)
      continue;
    if (d->file == NULL) {
      tell_failed (v, e->name, d);
      continue;
    }
    bool skip = false;
    CLEANUP_TEXT char *fault = disk_fault (v, e, d);
    if (fault != NULL && v->status == EXIT_DONE)
      fault = look_again (v, e->name, d->id, fault, &skip);
    if (v->status == EXIT_DONE && !skip)
      tell (v, e->name, d->id, fault);
    complete &= !skip;
  }
  if (v->status == EXIT_DONE && v->boot.command != NULL && v->nr_bad == bad && complete)
    boot_entry (v, e);
}

static int
verify_all (struct verifying *v)
{
  v->report = json_array ();
  for (unsigned i = 0; i < v->o.list.nr && v->status == EXIT_DONE; i++) {
    const struct backup_entry *e = &v->o.list.list[i];
    if (!e->manifest.is_dropped && (v->only.entry == NULL || v->only.entry == e))
      verify_entry (v, e);
  }
  if (v->status != EXIT_DONE)
    return v->status;
  if (v->json) {
    json_dumpf (v->report, stdout, JSON_INDENT (2));
    putchar ('\n');
  }
  if (v->nr_good + v->nr_bad + v->nr_failed == 0) {
    if (!v->passed_over)
      cmd_say ("%s: there is no backup%s%s", v->o.store.repo.path, v->disk ? " of the disk " : "",
               v->disk ? v->disk : "");
    return EXIT_ERROR;
  }
  return v->nr_bad > 0 ? EXIT_DIFFERENT : EXIT_DONE;
}

/* ---------------------------------------------------------------------------------------------- */

/* What the command line says. */
struct request {
  const char *at;
  bool compare;
  char **controls; /* for --compare; in argv */
  unsigned nr_controls;
};

/* False: *STATUS is the exit status. */
static bool
read_line (struct cmd_line *line, struct verifying *v, struct request *q, int *status)
{
  int c;

  while ((c = cmd_getopt (line)) != -1)
    switch (c) {
    case OPT_AT:
      q->at = optarg;
      break;
    case OPT_DISK:
      v->disk = optarg;
      break;
    case OPT_QUICK:
      v->quick = true;
      break;
    case OPT_BOOT:
      v->boot.command = optarg;
      break;
    case OPT_MARK:
      v->boot.mark = optarg;
      break;
    case OPT_LIMIT:
      if (!worker_parse_ms ("--boot-limit", optarg, &v->boot.limit_ms)) {
        *status = EXIT_USAGE;
        return false;
      }
      break;
    case OPT_COMPARE:
      q->compare = true;
      break;
    case OPT_CONTROL:
      if (strchr (optarg, '=') == NULL) {
        *status = cmd_usage_error ("--control %s: must be DISK=CONTROL", optarg);
        return false;
      }
      q->controls[q->nr_controls++] = optarg;
      break;
    case 'j':
      v->json = true;
      break;
    default:
      *status = line->status;
      return false;
    }
  bool good = cmd_operands_ok (line, 1, 1, "REPO");
  *status = line->status;
  return good;
}

/* 0: the options go together; else the exit status. */
static int
check (const struct verifying *v, const struct request *q, const char *place)
{
  const struct boot *b = &v->boot;

  if ((b->command == NULL) != (b->mark == NULL) || (b->mark != NULL && *b->mark == '\0'))
    return cmd_usage_error ("--boot COMMAND and --mark TEXT go together");
  if (b->command != NULL && far_is_meant (place))
    return cmd_usage_error ("--boot: run it on the host of %s, where COMMAND has to run", place);
  if (q->compare && (q->at != NULL || v->quick || b->command != NULL))
    return cmd_usage_error ("--compare goes with --disk, --control and --json only: it is about the"
                            " last backup of each disk");
  if (!q->compare && q->nr_controls > 0)
    return cmd_usage_error ("--control goes with --compare");
  return 0;
}

static int
verify (struct verifying *v, const struct request *q, const char *place)
{
  if (worker_signals (&v->signal) == -1)
    return EXIT_ERROR;
  const struct compare how = { .disk = v->disk,
                               .controls = q->controls,
                               .nr_controls = q->nr_controls,
                               .json = v->json,
                               .signal = v->signal };
  v->boot.repository = place;
  v->boot.signal = v->signal;
  int status = opened_open (&v->o, place);
  if (status == EXIT_DONE && q->at != NULL)
    status = opened_select_any (&v->o, q->at, v->disk, &v->only);
  if (status == EXIT_DONE)
    status = q->compare ? compare_disks (&v->o, &how) : verify_all (v);
  forget_looked (v);
  json_decref (v->report);
  opened_close (&v->o);
  return status;
}

static int
run (struct cmd_line *line)
{
  struct verifying v = { .status = EXIT_DONE, .boot = { .limit_ms = BOOT_LIMIT_MS } };
  struct request q = { .controls = calloc ((size_t)line->argc, sizeof *q.controls) };
  int status = EXIT_ERROR;

  if (q.controls == NULL)
    cmd_say ("out of memory");
  else if (read_line (line, &v, &q, &status)) {
    const char *place = line->operands[0].argv[0];
    status = check (&v, &q, place);
    /* The disks' servers are on this host, wherever the repository is. */
    if (status == 0 && (q.compare || !far_pass_on (line, &status)))
      status = verify (&v, &q, place);
  }
  free (q.controls);
  return status;
}

const struct subcommand subcommand_backup_verify = {
  "backup-verify",
  "REPO [OPTIONS]",
  "Check that backups can be restored.",
  "Reads each backup in REPO through its whole chain of files, and compares it with the digest "
  "that\n"
  "was recorded when it was made.  Each file is checked as well, its structure and its bytes.  A\n"
  "file that is damaged is named for each backup that needs it.  Exit status 5: there is one.\n",
  options,
  NULL,
  "Examples:\n"
  "  nbdmirror backup-verify /srv/backup\n"
  "  nbdmirror backup-verify /srv/backup --at 2026-01-31 --quick\n"
  "  nbdmirror backup-verify /srv/backup --mark login: \\\n"
  "    --boot 'qemu-system-x86_64 -m 1G -nographic -drive format=raw,file=$NBDMIRROR_URI'\n",
  run,
};
