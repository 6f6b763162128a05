/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * dirty-bitmap/state: a job's bitmap and checkpoints' recordings on disk, so that they survive
 * kill -9 and power loss.  It may use base/ and dirty-bitmap/, and knows nothing of nbdkit.
 *
 * Two levels.  L1 has a bit for each extent (4 MiB): "the fine bits of this extent are not to be
 * believed".  It is durable before the first write into a cold extent begins.  L2 has the fine
 * bits, one a block; they are written lazily, when an extent cools.  After a power loss the blocks
 * of all extents with an L1 bit, and those with an L2 bit, are dirty.
 *
 * Between the two stands the live map: the fine bits in a shared mapping of the file.  It is
 * changed by single stores and has no checksum, so it means something only as long as the page
 * cache does: after a crash of the server, in the same boot, it is exact.
 *
 *   cold --first write--> committing --L1 durable--> hot --idle, or too many--> cooling --> cold
 *                         (all writes wait)           ^   (fine bits taken from the region,|
 *                                                     |    disk flushed, L2 durable, and   |
 *                                                     |    then the L1 bit is dropped)     |
 *                                                     +---- a write: the L1 bit stays -----+
 *
 * A hot extent is seen as hot only after its L1 bit is durable.
 *
 * What may clear a bit.  The truth is the worker's region: a block that is dirty, claimed or in
 * quarantine there may be missing at the destination.  An extent is looked at while no write is in
 * flight in it.  The bits that the region no longer has are dropped from the live map at once, and
 * from L2 only when the source's own disk was flushed after that write: else a power loss could
 * leave an older block here than at the destination, with nothing that says so.  Where we cannot
 * flush the disk ourselves we do not know what is below us.  It may lose what was not flushed when
 * it is killed with us, so that nothing is dropped from the live map either before the guest's
 * flush.
 *
 * A recording has the same two levels and a live map of its own, and no bit of it is ever cleared.
 * One recording at most is active.  L1 is shared with the job: an extent that is hot is to be
 * believed for neither.  So a first touch costs one commit, however much is tracked.
 * recordings.h says how a checkpoint freezes one recording and begins the next.
 *
 *   begin.c   a job, or what a file says, begins   recordings.c  checkpoints: add, remove
 *   state.c   ending, losing, looking              changed.c     what was changed since one
 *   guest.c   a guest's write                      recover.c     reading a file
 *   work.c    commits                              format.c      layout, pages, table
 *   cool.c    rounds of cooling                    file.c        the file itself
 *   note.c    samples and note of a job           lost-pages.c   pages that are not there any more
 *
 * When the file cannot be written, nothing more is tracked in it: the state is *lost*.  That is
 * written into the superblock, again and again until it works, and no write waits any more.  If it
 * does not work at once, the disk loses its mark, so that nobody believes the file who does not
 * know of the loss.
 *
 * Threads: guest threads call state_enter(), state_leave() and the flush functions.  Two threads,
 * or a test, write to the file while guests run: state_work() commits first touches and waits for
 * nothing but the file; state_cool() makes rounds of cooling, and waits for the disk as well.  The
 * control thread calls the rest.  Locks: `io_lock` while the file is written, `l1_lock` while L1
 * is, and `disk_lock` while the disk is flushed.  A commit takes l1_lock only, so that guests wait
 * neither for a round nor for a checkpoint.  l1_lock may be taken under io_lock; disk_lock is taken
 * under neither.  `lock` is a leaf; no system call that may block is made under it.
 */

#ifndef NBDMIRROR_DIRTY_BITMAP_STATE_STATE_H
#define NBDMIRROR_DIRTY_BITMAP_STATE_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "dirty-bitmap/region.h"
#include "dirty-bitmap/state/format.h"

#define STATE_DEFAULT_HOT 4096u  /* extents */
#define STATE_TICKS_A_SECOND 16u /* at least; more where many extents have to cool */

