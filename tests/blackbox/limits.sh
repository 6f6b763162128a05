#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that each time limit is kept: nothing ends earlier than its option says, and nothing later
# than 10 % or 200 ms (the larger) after it.  The limits: --connect-timeout, --request-timeout (a
# request, a flush), --give-up-after (destination gone, silent, refusing writes),
# --give-up-if-stalled, --lease, --timeout, --max-write-delay, a hold that nobody ends, and the 12 s
# for a seal.
. "$(dirname "$0")/lib.sh"
measures_times
proves_nothing_under address
proves_nothing_under thread

size=$(bytes 8M)
head -c "$size" /dev/urandom >"$tmp/disk"

now_ms () { echo $((${EPOCHREALTIME/./} / 1000)); }

# in_time WHAT WANT FROM TO: all in ms.
in_time () {
  local took=$(($4 - $3)) slack=$(($2 / 10))
  [ $slack -ge 200 ] || slack=200
  note "$1: a limit of $2 ms was kept in $took ms"
  [ $took -ge $(($2 - 5)) ] || fail "$1: over after $took ms, before $2 ms"
  [ $took -le $(($2 + slack)) ] || fail "$1: over after $took ms, not within $slack ms of $2 ms"
}

# timed NAME COMMAND...: run in the background; the instants of its begin and end are in
# $tmp/NAME.time.
timed () {
  local name=$1; shift
  # shellcheck disable=SC2016
  spawn "$name" bash -c 'echo "$((${EPOCHREALTIME/./} / 1000))" >"$0.time"; "$@"; r=$?
    echo "$((${EPOCHREALTIME/./} / 1000))" >>"$0.time"; exit \
      $r' "$tmp/$name" "${nbdmirror_prefix[@]}" "$NBDMIRROR" "$@"
}
begun () { head -n 1 "$tmp/$1.time"; }
ended () { tail -n 1 "$tmp/$1.time"; }
# exits NAME STATUS PATTERN
exits () {
  wait_exit "$1" 20
  [ "$status" = "$2" ] || fail "$1 ended with $status instead of $2"
  grep -q "$3" "$tmp/$1.log" || fail "$1 does not say '$3'"
}
# When the fake server NAME had its first request of KIND, in ms.
request_at () {
  "$python" - "$tmp/$1.requests" "$2" <<'PY'
import json, sys, time
for line in open(sys.argv[1]):
    o = json.loads(line)
    if o.get("type") == sys.argv[2]:
        print(int((o["time"] + time.time() - time.monotonic()) * 1000))
        break
PY
}

# ---- a server that does not answer ----

start_fake silent --size "$size" --handshake hang
start_fake hello --size "$size" --handshake hello-hang
start_fake request --size "$size" --log "$tmp/request.requests" --fault write:1=hang-all
start_fake flush --size "$size" --log "$tmp/flush.requests" --fault flush:1=hang-all
start_fake tls --size "$size" --handshake tls-hang
echo 'user:0123456789abcdef0123456789abcdef' >"$tmp/psk"
timed c-tls copy "$tmp/disk" "nbds+unix://user@/?socket=${socket[tls]}&tls-psk-file=$tmp/psk" \
  --connect-timeout 1500ms
timed c-silent copy "$tmp/disk" "${uri[silent]}" --connect-timeout 1s
timed c-hello copy "$tmp/disk" "${uri[hello]}" --connect-timeout 2s
timed c-request copy "$tmp/disk" "${uri[request]}" --request-timeout 2s
timed c-flush copy "$tmp/disk" "${uri[flush]}" --request-timeout 700ms
exits c-tls 3 'no connection within 1.5 s'
exits c-silent 3 'no connection within 1 s'
exits c-hello 3 'no connection within 2 s'
exits c-request 3 'no reply to a write .* within 2 s'
exits c-flush 3 'no reply to a flush within 2.1 s'
in_time "connect, silent from the first" 1000 "$(begun c-silent)" "$(ended c-silent)"
in_time "connect, silent in the TLS handshake" 1500 "$(begun c-tls)" "$(ended c-tls)"
in_time "connect, silent after hello" 2000 "$(begun c-hello)" "$(ended c-hello)"
in_time "request" 2000 "$(request_at request write)" "$(ended c-request)"
in_time "flush" 2100 "$(request_at flush flush)" "$(ended c-flush)"
for name in silent hello request flush; do stop $name; done
# This takes 12 s, and ends below.
timed c-seal receive --seal \
  "nbds+unix://user@/mirror?socket=${socket[tls]}&tls-psk-file=$tmp/psk"

# ---- a destination that is lost: --give-up-after ----

