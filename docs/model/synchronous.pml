/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The synchronous gate: mirror/engine/catchup.h, mirror/engine/urgent-queue.h,
 * dirty-bitmap/urgent.h, nbd-plugin/mirror/pace.h.
 *
 *   here                stands for
 *   guest, first half   mirror_pwrite() and leave() of filter.c: the layer below, tracker_mark()
 *   guest, second half  synchronise(), wait_for_answer() and miss() of pace.c; urgent_post()
 *   filter              change_mode() of pace.c
 *   the next block      find() and take() of task.c with find_next() of pass.c; wrap() of task.c;
 *                       catchup_begin(), catchup_wait_number(), catchup_wrapped()
 *   an urgent block     next_urgent() of task.c, urgent_queue_next()
 *   serve               urgent_queue_gather(), is_ahead(), unfinished(), urgent_queue_settle()
 *   synchronised?       catchup_look(): at_rest(); then the tail, holds(), pass_busy_since()
 *   copier              engine_task_done(); engine_task_unread() with claim_give_back()
 *   SYNCHRONISED        synchronised() of pace.c
 *
 * epoch is sync_epoch of the region's header, which the worker reads.  The filter has an epoch of
 * its own, which is counted up before that and decides for synchronised(): so it is never behind,
 * and one number for both hides nothing.  mode && epoch > 0 stands for it while the gate changes.
 *
 * Left out: flushes, which wait for a flush after their write part; quarantine, which neither
 * catchup_wrapped() nor at_rest() lets pass; slots that are given up, and a quiet worker, which is
 * not asked: to a guest both are a miss; the end of the mode, after which nothing is said before
 * there is a new epoch.
 *
 * Claim: while the filter may say "synchronised" (the gate is synchronous and synced_epoch is
 * sync_epoch), the destination has everything that a guest was told is done.
 *
 * There are 2 blocks, 2 guest threads with W0 and W1 writes, COPIES copies begun by the worker, and
 * one session (losing one forgets everything; mirror.pml has that).  A copy of each block may run
 * already when it all begins, and one may fail to be read.  The worker's steps under the engine's
 * lock are one step each, but where it looks at the bits, because guests set these meanwhile.
 *
 * With these numbers the search is exhaustive: 34.8 million states, no error, minutes and 2.8 GiB.
 * Two writes by one guest and four copies are too many for that.  Among 95 million states of them,
 * seen with bitstate hashing, there was no error either.
 *
 * -DMIDWAY adds two things that only smaller bounds allow to be searched (-DCOPIES=2 -DW1=0): the
 * gate becomes synchronous in the middle of a pass, the first one or a later one; and a block that
 * could not be read is left alone by a pass (unreadable.h), or the cursor goes back to it.
 *
 * Macros that drop or change a rule, each of which finds a counterexample:
 *   -DNOWAIT      a pass goes past blocks that are busy since before the epoch
 *   -DNOTAIL      a pass is believed at its end, without what was busy then being acknowledged
 *   -DNOGIVEN     blocks that were given back do not spoil a pass
 *   -DNOEPOCH     ... nor does a write that went on without an answer
 *   -DAHEAD=2     writes ahead of the cursor are answered at once in any pass (-DAHEAD=1: in the
 *                 first only, as built)
 *   -DNOUNREAD    with -DMIDWAY, a pass is believed that has left such a block alone
 *   -DMODELATE    the filter counts the epoch up before the gate is synchronous, and not after
 */
#ifndef W0
#define W0 1
#endif
#ifndef W1
#define W1 1
#endif
#ifndef AHEAD
#define AHEAD 1
#endif
#ifndef COPIES
#define COPIES 3
#endif
#define NB 2

byte src[NB], dest[NB], told[NB];   /* versions; told: the last one that a guest was told of */
bool dirty[NB];
byte busy[NB];                      /* number of the copy, 0: none */
byte number;                        /* the last one given out */

