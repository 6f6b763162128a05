#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves the order of `nbdmirror migrate`, with real disks and workers and stand-ins for the two QEMUs: the disks are
# held before the switch-over goes on, fenced before the destination is started, and open again before
# the source goes on; what cannot work is refused with nothing touched; and whatever fails, and whenever, one
# side runs at the end, with its disks, and never both: also with --recover after a coordinator was killed.
. "$(dirname "$0")/lib.sh"

for d in a b; do
  random_disk "$tmp/$d.disk" 2M
  start_server "$d" "$tmp/$d.disk"
  start_dest "to-$d" file 2M
done
both="--disk ${control[a]}=${uri[to-a]} --disk ${control[b]}=${uri[to-b]}"
size=$((2 << 20))

qemus () { # OPTIONS...: the two
  rm -f "$tmp/source.qmp" "$tmp/dest.qmp"
  spawn qemus sh -c 'exec "$@" >"$0"' "$tmp/qemus.ready" "$python" "$srcdir/tests/blackbox/fake-qemu.py" \
    "$tmp/source.qmp" "$tmp/dest.qmp" "$tmp/story" --disk "${uri[a]}" --disk "${uri[b]}" \
    --control "${control[a]}" --control "${control[b]}" --size $size "$@"
  wait_for 20 grep -q ready "$tmp/qemus.ready"
}
# migrate STATUS [OPTIONS...]: has to exit so; then the two QEMUs end
migrate () {
  local want=$1; shift
  # shellcheck disable=SC2086
  has_to_exit "$want" nbdmirror migrate --source-qmp "$tmp/source.qmp" --dest-qmp "$tmp/dest.qmp" \
    --memory-uri unix:/nowhere $both --log "$tmp/log" --report "$tmp/report" "$@"
}
# ended SOURCE DEST GATE: the run states at the end, and the gate of every disk
ended () {
  local d
  stop qemus
  rm -f "$tmp/qemus.ready"
  [ "$(tail -n 1 "$tmp/story")" = "end $1 $2" ] || { cat "$tmp/story" >&2; fail "$case: not 'end $1 $2'"; }
  for d in a b; do
    [ "$(status_of "${control[$d]}" gate)" = "$3" ] || fail "$case: the gate of $d is not $3"
  done
}
did () { grep -q "^$1\$" "$tmp/story" || { cat "$tmp/story" >&2; fail "$case: not '$1'"; }; }
did_not () { ! grep -q "^$1" "$tmp/story" || { cat "$tmp/story" >&2; fail "$case: '$1'"; }; }
says () { grep -q -- "$1" "$tmp/err" || { cat "$tmp/err" >&2; fail "$case: '$1' is not said"; }; }
idle () { local d; for d in a b; do [ "$(status_of "${control[$d]}" state)" = "${1:-cancelled}" ] || fail "$case: the job of $d was not ended"; done; }
back_home () { # after a hand-over, for the next case
  local d
  for d in a b; do
    nbdmirror rollback "${control[$d]}" --token "$(field rollback-token <"$tmp/report")" --destination-stopped
  done
}

case="all well"
qemus
migrate 0 --max-downtime 100ms --memory-bandwidth 50M
did "source migrate running open+open"
did "source migrate-continue finish-migrate held+held"
did "dest cont paused fenced+fenced"
did_not "source cont"
ended postmigrate running fenced
for d in a b; do equal "$tmp/$d.disk" "${uri[to-$d]}"; done
"$python" - "$tmp/report" "$tmp/log" <<'PY' || fail "$case: report or log"
import json, sys
r = json.load(open(sys.argv[1]))
assert r["result"] == "migrated" and r["exit-status"] == 0 and r["error"] is None, r
assert 0 < r["pause-ms"] < 20000 and r["memory-bytes"] == 12345678 and r["rolled-back"] == [], r
assert len(r["disks"]) == 2 and all(d["sent-bytes"] > 0 and d["downtime-ms"] > 0 for d in r["disks"]), r
log = [json.loads(line) for line in open(sys.argv[2])]
phases = [e["phase"] for e in log if e["event"] == "phase"]
assert phases == ["check", "mirror", "memory", "hold", "switch", "commit", "start", "done"], phases
PY
back_home

# What cannot work: refused, and nothing was done to anybody.
refused () { # STATUS TEXT QEMU-OPTIONS...
  local want=$1 text=$2; shift 2
  qemus "$@"
  migrate "$want"
  says "$text"
  did_not "source migrate"
  did_not "[a-z]* quit"
  ended "${source:-running}" "${dest:-inmigrate}" open
}
case="destination runs"; dest=running refused 7 "does not wait for a migration" --dest-status running
case="source is paused"; source=paused refused 7 "not running" --source-status paused
case="migrated already"; refused 7 "being migrated already" --migration active
case="no such capability"; refused 7 "no migration capability 'pause-before" --capability events
case="qcow2 layer"; refused 7 "qcow2 layer" --driver qcow2
case="smaller disk"; refused 7 "smaller" --smaller
qemus
case="another disk"
start_server c "$tmp/a.disk"
migrate 7 --disk "${control[c]}=nbd://nowhere"
says "c.control: no disk of the source QEMU"
stop c
ended running inmigrate open