# given_up NAME LIMIT-MS: the mirror m-NAME, from the loss that it told to its end.
given_up () {
  local lost
  exits "m-$1" 3 'given up after .* without a destination that works'
  lost=$(awk '/destination lost/ { print $1; exit }' "$tmp/m-$1.stamped")
  in_time "give up, $1" "$2" "$lost" "$(ended "m-$1")"
}
# Each line of a worker's messages, with the time in front of it.
stamped () {
  local name=$1; shift
  # shellcheck disable=SC2016
  spawn "$name" bash -c 'name=$0; "$@" 2>&1 | while IFS= read -r line; do
      echo "$((${EPOCHREALTIME/./} / 1000)) $line" >>"$name.stamped"; echo "$line"; done; \
        r=${PIPESTATUS[0]}
    echo "$((${EPOCHREALTIME/./} / 1000))" >"$name.time"; exit \
      $r' "$tmp/$name" "${nbdmirror_prefix[@]}" "$NBDMIRROR" "$@"
}
mirror_to () {
  local name=$1; shift
  cp "$tmp/disk" "$tmp/$name.disk"
  start_server "s-$name" "$tmp/$name.disk"
  stamped "m-$name" mirror "${control[s-$name]}" "${uri[d-$name]}" "$@"
}
start_dest d-gone file "$size"
start_fake d-hangs --size "$size" --fault write:5=hang-all
start_fake d-errors --size "$size" --fault write:5-=error:EIO
start_fake d-mute --size "$size" --fault write:5=close --fault write:6-=hang
mirror_to gone --give-up-after 3s
wait_state "${control[s-gone]}" ready 20
stop d-gone KILL
mirror_to hangs --give-up-after 2s --request-timeout 1s
mirror_to errors --give-up-after 4500ms --quarantine-grace 100ms
# It takes connections, and its writes are then never answered.
mirror_to mute --give-up-after 3500ms --quarantine-grace 100ms --request-timeout 20s
# Nothing moves, though the connection stands: --give-up-if-stalled.  It counts from the last reply.
start_fake d-stalls --size "$size" --log "$tmp/stalls.requests" --fault write:5-=hang-all
mirror_to stalls --give-up-if-stalled 2500ms --request-timeout 30s
# Nor does anything while the destination is away, and the worker tries again ever less often.
start_dest d-lost file "$size"
mirror_to lost --give-up-if-stalled 4500ms --bandwidth 1M
some_sent () { [ "$(status_of "${control[s-lost]}" sent-bytes)" -gt 0 ]; }
wait_for 10 some_sent
stop d-lost KILL
given_up gone 3000
given_up hangs 2000
given_up errors 4500
given_up mute 3500
exits m-stalls 3 'nothing has moved for 2.[56] s'
exits m-lost 3 'nothing has moved for 4.[56] s'
in_time "stalled" 2500 "$(request_at stalls write)" "$(ended m-stalls)"
# A job that has nothing to do, or may not do it, is not stalled.
start_dest d-idle file "$size"
mirror_to idle --give-up-if-stalled 500ms --bandwidth 256k
for ((i = 0; i < 15; i++)); do
  running m-idle || fail "a low limit counts as stalled"
  sleep 0.1
done
nbdmirror pause "${control[s-idle]}"
sleep 1
nbdmirror resume "${control[s-idle]}"
nbdmirror set "${control[s-idle]}" bandwidth=0
wait_state "${control[s-idle]}" ready 20
nbdmirror pause "${control[s-idle]}"
"$python" -c 'import nbd, sys
h = nbd.NBD(); h.connect_uri(sys.argv[1]); h.pwrite(b"x" * 4096, 0)' "${uri[s-idle]}"
sleep 1
nbdmirror resume "${control[s-idle]}"
wait_state "${control[s-idle]}" ready 20
# Nor is it at rest, when the guest's first write after that comes.
sleep 6
"$python" -c 'import nbd, sys
h = nbd.NBD(); h.connect_uri(sys.argv[1]); h.pwrite(b"y" * 4096, 0)' "${uri[s-idle]}"
sleep 1
running m-idle || fail "a job that is paused, ready, or at rest counts as stalled"
stop m-idle
for name in gone hangs errors mute stalls lost idle; do stop s-$name; done

exits c-seal 1 'the server does not answer'
in_time "seal, silent in the TLS handshake" 12000 "$(begun c-seal)" "$(ended c-seal)"
stop tls

# ---- a guest that is held or slowed down ----

start_server src "$tmp/disk"
start_dest far file "$size"
spawn mirror nbdmirror mirror "${control[src]}" "${uri[far]}" --max-write-delay 1500ms \
  --policy none --request-timeout 60s
wait_state "${control[src]}" ready 20

# write_takes: how long a guest's write of OFFSET takes, in ms.
write_takes () {
  "$python" - "${uri[src]}" "$1" <<'PY'
import nbd, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
start = time.monotonic()
h.pwrite(b"x" * 4096, int(sys.argv[2]))
print(int((time.monotonic() - start) * 1000))
PY
}

before=$(now_ms)
nbdmirror complete "${control[src]}" --prepare-only --lease 1s >"$tmp/prepared" ||
  fail "cannot prepare"
write_takes 0 >"$tmp/held"
in_time "lease of a prepared hold" 1000 "$before" "$(now_ms)"
wait_state "${control[src]}" ready 20

# A stopped worker prepares nothing: the command's own limit ends it.
sigstop "${pid[mirror]}"
timed prepare complete "${control[src]}" --timeout 1500ms
exits prepare 1 'not prepared within 1500 ms'
in_time "timeout of complete" 1500 "$(begun prepare)" "$(ended prepare)"
kill -CONT "${pid[mirror]}"
wait_state "${control[src]}" ready 20
# So does a server that is stopped.
sigstop "${pid[src]}"
timed stopped complete "${control[src]}" --timeout 1200ms
exits stopped 1 "${control[src]}"
in_time "timeout of complete, server stopped" 1200 "$(begun stopped)" "$(ended stopped)"
kill -CONT "${pid[src]}"

# The synchronous gate lets a write go that the destination does not answer.
nbdmirror set "${control[src]}" synchronous=on
synchronous () { [ "$(status_of "${control[src]}" gate)" = synchronous ]; }
wait_for 10 synchronous
sigstop "${pid[far]}"
in_time "max-write-delay" 1500 0 "$(write_takes 65536)"
