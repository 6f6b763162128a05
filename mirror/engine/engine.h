/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * mirror/engine: the copy engine.  It moves the dirty blocks of a region from a source endpoint to
 * a destination, for the live mirror and for the offline copy alike.  From the bottom to the top:
 *
 *   pass, rate, window, latency, neighbours, catchup, urgent-queue
 *               decisions: plain values in, plain values out
 *   engine      one job in this process: what is copied next, claims and their flush turns, the
 *               bandwidth limit, counters.  It outlives sessions.  This header is what the job's
 *               thread calls; task.h is what copiers call
 *   slot-…      the steps of one task, one file for each kind of task (slot.h)
 *   untouched   what was left alone while somebody compared both sides
 *   difference  which parts of a claimed run need not be sent
 *   copier      one thread of a session, with a channel to each side
 *   session     one set of connections to the destination.  Losing any of them ends it (R5)
 *   supervisor  makes the next session
 *
 * Each part includes only what stands above it in this list.  Upwards the engine speaks through
 * struct engine_copiers and the wake-up notify_fd.  The folder uses base, dirty-bitmap and
 * mirror/endpoint.
 *
 * Threads: the job's thread owns the engine and the session, and calls the functions of this
 * header.  The copiers share the engine.
 *
 * Locks: `lock` protects what stands below it in struct engine.  It is a leaf: nobody takes another
 * lock, or makes a system call that may block, while holding it.  Every function that a header of
 * this folder offers takes it by itself, unless the header says that the caller has it.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_ENGINE_H
#define NBDMIRROR_MIRROR_ENGINE_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "dirty-bitmap/claims.h"
#include "dirty-bitmap/samples.h"
#include "mirror/endpoint/endpoint.h"
#include "mirror/engine/allowance.h"
#include "mirror/engine/catchup.h"
#include "mirror/engine/latency.h"
#include "mirror/engine/neighbours.h"
#include "mirror/engine/pass.h"
#include "mirror/engine/untouched.h"
#include "mirror/engine/urgent-queue.h"

/* What need not be sent, though it is dirty (difference.h).  In each mode zeroes that the
 * destination has already stay unsent. */
enum engine_sync {
  ENGINE_SYNC_FULL,        /* nothing else */
  ENGINE_SYNC_INCREMENTAL, /* nothing else; but less is dirty when the job begins: what was changed
                              since a checkpoint at which the destination stands */
  ENGINE_SYNC_TOP,         /* what the source's top layer does not hold */
  ENGINE_SYNC_BASE,        /* what a base image, beside the source, holds as well */
  ENGINE_SYNC_COMPARE      /* what the destination holds as well */
};

/* Where zeroes are written, may they become holes? */
enum engine_sparse {
  ENGINE_SPARSE_AUTO,   /* if they are one at the source, or if the source does not tell */
  ENGINE_SPARSE_ALWAYS, /* yes */
  ENGINE_SPARSE_NEVER   /* no: the destination is to be thick */
};

struct engine_options {
  unsigned max_connections; /* --connections, and so the most copiers; 0: default (session.h) */
  uint64_t rate_limit;      /* bytes a second; 0: none */
  struct budget *budget;    /* shared with other jobs, borrowed; or NULL */
  uint64_t grace_ns; /* quarantined blocks wait this long from a session's first reply (R12) */
  bool neighbours;   /* clean blocks may be sent along (neighbours.h) */
  bool offline;      /* nobody tracks the source: the destination is flushed seldom */
  enum engine_sync sync;
  enum engine_sparse sparse;
  bool dest_is_zero;     /* the user says so: zeroes need not be written there (R8) */
  struct endpoint *base; /* ENGINE_SYNC_BASE: the image, borrowed; else NULL */
};

#define ENGINE_REQUEST_BYTES (256u * 1024) /* one data request (or one block, if larger) */
#define ENGINE_SHORT_BYTES (8u * 1024)     /* a request for a few scattered blocks */
#define ENGINE_BUFFER_BYTES (96u * 1024 * 1024)
#define ENGINE_SHORT_SLOTS 1024 /* short requests in flight, of all copiers */
/* Requests in flight for one copier where the line is short; whole requests where it is long. */
#define ENGINE_DEPTH 16
#define ENGINE_MAX_DEPTH 160
#define ENGINE_MAX_SECONDS 64 /* second buffers of one copier */
/* What the destination's connection must be able to have in flight. */
#define ENGINE_IN_FLIGHT (ENGINE_SHORT_SLOTS + ENGINE_MAX_DEPTH)
#define ENGINE_GRACE_NS UINT64_C (2000000000)

