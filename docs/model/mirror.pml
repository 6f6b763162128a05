/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Live block mirroring: the rules R1 to R13 of docs/where.md.
 * Each macro (-D) drops a rule, or is a variant of one; run.sh has the list.
 * 2 blocks, 2 guest threads sharing W writes, 2 copy requests in flight.      */
#ifndef W
#define W 2             /* guest writes in all                               */
#endif
#ifndef INITD
#define INITD 0         /* 0: start in sync; 1: full copy ahead (all dirty)  */
#endif
#ifndef NCRASH
#define NCRASH 1        /* worker crashes                                    */
#endif
#ifndef NDCRASH
#define NDCRASH 1       /* destination crashes                               */
#endif
#ifndef NRECON
#define NRECON 1        /* network losses (destination lives on)             */
#endif
#ifndef NATT
#define NATT 1          /* hold/complete attempts                            */
#endif
#ifndef R12
#define R12 1           /* 0 nothing; 1 receive: session admitted when old requests ended;
                           2 quarantine + read-back; 3 quarantine, no read-back */
#endif
#ifndef LB
#define LB 0            /* how late is late: 0 no bound; 1 ends before the re-copy (grace
                           suffices); 2 ends before the read-back of that block        */
#endif
#ifndef QMODE
#define QMODE 2         /* quarantine 2: in the region, survives; 1: worker memory, new worker
                           seeds it from claimed; 0: lost with the worker              */
#endif
#ifndef MARK
#define MARK 1          /* 1 after; 0 before only; 2 both; 3 after in-flight--  */
#endif
#ifndef ORDER
#define ORDER 0         /* final look: 0 in-flight, then dirty+claimed+quar at once;
                           1 dirty+claimed first, in-flight last; 2 in-flight, claimed, dirty;
                           3 in-flight, dirty, claimed; 4 no in-flight at all;
                           5 as final_look() does it, array after array, and then: has a block
                           come back from claimed (NOBACK: not asked of a session that ends), is
                           the session the same?                                       */
#endif
#ifndef NERR
#define NERR 0          /* destination write errors                          */
#endif
#ifndef NFF
#define NFF 0           /* failed flushes                                    */
#endif
#ifndef FFPOL
#define FFPOL 2         /* 0 flush again; 1 re-dirty the flushed set; 2 re-dirty both sets */
#endif

#ifndef DIFF
#define DIFF 0          /* 0: everything is sent; 1: what equals the base is not (the base is value
                           0, and the destination holds it at first); 2: what equals the
                           destination is not.  Both begin with all blocks dirty, and the guest
                           may write the base's value.  NOVIS: also blocks that were visited */
#endif
#if DIFF > 0
#define VALS3
#endif

#define OPEN 0
#define HELD 1
#define FENCED 2
#define BIT(b) (1<<(b))

byte src[2], dc[2];             /* source; destination as reads see it       */
byte ds[2], post[2];            /* sets of values that may be durable: now, after this flush */
byte lost;                      /* blocks whose dirty pages a failed flush dropped */
byte dirty, clm[2], quar;       /* bit masks                                 */
byte infl, gate;
byte left = W;
byte st[2], sb[2], vl[2], ss[2];/* copy slots: 0 idle 1 claimed 2 dirty cleared 3 sent 4 replied */
byte cur, flst, rel;            /* flush: 0 none 1 turned 2 issued 3 answered */
byte late[4];                   /* dead connections' requests: 0 or 1+4b+v   */
byte alive = 1;                 /* 1 runs; 0 dead; 2 filter has cleaned up; 3 hung */
byte conn = 1;                  /* 1 up; 0 lost; 4 counted; 3 re-dirtied; 2 claims dropped */
byte hst;                       /* completer: 0 - 1 held 2 drained 3 prepared 4 committed
                                 * 5 to 8 part checks */
