/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * From an ssh URI to a command.  See ssh.h.  What goes to the other host is one string, which
 * a shell there takes apart: every word of it is quoted.
 */

#include "config.h"

#include "mirror/endpoint/ssh.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SCHEME "ssh://"
#define MAX_WORDS 40
#define BAD "'`\";&<>|(){}"

struct place {
  char *user, *host, *port, *path;                   /* USER and PORT may be NULL */
  char *format, *backing, *backing_format, *program; /* or NULL */
  bool preallocate, overcommit, overwrite;
};

bool
is_ssh_uri (const char *name)
{
  return strncmp (name, SCHEME, strlen (SCHEME)) == 0;
}

__attribute__ ((format (printf, 1, 2))) static char *
text (const char *fmt, ...)
{
  va_list ap;
  char *s;

  va_start (ap, fmt);
  if (vasprintf (&s, fmt, ap) == -1)
    abort ();
  va_end (ap);
  return s;
}

/* The LEN bytes at S, with %XX decoded.  NULL where that is not well-formed. */
static char *
decode (const char *s, size_t len)
{
  char *out = calloc (1, len + 1), *p = out;

  if (out == NULL)
    abort ();
  for (size_t i = 0; i < len; i++) {
    char digits[3] = "";
    if (s[i] != '%') {
      *p++ = s[i];
      continue;
    }
    if (len - i < 3 || !isxdigit ((unsigned char)s[i + 1]) || !isxdigit ((unsigned char)s[i + 2])) {
      free (out);
      return NULL;
    }
    memcpy (digits, s + i + 1, 2);
    *p = (char)strtol (digits, NULL, 16);
    if (*p++ == '\0') {
      free (out);
      return NULL;
    }
    i += 2;
  }
  return out;
}

static void
place_free (struct place *p)
{
  char *const all[] = { p->user,   p->host,    p->port,           p->path,
                        p->format, p->backing, p->backing_format, p->program };

  for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
    free (all[i]);
}

/* One KEY or KEY=VALUE.  NULL, or what is wrong. */
static char *
take_option (struct place *p, const char *s, size_t len)
{
  const struct {
    const char *key;
    char **value;
    bool *flag;
  } known[] = {
    { "format", &p->format, NULL },
    { "backing", &p->backing, NULL },
    { "backing-format", &p->backing_format, NULL },
    { "program", &p->program, NULL },
    { "preallocate", NULL, &p->preallocate },
    { "overcommit", NULL, &p->overcommit },
    { "overwrite", NULL, &p->overwrite },
  };
  const char *equals = memchr (s, '=', len);
  size_t key = equals ? (size_t)(equals - s) : len;

  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
    if (strlen (known[i].key) != key || memcmp (known[i].key, s, key) != 0)
      continue;
    if ((known[i].flag != NULL) == (equals != NULL))
      return text ("%s %s", known[i].key, equals ? "takes no value" : "needs a value");
    if (known[i].flag != NULL) {
      *known[i].flag = true;
      return NULL;
    }
    free (*known[i].value);
    *known[i].value = decode (equals + 1, len - key - 1);
    return *known[i].value ? NULL
                           : text ("%s: a %% is followed by two hexadecimal digits", known[i].key);
  }
  return text ("unknown option '%.*s'", (int)key, s);
}

/* Could it be taken for an option, or do harm where ssh's own configuration hands it to a shell
 * (%h, %r in ProxyCommand and the like)?  Newer releases of ssh refuse the same. */
static bool
is_harmless (const char *name, const char *bad)
{
  if (name == NULL || name[0] == '\0' || name[0] == '-' || strpbrk (name, bad) != NULL)
    return false;
  for (; *name != '\0'; name++)
    if (isspace ((unsigned char)*name) || iscntrl ((unsigned char)*name))
      return false;
  return true;
}

/* USER@HOST:PORT. */
static char *
take_authority (struct place *p, const char *s, size_t len)
{
  const char *at = memchr (s, '@', len);
  if (at != NULL) {
    p->user = decode (s, (size_t)(at - s));
    len -= (size_t)(at - s) + 1;
    s = at + 1;
  }
  const char *end = s + len, *colon;
  if (len > 0 && *s == '[') { /* [IPv6] */
    const char *close = memchr (s, ']', len);
    if (close == NULL)
      return text ("no ] after [");
    p->host = decode (s + 1, (size_t)(close - s) - 1);
    colon = close + 1 < end ? close + 1 : NULL;
    if (colon != NULL && *colon != ':')
      return text ("a : and a port, or nothing, comes after ]");
  } else {
    colon = memchr (s, ':', len);
    p->host = decode (s, colon ? (size_t)(colon - s) : len);
  }
  if (colon != NULL) {
    p->port = decode (colon + 1, (size_t)(end - colon) - 1);
    if (p->port == NULL || p->port[0] == '\0' || p->port[strspn (p->port, "0123456789")] != '\0')
      return text ("the port is no number");
  }
  if ((at != NULL && !is_harmless (p->user, BAD)) || !is_harmless (p->host, BAD "$\\"))
    return text ("it begins as ssh://[USER@]HOST[:PORT]/PATH");
  return NULL;
}

