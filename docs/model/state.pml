/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The state file: dirty-bitmap/state/state.h, recordings.h, nbdmirror-state(5).
 *
 * Claim: at each power failure, a block that the file does not name is, in every state of the disk
 * that is possible then, what the destination has (of the job's bits), and what it was at the
 * checkpoint (of the changes since).  A frozen recording has what the table says that it has.
 *
 * There is one extent of NB blocks.  A guest writes block 0 W0 times, and block 1 W1 times.  A
 * worker copies and flushes.  One thread commits L1, another one cools; io_lock is the latter's and
 * the control thread's, and l1_lock is held while L1 is written.  A checkpoint K is there from the
 * beginning; with CHECKPOINT another one, N, is added.  The power fails up to CRASHES times, at any
 * instant, and a new server goes on from what is found: the job is resumed.
 *
 * What was written to the file, and not synced, is durable or not: each value has a durable twin.
 * A copy of the table, of a page of L1, and of a superblock is never torn here (they are written in
 * turn, and recover.c finds the other one; tests/crash tears them); a torn page of L2 counts as
 * set, which is no worse.
 *
 * The server can flush the disk here (mirror-direct).  Where it cannot, nothing is dropped before
 * the guest has flushed; tests/crash plays that as well.
 *
 * What look_at() of cool.c does is one step here, as it is there under `lock`; and so is ask() of
 * guest.c.
 *
 * Macros that drop a rule, each of which finds a counterexample:
 *   -DHOTFIRST    an extent is hot before its L1 bit is durable
 *   -DNOFLUSH     the source is not flushed before L2 is written
 *   -DEARLY       a bit is dropped before the destination has flushed
 *   -DL1FIRST     the L1 bit is dropped before L2 is durable
 *   -DNOCOUNT     an extent is cooled while a write is in flight
 *   -DRETURN      the L1 bit is dropped although a write has come back
 *   -DNOMARK      a write is not marked in the live map before it begins
 *   -DNOLOCK      a write may come back while an extent is looked at
 * and with -DCHECKPOINT:
 *   -DNODRAIN     a checkpoint does not wait for the writes that began before
 *   -DLATEMARK    the next recording is marked only after the commit
 *   -DNOCKFLUSH   a checkpoint does not flush the source
 *   -DTABLEFIRST  the table names the next recording before the old one is durable
 */
#ifndef NB
#define NB 1
#endif
#ifndef W0
#define W0 2
#endif
#ifndef W1
#define W1 0
#endif
#ifndef CRASHES
#define CRASHES 1
#endif

byte left[NB];             /* writes to come */
byte number[NB];           /* of the last write */

/* The disk: what a reader sees, and the set of versions that may be there after a power failure. */
byte seen[NB], going[NB];  /* going: a write under way, or 0 */
byte possible[NB];

/* The worker's region, and the destination. */
bool dirty[NB], claimed[NB];
byte written[NB], flushed[NB];

/* In memory. */
byte in_flight;
bool hot, pending, io_lock, l1_lock;
bool live[NB], mark_old, mark_new, old[NB], new[NB];

/* In the file, as written and as durable. */
bool l1, l1_d, l2[NB], l2_d[NB], page_old[NB], page_old_d[NB], page_new[NB], page_new_d[NB];
bool table, table_d;       /* N is in it */
bool blocks[NB];           /* what the table says that K's frozen recording has */
byte at_k[NB], at_n[NB];   /* what the disk held */

byte boot;
bool waits[NB];            /* N waits for a write of this block */

#if NB == 1
#define EACH(step) step (0)
#else
#define EACH(step) step (0); step (1)
#endif
#define LOCK atomic { !io_lock -> io_lock = true }
#define UNLOCK io_lock = false
#define LOCK_L1 atomic { !l1_lock -> l1_lock = true }
#define UNLOCK_L1 l1_lock = false

inline mark (b) {
#ifndef NOMARK
  live[b] = true;
#endif
  old[b] = old[b] || mark_old;
  new[b] = new[b] || mark_new
}

proctype guest (byte b; byte me)
{
  {
    do
    :: left[b] > 0 ->
       /* state_try_enter() */
       do
       :: in_flight++;
          if
          :: hot -> break
          :: else -> in_flight--
          fi;
          if                              /* ask() */
          :: atomic { !hot && l1 && !pending -> hot = true }  /* it was cooling */
          :: atomic { !hot && !l1 && !pending -> pending = true }
          :: hot
          fi;
          hot
       od;
       mark (b);
       atomic {
         left[b]--;
         number[b]++;
         going[b] = number[b];
         possible[b] = possible[b] | (1 << number[b])
       }
       d_step { seen[b] = going[b]; going[b] = 0 }
       dirty[b] = true;
       atomic {
         in_flight--;
         if :: waits[b] -> waits[b] = false :: else fi
       }
    :: left[b] == 0 -> break
    od
  } unless { boot != me }
}

proctype worker (byte me)
{
  {
    do
    :: atomic { dirty[0] -> claimed[0] = true; dirty[0] = false }
       written[0] = seen[0]
    :: atomic { claimed[0] -> flushed[0] = written[0]; claimed[0] = false }
#if NB == 2
    :: atomic { dirty[1] -> claimed[1] = true; dirty[1] = false }
       written[1] = seen[1]
    :: atomic { claimed[1] -> flushed[1] = written[1]; claimed[1] = false }
#endif
    od
  } unless { boot != me }
}

#define GOING(b) (going[b] != 0 -> (1 << going[b]) : 0)
#define FLUSH_ONE(b) possible[b] = (1 << seen[b]) | GOING (b)
#define FLUSH_DISK d_step { EACH (FLUSH_ONE) }

#ifdef EARLY
#define KEPT(b) (dirty[b])
#else
#define KEPT(b) (dirty[b] || claimed[b])
#endif

/* state_commit() */
inline commit () {
  LOCK_L1;
  if
  :: pending ->
     l1 = true;
#ifdef HOTFIRST
     hot = true;
#endif
     l1_d = true;                       /* synced */
     atomic { hot = true; pending = false }
  :: else
  fi;
  UNLOCK_L1
}

inline drop_l1 () {
  LOCK_L1;
  atomic {
#ifdef RETURN
    l1 = false;
#else
    if :: !hot && !pending -> l1 = false :: else fi;
#endif
  }
  l1_d = l1;
  UNLOCK_L1
}

#ifdef NOCOUNT
#define BUSY (pending)
#else
#define BUSY (pending || in_flight != 0)
#endif

proctype committer (byte me)
{
  { do :: pending -> commit () od } unless { boot != me }
}

#define LOOK_ONE(b) live[b] = live[b] && KEPT (b)
#define WRITE_L2(b) l2[b] = live[b]
#define SYNC_L2(b) l2_d[b] = l2[b]
#define WRITE_OLD(b) page_old[b] = old[b]
#define SYNC_OLD(b) page_old_d[b] = page_old[b]
#define WRITE_NEW(b) page_new[b] = new[b]
#define SYNC_NEW(b) page_new_d[b] = page_new[b]

#if NB == 1
#define ALL_DIRTY (live[0])
#else
#define ALL_DIRTY (live[0] && live[1])
#endif

/* state_round() */
proctype cooler (byte me)
{
  bool go;
  {
    do
    :: hot && !pending ->
       LOCK;
#ifdef NOLOCK
       hot = false;
       if :: BUSY -> go = false; hot = true :: else -> go = true fi;
       if :: go -> EACH (LOOK_ONE) :: else fi;
#else
       hot = false;                     /* a write that was counted before is seen */
       atomic {
         if
         :: BUSY || hot -> go = false; hot = true
         :: else -> go = true; EACH (LOOK_ONE)
         fi
       }
#endif
       if
       :: go ->
#ifndef NOFLUSH
          if
          :: ALL_DIRTY                  /* nothing was dropped */
          :: else -> UNLOCK; FLUSH_DISK; LOCK
          fi;
#endif
#ifdef L1FIRST
          drop_l1 ();
#endif
          atomic { EACH (WRITE_L2); if :: !table -> EACH (WRITE_OLD) :: else fi; EACH (WRITE_NEW) }
          atomic { EACH (SYNC_L2); EACH (SYNC_OLD); EACH (SYNC_NEW) }
#ifndef L1FIRST
          drop_l1 ()
#endif
       :: else
       fi;
       UNLOCK
    od
  } unless { boot != me }
}

#if NB == 1
#define NOBODY (!waits[0])
#else
#define NOBODY (!waits[0] && !waits[1])
#endif

#define CLEAR_NEW(b) new[b] = false
#define COUNT(b) blocks[b] = old[b]
#define TAKE(b) at_n[b] = seen[b]
#define WAIT_FOR(b) waits[b] = in_flight != 0

/* recordings.c: the control thread. */
proctype checkpoint (byte me)
{
  {
    if
    :: !table ->
#ifndef LATEMARK
       LOCK;
       atomic { EACH (CLEAR_NEW); mark_new = true }
       UNLOCK;
#endif
#ifndef NODRAIN
       atomic { EACH (WAIT_FOR) }
       in_flight == 0 || NOBODY;
#endif
       atomic { EACH (TAKE) }
#ifndef NOCKFLUSH
       FLUSH_DISK;
#endif
       LOCK;
       atomic { EACH (COUNT) }
#ifdef TABLEFIRST
       atomic { table = true; table_d = true }
#endif
       atomic { EACH (WRITE_OLD) }
       atomic { EACH (SYNC_OLD) }
       table = true;
       table_d = true;
#ifdef LATEMARK
       atomic { EACH (CLEAR_NEW); mark_new = true }
#endif
       mark_old = false;
       UNLOCK
    :: else
    fi
  } unless { boot != me }
}

#define ONLY(b, version) assert (possible[b] == (1 << (version)))

/* What is found where the power fails. */
inline look (b, hot_found, job, k, n, has_n) {
  if :: !hot_found && !job -> ONLY (b, flushed[b]); assert (!claimed[b] || written[b] == flushed[b])
     :: else fi;
  if :: !hot_found && !k && !(has_n && n) -> ONLY (b, at_k[b]) :: else fi;
  if :: has_n && !hot_found && !n -> ONLY (b, at_n[b]) :: else fi;
  assert (!has_n || !blocks[b] || k)
}

inline either (to, one, other) { if :: to = one :: one != other -> to = other fi }

/* After a cut one of the possible versions is there, and the destination's late write was applied
 * or not. */
inline settle (b) {
  if
  :: possible[b] & 1 -> seen[b] = 0
  :: possible[b] & 2 -> seen[b] = 1
  :: possible[b] & 4 -> seen[b] = 2
  :: possible[b] & 8 -> seen[b] = 3
  fi;
  possible[b] = 1 << seen[b];
  going[b] = 0;
  if :: claimed[b] && flushed[b] != written[b] -> flushed[b] = written[b] :: true fi;
  written[b] = flushed[b];
  claimed[b] = false;
  waits[b] = false
}

/* What is found of block B: j, k, n. */
inline find (b) {
  either (j[b], l2[b], l2_d[b]);
  either (k[b], page_old[b], page_old_d[b]);
  either (n[b], page_new[b], page_new_d[b])
}

/* state_continue(): L1 spreads out. */
inline go_on (b) {
  live[b] = j[b] || h;
  l2[b] = j[b]; l2_d[b] = j[b];
  dirty[b] = live[b];
  page_old[b] = k[b]; page_old_d[b] = k[b];
  page_new[b] = t && n[b]; page_new_d[b] = t && n[b];
  old[b] = k[b] || (h && !t);
  new[b] = t && (n[b] || h)
}

#define LOOK(b) look (b, h, j[b], k[b], n[b], t)

inline start () {
  run guest (0, boot);
#if NB == 2
  run guest (1, boot);
#endif
  run worker (boot);
  run committer (boot);
  run cooler (boot);
#ifdef CHECKPOINT
  run checkpoint (boot)
#endif
}

init
{
  bool h, t, j[NB], k[NB], n[NB];
  byte crashes;

  atomic {
    left[0] = W0;
#if NB == 2
    left[1] = W1; possible[1] = 1;
#endif
    possible[0] = 1;
    mark_old = true;
    start ()
  }
end:
  do
  :: atomic {
       crashes < CRASHES ->
       crashes++;
       either (h, l1, l1_d);
       either (t, table, table_d);
       EACH (find);
       EACH (LOOK);
       boot++;
       _nr_pr == 1;                     /* nothing else goes on */
       if :: crashes == CRASHES -> break :: else fi;
       EACH (settle);
       EACH (go_on);
       l1 = h; l1_d = h; hot = h; pending = false; in_flight = 0;
       io_lock = false; l1_lock = false;
       table = t; table_d = t;
       mark_old = !t; mark_new = t;
       h = false; t = false;
       start ()
     }
  od
}