#if ORDER == 5
bit back, other;                /* since the look began: a block came back; another session */
#endif
byte irb[2];
#if DIFF > 0
byte vis;                       /* blocks that were sent, or looked at: not looked at again */
#endif
byte rbs, rbv;                  /* read-back in progress: 1+b, value read     */
byte ncrash = NCRASH, ndcrash = NDCRASH, nrecon = NRECON, natt = NATT, nerr = NERR, nff = NFF;
#ifdef HANG
byte nhang = 1;
#else
byte nhang;
#endif
#ifdef CNT
byte dcnt, pf;
#endif
#ifdef ZOMBIE
byte zc;
#endif
#ifdef NOMC
byte wc[2], fc;
#endif
#ifdef FTIMEOUT
byte ntime = 1;
byte hid, myhid, nrehold = 1;
#endif
#ifdef LIVE
bit pend[2];
#endif

#define LOOKS (hst==2 || hst>=5)
#if ORDER == 5 && !defined(NOBACK)
#define BACK back=LOOKS;
#else
#define BACK
#endif
#if ORDER == 5
#define GIVEN back=LOOKS
#else
#define GIVEN skip
#endif

#define POP(m) (((m)&1) + (((m)>>1)&1))
#ifdef CNT
#define DIRTY0 (dcnt==0)
#else
#define DIRTY0 (dirty==0)
#endif
#define CLM0 (clm[0]==0 && clm[1]==0)
#if R12 == 2
#define Q0 (quar==0)
#else
#define Q0 true
#endif
#define SAME (ds[0]==BIT(src[0]) && ds[1]==BIT(src[1]))
#define RUN (alive==1 && gate!=FENCED)
#define UP (RUN && conn==1)
#define NOLATE (late[0]==0 && late[1]==0 && late[2]==0 && late[3]==0)
#define LATEIS(k,b) (late[k]!=0 && ((late[k]-1)>>2)==(b))
#define LATEB(b) (LATEIS(0,b) || LATEIS(1,b) || LATEIS(2,b) || LATEIS(3,b))

#ifdef TWOCOPIES
#define NOTBUSY(o,b) true
#else
#define NOTBUSY(o,b) !(st[o]!=0 && sb[o]==(b))
#endif
#if R12 >= 2 && LB == 1
#define QOK(b) !((quar & BIT(b)) && LATEB(b))
#else
#define QOK(b) true
#endif
#ifdef NOMC
#define SYM(i) true
#else
#define SYM(i) ((i)==0 || st[0]!=0)
#endif
#define SLOTS0 (st[0]==0 && st[1]==0)

#define SETDIRTY(m) cntadd(m); dirty = dirty | (m)
#define CLRDIRTY(m) cntsub(m); dirty = dirty & (3^(m))
#ifdef CNT
#define cntadd(m) dcnt = dcnt + POP((m) & (3^dirty))
#define cntsub(m) dcnt = dcnt - POP((m) & dirty)
#else
#define cntadd(m) skip
#define cntsub(m) skip
#endif

/* symmetry: the first write is guest 0's, to block 0, of value 1 */
#define FIRST (left==W-1)
inline pick() {
  if
  :: FIRST -> b=0; v=1
#ifdef VALS3
  :: !FIRST -> if :: b=0 :: b=1 fi; if :: v=0 :: v=1 :: v=2 fi
#else
  :: !FIRST -> if :: b=0 :: b=1 fi; if :: v=1 :: v=2 fi
#endif
  fi
}
inline apply(b, v) {
  dc[b] = v; ds[b] = ds[b] | BIT(v); lost = lost & (3^BIT(b));
  if :: flst==2 -> post[b] = post[b] | BIT(v) :: else fi;
  assert(gate!=FENCED || SAME)          /* P1 for ever after               */
}
inline freeslot(i) { st[i]=0; sb[i]=0; vl[i]=0; ss[i]=0 }
inline mklate(k) {
  if :: st[0]==3 -> late[k] = 1+4*sb[0]+vl[0] :: else fi;
  if :: st[1]==3 -> late[k+1] = 1+4*sb[1]+vl[1] :: else fi
}
inline tolate() {
  if
  :: late[0]==0 && late[1]==0 -> mklate(0)
  :: else -> assert(late[2]==0 && late[3]==0); mklate(2)
  fi
}
inline dropreq() {
#ifdef R5RACE
  /* only requests on the wire end; a thread between claim and read goes on */
  if :: st[0]>=3 -> freeslot(0) :: else fi;
  if :: st[1]>=3 -> freeslot(1) :: else fi;
#else
  freeslot(0); freeslot(1);
#endif
  flst=0; rel=0; post[0]=0; post[1]=0; rbs=0; rbv=0
}
inline dropall() { freeslot(0); freeslot(1); flst=0; rel=0; post[0]=0; post[1]=0; rbs=0; rbv=0 }

