/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See served.h.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/child.h"
#include "base/durable.h"
#include "base/fd.h"
#include "base/pid-file.h"
#include "base/text.h"
#include "cmd/adopt/record.h"
#include "cmd/adopt/served.h"
#include "cmd/adopt/starting.h"
#include "cmd/cmd.h"
#include "cmd/serve/tidy.h"
#include "control/client.h"
#include "mirror/endpoint/uri.h"

#define CALL_MS 5000
#define STOP_MS 10000 /* nbdkit flushes the image */

static int
call (const char *control, const char *command, json_t *args, json_t **ret, char **class_,
      char **error)
{
  struct control_client *c = control_client_connect (control, CALL_MS, error);

  if (c == NULL) {
    json_decref (args);
    return -1;
  }
  struct control_call it
      = { .command = command, .args = args, .timeout_ms = CALL_MS, .ret = ret, .class_ = class_ };
  int r = control_client_call (c, &it, error);
  control_client_free (c);
  return r;
}

/* For text_free(), or NULL. */
static char *
socket_in (const char *text)
{
  char *error = NULL;
  struct uri *uri = uri_read (text, &error);
  const char *socket = uri != NULL ? uri_parameter (uri, "socket") : NULL;
  char *copy = socket != NULL ? text_copy (socket) : NULL;

  uri_free (uri);
  text_free (error);
  return copy;
}

int
served_look (const char *control, struct served *s, char **error)
{
  json_t *status = NULL;

  if (call (control, "query-mirror", NULL, &status, NULL, error) == -1)
    return -1;
  const char *image = json_string_value (json_object_get (status, "direct"));
  const char *format = json_string_value (json_object_get (status, "disk-format"));
  const char *disk = format != NULL ? json_string_value (json_object_get (status, "disk")) : NULL;
  const char *uri = json_string_value (json_object_get (status, "uri"));
  const char *state = json_string_value (json_object_get (status, "state-file"));
  *s = (struct served){
    .pid = (pid_t)json_integer_value (json_object_get (status, "server-pid")),
    .image = image != NULL ? text_copy (image) : NULL,
    .container = disk != NULL ? text_copy (disk) : NULL,
    .socket = uri != NULL ? socket_in (uri) : NULL,
    .state = state != NULL ? text_copy (state) : NULL,
  };
  json_decref (status);
  return 0;
}

void
served_free (struct served *s)
{
  text_free (s->image);
  text_free (s->container);
  text_free (s->socket);
  text_free (s->state);
  *s = (struct served){ .pid = s->pid };
}

bool
served_has_state (const char *control)
{
  CLEANUP_TEXT char *ignored = NULL;
  struct served s;

  if (!served_is_there (control) || served_look (control, &s, &ignored) == -1)
    return false;
  bool has = s.state != NULL;
  served_free (&s);
  return has;
}

bool
served_is_there (const char *control)
{
  return tidy_look (control) == TIDY_IN_USE;
}

int
served_bypass (const char *control, bool on, bool *refused, char **error)
{
  char *class_ = NULL, *message = NULL;
  int r = call (control, "mirror-bypass", json_pack ("{s:b}", "on", on), NULL, &class_, &message);

  *refused = class_ != NULL;
  if (r == -1)
    text_error (error, "%s: %s", control, message);
  text_free (message);
  text_free (class_);
  return r;
}

pid_t
served_process (const char *control, const json_t *record)
{
  CLEANUP_TEXT char *path = text_printf ("%s.pid", record_text (record, "socket"));
  CLEANUP_TEXT char *word = text_printf ("mirror-control=%s", control);

  return pid_file_process (path, word);
}

/* Does PID serve the image of RECORD?  With other filters between it says mirror-disk. */
static bool
serves_image (pid_t pid, const json_t *record)
{
  static const char *const keys[] = { "mirror-direct", "mirror-disk" };
  CLEANUP_TEXT char *path = text_printf ("%s.pid", record_text (record, "socket"));
  bool found = false;

  for (unsigned i = 0; i < 2 && !found; i++) {
    CLEANUP_TEXT char *word = text_printf ("%s=%s", keys[i], record_text (record, "filename"));
    found = pid_file_process (path, word) == pid;
  }
  return found;
}

pid_t
served_ending (const char *control, const json_t *record)
{
  pid_t pid = served_process (control, record);

  return pid != 0 && serves_image (pid, record) && !served_is_there (control)
                 && !tidy_has_bound (pid, control)
             ? pid
             : 0;
}

/* The filter takes whatever it cannot read for a note of this boot. */
int
served_bypass_next (const char *control, char **error)
{
  CLEANUP_TEXT char *path = text_printf ("%s.bypass", control);

  return durable_replace (path, "", error);
}

void
served_forget_bypass (const char *control)
{
  CLEANUP_TEXT char *path = text_printf ("%s.bypass", control), *error = NULL;

  if (durable_remove (path, &error) == -1)
    cmd_warning ("%s", error);
}

int
served_start (const char *image, const char *socket, const char *control, const char *state,
              char **nbdkit_args, unsigned nr)
{
  const char *const words[]
      = { "nbdmirror", "serve", image,       "--force-share", "--format", "raw",
          "--socket",  socket,  "--control", control,         "--detach" };
  unsigned nr_words = sizeof words / sizeof words[0];
  char **argv = calloc (nr_words + nr + 4, sizeof *argv);
  if (argv == NULL)
    abort ();
  for (unsigned i = 0; i < nr_words; i++)
    argv[i] = (char *)words[i]; /* exec leaves them alone */
  if (state != NULL) {
    argv[nr_words++] = (char *)"--state";
    argv[nr_words++] = (char *)state;
  }
  argv[nr_words++] = (char *)"--";
  for (unsigned i = 0; i < nr; i++)
    argv[nr_words + i] = nbdkit_args[i];
  CLEANUP_FD int lock = starting_begin (control);
  const struct child_options o
      = { .path = "/proc/self/exe", .output_to_stderr = true, .keep = { lock } };
  pid_t pid = child_start (argv, &o);
  free (argv);
  int status = 1;
  while (pid != -1 && !child_ended (pid, 1000, &status))
    ;
  return status == 0 ? 0 : -1;
}

/* Has the process ended within LIMIT_MS?  One that its parent has not waited for has ended, too. */
static bool
ended (int pidfd, int limit_ms)
{
  struct pollfd pfd = { .fd = pidfd, .events = POLLIN };
  return poll (&pfd, 1, limit_ms) == 1;
}

/* True: it has.  A process that waits for a disk that hangs does not even end when it is killed. */
static bool
end_process (pid_t pid, bool politely)
{
  int pidfd = pid > 0 ? (int)syscall (SYS_pidfd_open, pid, 0) : -1;
  bool over = pidfd == -1 && (pid <= 0 || errno == ESRCH);

  if (pidfd != -1 && politely) {
    kill (pid, SIGTERM);
    over = ended (pidfd, STOP_MS);
  }
  if (pidfd != -1 && !over) {
    kill (pid, SIGKILL);
    over = ended (pidfd, STOP_MS);
  }
  fd_close (&pidfd);
  if (!over)
    cmd_warning ("the server (process %ld) does not end, even when it is killed: as long as it is"
                 " there, what it has begun to write may still reach its disk",
                 (long)pid);
  return over;
}

bool
served_stop (pid_t pid)
{
  return end_process (pid, true);
}

bool
served_kill (pid_t pid)
{
  return end_process (pid, false);
}
