#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that the crash tests (crash.c, checkpoints.c, torn.c) can fail: each rule of the state file
# is taken out of a copy of the source in turn, and each time the test must find a violation.
# Each fifth rule is tried; with NBDMIRROR_LONG (make check-long) all are.  That a rule can still be
# taken out is looked at in any case.
set -eu
[ "${SHORT:-0}" = 0 ] || exit 77 # it takes a minute
export LC_ALL=C
srcdir=$(cd "$(dirname "$0")/../.." && pwd)
builddir=${builddir:-.}
builddir=$(cd "$builddir" && pwd)
tmp=$(mktemp -d /tmp/nbdmirror-mutations.XXXXXX)
trap 'rm -rf "$tmp"' EXIT
cc=$(sed -n 's/^CC *= *//p' "$builddir/Makefile" | head -n 1)
state=dirty-bitmap/state

# compile SOURCE DIR: one object file; those that no mutation changes are compiled once.
compile () {
  $cc -O1 -std=gnu11 -w -D_GNU_SOURCE -I"$builddir" -I"$tmp" -I"$srcdir" -c "$1" \
    -o "$2/$(basename "$1" .c).o"
}

# prepare: copies of the sources, and all objects, in $tmp/whole.
prepare () {
  mkdir -p "$tmp/$state" "$tmp/tests/crash" "$tmp/whole" "$tmp/mutant"
  restore
  for source in "$tmp/$state"/*.c "$tmp"/tests/crash/*.c \
    "$srcdir"/dirty-bitmap/{region,bitmap,claims,samples,urgent,watch}.c \
    "$srcdir"/base/{clock,fd,text,uuid}.c; do
    compile "$source" "$tmp/whole"
  done
}

restore () {
  cp "$srcdir/$state"/*.[ch] "$tmp/$state"
  cp "$srcdir"/tests/crash/*.[ch] "$tmp/tests/crash"
}

# build PROGRAM: tests/crash/PROGRAM with what was changed, as $tmp/crash.
build () {
  rm -f "$tmp/mutant"/*
  cp "$tmp/whole"/*.o "$tmp/mutant"
  for source in "$tmp/$state"/*.c "$tmp"/tests/crash/*.c; do
    cmp -s "$source" "$srcdir/${source#"$tmp/"}" || compile "$source" "$tmp/mutant"
  done
  for other in crash checkpoints torn; do
    [ "$other" = "$1" ] || rm "$tmp/mutant/$other.o"
  done
  [ "$1" = checkpoints ] || rm "$tmp/mutant/play.o"
  $cc -o "$tmp/crash" "$tmp/mutant"/*.o -lpthread
}

prepare
failed=0 nr=0
program=crash
# mutate NAME FILE PERL [SEED]: with that change the test must fail.  SEED is one that shows a fault
# that is rarely met.  Where the test has changed, so that its random numbers are used up in another
# order, look for another one: those here were the first of 50 that did.
mutate () {
  restore
  file=$state/$2
  [ -e "$srcdir/$file" ] || file=$2
  perl -0pi -e "$3" "$tmp/$file"
  if cmp -s "$tmp/$file" "$srcdir/$file"; then
    echo "mutations: FAIL: $1: the source has changed, nothing was taken out"
    failed=1
    return
  fi
  nr=$((nr + 1))
  [ -n "${NBDMIRROR_LONG:-}" ] || [ $((nr % 5)) = 0 ] || return 0
  build "$program"
  for seed in ${4:-} 1 2 3 4 5 6 7 8 9; do
    "$tmp/crash" -n 20000 -s $seed >"$tmp/out" 2>&1 || return 0
  done
  echo "mutations: FAIL: $1 was not noticed"
  failed=1
}

mutate "L1 is not synced" work.c 's/: s->io.sync \(s->io.opaque\)/: 0/'
mutate "L1 is not synced by itself" work.c 's/\? s->io.sync_l1 \(s->io.opaque\)/? 0/'
mutate "a round and a commit write L1 at the same time" cool.c \
  's/pthread_mutex_(un)?lock \(&s->l1_lock\)/(void)0/g'
mutate "a commit writes L1 while another one does" work.c \
  's/pthread_mutex_(un)?lock \(&s->l1_lock\)/(void)0/g'
mutate "hot before L1 is durable" guest.c \
  's/    all_hot = false;\n/    atomic_store (&s->hot[e], 1);\n/'
mutate "a bit is dropped before the destination has flushed" cool.c \
  's/claims_or_words \(r, first/bitmap_or_words (r, REGION_DIRTY, first/'
mutate "L1 is dropped before L2 is durable" cool.c \
  's/\|\| step_4 \(s\) == -1/|| (step_5 (s, &round), step_4 (s)) == -1/'
mutate "the older copy of L1 counts" recover.c \
  's/sequence > f->l1_sequence\[p\]/sequence < f->l1_sequence[p]/'
mutate "the source is not flushed" cool.c \
  's/int r = state_sync_disk \(s\);/int r = 0;/'
mutate "a write in flight is not looked at" cool.c \
  's/ \|\| atomic_load \(&s->in_flight\[e\]\) != 0//'
mutate "a torn page of L2 is clean" recover.c \
  's/is == STATE_PAGE_BAD \? ~UINT64_C \(0\)/is == STATE_PAGE_BAD ? 0/'
mutate "samples after L2" cool.c \
  's/step_3 \(s\) == -1 \|\| step_4 \(s\) == -1/step_4 (s) == -1 || step_3 (s) == -1/'
mutate "the live map is not marked" guest.c \
  's/mark_live \(s, offset, length\);\n  return in;/;\n  return in;/'
mutate "a returned write is cooled all the same" cool.c \
  's/atomic_load \(&s->hot\[e\]\) \|\| s->pending\[e\]\)\n      continue/false)\n      continue/'
mutate "a block is forgotten that a disk may lose at a kill" cool.c \
  's/job && (?=s->io.sync_disk == NULL && !durable)/job && cool && /' 10
mutate "L1 is not spread out" recover.c 's/f->how != STATE_FROM_L1/true/'
mutate "an extent ahead is taken for one that cools" work.c \
  's/state_ask \(s, i\);/s->l1[i \/ 64] |= UINT64_C (1) << (i % 64);
     s->l1_page_dirty[0] = 1; s->nr_hot++;/' 42
mutate "a sample comes before what is to be copied there" note.c 's/if \(early\)/if (false)/'
mutate "a sample comes before what turns dirty during a round" note.c \
  's/early \|= atomic_load.*?;/;/' 22
mutate "what a worker sets dirty does not reach L2" cool.c \
  's/s->l2_page_dirty\[e \/ s->layout.extents_per_page\] = (?=s->added)//'
mutate "a server that was killed forgets what L2 does not have" begin.c \
  's/      if \(f->how == STATE_FROM_LIVE\)\n        owe_all_pages \(s\);\n//'
mutate "a job ends before the file says so" state.c \
  's/(\nstate_end .*?look_at_region \(s, NULL\);)/$1 atomic_store (&s->active, false);/s'
program=torn
mutate "a torn page is not buried" begin.c 's/if \(bury_torn_l1 \(s\) == 0 && /if (/'
program=checkpoints
# shellcheck disable=SC2016
mutate "one superblock, in place, in two sectors" state.c \
  's/copy < 2; (copy\+\+\)\n    if \(s->io.write \(s->io.opaque, data)/copy < 1; $1/;
   BEGIN { system ("perl", "-pi", "-e",
     "s/S_EPOCH = 384/S_EPOCH = 600/; s/^_Static_assert ?\\(S_END.*//",
     "'"$tmp/$state/format.c"'") }'
