/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Completion for shells, from the tables of options.  `make` runs
 * `nbdmirror --print-completion SHELL` and installs what that prints.
 *
 * A value is completed by what --help calls it: "a|b" by these words, a file by files, a command by
 * commands, anything else by nothing.  Operands are completed by files.
 */

#include "config.h"

#include <stdio.h>
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/options.h"

enum value_kind { VALUE_NONE, VALUE_FREE, VALUE_CHOICE, VALUE_FILE, VALUE_COMMAND };

static enum value_kind
value_kind (const struct cmd_option *o)
{
  static const char *const files[] = { "FILE", "DIR", "IMAGE", "PATH", "SOCK" };

  if (o->value == NULL || o->value[0] == '[') /* what may be left out is not waited for */
    return VALUE_NONE;
  if (strchr (o->value, '|') != NULL)
    return VALUE_CHOICE;
  if (strcmp (o->value, "COMMAND") == 0)
    return VALUE_COMMAND;
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
    if (strcmp (o->value, files[i]) == 0)
      return VALUE_FILE;
  return VALUE_FREE;
}

/* The next option of a table, or the next PART (",NAME"), past headings and what --help does not
 * list.  NULL: there is none. */
static const struct cmd_option *
next_option (const struct cmd_option *o, bool part)
{
  while (o != NULL && o->name != NULL
         && (o->name[0] == '\0' || (o->name[0] == ',') != part
             || (o->help != NULL && o->help[0] == '\0')))
    o++;
  return o != NULL && o->name != NULL ? o : NULL;
}

#define FOR_EACH(o, table, part)                                                                   \
  for (const struct cmd_option *o = next_option (table, part); o != NULL;                          \
       o = next_option (o + 1, part))
#define FOR_EACH_OPTION(o, table) FOR_EACH (o, table, false)
#define FOR_EACH_PART(o, table) FOR_EACH (o, table, true)

/* The words "a|b|c" with blanks between. */
static void
print_choices (const char *choices)
{
  for (; *choices != '\0'; choices++)
    putchar (*choices == '|' ? ' ' : *choices);
}

/* The first phrase of a help text, without the characters that mean something to a shell or to
 * zsh's _arguments.  Other names of an option have the text of the first name. */
static void
print_phrase (const struct cmd_option *o)
{
  while (o->help == NULL)
    o--;
  size_t len = strcspn (o->help, ":;(");
  while (len > 0 && (o->help[len - 1] == ' ' || o->help[len - 1] == '.'))
    len--;
  for (size_t i = 0; i < len; i++)
    if (strchr ("'\"\\[]`$", o->help[i]) == NULL)
      putchar (o->help[i]);
}

/* ---- bash ----------------------------------------------------------------------------------- */

static const char bash_head[]
    = "# bash completion for nbdmirror(1)                             -*- shell-script -*-\n"
      "# Made by nbdmirror --print-completion bash.\n\n"
      "_nbdmirror ()\n"
      "{\n"
      "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} i\n"
      "  local sub=${COMP_WORDS[1]} options=\"\" settings=\"\" parts=\"\"\n"
      "  COMPREPLY=()\n\n"
      "  # Behind `--` come nbdkit's own words.\n"
      "  for ((i = 2; i < COMP_CWORD; i++)); do\n"
      "    [ \"${COMP_WORDS[i]}\" != -- ] || return\n"
      "  done\n"
      "  # NAME=VALUE is three words to bash.\n"
      "  if [ \"$cur\" = = ]; then\n"
      "    cur=\"\"\n"
      "  elif [ \"$prev\" = = ]; then\n"
      "    prev=${COMP_WORDS[COMP_CWORD-2]}\n"
      "  fi\n"
      "  # A part of a value, as in CONTROL=DEST,NAME=VALUE.\n"
      "  [[ $prev != *,* ]] || prev=,${prev##*,}\n";

static const char bash_tail[]
    = "  if [ -n \"$parts\" ] && [[ $cur == *,* ]]; then\n"
      "    compopt -o nospace\n"
      "    mapfile -t COMPREPLY < <(compgen -P \"${cur%,*},\" -W \"$parts\" -- \"${cur##*,}\")\n"
      "  elif [ -n \"$settings\" ] && [ \"$COMP_CWORD\" -gt 2 ] && [[ $cur != -* ]]; then\n"
      "    compopt -o nospace\n"
      "    mapfile -t COMPREPLY < <(compgen -W \"$settings\" -- \"$cur\")\n"
      "  elif [[ $cur == -* ]]; then\n"
      "    mapfile -t COMPREPLY < <(compgen -W \"$options --help\" -- \"$cur\")\n"
      "  else\n"
      "    compopt -o filenames\n"
      "    mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")\n"
      "  fi\n"
      "}\n"
      "complete -F _nbdmirror nbdmirror\n";

