/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Reading a command line, and messages.
 *
 * getopt_long runs in its "return in order" mode (a leading `-` in the short options): it hands
 * over operands as they come instead of moving them, so that a `[ COMMAND ARGS ]` is taken as a
 * whole before its own options are looked at.  Its messages are switched off: ours name the
 * subcommand.
 */

#include "config.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/options.h"

#define OPTIONS_MAX 60 /* of one subcommand */

static const struct subcommand *current;

void
cmd_set_subcommand (const struct subcommand *sc)
{
  current = sc;
}

static void
message (const char *kind, const char *fmt, va_list ap)
{
  fflush (stdout); /* keep the order where both go to one place */
  fprintf (stderr, "nbdmirror: ");
  if (current != NULL)
    fprintf (stderr, "%s: ", current->name);
  fprintf (stderr, "%s", kind);
  vfprintf (stderr, fmt, ap);
  fprintf (stderr, "\n");
}

void
cmd_say (const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  message ("", fmt, ap);
  va_end (ap);
}

void
cmd_warning (const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  message ("warning: ", fmt, ap);
  va_end (ap);
}

int
cmd_usage_error (const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  message ("", fmt, ap);
  va_end (ap);
  if (current != NULL)
    fprintf (stderr, "Try 'nbdmirror %s --help'.\n", current->name);
  else
    fprintf (stderr, "Try 'nbdmirror --help'.\n");
  return EXIT_USAGE;
}

/* ---- operands ------------------------------------------------------------------------------- */

/* Take the operand that starts at argv[I], a whole bracket if it is one.  Returns the index after
 * it, or -1 after a usage error. */
static int
take_operand (struct cmd_line *line, int i)
{
  struct cmd_operand *op = &line->operands[line->nr_operands];
  int end = i + 1;

  if (strcmp (line->argv[i], "[") == 0) {
    while (end < line->argc && strcmp (line->argv[end], "]") != 0)
      end++;
    if (end == line->argc) {
      line->status = cmd_usage_error ("'[' without ']': a command is given as [ COMMAND ARGS ]");
      return -1;
    }
    if (end == i + 1) {
      line->status = cmd_usage_error ("'[ ]' holds no command");
      return -1;
    }
    end++;
  }
  op->argv = &line->argv[i];
  op->nr_args = (unsigned)(end - i);
  line->nr_operands++;
  return end;
}

/* What follows the last option: nothing, or `--` and more words. */
static int
take_rest (struct cmd_line *line)
{
  int i = optind;

  if (line->keep_rest) {
    line->rest = &line->argv[i];
    line->nr_rest = (unsigned)(line->argc - i);
    return -1;
  }
  while (i < line->argc) {
    i = take_operand (line, i);
    if (i == -1)
      return CMD_OPT_STOP;
  }
  return -1;
}

/* The option that getopt has just stumbled over, as the user typed it.  A bundle of short options
 * is named by the letter. */
static void
bad_option (struct cmd_line *line, bool missing_argument, int before)
{
  const char *word = before < line->argc ? line->argv[before] : "";
  char letter[3] = { '-', (char)optopt, '\0' };
  const char *name = strncmp (word, "--", 2) == 0 ? word : optopt != 0 ? letter : word;
  int len = (int)strcspn (name, "=");

  if (missing_argument)
    line->status = cmd_usage_error ("option '%.*s' needs a value", len, name);
  else if (strncmp (word, "--", 2) == 0 && optopt != 0)
    line->status = cmd_usage_error ("option '%.*s' takes no value", len, name);
  else
    line->status = cmd_usage_error ("unknown option '%.*s'", len, name);
}

/* The table for getopt_long(), and the short options behind SPEC, which begins with the flags. */
static void
make_tables (struct option longopts[OPTIONS_MAX + 3], char spec[2 * OPTIONS_MAX + 4])
{
  struct option *to = longopts;

  /* `-`: operands come in order.  `:`: say which fault it is. */
  char *letters = stpcpy (spec, "-:");
  for (const struct cmd_option *o = current->options; o != NULL && o->name != NULL; o++) {
    if (o->name[0] == '\0' || o->name[0] == ',')
      continue;
    if (to == longopts + OPTIONS_MAX)
      abort ();
    int takes = o->value == NULL     ? no_argument
                : o->value[0] == '[' ? optional_argument
                                     : required_argument;
    *to++ = (struct option){ o->name, takes, NULL, o->key };
    if (o->key < 0x80)
      letters += sprintf (letters, "%c%s", o->key, o->value != NULL ? ":" : "");
  }
  *to++ = (struct option){ "help", no_argument, NULL, CMD_OPT_HELP };
  *to++ = (struct option){ "version", no_argument, NULL, CMD_OPT_VERSION };
  *to = (struct option){ NULL, 0, NULL, 0 };
  strcpy (letters, "hV");
}

int
cmd_getopt (struct cmd_line *line)
{
  struct option longopts[OPTIONS_MAX + 3];
  char spec[2 * OPTIONS_MAX + 4];

  make_tables (longopts, spec);
  opterr = 0;
  for (;;) {
    int before = optind == 0 ? 1 : optind;

    optopt = 0;
    int c = getopt_long (line->argc, line->argv, spec, longopts, NULL);
    switch (c) {
    case -1:
      return take_rest (line);
    case 1: /* an operand; optind is behind it */
      optind = take_operand (line, optind - 1);
      if (optind == -1)
        return CMD_OPT_STOP;
      break;
    case ':':
    case '?':
      bad_option (line, c == ':', before);
      return CMD_OPT_STOP;
    case 'h':
    case CMD_OPT_HELP:
      cmd_print_help (current);
      line->status = EXIT_DONE;
      return CMD_OPT_STOP;
    case 'V':
    case CMD_OPT_VERSION:
      cmd_print_version ();
      line->status = EXIT_DONE;
      return CMD_OPT_STOP;
    default:
      return c;
    }
  }
}

bool
cmd_operands_ok (struct cmd_line *line, unsigned min, unsigned max, const char *names)
{
  if (line->nr_operands < min) {
    const char *name = names;

    for (unsigned i = 0; i < line->nr_operands && strchr (name, ' ') != NULL; i++)
      name = strchr (name, ' ') + 1;
    line->status = cmd_usage_error ("%.*s is missing", (int)strcspn (name, " "), name);
    return false;
  }
  if (max != 0 && line->nr_operands > max) {
    line->status = cmd_usage_error ("extra argument '%s'", line->operands[max].argv[0]);
    return false;
  }
  return true;
}