mutate "a checkpoint does not wait for writes that began before" tests/crash/checkpoints.c \
  's/if \(p->writes\[i\].waited_for\)/if (false)/'
# shellcheck disable=SC2016
mutate "the next recording is marked only after the commit" recordings.c \
  's/  (atomic_store \(&s->marked\[1 \+ s->next_slot\], )live\);\n//; my $mark = $1;
   s/(    r = state_write_table \(s, t\);\n)/$1    $mark s->slots[s->next_slot]);\n/'
mutate "the table is written before the recording is durable" recordings.c \
  's/return s->io.sync \(s->io.opaque\);/return 0;/;
   BEGIN { system ("perl", "-0pi", "-e",
     "s/state_bury \\(s, offset\\) == -1\\n +\\|\\| (?=s)//", "'"$tmp/$state/state.c"'") }'
mutate "the newer copy of the table is overwritten first" state.c \
  's/uint8_t copy = s->table_copy \^ 1u;/uint8_t copy = (uint8_t)i;/'
mutate "a checkpoint does not flush the disk" recordings.c \
  's/s->io.sync_disk != NULL \? state_sync_disk \(s\)/true ? 0/'
mutate "a checkpoint forgets what may go back" recordings.c 's/    record_volatile \(s\);//'
mutate "an extent cools without the recording" cool.c \
  's/s->recorded_page_dirty\[p\] \|= cool;/;/'
mutate "an extent cools without the recording that is prepared" cool.c \
  's/\|\| \(s->preparing && write_recorded \(.*?\) == -1\)/|| false/'
mutate "a round goes on where something began during the flush" cool.c \
  's/ \|\| s->changes != changes//'
mutate "the parent recording is forgotten" recordings.c \
  's/atomic_fetch_or \(&live\[w\], bits\[w\]\)/;/'
# shellcheck disable=SC2016
mutate "two frozen recordings are not merged" recordings.c \
  's/(, parent\) == -1\)\n    return [^;]*;\n)  drop/$1  parent->blocks = 0;
  parent->area = t->list[i].area;
  memcpy (parent->recording, t->list[i].recording, 16);
  drop/' 16
mutate "L1 is not spread out over the recording" recover.c \
  's/if \(f->recorded != NULL\)\n      memset/if (false)\n      memset/'
mutate "L1 is dropped before the recording is durable" cool.c \
  's/\|\| step_4 \(s\) == -1/|| (step_5 (s, &round), step_4 (s)) == -1/'
exit $failed
