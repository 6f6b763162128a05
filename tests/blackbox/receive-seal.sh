#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# After a hand-over no late request of the mirror's is applied under the guest, though it only
# reads: `complete` seals a destination of `nbdmirror receive` even if the worker is stopped, the
# worker does it by itself, and where it cannot be done that is told, and can be done later.  Of two
# mirrors with one destination one is refused; the guest's export is none.
. "$(dirname "$0")/lib.sh"

# look SOCKET EXPORT [BYTE]: the first byte there, or write it.
look () {
  "$python" - "$@" <<'PY'
import nbd, sys
h = nbd.NBD()
h.set_export_name(sys.argv[2])
h.connect_unix(sys.argv[1])
if len(sys.argv) > 3:
    h.pwrite(sys.argv[3].encode() * 4096, 0)
    h.flush()
print(bytes(h.pread(1, 0)).decode())
PY
}
disk () { printf '%4096s' '' | tr ' ' "$2" >"$1"; truncate -s 4M "$1"; }
listed () {
  "$python" -c 'import nbd, sys
h = nbd.NBD(); h.set_opt_mode(True); h.connect_unix(sys.argv[1]); h.opt_list(print); \
  h.opt_abort()' "${socket[$1]}"
}
prepared () { # NAME OF THE SOURCE: hold it, and stop its worker.  The token is in $token.
  local deadline=$((SECONDS + 30))
  until nbdmirror complete --prepare-only --lease 60s --json "${control[$1]}" \
    >"$tmp/prepared" 2>"$tmp/err"; do
    [ $SECONDS -le $deadline ] || fail "not prepared: $(cat "$tmp/err")"
    sleep 0.1
  done
  token=$(field rollback-token <"$tmp/prepared")
  sigstop "${pid[mirror]}"
}
commit () { has_to_exit "$1" nbdmirror complete --commit --token "$token" --json "${@:2}"; }
sealed () { "$python" -c 'import json, sys; print(json.load(sys.stdin)["disks"][0]["sealed"])' \
  <"$tmp/out"; }

# The worker has written "a" there, and then "b".  It is stopped when everything is prepared.  After
# the commit the first of these writes comes once more: the guest, which only reads, must not see
# it.
disk "$tmp/disk" a
start_server src "$tmp/disk"
start_receive dst "$tmp/dst" --size 4M
spawn proxy "$python" "$srcdir/tests/blackbox/late-proxy.py" "$tmp/proxy.sock" "${socket[dst]}"
wait_for_socket "$tmp/proxy.sock" proxy
spawn mirror nbdmirror mirror "${control[src]}" "nbd+unix:///mirror?socket=$tmp/proxy.sock" \
  --report "$tmp/report"
wait_state "${control[src]}" ready 30
[ "$(look "${socket[dst]}" mirror)" = a ] || fail "not mirrored"
[ "$(look "${socket[src]}" "" b)" = b ]
wait_state "${control[src]}" ready 30
prepared src
[ "$(status_of "${control[src]}" sealed)" = false ] || fail "sealed before the commit"
listed dst | grep -q sealed && fail "sealed before the commit"
commit 0 "${control[src]}"
[ "$(sealed)" = True ] || fail "not sealed: $(cat "$tmp/out")"
[ "$(look "${socket[dst]}" "")" = b ] || fail "not handed over"
kill -USR1 "${pid[proxy]}"
wait_for 10 grep -q late "$tmp/proxy.log"
# Either is its end.
over () { grep -q 'a request of a mirror session is refused' "$tmp/dst.log" ||
  [ "$(look "${socket[dst]}" "")" = a ]; }
wait_for 10 over
[ "$(look "${socket[dst]}" "")" = b ] ||
  fail "a late request of the mirror's was applied under its guest"
kill -CONT "${pid[mirror]}"
ends_well mirror
[ "$(field sealed <"$tmp/report")" = true ] || fail "the worker has not sealed it"
[ "$(look "${socket[dst]}" "")" = b ] || fail "the worker wrote under its guest"
# Handed over is handed over; but it may be sealed again.
has_to_exit 1 nbdmirror complete "${control[src]}"
commit 0 "${control[src]}"
# Whoever reads may; and it is not mirrored to any more.
has_to_exit 0 nbdmirror verify "$tmp/disk" "${uri[dst]}"
nbdmirror rollback "${control[src]}" --token "$token" --destination-stopped
for how in "--resume --restart" --restart; do
  # shellcheck disable=SC2086
  has_to_exit 7 timeout 30 "$NBDMIRROR" mirror "${control[src]}" "${uri[dst]}" $how
  grep -q 'sealed.*--overwrite' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
