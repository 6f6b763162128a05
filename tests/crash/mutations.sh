#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that the crash test (crash.c) can fail: each rule of the state file is taken out of a copy
# of the source in turn, and each time the test must find a violation.
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

# build: the test with the sources in $tmp/$state, as $tmp/crash.
build () {
  $cc -O1 -std=gnu11 -w -D_GNU_SOURCE -I"$builddir" -I"$tmp" -I"$srcdir" \
    -o "$tmp/crash" \
    "$srcdir/tests/crash/crash.c" "$tmp/$state"/*.c \
    "$srcdir"/dirty-bitmap/{region,bitmap,claims,samples,urgent,watch}.c \
    "$srcdir"/base/{clock,fd,text,uuid}.c -lpthread
}

failed=0
# mutate NAME FILE PERL: with that change the test must fail.
mutate () {
  rm -rf "${tmp:?}/$state"
  mkdir -p "$tmp/$state"
  cp "$srcdir/$state"/*.[ch] "$tmp/$state"
  perl -0pi -e "$3" "$tmp/$state/$2"
  if cmp -s "$tmp/$state/$2" "$srcdir/$state/$2"; then
    echo "mutations: FAIL: $1: the source has changed, nothing was taken out"
    failed=1
    return
  fi
  build
  for seed in 1 2 3 4; do
    "$tmp/crash" -n 20000 -s $seed >"$tmp/out" 2>&1 || return 0
  done
  echo "mutations: FAIL: $1 was not noticed"
  failed=1
}

mutate "L1 is not synced" work.c \
  's/any && s->io.sync \(s->io.opaque\) == -1(?=\) \{\n    free \(written\))/false/'
mutate "hot before L1 is durable" guest.c \
  's/    all_hot = false;\n/    atomic_store (&s->hot[e], 1);\n/'
mutate "a bit is dropped before the destination has flushed" work.c \
  's/a <= REGION_QUARANTINE/a < REGION_CLAIMED_A/'
mutate "L1 is dropped before L2 is durable" work.c \
  's/\|\| step_4 \(s\) == -1/|| step_5 (s, &round) == -1 || step_4 (s) == -1/'
mutate "the older copy of L1 counts" recover.c \
  's/sequence > f->l1_sequence\[p\]/sequence < f->l1_sequence[p]/'
mutate "the source is not flushed" work.c \
  's/\(s->io.sync_disk == NULL \|\| s->io.sync_disk \(s->io.opaque\) == -1\)/false/'
mutate "a write in flight is not looked at" work.c \
  's/ \|\| atomic_load \(&s->in_flight\[e\]\) != 0//'
mutate "a torn page of L2 is clean" recover.c \
  's/is == STATE_PAGE_BAD \? ~UINT64_C \(0\)/is == STATE_PAGE_BAD ? 0/'
mutate "samples after L2" work.c \
  's/step_3 \(s\) == -1 \|\| step_4 \(s\) == -1/step_4 (s) == -1 || step_3 (s) == -1/'
mutate "the live map is not marked" guest.c \
  's/  mark_live \(s, offset, length\);\n  \*counted/  *counted/'
mutate "a returned write is cooled all the same" work.c \
  's/atomic_load \(&s->hot\[e\]\) \|\| s->pending\[e\]\)\n      continue/false)\n      continue/'
mutate "L1 is not spread out" recover.c 's/f->how != STATE_FROM_L1/true/'
exit $failed
