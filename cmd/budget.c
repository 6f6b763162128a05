/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror budget: limits that several jobs share.
 */

#include "config.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "budget/budget.h"
#include "cmd/cmd.h"
#include "cmd/units.h"

enum { OPT_REMOVE = 0x100 };

static const struct cmd_option options[] = {
  { "remove", OPT_REMOVE, NULL, "forget the budget; refused while it has members" },
  { "json", 'j', NULL, "print a JSON object; for all budgets an array" },
  CMD_OPTIONS_END,
};

static json_t *
view_json (const struct budget_view *v)
{
  json_t *members = json_array ();

  for (unsigned i = 0; i < v->nr_members; i++) {
    const struct budget_member *m = &v->members[i];
    json_array_append_new (members, json_pack ("{s:I, s:s, s:I, s:I, s:I, s:b}", "pid",
                                               (json_int_t)m->pid, "job", m->label, "weight",
                                               (json_int_t)m->weight, "rate", (json_int_t)m->used,
                                               "bytes", (json_int_t)m->bytes, "active", m->active));
  }
  return json_pack ("{s:s, s:I, s:I, s:o}", "budget", v->name, "limit", (json_int_t)v->rate,
                    "bytes", (json_int_t)v->bytes, "members", members);
}

static void
print_view (const struct budget_view *v)
{
  char rate[UNITS_BUF], bytes[UNITS_BUF];
  double now = 0;

  for (unsigned i = 0; i < v->nr_members; i++)
    now += (double)v->members[i].used;
  printf ("%s: ", v->name);
  if (v->rate == 0)
    printf ("no limit");
  else
    printf ("%s", units_format_rate (rate, (double)v->rate));
  printf (", in use %s, %u member%s\n", units_format_rate (rate, now), v->nr_members,
          v->nr_members == 1 ? "" : "s");
  for (unsigned i = 0; i < v->nr_members; i++) {
    const struct budget_member *m = &v->members[i];
    printf ("  %s (process %llu): weight %llu, %s, sent %s%s\n", m->label,
            (unsigned long long)m->pid, (unsigned long long)m->weight,
            units_format_rate (rate, (double)m->used), units_format_size (bytes, m->bytes),
            m->active ? "" : ", nothing to send");
  }
}

static int
fail (char *error)
{
  cmd_say ("%s", error);
  text_free (error);
  return EXIT_ERROR;
}

static int
print_json (json_t *o)
{
  json_dumpf (o, stdout, JSON_INDENT (2));
  putchar ('\n');
  json_decref (o);
  return EXIT_DONE;
}

static int
show (const char *name, bool json)
{
  struct budget_view v;
  char *error = NULL;
  int r = budget_look (name, &v, &error);

  if (r == -1)
    return fail (error);
  if (r == 1) {
    cmd_say ("there is no budget %s: 'nbdmirror budget %s RATE' makes it", name, name);
    return EXIT_ERROR;
  }
  if (json)
    print_json (view_json (&v));
  else
    print_view (&v);
  budget_view_free (&v);
  return EXIT_DONE;
}

/* Show a budget among others: it may have been removed meanwhile. */
static int
show_listed (const char *name, json_t *all)
{
  struct budget_view v;
  char *error = NULL;
  int r = budget_look (name, &v, &error);

  if (r == -1)
    return fail (error);
  if (r == 1)
    return EXIT_DONE;
  if (all != NULL)
    json_array_append_new (all, view_json (&v));
  else
    print_view (&v);
  budget_view_free (&v);
  return EXIT_DONE;
}

/* One that cannot be read does not hide the others. */
static int
list (bool json)
{
  char **names, *error = NULL;
  int nr = budget_names (&names, &error), status = EXIT_DONE;

  if (nr == -1)
    return fail (error);
  json_t *all = json ? json_array () : NULL;
  for (int i = 0; i < nr; i++) {
    if (show_listed (names[i], all) != EXIT_DONE)
      status = EXIT_ERROR;
    text_free (names[i]);
  }
  free (names);
  if (json)
    print_json (all);
  return status;
}

static int
set (const char *name, const char *text)
{
  char *error = NULL;
  uint64_t rate;
  const char *why = units_parse_rate (text, &rate);

  if (why == NULL && rate != 0 && rate < BUDGET_RATE_MIN)
    why = "must be at least 64k, or none";
  if (why != NULL)
    return cmd_usage_error ("budget %s %s: %s", name, text, why);
  return budget_set (name, rate, &error) == 0 ? EXIT_DONE : fail (error);
}

static int
run (struct cmd_line *line)
{
  bool json = false, forget = false;
  char *error = NULL;
  int c;

  while ((c = cmd_getopt (line)) != -1)
    switch (c) {
    case OPT_REMOVE:
      forget = true;
      break;
    case 'j':
      json = true;
      break;
    default:
      return line->status;
    }
  if (!cmd_operands_ok (line, forget ? 1 : 0, forget ? 1 : 2, forget ? "NAME" : "NAME RATE"))
    return line->status;
  for (unsigned i = 0; i < line->nr_operands; i++)
    if (line->operands[i].nr_args != 1)
      return cmd_usage_error ("NAME and RATE are words, not commands");
  if (line->nr_operands == 0)
    return list (json);
  const char *name = line->operands[0].argv[0], *problem = budget_name_problem (name);
  if (problem != NULL)
    return cmd_usage_error ("%s: %s", name, problem);
  if (forget)
    return budget_remove (name, &error) == 0 ? EXIT_DONE : fail (error);
  if (line->nr_operands == 1)
    return show (name, json);
  return set (name, line->operands[1].argv[0]);
}

const struct subcommand subcommand_budget = {
  "budget",
  "[NAME [RATE]] [OPTIONS]",
  "Make, change and show limits that jobs share.",
  "With RATE (k, M, G bytes a second; none: no limit): make the budget NAME, or change it while\n"
  "jobs use it.  With NAME: show it and its members.  Else: show all.\n"
  "A job joins with --budget NAME.  All jobs of one user on this host share it fairly, and "
  "together\n"
  "they never send faster.  It is gone after a reboot.\n",
  options,
  NULL,
  "Examples:\n"
  "  nbdmirror budget night 1G\n"
  "  nbdmirror mirror /var/lib/nbdmirror/vm1.control nbd://hostb/vm1 --budget night --detach\n"
  "  nbdmirror budget night 300M\n",
  run,
};
