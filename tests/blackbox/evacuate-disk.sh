#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Proves that `evacuate-disk` moves the disk of a client that connects again by itself (nbdkit's
# retry filter before its nbd plugin): not one request fails, every write is on the new disk, the
# old one is fenced and kept, the new server has the old one's names. What cannot be moved is
# refused, and changes nothing. A new disk of a job that can be resumed stays. (With a real guest:
# tests/guest/evacuate.py.)

. "$(dirname "$0")/lib.sh"
measures_times
proves_nothing_under thread
nbdkit --filter=retry nbd --help >/dev/null 2>&1 ||
    skip "nbdkit has no retry filter or no nbd plugin"
[ "${VALGRIND:-0}" = 0 ] || skip "the server's process is not called nbdkit under valgrind"

evacuate () { "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" evacuate-disk "$@"; }

# The server that the command starts is nobody's child here.
end_server () {
  local pid
  pid=$(cat "$tmp/src.sock.pid" 2>/dev/null) || return 0
  kill -KILL "$pid" 2>/dev/null
  while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
}
at_exit end_server

# The server is known by a path with a link in it, as /var/run often is one.
random_disk "$tmp/old.img" 32M
ln -s . "$tmp/link"
start_server src "$tmp/old.img" -- "mirror-uri=nbd+unix:///?socket=$tmp/link/src.sock"
server_paths front
spawn front nbdkit -f -U "${socket[front]}" \
    --filter=retry nbd "socket=${socket[src]}" retries=20 retry-delay=1 \
  retry-exponential=no
wait_for_socket "${socket[front]}" front
cp "$tmp/old.img" "$tmp/shadow"
start_guest guest "${uri[front]}" --shadow "$tmp/shadow" --connections 2 --rate 100 --seconds 100
wait_for 30 guest_changed guest 20

# Refused, and nothing has changed.
echo something >"$tmp/full.img"
has_to_exit 7 evacuate "${control[src]}" "$tmp/full.img"
has_to_exit 1 evacuate "${control[src]}" "$tmp/new.img" -- no-such-parameter=1
[ ! -e "$tmp/new.img" ] || fail "a new disk was left over"
has_to_exit 0 evacuate "${control[src]}" "$tmp/old.img"
[ "$(status_of "${control[src]}" server-pid)" = "${pid[src]}" ] || fail "the server is another one"

# Interrupted it leaves nothing behind; told to end it leaves what another run goes on with.
begin () {
  spawn moving "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" evacuate-disk \
      "${control[src]}" "$tmp/new.img" "$@"
  wait_for 20 is_copying
}
is_copying () { [ "$(status_of "${control[src]}" state)" = copying ]; }
begin --bandwidth 1M
kill -INT "${pid[moving]}"
wait_exit moving 20
[ "$status" = 6 ] || fail "interrupted: exit status $status instead of 6"
[ ! -e "$tmp/new.img" ] || fail "interrupted: a new disk was left over"
begin --bandwidth 1M
kill -TERM "${pid[moving]}"
wait_exit moving 20
[ "$status" = 3 ] || fail "ended: exit status $status instead of 3"
[ -e "$tmp/new.img" ] || fail "ended: the new disk is gone"
begin --bandwidth 1M --resume
kill -KILL "$(status_of "${control[src]}" worker-pid)"
wait_exit moving 20
[ "$status" = 3 ] || fail "its worker was killed: exit status $status instead of 3"
[ -e "$tmp/new.img" ] || fail "its worker was killed: the new disk is gone"
grep -q "killed by signal 9: --resume goes on" "$tmp/moving.log" ||
  fail "its worker was killed: told: $(cat "$tmp/moving.log")"
has_to_exit 7 evacuate "${control[src]}" "$tmp/new.img"

has_to_exit 0 evacuate "${control[src]}" "$tmp/new.img" --resume --json
[ "$(field disk <"$tmp/out")" = "$tmp/new.img" ] || fail "told: $(cat "$tmp/out")"
wait_exit src 10
[ "$(status_of "${control[src]}" gate)" = open ] || fail "the new server is fenced"
[ "$(status_of "${control[src]}" direct)" = "$tmp/new.img" ] ||
    fail "the new server has another disk"
grep -q "\"successor\": \"$tmp/new.img\"" "${control[src]}.fence" ||
    fail "the fence record names no successor"

# Nothing moves for too long, since the old disk cannot be read: the guest keeps it.
random_disk "$tmp/bad.img" 8M
touch "$tmp/trigger"
start_server bad "$tmp/bad.img" -- --filter=error error-pread=EIO error-pread-rate=100% \
  error-pread-file="$tmp/trigger"
