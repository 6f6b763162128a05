# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034,SC2154
# Common to the tests of single cases of a backup, into $repo: source it after lib.sh.

# Serve the disks a, which has a state file, and b at the control sockets $A and $B.
two_disks () {
  random_disk "$tmp/a" 8M
  random_disk "$tmp/b" 8M
  serve a "$tmp/a" --state "$tmp/a.state"
  serve b "$tmp/b"
  A=${control[a]} B=${control[b]}
}
serve () { # serve NAME DISK [OPTIONS]
  local name=$1 disk=$2; shift 2
  rm -f "$tmp/$name.sock" "$tmp/$name.control"
  start_server "$name" "$disk" "$@" -- mirror-state-volatile=yes
}
# run STATUS WORD ARGS...: a backup that ends with STATUS and tells WORD.
run () {
  local want=$1 word=$2 status=0; shift 2
  nbdmirror backup "$@" >"$tmp/out" 2>&1 || status=$?
  [ $status = "$want" ] || fail "exit status $status instead of $want: $(cat "$tmp/out")"
  grep -qF -- "$word" "$tmp/out" || fail "'$word' is not told: $(cat "$tmp/out")"
}
newest () { "$python" "$srcdir/tests/blackbox/newest-backup.py" "$repo" "$1" "${2:-file}"; }
same () { qemu-img compare -q -f qcow2 -F raw "$(newest "$1")" "$2" || fail "$1 differs"; }