/* How the file is written; a test records it. */
struct state_io {
  /* Read LENGTH bytes at OFFSET; allocate the room for them, and make the file as
   * long as that needs; give that room back (may be NULL).  0, or -1 with errno. */
  int (*read) (void *opaque, void *data, size_t length, uint64_t offset);
  int (*allocate) (void *opaque, uint64_t offset, uint64_t length);
  void (*discard) (void *opaque, uint64_t offset, uint64_t length);
  /* Write all of LENGTH bytes at OFFSET.  0, or -1 with errno. */
  int (*write) (void *opaque, const void *data, size_t length, uint64_t offset);
  /* When it returns 0, all that was written before is durable; else -1 with errno. */
  int (*sync) (void *opaque);
  /* When it returns 0, what was written before to the pages of L1 is durable, and nothing else need
   * be.  NULL: there is only sync(). */
  int (*sync_l1) (void *opaque);
  /* The same for the source's disk.  NULL: nobody can, so only the guest's flushes count. */
  int (*sync_disk) (void *opaque);
  /* Give the source's disk MARK, or (NULL) take its mark away; durable when it returns 0.  NULL:
   * nobody can. */
  int (*mark_disk) (void *opaque, const uint8_t mark[16]);
  /* Set once a page of a live map is lost; it has all bits set then.  NULL: none ever is. */
  const _Atomic bool *lost_page;
  void *opaque;
};

/* How a job was found at the start. */
enum state_recovery {
  STATE_NO_JOB,
  STATE_FROM_CLEAN,  /* the last server ended cleanly, and the disk was not changed since */
  STATE_FROM_LIVE,   /* it was killed, in this boot */
  STATE_FROM_L1,     /* it was killed, or the power failed, in another boot */
  STATE_FROM_NOTHING /* every block is dirty: `reason` says why */
};

/* What a file holds; see state_find(). */
struct state_found {
  struct state_super super;
  struct state_table *table;  /* owned; of checkpoints, perhaps empty; NULL for an empty file */
  uint8_t table_copy;         /* which copy that is */
  bool tracked;               /* there is a job or an active recording, and so are the following */
  struct state_layout layout; /* if a disk's size is known */
  enum state_recovery how;
  char reason[STATE_REASON_MAX + 1]; /* of STATE_FROM_NOTHING */
  uint64_t *bits;                    /* owned: nr_words of recovered fine bits; NULL: no job */
  uint64_t *recorded;                /* owned: the same of the active recording; NULL: none */
  uint64_t *l1;                      /* owned: a bit an extent */
  uint64_t *l1_sequence;             /* owned: of the newest copy of each L1 page, 0: none */
  uint8_t *l1_copy;                  /* owned: which copy that is */
  uint64_t dirty_blocks;             /* in bits */
  uint64_t recorded_blocks;          /* in recorded */
  uint64_t fine_blocks;              /* those that the fine bits themselves name */
  uint64_t l1_extents;               /* set in l1 */
  uint64_t bad_pages;                /* torn or damaged */
  uint64_t note_sequence;
  uint8_t note_copy;
  char note[STATE_NOTE_MAX]; /* "" if there is none */
};

/* Look at the file FD, of SIZE bytes, and recover what it says.  BOOT is this boot's id; NOW is
 * what the source's disk looks like now, or NULL if that is not known.  Nothing is written.  0,
 * also for an empty file, which has no job; or -1 with *ERROR (text_free()): the file is no state
 * file, is of a later version, or cannot be read.  The caller calls state_found_free() after 0. */
int state_find (int fd, uint64_t size, const uint8_t boot[16], const struct state_identity *now,
                struct state_found *f, char **error);
void state_found_free (struct state_found *f);

/* Sample I of a file that has a job.  False if there is none, or if it may be an old one. */
struct sample;
bool state_find_sample (int fd, const struct state_found *f, unsigned i, struct sample *out);

/* The identity of the file or device FD is. */
void state_identity_of (int fd, struct state_identity *id);

/* Something is tracked according to S, and NOW is the disk.  Is it the one that S knows, and has
 * another size? */
bool state_disk_was_resized (const struct state_super *s, const struct state_identity *now);

/* This boot's id; zeroes where the kernel tells none, which equal nothing that was ever written. */
void state_boot_id (uint8_t boot[16]);

/* ---- tracking ---- */

/* What is told to users. */
struct state_view {
  bool job, lost;                    /* job: something is tracked */
  bool recording;                    /* a checkpoint's recording is */
  char reason[STATE_REASON_MAX + 1]; /* why it was lost */
  uint64_t hot, hot_limit;           /* extents with an L1 bit */
  uint64_t commits;                  /* writes of L1 that guests waited for */
  uint64_t waits;                    /* writes that waited for one */
};