/* NULL, or what is wrong.  place_free() in either case. */
static char *
parse (const char *uri, struct place *p)
{
  const char *s = uri + strlen (SCHEME);
  size_t len = strcspn (s, "/?");
  char *problem;

  *p = (struct place){ .user = NULL };
  problem = take_authority (p, s, len);
  if (problem != NULL)
    return problem;
  s += len;
  len = strcspn (s, "?");
  p->path = decode (s, len);
  if (p->path == NULL || p->path[0] != '/' || p->path[strlen (p->path) - 1] == '/')
    return text ("after the host comes the path of a file, from / on");
  for (s += len; problem == NULL && *s != '\0'; s += len) {
    len = strcspn (++s, "&");
    if (len > 0)
      problem = take_option (p, s, len);
  }
  return problem;
}

char *
ssh_uri_problem (const char *uri)
{
  struct place p;
  char *problem = parse (uri, &p);

  place_free (&p);
  return problem;
}

/* ---- the command ------------------------------------------------------------------------- */

/* Append WORD to *LINE so that a shell takes it for one word. */
static void
add_quoted (char **line, const char *word)
{
  size_t size = strlen (*line) + 4 * strlen (word) + 4;
  char *out = realloc (*line, size), *p;

  if (out == NULL)
    abort ();
  *line = out;
  p = out + strlen (out);
  if (p != out)
    *p++ = ' ';
  *p++ = '\'';
  for (; *word != '\0'; word++)
    if (*word == '\'') {
      memcpy (p, "'\\''", 4);
      p += 4;
    } else
      *p++ = *word;
  *p++ = '\'';
  *p = '\0';
}

static void
add_pair (char **line, const char *option, const char *value)
{
  if (value != NULL) {
    add_quoted (line, option);
    add_quoted (line, value);
  }
}

static char *
remote_command (const struct place *p, const struct endpoint_options *opts)
{
  char *line = text ("%s", ""), size[32];

  add_quoted (&line, p->program ? p->program : "nbdmirror");
  add_quoted (&line, "receive");
  add_quoted (&line, "--stdio");
  add_pair (&line, "--format", p->format);
  if (!opts->writable)
    add_quoted (&line, "--read-only");
  else if (!opts->create)
    add_quoted (&line, "--resume");
  else {
    snprintf (size, sizeof size, "%" PRIu64, opts->create_size);
    add_pair (&line, "--size", size);
    add_pair (&line, "--backing", p->backing);
    add_pair (&line, "--backing-format", p->backing_format);
    if (p->overwrite)
      add_quoted (&line, "--overwrite");
    if (p->overcommit)
      add_quoted (&line, "--overcommit");
  }
  if (p->preallocate && opts->writable)
    add_quoted (&line, "--preallocate");
  add_quoted (&line, p->path);
  return line;
}

char **
ssh_command (const char *uri, const struct endpoint_options *opts, char **error)
{
  const char *program = getenv ("NBDMIRROR_SSH");
  char **argv = calloc (MAX_WORDS + 1, sizeof *argv), *save = NULL, *words;
  unsigned n = 0;
  struct place p;
  char *problem = parse (uri, &p);

  if (argv == NULL)
    abort ();
  if (problem != NULL) {
    *error = text ("%s: %s", uri, problem);
    free (problem);
    place_free (&p);
    free (argv);
    return NULL;
  }
  words = text ("%s", program && program[strspn (program, " ")] ? program : "ssh");
  for (char *w = strtok_r (words, " ", &save); w != NULL && n < MAX_WORDS - 12;
       w = strtok_r (NULL, " ", &save))
    argv[n++] = text ("%s", w);
  free (words);
  argv[n++] = text ("-T");
  argv[n++] = text ("-oBatchMode=yes");
  if (p.port != NULL)
    argv[n++] = text ("-p%s", p.port);
  if (p.user != NULL)
    argv[n++] = text ("-l%s", p.user);
  argv[n++] = text ("--");
  argv[n++] = text ("%s", p.host);
  argv[n++] = remote_command (&p, opts);
  place_free (&p);
  return argv;
}

void
ssh_command_free (char **argv)
{
  for (char **w = argv; w != NULL && *w != NULL; w++)
    free (*w);
  free (argv);
}