inline startflush() {
#ifdef NOMC
  if :: fc=0 :: fc=1 fi;
  post[0] = ((wc[0]==fc) -> BIT(dc[0]) : ds[0]);
  post[1] = ((wc[1]==fc) -> BIT(dc[1]) : ds[1]);
  fc=0
#else
  post[0] = ((lost&1) -> ds[0] : BIT(dc[0]));
  post[1] = ((lost&2) -> ds[1] : BIT(dc[1]))
#endif
}

inline dirtyend() {
#ifdef SANITY
  assert(!(ncrash==0 && ndcrash==0 && nrecon==0 && left==0));
#endif
  assert(SAME)                                                   /* P1 at commit */
}

/* ------------------------------------------------------------ the guest */
proctype guest(byte id) {
  byte b, v;
#ifndef LIVE
end:
#endif
  do
#ifdef LIVE
  :: atomic { left>0 -> left--; pick(); pend[id]=1 };
     if
     :: atomic { gate==FENCED -> pend[id]=0; break }     /* refused */
     :: atomic { gate==OPEN -> infl++ }
     fi;
#else
#ifdef GATERACE
  :: atomic { left>0 && gate==OPEN && (left<W || id==0) -> left--; pick() };
     infl++;
#else
#ifdef GATEINC
  :: atomic { left>0 && gate!=FENCED && (left<W || id==0) -> left--; pick(); infl++ };
again:
     if
     :: atomic { gate==OPEN -> skip }
     :: atomic { gate!=OPEN -> infl-- };
        if :: atomic { gate==OPEN -> infl++; goto again } :: atomic { gate==FENCED -> break } fi
     fi;
#else
  :: atomic { left>0 && gate==OPEN && (left<W || id==0) -> left--; pick(); infl++ };
#endif
#endif
#endif
#if MARK == 0 || MARK == 2
     atomic { SETDIRTY(BIT(b)) };
#endif
     atomic { src[b]=v; assert(gate!=FENCED) };          /* P2 */
#if MARK == 1 || MARK == 2
     atomic { SETDIRTY(BIT(b)) };
#endif
#if MARK == 3
     atomic { infl--; assert(gate!=FENCED) };
     atomic { SETDIRTY(BIT(b)); b=0; v=0 }
#else
     atomic { infl--; assert(gate!=FENCED); b=0; v=0;
#ifdef LIVE
     pend[id]=0
#endif
     }
#endif
#ifdef LIVE
  :: atomic { left==0 -> break }
#endif
  od
}

/* ----------------------------------------------------------- the worker */
#ifdef CLEARFIRST
#define CLAIM(i,b) \
  :: atomic { UP && st[i]==0 && SYM(i) && (dirty&BIT(b)) && NOTBUSY(1-i,b) && QOK(b) -> \
       CLRDIRTY(BIT(b)); sb[i]=b; ss[i]=cur; st[i]=1 }
#define CLEAR(i) :: atomic { RUN && st[i]==1 -> clm[ss[i]] = clm[ss[i]] | BIT(sb[i]); st[i]=2 }
#else
#ifdef SETRACE
/* a thread picks the set (st 5), then sets the bit: a turn may come between */
#define CLAIM(i,b) \
  :: atomic { UP && st[i]==0 && SYM(i) && (dirty&BIT(b)) && NOTBUSY(1-i,b) && QOK(b) -> \
       sb[i]=b; ss[i]=cur; st[i]=5 } \
  :: atomic { UP && st[i]==5 && sb[i]==b -> clm[ss[i]] = clm[ss[i]] | BIT(b); st[i]=1 }
