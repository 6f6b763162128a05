/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * This end of the line to an agent.  See far.h.
 */

#include "config.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/far/far.h"
#include "cmd/far/line.h"
#include "mirror/endpoint/ssh.h"
#include "mirror/endpoint/uri.h"

#define END_MS 5000

struct far {
  char *place;
  pid_t ssh;
  int fd;
  struct far_line line;
  bool lost;
  bool (*go_on) (void *);
  void *opaque;
};

bool
far_is_meant (const char *place)
{
  return uri_kind (place) == URI_SSH;
}

/* Read PLACE, whose only parameter may be `program`.  NULL with *PROBLEM. */
static struct uri *
read_place (const char *place, char **problem)
{
  static const char *const others[] = { "format",      "backing",    "backing-format", "resume",
                                        "preallocate", "overcommit", "overwrite",      NULL };
  struct uri *uri = uri_read (place, problem);

  for (unsigned i = 0; uri != NULL && others[i] != NULL; i++)
    if (uri_has (uri, others[i])) {
      text_error (problem, "a repository has no parameter '%s'", others[i]);
      uri_free (uri);
      return NULL;
    }
  return uri;
}

int
far_check (const char *place)
{
  CLEANUP_TEXT char *problem = NULL;

  if (!far_is_meant (place))
    return EXIT_DONE;
  uri_free (read_place (place, &problem));
  return problem == NULL ? EXIT_DONE : cmd_usage_error ("%s: %s", place, problem);
}

/* ---- the connection ---- */

/* How ssh ended, if it tells; it is waited for. */
static char *
how_it_ended (struct far *f)
{
  int status = 0, err = 0;
  const char *why = NULL;

  if (child_ended (f->ssh, END_MS, &status)) {
    f->ssh = 0;
    why = WIFEXITED (status) ? ssh_why_ended (WEXITSTATUS (status), &err) : "ssh was killed";
  }
  return text_printf ("the connection is lost%s%s", why != NULL ? ": " : "",
                      why != NULL ? why : "");
}

/* The next answer.  NULL with *ERROR, and then the line is not used any more. */
static json_t *
answer (struct far *f, char **error)
{
  char *why = NULL;
  json_t *o = far_line_receive (&f->line, f->go_on, f->opaque, &why);

  if (o != NULL)
    return o;
  f->lost = true;
  if (why == NULL)
    why = how_it_ended (f);
  text_error (error, "%s: %s", f->place, why);
  text_free (why);
  return NULL;
}

/* The agent says who it is. */
static int
greet (struct far *f, char **error)
{
  json_t *hello = answer (f, error);

  if (hello == NULL)
    return -1;
  bool good = json_integer_value (json_object_get (hello, "nbdmirror-backup-agent")) == FAR_VERSION;
  json_decref (hello);
  return good
             ? 0
             : text_error (error, "%s: the nbdmirror there is of another version: install the same",
                           f->place);
}

struct far *
far_open (const char *place, bool (*go_on) (void *), void *opaque, char **error)
{
  struct far *f = calloc (1, sizeof *f);
  CLEANUP_TEXT char *problem = NULL;
  struct uri *uri = read_place (place, &problem);
  int fds[2] = { -1, -1 };
  char **words = NULL;

  if (f == NULL || uri == NULL || socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == -1) {
    text_error (error, "%s: %s", place, problem != NULL ? problem : strerror (errno));
    goto failed;
  }
  const char *const remote[] = { "backup-agent", uri->path, NULL };
  words = ssh_command_for (uri, remote);
  const struct child_options how = { .stdio_fd = fds[1], .own_group = true, .end_with_us = true };
  f->ssh = child_start (words, &how);
  int err = errno;
  fd_close (&fds[1]);
  if (f->ssh == -1 || far_line_begin (&f->line, fds[0], fds[0]) == -1) {
    text_error (error, "%s: %s: %s", place, words[0], strerror (f->ssh == -1 ? err : errno));
    if (f->ssh != -1)
      kill (f->ssh, SIGKILL);
    goto failed;
  }
  ssh_command_free (words);
  uri_free (uri);
  f->place = text_copy (place);
  f->fd = fds[0];
  f->go_on = go_on;
  f->opaque = opaque;
  if (greet (f, error) == 0)
    return f;
  far_close (f);
  return NULL;

failed:
  ssh_command_free (words);
  uri_free (uri);
  fd_close (&fds[0]);
  free (f);
  return NULL;
}

void
far_close (struct far *f)
{
  int status;

  if (f == NULL)
    return;
  far_line_end (&f->line);
  fd_close (&f->fd); /* the agent sees this and ends, and so does ssh */
  if (f->ssh > 0 && !child_ended (f->ssh, END_MS, &status)) {
    kill (-f->ssh, SIGKILL);
    while (!child_ended (f->ssh, 1000, &status))
      ;
  }
  text_free (f->place);
  free (f);
}

int
far_call (struct far *f, const char *what, json_t *args, json_t **ret, int *status, char **error)
{
  json_t *call = args != NULL ? json_pack ("{s:s, s:o}", "do", what, "with", args) : NULL;
  int failed = EXIT_DEST_FAILED;

  if (status != NULL)
    *status = failed;
  if (call == NULL)
    return text_error (error, "%s: a name is not UTF-8", f->place);
  if (f->lost) {
    json_decref (call);
    return text_error (error, "%s: the connection is lost", f->place);
  }
  CLEANUP_TEXT char *why = NULL;
  int r = far_line_send (&f->line, call, &why);
  json_decref (call);
  if (r == -1) {
    f->lost = true;
    return text_error (error, "%s: %s", f->place, why);
  }
  json_t *o = answer (f, error);
  if (o == NULL)
    return -1;
  const char *fault = json_string_value (json_object_get (o, "error"));
  if (fault != NULL) {
    text_error (error, "%s", fault);
    if (status != NULL && json_is_integer (json_object_get (o, "status")))
      *status = (int)json_integer_value (json_object_get (o, "status"));
  }
  if (fault == NULL && ret != NULL)
    *ret = json_incref (o);
  json_decref (o);
  return fault == NULL ? 0 : -1;
}

/* ---- the files as endpoints ---- */

/* TEXT with every byte that means something in a URI as %XX. */
static char *
quoted (const char *text)
{
  static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/";
  char *out = malloc (strlen (text) * 3 + 1), *p = out;

  if (out == NULL)
    return text_copy ("out of memory");
  for (; *text != '\0'; text++)
    if (strchr (plain, *text) != NULL)
      *p++ = *text;
    else {
      static const char digits[] = "0123456789ABCDEF";
      *p++ = '%';
      *p++ = digits[(unsigned char)*text >> 4];
      *p++ = digits[(unsigned char)*text & 15];
    }
  *p = '\0';
  return out;
}

char *
far_endpoint (const char *place, const char *file, const char *flags)
{
  CLEANUP_TEXT char *name = quoted (file);
  const char *query = strchr (place, '?');
  int length = query != NULL ? (int)(query - place) : (int)strlen (place);

  return text_printf ("%.*s/%s?format=qcow2%s%s%s", length, place, name, query != NULL ? "&" : "",
                      query != NULL ? query + 1 : "", flags);
}

char **
far_serve_command (const char *place, const char *file)
{
  CLEANUP_TEXT char *name = far_endpoint (place, file, "");
  const struct endpoint_options o = { .writable = false };
  struct uri *uri = uri_read (name, NULL);
  char **words = uri != NULL ? ssh_command (uri, &o) : NULL;

  uri_free (uri);
  return words;
}