bool mode, worker_on;               /* the gate is synchronous; the worker knows */
byte epoch, synced;                 /* epoch 0: never synchronous */
byte given;
bool looking;                       /* the worker has the lock, and looks at the bits */

/* requests: one slot a guest */
mtype = { FREE, POSTED, TAKEN, OK };
mtype slot[2] = FREE;
byte where[2];

#define SYNCHRONISED (mode && epoch > 0 && synced == epoch)
#define CHECK assert (!SYNCHRONISED || (dest[0] >= told[0] && dest[1] >= told[1]))

proctype guest (byte me; byte left)
{
  byte b, v;
  do
  :: left > 0 ->
     atomic {
       left--;
       if :: b = 0 :: b = 1 fi;
       src[b]++; v = src[b]               /* the layer below */
     }
     dirty[b] = true;                     /* marked after (R2) */
     /* The mode is only ever switched on, so nothing is hidden by this being one step. */
     atomic {
       if
       :: !mode -> skip
       :: else -> where[me] = b; slot[me] = POSTED
       fi
     }
     if
     :: slot[me] == FREE || slot[me] == OK -> skip
     :: slot[me] == POSTED || slot[me] == TAKEN ->
        d_step { epoch++; slot[me] = FREE } /* a miss, before the guest is told */
     fi;
     d_step {
       slot[me] = FREE; where[me] = 0;
       if :: told[b] < v -> told[b] = v :: else fi;
       CHECK; v = 0; b = 0
     }
  :: else -> break
  od
}

proctype filter ()
{
#ifdef MODELATE
  epoch++;
  worker_on = true;
  mode = true
#else
  mode = true;
  epoch++;
  worker_on = true
#endif
}

byte cursor;
bool wrapped, begun, tail;
byte b_epoch, b_given, b_number, t_epoch, t_given, t_number;
byte data[NB];
bool have[NB];                      /* the copy has read */
byte left = COPIES;                 /* copies that are begun, at most: for an end */
bool may_fail = true;

#ifdef NOEPOCH
#define SAME_EPOCH(e) true
#else
#define SAME_EPOCH(e) (epoch == (e))
#endif
#ifdef NOGIVEN
#define SAME_GIVEN(g) true
#else
#define SAME_GIVEN(g) (given == (g))
#endif
#ifdef NOTAIL
#define TAIL_DONE true
#else
#define TAIL_DONE ((busy[0] == 0 || busy[0] > t_number) && (busy[1] == 0 || busy[1] > t_number))
#endif
#ifdef NOWAIT
#define MUST_WAIT(b) false
#else
#define MUST_WAIT(b) (begun && busy[b] <= b_number)
#endif

#ifndef MIDWAY
#define LEFT_ALONE(b) false
#define ALL_READ true
#else
bool bad[NB];                       /* could not be read, and was not copied since */
#define LEFT_ALONE(b) bad[b]
#ifdef NOUNREAD
#define ALL_READ true
#else
#define ALL_READ (!bad[0] && !bad[1])
#endif
#endif

#define TAIL_HOLDS (tail && SAME_EPOCH (t_epoch) && SAME_GIVEN (t_given))

inline claim (b) { number++; busy[b] = number; dirty[b] = false; left-- }

/* The request of guest G: is there a reason to answer it? */
inline serve (g)
{
  if
  :: slot[g] == POSTED ->
     if
     :: AHEAD > 0 && (AHEAD == 2 || !wrapped) && synced != epoch && where[g] >= cursor &&
        busy[where[g]] == 0 -> slot[g] = OK
     :: else -> slot[g] = TAKEN
     fi
  :: else
  fi;
  if
  :: slot[g] == TAKEN && !dirty[where[g]] && busy[where[g]] == 0 -> slot[g] = OK
  :: else
  fi
}

