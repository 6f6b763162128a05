/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * --help of a subcommand: its texts, and its table of options.
 */

#include "config.h"

#include <stdio.h>
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/options.h"

#define HELP_COLUMN 28
#define COLUMNS 96

/* What stands left of an option's text: "-j, --json", "--bandwidth RATE", "policy=POLICY",
 * "  ,base=IMAGE".  O and the entries behind it that are other names of it. */
static void
print_names (const struct cmd_option *o, bool setting, char *text, size_t size)
{
  size_t n = 0;

  for (const struct cmd_option *name = o; name == o || (name->name != NULL && name->help == NULL);
       name++) {
    bool part = name->name[0] == ',';
    const char *comma = name == o ? "" : ", ", *dashes = part ? "  " : setting ? "" : "--";
    if (name->key < 0x80 && !setting && n < size)
      n += (size_t)snprintf (text + n, size - n, "-%c, ", name->key);
    if (n < size)
      n += (size_t)snprintf (text + n, size - n, "%s%s%s%s%s", comma, dashes, name->name,
                             name->value == NULL     ? ""
                             : name->value[0] == '[' ? "[="
                             : setting || part       ? "="
                                                     : " ",
                             name->value == NULL     ? ""
                             : name->value[0] == '[' ? name->value + 1
                                                     : name->value);
  }
}

/* Print TEXT from HELP_COLUMN on, broken into lines; the cursor is in COLUMN. */
static void
print_text (const char *text, int column)
{
  if (column > HELP_COLUMN - 2) {
    putchar ('\n');
    column = 0;
  }
  printf ("%*s", HELP_COLUMN - column, "");
  column = HELP_COLUMN;
  while (*text != '\0') {
    int len = (int)strcspn (text, " ");
    bool first = column == HELP_COLUMN;
    if (!first && column + 1 + len > COLUMNS) {
      printf ("\n%*s", HELP_COLUMN, "");
      column = HELP_COLUMN;
      first = true;
    }
    column += printf ("%s%.*s", first ? "" : " ", len, text);
    text += len;
    text += strspn (text, " ");
  }
  putchar ('\n');
}

static void
print_options (const struct cmd_option *options, bool settings)
{
  for (const struct cmd_option *o = options; o != NULL && o->name != NULL; o++) {
    char names[120];

    if (o->help == NULL || o->help[0] == '\0')
      continue;
    if (o->name[0] == '\0') {
      printf ("\n%s\n", o->help);
      continue;
    }
    print_names (o, settings, names, sizeof names);
    print_text (o->help, printf ("  %s", names));
  }
}

void
cmd_print_version (void)
{
  printf ("%s %s\n", PACKAGE_NAME, PACKAGE_VERSION);
}

void
cmd_print_help (const struct subcommand *sc)
{
  printf ("Usage: nbdmirror %s %s\n\n%s\n\n%s", sc->name, sc->synopsis, sc->summary, sc->about);
  if (sc->options != NULL || sc->settings != NULL)
    putchar ('\n');
  print_options (sc->settings, true);
  print_options (sc->options, false);
  printf ("\n%s", sc->more);
}
