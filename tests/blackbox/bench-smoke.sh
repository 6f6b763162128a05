#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Proves that the benchmarks run: tiny sizes, one round, and no figure is looked at.  The idle
# copies are compared with their source by the benchmark itself.  One that is told to end leaves
# neither disks nor servers behind.  `make bench` builds the relay that some of them need, and goes
# on behind one that cannot run here.  NBDMIRROR_LONG=1 runs all of them.

. "$(dirname "$0")/lib.sh"
[ -z "$runtime" ] || skip "benchmarks are of the ordinary build"

(cd "$builddir" && env -u MAKEFLAGS -u MAKELEVEL make -n -W bench/relay.o bench) \
  >"$tmp/make.log" 2>&1 ||
  fail "make -n bench: $(tail -n 3 "$tmp/make.log")"
grep -q -e '-o bench/relay ' "$tmp/make.log" || fail "make bench does not build the relay"
! grep 'bench/run ' "$tmp/make.log" | grep -v '|| test $? = 77$' ||
  fail "make bench stops at a benchmark that cannot run here"

PYTHONPATH=$srcdir/bench PYTHONDONTWRITEBYTECODE=1 "$python" -c '
from common import ready_text
assert ready_text([2.0, None, 1.0]) == "1.50 (2 of 3)", ready_text([2.0, None, 1.0])
assert ready_text([2.0, 1.0]) == "1.50" and ready_text([None]) == "never"' ||
  fail "a median of runs that were not all ready is told as if they were"

all=(idle load many 'many --budget 100M --waves 2' line)
[ -z "${NBDMIRROR_LONG:-}" ] ||
  all+=(overhead 'overhead --plugin qcow2 --ways plain,idle' large difference state incremental
    backup handoff adopt)
for words in "${all[@]}"; do
  what=${words%% *}
  # shellcheck disable=SC2086
  TMPDIR=$tmp timeout 120 "$srcdir/bench/run" $words --smoke --build "$builddir" \
    --output "$tmp/$what.json" >"$tmp/$what.log" 2>&1 || {
    status=$?
    [ $status != 77 ] || { note "$what: $(tail -n 1 "$tmp/$what.log")"; continue; }
    fail "bench/run $what ended with $status"
  }
  "$python" -c 'import json, sys; assert json.load(open(sys.argv[1]))["results"]' \
    "$tmp/$what.json" ||
    fail "bench/run $what wrote no results"
done

mkdir "$tmp/disks"
TMPDIR=$tmp/disks spawn bench "$srcdir/bench/run" handoff --runs 1000 --build "$builddir" \
  --output "$tmp/handoff.json" --smoke
servers () { pgrep -f "^nbdkit .*$tmp/disks/" >"$tmp/servers"; }
wait_for 60 servers
stop bench TERM
[ "$status" = 143 ] || fail "SIGTERM: bench/run ended with $status: $(cat "$tmp/bench.log")"
! servers || fail "SIGTERM: servers are left: $(cat "$tmp/servers")"
[ -z "$(ls "$tmp/disks")" ] || fail "SIGTERM: left behind: $(ls "$tmp/disks")"
