/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A new server in place of one that has died, or that was ended because the image was lent.  It is
 * tried again until the image is the same, everything that was not durable was repeated, and that
 * is durable.
 */

#include "config.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <nbdkit-plugin.h>

#include "base/clock.h"
#include "base/text.h"
#include "nbd-plugin/image/check.h"
#include "nbd-plugin/image/internal.h"
#include "nbd-plugin/image/requests.h"

/* For the server to answer, at the first time: a qemu-nbd that gets SIGTERM while it starts runs on
 * and accepts nobody.  One that is slow gets all the time that is left after that. */
#define START_AGAIN_MS 12000
#define FIRST_PAUSE_MS 50 /* between two tries to start the server */
#define LAST_PAUSE_MS 500

/* Is it still the same file or device that stands at the path? */
static bool
is_same_file (const struct image *i)
{
  struct stat st;

  return stat (i->options.path, &st) == 0 && st.st_dev == i->file.st_dev
         && st.st_ino == i->file.st_ino && st.st_rdev == i->file.st_rdev;
}

/* Does the new server tell what the old one told? */
static bool
is_same_image (const struct image_facts *a, const struct image_facts *b)
{
  return a->size == b->size && a->read_only == b->read_only && a->trim == b->trim
         && a->zero == b->zero && a->fua == b->fua && a->cache == b->cache
         && a->extents == b->extents && a->layers == b->layers && a->maximum == b->maximum;
}

/* Send all that is kept, in order, and make it durable.  No other thread changes the log now. */
static int
replay (struct image *i, unsigned *nr)
{
  struct nbd_handle *h = i->server.connection[0];

  *nr = 0;
  for (const struct change *c = i->log.first; c != NULL; c = c->next, ++*nr) {
    int err = request_repeat (h, c);
    if (err != 0)
      return err;
  }
  struct image_request r = { .action = IMAGE_FLUSH };
  return i->facts.read_only ? 0 : request_send (h, &r);
}

/* Start a server within START_MS and replay, until END on base/clock.h's clock in ms.  True, or
 * false after a message. */
static bool
start_again (struct image *i, uint64_t start_ms, uint64_t end)
{
  uint64_t start_end = clock_ms () + start_ms;
  char *error = NULL;
  unsigned nr;

  if (!is_same_file (i)) {
    nbdkit_error ("%s: another file is there now, or none", i->options.path);
    return false;
  }
  if (server_start (&i->server, &i->options, start_end < end ? start_end : end, &error) == -1) {
    nbdkit_error ("%s", error);
    text_free (error);
    return false;
  }
  int err = 0;
  if (!is_same_file (i) || !is_same_image (&i->server.facts, &i->facts))
    nbdkit_error ("%s: it is another image now, or another qemu-nbd", i->options.path);
  else if ((err = replay (i, &nr)) != 0)
    nbdkit_error ("%s: change %u of those that were not durable cannot be repeated: %s",
                  i->options.path, nr + 1, strerror (err));
  else {
    nbdkit_error ("%s: qemu-nbd runs again, and %u changes that were not durable were repeated",
                  i->options.path, nr);
    return true;
  }
  server_kill (&i->server);
  server_bury (&i->server);
  /* What the server that died had allocated and not made durable belongs to nobody now, and a
   * replay takes its room again. */
  if (err == ENOSPC)
    check_frees_leaks (&i->options, end);
  return false;
}

static void
tell_end (const struct image *i)
{
  int status = i->server.end_status;

  if (WIFSIGNALED (status))
    nbdkit_error ("%s: qemu-nbd was ended by signal %d (%s): it is started again", i->options.path,
                  WTERMSIG (status), strsignal (WTERMSIG (status)));
  else
    nbdkit_error ("%s: qemu-nbd ended with status %d: it is started again", i->options.path,
                  WEXITSTATUS (status));
}

/* Has the server's end done harm?  Tells it. */
static bool
is_damaged (const struct image *i, uint64_t end)
{
  if (i->facts.read_only || !check_finds_errors (&i->options, end))
    return false;
  nbdkit_error ("%s: the image is damaged, as 'qemu-img check' says: all requests fail until it is"
                " repaired and this server is started again",
                i->options.path);
  return true;
}

bool
recovery_start (struct image *i, bool returned)
{
  uint64_t end = clock_ms () + RECOVERY_MS;
  unsigned pause = FIRST_PAUSE_MS, start_ms = START_AGAIN_MS;

  server_bury (&i->server);
  if (!returned)
    tell_end (i);
  if (!returned && is_damaged (i, end - RECOVERY_MS / 2))
    return false;
  while (!start_again (i, start_ms, end)) {
    start_ms = RECOVERY_MS;
    if (returned) { /* whoever had it may still have it open, for as long as he likes */
      if (nbdkit_nanosleep (0, pause * NS_PER_MS) == -1)
        return false;
      end = clock_ms () + RECOVERY_MS;
    } else if (clock_ms () + pause >= end) {
      nbdkit_error ("%s: given up after %d s: all requests fail until this server is started"
                    " again",
                    i->options.path, RECOVERY_MS / 1000);
      return false;
    } else
      clock_sleep_ms (pause);
    pause = pause * 2 < LAST_PAUSE_MS ? pause * 2 : LAST_PAUSE_MS;
  }
  return true;
}
