/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The image is lent to another program: see image.h.
 */

#include "config.h"

#include <errno.h>

#include "nbd-plugin/image/internal.h"
#include "nbd-plugin/image/requests.h"

#define LEND_MS 10000 /* the same while somebody waits for the image */

/* Make everything durable, and end the server.  Nobody else uses it.  *ENDED: it has ended, and all
 * is durable.  0 or an errno. */
static int
end_server (struct image *i, bool *ended)
{
  struct image_request r = { .action = IMAGE_FLUSH };
  int err = i->facts.read_only ? 0 : request_send (i->server.connection[0], &r);

  *ended = err == 0;
  if (err != 0 || server_leave (&i->server, LEND_MS))
    return err;
  server_kill (&i->server);
  server_bury (&i->server);
  return ETIMEDOUT;
}

int
image_lend (struct image *i)
{
  struct change *gone = NULL;
  bool ended = false;

  pthread_mutex_lock (&i->lock);
  while (i->state == RECOVERS)
    pthread_cond_wait (&i->changed, &i->lock);
  bool runs = i->state == RUNS;
  int err = i->state == LENDING || i->state == LENT ? EBUSY : i->state == LOST ? EIO : 0;
  bool begun = err == 0;
  if (begun)
    i->state = LENDING; /* no request begins */
  if (begun && runs) {
    while (i->users > 0)
      pthread_cond_wait (&i->changed, &i->lock);
    pthread_mutex_unlock (&i->lock);
    err = end_server (i, &ended);
    pthread_mutex_lock (&i->lock);
    if (ended) {
      gone = log_flushed (&i->log, log_mark (&i->log));
      i->nr_idle = 0;
      i->generation++;
    }
  }
  /* A server that is lost is noticed by the next request. */
  if (begun)
    image_change_state (i, err == 0 ? LENT : ended ? RETURNED : RUNS);
  pthread_mutex_unlock (&i->lock);
  change_free (gone);
  return err;
}

void
image_take_back (struct image *i)
{
  pthread_mutex_lock (&i->lock);
  image_change_state (i, RETURNED);
  pthread_mutex_unlock (&i->lock);
}
