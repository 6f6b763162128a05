#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that --sync incremental sends what was changed since a checkpoint and nothing else, and
# that the destination is equal in the end: with a guest that writes all the while, a worker and a
# server that are killed, and resumed jobs.  A destination that does not stand at the checkpoint is
# refused, also when it takes the right one's place later.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread

size=96M
random_disk "$tmp/disk" $size
cp "$tmp/disk" "$tmp/dst.img"

serve () { start_stateful src "$tmp/disk" "$tmp/state"; }
kill_all () {
  local name
  for name; do kill -KILL "${pid[$name]}" 2>/dev/null || :; done # the guest may have ended
  for name; do wait "${pid[$name]}" 2>/dev/null || :; unset "pid[$name]"; done
}

# change SEED COUNT: a guest writes COUNT blocks here and there.
change () {
  "$python" - "${uri[src]}" "$@" <<'EOF'
import nbd, os, random, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
rng = random.Random(int(sys.argv[2]))
for i in range(int(sys.argv[3])):
    h.pwrite(os.urandom(4096), rng.randrange(h.get_size() // 4096) * 4096)
h.shutdown()
EOF
}
mirror () {
  timeout 40 "$NBDMIRROR" mirror "${control[src]}" "${uri[dst]}" --sync incremental \
    --trust-destination "$@"
}
# changed SINCE: how many bytes the map has.
changed () {
  nbdmirror dirty-map "${control[src]}" --since "$1" --json | "$python" -c '
import json, sys
print(sum(r["length"] for r in json.load(sys.stdin) if r["type"]))'
}
# sent_at_most BYTES: 1.05 of it, by the last report.
sent_at_most () {
  local sent
  sent=$(($(field sent-bytes <"$tmp/report") + $(field zero-bytes <"$tmp/report")))
  [ "$sent" -le $(($1 * 105 / 100)) ] || fail "$sent bytes were sent for $1"
}
copying () { grep -q "pass 1" "$tmp/mirror.log"; }
attached () { [ "$(status_of "${control[src]}" worker)" = attached ]; }

serve
start_dest dst file $size
nbdmirror checkpoint add "${control[src]}" one
change 1 300
one=$(changed one)

# What is refused, before anything is written.
has_to_exit 7 nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync incremental
grep -q "does not tell at which checkpoint" "$tmp/err" || fail "since when? $(cat "$tmp/err")"
has_to_exit 2 nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync incremental \
  --trust-destination
has_to_exit 2 nbdmirror mirror "${control[src]}" "${uri[dst]}" --since one
has_to_exit 7 mirror --since none
grep -q "there is no checkpoint 'none'" "$tmp/err" || fail "no such checkpoint: $(cat "$tmp/err")"
has_to_exit 7 nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync incremental --since one
grep -q "trust-destination" "$tmp/err" || fail "trust: $(cat "$tmp/err")"
has_to_exit 7 nbdmirror mirror "${control[src]}" "$tmp/new" --sync incremental --since one \
  --trust-destination
[ ! -e "$tmp/new" ] || fail "a destination was made"
head -c "$size" /dev/urandom >"$tmp/other.img" # random_disk makes the same
cp "$tmp/other.img" "$tmp/other.copy"
start_dest other file $size
has_to_exit 7 timeout 60 "$NBDMIRROR" mirror "${control[src]}" "${uri[other]}" \
  --sync incremental --since one --trust-destination
grep -q "does not stand at checkpoint 'one'" "$tmp/err" || fail "other: $(cat "$tmp/err")"
cmp "$tmp/other.img" "$tmp/other.copy" || fail "a wrong destination was written to"
# As many as the user says: 200 blocks find out as well.
has_to_exit 7 timeout 60 "$NBDMIRROR" mirror "${control[src]}" "${uri[other]}" \
  --sync incremental --since one --trust-destination=200
cmp "$tmp/other.img" "$tmp/other.copy" || fail "a wrong destination was written to"
has_to_exit 2 mirror --since one --trust-destination=0
has_to_exit 2 mirror --since one --trust-destination=64k
stop other
[ "$(status_of "${control[src]}" state)" = idle ] || fail "a refused job is left over"

# A quiet guest.
nbdmirror checkpoint add "${control[src]}" two
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync incremental \
  --trust-destination=200 --since one --report "$tmp/report"
wait_state "${control[src]}" ready 20
nbdmirror cancel "${control[src]}"
wait_exit mirror 10
grep -q "trust-destination: 200 blocks" "$tmp/mirror.log" || fail "$(cat "$tmp/mirror.log")"
sent_at_most "$one"
cmp "$tmp/disk" "$tmp/dst.img" || fail "the destination differs"

# Another destination in its place, before anything was flushed there.
change 2 50
two=$(changed two)
[ "$two" -le $((50 * 4096)) ] || fail "$two bytes are changed since two"
other_in_its_place () {
  stop dst
  mv "$tmp/dst.img" "$tmp/kept.img"
  cp "$tmp/other.copy" "$tmp/dst.img"
  cp "$tmp/kept.img" "$tmp/good.img"
  start_dest good file $size
  server_paths dst
  rm "$tmp/mirror.log"
  spawn mirror nbdmirror mirror "${control[src]}" "${uri[good]}" --sync incremental \
    --trust-destination --since two --bandwidth 1k --report "$tmp/report"
  wait_for 10 copying
  stop good
  mv "$tmp/dst.img" "$tmp/good.img"
  start_dest good file $size
  wait_exit mirror 60 # a guest's write that can be read may take 30 s to be dirty
  [ "$status" = 7 ] || fail "another destination in its place: exit status $status"
  nbdmirror cancel "${control[src]}"
  stop good
  mv "$tmp/kept.img" "$tmp/dst.img"
  start_dest dst file $size
}
# It waits for up to 30 s.
[ -n "$sanitizers" ] || other_in_its_place

# A guest that writes, while worker and server are killed.
spawn guest "$python" -c '
import nbd, os, random, sys, time
h, rng = nbd.NBD(), random.Random(7)
h.connect_uri(sys.argv[1])
while True:
    h.pwrite(os.urandom(4096), rng.randrange(2048) * 4096)
    time.sleep(0.001)
' "${uri[src]}"
nbdmirror checkpoint add "${control[src]}" three
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync incremental \
  --trust-destination --since two --bandwidth 2M --quarantine-grace 100ms
wait_for 10 attached
sleep 0.2
kill_all mirror
wait_state "${control[src]}" detached 20
sleep 0.3
running dst || start_dest dst file $size
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync incremental \
  --trust-destination --since two --resume --bandwidth 2M --quarantine-grace 100ms
wait_for 10 attached
sleep 0.2
kill_all mirror src guest
running dst || start_dest dst file $size
serve
[ "$(status_of "${control[src]}" state)" = detached ] || fail "the job did not survive its server"
left=$(status_of "${control[src]}" dirty-bytes)
[ "$left" -lt $(($(bytes $size) / 2)) ] || fail "$left bytes are dirty after the server was killed"
mirror --since two --resume --quarantine-grace 100ms --on-ready complete --report "$tmp/report"
cmp "$tmp/disk" "$tmp/dst.img" || fail "the destination differs after the kills"

# Without a server.
token=$(field rollback-token <"$tmp/report")
nbdmirror rollback "${control[src]}" --token "$token" --destination-stopped
nbdmirror checkpoint add "${control[src]}" four
change 4 200
four=$(changed four)
stop dst
has_to_exit 7 nbdmirror copy "$tmp/disk" "$tmp/dst.img" --sync incremental --since four \
  --state "$tmp/state" --trust-destination
grep -q "another server uses it" "$tmp/err" || fail "in use: $(cat "$tmp/err")"
stop src
nbdmirror copy "$tmp/disk" "$tmp/dst.img" --sync incremental --since four \
  --state "$tmp/state" --trust-destination --report "$tmp/report"
sent_at_most "$four"
cmp "$tmp/disk" "$tmp/dst.img" || fail "the copy without a server differs"
printf x | dd of="$tmp/disk" bs=1 seek=33333 conv=notrunc status=none
has_to_exit 7 nbdmirror copy "$tmp/disk" "$tmp/dst.img" --sync incremental --since four \
  --state "$tmp/state" --trust-destination
grep -q "changed while it was not tracked" "$tmp/err" || fail "changed: $(cat "$tmp/err")"
