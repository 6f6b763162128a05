#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a job gets through to destinations which are right, but not what one expects: one that
# answers a write with ESHUTDOWN and keeps the connection; one that takes 64 KiB a request, also
# when blocks are read back; one that cannot write zeroes, where the bandwidth limit holds all the
# same; one whose flush takes longer than any other request may.  And that a local file which
# vanished is not made anew, and that another disk than the tracked one is not taken for the source.
# It gets through to a server, too, that admits fewer connections than it offers, and to one that
# is older than the options of the handshake; to one that refuses to flush, if the user accepts
# that; and to one whose zeroes are not whole blocks.
. "$(dirname "$0")/lib.sh"
proves_nothing_under address
proves_nothing_under thread

random_disk "$tmp/disk" 16M

# mirror_through TEXT FAKE-OPTIONS...: it is handed over, after a reconnect.
options=()
mirror_through () {
  local text=$1; shift
  rm -f "$tmp"/src.control.fence
  start_server src "$tmp/disk"
  start_fake dst --size 16M "$@"
  has_to_exit 0 timeout 60 "$NBDMIRROR" mirror "${control[src]}" "${uri[dst]}" --on-ready complete \
    --quarantine-grace 500ms --report "$tmp/report" "${options[@]}"
  [ "$(field reconnects <"$tmp/report")" -ge 1 ] ||
    fail "$text: there was no reconnect, so nothing is proven"
  equal "$tmp/disk" "${uri[dst]}"
  stop src
  stop dst
}

mirror_through "error ESHUTDOWN" --fault write:5=error:ESHUTDOWN
mirror_through "requests of 64 KiB" --max-block 64k --fault write:50=close
options=(--allow-unsafe-destination)
mirror_through "no flush, no zeroes" --fault flush:1-=error:EINVAL --fault zero:1-=error:EINVAL \
  --fault write:5=close --no-status
options=()

# Zeroes that begin and end within one of its blocks of 64 KiB, beside blocks that are zero.
truncate -s 16M "$tmp/zero" "$tmp/coarse.img"
for ((i = 0; i < 256; i += 3)); do
  echo data | dd of="$tmp/coarse.img" bs=4k seek=$((16 * i + i % 16)) conv=notrunc status=none
done
start_fake coarse --file "$tmp/coarse.img" --min-block 64k
for sparse in '' '--sparse never'; do
  # shellcheck disable=SC2086
  has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$tmp/zero" "${uri[coarse]}" $sparse
  cmp "$tmp/zero" "$tmp/coarse.img" || fail "coarse zeroes $sparse: differs"
done
stop coarse

# nbdkit 1.32 with --oldstyle promises flushes and zeroes, and refuses them.  That is seen before
# anything is written.
start_dest old memory 16M --oldstyle
if "$python" -c 'import nbd, sys; h = nbd.NBD(); h.connect_uri(sys.argv[1]); h.flush()' \
  "${uri[old]}" 2>"$tmp/flush"; then
  has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$tmp/disk" "${uri[old]}"
  equal "$tmp/disk" "${uri[old]}"
else
  rm -f "$tmp"/src.control.fence
  start_server src "$tmp/disk"
  for command in 'mirror' 'mirror --dry-run' 'copy'; do
    from=${control[src]}
    [ "$command" != copy ] || from=$tmp/disk
    # shellcheck disable=SC2086
    has_to_exit 7 timeout 30 "$NBDMIRROR" $command "$from" "${uri[old]}"
    grep -q 'offers to flush and refuses it' "$tmp/err" || fail "another reason: $(cat "$tmp/err")"
  done
  stop src
  running old || fail "the old server did not survive being asked"
  cmp -n 16777216 /dev/zero <(nbdcopy "${uri[old]}" -) || fail "something was written there"
  # What the refusal offers works.
  has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$tmp/disk" "${uri[old]}" --allow-unsafe-destination
  equal "$tmp/disk" "${uri[old]}"
fi
stop old

# A server that knows no options cannot be asked whether it is one of `nbdmirror receive`'s.
for export in '' mirror; do
  start_dest old memory 16M --mask-handshake=0
  has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$tmp/disk" "nbd+unix:///$export?socket=${socket[old]}"
  equal "$tmp/disk" "${uri[old]}"
  stop old
done