# Failures before the commit: the source goes on.
fails () { # STATUS SOURCE DEST GATE -- QEMU-OPTIONS -- MIGRATE-OPTIONS
  local want=$1 source=$2 dest=$3 gate=$4 options=()
  shift 5
  while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
  [ $# = 0 ] || shift
  qemus "${options[@]}"
  migrate "$want" "$@"
  ended "$source" "$dest" "$gate"
}
case="migration fails"
fails 1 running dead open -- --at source:migrate:fail
idle
case="fails after migrate-continue"
fails 1 running dead open -- --at source:migrate-continue:fail
did "source migrate-continue finish-migrate held+held"
idle
case="destination dies when the switch goes on"
fails 1 running dead open -- --at dest:migrate-incoming:die
case="memory does not converge"
fails 4 running dead open -- --at source:migrate:hang -- --timeout 4s
did "source migrate_cancel running open+open"
idle
case="switch-over takes too long"
fails 1 running dead open -- --at source:migrate-continue:hang -- --switchover-timeout 3s
says "longer than 3000 ms"
did "source migrate_cancel finish-migrate open+open"
case="the user interrupts it while the disks are held"
qemus --at source:migrate-continue:hang
# shellcheck disable=SC2086
spawn migrate nbdmirror migrate --source-qmp "$tmp/source.qmp" --dest-qmp "$tmp/dest.qmp" --memory-uri unix:/nowhere $both
wait_for 20 grep -q '^source migrate-continue' "$tmp/story"
kill -INT "${pid[migrate]}"
wait_exit migrate 20
[ "$status" = 6 ] || fail "$case: exit status $status"
did "source migrate_cancel finish-migrate open+open"
ended running dead open
idle
case="migrate is refused"
fails 1 running dead open -- --at source:migrate:refuse
case="hook fails"
fails 1 running dead open -- -- --before-hold-exec 'exit 1' --on-abort-exec 'echo "$NBDMIRROR_EVENT" >'"$tmp/hook"
did_not "source migrate "
[ "$(cat "$tmp/hook")" = abort ] || fail "$case: no hook"
case="a destination is lost"
kill -STOP "${pid[to-b]}"
qemus
migrate 4 --timeout 1s
kill -CONT "${pid[to-b]}"
ended running dead open

# A mirror of the user's own is left alone.
case="adopted"
spawn mine nbdmirror mirror "${control[a]}" "${uri[to-a]}"
wait_for 20 grep -q '^ready' "$tmp/mine.log"
fails 1 running dead open -- --at source:migrate:fail
running mine || fail "$case: the user's mirror was ended"
case="kept"
fails 1 running dead open -- --at source:migrate:fail -- --keep-mirrors
[ "$(status_of "${control[b]}" state)" = ready ] || fail "$case: the mirror of b was not kept"
nbdmirror cancel "${control[a]}"; nbdmirror cancel "${control[b]}"
wait_exit mine 10

# At and after the commit.  As long as the destination has not run there is a way back.
case="cont is refused"
fails 1 running dead open -- --at dest:cont:refuse
did "source cont postmigrate open+open"
idle idle
case="cont is refused once"
fails 0 postmigrate running fenced -- --at dest:cont:refuse-once
back_home
case="destination dies at cont"
fails 1 running dead open -- --at dest:cont:die
did "source cont postmigrate open+open"
case="destination dies after cont"
fails 1 postmigrate dead fenced -- --at dest:cont:die-after
did_not "source cont"
says "do NOT start the source"
back_home
case="the tunnel to the destination's monitor dies after cont: the guest runs there"
fails 1 postmigrate running fenced -- --tunnel --at dest:cont:tunnel-dies
did_not "source cont"
says "do NOT start the source VM"
back_home

case="source dies, the destination is whole"
fails 0 dead running fenced -- --at source:migrate-continue:source-dies
back_home

# A killed coordinator, at every step; --recover ends it.
recover () { # STATUS
  # shellcheck disable=SC2086
  has_to_exit "$1" nbdmirror migrate --recover --source-qmp "$tmp/source.qmp" --dest-qmp "$tmp/dest.qmp" $both --report "$tmp/report"
}
killed () { # QEMU-OPTIONS...: kill it when SIDE COMMAND is in the story
  local at=$1; shift
  qemus "$@"
  # shellcheck disable=SC2086
  spawn coordinator nbdmirror migrate --source-qmp "$tmp/source.qmp" --dest-qmp "$tmp/dest.qmp" \
    --memory-uri unix:/nowhere $both
  wait_for 20 grep -q "^$at " "$tmp/story"
  stop coordinator KILL
}
end_mirrors () {
  local d
  for d in a b; do nbdmirror cancel "${control[$d]}" >"$tmp/cancel.log" 2>&1 || :; done
}
case="killed while the memory is sent"
killed "source migrate" --at source:migrate:hang
recover 0
ended running dead open
end_mirrors
case="killed while the disks are held"
killed "source migrate-continue" --at source:migrate-continue:hang
recover 0
did "source migrate_cancel finish-migrate open+open"
ended running dead open
end_mirrors
case="killed at cont"
killed "dest cont" --at dest:cont:mute-once
recover 0
ended postmigrate running fenced
back_home
case="nothing to recover"
qemus
recover 0
says "nothing to do"
ended running inmigrate open
