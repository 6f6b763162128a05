/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Sorting the words of an nbdkit command line.  That needs to know which of nbdkit's options take
 * their value as a word of its own.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/child.h"
#include "cmd/cmd.h"
#include "cmd/serve/nbdkit-args.h"

static const char short_with_value[] = "DegipPtuU";

static const char *const long_with_value[] = {
  "debug",    "exportname", "export-name", "filter",           "group",
  "ip-addr",  "ipaddr",     "log",         "mask-handshake",   "pid-file",
  "pidfile",  "port",       "run",         "selinux-label",    "threads",
  "time-out", "timeout",    "tls",         "tls-certificates", "tls-psk",
  "unix",     "user",
};

/* What serve sets itself, and what to tell a user who gives it. */
static const struct {
  const char *word; /* an option's letter or name, or a parameter's key */
  const char *advice;
} ours[] = {
  { "U", "use --socket" },
  { "unix", "use --socket" },
  { "p", "the disk is served on --socket" },
  { "port", "the disk is served on --socket" },
  { "s", "the disk is served on --socket" },
  { "single", "the disk is served on --socket" },
  { "vsock", "the disk is served on --socket" },
  { "P", "use --pidfile" },
  { "pidfile", "use --pidfile" },
  { "pid-file", "use --pidfile" },
  { "f", "serve stays in the foreground unless --detach is given" },
  { "foreground", "serve stays in the foreground unless --detach is given" },
  { "no-fork", "serve stays in the foreground unless --detach is given" },
  { "e", "use --export" },
  { "exportname", "use --export" },
  { "export-name", "use --export" },
  { "mirror-control", "use --control" },
  { "mirror-export", "use --export" },
  { "mirror-state", "use --state" },
  { "mirror-disk", "give DISK" },
  { "file", "give DISK" },
};

/* NULL, or why the user must not give it.  NAME has LEN characters. */
static const char *
advice_for (const char *name, size_t len)
{
  for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
    if (strlen (ours[i].word) == len && memcmp (ours[i].word, name, len) == 0)
      return ours[i].advice;
  return NULL;
}

static bool
is_name (const char *name, size_t len, const char *other)
{
  return strlen (other) == len && memcmp (name, other, len) == 0;
}

/* Is the option NAME, which nbdkit lets users abbreviate, OPTION? */
static bool
is_option (const char *name, size_t len, const char *option)
{
  return len >= 2 && len <= strlen (option) && memcmp (option, name, len) == 0;
}

static const char *
advice_for_option (const char *name, size_t len)
{
  for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
    if (is_option (name, len, ours[i].word))
      return ours[i].advice;
  return NULL;
}

/* Does an option begin with these LEN characters, in what nbdkit prints for LIST_OPTION?  The
 * nbdkit that is installed is asked, because releases differ.  It would answer an option that it
 * does not know with its whole synopsis. */
static bool
is_known (const char *list_option, const char *text, size_t len)
{
  const char *const words[] = { "nbdkit", list_option, NULL };
  char *list = NULL;

  /* Where it cannot be run, nbdkit_check() says so later. */
  bool known = child_run (words, &list) != 0 || list == NULL;
  for (const char *line = list; line != NULL && !known; line = strchr (line, '\n')) {
    line += *line == '\n';
    known = strncmp (line, text, len) == 0;
  }
  free (list);
  if (!known)
    cmd_usage_error ("NBDKIT-ARGS: %.*s: the nbdkit that is installed has no such option", (int)len,
                     text);
  return known;
}

/* --NAME or --NAME=VALUE.  Returns how many words it takes, 0 after an error. */
static unsigned
take_long (struct nbdkit_args *a, char **words, unsigned nr)
{
  const char *name = words[0] + 2, *value = strchr (name, '='), *advice;
  size_t len = value != NULL ? (size_t)(value - name) : strlen (name), i;
  unsigned used = 1;

  bool filter = is_option (name, len, "filter"); /* not the parameter file= */
  advice = filter ? NULL : advice_for_option (name, len);
  if (advice != NULL) {
    cmd_usage_error ("NBDKIT-ARGS: --%.*s: %s", (int)len, name, advice);
    return 0;
  }
  if (!is_known ("--long-options", words[0], len + 2))
    return 0;
  if (value != NULL)
    value++;
  else
    for (i = 0; i < sizeof long_with_value / sizeof long_with_value[0]; i++)
      if (value == NULL && is_option (name, len, long_with_value[i])) {
        if (nr < 2) {
          cmd_usage_error ("NBDKIT-ARGS: %s needs a value", words[0]);
          return 0;
        }
        value = words[1];
        used = 2;
      }
  if (filter)
    a->has_filter = true;
  if (is_option (name, len, "tls") && value != NULL && strcmp (value, "require") == 0)
    a->tls_required = true;
  if (is_option (name, len, "readonly") || is_option (name, len, "read-only"))
    a->read_only = true;
  return used;
}

/* -x, -xVALUE, -x VALUE, -xyz. */
static unsigned
take_short (struct nbdkit_args *a, char **words, unsigned nr)
{
  for (const char *p = words[0] + 1; *p != '\0'; p++) {
    const char *advice = advice_for (p, 1);
    if (advice != NULL) {
      cmd_usage_error ("NBDKIT-ARGS: -%c: %s", *p, advice);
      return 0;
    }
    const char letter[] = { '-', *p };
    if (!is_known ("--short-options", letter, sizeof letter))
      return 0;
    if (*p == 'r')
      a->read_only = true;
    if (strchr (short_with_value, *p) == NULL)
      continue;
    if (p[1] != '\0')
      return 1;
    if (nr < 2) {
      cmd_usage_error ("NBDKIT-ARGS: -%c needs a value", *p);
      return 0;
    }
    return 2;
  }
  return 1;
}

static unsigned
take_parameter (struct nbdkit_args *a, const char *word)
{
  const char *value = strchr (word, '='), *advice;

  if (value == NULL) {
    cmd_usage_error ("NBDKIT-ARGS: '%s' is neither an option of nbdkit nor KEY=VALUE", word);
    return 0;
  }
  size_t len = (size_t)(value - word);
  advice = advice_for (word, len);
  if (advice != NULL) {
    cmd_usage_error ("NBDKIT-ARGS: %.*s=: %s", (int)len, word, advice);
    return 0;
  }
  if (is_name (word, len, "mirror-direct"))
    a->has_direct = true;
  if (is_name (word, len, "mirror-uri"))
    a->has_uri = true;
  return 1;
}

int
nbdkit_args_parse (struct nbdkit_args *a, char **words, unsigned nr)
{
  unsigned used;

  *a = (struct nbdkit_args){ 0 };
  a->options = calloc (nr + 1u, sizeof *a->options);
  a->parameters = calloc (nr + 1u, sizeof *a->parameters);
  if (a->options == NULL || a->parameters == NULL) {
    cmd_say ("%s", strerror (errno));
    return -1;
  }
  for (unsigned i = 0; i < nr; i += used) {
    bool option = words[i][0] == '-' && words[i][1] != '\0';

    if (!option)
      used = take_parameter (a, words[i]);
    else if (words[i][1] == '-')
      used = take_long (a, words + i, nr - i);
    else
      used = take_short (a, words + i, nr - i);
    if (used == 0)
      return -1;
    for (unsigned j = i; j < i + used; j++)
      if (option)
        a->options[a->nr_options++] = words[j];
      else
        a->parameters[a->nr_parameters++] = words[j];
  }
  return 0;
}

void
nbdkit_args_free (struct nbdkit_args *a)
{
  free (a->options);
  free (a->parameters);
}