#else
#ifdef NEIGHBOURS
/* A clean block may be sent along with another, claimed like that.  NOCLAIM: it is not. */
#define DUE(i,b) ((dirty&BIT(b)) || ((i)==1 && !(quar&BIT(b))))
#else
#define DUE(i,b) (dirty&BIT(b))
#endif
#ifdef NOCLAIM
#define CLAIMED(b) (dirty&BIT(b))
#else
#define CLAIMED(b) BIT(b)
#endif
#define CLAIM(i,b) \
  :: atomic { UP && st[i]==0 && SYM(i) && DUE(i,b) && NOTBUSY(1-i,b) && QOK(b) -> \
       clm[cur] = clm[cur] | CLAIMED(b); sb[i]=b; ss[i]=cur; st[i]=1 }
#endif
#ifdef READFIRST
#define CLEAR(i) :: atomic { RUN && st[i]==1 -> vl[i]=src[sb[i]]; st[i]=2 }
#else
#define CLEAR(i) :: atomic { RUN && st[i]==1 -> CLRDIRTY(BIT(sb[i])); st[i]=2 }
#endif
#endif
#ifdef READFIRST
#define SEND(i)  :: atomic { UP && st[i]==2 -> CLRDIRTY(BIT(sb[i])); st[i]=3 }
#else
#if DIFF > 0
/* 7: the source was read.  The look comes after the claim; in quarantine there is none. */
#if DIFF == 1
#define LOOK(b) 0
#else
#define LOOK(b) dc[b]
#endif
#ifdef NOVIS
#define UNSEEN(b) !(quar & BIT(b))
#else
#define UNSEEN(b) !((quar | vis) & BIT(b))
#endif
#define SEND(i)  :: atomic { UP && st[i]==2 -> vl[i]=src[sb[i]]; st[i]=7 } \
  :: atomic { UP && st[i]==7 -> \
       if :: UNSEEN(sb[i]) && vl[i]==LOOK(sb[i]) -> st[i]=4 :: else -> st[i]=3 fi; \
       vis = vis | BIT(sb[i]) }
#else
#define SEND(i)  :: atomic { UP && st[i]==2 -> vl[i]=src[sb[i]]; st[i]=3 }
#endif
#endif
#ifdef RELREPLY
#define REPLY(i) :: atomic { UP && st[i]==4 -> clm[ss[i]] = clm[ss[i]] & (3^BIT(sb[i])); \
                             freeslot(i) }
#else
#ifdef RBINLINE
/* The read-back as slot-data.c does it: at once after the reply (6: read), against what was
 * written.  The block leaves quarantine while it is still claimed, so that the flush comes before
 * it is believed. */
#if LB == 2
#define IWHEN(i) && !LATEB(sb[i])
#else
#define IWHEN(i)
#endif
#define REPLY(i) :: atomic { UP && st[i]==4 && !(quar & BIT(sb[i])) -> freeslot(i) } \
  :: atomic { UP && st[i]==4 && (quar & BIT(sb[i])) IWHEN(i) -> irb[i]=dc[sb[i]]; st[i]=6 } \
  :: atomic { UP && st[i]==6 -> if :: irb[i]==vl[i] -> quar = quar & (3^BIT(sb[i])) \
                                   :: else -> SETDIRTY(BIT(sb[i])); GIVEN fi; \
                     irb[i]=0; freeslot(i) }
#else
#define REPLY(i) :: atomic { UP && st[i]==4 -> freeslot(i) }
#endif
#endif
#define WAITS(i,s) (st[i]!=0 && st[i]!=5 && ss[i]==(s))
#define BUSYMASK ((st[0]!=0 -> BIT(sb[0]) : 0) | (st[1]!=0 -> BIT(sb[1]) : 0))
#define READBACK(b) \
  :: atomic { UP && rbs==0 && (quar&BIT(b)) && !(dirty&BIT(b)) && \
              !((clm[0]|clm[1])&BIT(b)) RBWHEN(b) -> rbs=1+b; rbv=dc[b] }
#if LB == 2
#define RBWHEN(b) && !LATEB(b)
#else
#define RBWHEN(b)
#endif

