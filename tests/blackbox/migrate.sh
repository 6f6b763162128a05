#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves the order of `nbdmirror migrate`, with real disks and workers and stand-ins for the two
# QEMUs: the disks are held before the switch-over goes on, fenced before the destination is
# started, and open again before the source goes on; what cannot work is refused with nothing
# touched; and whatever fails, and whenever, one side runs at the end, with its disks, and never
# both.
. "$(dirname "$0")/lib.sh"
measures_times
long_test
. "$srcdir/tests/blackbox/migrate-lib.sh"

# migrate STATUS [OPTIONS...]: has to exit so; then the two QEMUs end
migrate () {
  local want=$1; shift
  # shellcheck disable=SC2086
  has_to_exit "$want" nbdmirror migrate --source-qmp "$tmp/source.qmp" --dest-qmp "$tmp/dest.qmp" \
    --memory-uri unix:/nowhere $both --log "$tmp/log" --report "$tmp/report" "$@"
}

# The filter sees the end of a worker a moment later.
detached () { # DISKS...
  local d
  for d; do
    wait_for 10 eval '[ "$(status_of "${control['"$d"']}" worker)" = detached ]'
  done
}

poke () { head -c 5 /dev/urandom | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }

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

# in_time FROM LIMIT: what began with the phase FROM was over within 10 % or 200 ms of LIMIT ms.
in_time () {
  "$python" - "$tmp/log" "$@" <<'PY' || fail "$case: the limit was not kept"
import json, sys
log = [json.loads(line) for line in open(sys.argv[1])]
phase, limit = sys.argv[2], int(sys.argv[3])
begun, took = 0, None
for e in log:
    # --timeout counts from the start of the program, and so does "ms".
    if e["event"] == "phase" and e["phase"] == phase and phase != "check":
        begun = e["ms"]
    elif e["event"] == "phase" and e["phase"] == "roll-back":
        took = e["ms"] - begun
print(f"a limit of {limit} ms was kept in {took:.0f} ms")
sys.exit(not limit - 5 <= took <= limit + max(limit / 10, 200))
PY
}

# A backup leaves a job that is completed, and a disk that was not handed over.
case="after a backup"
command -v qemu-img >/dev/null && command -v qemu-nbd >/dev/null &&
  has_to_exit 0 nbdmirror backup "${control[a]}" "$tmp/repo"
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
assert len(r["disks"]) == 2 and all(d["sent-bytes"] > 0 and d["downtime-ms"] \
    > 0 for d in r["disks"]), r
log = [json.loads(line) for line in open(sys.argv[2])]
phases = [e["phase"] for e in log if e["event"] == "phase"]
assert phases == ["check", "mirror", "memory", "hold", "switch", "commit", "start", "done"], phases
PY
grep -q '"text":"-S"' "$tmp/log" || fail "$case: -S was not seen"
back_home
# The destinations hold everything now: nothing is sent again.
case="only the difference"
qemus
cp "$tmp/b.disk" "$tmp/base,1"
for d in a b; do poke "$tmp/$d.disk" 100000; done
plain=$both both="--disk ${control[a]}=${uri[to-a]},sync=compare,verify=on \
  --disk ${control[b]}=${uri[to-b]},sync=base,base=$tmp/base,,1,trust-base=on"
migrate 0
ended postmigrate running fenced
for d in a b; do equal "$tmp/$d.disk" "${uri[to-$d]}"; done
"$python" - "$tmp/report" "$tmp/log" $size "$tmp/base,1" <<'PY' || fail "$case: report or log"
import json, sys
report, size = json.load(open(sys.argv[1])), int(sys.argv[3])
a, b = report["disks"]
assert (a["sync"], b["sync"]) == ("compare", "base"), (a, b)
for d in a, b:
    assert 0 < d["sent-bytes"] <= 65536 and d["skipped-bytes"] >= size - 65536, d
assert a["verified-bytes"] == size and b["verified-bytes"] is None, (a, b)
log = [json.loads(line) for line in open(sys.argv[2])]
begun = [(e["sync"], e["base"], e["trust-base"]) for e in log if e["event"] == "worker"][-2:]
assert begun == [("compare", None, False), ("base", sys.argv[4], True)], begun
PY
back_home
case="another base"
poke "$tmp/base,1" 0
fails 7 running dead open -- --
says "does not hold the base image"
says "${control[b]}: its worker has ended with status 7: the mirror was refused"
case="no base"
rm "$tmp/base,1"
qemus
migrate 1
says "${control[b]}: base image $tmp/base,1: No such file"
ended running inmigrate open
case="a copy that differs"
both=$plain
spawn mine nbdmirror mirror "${control[a]}" "${uri[to-a]}"
wait_for 20 grep -q '^ready' "$tmp/mine.log"
poke "$tmp/to-a.img" 1000000
both="--disk ${control[a]}=${uri[to-a]},sync=compare,verify=on --disk ${control[b]}=${uri[to-b]}"
fails 5 running dead open -- --
says "${control[a]}: its copy differs in 1 block, one of them at offset 99[0-9]*$"
says "a job is at work already, with --sync full: it is used as it is"
nbdmirror cancel "${control[a]}"
wait_exit mine 10
detached a
both=$plain