nbdinfo --size "${uri[bad]}" >"$tmp/size" # the guest
begun=$SECONDS
has_to_exit 1 evacuate "${control[bad]}" "$tmp/bad.new" --give-up-if-stalled 700ms
within $((SECONDS - begun)) 5 "stalled: it took $((SECONDS - begun)) s"
grep -q "given up: nothing has moved for " "$tmp/err" || fail "stalled: told: $(cat "$tmp/err")"
[ "$(status_of "${control[bad]}" gate)" = open ] || fail "stalled: the guest is held"
[ "$(status_of "${control[bad]}" server-pid)" = "${pid[bad]}" ] || fail "stalled: another server"
rm "$tmp/trigger"
has_to_exit 0 evacuate "${control[bad]}" "$tmp/bad.new" --resume
cmp "$tmp/bad.img" "$tmp/bad.new" || fail "stalled, then resumed: the disks differ"
kill "$(status_of "${control[bad]}" server-pid)"

# The guest went on, no request failed, and what it knows of is there.
changed=$(od -An -v -t u8 -w64 -j 4096 "$tmp/guest.json.live" | awk '{ n += $1 } END { print n }')
wait_for 30 guest_changed guest $((changed + 20))
kill -INT "${pid[guest]}"
ends_well guest
stop front
equal "$tmp/shadow" "${uri[src]}"
note "guest: $(cat "$tmp/guest.json")"

# The old server does not answer, while all that follows happens.
random_disk "$tmp/mute.img" 8M
start_server mute "$tmp/mute.img"
nbdinfo --size "${uri[mute]}" >"$tmp/size" # the guest
spawn unheard "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" evacuate-disk \
    "${control[mute]}" "$tmp/unheard.img" --bandwidth 1M
wait_state "${control[mute]}" copying 20
kill -STOP "${pid[mute]}"

# On to a disk that holds nearly everything.  What it holds is not looked at where the mode says
# what that is: so a base that it does not hold is found out.
cp "$tmp/shadow" "$tmp/near.img"
cp "$tmp/shadow" "$tmp/base"
for at in 1000 20000000; do
  printf 'older' | dd of="$tmp/near.img" bs=1 seek=$at conv=notrunc status=none
done
has_to_exit 7 evacuate "${control[src]}" "$tmp/near.img" --sync compare
grep -q 'with --overwrite' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
base=(--sync base --base "$tmp/base" --trust-base)
has_to_exit 7 evacuate "${control[src]}" "$tmp/none.img" "${base[@]}"
grep -q 'does not exist' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
[ ! -e "$tmp/none.img" ] || fail "a refused disk was left over"
truncate -s 32M "$tmp/empty.img"
has_to_exit 7 evacuate "${control[src]}" "$tmp/empty.img" --overwrite "${base[@]}"
grep -q 'does not hold the base image' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
# The new server has checkpoints; what a state file of another disk says is not taken over.
has_to_exit 7 evacuate "${control[src]}" "$tmp/near.img" --overwrite --state "$tmp/base"
grep -q 'is of another disk' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
has_to_exit 0 evacuate "${control[src]}" "$tmp/near.img" --sync compare --overwrite \
  --state "$tmp/near.state" -- mirror-state-volatile=yes
equal "$tmp/shadow" "${uri[src]}"
[ "$(status_of "${control[src]}" direct)" = "$tmp/near.img" ] || fail "it was not moved again"
has_to_exit 0 nbdmirror checkpoint add "${control[src]}" moved
[ ! -e "$tmp/near.state.try" ] || fail "a state file was left over"

# Handed over by somebody else meanwhile: then the new disk is not this command's to remove.
random_disk "$tmp/third.img" 8M
start_server third "$tmp/third.img"
"$python" -c 'import nbd, sys; nbd.NBD().connect_unix(sys.argv[1])' "${socket[third]}"
spawn late "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" evacuate-disk \
    "${control[third]}" "$tmp/fourth.img" \
  --bandwidth 8M
wait_state "${control[third]}" 'copying|ready' 20
sigstop "${pid[late]}"
wait_for 20 nbdmirror complete "${control[third]}"
kill -CONT "${pid[late]}"
wait_exit late 20
[ "$status" = 1 ] || fail "exit status $status"
[ -e "$tmp/fourth.img" ] || fail "a disk that was handed over was removed"
grep -q 'another command has handed this disk over' "$tmp/late.log" ||
    fail "not said: $(cat "$tmp/late.log")"

# Nobody has answered: the job can be resumed.
wait_for 30 grep -q " in time" "$tmp/unheard.log"
kill -CONT "${pid[mute]}"
wait_exit unheard 30
[ "$status" = 3 ] || fail "unheard: exit status $status instead of 3: $(cat "$tmp/unheard.log")"
[ -e "$tmp/unheard.img" ] || fail "unheard: the new disk is gone, and the job could be resumed"
has_to_exit 0 evacuate "${control[mute]}" "$tmp/unheard.img" --resume
cmp "$tmp/mute.img" "$tmp/unheard.img" || fail "unheard, then resumed: the disks differ"
kill "$(status_of "${control[mute]}" server-pid)"
