/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See bypass.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/durable.h"
#include "base/fd.h"
#include "base/text.h"
#include "base/uuid.h"
#include "dirty-bitmap/state/state.h"
#include "nbd-plugin/mirror/bypass.h"

#define HEAD "nbdmirror bypass, boot "
#define UNKNOWN "00000000-0000-0000-0000-000000000000"

static char *
make_text (void)
{
  char boot[UUID_TEXT_BYTES];
  uint8_t id[16];

  state_boot_id (id);
  uuid_text (id, boot);
  return text_printf (HEAD "%s\n", boot);
}

/* TEXT is one of ours, and certainly of another boot: both are known. */
static bool
is_of_another_boot (const char *text)
{
  CLEANUP_TEXT char *ours = make_text ();

  return strlen (text) == strlen (ours) && strncmp (text, HEAD, strlen (HEAD)) == 0
         && strstr (text, UNKNOWN) == NULL && strstr (ours, UNKNOWN) == NULL
         && strcmp (text, ours) != 0;
}

void
bypass_open (struct bypass *b, const char *control)
{
  char text[128] = "";

  b->path = text_printf ("%s.bypass", control);
  CLEANUP_FD int fd = open (b->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  b->was = fd != -1 || errno != ENOENT;
  b->on = b->was
          && (fd == -1 || fd_read_text (fd, text, sizeof text) == -1 || !is_of_another_boot (text));
}

void
bypass_close (struct bypass *b)
{
  text_free (b->path);
  b->path = NULL;
}

int
bypass_set (struct bypass *b, bool on, char **error)
{
  CLEANUP_TEXT char *text = make_text ();
  int r = on ? durable_replace (b->path, text, error) : durable_remove (b->path, error);

  if (r == 0)
    b->on = on;
  return r;
}
