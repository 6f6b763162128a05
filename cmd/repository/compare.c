/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup-verify --compare.  The last backup of a disk stands at a checkpoint of the disk.  So what
 * differs from it, and is not recorded since that checkpoint, was missed: the next backup would not
 * have copied it.
 *
 * No lock is held meanwhile.  A backup that is made at the same time takes its checkpoint before or
 * after a range is marked.  Before: its own checkpoint records the range.  After: its job copies
 * it.
 */

#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/chain.h"
#include "base/text.h"
#include "cmd/checkpoint/checkpoint.h"
#include "cmd/control-query.h"
#include "cmd/far/far.h"
#include "cmd/repository/compare.h"

#define SECTOR 512

/* A disk, its last backup, and what was found. */
struct comparison {
  const char *backup;
  const struct manifest_disk *disk;
  const char *control;
  char *error; /* why it was not compared; owned */
  struct checkpoint_scrub scrub;
};

/* Has the server of C's disk the checkpoint that C's backup has added? */
static bool
has_checkpoint (struct comparison *c)
{
  json_t *all = checkpoint_ask_list (c->control), *one;
  bool found = false;
  size_t i;

  json_array_foreach (all, i, one)
  {
    const char *name = status_text (one, "name"), *uuid = status_text (one, "uuid");
    found |= name != NULL && uuid != NULL && strcmp (name, c->disk->checkpoint) == 0
             && strcmp (uuid, c->disk->checkpoint_uuid) == 0;
  }
  if (all == NULL)
    c->error = text_copy ("its server does not answer");
  else if (!found)
    c->error
        = text_printf ("the server at %s has not got the checkpoint of the backup", c->control);
  json_decref (all);
  return found;
}

/* Can it be compared?  False: C->error says why not. */
static bool
can_be_compared (struct opened *o, struct comparison *c)
{
  char *fault = store_chain_fault (&o->store, &o->list, c->backup, c->disk->id);

  if (fault != NULL)
    c->error = fault;
  else if (c->disk->checkpoint == NULL)
    c->error = text_copy ("the backup has added no checkpoint, so nothing is recorded since");
  else if (!query_is_control (c->control))
    c->error = text_printf ("%s is no control socket: serve the disk, and name its socket with"
                            " --control",
                            c->control);
  else
    return has_checkpoint (c);
  return false;
}

/* EXIT_CANCELLED: there is no result. */
static int
compare_one (struct opened *o, struct comparison *c, const struct compare *how)
{
  char *here = repository_path (&o->store.repo, c->disk->file);
  char *far = o->store.far != NULL ? far_endpoint (o->store.repo.path, c->disk->file, "") : NULL;
  char *words[] = { (char *)"[",
                    (char *)"qemu-nbd",
                    (char *)"--format=qcow2",
                    (char *)"--persistent",
                    (char *)"--shared=0",
                    (char *)"--read-only",
                    here,
                    (char *)"]" };
  const struct selected which = { .entry = repository_find (&o->list, c->backup), .disk = c->disk };

  c->scrub = (struct checkpoint_scrub){ .place = c->control,
                                        .name = c->disk->checkpoint,
                                        .copy = far != NULL ? &far : words,
                                        .nr_copy = far != NULL ? 1 : sizeof words / sizeof *words,
                                        .padded = c->disk->size % SECTOR != 0,
                                        .mark = true,
                                        .show = !how->json,
                                        .signal = how->signal };
  int status = checkpoint_scrub (&c->scrub);
  if (status != EXIT_DONE)
    c->error = text_copy ("it was not compared to its end");
  else if (!opened_still_good (o, &which))
    c->error = text_copy ("its backup was pruned meanwhile");
  text_free (here);
  text_free (far);
  return status;
}

