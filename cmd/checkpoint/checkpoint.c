/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror checkpoint: add, list, remove and verify checkpoints.
 */

#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "cmd/checkpoint/checkpoint.h"
#include "cmd/checkpoint/offline.h"
#include "cmd/cmd.h"
#include "cmd/control-query.h"
#include "cmd/units.h"
#include "dirty-bitmap/state/format.h"

enum { OPT_DISK = 0x100, OPT_MARK };

static const struct cmd_option options[] = {
  { "disk", OPT_DISK, "FILE",
    "with a state file: its disk, to see if it was changed meanwhile; 'verify' needs it then" },
  { "mark", OPT_MARK, NULL, "with verify: record what was missed" },
  { "json", 'j', NULL, "print JSON" },
  CMD_OPTIONS_END,
};

struct args {
  const char *disk;
  bool mark, json;
};

static void
print_json (json_t *o)
{
  json_dumpf (o, stdout, JSON_INDENT (2));
  putchar ('\n');
}

/* ---- add ---- */

static int
run_add (const struct args *a, char *const *disks, unsigned nr, const char *name)
{
  const char *fault = state_name_fault (name);
  json_t *uuids = NULL;

  if (fault != NULL)
    return cmd_usage_error ("'%s' cannot be a checkpoint's name: %s", name, fault);
  for (unsigned i = 0; i < nr; i++)
    if (!query_is_control (disks[i]))
      return cmd_usage_error ("%s is not a control socket: a checkpoint is added by a running"
                              " server",
                              disks[i]);
  int status = checkpoint_add (disks, nr, name, &uuids);
  if (status == EXIT_DONE && a->json)
    print_json (uuids);
  json_decref (uuids);
  return status;
}

/* ---- list ---- */

json_t *
checkpoint_ask_list (const char *control)
{
  struct control_client *c = query_connect (control);
  json_t *all = json_array (), *ret = NULL;
  size_t total = 1;

  while (c != NULL && json_array_size (all) < total) {
    if (query_call (c, control, "query-mirror-checkpoints",
                    json_pack ("{s:I}", "from", (json_int_t)json_array_size (all)), &ret, NULL)
        == -1) {
      control_client_free (c);
      c = NULL;
      break;
    }
    json_t *part = json_object_get (ret, "checkpoints");
    total = json_array_size (part) != 0
                ? (size_t)json_integer_value (json_object_get (ret, "total"))
                : 0;
    json_array_extend (all, part);
    json_decref (ret);
  }
  if (c == NULL) {
    json_decref (all);
    return NULL;
  }
  control_client_free (c);
  return all;
}

static json_t *
list_of (const struct args *a, const char *disk)
{
  if (query_is_control (disk))
    return checkpoint_ask_list (disk);
  struct offline *o = offline_open (disk, a->disk, true);
  json_t *list = o != NULL ? offline_list (o) : NULL;
  offline_close (o);
  return list;
}

static void
print_one (const json_t *c)
{
  const char *reason = status_text (c, "reason");
  char size[UNITS_BUF], when[64] = "";
  time_t t = (time_t)((int64_t)status_number (c, "created-us", 0) / US_PER_S);
  struct tm tm;

  if (localtime_r (&t, &tm) != NULL)
    strftime (when, sizeof when, "%F %T", &tm);
  printf ("%-24s %s  %s", status_text (c, "name"), when, status_text (c, "status"));
  if (reason != NULL)
    printf (": %s\n", reason);
  else if (status_has_number (c, "changed-bytes"))
    printf (", %s changed since\n",
            units_format_size (size, (uint64_t)status_number (c, "changed-bytes", 0)));
  else
    printf ("\n");
}

static int
run_list (const struct args *a, char *const *disks, unsigned nr)
{
  json_t *all = json_object (), *c;
  int status = EXIT_DONE;
  size_t k;

  for (unsigned i = 0; i < nr; i++) {
    json_t *list = list_of (a, disks[i]);
    if (list == NULL) {
      status = EXIT_ERROR;
      continue;
    }
    if (!a->json && nr > 1)
      printf ("%s:\n", disks[i]);
    json_array_foreach (list, k, c)
    {
      if (!a->json)
        print_one (c);
    }
    json_object_set_new (all, disks[i], list);
  }
  if (a->json)
    print_json (nr == 1 && status == EXIT_DONE ? json_object_get (all, disks[0]) : all);
  json_decref (all);
  return status;
}