/* Counters that any thread may read at any time.  All but in_copy_bytes and writing_bytes only
 * grow.  What was sent is counted in the region's header instead, where the figure outlives a
 * killed worker. */
struct engine_counters {
  _Atomic uint64_t acked_bytes;  /* read, sent and acknowledged; includes zeroes found on the way */
  _Atomic uint64_t passed_bytes; /* done without sending them, or as zeroes by block status */
  _Atomic uint64_t in_copy_bytes; /* claimed, and not acknowledged yet */
  _Atomic uint64_t written_bytes; /* data that the destination has acknowledged; no zeroes */
  _Atomic uint64_t writing_bytes; /* data that was sent, and not acknowledged yet */
  _Atomic uint64_t mismatches;    /* quarantined blocks that did not read back as written */
  _Atomic uint64_t flushes;
};

/* One finished pass, for --report. */
struct engine_pass {
  unsigned number;
  uint64_t left_before, left_after; /* dirty bytes when it began and when it ended */
  uint64_t sent_bytes, zero_bytes;
  uint64_t start_ns, end_ns;
};
#define ENGINE_MAX_PASS_LOG 256

/* The states of a flush turn: flush-turns.c. */
enum flush_state { FLUSH_IDLE, FLUSH_DRAIN, FLUSH_READY, FLUSH_SENT };

/* Candidates for samples.h, taken while their claim set is active.  The last place is for zeroes:
 * they say little, but they do tell another disk. */
#define ENGINE_PENDING_SAMPLES 5

/* What a session tells the engine when it begins: how to reach its copiers, and what matters of its
 * destination.  Both functions are called with the engine's lock held, and must not block. */
struct engine_copiers {
  void (*wake_all) (void *opaque);
  void (*wake_flusher) (void *opaque); /* the copier that is given WORK_FLUSH */
  void *opaque;
  bool zeroes_cost; /* the destination takes zeroes only as data: the bandwidth limit counts them */
};

struct engine {
  /* Constant after engine_init(). */
  struct region *region;
  struct endpoint *source;
  struct engine_options options;
  uint64_t request_blocks; /* blocks in one data request */
  int notify_fd; /* a wake-up (base/fd.h): something below changed; the job's thread reads it */

  struct engine_counters counters;
  _Atomic bool idle_seen;   /* a copier found nothing to do since the job's thread cleared this */
  _Atomic bool idle;        /* the last one that looked found nothing to do */
  _Atomic bool synchronous; /* guest writes wait for us (engine_set_synchronous) */
  /* Something that was sent in this job may still come late at the destination (R12).  The job's
   * thread's.  Known when no session runs. */
  bool unanswered;
  _Atomic uint64_t flush_ns, rtt_ns; /* as last measured */

  pthread_mutex_t lock;                 /* everything below */
  const struct engine_copiers *copiers; /* NULL: no session */
  struct pass pass;
  struct allowance allowance;
  struct urgent_queue urgent;
  struct catchup catchup;
  struct latency latency;
  struct neighbours neighbours;
  uint64_t write_delay_ns;         /* how long a guest's write waits at most */
  uint64_t busy_ns, busy_since_ns; /* time with anything busy; the present such span's beginning */
  bool paused;
  bool hurry;           /* the gate is held, or will be at once: no idle waits */
  bool watched;         /* the bell rings when a block turns dirty, so copiers may sleep */
  bool asleep;          /* a copier sleeps until then */
  uint64_t active_ns;   /* when something was last taken for copying */
  bool counting;        /* passes are counted (not in the ready state) */
  unsigned pass_number; /* of the running pass; 0 before the first */
  bool pass_open;
  struct engine_pass pass_now;
  uint64_t wrapped_ns;                              /* when the cursor last came to the end */
  _Atomic uint64_t wraps;                           /* how often it did */
  struct engine_pass pass_log[ENGINE_MAX_PASS_LOG]; /* ring of the last ones */
  unsigned nr_passes;                               /* finished */
  uint64_t grace_end_ns;                            /* 0: no session has begun yet */