static void
print (const struct comparison *c)
{
  const struct checkpoint_scrub *x = &c->scrub;

  if (c->error != NULL) {
    printf ("%s: not compared: %s\n", c->disk->id, c->error);
    return;
  }
  checkpoint_print_missed (x->missed);
  if (x->missed_bytes == 0)
    printf ("%s: good: %" PRIu64 " bytes differ from backup %s, and all of them are recorded\n",
            c->disk->id, x->different_bytes, c->backup);
  else
    printf ("%s: missed: %" PRIu64 " of %" PRIu64 " bytes that differ from backup %s were not"
            " recorded; they are now, and the next backup copies them\n",
            c->disk->id, x->missed_bytes, x->different_bytes, c->backup);
}

static json_t *
describe (const struct comparison *c)
{
  const struct checkpoint_scrub *x = &c->scrub;

  if (c->error != NULL)
    return json_pack ("{s:s, s:s, s:o}", "disk", c->disk->id, "backup", c->backup, "error",
                      manifest_text_to_json (c->error));
  return json_pack ("{s:s, s:s, s:n, s:I, s:I, s:O}", "disk", c->disk->id, "backup", c->backup,
                    "error", "different-bytes", (json_int_t)x->different_bytes, "missed-bytes",
                    (json_int_t)x->missed_bytes, "missed", x->missed);
}

static const char *
control_of (const struct compare *how, const struct manifest_disk *d)
{
  size_t n = strlen (d->id);

  for (unsigned i = 0; i < how->nr_controls; i++)
    if (strncmp (how->controls[i], d->id, n) == 0 && how->controls[i][n] == '=')
      return how->controls[i] + n + 1;
  return d->control;
}

/* The disk of manifest M is compared only if M is the last backup that holds it. */
static bool
is_last (const struct opened *o, const struct backup_entry *e, const char *id)
{
  const struct manifest_disk *d;

  return chain_newest (&o->list, id, &d) == e;
}

struct comparing {
  struct opened *o;
  const struct compare *how;
  json_t *report;
  unsigned nr, nr_missed, nr_not;
};

/* False: it was cancelled. */
static bool
compare_disk (struct comparing *x, const struct backup_entry *e, const struct manifest_disk *d)
{
  struct comparison c = { .backup = e->name, .disk = d, .control = control_of (x->how, d) };
  int status = EXIT_DONE;

  if (can_be_compared (x->o, &c))
    status = compare_one (x->o, &c, x->how);
  x->nr++;
  x->nr_not += c.error != NULL;
  x->nr_missed += c.error == NULL && c.scrub.missed_bytes > 0;
  json_array_append_new (x->report, describe (&c));
  if (!x->how->json && status != EXIT_CANCELLED)
    print (&c);
  fflush (stdout);
  json_decref (c.scrub.missed);
  text_free (c.error);
  return status != EXIT_CANCELLED;
}

int
compare_disks (struct opened *o, const struct compare *how)
{
  struct comparing x = { .o = o, .how = how, .report = json_array () };
  bool cancelled = false;

  for (unsigned i = 0; i < o->list.nr; i++) {
    const struct backup_entry *e = &o->list.list[i];
    for (unsigned k = 0; k < e->manifest.nr_disks && !cancelled; k++) {
      const struct manifest_disk *d = &e->manifest.disks[k];
      if ((how->disk == NULL || strcmp (how->disk, d->id) == 0) && is_last (o, e, d->id))
        cancelled = !compare_disk (&x, e, d);
    }
  }
  if (how->json && !cancelled) {
    json_dumpf (x.report, stdout, JSON_INDENT (2));
    putchar ('\n');
  }
  json_decref (x.report);
  if (x.nr == 0)
    cmd_say ("%s: there is no backup to compare with", o->store.repo.path);
  return cancelled                   ? EXIT_CANCELLED
         : x.nr_missed > 0           ? EXIT_DIFFERENT
         : x.nr == 0 || x.nr_not > 0 ? EXIT_ERROR
                                     : EXIT_DONE;
}