proctype worker() {
end: do
  CLAIM(0,0) CLAIM(0,1) CLAIM(1,0) CLAIM(1,1)
  CLEAR(0) CLEAR(1) SEND(0) SEND(1) REPLY(0) REPLY(1)
#ifdef ONESET
  :: atomic { UP && flst==0 && (clm[0] & (3^(BUSYMASK)))!=0 ->
       rel = clm[0] & (3^(BUSYMASK)); flst=2; startflush() }
  :: atomic { UP && flst==3 -> clm[0] = clm[0] & (3^rel); rel=0; flst=0 }
#else
  :: atomic { UP && flst==0 && clm[cur]!=0 && clm[1-cur]==0 -> cur=1-cur; flst=1 }
#ifdef FLUSHEARLY
  :: atomic { UP && flst==1 -> flst=2; startflush() }
  :: atomic { UP && flst==3 && !WAITS(0,1-cur) && !WAITS(1,1-cur) -> clm[1-cur]=0; flst=0 }
#else
  :: atomic { UP && flst==1 && !WAITS(0,1-cur) && !WAITS(1,1-cur) -> flst=2; startflush() }
  :: atomic { UP && flst==3 -> clm[1-cur]=0; flst=0 }
#endif
#endif
  /* R5, connection lost: count the session, re-dirty (and quarantine), then drop claims, then
   * connect */
#if ORDER == 5
  :: atomic { RUN && conn==0 -> other=LOOKS; conn=4 }
#define LOST 4
#else
#define LOST 0
#endif
#ifdef CNT
  :: atomic { RUN && conn==LOST && pf==0 ->
#if R12 >= 2
       quar = quar | clm[0] | clm[1];
#endif
       pf = 1 + POP((clm[0]|clm[1]) & (3^dirty)); dirty = dirty | clm[0] | clm[1] }
  :: atomic { RUN && conn==LOST && pf>0 -> dcnt = dcnt + pf - 1; pf=0; BACK conn=3 }
#else
  :: atomic { RUN && conn==LOST ->
#if R12 >= 2
       quar = quar | clm[0] | clm[1];
#endif
#ifndef NOREDIRTY_C
       SETDIRTY(clm[0] | clm[1]);
#endif
       BACK conn=3 }
#endif
  :: atomic { RUN && conn==3 -> clm[0]=0; clm[1]=0; conn=2 }
#if R12 == 1
  :: atomic { RUN && conn==2 && NOLATE -> conn=1 }
#else
  :: atomic { RUN && conn==2 -> conn=1 }
#endif
#if R12 == 2 && !defined(RBINLINE)
  READBACK(0) READBACK(1)
  :: atomic { UP && rbs!=0 ->
       if
       :: src[rbs-1]==rbv -> quar = quar & (3^BIT(rbs-1));
#ifdef RBFLUSH
          clm[cur] = clm[cur] | BIT(rbs-1)
#endif
       :: else -> SETDIRTY(BIT(rbs-1))
       fi; rbs=0; rbv=0 }
#endif
  od
}
/* ---------------------------------------------------- hold and complete */
#ifdef FINALFLUSH
#define FINAL ds[0]=BIT(dc[0]); ds[1]=BIT(dc[1])
#else
#define FINAL skip
#endif
#ifdef STARVE
#define TAKEATT
#else
#define TAKEATT natt--;
#endif
#ifdef FTIMEOUT
#define HID ; hid++; myhid=hid
#else
#define HID
#endif
proctype completer() {
end: do
  :: atomic { RUN && hst==0 && natt>0 && gate==OPEN -> TAKEATT gate=HELD; hst=1 HID }
#if ORDER == 0
  :: atomic { RUN && hst==1 && infl==0 -> hst=2 }
  :: atomic { RUN && hst==2 && DIRTY0 && CLM0 && Q0 -> FINAL; hst=3 }
#endif
#if ORDER == 1
  :: atomic { RUN && hst==1 && DIRTY0 && CLM0 && Q0 -> hst=2 }
  :: atomic { RUN && hst==2 && infl==0 -> hst=3 }
#endif
#if ORDER == 2
  :: atomic { RUN && hst==1 && infl==0 -> hst=2 }
  :: atomic { RUN && hst==2 && CLM0 && Q0 -> hst=5 }
  :: atomic { RUN && hst==5 && DIRTY0 -> hst=3 }
#endif
#if ORDER == 3
  :: atomic { RUN && hst==1 && infl==0 -> hst=2 }
  :: atomic { RUN && hst==2 && DIRTY0 -> hst=5 }
  :: atomic { RUN && hst==5 && CLM0 && Q0 -> hst=3 }
#endif
#if ORDER == 5
  :: atomic { RUN && hst==1 && infl==0 -> hst=2; back=0; other=0 }
  :: atomic { RUN && hst==2 && dirty==0 -> hst=5 }      /* bits, not counters */
  :: atomic { RUN && hst==5 && clm[0]==0 -> hst=6 }
  :: atomic { RUN && hst==6 && clm[1]==0 -> hst=7 }
  :: atomic { RUN && hst==7 && Q0 -> hst=8 }
  :: atomic { RUN && hst==8 && !back && !other -> back=0; other=0; FINAL; hst=3 }
  :: atomic { RUN && hst>=5 -> back=0; other=0; hst=1 }         /* later once more */
#endif
#if ORDER == 4
  :: atomic { RUN && hst==1 && DIRTY0 && CLM0 && Q0 -> hst=3 }
#endif
#ifdef FTIMEOUT
#ifdef COMMITCHK
#if COMMITCHK == 2      /* filter looks again itself: held, in-flight, dirty, claimed */
#define COK (gate==HELD && infl==0 && DIRTY0 && CLM0 && Q0)
#else
#if COMMITCHK == 3      /* hold identity: the very hold that was prepared, never released since */
#define COK (gate==HELD && hid==myhid)
#else
#define COK (gate==HELD)
#endif
#endif
  :: atomic { RUN && hst==3 && COK -> gate=FENCED; hst=4; dirtyend() }
  :: atomic { RUN && hst==3 && !COK -> hst=0 }
#else
  :: atomic { RUN && hst==3 -> gate=FENCED; hst=4; dirtyend() }
#endif
  :: atomic { RUN && hst>=1 && hst!=4 -> if :: gate==HELD -> gate=OPEN :: else fi; hst=0 }
#else
  :: atomic { RUN && hst==3 -> gate=FENCED; hst=4; dirtyend() }
  :: atomic { RUN && hst>=1 && hst!=4 -> gate=OPEN; hst=0 }      /* give up, release */
#endif
  od
}
/* ------------------------------------------------------ the destination */
#ifdef NOMC
#define WC(b,i) wc[b]=i;
#else
#define WC(b,i)
#endif
#define APPLY(i) :: atomic { UP && st[i]==3 -> WC(sb[i],i) apply(sb[i],vl[i]); st[i]=4 }
#ifdef NOR7
#define WERR(i) :: atomic { UP && st[i]==3 && nerr>0 -> nerr--; \
     if :: apply(sb[i],vl[i]) :: skip fi; freeslot(i) }
