#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that `evacuate-disk --format` moves a disk into a qcow2 image while its client writes, and
# out of it again: no request fails, and all that was written is there.  The new server starts a
# killed qemu-nbd again.  The format of the new disk is never guessed.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread
need qemu-img qemu-nbd
nbdkit --filter=retry nbd --help >/dev/null 2>&1 ||
  skip "nbdkit has no retry filter or no nbd plugin"
[ "${VALGRIND:-0}" = 0 ] || skip "the server's process is not called nbdkit under valgrind"

size=$((16 << 20))
evacuate () { "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" evacuate-disk "$@"; }
# The servers that the command starts are nobody's children here.
end_moved () { kill -KILL "$(cat "$tmp/moved.sock.pid" 2>/dev/null)" 2>/dev/null || :; }
at_exit end_moved

random_disk "$tmp/old.img" "$size"
cp "$tmp/old.img" "$tmp/shadow"
start_server moved "$tmp/old.img"
server_paths front
spawn front nbdkit -f -U "${socket[front]}" --filter=retry nbd "socket=${socket[moved]}" \
  retries=20 retry-delay=1 retry-exponential=no
wait_for_socket "${socket[front]}" front
start_guest guest "${uri[front]}" --shadow "$tmp/shadow" --connections 2 --rate 100 --seconds 100
wait_for 30 guest_changed guest 20
qemu-img create -q -f qcow2 "$tmp/there.qcow2" "$size"
has_to_exit 7 evacuate "${control[moved]}" "$tmp/there.qcow2" --overwrite
grep -q -- '--format qcow2' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
has_to_exit 1 evacuate "${control[moved]}" "$tmp/new.x" --format nonsense
[ ! -e "$tmp/new.x" ] || fail "a disk in a format that is unknown was left over"
chmod 640 "$tmp/old.img"
has_to_exit 0 evacuate "${control[moved]}" "$tmp/evac.qcow2" --format qcow2
[ "$(stat -c %a "$tmp/evac.qcow2")" = 640 ] || fail "the new disk has not the old one's mode"
qemu-img info --force-share -f qcow2 "$tmp/evac.qcow2" >/dev/null || fail "the new disk is no qcow2"
# The new server has the log, too.
kill -KILL "$(pgrep -P "$(cat "$tmp/moved.sock.pid")" qemu-nbd)"
changed=$(od -An -v -t u8 -w64 -j 4096 "$tmp/guest.json.live" | awk '{ n += $1 } END { print n }')
wait_for 30 guest_changed guest $((changed + 20))
has_to_exit 0 evacuate "${control[moved]}" "$tmp/evac.qcow2" --format qcow2
grep -q "nothing to do" "$tmp/err" || fail "a disk is moved to itself: $(cat "$tmp/err")"
has_to_exit 0 evacuate "${control[moved]}" "$tmp/back.img"
wait_for 30 guest_changed guest $((changed + 40))
stop guest INT
[ "$status" = 0 ] || fail "the guest saw an error: $(cat "$tmp/guest.json")"
stop front
[ "$(status_of "${control[moved]}" direct)" = "$tmp/back.img" ] || fail "the disk is another one"
equal "$tmp/shadow" "${uri[moved]}"
