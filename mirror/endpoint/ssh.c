/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * From an ssh URI to a command.  See ssh.h.  What goes to the other host is one string, which
 * a shell there takes apart: every word of it is quoted.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mirror/endpoint/ssh.h"
#include "mirror/endpoint/uri.h"

#define MAX_WORDS 40
/* Exit statuses of ssh: of the nbdmirror there, of the shell there, its own. */
#define REMOTE_REFUSED 7
#define REMOTE_NOT_FOUND 127
#define SSH_FAILED 255

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
remote_command (const struct uri *uri, const struct endpoint_options *opts)
{
  const char *program = uri_parameter (uri, "program");
  char *line = calloc (1, 1), size[32];

  if (line == NULL)
    abort ();

  add_quoted (&line, program != NULL ? program : "nbdmirror");
  add_quoted (&line, "receive");
  add_quoted (&line, "--stdio");
  add_pair (&line, "--format", uri_parameter (uri, "format"));
  if (!opts->writable)
    add_quoted (&line, "--read-only");
  else if (!opts->create || uri_has (uri, "resume"))
    add_quoted (&line, "--resume");
  else {
    snprintf (size, sizeof size, "%" PRIu64, opts->create_size);
    add_pair (&line, "--size", size);
    add_pair (&line, "--backing", uri_parameter (uri, "backing"));
    add_pair (&line, "--backing-format", uri_parameter (uri, "backing-format"));
    if (uri_has (uri, "overwrite"))
      add_quoted (&line, "--overwrite");
    if (uri_has (uri, "overcommit"))
      add_quoted (&line, "--overcommit");
  }
  if (opts->writable && uri_has (uri, "preallocate"))
    add_quoted (&line, "--preallocate");
  add_quoted (&line, uri->path);
  return line;
}

static void
add_word (char **argv, unsigned *n, const char *prefix, const char *word)
{
  if (asprintf (&argv[*n], "%s%s", prefix, word) == -1)
    abort ();
  ++*n;
}

/* NBDMIRROR_SSH, or ssh. */
static void
add_program (char **argv, unsigned *n)
{
  const char *program = getenv ("NBDMIRROR_SSH");
  bool given = program != NULL && program[strspn (program, " ")] != '\0';
  char *words = strdup (given ? program : "ssh"), *save = NULL;

  if (words == NULL)
    abort ();
  for (char *w = strtok_r (words, " ", &save); w != NULL && *n < MAX_WORDS - 12;
       w = strtok_r (NULL, " ", &save))
    add_word (argv, n, "", w);
  free (words);
}

/* REMOTE is what a shell there is given; it is owned from now on. */
static char **
command_with (const struct uri *uri, char *remote)
{
  char **argv = calloc (MAX_WORDS + 1, sizeof *argv), port[32];
  unsigned n = 0;

  if (argv == NULL)
    abort ();
  add_program (argv, &n);
  add_word (argv, &n, "", "-T");
  add_word (argv, &n, "-oBatchMode=yes", "");
  /* A host that vanishes is noticed in a job that is at rest, too: after the third question. */
  add_word (argv, &n, "-oServerAliveInterval=30", "");
  if (uri->port != 0) {
    snprintf (port, sizeof port, "%d", uri->port);
    add_word (argv, &n, "-p", port);
  }
  if (uri->user != NULL)
    add_word (argv, &n, "-l", uri->user);
  add_word (argv, &n, "", "--");
  add_word (argv, &n, "", uri->host);
  argv[n++] = remote;
  return argv;
}

char **
ssh_command (const struct uri *uri, const struct endpoint_options *opts)
{
  return command_with (uri, remote_command (uri, opts));
}

char **
ssh_command_for (const struct uri *uri, const char *const *words)
{
  const char *program = uri_parameter (uri, "program");
  char *line = calloc (1, 1);

  if (line == NULL)
    abort ();
  add_quoted (&line, program != NULL ? program : "nbdmirror");
  for (; *words != NULL; words++)
    add_quoted (&line, *words);
  return command_with (uri, line);
}

const char *
ssh_why_ended (int status, int *err)
{
  switch (status) {
  case REMOTE_REFUSED:
    *err = EROFS;
    return "refused there";
  case REMOTE_NOT_FOUND:
    return "nbdmirror was not found there (program=FILE says where it is)";
  case SSH_FAILED:
    return "ssh does not reach it";
  default:
    return NULL;
  }
}

void
ssh_command_free (char **argv)
{
  for (char **w = argv; w != NULL && *w != NULL; w++)
    free (*w);
  free (argv);
}