#else
#define WERR(i) :: atomic { UP && st[i]==3 && nerr>0 -> nerr--; \
     if :: apply(sb[i],vl[i]) :: skip fi; SETDIRTY(BIT(sb[i])); freeslot(i) }
#endif
#define LATE(k) \
  :: atomic { late[k]!=0 -> apply(((late[k]-1)>>2), ((late[k]-1)&3)); late[k]=0 } \
  :: atomic { late[k]!=0 -> late[k]=0 }
proctype dest() {
end: do
  APPLY(0) APPLY(1)
#if NERR > 0
  WERR(0) WERR(1)
#endif
  :: atomic { UP && flst==2 -> ds[0]=ds[0]&post[0]; ds[1]=ds[1]&post[1]; post[0]=0; post[1]=0;
              flst=3 }
#if NFF > 0
  :: atomic { UP && flst==2 && nff>0 -> nff--; post[0]=0; post[1]=0;
       if :: ds[0]!=BIT(dc[0]) -> lost=lost|1 :: true fi;
       if :: ds[1]!=BIT(dc[1]) -> lost=lost|2 :: true fi;
#if FFPOL == 0
       flst=1
#endif
#if FFPOL == 1
       SETDIRTY(clm[1-cur]); clm[1-cur]=0; flst=0
#endif
#if FFPOL == 2
       SETDIRTY(clm[0]|clm[1]); clm[1-cur]=0; flst=0
#endif
     }
#endif
  LATE(0) LATE(1) LATE(2) LATE(3)
  od
}