# A server that offers several connections and admits fewer: it closes the others, or does not
# answer them.  Also after a reconnection, and as a source.
warned () { [ "$(grep -c 'admits fewer connections' "$1")" = 1 ] ||
  fail "not one warning: $(cat "$1")"; }
start_limited () { # N FILTERS...
  local limit=$1; shift
  server_paths limited
  rm -f "${socket[limited]}"
  spawn limited "${server_env[@]}" nbdkit -f -U "${socket[limited]}" --filter=limit "$@" \
    file "$tmp/limited.img" limit="$limit"
  wait_for_socket "${socket[limited]}" limited
}
truncate -s 16M "$tmp/limited.img"
start_limited 20
rm -f "$tmp"/src.control.fence
start_server src "$tmp/disk"
spawn mirror nbdmirror mirror "${control[src]}" "${uri[limited]}" --quarantine-grace 100ms \
  --report "$tmp/report"
wait_state "${control[src]}" ready 20
stop limited KILL
start_limited 1
wait_state "${control[src]}" ready 30
complete_soon "${control[src]}"
wait_exit mirror 20
[ "$status" = 0 ] || fail "with one connection left: mirror ended with $status"
[ "$(field reconnects <"$tmp/report")" -ge 1 ] || fail "there was no reconnect"
stop src
[ "$(nproc)" = 1 ] || warned "$tmp/mirror.log"
# The server sees a little later that its client has gone, and admits the next one only then.
copy_limited () {
  timeout 60 "$NBDMIRROR" copy "${uri[limited]}" "$tmp/copied" 2>"$tmp/err" || {
    rm -f "$tmp/copied"
    return 1
  }
}
wait_for 20 copy_limited
warned "$tmp/err"
cmp "$tmp/disk" "$tmp/copied" || fail "mirrored and copied by one connection: differs"
stop limited
start_fake deaf --size 16M --multi-conn --listens 1
has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$tmp/disk" "${uri[deaf]}"
warned "$tmp/err"
stop deaf
start_fake silent --size 16M --multi-conn --connections 2- --handshake hello-hang
has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$tmp/disk" "${uri[silent]}" --connect-timeout 1s
[ "$(nproc)" = 1 ] || warned "$tmp/err"
stop silent

# Digests come over connections of their own, and the base image has some.
cp "$tmp/disk" "$tmp/limited.img"
printf x | dd of="$tmp/limited.img" bs=1 seek=5M conv=notrunc status=none
start_limited 5 --filter="$NBDMIRROR_DIGEST_FILTER"
has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$tmp/disk" "${uri[limited]}" --sync compare
! grep 'serves no digests' "$tmp/err" || fail "it was read to be compared"
[ "$(nproc)" = 1 ] || warned "$tmp/err"
stop limited
cmp "$tmp/disk" "$tmp/limited.img" || fail "compared by few connections: differs"
copy_by_base () {
  cp "$tmp/limited.img" "$tmp/copied"
  timeout 20 "$NBDMIRROR" copy "$tmp/disk" "$tmp/copied" --sync base --trust-base \
    --connect-timeout "$@" 2>"$tmp/err"
}
by_base () { # TIMEOUT OPTIONS...: from the disk to what the base holds
  wait_for 20 copy_by_base "$@"
  cmp "$tmp/disk" "$tmp/copied" || fail "by a base with one connection: differs"
}
printf y | dd of="$tmp/limited.img" bs=1 seek=5M conv=notrunc status=none
start_limited 1
by_base 60s --base "${uri[limited]}"
warned "$tmp/err"
stop limited
# One that has left the third connection waiting is asked for two from then on: here those of the
# sample, and those of the copy.
start_fake backlog --file "$tmp/limited.img" --multi-conn --connections 3-3 \
  --handshake hello-hang --log "$tmp/backlog.connections"
by_base 1s --base "${uri[backlog]}"
tried=$(grep -c '"event": "connect"' "$tmp/backlog.connections")
[ "$tried" = 5 ] || fail "$tried connections to the base image were tried, not 3 and 2"
stop backlog
if command -v qemu-nbd >/dev/null; then
  rm -f "${socket[limited]}"
  spawn limited qemu-nbd -t -r -k "${socket[limited]}" -f raw "$tmp/limited.img"
  wait_for_socket "${socket[limited]}" limited
  by_base 60s --base "${uri[limited]}"
  stop limited
