/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The copy engine: moves the dirty blocks of a region from a source endpoint to a destination, for
 * the live mirror and for the offline copy alike.
 *
 *   struct engine    one job in this process: what to copy next (pass.h), claims and their flush
 *                    turns (claims.h), the bandwidth limit, counters.  Survives sessions.
 *   struct session   one set of connections to the destination (session.h).  Losing any of them
 *                    ends it (R5); the job then makes another one.
 *   struct copier    one thread of a session, with a channel to each side (copier.h).
 *
 * Threads: the job's thread owns the engine and the session and calls everything here but
 * the functions under "for copiers".  Copiers share the engine under `lock`, which is never held
 * across a system call that may block.  They tell the job's thread through notify_fd.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_ENGINE_H
#define NBDMIRROR_MIRROR_ENGINE_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "dirty-bitmap/claims.h"
#include "dirty-bitmap/samples.h"
#include "mirror/engine/catchup.h"
#include "mirror/endpoint/endpoint.h"
#include "mirror/engine/pass.h"
#include "mirror/engine/rate.h"
#include "mirror/engine/urgent-queue.h"

struct session;

struct engine_options {
  unsigned nr_copiers; /* upper limit of copier threads; 0: min (cores, 4) */
  uint64_t rate_limit; /* bytes a second; 0: none */
  uint64_t grace_ns;   /* quarantined blocks wait this long from a session's first reply (R12) */
  bool offline;        /* a copy of something that nobody tracks: flushed at the end only */
};

#define ENGINE_REQUEST_BYTES (256u * 1024)      /* one data request (or one block, if larger) */
#define ENGINE_BUFFER_BYTES (32u * 1024 * 1024) /* all buffers together, at most */
#define ENGINE_DEPTH 16                         /* requests in flight for one copier */
#define ENGINE_GRACE_NS UINT64_C (2000000000)

/* Ever-growing counters, readable at any time.  What was sent is counted in the region's header,
 * where it outlives a killed worker. */
struct engine_counters {
  _Atomic uint64_t skipped_bytes; /* zero on both sides, nothing sent (R8) */
  _Atomic uint64_t acked_bytes;  /* read, sent and acknowledged, zeroes found on the way included */
  _Atomic uint64_t extent_bytes; /* done by block status alone, without reading */
  _Atomic uint64_t in_copy_bytes; /* claimed, not acknowledged: goes up and down */
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

enum flush_state {
  FLUSH_IDLE,
  FLUSH_DRAIN, /* the sets were turned; copiers still count in flush_set */
  FLUSH_READY, /* drained: copier 0 is to send it */
  FLUSH_SENT
};

/* Candidates for samples.h, taken while their claim set is active: data, and in the last place
 * zeroes, which say little, but do tell another disk. */
#define ENGINE_PENDING_SAMPLES 3

/* So many places may fail to be read (each is tried again in later passes) before the job gives up.
 */
#define ENGINE_MAX_BAD 16

struct engine {
  /* Constant after engine_init(). */
  struct region *region;
  struct endpoint *source;
  struct engine_options options;
  uint64_t request_blocks; /* blocks in one data request */
  int notify_fd;           /* eventfd: something below changed; read by the job's thread */

  struct engine_counters counters;
  _Atomic bool
      idle_seen; /* a copier found nothing to do since the job's thread last cleared this */
  _Atomic bool synchronous; /* guest writes wait for us (engine_set_synchronous) */
  _Atomic bool may_skip;    /* R8: first session, first pass */
  bool unanswered; /* something that was sent in this job may still come late at the destination
                    * (R12); the job's thread's, known when no session runs */
  _Atomic uint64_t flush_ns, rtt_ns; /* as last measured */

  pthread_mutex_t lock; /* everything below */
  struct session *session;
  struct pass pass;
  struct rate_limit rate;
  struct urgent_queue urgent;
  struct catchup catchup;
  uint64_t write_delay_ns; /* how long a guest's write waits at most */
  uint64_t busy_ns,
      busy_since_ns; /* time with anything busy, up to the last time that nothing was */
  bool rate_off;     /* the user lets the last phase ignore the limit */
  bool paused;
  bool hurry;           /* the gate is held: no idle waits */
  bool counting;        /* passes are counted (not in the ready state) */
  unsigned pass_number; /* of the running pass; 0 before the first */
  bool pass_open;
  struct engine_pass pass_now;
  uint64_t wrapped_ns;                              /* when the cursor last came to the end */
  _Atomic uint64_t wraps;                           /* how often it did */
  struct engine_pass pass_log[ENGINE_MAX_PASS_LOG]; /* ring of the last ones */
  unsigned nr_passes;                               /* finished */
  uint64_t grace_end_ns;

  enum flush_state flush;
  unsigned flush_set;
  bool flush_wanted; /* by engine_flush() */
  uint64_t flush_start_ns, last_flush_ns;
  uint64_t flushes_sent; /* the last one's number */
  uint64_t unflushed_bytes;
  struct sample pending[2][ENGINE_PENDING_SAMPLES]; /* by claim set; length 0: none */

