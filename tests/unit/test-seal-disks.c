/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves that the coordinator asks a server again that did not answer where its disk was mirrored
 * to, and does not wait for one that is not there.
 */

#include "config.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <jansson.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/handoff/seal-disks.h"
#include "tests/unit/unit.h"

static char dir[64], path[sizeof (struct sockaddr_un)];
static int listener;

static void
listen_there (void)
{
  struct sockaddr_un a = { .sun_family = AF_UNIX };

  strcpy (dir, "/tmp/test-seal-disks.XXXXXX");
  cr_assert (mkdtemp (dir) != NULL);
  snprintf (a.sun_path, sizeof a.sun_path, "%s/control", dir);
  strcpy (path, a.sun_path);
  listener = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  cr_assert (listener != -1 && bind (listener, (struct sockaddr *)&a, sizeof a) == 0
             && listen (listener, 5) == 0);
}

static void
remove_all (void)
{
  unlink (path);
  rmdir (dir);
}

/* The first two connections are lost: a question, and the look whether anybody listens.  The third
 * one is answered. */
static void *
serve (void *opaque)
{
  json_t *m;

  for (int lost = 0; lost < 2; lost++)
    close (accept (listener, NULL, NULL));
  int fd = accept (listener, NULL, NULL);
  FILE *in = fdopen (fd, "r");
  if (in == NULL)
    return opaque;
  dprintf (fd, "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n");
  while ((m = json_loadf (in, JSON_DISABLE_EOF_CHECK, NULL)) != NULL) {
    json_t *answer
        = json_pack ("{s:{s:b}, s:O*}", "return", "sealed", 1, "id", json_object_get (m, "id"));
    json_dumpfd (answer, fd, JSON_COMPACT);
    dprintf (fd, "\n");
    json_decref (answer);
    json_decref (m);
  }
  fclose (in);
  return NULL;
}

static enum handoff_seal_state
seal (void)
{
  struct coordinator_seal s;
  char *control = path;

  coordinator_seal_all (&control, 1, &s);
  enum handoff_seal_state state = s.state;
  coordinator_seal_free (&s, 1);
  return state;
}

Test (seal_disks, a_server_that_did_not_answer_is_asked_again)
{
  pthread_t thread;

  listen_there ();
  cr_assert (pthread_create (&thread, NULL, serve, NULL) == 0);
  cr_expect (seal () == HANDOFF_SEAL_DONE);
  shutdown (listener, SHUT_RDWR); /* if nobody has asked again */
  pthread_join (thread, NULL);
  close (listener);
  remove_all ();
}

Test (seal_disks, a_server_that_is_not_there_is_not_waited_for)
{
  listen_there ();
  close (listener);
  uint64_t begun = clock_ms ();
  cr_expect (seal () == HANDOFF_SEAL_UNKNOWN);
  cr_expect (clock_ms () - begun < HANDOFF_SEAL_MS);
  remove_all ();
}
