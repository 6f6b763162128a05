/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * mirror-state=FILE: the job's bitmap and the checkpoints' recordings in a file, so that they
 * survive the server.  What the file holds, and the order in which it is written, is in
 * dirty-bitmap/state/; here it is opened, and tied to the attachment's region and to the guest's
 * requests.
 *
 * Two threads write the file (state_work, state_cool), from after_fork to cleanup.  Guest threads
 * use `state` through filter.c.  All else is the control thread's, and the main thread's before and
 * after.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_PERSIST_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_PERSIST_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <jansson.h>

#include "dirty-bitmap/state/file.h"
#include "dirty-bitmap/state/state.h"

struct mirror;

#define PERSIST_NOTE_MS 1000 /* how often the job's figures are noted */

struct persist {
  char *path;       /* owned, absolute; NULL: there is no such file, and nothing else is used */
  bool is_volatile; /* a file system in memory is accepted */
  struct state_file file;
  struct state state;
  pthread_t worker, cooler;
  bool open, worker_runs, cooler_runs;
  bool shared;             /* another server had the disk's file when we began */
  bool loss_told;          /* in the log */
  bool disowned;           /* what the file says is of another disk, which was told */
  bool settling;           /* every write from before the tracking has ended */
  uint32_t shards_seen;    /* of the gate, at 0 since the tracking began */
  uint64_t noted_ms;       /* when the note was last made */
  enum state_recovery how; /* how the job was found at the start */
  uint64_t recovered_bytes, over_marked_bytes;
};

/* At the start: look what the file says, and make it the attachment's job, detached.  0, or -1 with
 * *ERROR (text_free()). */
int persist_open (struct mirror *m, char **error);
int persist_start (struct mirror *m); /* the thread; 0, or -1 with errno */
void persist_close (struct mirror *m);

/* A new job begins: every block is dirty, or what was changed since the checkpoint SINCE.  0, or -1
 * with *ERROR. */
int persist_begin (struct mirror *m, const struct region_geometry *geo, const char *since,
                   char **error);

/* Before tracking begins: if it was lost together with pages of the live maps, these are mapped
 * anew.  0, or -1 with *ERROR. */
int persist_map_again (struct persist *p, char **error);

/* Set what was changed since the checkpoint SINCE dirty in R, in which every mutation is marked
 * already.  0, or -1 with *ERROR. */
int persist_fill (struct mirror *m, const char *since, struct region *r, char **error);

/* If another server has served the disk since we began, what is recorded is inconsistent. */
void persist_check_disk (struct mirror *m);

/* Somebody writes to the disk without passing us: what is recorded is inconsistent, and a job that
 * was left over is dropped. */
void persist_bypassed (struct mirror *m);

/* Tracking began, of a job or of a recording: what began before was not counted. */
void persist_tracks (struct mirror *m);

/* The attachment's region is R now.  NULL: its job is over. */
void persist_region (struct mirror *m, const struct region *r);

/* Its region is about to be marked no longer: no bit of its job is dropped from now on.  Waits for
 * no file, and persist_region() is to follow. */
void persist_keep (struct mirror *m);

/* Is it not known yet that every write from before the job has ended?  persist_tick() finds out. */
bool persist_settles (const struct mirror *m);

void persist_tick (struct mirror *m);

/* Add what users are told to O. */
void persist_status (struct mirror *m, json_t *o);

#endif