struct state {
  struct state_layout layout;
  struct state_io io;
  struct state_super super;   /* as it was written last */
  struct state_identity disk; /* its mark and inode, for the superblock; set before it begins */
  bool unmarked;              /* under io_lock: the mark was taken away because of a loss */
  _Atomic uint64_t *live;     /* the job's mapping, nr_words; borrowed */
  _Atomic uint64_t *slots[2]; /* the same of recordings; or NULL */

  /* Where a guest's write is marked: in the job's live map, and in those of recordings (1 + slot).
   * NULL: not there. */
  _Atomic uint64_t *_Atomic marked[3];

  /* One element an extent; allocated once, and kept until state_destroy(). */
  _Atomic uint32_t *in_flight; /* writes */
  _Atomic uint8_t *hot;        /* a write may begin */
  _Atomic uint32_t *touched;   /* the tick at which a write last ended there */
  uint8_t *pending;            /* under lock: a write waits for the L1 bit, */
  uint64_t *asked;             /* and these are those extents, nr_pending of them */

  _Atomic bool active;      /* there is a job or a recording, and the tracking is not lost */
  _Atomic uint32_t tick;    /* a clock; a round at least lies between two ticks */
  _Atomic uint32_t flushed; /* writes that ended before this tick are durable at the source */

  pthread_mutex_t io_lock;   /* held while the file is written; taken before `l1_lock` */
  pthread_mutex_t l1_lock;   /* held while L1 is written; taken before `lock` */
  pthread_mutex_t disk_lock; /* held while the disk is flushed; taken before `lock` */
  pthread_mutex_t lock;
  pthread_cond_t committed; /* pending extents became hot, or the tracking was lost */
  pthread_cond_t work;      /* something is pending, or a loss is to be written, or stop */
  pthread_cond_t cool;      /* hurry, or stop */

  /* Under lock. */
  uint64_t *l1; /* as it is to be written */
  uint8_t *l1_page_dirty;
  uint64_t nr_hot, hot_limit, nr_pending;
  uint64_t wake_at;                /* so many extents pending wake up the thread that commits */
  uint64_t expected;               /* extents that guests will ask for again, all together */
  uint64_t asked_ns, committed_ns; /* when that was last */
  const struct region *region;     /* the job's, borrowed; or NULL */
  uint64_t given_back;             /* its counter, when what it had was taken in last */
  bool may_settle;                 /* no write is under way that was not counted */
  bool hurry;                      /* almost too many extents are hot */
  bool stop;
  unsigned losing; /* threads in state_lose(): no bit is dropped */
  bool lost, loss_unwritten;
  char reason[STATE_REASON_MAX + 1];
  uint64_t commits, waits;
  char wanted_note[STATE_NOTE_MAX];

  /* Under l1_lock. */
  uint8_t l1_epoch[16]; /* of its pages */
  uint64_t *l1_sequence;
  uint8_t *l1_copy;
  uint8_t *l1_written; /* which pages are being written */

  /* Under io_lock. */
  uint64_t changes;             /* counted up when a job or a recording begins, changes, or ends */
  uint8_t *l2_page_dirty;       /* of the job */
  bool added;                   /* cold extents have live bits that are not in their pages yet */
  uint8_t *recorded_page_dirty; /* of the active recording, and of the next one */
  struct state_table *table;    /* as it was written last; owned */
  uint8_t table_copy;           /* which copy was written last */
  struct state_checkpoint next; /* a checkpoint that is prepared: */
  bool preparing;               /* there is one, */
  uint32_t next_slot;           /* and its recording's live map */
  uint32_t idle_ticks;          /* an extent that was not written for so long is cooled */
  uint64_t cursor;              /* where cooling goes on */
  bool flush_owed;    /* fine bits were dropped, and the source's disk was not flushed since */
  uint32_t owed_tick; /* since this tick */
  uint8_t note_copy;
  uint64_t note_sequence;
  char note[STATE_NOTE_MAX];
  uint32_t *sample_crc; /* of each sample as it was written last */
};

/* Prepare S, with no job.  IO is copied. */
void state_init (struct state *s, const struct state_io *io);
void state_destroy (struct state *s);

/* Begin a new job in which every block is dirty, or (SINCE not NULL) only what was changed since
 * that checkpoint.  LIVE is the mapping of the file's live map (borrowed until state_destroy),
 * which this function sets.  0, or -1 with *ERROR (text_free()). The layout must be that of earlier
 * jobs of S. */