  enum flush_state flush;
  unsigned flush_set; /* the claim set that the turn is about */
  bool flush_wanted;  /* somebody has asked for one */
  uint64_t flush_start_ns, last_flush_ns;
  uint64_t flush_queued;   /* bytes that were on their way when the last one was sent */
  uint64_t flushes_sent;   /* the last one's number */
  uint64_t flushes_before; /* done before this session */
  uint64_t unflushed_bytes;
  struct untouched *untouched;                      /* runs that somebody looks at (untouched.h) */
  struct sample pending[2][ENGINE_PENDING_SAMPLES]; /* by claim set; length 0: none */
  atomic_bool sent_in[2]; /* by claim set: something was sent, and is not flushed yet */
};

/* Prepare an engine for REGION and SOURCE.  Both are borrowed and must outlive it.  0, or -1 with
 * *ERROR (base/text.h). */
int engine_init (struct engine *e, struct region *region, struct endpoint *source,
                 const struct engine_options *options, char **error);
/* No session may exist. */
void engine_destroy (struct engine *e);

void engine_set_rate (struct engine *e, uint64_t bytes_per_s);
void engine_set_paused (struct engine *e, bool paused);
void engine_set_hurry (struct engine *e, bool hurry, bool ignore_rate);
void engine_set_counting (struct engine *e, bool counting);

/* The filter lets guest writes wait for us, each for at most MAX_WRITE_DELAY_NS; or it no longer
 * does.  Call this after the filter has said so. */
void engine_set_synchronous (struct engine *e, bool on, uint64_t max_write_delay_ns);

/* Does somebody listen to the bell (bell.h)?  Then copiers that have nothing to do sleep until it
 * rings, or until somebody here wakes them. */
void engine_set_watched (struct engine *e, bool on);

/* The bell rang: a guest's request may have been posted, or a block has turned dirty.  Any
 * thread. */
void engine_rung (struct engine *e);

/* Has there been a moment with nothing to copy since the last call?  For the job's thread. */
bool engine_was_idle (struct engine *e);

/* Does the engine sleep until something is dirty or somebody wakes it?  Until then its figures stay
 * as they are.  While the gate is synchronous it does so only once all is caught up. */
bool engine_asleep (struct engine *e);

/* Ask for a flush of everything acknowledged so far.  counters.flushes grows when it is done. */
void engine_flush (struct engine *e);

/* The same, but only if nothing is dirty or being copied, and something waits for a flush. */
void engine_flush_if_settled (struct engine *e);

/* Has the destination flushed in this session, or does nothing wait for a flush?  If neither, one
 * is asked for as by engine_flush_if_settled(). */
bool engine_has_flushed (struct engine *e);

/* Is nothing dirty, being copied, claimed or in quarantine?  A flush may be under way all the same:
 * one that the guest asked for, and that makes nothing durable which is not so already. */
bool engine_clean (struct engine *e);

/* How long a flush takes: the last one, or the running one if that takes longer already.  Without
 * the time that it has waited behind writes: at a hand-over those are what is left, and the time
 * for that is counted anyway. */
uint64_t engine_flush_ns (struct engine *e);

/* How long a round trip takes, as measured when the session began.  A busy server may have answered
 * that one slowly, so the last flush, which contained a round trip, is an upper limit. */
uint64_t engine_rtt_ns (struct engine *e);

/* Is any block dirty that is being copied?  Its next copy begins only after this one has ended. */
bool engine_copies_in_vain (struct engine *e);

/* How long a write takes that waits behind no other (latency.h), and a round trip at least. */
uint64_t engine_write_ns (struct engine *e);

/* Bytes that are dirty, or claimed and not acknowledged. */
uint64_t engine_left_bytes (struct engine *e);

/* For how long, in all, something was being copied. */
uint64_t engine_busy_ns (struct engine *e);

/* BYTES of what was sent need not cross the line, because they were compressed: the bandwidth limit
 * does not count them.  Any thread. */
void engine_saved (struct engine *e, uint64_t bytes);

/* Wake the job's thread.  Any thread. */
void engine_notify (struct engine *e);

/* What the source cannot be read at now.  False: there is nothing, and *U is not set.  It stays
 * dirty and is tried again. */
bool engine_unreadable (struct engine *e, struct unreadable *u);

/* ---- for the session ---- */

/* A session begins.  COPIERS is borrowed until engine_session_over().  The destination's first
 * reply was not later than this call. */
void engine_session_begin (struct engine *e, const struct engine_copiers *copiers);

/* The session has ended.  Its threads have stopped and its requests are completed.  All claims go
 * back to dirty and into quarantine (R5). */
void engine_session_over (struct engine *e);

#endif