/* What completes the value of each option of the subcommand SUB. */
static void
bash_values (const char *sub, const struct cmd_option *table, const char *dashes, bool part)
{
  FOR_EACH (o, table, part)
  {
    enum value_kind kind = value_kind (o);
    if (kind == VALUE_NONE)
      continue;
    printf ("    '%s %s%s') ", sub, dashes, o->name);
    if (kind == VALUE_FREE)
      printf ("return ;;\n");
    else {
      printf ("%smapfile -t COMPREPLY < <(compgen ",
              kind == VALUE_FILE ? "compopt -o filenames; " : "");
      if (kind == VALUE_CHOICE) {
        printf ("-W '");
        print_choices (o->value);
        printf ("'");
      } else
        printf (kind == VALUE_FILE ? "-f" : "-c");
      printf (" -- \"$cur\"); return ;;\n");
    }
  }
}

static void
print_bash (const struct subcommand *const *subcommands)
{
  printf ("%s\n  if [ \"$COMP_CWORD\" -eq 1 ]; then\n    mapfile -t COMPREPLY < <(compgen -W '",
          bash_head);
  for (size_t i = 0; subcommands[i] != NULL; i++)
    printf ("%s ", subcommands[i]->name);
  printf ("--help --version' -- \"$cur\")\n    return\n  fi\n  case \"$sub $prev\" in\n");
  for (size_t i = 0; subcommands[i] != NULL; i++) {
    bash_values (subcommands[i]->name, subcommands[i]->options, "--", false);
    bash_values (subcommands[i]->name, subcommands[i]->options, "", true);
    bash_values (subcommands[i]->name, subcommands[i]->settings, "", false);
  }
  printf ("  esac\n  case $sub in\n");
  for (size_t i = 0; subcommands[i] != NULL; i++) {
    printf ("    %s) options='", subcommands[i]->name);
    FOR_EACH_OPTION (o, subcommands[i]->options)
    printf ("--%s ", o->name);
    printf ("' settings='");
    FOR_EACH_OPTION (o, subcommands[i]->settings)
    printf ("%s= ", o->name);
    printf ("' parts='");
    FOR_EACH_PART (o, subcommands[i]->options)
    printf ("%s= ", o->name + 1);
    printf ("' ;;\n");
  }
  printf ("  esac\n%s", bash_tail);
}

/* ---- zsh ------------------------------------------------------------------------------------ */

/* The option that parts follow. */
static bool
has_parts (const struct cmd_option *o)
{
  return o->name[0] != ',' && o[1].name != NULL && o[1].name[0] == ',';
}

/* What stands behind an option in _arguments and _values: [text]:name:action. */
static void
zsh_value (const char *sub, const struct cmd_option *o)
{
  printf ("[");
  print_phrase (o);
  printf ("]");
  if (value_kind (o) == VALUE_NONE)
    return;
  printf (":value:");
  if (has_parts (o)) {
    printf ("_nbdmirror_%s_%s", sub, o->name);
    return;
  }
  switch (value_kind (o)) {
  case VALUE_CHOICE:
    printf ("(");
    print_choices (o->value);
    printf (")");
    break;
  case VALUE_FILE:
    printf ("_files");
    break;
  case VALUE_COMMAND:
    printf ("_command_names");
    break;
  default:
    printf (" ");
  }
}

/* "_values" and the settings of a table, or the parts in it. */
static void
zsh_values (const char *sub, const char *what, const struct cmd_option *table, bool part)
{
  printf ("_values -S = %s", what);
  FOR_EACH (o, table, part)
  {
    printf (" \\\n          '%s", o->name + part);
    zsh_value (sub, o);
    printf ("'");
  }
}

/* A function for each option that parts follow. */
static void
zsh_parts (const struct subcommand *sc)
{
  FOR_EACH_OPTION (o, sc->options)
  {
    if (!has_parts (o))
      continue;
    printf ("_nbdmirror_%s_%s ()\n{\n  if compset -P '*,'; then\n    ", sc->name, o->name);
    zsh_values (sc->name, o->name, sc->options, true);
    printf ("\n  else\n    _files\n  fi\n}\n\n");
  }
}