case="it cannot be seen whether the destination has -S"
name=python3 qemus
migrate 0
grep -q "cannot be seen whether it has -S" "$tmp/log" || fail "$case: nothing in the log"
did "dest stop inmigrate open+open"
ended postmigrate running fenced
back_home

case="dry run"
qemus
cp "$tmp/a.disk" "$tmp/base"
plain=$both both="--disk ${control[a]}=${uri[to-a]},sync=base,base=$tmp/base,trust-base=on \
  --disk ${control[b]}=${uri[to-b]}"
before=$(md5sum "$tmp"/to-?.img)
migrate 0 --dry-run --measure 200ms --json
both=$plain
[ "$(md5sum "$tmp"/to-?.img)" = "$before" ] || fail "$case: something was written"
! grep -v ' query-\| qmp_cap' "$tmp/story" | grep '^source\|^dest' ||
  fail "$case: a QEMU was told something"
"$python" - "$tmp/out" "${control[a]}" "${control[b]}" <<'PY' || fail "$case: $(cat "$tmp/out")"
import json, sys
r = json.load(open(sys.argv[1]))
assert (r["result"], r["exit-status"], r["error"]) == ("dry-run", 0, None), r
assert [d["control"] for d in r["disks"]] == sys.argv[2:] and r["disks"][0]["dry-run"], r
PY
ended running inmigrate open
idle idle
case="dry run of what cannot work"
qemus --smaller
migrate 7 --dry-run
says smaller
ended running inmigrate open

# restored CAPABILITY: the source has it again as it was before.
restored () {
  grep -q '"command":"migrate-set-capabilities"' "$tmp/log" || fail "$case: it was never set"
  ! grep -q "^source has $1\$" "$tmp/story" || fail "$case: $1 stays on"
}

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
case="destination runs"; dest=running refused 7 "does not wait for a migration" \
    --dest-status running
case="destination without -S"; name=qemu-system-fake refused 7 "started without -S" -incoming
did_not "dest stop"
case="source is paused"; source=paused refused 7 "not running" --source-status paused
case="migrated already"; refused 7 "being migrated already" --migration active
case="no such capability"; refused 7 "no migration capability 'pause-before" --capability events
case="qcow2 layer"; refused 7 "qcow2 layer" --driver qcow2
case="smaller disk"; refused 7 "smaller" --smaller
case="no monitor"
has_to_exit 1 nbdmirror migrate --source-qmp "$tmp/none.qmp" --dest-qmp "$tmp/dest.qmp" \
    --memory-uri unix:/nowhere --disk x=y
says "no such monitor socket"
qemus
case="another disk"
start_server c "$tmp/a.disk"
migrate 7 --disk "${control[c]}=nbd://nowhere"
says "c.control: no disk of the source QEMU"
stop c
ended running inmigrate open

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
fails 4 running dead open -- --at source:migrate:hang -- --timeout 6s
says "copying the memory, 3.00 MiB of 96.0 MiB left, 0 B of the disks left"
did "source migrate_cancel running open+open"
in_time check 6000
idle
case="switch-over takes too long"
fails 1 running dead open -- --at source:migrate-continue:hang -- --switchover-timeout 3s
says "longer than 3000 ms"
in_time hold 3000 # the lease begins there
did "source migrate_cancel finish-migrate open+open"
# interrupted FAULT...: the user interrupts it while QEMU switches.
interrupted () {
  qemus "$@"
  # shellcheck disable=SC2086
  spawn migrate nbdmirror migrate --source-qmp "$tmp/source.qmp" --dest-qmp "$tmp/dest.qmp" \
      --memory-uri unix:/nowhere $both
  wait_for 20 grep -q '^source migrate-continue' "$tmp/story"
  kill -INT "${pid[migrate]}"
  wait_exit migrate 20
  [ "$status" = 6 ] || fail "$case: exit status $status"
  ended running dead open
  idle
}
case="the user interrupts it while the disks are held, and QEMU sleeps when it is cancelled"
interrupted --at source:migrate-continue:hang --at source:migrate_cancel:hang
did "source migrate_cancel finish-migrate open+open"
case="the user interrupts it while QEMU gives up its disks"
interrupted --at source:migrate-continue:long
did_not "source migrate_cancel"
did "source cont postmigrate open+open"
case="the destination cannot listen"
fails 1 running inmigrate open -- --at dest:migrate-incoming:refuse -- --auto-converge
restored pause-before-switchover
restored auto-converge
case="migrate is refused"
fails 1 running dead open -- --at source:migrate:refuse -- --auto-converge
restored pause-before-switchover
restored auto-converge
case="somebody else has moved the guest meanwhile"
fails 1 postmigrate running open -- --at source:migrate:moved
did_not "source migrate_cancel"
did_not "source cont"
did_not "dest quit"
idle
case="somebody else is moving the guest"
fails 1 running inmigrate open -- --at source:migrate:moving
did_not "source migrate_cancel"
idle
case="the guest is paused while its disks are copied"
qemus
migrate 7 --before-hold-exec "kill -USR2 ${pid[qemus]}"
says "the source VM does not run any more, its state is 'paused': it stays so"
did_not "source migrate "
did_not "source cont"
ended paused dead open
idle
case="a paused guest stays so when something fails"
qemus
migrate 1 --before-hold-exec "kill -USR2 ${pid[qemus]}; exit 1"
did_not "source cont"
ended paused dead open
idle
case="hook fails"
fails 1 running dead open -- -- --before-hold-exec 'exit 1' \
    --on-abort-exec 'echo "$NBDMIRROR_EVENT" >'"$tmp/hook"
