#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that `nbdmirror receive` knows at which checkpoint its disk stands, so that --sync
# incremental needs no trust there: night after night, across kills of the worker and an orderly end
# of the server.  Whoever else writes to the disk makes it unknown: another mirror and the guest
# before they write, a program that writes while no server runs, and a server that was killed.  Then
# it is refused.
. "$(dirname "$0")/lib.sh"

size=32M
random_disk "$tmp/disk" $size
"$python" -c 'import os, sys; os.setxattr(sys.argv[1], "user.test", b"x")' "$tmp/disk" ||
  skip "no extended attributes in $tmp"

serve () { start_stateful src "$tmp/disk" "$tmp/state"; }
# change SEED [URI]: a guest writes 40 blocks here and there.
change () {
  "$python" - "${2-${uri[src]}}" "$1" <<'PY'
import nbd, os, random, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
rng = random.Random(int(sys.argv[2]))
for i in range(40):
    h.pwrite(os.urandom(4096), rng.randrange(h.get_size() // 4096) * 4096)
h.shutdown()
PY
}
receive () {
  rm -f "$tmp/dst.log"
  start_receive dst "$tmp/dst.img" "$@"
}
# night OPTIONS...: mirror until it is ready, and end it.
night () {
  rm -f "$tmp/mirror.log" "$tmp/report"
  spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --report "$tmp/report" "$@"
  wait_for 20 grep -q "^ready" "$tmp/mirror.log"
  nbdmirror cancel "${control[src]}"
  wait_exit mirror 10
  ! grep -q "stands at" "$tmp/mirror.log" ||
    grep -q "good for --sync incremental" "$tmp/mirror.log" ||
    fail "the last line does not fit: $(cat "$tmp/mirror.log")"
}
uuid_of () {
  nbdmirror checkpoint list "${control[src]}" --json | "$python" -c '
import json, sys
print({c["name"]: c["uuid"] for c in json.load(sys.stdin)}[sys.argv[1]])' "$1"
}
# stands_at NAME: that is what the server says.
stands_at () {
  local want=none
  [ "$1" = none ] || want=$(uuid_of "$1")
  "$python" - "${uri[dst]}" "$want" <<'PY' || fail "it does not stand at $1"
import nbd, sys
h, said = nbd.NBD(), {}
h.set_opt_mode(True)
h.connect_uri(sys.argv[1])
h.opt_list(lambda name, text: said.update({name: text}))
h.opt_abort()
if said["checkpoint"] != "nbdmirror-receive checkpoint 1 " + sys.argv[2]:
    sys.exit(f"{said}, not {sys.argv[2]}")
PY
}
# Is it in the file?
recorded () {
  "$python" -c 'import os, sys; os.getxattr(sys.argv[1], "user.nbdmirror.checkpoint")' \
    "$tmp/dst.img" 2>/dev/null
}
not_recorded () { ! recorded; }
# refused NAME WORDS: an incremental since NAME, and nothing was written.
refused () {
  cp "$tmp/dst.img" "$tmp/before"
  has_to_exit 7 nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync incremental --since "$1"
  grep -q "$2" "$tmp/err" || fail "refused for another reason: $(cat "$tmp/err")"
  grep -q -e "$(uuid_of "$1")" "$tmp/err" || fail "the checkpoint's identity is not told"
  cmp "$tmp/before" "$tmp/dst.img" || fail "a refused destination was written to"
}

serve
receive --size $size
nbdmirror checkpoint add "${control[src]}" one
change 1

# Everything; from then on only what was changed.
refused one "it stands at none"
night
cmp "$tmp/disk" "$tmp/dst.img" || fail "the copy differs"
[ "$(field stands-at <"$tmp/report")" = one ] || fail "the report does not say where it stands"
stands_at one
recorded || fail "it is not recorded"
change 2
nbdmirror checkpoint add "${control[src]}" two
night --sync incremental --since one
cmp "$tmp/disk" "$tmp/dst.img" || fail "the copy differs after one"
stands_at two
[ "$(field sent-bytes <"$tmp/report")" -le $((90 * 4096)) ] || fail "too much was sent"

# An earlier checkpoint is good as well, a later one is not.
change 3
nbdmirror checkpoint add "${control[src]}" three
refused three "stands at two, $(uuid_of two)"

# The worker is killed in an incremental: the record is gone, but the server knows.
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync incremental --since two \
  --bandwidth 20k
wait_for 10 not_recorded
kill -KILL "${pid[mirror]}"
wait "${pid[mirror]}" 2>/dev/null || :
unset 'pid[mirror]'
stands_at two
nbdmirror cancel "${control[src]}"
change 4
# An orderly end of the server keeps it.
stop dst
recorded || fail "the server did not record it at its end"
receive --resume
stands_at two
night --sync incremental --since two
cmp "$tmp/disk" "$tmp/dst.img" || fail "the copy differs after a killed worker"
stands_at three

# The server is killed in an incremental: nothing is known.  A resumed job makes it known again.
change 5
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync incremental --since three \
  --bandwidth 20k
wait_for 10 not_recorded
server=$(child_of dst nbdkit)
kill -KILL "${pid[mirror]}" "$server" "${pid[dst]}"
for name in mirror dst; do wait "${pid[$name]}" 2>/dev/null || :; unset "pid[$name]"; done
# It is not our child.  Its sockets are closed once it is a zombie; its memory goes before that.
has_ended () { ! grep -qs '^State:.[^Z]' "/proc/$server/task"/*/status; }
wait_for 10 has_ended
receive --resume
stands_at none
night --sync incremental --since three --resume --quarantine-grace 100ms
cmp "$tmp/disk" "$tmp/dst.img" || fail "the copy differs after a killed server"
stands_at three

# Another program writes while no server runs.
stop dst
recorded || fail "an idle server's record has gone"
printf x | dd of="$tmp/dst.img" bs=1 seek=20000000 conv=notrunc status=none
receive --resume
stands_at none
refused three "stands at none"
night --sync compare
cmp "$tmp/disk" "$tmp/dst.img" || fail "the copy differs after another program"
stands_at three

# Without a server of the source.
change 6
nbdmirror checkpoint add "${control[src]}" four
stop src
nbdmirror copy "$tmp/disk" "${uri[dst]}" --sync incremental --since three --state "$tmp/state" \
  --report "$tmp/report"
cmp "$tmp/disk" "$tmp/dst.img" || fail "the copy without a server differs"
[ "$(field stands-at <"$tmp/report")" = four ] || fail "the copy does not say where it stands"
serve
stands_at four

# What a user trusts is no proof, neither now nor in a resumed job.
stop dst
touch "$tmp/dst.img"
receive --resume
night --sync incremental --since four --trust-destination
stands_at none
night --sync compare
stands_at four

# Another mirror, then the guest.
random_disk "$tmp/other" $size
nbdmirror copy "$tmp/other" "${uri[dst]}"
stands_at none
not_recorded || fail "another mirror's writes left the record"
refused four "stands at none"
night --sync compare
stands_at four
change 7 "${guest_uri[dst]}"
stands_at none
not_recorded || fail "the guest's writes left the record"
