/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Connections beside the first one that are hung up at the last moment: they have been made just
 * when their time was over.  The linker puts __wrap_nbd_hang_up_end() in place of the function.
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/unit/unit.h"
#include "tests/unit/endpoint-fixture.h"

#include "mirror/endpoint/nbd-hang-up.h"

bool __real_nbd_hang_up_end (struct nbd_hang_up *u);
bool __wrap_nbd_hang_up_end (struct nbd_hang_up *u);

static unsigned nr_late;

/* The time of U is over now, and its thread has done what it does then. */
bool
__wrap_nbd_hang_up_end (struct nbd_hang_up *u)
{
  bool done = false;

  nbd_hang_up_limit (u, 0);
  for (unsigned i = 0; i < 10000 && !done; i++) {
    usleep (1000);
    pthread_mutex_lock (&u->lock);
    done = u->done;
    pthread_mutex_unlock (&u->lock);
  }
  cr_assert (done);
  __atomic_add_fetch (&nr_late, 1, __ATOMIC_SEQ_CST);
  return __real_nbd_hang_up_end (u);
}

/* None of them is used, and the first connection does all the work. */
ENDPOINT_TEST (late_connections)
{
  struct endpoint_options opts = { .writable = true, .nr_channels = 1, .nr_multi = 4 };
  char cmd[300], uri[300], *error = NULL;

  if (!have_nbdkit ())
    return;
  snprintf (cmd, sizeof cmd, "nbdkit -U %s/s -P %s/pid memory 1M", dir, dir);
  cr_assert (system (cmd) == 0);
  snprintf (uri, sizeof uri, "nbd+unix:///?socket=%s/s", dir);
  struct endpoint *ep = must_open (uri, &opts);
  struct channel *ch = must_channel (ep);
  unsigned char *buf = buffer (4096);
  struct answer a = { 0 };
  unsigned nr = 0;

  cr_assert (channel_widen (ch, NULL, &error) == 0, "%s", error);
  cr_assert (nr_late == 3, "%u connections were made beside the first one", nr_late);
  cr_assert (channel_connections (ch) == 1);
  fill (buf, 4096, 0);
  /* Each connection that the channel has gets requests. */
  while (nr < 200 && channel_room (ch) > 0)
    cr_assert (start (ch, WRITE, buf, 4096, (uint64_t)nr++ * 4096, &a) == 0);
  cr_assert (nr > 0 && drive (ch, &a, nr));
  for (unsigned i = 0; i < nr && i < 100; i++)
    cr_assert (a.errors[i] == 0, "request %u: error %d", i, a.errors[i]);
  channel_close (ch);
  endpoint_close (ep);
  free (buf);
  snprintf (cmd, sizeof cmd, "kill $(cat %s/pid)", dir);
  cr_assert (system (cmd) == 0);
}