fi

# Where it had to wait to learn how many a server admits, a job tries no more when it comes back.
truncate -s 16M "$tmp/queue.img"
for admits in 1 3; do
  start_queue () { # LOG
    start_fake queue --file "$tmp/queue.img" --multi-conn --connections $((admits + 1))- \
      --handshake hello-hang --log "$tmp/$1-$admits.connections"
  }
  connections () { grep -c '"event": "connect"' "$tmp/$1-$admits.connections"; }
  start_queue first
  rm -f "$tmp"/src.control.fence
  start_server src "$tmp/disk"
  spawn mirror nbdmirror mirror "${control[src]}" "${uri[queue]}" --connect-timeout 2s \
    --quarantine-grace 100ms
  wait_state "${control[src]}" ready 30
  [ "$(connections first)" -gt $admits ] || fail "no connection was left waiting"
  stop queue KILL
  start_queue again
  # `ready` may be published yet from before the loss.
  back () { [ "$(connections again)" -ge $admits ]; }
  wait_for 30 back
  wait_state "${control[src]}" ready 30
  [ "$(connections again)" = $admits ] ||
    fail "$admits admitted: $(connections again) were tried after the reconnect"
  complete_soon "${control[src]}"
  ends_well mirror
  stop queue
  cmp "$tmp/disk" "$tmp/queue.img" || fail "$admits connections: differs"
  stop src
done

# One that goes on waiting for them in the TLS handshake.
if nbdkit --dump-config | grep -q '^tls=yes'; then
  echo 'user:0123456789abcdef0123456789abcdef' >"$tmp/psk"
  port=$(free_port)
  truncate -s 16M "$tmp/tls.img"
  spawn tls nbdkit -f -i 127.0.0.1 -p "$port" --tls=require --tls-psk="$tmp/psk" file "$tmp/tls.img"
  wait_for 20 nbdinfo --size "nbds://user@127.0.0.1:$port/?tls-psk-file=$tmp/psk"
  # shellcheck disable=SC2016
  spawn relay sh -c 'exec "$@" >"$0"' "$tmp/relay.port" "$python" \
    "$srcdir/tests/blackbox/tls-relay.py" "$port" "$tmp/relay.seen" 1
  wait_for 20 test -s "$tmp/relay.port"
  has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$tmp/disk" --connect-timeout 2s \
    "nbds://user@127.0.0.1:$(cat "$tmp/relay.port")/?tls-psk-file=$tmp/psk"
  [ "$(nproc)" = 1 ] || warned "$tmp/err"
  cmp "$tmp/disk" "$tmp/tls.img" || fail "by one TLS connection: differs"
  stop relay
  stop tls
fi

# The connections after the first are made at the same time.
if [ "$(nproc)" != 1 ]; then
  start_fake together --size 16M --multi-conn --connections 2-4 --handshake hello-together
  has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$tmp/disk" "${uri[together]}" --connect-timeout 5s
  # Over a long line the others have asked about the export by the time the first one opens it, and
  # open it no earlier than that.
  for structured in '' --no-structured; do
    rm -f "$tmp/far.requests"
    # shellcheck disable=SC2086
    start_fake far --size 16M --multi-conn --connections 1-4 --handshake far \
      --log "$tmp/far.requests" $structured
    has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$tmp/disk" "${uri[far]}" --connect-timeout 5s
    [ "$(grep -c '"event": "connect"' "$tmp/far.requests")" = 4 ] ||
      fail "far $structured: not four connections"
    ! grep 'admits fewer' "$tmp/err" ||
      fail "far $structured: the connections were made one after the other"
    stop far
  done

  # They are made before it is known whether they are wanted.  A server that does not offer several
  # connections sees them go without a request, and one that takes a single client is not kept.  On
  # a busy machine they may be given up before they have begun, so it is tried again.
  for ((tries = 0; tries < 10; tries++)); do
    rm -f "$tmp/single.log"
    start_fake single --size 16M --log "$tmp/single.log"
    has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$tmp/disk" "${uri[single]}"
    stop single
    ! grep 'admits fewer' "$tmp/err" || fail "a server of one connection is said to take fewer"
    ! grep '"request"' "$tmp/single.log" | grep -v '"connection": 1,' ||
      fail "a connection that is not wanted was used"
    [ "$(grep -c '"connect"' "$tmp/single.log")" != 4 ] || break
  done
  [ "$tries" -lt 10 ] || fail "there were never four connections"
  if command -v qemu-nbd >/dev/null; then
    server_paths one
    spawn one qemu-nbd -t -k "${socket[one]}" -f raw "$tmp/limited.img"
    wait_for_socket "${socket[one]}" one
    for ((i = 0; i < 2; i++)); do
      has_to_exit 0 timeout 20 "$NBDMIRROR" copy "$tmp/disk" "${uri[one]}" --connect-timeout 60s
    done
    stop one
    cmp "$tmp/disk" "$tmp/limited.img" || fail "a server of a single client: differs"
  fi
  # Those that are not made yet keep nobody waiting when the first one has failed.
  start_fake mute --size 16M --multi-conn --connections 2- --handshake hello-hang \
    --fault flush:1=close
  has_to_exit 3 timeout 30 "$NBDMIRROR" copy "$tmp/disk" "${uri[mute]}" --connect-timeout 60s
