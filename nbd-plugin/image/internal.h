/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the files behind image.h share:
 *
 *   image.c     requests, changes, and when a server is started again
 *   recovery.c  how it is started again
 *   lending.c   another program has the image meanwhile
 */

#ifndef NBDMIRROR_NBD_PLUGIN_IMAGE_INTERNAL_H
#define NBDMIRROR_NBD_PLUGIN_IMAGE_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "nbd-plugin/image/image.h"
#include "nbd-plugin/image/log.h"
#include "nbd-plugin/image/server.h"

/* LENDING: the last requests end, and everything is made durable. */
enum image_state { RUNS, RECOVERS, LENDING, LENT, RETURNED, LOST };

struct image {
  struct image_options options;
  struct image_facts facts; /* constant */
  struct stat file;         /* constant: the image when it was opened */

  pthread_mutex_t lock; /* protects all below */
  pthread_cond_t free_connection;
  pthread_cond_t changed; /* the state, the log, or the number of users */
  enum image_state state;
  uint64_t generation;        /* how many servers there were */
  struct image_server server; /* while it recovers, it belongs to the thread that does that */
  struct nbd_handle *idle[SERVER_CONNECTIONS]; /* a stack */
  unsigned nr_idle, users;
  struct change_log log;
  bool flushing;   /* a thread flushes because of the log's size */
  int flush_error; /* of a flush that the guest has not asked for; 0: none failed */
};

/* The connections of i->server are idle.  The lock is held. */
void image_use_server (struct image *i);

/* The lock is held. */
void image_change_state (struct image *i, enum image_state state);

/* Start a server in place of the one that has ended, and replay the log.  The lock is not held, and
 * nobody else uses the server or changes the log.  RETURNED: the image was lent, and whoever had it
 * may have it for some time yet.  False after a message: there is no server. */
bool recovery_start (struct image *i, bool returned);

#endif
