#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a worker which proves its base for long is not taken for an idle client: it keeps its
# place at the control socket when all places are taken.  That it ends when its server does.  And
# that it heeds SIGTERM: a job that is left over can be resumed then, and a dry run leaves it alone.
. "$(dirname "$0")/lib.sh"
proves_nothing_under address
proves_nothing_under thread

size=$((192 << 20))
head -c $size /dev/zero | tr '\0' x >"$tmp/base"
cp "$tmp/base" "$tmp/disk"
printf 'other' | dd of="$tmp/disk" bs=1 seek=5000000 conv=notrunc status=none
cp "$tmp/base" "$tmp/dst.img"
start_server src "$tmp/disk"
# The destination reads its disk for its digests in 768 pieces: that takes 15 s.
server_paths dst
spawn dst "${server_env[@]}" nbdkit -f -U "${socket[dst]}" --filter="$NBDMIRROR_DIGEST_FILTER" \
  --filter=delay file "$tmp/dst.img" rdelay=20ms
wait_for_socket "${socket[dst]}" dst

spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync base --base "$tmp/base" \
  --on-ready complete
told () { [ "$(grep -c "destination's base image is being computed" "$tmp/mirror.log")" -ge 2 ]; }
wait_for 40 told
# A client that was silent for 10 s gives way now, if there is one.
"$python" - "${control[src]}" <<'PY'
import socket, sys
clients = []
for _ in range(64):
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    clients.append(s)
said = [s.recv(4096) for s in clients]
assert any(b"too many clients" in text for text in said), "there were places left"
PY
wait_exit mirror 60
[ "$status" = 0 ] || fail "the worker ended with $status"
equal "$tmp/disk" "${uri[dst]}"
stop src
stop dst
rm -f "${control[src]}.fence"

# slow_dest MS: each read takes MS.
slow_dest () {
  rm -f "${socket[dst]}" "$tmp/reads"
  cp "$tmp/base" "$tmp/dst.img"
  spawn dst "${server_env[@]}" nbdkit -f -U "${socket[dst]}" --filter="$NBDMIRROR_DIGEST_FILTER" \
    --filter=log --filter=delay file "$tmp/dst.img" "logfile=$tmp/reads" "rdelay=${1}ms"
  wait_for_socket "${socket[dst]}" dst
}
base=(--sync base --base "$tmp/base")

note "the source's server ends meanwhile: so does the proof"
start_server src "$tmp/disk"
slow_dest 20
spawn lost nbdmirror mirror "${control[src]}" "${uri[dst]}" "${base[@]}"
computes () { grep -q "destination's base image is being computed" "$tmp/lost.log"; }
wait_for 40 computes
stop src
wait_exit lost 40
[ "$status" = 1 ] || fail "the source's server has ended, and the worker ends with $status"
! grep "computed: 100 %" "$tmp/lost.log" || fail "it has gone on with the proof"
stop dst

note "SIGTERM while a job that is left over is proved"
start_server src "$tmp/disk"
start_dest dst file "$(stat -c %s "$tmp/disk")" --filter="$NBDMIRROR_DIGEST_FILTER"
spawn first nbdmirror mirror "${control[src]}" "${uri[dst]}" "${base[@]}"
wait_state "${control[src]}" ready 40
stop first TERM
[ "$status" = 3 ] || fail "the first worker ended with $status"
rm "$tmp/base.nbdmirror-digest"
opened () { status_of "${control[src]}" opened; }
before=$(opened)
sigstop "${pid[dst]}"
spawn second nbdmirror mirror "${control[src]}" "${uri[dst]}" "${base[@]}" --resume
connects () { [ "$(opened)" -gt "$before" ]; }
wait_for 20 connects
kill "${pid[second]}"
kill -CONT "${pid[dst]}"
wait_exit second 20
[ "$status" = 3 ] || fail "SIGTERM: exit status $status: $(cat "$tmp/second.log")"
[ ! -e "$tmp/base.nbdmirror-digest" ] || fail "the proof had ended before the signal came"
status_of "${control[src]}" dirty-bytes >/dev/null || fail "SIGTERM: the job was dropped"

note "Ctrl-C meanwhile: it is cancelled"
before=$(opened)
sigstop "${pid[dst]}"
spawn third nbdmirror mirror "${control[src]}" "${uri[dst]}" "${base[@]}" --resume
wait_for 20 connects
kill -INT "${pid[third]}"
kill -CONT "${pid[dst]}"
wait_exit third 20
[ "$status" = 6 ] || fail "SIGINT: exit status $status: $(cat "$tmp/third.log")"
[ "$(status_of "${control[src]}" state)" = cancelled ] || fail "SIGINT: the job stays"
has_to_exit 7 nbdmirror mirror "${control[src]}" "${uri[dst]}" --resume
grep -q "nothing to resume\|no job" "$tmp/err" || fail "SIGINT: $(cat "$tmp/err")"
stop src
stop dst

note "SIGTERM while blocks are compared with a checkpoint's"
start_stateful src "$tmp/disk" "$tmp/state"
nbdmirror checkpoint add "${control[src]}" one
slow_dest 300
spawn third nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync incremental --since one \
  --trust-destination
reads () { grep -c ' Read ' "$tmp/reads"; }
compares () { [ "$(reads)" -gt 100 ]; }
wait_for 20 compares
stop third TERM
[ "$status" = 6 ] || fail "SIGTERM: exit status $status: $(cat "$tmp/third.log")"
[ "$(reads)" -lt 700 ] || fail "SIGTERM: it has compared $(reads) blocks"

note "a job is left over: a dry run leaves it alone, and so does SIGTERM"
truncate -s $size "$tmp/full.img"
nbdmirror mirror "${control[src]}" "$tmp/full.img" --detach
wait_state "${control[src]}" ready 40
kill "$(status_of "${control[src]}" worker-pid)"
wait_state "${control[src]}" detached 20
# ends_while_comparing SIGNAL STATUS OPTIONS...: a job at its end would begin anew.
ends_while_comparing () {
  local signal=$1 want=$2 before
  shift 2
  before=$(reads)
  compares () { [ "$(reads)" -gt $((before + 100)) ]; }
  spawn fourth nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync incremental --since one \
    --trust-destination "$@"
  wait_for 20 compares
  stop fourth "$signal"
  [ "$status" = "$want" ] || fail "$signal, $*: exit status $status: $(cat "$tmp/fourth.log")"
}
ends_while_comparing INT 6 --dry-run
[ "$(status_of "${control[src]}" state)" = detached ] || fail "a dry run has dropped the job"
ends_while_comparing TERM 3 --restart
[ "$(status_of "${control[src]}" state)" = detached ] || fail "SIGTERM has dropped the job"
ends_while_comparing INT 6 --restart
[ "$(status_of "${control[src]}" state)" = cancelled ] || fail "SIGINT: the job stays"