/* -------------------------------------- the filter when a worker is lost */
proctype filter() {
end: do
#ifdef ZFIX
#define GONE zc==0      /* only once the old process has exited */
#else
#define GONE true
#endif
  :: atomic { alive==0 && gate!=FENCED && GONE ->
#if R12 >= 2
#if QMODE == 2
       quar = quar | clm[0] | clm[1];
#endif
#if QMODE == 1
       quar = clm[0] | clm[1];
#endif
#if QMODE == 0
       quar = 0;
#endif
#endif
#ifndef NOREDIRTY_W
       SETDIRTY(clm[0] | clm[1]);
#endif
#ifdef RECOUNT
       dcnt = POP(dirty);
#endif
       clm[0]=0; clm[1]=0;
#ifndef NOAUTOOPEN
       if :: gate==HELD -> gate=OPEN :: else fi;
#endif
       alive=2 }
  :: atomic { alive==2 && gate!=FENCED -> alive=1; conn=2 }      /* a new worker */
#ifdef FTIMEOUT
  :: atomic { gate==HELD && ntime>0 -> ntime--; gate=OPEN }
#ifdef REHOLD
  :: atomic { gate==OPEN && nrehold>0 -> nrehold--; gate=HELD; hid++ } /* somebody else's hold */
  :: atomic { gate==HELD && hid==2 -> gate=OPEN }
#endif
#endif
#ifdef ZOMBIE
  :: atomic { zc!=0 -> CLRDIRTY(zc); zc=0 }
#endif
  od
}

/* --------------------------------------------------------------- faults */
inline powercut(b) {
  if :: (ds[b]&1) -> dc[b]=0 :: (ds[b]&2) -> dc[b]=1
     :: (ds[b]&4) -> dc[b]=2 :: (ds[b]&8) -> dc[b]=3 fi;
  ds[b] = BIT(dc[b])
}
proctype faults() {
end: do
  :: atomic { RUN && ncrash>0 -> ncrash--;
#ifdef ZOMBIE
       if :: st[0]==1 -> zc = zc | BIT(sb[0]) :: else fi;
       if :: st[1]==1 -> zc = zc | BIT(sb[1]) :: else fi;
#endif
       tolate(); dropall(); hst=0; alive=0; conn=0;
#ifdef CNT
       pf=0
#endif
     }
  :: atomic { UP && nrecon>0 -> nrecon--; tolate(); dropreq(); conn=0 }
  :: atomic { gate!=FENCED && ndcrash>0 -> ndcrash--;
       powercut(0); powercut(1); lost=0;
       late[0]=0; late[1]=0; late[2]=0; late[3]=0;
       if :: conn==1 -> dropreq(); conn=0 :: else fi }
#ifdef HANG
  :: atomic { RUN && nhang>0 -> nhang--; alive=3 }
#endif
#ifdef LIVE
  :: atomic { ncrash+ndcrash+nrecon+nhang>0 -> /* faults stop */
              ncrash=0; ndcrash=0; nrecon=0; nhang=0 }
#endif
  od
}

init { atomic {
#if INITD == 1
  dirty=3; dc[0]=3; dc[1]=3; ds[0]=8; ds[1]=8;
#ifdef CNT
  dcnt=2;
#endif
#else
#if DIFF > 0
  dirty=1;              /* one block is as good as two, and has a tenth of the states */
#ifdef CNT
  dcnt=1;
#endif
#endif
  ds[0]=1; ds[1]=1;
#endif
  run worker(); run completer(); run dest(); run filter(); run faults();
  run guest(0); run guest(1)
} }
#ifdef LIVE
ltl live { []( pend[0] -> <> !pend[0] ) }
#endif
