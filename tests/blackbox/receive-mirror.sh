#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A disk is mirrored to what `nbdmirror receive` serves: raw, qcow2, qcow2 on a base, with TLS;
# while its server is killed with SIGKILL in between (it is started again, and the job goes on by
# itself); and once the guest runs there no mirror gets in any more.
. "$(dirname "$0")/lib.sh"

random_disk "$tmp/disk" 24M
start_server src "$tmp/disk"

# mirrored NAME: hand over to it, and look at it from the guest's side.
mirrored () {
  has_to_exit 0 timeout 60 "$NBDMIRROR" mirror "${control[src]}" "${uri[$1]}" --on-ready complete \
    --report "$tmp/report"
  equal "$tmp/disk" "${guest_uri[$1]}"
  roll_back "${control[src]}"
}

# Raw.  The guest's first write is the end of the mirror.
start_receive raw "$tmp/raw" --size 24M
mirrored raw
cmp "$tmp/disk" "$tmp/raw" || fail "the file differs"
"$python" - "${socket[raw]}" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"guest" * 100, 0)
PY
has_to_exit 7 timeout 60 "$NBDMIRROR" mirror "${control[src]}" "${uri[raw]}" --restart \
  --on-ready complete
grep -q 'handed over to its guest' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
head -c 500 "$tmp/raw" | grep -q '^guestguest' || fail "a mirror wrote under the guest"
stop raw

# The server is killed under the mirror, several requests in flight.
start_receive again "$tmp/again" --size 24M
chmod 751 "${socket[again]}" # as somebody does for the guest's user
[ "$(id -u)" != 0 ] || chown 1:2 "${socket[again]}"
owner=$(stat -c '%u:%g %a' "${socket[again]}")
spawn mirror nbdmirror mirror "${control[src]}" "${uri[again]}" --restart --bandwidth 4M \
  --report "$tmp/report" \
  --on-ready complete --quarantine-grace 100ms
copied () { [ "$(status_of "${control[src]}" sent-bytes 2>/dev/null || echo 0)" -gt "$1" ]; }
wait_for 20 copied $((1 << 20))
kill -KILL "$(child_of again nbdkit)"
back () { [ "$(status_of "${control[src]}" reconnects)" = 1 ] &&
  [ "$(status_of "${control[src]}" state)" = copying ]; }
wait_for 20 back
kill -KILL "$(child_of again nbdkit)"
ends_well mirror 60
[ "$(field reconnects <"$tmp/report")" -ge 2 ] || fail "no reconnects: $(cat "$tmp/report")"
[ "$(grep -c 'started again' "$tmp/again.log")" = 2 ] || fail "not started again twice"
[ "$(stat -c '%u:%g %a' "${socket[again]}")" = "$owner" ] ||
  fail "another owner or mode: $(ls -l "${socket[again]}")"
equal "$tmp/disk" "${guest_uri[again]}"
roll_back "${control[src]}"
stop again

# With TLS, and never without.
printf 'worker:%064d\n' 7 >"$tmp/psk"
start_receive tls "$tmp/tls" --size 24M --tls-psk "$tmp/psk"
[ "$(field uri <"$tmp/tls.json")" = "nbds+unix:///mirror?socket=$tmp/tls.sock" ] ||
  fail "no nbds: $(cat "$tmp/tls.json")"
has_to_exit 3 timeout 60 "$NBDMIRROR" copy "$tmp/disk" "${uri[tls]}"
has_to_exit 0 timeout 60 "$NBDMIRROR" mirror "${control[src]}" --restart --on-ready complete \
  --report "$tmp/report" \
  "nbds+unix://worker@/mirror?socket=$tmp/tls.sock&tls-psk-file=$tmp/psk"
cmp "$tmp/disk" "$tmp/tls" || fail "through TLS: differs"
has_to_exit 1 "$NBDMIRROR" receive --seal "${uri[tls]}"
has_to_exit 0 "$NBDMIRROR" receive --seal \
  "nbds+unix://worker@/mirror?socket=$tmp/tls.sock&tls-psk-file=$tmp/psk"
roll_back "${control[src]}"
stop tls

# qcow2, its servers killed one after the other; then on a base that both sides have.
need qemu-nbd qemu-img
start_receive q "$tmp/q.qcow2" --size 24M --format qcow2
spawn mirror nbdmirror mirror "${control[src]}" "${uri[q]}" --restart --bandwidth 4M \
  --report "$tmp/report" \
  --on-ready complete --quarantine-grace 100ms
wait_for 20 copied $((1 << 20))
kill -KILL "$(qemu_nbd_of q)" # the mirror does not notice
wait_for 20 grep -q 'qemu-nbd runs again' "$tmp/q.log"
kill -KILL "$(child_of q nbdkit)"
ends_well mirror 60
[ "$(field reconnects <"$tmp/report")" = 1 ] || fail "no reconnects: $(cat "$tmp/report")"
equal "$tmp/disk" "${guest_uri[q]}"
stop q
# 3: clusters that a killed qemu-nbd had taken and not used.  They cost room, nothing else.
checked=0
qemu-img check "$tmp/q.qcow2" >"$tmp/check.log" 2>&1 || checked=$?
[ $checked = 0 ] || [ $checked = 3 ] ||
  fail "the qcow2 image is damaged: $(tail -n 3 "$tmp/check.log")"
qemu-img convert -f qcow2 -O raw "$tmp/q.qcow2" "$tmp/q.raw"
cmp "$tmp/disk" "$tmp/q.raw" || fail "the qcow2 image differs"
roll_back "${control[src]}"

random_disk "$tmp/base" 20M
start_receive b "$tmp/b.qcow2" --size 24M --format qcow2 --backing "$tmp/base"
has_to_exit 0 timeout 60 "$NBDMIRROR" mirror "${control[src]}" "${uri[b]}" --restart \
  --on-ready complete
equal "$tmp/disk" "${guest_uri[b]}"
stop b INT
[ -e "$tmp/b.qcow2" ] || fail "a disk that was handed over was removed"
[ -e "$tmp/base" ] || fail "the base was removed"
