#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a live mirror which sends only the difference loses nothing: in each mode, to a raw
# and to a qcow2 destination, a guest writes all the while, another one turns blocks back into
# what the base holds, and the worker is killed at random instants.  The destination is compared
# byte by byte, and little more is sent than what the guests changed.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd

kills=3 size=$(bytes 192M)
[ -z "${NBDMIRROR_LONG:-}" ] || kills=20
RANDOM=${SEED:-$$}
note "SEED=${SEED:-$$}"

# Data and a hole.
truncate -s "$size" "$tmp/base"
head -c 96M /dev/urandom | dd of="$tmp/base" bs=1M conv=notrunc status=none
head -c 32M /dev/urandom | dd of="$tmp/base" bs=1M seek=128 conv=notrunc status=none

attached () { [ "$(status_of "${control[src]}" worker)" = attached ]; }

# start_destination MODE KIND: one that holds the base.
start_destination () {
  rm -f "$tmp/dst.img" "$tmp/dst.qcow2"
  case $2 in
    file) cp "$tmp/base" "$tmp/dst.img" ;;
    qcow2) qemu-img create -q -f qcow2 -b "$tmp/base" -F raw "$tmp/dst.qcow2" ;;
  esac
  start_dest dst "$2" "$size"
}

# scenario MODE KIND OPTIONS...
scenario () {
  local mode=$1 kind=$2 i resume='' sent skipped; shift 2
  start_destination "$mode" "$kind"
  cp "$tmp/base" "$tmp/disk"
  # An old difference: data, and 2 MiB that became zero.
  head -c 1M /dev/urandom | dd of="$tmp/disk" bs=1M seek=60 conv=notrunc status=none
  fallocate -p -o 70M -l 2M "$tmp/disk"
  cp "$tmp/disk" "$tmp/shadow"
  start_server src "$tmp/disk"
  start_guest guest "${uri[src]}" --shadow "$tmp/shadow" --rate 15 --from "$(bytes 128M)" \
    --seconds 600
  # Its shadow is another file, as each guest writes its own in the end.
  cp "$tmp/disk" "$tmp/back"
  spawn back "$python" "$srcdir/tests/blackbox/return-guest.py" "${uri[src]}" "$tmp/back" \
    0 $((1 << 20)) 600

  for ((i = 1; i <= kills; i++)); do
    # shellcheck disable=SC2086
    spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync "$mode" "$@" \
      --policy none --max-downtime 2s --bandwidth 256M --quarantine-grace 100ms $resume
    resume=--resume
    wait_for 20 attached
    sleep "0.$(printf %03d $((RANDOM % 400)))"
    running mirror || fail "$mode, $kind: the worker ended by itself before kill $i"
    kill -KILL "${pid[mirror]}"
    wait "${pid[mirror]}" 2>/dev/null || :
    unset "pid[mirror]"
    wait_state "${control[src]}" detached 5
    # nbdkit 1.32.4 to 1.33.9 may go with its client, a moment later.
    sleep 0.3
    running dst || start_dest dst "$kind" "$size"
  done
  nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync "$mode" "$@" \
    --policy none --max-downtime 2s --bandwidth 256M --quarantine-grace 100ms \
    --resume --on-ready complete --report "$tmp/report" 2>"$tmp/mirror.log" </dev/null ||
    fail "$mode, $kind: the last worker ended with $?: $(tail -n 1 "$tmp/mirror.log")"
  wait_exit guest 10
  [ "$status" = 0 ] || fail "$mode, $kind: the guest saw an error: $(cat "$tmp/guest.json")"
  wait_exit back 10
  [ "$status" = 0 ] || fail "$mode, $kind: the second guest saw an error"

  dd if="$tmp/back" of="$tmp/shadow" bs=1M count=1 conv=notrunc status=none
  cmp "$tmp/shadow" "$tmp/disk" || fail "$mode, $kind: the source is not what the guests wrote"
  equal "$tmp/disk" "${uri[dst]}"
  sent=$(($(field sent-bytes <"$tmp/report") + $(field zero-bytes <"$tmp/report")))
  skipped=$(field skipped-bytes <"$tmp/report")
  note "$mode, $kind: $((sent / 1048576)) MiB sent, $((skipped / 1048576)) MiB skipped"
  [ "$(field sync <"$tmp/report")" = "$mode" ] || fail "the report does not name the mode"
  # Killed workers leave up to 8 MiB and what was being copied, which is then sent.
  [ "$sent" -lt $((size / 2)) ] || fail "$mode, $kind: $sent bytes were sent"
  stop src
  stop dst
  rm -f "${control[src]}.fence"
}

scenario compare file
scenario compare qcow2
scenario base file --base "$tmp/base"
qemu-img convert -q -f raw -O qcow2 "$tmp/base" "$tmp/base.qcow2"
scenario base qcow2 --base "$tmp/base.qcow2" --base-format qcow2