fi

start_fake small --file "$tmp/disk" --max-block 64k
has_to_exit 0 timeout 60 "$NBDMIRROR" copy "${uri[small]}" "$tmp/copied"
cmp "$tmp/disk" "$tmp/copied" || fail "copied from a source that takes 64 KiB a request: differs"

# 16 MiB at 8 MiB a second: two seconds, but for the first burst.
start_fake nozero --size 16M --no-zero --no-status
begin=$(date +%s%N)
has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$tmp/zero" "${uri[nozero]}" --bandwidth 8M
took=$(((($(date +%s%N) - begin)) / 1000000))
[ $took -ge 1500 ] || fail "zeroes were sent as data beyond the bandwidth limit: 16 MiB in $took ms"

start_fake slow --size 16M --fault flush:2=delay:1.5
has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$tmp/disk" "${uri[slow]}" --request-timeout 1s \
  --report "$tmp/report"
[ "$(field reconnects <"$tmp/report")" = 0 ] || fail "a slow flush was taken for a lost destination"

rm -f "$tmp"/src.control.fence
start_server src "$tmp/disk"
spawn mirror nbdmirror mirror "${control[src]}" "$tmp/local"
wait_state "${control[src]}" ready 20
stop mirror
[ "$(status_of "${control[src]}" state)" = detached ] || fail "the job is not left over"
rm "$tmp/local"
has_to_exit 3 timeout 60 "$NBDMIRROR" mirror "${control[src]}" "$tmp/local" --resume
[ ! -e "$tmp/local" ] || fail "--resume made a new file where the destination had been"

# The parameter mirror-uri= of another server, whose disk has the same size.
cp "$tmp/disk" "$tmp/disk2"
start_server other "$tmp/disk2"
start_server wrong "$tmp/disk" -- "mirror-uri=${uri[other]}"
"$python" - "${uri[wrong]}" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])      # so that its filter knows the size
h.shutdown()
PY
has_to_exit 7 timeout 60 "$NBDMIRROR" mirror "${control[wrong]}" "$tmp/from-other" \
  --on-ready complete
grep -q 'mirror-uri= is wrong' "$tmp/err" ||
  fail "another disk was read: wrong message: $(cat "$tmp/err")"
[ ! -e "$tmp/from-other" ] || fail "another disk was copied"

# A local disk that somebody uses is not written to.
cp "$tmp/disk" "$tmp/used.img"
start_server used "$tmp/used.img"
has_to_exit 7 nbdmirror copy "$tmp/zero" "$tmp/used.img"
grep -q 'used.img is in use by a server of nbdmirror' "$tmp/err" || fail "told: $(cat "$tmp/err")"
stop used
spawn used qemu-nbd -f raw -t -k "$tmp/used.sock" "$tmp/used.img"
wait_for_socket "$tmp/used.sock" used
has_to_exit 7 nbdmirror copy "$tmp/zero" "$tmp/used.img"
grep -q 'used.img is in use by QEMU' "$tmp/err" || fail "told: $(cat "$tmp/err")"
cmp "$tmp/disk" "$tmp/used.img" || fail "a disk in use was written to"
stop used
has_to_exit 0 nbdmirror copy "$tmp/zero" "$tmp/used.img"