did_not "source migrate "
[ "$(cat "$tmp/hook")" = abort ] || fail "$case: no hook"
case="a destination is lost"
sigstop "${pid[to-b]}"
qemus
migrate 4 --timeout 1s
kill -CONT "${pid[to-b]}"
ended running dead open

case="a destination does not answer"
sigstop "${pid[to-b]}"
qemus
migrate 3 --give-up-if-stalled 1s
kill -CONT "${pid[to-b]}"
ended running dead open
case="no memory moves"
fails 4 running dead open -- --at source:migrate:hang -- --give-up-if-stalled 500ms
says "no memory has been sent for .* (--give-up-if-stalled)"

# A mirror of the user's own is left alone.
case="adopted"
rm "$tmp/mine.log"
spawn mine nbdmirror mirror "${control[a]}" "${uri[to-a]}"
wait_for 20 grep -q '^ready' "$tmp/mine.log"
fails 1 running dead open -- --at source:migrate:fail
running mine || fail "$case: the user's mirror was ended"
case="kept"
fails 1 running dead open -- --at source:migrate:fail -- --keep-mirrors
[ "$(status_of "${control[b]}" state)" = ready ] || fail "$case: the mirror of b was not kept"
nbdmirror cancel "${control[a]}"; nbdmirror cancel "${control[b]}"
wait_exit mine 10
detached a b
case="a worker has given up"
spawn mine nbdmirror mirror "${control[a]}" "${uri[to-a]}" --bandwidth 100k --give-up-after 100ms
wait_for 20 eval '[ "$(status_of "${control[a]}" state)" = copying ]'
kill -KILL "${pid[to-a]}"; wait_exit to-a 10
wait_exit mine 20
[ "$(status_of "${control[a]}" state)" = failed ] || fail "$case: the job has not failed"
rm -f "${socket[to-a]}"
start_dest to-a file 2M
fails 7 running inmigrate open --
says "${control[a]}: a job is left over: --resume goes on with it"
fails 0 postmigrate running fenced -- -- --resume
back_home
detached a b

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
name=ssh fails 1 postmigrate running fenced -- --tunnel --at dest:cont:tunnel-dies
did_not "source cont"
says "do NOT start the source VM"
back_home

case="source dies, the destination is whole"
fails 0 dead running fenced -- --at source:migrate-continue:source-dies
back_home

case="a budget"
export NBDMIRROR_BUDGETS=$tmp/budgets
nbdmirror budget moves 50M
qemus
migrate 0 --budget moves:2
ended postmigrate running fenced
[ "$(nbdmirror budget moves --json | field bytes)" -ge "$size" ] ||
  fail "$case: the disks did not go by it: $(nbdmirror budget moves --json)"
back_home
case="compressed"
fails 7 running dead open -- -- --compress
says "takes no compressed data"
both=
for d in a b; do
  head -c "$size" /dev/zero | tr '\0' 'x' >"$tmp/$d.text"
  nbdmirror copy "$tmp/$d.text" "${uri[$d]}" 2>/dev/null
  start_receive "packed-$d" "$tmp/packed-$d.img" --size "$size"
  both+=" --disk ${control[$d]}=${uri[packed-$d]}"
done
qemus
migrate 0 --compress=3 --bandwidth 1M
ended postmigrate running fenced
for d in a b; do
  equal "$tmp/$d.text" "${guest_uri[packed-$d]}"
  stop "packed-$d"
done
"$python" - "$tmp/report" <<'PY' || fail "$case: report"
import json, sys
for d in json.load(open(sys.argv[1]))["disks"]:
    assert 0 < d["wire-bytes"] < d["sent-bytes"] * 3 / 4, d
PY
back_home

case="the stopped guest waits for no new connection to seal its destinations"
both=
hidden=()
for d in a b; do
  start_receive "sealed-$d" "$tmp/sealed-$d.img" --size "$size"
  both+=" --disk ${control[$d]}=${uri[sealed-$d]}"
  hidden+=(--hide "${socket[sealed-$d]}")
done
rm -f "$tmp/log"
qemus "${hidden[@]}" --at source:migrate-continue:hide
migrate 0
ended postmigrate running fenced
for d in a b; do
  mv "${socket[sealed-$d]}.hidden" "${socket[sealed-$d]}"
done
[ "$(grep -c '"event":"sealed".*"result":0' "$tmp/log")" = 2 ] || fail "$case: not sealed"
for d in a b; do
  equal "$tmp/$d.text" "${guest_uri[sealed-$d]}"
  stop "sealed-$d"
done
back_home