done
has_to_exit 7 nbdmirror mirror "${control[src]}" "${uri[dst]}" --dry-run --measure 100ms
grep -q 'sealed.*--overwrite' "$tmp/err" || fail "dry run: wrong reason: $(cat "$tmp/err")"
stop dst
start_receive dst "$tmp/dst" --size 4M --overwrite

# Nor is the guest's export for a mirror: its first write would seal the disk.
has_to_exit 7 timeout 30 "$NBDMIRROR" mirror "${control[src]}" "${guest_uri[dst]}"
grep -q "the guest's export" "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
# A dry run says the same, and is no session: it takes the place of nobody.
has_to_exit 7 nbdmirror mirror "${control[src]}" "${guest_uri[dst]}" --dry-run --measure 100ms
has_to_exit 0 nbdmirror mirror "${control[src]}" "${uri[dst]}" --dry-run --measure 100ms

# A worker that hands over by itself seals by itself.
has_to_exit 0 timeout 30 "$NBDMIRROR" mirror "${control[src]}" "${uri[dst]}" --on-ready complete \
  --report "$tmp/report"
[ "$(field sealed <"$tmp/report")" = true ] || fail "not sealed: $(cat "$tmp/report")"
[ "$(status_of "${control[src]}" sealed)" = true ] ||
  fail "the status does not say that it is sealed"
listed dst | grep -q sealed || fail "the worker has not sealed it"
roll_back "${control[src]}"
stop dst

# The destination is away at that moment.  The guest is not started by the hook, until it has been
# done.
start_receive gone "$tmp/gone" --size 4M
spawn mirror nbdmirror mirror "${control[src]}" "${uri[gone]}"
wait_state "${control[src]}" ready 30
prepared src
server=$(child_of gone nbdkit)
kill -KILL "${pid[gone]}" "$server"
wait_exit gone 10
hook=(--after-commit-exec "echo run >>'$tmp/hook'")
{ sleep 1; kill -CONT "${pid[mirror]}"; } &
commit 3 "${hook[@]}" "${control[src]}"
[ "$(sealed)" = False ] || fail "said to be sealed: $(cat "$tmp/out")"
grep -q "nbdmirror receive --seal ${uri[gone]}" "$tmp/err" ||
  fail "not said what to do: $(cat "$tmp/err")"
[ ! -e "$tmp/hook" ] || fail "the hook was run"
wait_exit mirror 20
[ "$status" = 3 ] || fail "mirror ended with $status"
grep -q "nbdmirror receive --seal ${uri[gone]}" "$tmp/mirror.log" ||
  fail "the worker has not said what to do"
has_to_exit 3 nbdmirror complete "${control[src]}"
rm -f "${socket[gone]}"
start_receive gone "$tmp/gone" --resume
commit 0 "${hook[@]}" "${control[src]}"
[ "$(sealed)" = True ] || fail "not sealed later: $(cat "$tmp/out")"
[ "$(cat "$tmp/hook")" = run ] || fail "the hook was not run"
listed gone | grep -q sealed || fail "not sealed later"
nbdmirror rollback "${control[src]}" --token "$token" --destination-stopped
stop gone

# Two mirrors, one destination: the newer has it, and the older one ends.
disk "$tmp/other" c
start_server other "$tmp/other"
start_receive both "$tmp/both" --size 4M
spawn older nbdmirror mirror "${control[src]}" "${uri[both]}"
wait_state "${control[src]}" ready 30
spawn newer nbdmirror mirror "${control[other]}" "${uri[both]}"
wait_state "${control[other]}" ready 30
[ "$(look "${socket[src]}" "" d)" = d ] # it has something to write
wait_exit older 20
[ "$status" = 7 ] || fail "the older mirror ended with $status"
grep -q 'another mirror' "$tmp/older.log" || fail "wrong reason: $(tail -n 3 "$tmp/older.log")"
[ "$(status_of "${control[other]}" reconnects)" = 0 ] || fail "the newer mirror was disturbed"
complete_soon "${control[other]}"
grep -q 'destination sealed' "$tmp/complete.log" || fail "not told: $(cat "$tmp/complete.log")"
ends_well newer
equal "$tmp/other" "${guest_uri[both]}"