  char *fatal; /* the source cannot be read: why */
  struct engine_bad {
    uint64_t first;      /* block */
    unsigned count;      /* failed reads */
  } bad[ENGINE_MAX_BAD]; /* places that the source could not read */
  unsigned nr_bad;
};

/* Prepare an engine for REGION and SOURCE (both borrowed, and outliving it).  0, or -1 with *ERROR.
 */
int engine_init (struct engine *e, struct region *region, struct endpoint *source,
                 const struct engine_options *options, char **error);
void engine_destroy (struct engine *e); /* no session may exist */

/* ---- for the job's thread ---- */
void engine_set_rate (struct engine *e, uint64_t bytes_per_s);
void engine_set_paused (struct engine *e, bool paused);
void engine_set_hurry (struct engine *e, bool hurry, bool ignore_rate);
void engine_set_counting (struct engine *e, bool counting);
/* The filter lets guest writes wait for us, each for at most MAX_WRITE_DELAY_NS; or does so no
 * longer.  To be called after the filter has said so. */
void engine_set_synchronous (struct engine *e, bool on, uint64_t max_write_delay_ns);
/* A guest's request may have been posted.  Any thread. */
void engine_rung (struct engine *e);
/* Ask for a flush of everything acknowledged so far; done when counters.flushes has grown by the
 * next one. */
void engine_flush (struct engine *e);
/* The same, but only if nothing is dirty or being copied any more, and something waits for a flush.
 */
void engine_flush_if_settled (struct engine *e);
/* Is nothing dirty, being copied, claimed or in quarantine?  A flush may be under way: one that the
 * guest asked for, and that makes nothing durable which is not so already. */
bool engine_clean (struct engine *e);
/* How long a flush takes: the last one, or the one that is running if that takes longer already. */
uint64_t engine_flush_ns (struct engine *e);
/* How long a round trip takes: measured when the session began, but never more than the last flush,
 * which contained one; that first look may have met a server that was busy. */
uint64_t engine_rtt_ns (struct engine *e);
/* Bytes that are dirty, or claimed and not acknowledged. */
uint64_t engine_left_bytes (struct engine *e);
/* For how long, in all, something was being copied. */
uint64_t engine_busy_ns (struct engine *e);
/* Wake the job's thread; any thread. */
void engine_notify (struct engine *e);
/* After a session has ended and its threads have stopped: the books back in order (R5). */
void engine_session_over (struct engine *e);

/* ---- for copiers ---- */
enum engine_work {
  WORK_NONE,   /* nothing now: look again after *WAIT_NS, or when woken */
  WORK_DATA,   /* claimed: read, write */
  WORK_VERIFY, /* claimed: read, write, read back, compare */
  WORK_ZERO,   /* claimed: ask the source's block status; write zeroes */
  WORK_ASK,    /* not claimed: ask the source's block status, then engine_hints() */
  WORK_FLUSH   /* flush the destination, then engine_flush_done() */
};
struct engine_task {
  uint64_t first, count; /* blocks */
  unsigned set;          /* claim set, for the three claiming kinds */
  bool urgent;           /* a guest's write waits for it */
  uint64_t wait_ns;      /* WORK_NONE */
  bool limited;          /* WORK_NONE: there is work, and the bandwidth limit lets it wait */
};
/* What a copier has room for. */
struct engine_room {
  bool flusher;    /* it may be given WORK_FLUSH */
  bool verify;     /* it can take WORK_VERIFY now */
  bool background; /* ordinary tasks */
  bool urgent;     /* urgent ones */
};
/* What next? */
enum engine_work engine_next (struct engine *e, const struct engine_room *room,
                              struct engine_task *task);
/* The destination has acknowledged something: whoever waits for it may go on waiting (urgent.h,
 * progress). */
static inline void
engine_progress (struct engine *e)
{
  atomic_fetch_add (&e->region->hdr->progress, 1);
}
/* A claimed task has ended well: every block of it was acknowledged (or given back).  DATA (may be
 * NULL): what was written, from the task's first byte on, LENGTH bytes. */
void engine_task_done (struct engine *e, const struct engine_task *task, const void *data,
                       uint64_t length);
/* A claimed task could not be read at the source (errno ERR): dirty again.  ESHUTDOWN: the session
 * is ending, which is nobody's fault; any other error counts, and too many of them are fatal. */
void engine_task_unread (struct engine *e, const struct engine_task *task, int err);
void engine_hints (struct engine *e, const struct engine_task *task, int err,
                   const struct endpoint_extent *extents, unsigned nr);
void engine_flush_done (struct engine *e);
/* Refund bandwidth for BYTES that turned out to be zeroes. */
void engine_refund (struct engine *e, uint64_t bytes);
/* The source is lost for good.  Takes a copy of WHY. */
void engine_fatal (struct engine *e, const char *why);

/* Monotonic time in nanoseconds. */
uint64_t now_ns (void);

#endif
