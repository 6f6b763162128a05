#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a live mirror which sends only the difference loses nothing: in each mode, with disks
# in raw and qcow2, to nbdkit with and without digests, to qemu-nbd and to `receive`, a guest writes
# all the while, another one turns blocks back into what the base holds, and the worker is killed at
# random instants.  The destination is compared byte by byte, and what it had is not sent.  A few
# combinations at random are tried, or all of them with DIFFERENCE_MATRIX (`make
# difference-matrix`), or those in CASES, for instance CASES="top:qcow2:receive base:raw:file".
[ -z "${DIFFERENCE_MATRIX:-}" ] || TEST_TIMEOUT=3600
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread
proves_nothing_under address
need qemu-img qemu-io qemu-nbd

kills=3 size=$(bytes 192M)
[ -z "${NBDMIRROR_LONG:-}" ] || kills=20
RANDOM=${SEED:-$$}
note "SEED=${SEED:-$$}"

# Data and a hole.
truncate -s "$size" "$tmp/base"
head -c 96M /dev/urandom | dd of="$tmp/base" bs=1M conv=notrunc status=none
head -c 32M /dev/urandom | dd of="$tmp/base" bs=1M seek=128 conv=notrunc status=none

attached () { [ "$(status_of "${control[src]}" worker)" = attached ]; }

# make_destination FORMAT SERVER: a new one that holds the base: a copy of it or an overlay on it.
make_destination () {
  rm -f "$tmp/dst.img" "$tmp/dst.qcow2"
  case $2:$1 in
    receive:qcow2)
      start_receive dst "$tmp/dst.qcow2" --size "$size" --format qcow2 --backing "$tmp/base"
      return ;;
    *:qcow2) qemu-img create -q -f qcow2 -b "$tmp/base" -F raw "$tmp/dst.qcow2" ;;
    *) cp "$tmp/base" "$tmp/dst.img" ;;
  esac
  if [ "$1" = qcow2 ] && [ "$2" != qemu-nbd ]; then
    spawn below qemu-nbd -t -e 0 -k "$tmp/below.sock" -f qcow2 "$tmp/dst.qcow2"
    wait_for_socket "$tmp/below.sock" below
  fi
  serve_destination "$1" "$2"
}

# serve_destination FORMAT SERVER: also again, when a worker that was killed took its server along.
serve_destination () {
  local plugin=(file "$tmp/dst.img") file=$tmp/dst.img
  [ "$1" = raw ] || plugin=(nbd "socket=$tmp/below.sock") file=$tmp/dst.qcow2
  if [ "$2" = receive ]; then
    start_receive dst "$file" --resume
    return
  fi
  server_paths dst
  rm -f "${socket[dst]}"
  case $2 in
    file) spawn dst nbdkit -f -U "${socket[dst]}" "${plugin[@]}" ;;
    digests)
      spawn dst "${server_env[@]}" nbdkit -f -U "${socket[dst]}" \
        --filter="$NBDMIRROR_DIGEST_FILTER" "${plugin[@]}" ;;
    qemu-nbd) spawn dst qemu-nbd -t -e 8 -k "${socket[dst]}" -f "$1" "$file" ;;
  esac
  wait_for_socket "${socket[dst]}" dst
}

# checkpoint_of_what_is_there: add one since which nothing was changed.  Only a guest flushes a
# disk that is no file, and what was not flushed since the first checkpoint counts as changed.
checkpoint_of_what_is_there () {
  qemu-io -f raw -c flush "${uri[src]}"
  nbdmirror checkpoint add "${control[src]}" base
  ! nbdmirror dirty-map "${control[src]}" --since base | grep -q dirty ||
    { nbdmirror checkpoint remove "${control[src]}" base; return 1; }
}

# start_source MODE FORMAT: one that holds the shadow.
start_source () {
  if [ "$1" = incremental ]; then
    # The difference is what a guest has written since the checkpoint.
    rm -f "$tmp/disk.$2" "$tmp/state"
    qemu-img convert -q -f raw -O "$2" "$tmp/base" "$tmp/disk.$2"
    start_server src "$tmp/disk.$2" --format "$2" --state "$tmp/state" -- mirror-state-volatile=yes
    nbdmirror checkpoint add "${control[src]}" first
    wait_for 20 checkpoint_of_what_is_there
    dd if="$tmp/shadow" of="$tmp/part" bs=1M skip=60 count=1 status=none
    qemu-io -f raw -c "write -s $tmp/part 60M 1M" -c 'write -z 70M 2M' -c flush "${uri[src]}" \
      >"$tmp/io.log"
    return
  fi
  if [ "$1" != top ]; then
    rm -f "$tmp/disk.$2"
    qemu-img convert -q -f raw -O "$2" "$tmp/shadow" "$tmp/disk.$2"
    start_server src "$tmp/disk.$2" --format "$2"
    return
  fi
  rm -f "$tmp/disk.qcow2"
  qemu-img create -q -f qcow2 -b "$tmp/base" -F raw "$tmp/disk.qcow2"
  dd if="$tmp/shadow" of="$tmp/part" bs=1M skip=60 count=1 status=none
  qemu-io -f qcow2 -c "write -s $tmp/part 60M 1M" -c 'write -z 70M 2M' "$tmp/disk.qcow2" \
    >"$tmp/io.log"
  start_server src "$tmp/disk.qcow2" --format qcow2
}