proctype worker ()
{
  byte e, b;
  bool clean;
  worker_on;
end:
  do
  /* the next block of a pass */
  :: atomic {
       left > 0 ->
       if
       :: cursor == 0 && !begun -> begun = true; b_epoch = epoch; b_given = given; b_number = number
       :: else
       fi;
       b = cursor;
       do
       :: b < NB && !dirty[b] -> b++
       :: b < NB && dirty[b] && busy[b] > 0 && !MUST_WAIT (b) -> b++
       :: b < NB && dirty[b] && busy[b] == 0 && LEFT_ALONE (b) -> b++
       :: else -> break
       od;
       if
       :: b < NB && busy[b] == 0 -> claim (b); cursor = b + 1
       :: b < NB -> skip                                      /* PASS_WAIT */
       :: b == NB && cursor > 0 ->                            /* the end */
          if
          :: begun && SAME_EPOCH (b_epoch) && SAME_GIVEN (b_given) && ALL_READ && !TAIL_HOLDS ->
             tail = true; t_epoch = b_epoch; t_given = b_given; t_number = number
          :: else
          fi;
          begun = false; b_epoch = 0; b_given = 0; b_number = 0; cursor = 0; wrapped = true
       :: else -> skip
       fi;
       b = 0
     }
  /* an urgent block */
  :: atomic { left > 0 && slot[0] == TAKEN && dirty[where[0]] && busy[where[0]] == 0 ->
              claim (where[0]) }
  :: atomic { left > 0 && slot[1] == TAKEN && dirty[where[1]] && busy[where[1]] == 0 ->
              claim (where[1]) }
  /* requests */
  :: atomic { slot[0] == POSTED || slot[0] == TAKEN -> serve (0) }
  :: atomic { slot[1] == POSTED || slot[1] == TAKEN -> serve (1) }
  /* synchronised? */
  :: d_step { synced != epoch && busy[0] == 0 && busy[1] == 0 -> looking = true; e = epoch }
     d_step { clean = !dirty[0] }
     d_step {
       if
       :: clean && !dirty[1] -> synced = e
       :: else
       fi;
       looking = false; e = 0; clean = false; CHECK
     }
  :: d_step {
       synced != epoch && TAIL_HOLDS && TAIL_DONE ->
#ifdef NOEPOCH
       synced = epoch;
#else
       synced = t_epoch;
#endif
       tail = false; t_epoch = 0; t_given = 0; t_number = 0; CHECK
     }
  od
}

/* Copies run beside the worker's decisions.  A copy is read, and then written and acknowledged at
 * some time (here: at the latest possible).  Or it is not read, and given back (dirty first, then
 * no longer busy).  They end under the lock. */
proctype copier (byte b)
{
end:
  do
  :: d_step { busy[b] > 0 && !have[b] -> data[b] = src[b]; have[b] = true }
  :: d_step { busy[b] > 0 && have[b] && !looking ->
              dest[b] = data[b]; data[b] = 0; have[b] = false;
#ifdef MIDWAY
              bad[b] = false;
#endif
              busy[b] = 0 }
  :: d_step { busy[b] > 0 && !have[b] && may_fail && !looking ->
              may_fail = false; dirty[b] = true; given++;
#ifdef MIDWAY
              bad[b] = true;
              if :: b > 0 && b < cursor -> cursor = b :: true fi;
#endif
              busy[b] = 0 }
  od
}

init
{
  atomic {
    src[0] = 1; src[1] = 1; told[0] = 1; told[1] = 1; dest[0] = 1; dest[1] = 1;
    if
    :: dirty[0] = true; dest[0] = 0
    :: number = 1; busy[0] = 1; dest[0] = 0
    :: skip
    fi;
#ifdef MIDWAY
    if :: cursor = 0 :: cursor = 1 :: cursor = NB fi;
    if :: wrapped = false :: wrapped = true fi;
#endif
    if :: dirty[1] = true; dest[1] = 0 :: number++; busy[1] = number; dest[1] = 0 :: skip fi;
    run guest (0, W0); run guest (1, W1); run filter (); run worker ();
    run copier (0); run copier (1)
  }
}
