# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034,SC2154
#
# Common to the tests of `nbdmirror migrate`; sourced after lib.sh. Two tracked disks a and b, their
# destinations, and stand-ins for the two QEMUs (fake-qemu.py). $case says what is being tried.

for d in a b; do
  random_disk "$tmp/$d.disk" 2M
  start_server "$d" "$tmp/$d.disk"
  start_dest "to-$d" file 2M
done
both="--disk ${control[a]}=${uri[to-a]} --disk ${control[b]}=${uri[to-b]}"
size=$((2 << 20))

qemus () { # OPTIONS...: the two, in a process called $name
  [ -n "${name:-}" ] || set -- -incoming -S "$@"
  rm -f "$tmp/source.qmp" "$tmp/dest.qmp"
  spawn qemus bash -c 'ready=$1 name=$2; shift 2; exec -a "$name" "$@" >"$ready"' - \
      "$tmp/qemus.ready" \
    "${name:-qemu-system-fake}" "$python" "$srcdir/tests/blackbox/fake-qemu.py" \
    "$tmp/source.qmp" "$tmp/dest.qmp" "$tmp/story" --disk "${uri[a]}" --disk "${uri[b]}" \
    --control "${control[a]}" --control "${control[b]}" --size $size "$@"
  wait_for 20 grep -q ready "$tmp/qemus.ready"
}
# ended SOURCE DEST GATE: the run states at the end, and the gate of every disk
ended () {
  local d
  stop qemus
  rm -f "$tmp/qemus.ready"
  [ "$(tail -n 1 "$tmp/story")" = "end $1 $2" ] ||
      { cat "$tmp/story" >&2; fail "$case: not 'end $1 $2'"; }
  for d in a b; do
    [ "$(status_of "${control[$d]}" gate)" = "$3" ] || fail "$case: the gate of $d is not $3"
  done
}
did () { grep -q "^$1\$" "$tmp/story" || { cat "$tmp/story" >&2; fail "$case: not '$1'"; }; }
did_not () { ! grep -q "^$1" "$tmp/story" || { cat "$tmp/story" >&2; fail "$case: '$1'"; }; }
says () { grep -q -- "$1" "$tmp/err" || { cat "$tmp/err" >&2; fail "$case: '$1' is not said"; }; }
idle () {
  local d
  for d in a b; do
    [ "$(status_of "${control[$d]}" state)" = "${1:-cancelled}" ] ||
        fail "$case: the job of $d was not ended"
  done
}
back_home () { # after a hand-over, for the next case
  local d
  for d in a b; do
    roll_back "${control[$d]}"
  done
}
