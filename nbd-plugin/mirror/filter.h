/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdkit-mirror-filter, the filter in the guest's path: what its parts share.
 *
 * It may use dirty-bitmap/, control/, base/, jansson and nbdkit's filter API.  It opens no network
 * connection and reads no disk of its own accord.
 *
 * There is one `struct mirror` a server.  nbdkit gives its callbacks no place to keep one, so it is
 * the static variable of filter.c, and everything else gets a pointer to it or to a part of it.
 *
 * The parts stand in this order; none of them includes one that stands below it:
 *   gate, pace, tracker, fence, bypass,          know nothing of each other, except that the pace
 *   process, relay, shutdown                     uses a type of the gate
 *   attachment, measurement                      the worker and its region; a region for onlookers
 *   persist                                      the job and the recordings in a file
 *   receiving                                    a disk that has no guest yet
 *   checkpoints                                  what users do with recordings
 *   handed-over                                  what the disk's file says after a hand-off
 *   participant                                  this disk's part in a hand-off
 *   status, events                               what clients are told; they change nothing
 *   thread, commands                             call all of the above
 *   filter                                       nbdkit's callbacks
 *
 * Threads: nbdkit's threads, one a request, use `config`, `tracker`, `gate`, `pace` and the two
 * atomics beside them, and run only the callbacks in filter.c.  All else belongs to the control
 * thread (thread.c) from after_fork to cleanup, and to the main thread before and after.  The locks
 * of gate, pace and tracker are leaves: no lock is taken while one of them is held.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_FILTER_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_FILTER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/clock.h"
#include "control/server.h"
#include "nbd-plugin/mirror/attachment.h"
#include "nbd-plugin/mirror/bypass.h"
#include "nbd-plugin/mirror/checkpoints.h"
#include "nbd-plugin/mirror/events.h"
#include "nbd-plugin/mirror/fence.h"
#include "nbd-plugin/mirror/gate.h"
#include "nbd-plugin/mirror/handed-over.h"
#include "nbd-plugin/mirror/measurement.h"
#include "nbd-plugin/mirror/pace.h"
#include "nbd-plugin/mirror/participant.h"
#include "nbd-plugin/mirror/persist.h"
#include "nbd-plugin/mirror/tracker.h"

#define DEFAULT_ID "mirror"
#define DEFAULT_MAX_DOWNTIME_MS 300
#define MAX_LEASE_MS (24 * 3600 * MS_PER_S)
#define RELAY_LIMIT_MS 10000     /* for the worker to answer a user's request */
#define PREPARE_LIMIT_MS 60000   /* the same for a hand-off, before the lease begins to count */
#define OLD_WORKER_LIMIT_MS 2000 /* for an old worker that hung up to be gone */
#define PREPARED_POLL_MS 100     /* how often a prepared hold's decision word is looked at */

/* What the user gave; constant after get_ready. */
struct mirror_config {
  char *control;       /* owned, absolute */
  char *direct;        /* owned, absolute, or NULL */
  char *disk;          /* owned, absolute, or NULL: where the disk is kept, in whatever format */
  const char *uri;     /* or NULL */
  const char *export;  /* never NULL */
  const char *layers;  /* or NULL: another export of the same disk, control/layers-export.h */
  const char *format;  /* or NULL: of what `disk` holds, as for qemu-nbd */
  uint32_t block_size; /* 0: default */
  bool serialized;     /* a layer below that serves one request at a time is accepted */
};

struct mirror {
  struct mirror_config config;
  struct tracker tracker;
  struct gate gate;
  struct pace pace;
  _Atomic unsigned next_shard;     /* of the gate's counter, for the next connection */
  _Atomic uint64_t refusal_logged; /* generation of the fence that was told of, + 1 */

  struct persist persist;
  struct take_over_page *take_over; /* NULL: this disk was not received here; see receiving.h */

  struct fence fence;
  struct bypass bypass;
  struct handed_over handed_over;
  struct control_server *server;
  struct attachment attachment;
  struct participant participant;
  struct checkpointing checkpointing;
  struct measurement measurement;
  struct told told;
  bool have_downtime; /* of the committed hand-off; unknown after a restart */
  uint64_t released;  /* generation of the last hold whose commit was a release; 0: none */
  double downtime_ms;

  unsigned loaded; /* how many times --filter=mirror was given */
  bool serving;    /* this is the process that serves: nbdkit has forked, if it ever does */
  /* The process that would leave the control socket behind if it exited before cleanup, or 0.  It
   * is the one that bound the socket; but once that one has forked it may be the parent of the
   * real server, and only after_fork tells who that is. */
  pid_t socket_owner;

  pthread_t thread;
  bool thread_runs;
  _Atomic bool stop;
};

/* filter.c: debug output, nbdkit -D mirror.NAME=1 */
extern int mirror_debug_control;
extern int mirror_debug_gate;

#endif