static void
print_zsh (const struct subcommand *const *subcommands)
{
  printf ("#compdef nbdmirror\n# Made by nbdmirror --print-completion zsh.\n\n");
  for (size_t i = 0; subcommands[i] != NULL; i++)
    zsh_parts (subcommands[i]);
  printf ("_nbdmirror ()\n{\n  local -a subcommands=(\n");
  for (size_t i = 0; subcommands[i] != NULL; i++)
    printf ("    \"%s:%s\"\n", subcommands[i]->name, subcommands[i]->summary);
  printf ("  )\n  if (( CURRENT == 2 )); then\n    _describe subcommand subcommands\n"
          "    return\n  fi\n  local sub=$words[2]\n  shift words\n  (( CURRENT-- ))\n"
          "  case $sub in\n");
  for (size_t i = 0; subcommands[i] != NULL; i++) {
    printf ("    %s)\n", subcommands[i]->name);
    if (subcommands[i]->settings != NULL) {
      printf ("      if (( CURRENT > 2 )) && [[ $words[CURRENT] != -* ]]; then\n        ");
      zsh_values (subcommands[i]->name, "setting", subcommands[i]->settings, false);
      printf ("\n        return\n      fi\n");
    }
    printf ("      _arguments -S");
    FOR_EACH_OPTION (o, subcommands[i]->options)
    {
      printf (" \\\n        '--%s%s", o->name, value_kind (o) != VALUE_NONE ? "=" : "");
      zsh_value (subcommands[i]->name, o);
      printf ("'");
    }
    printf (" \\\n        '--help[print a help text]' '*:file:_files' ;;\n");
  }
  printf ("  esac\n}\n\n_nbdmirror \"$@\"\n");
}

/* ---- fish ----------------------------------------------------------------------------------- */

/* NAME=, or NAME=WORD for each word that it may be, with blanks between. */
static void
print_assignments (const struct cmd_option *o)
{
  const char *name = o->name + (o->name[0] == ',');

  if (value_kind (o) != VALUE_CHOICE)
    printf ("%s=", name);
  else
    for (const char *word = o->value; *word != '\0'; word += strspn (word, "|")) {
      int len = (int)strcspn (word, "|");
      printf ("%s%s=%.*s", word == o->value ? "" : " ", name, len, word);
      word += len;
    }
}

/* For a value of parts with commas between them. */
static void
fish_parts (const struct cmd_option *table)
{
  printf (" -r -F -a '(__fish_complete_list , \"string split \\\" \\\" \\\"");
  FOR_EACH_PART (o, table)
  {
    print_assignments (o);
    if (next_option (o + 1, true) != NULL)
      printf (" ");
  }
  printf ("\\\"\")'");
}

static void
fish_option (const char *sub, const struct cmd_option *o)
{
  printf ("complete -c nbdmirror -n '__fish_seen_subcommand_from %s' -l %s", sub, o->name);
  if (o->key < 0x80)
    printf (" -s %c", o->key);
  switch (value_kind (o)) {
  case VALUE_NONE:
    break;
  case VALUE_FREE:
    if (has_parts (o))
      fish_parts (o + 1);
    else
      printf (" -x");
    break;
  case VALUE_CHOICE:
    printf (" -x -a '");
    print_choices (o->value);
    printf ("'");
    break;
  case VALUE_FILE:
    printf (" -r -F");
    break;
  case VALUE_COMMAND:
    printf (" -x -a '(__fish_complete_command)'");
    break;
  }
  printf (" -d '");
  print_phrase (o);
  printf ("'\n");
}

static void
print_fish (const struct subcommand *const *subcommands)
{
  printf ("# Made by nbdmirror --print-completion fish.\n\n"
          "complete -c nbdmirror -n __fish_use_subcommand -f\n"
          "complete -c nbdmirror -n __fish_use_subcommand -l version -d 'Print the version'\n"
          "complete -c nbdmirror -l help -d 'Print a help text'\n");
  for (size_t i = 0; subcommands[i] != NULL; i++) {
    const char *sub = subcommands[i]->name;
    printf ("complete -c nbdmirror -n __fish_use_subcommand -f -a %s -d \"%s\"\n", sub,
            subcommands[i]->summary);
    FOR_EACH_OPTION (o, subcommands[i]->options)
    fish_option (sub, o);
    FOR_EACH_OPTION (o, subcommands[i]->settings)
    {
      printf ("complete -c nbdmirror -n '__fish_seen_subcommand_from %s' -a '", sub);
      print_assignments (o);
      printf ("' -d '");
      print_phrase (o);
      printf ("'\n");
    }
  }
}

bool
cmd_print_completion (const char *shell, const struct subcommand *const *subcommands)
{
  if (strcmp (shell, "bash") == 0)
    print_bash (subcommands);
  else if (strcmp (shell, "zsh") == 0)
    print_zsh (subcommands);
  else if (strcmp (shell, "fish") == 0)
    print_fish (subcommands);
  else
    return false;
  return true;
}