/* ---- remove ---- */

static int
remove_from (const struct args *a, const char *disk, const char *name)
{
  if (!query_is_control (disk)) {
    struct offline *o = offline_open (disk, a->disk, false);
    int r = o != NULL ? offline_remove (o, name) : -1;
    offline_close (o);
    return r;
  }
  struct control_client *c = query_connect (disk);
  int r = c != NULL ? query_call (c, disk, "mirror-checkpoint-remove",
                                  json_pack ("{s:s}", "name", name), NULL, NULL)
                    : -1;
  control_client_free (c);
  return r;
}

static int
run_remove (const struct args *a, char *const *disks, unsigned nr, const char *name)
{
  int status = EXIT_DONE;

  for (unsigned i = 0; i < nr; i++)
    if (remove_from (a, disks[i], name) == -1)
      status = EXIT_ERROR;
  return status;
}

/* ---- verify ---- */

static int
run_verify (const struct args *a, struct cmd_line *line)
{
  if (!cmd_operands_ok (line, 4, 4, "verify CONTROL NAME COPY"))
    return line->status;
  return checkpoint_verify (line->operands[1].argv[0], a->disk, line->operands[2].argv[0],
                            line->operands[3].argv[0], a->mark, a->json);
}

static int
run (struct cmd_line *line)
{
  struct args a = { .json = false };
  int c;

  while ((c = cmd_getopt (line)) != -1)
    switch (c) {
    case OPT_DISK:
      a.disk = optarg;
      break;
    case OPT_MARK:
      a.mark = true;
      break;
    case 'j':
      a.json = true;
      break;
    default:
      return line->status;
    }
  if (!cmd_operands_ok (line, 2, 0, "add|list|remove|verify CONTROL"))
    return line->status;
  const char *what = line->operands[0].argv[0];
  if (strcmp (what, "verify") == 0)
    return run_verify (&a, line);
  if (a.mark)
    return cmd_usage_error ("--mark goes with verify");
  bool list = strcmp (what, "list") == 0, add = strcmp (what, "add") == 0;
  if (!list && !add && strcmp (what, "remove") != 0)
    return cmd_usage_error ("'%s': add, list, remove or verify a checkpoint?", what);
  if (!list && !cmd_operands_ok (line, 3, 0, "add|remove CONTROL NAME"))
    return line->status;
  char **words = calloc (line->nr_operands, sizeof *words);
  if (words == NULL)
    return EXIT_ERROR;
  unsigned nr = line->nr_operands - 1;
  for (unsigned i = 0; i < nr; i++)
    words[i] = line->operands[i + 1].argv[0];
  int status = list  ? run_list (&a, words, nr)
               : add ? run_add (&a, words, nr - 1, words[nr - 1])
                     : run_remove (&a, words, nr - 1, words[nr - 1]);
  free (words);
  return status;
}

const struct subcommand subcommand_checkpoint = {
  "checkpoint",
  "add|list|remove|verify CONTROL... [NAME] [COPY] [OPTIONS]",
  "Remember an instant of a disk, and what changes after it.",
  "The server of CONTROL needs --state FILE.  From 'add' on it records which blocks the guest\n"
  "changes.  Checkpoints survive the server, its crash, and that of the host.  Several disks get\n"
  "theirs at one instant, or none does.  'remove' forgets NAME; what changed since the checkpoint\n"
  "before it stays known.  For 'list', 'remove' and 'verify', CONTROL may be the state file of a\n"
  "server that is stopped.  A disk has at most 256.  A name has at most 111 bytes of UTF-8, no\n"
  "slash and no control character, and no dot or dash at its beginning.\n"
  "'verify' compares the disk with COPY, which holds what the disk held at NAME, and tells what\n"
  "differs and is not recorded (exit status 5): the tracking has missed it.\n",
  options,
  NULL,
  "Examples:\n"
  "  nbdmirror checkpoint add /var/lib/nbdmirror/vm1a.control /var/lib/nbdmirror/vm1b.control \\\n"
  "            monday\n"
  "  nbdmirror checkpoint verify /var/lib/nbdmirror/vm1a.control monday copy-of-monday.img\n"
  "  nbdmirror dirty-map /var/lib/nbdmirror/vm1a.control --since monday\n",
  run,
};