# scenario MODE FORMAT SERVER
scenario () {
  local mode=$1 format=$2 kind="$2 at $3" server=$3 i resume='' sent skipped guest log
  case $mode:$format:$server in
    base:qcow2:receive | top:qcow2:receive) set -- --base "$tmp/base" ;; # it is proved
    base:qcow2:*)
      set -- --base "$tmp/base.qcow2" --base-format qcow2 --trust-base ;;
    base:*) set -- --base "$tmp/base" --trust-base ;;
    top:*) set -- --trust-base ;;
    incremental:*) set -- --since base --trust-destination ;;
    *) set -- ;;
  esac
  make_destination "$format" "$server"
  guest=${uri[dst]}
  [ "$server" != receive ] || guest=${guest_uri[dst]}
  cp "$tmp/base" "$tmp/shadow"
  # An old difference: data, and 2 MiB that became zero.
  head -c 1M /dev/urandom | dd of="$tmp/shadow" bs=1M seek=60 conv=notrunc status=none
  fallocate -p -o 70M -l 2M "$tmp/shadow"
  start_source "$mode" "$format"
  start_guest guest "${uri[src]}" --shadow "$tmp/shadow" --rate 15 --from "$(bytes 128M)" \
    --seconds 600
  # Its shadow is another file, as each guest writes its own in the end.
  cp "$tmp/shadow" "$tmp/back"
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
    running dst || serve_destination "$format" "$server"
  done
  log=$(cat "$tmp/mirror.log")
  nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync "$mode" "$@" \
    --policy none --max-downtime 2s --bandwidth 256M --quarantine-grace 100ms \
    --resume --on-ready complete --report "$tmp/report" 2>"$tmp/mirror.log" </dev/null ||
    fail "$mode, $kind: the last worker ended with $?: $(tail -n 1 "$tmp/mirror.log")"
  wait_exit guest 10
  [ "$status" = 0 ] || fail "$mode, $kind: the guest saw an error: $(cat "$tmp/guest.json")"
  wait_exit back 10
  [ "$status" = 0 ] || fail "$mode, $kind: the second guest saw an error"

  dd if="$tmp/back" of="$tmp/shadow" bs=1M count=1 conv=notrunc status=none
  compare "$tmp/shadow" "${uri[src]}" ||
    fail "$mode, $kind: the source is not what the guests wrote"
  equal "${uri[src]}" "$guest"
  sent=$(($(field sent-bytes <"$tmp/report") + $(field zero-bytes <"$tmp/report")))
  skipped=$(field skipped-bytes <"$tmp/report")
  note "$mode, $kind: $((sent / 1048576)) MiB sent, $((skipped / 1048576)) MiB skipped"
  [ "$(field sync <"$tmp/report")" = "$mode" ] || fail "the report does not name the mode"
  # Each block is looked at once at least.  What was sent has no bound here: whatever a killed
  # worker had not flushed is in doubt and is sent, also what it had found to be the same, and on a
  # busy machine that may be all.  difference-copy.sh and top-proof.sh count what is sent without
  # kills.
  # A worker that was killed when it had looked at everything, and flushed nothing yet, is followed
  # by one that copies everything, and says so.
  case $mode:$log$(cat "$tmp/mirror.log") in
    full:* | *'everything is copied again'*) ;;
    incremental:*) # What was not changed is not even looked at, and kills put none of it in doubt.
      [ "$sent" -lt $((size / 2)) ] || fail "$mode, $kind: $sent bytes were sent" ;;
    *)
      [ "$skipped" -gt $((size / 2)) ] || fail "$mode, $kind: only $skipped bytes were skipped" ;;
  esac
  stop src
  stop dst
  [ -z "${pid[below]:-}" ] || stop below
  rm -f "${control[src]}.fence" "${socket[src]}" "$tmp/below.sock"
}

qemu-img convert -q -f raw -O qcow2 "$tmp/base" "$tmp/base.qcow2"
all=()
for mode in full top base compare incremental; do
  for format in raw qcow2; do
    for server in file digests qemu-nbd receive; do
      all+=("$mode:$format:$server")
    done
  done
done
if [ -n "${CASES:-}" ]; then
  read -r -a cases <<<"$CASES"
elif [ -n "${DIFFERENCE_MATRIX:-}" ]; then
  cases=("${all[@]}")
else
  # One of each mode with a difference: what is left to chance is the format and the server.
  cases=()
  formats=(raw qcow2) servers=(file digests qemu-nbd receive)
  for mode in top base compare incremental; do
    cases+=("$mode:${formats[RANDOM % 2]}:${servers[RANDOM % 4]}")
  done
fi
note "CASES=\"${cases[*]}\""
for case in "${cases[@]}"; do
  IFS=: read -r mode format server <<<"$case"
  scenario "$mode" "$format" "$server"
done