int state_begin (struct state *s, const struct state_layout *layout, _Atomic uint64_t *live,
                 const uint8_t uuid[16], const uint8_t boot[16], const char *since, char **error);

/* Go on with what was found in F: a job, a recording, or both (f->tracked), in the same way.  L1,
 * note and table are taken over.  LIVE may be NULL without a job, SLOTS (borrowed as well) without
 * a recording.  If f->how is STATE_FROM_NOTHING the job begins anew as UUID, and the recording is
 * inconsistent from now on. */
int state_continue (struct state *s, const struct state_found *f, _Atomic uint64_t *live,
                    _Atomic uint64_t *const slots[2], const uint8_t uuid[16],
                    const uint8_t boot[16], char **error);

/* Say in the file that the disk, which looks like NOW, is about to bear MARK.  From then on the
 * file is believed with the mark that the disk has and with this one, until the tracking goes on.
 * If F is not believed nothing is said, and the new mark keeps it so.  0, or -1 with errno. */
int state_announce_mark (struct state *s, struct state_found *f, const struct state_identity *now,
                         const uint8_t mark[16]);

/* Nothing in F is tracked: only know its checkpoints.  -1: out of memory. */
int state_know (struct state *s, const struct state_found *f);

/* The job is over: nothing of it is tracked any more.  A failure is remembered as a loss. */
void state_end (struct state *s);

/* The recordings are of another disk: each checkpoint is inconsistent from now on, because of
 * REASON.  A failure is remembered as a loss. */
void state_disown (struct state *s, const char *reason);

/* Something was not recorded: the active recording, if there is one, is inconsistent from now on,
 * because of REASON.  A failure is remembered as a loss. */
void state_break (struct state *s, const char *reason);

/* No guest writes any more: make everything durable, and say that the end was clean.  ID is what
 * the source's disk looks like now.  0, or -1: then the next start recovers as after a crash. */
int state_close_clean (struct state *s, const struct state_identity *id);

/* Put what was found into R, a fresh region: its dirty bits, and the same bits into quarantine,
 * since nobody knows what was in flight (R12).  Every block counts as visited. */
void state_fill_region (const struct state *s, struct region *r);

/* From now on R is the truth; what it has is dirty in the live map too.  NULL: nothing may be
 * cleared; that waits for no file.  When it returns, the one before is not looked at any more. */
void state_set_region (struct state *s, const struct region *r);

/* Every write that was under way when the job began has ended. */
void state_allow_settling (struct state *s);

/* Keep TEXT with the job, from the next round on.  Cut at STATE_NOTE_MAX - 1 bytes. */
void state_set_note (struct state *s, const char *text);

void state_look (struct state *s, struct state_view *view);

/* Nothing is tracked from now on; REASON is copied. */
void state_lose (struct state *s, const char *reason);

/* Is a page of a live map lost, which is in memory only then?  So is the tracking, from now on. */
bool state_lost_page (struct state *s);

/* Every block is dirty in the live maps, which needs no disk: so a server that starts in this boot
 * takes it all for dirty, also where the superblock could not be written. */
void state_mark_all (struct state *s);

/* ---- guest threads ---- */

/* As in gate.h: 0 to go on waiting, or an errno to give up with. */
typedef int state_probe (void *opaque);

/* Before a mutation of LENGTH bytes at OFFSET.  *COUNTED says whether state_leave() is owed.  0, or
 * the errno that PROBE returned while the mutation waited: then it must not be done. */
int state_enter (struct state *s, uint64_t offset, uint64_t length, state_probe *probe,
                 void *opaque, bool *counted);

/* The same without waiting.  False if it would have to wait: then its extents are to be committed
 * by the next state_commit(). */
bool state_try_enter (struct state *s, uint64_t offset, uint64_t length, bool *counted);

/* After the mutation was marked in the region. */
void state_leave (struct state *s, uint64_t offset, uint64_t length);

/* Around a guest's flush of the whole disk that succeeds. */
uint32_t state_flush_begins (struct state *s);
void state_flush_ended (struct state *s, uint32_t begun);

/* ---- the threads that write ---- */

/* Commit, and cool, until state_stop(), which ends both.  Threads' functions; S is a struct state.
 */
void *state_work (void *s);
void *state_cool (void *s);
void state_stop (struct state *s);

/* Its two parts, for tests: make pending extents hot; and one round of cooling. */
void state_commit (struct state *s);
void state_round (struct state *s);

#endif
