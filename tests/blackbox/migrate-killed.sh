#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that `nbdmirror migrate` may be killed at any step, its coordinator or its guardian, and
# one side runs at the end, with its disks, and never both, and nobody had to do anything; that
# --recover is enough where both were killed; and that two recoveries at the same time do not hurt.
. "$(dirname "$0")/lib.sh"
proves_nothing_under address
proves_nothing_under thread
. "$srcdir/tests/blackbox/migrate-lib.sh"
# The guardian and --recover read the same words.  The destinations hold anything.
both="--disk ${control[a]}=${uri[to-a]},sync=compare --disk ${control[b]}=${uri[to-b]},sync=full"

begin () { # STEP QEMU-OPTIONS... [-- MIGRATE-OPTIONS...]: until "SIDE COMMAND" is in the story
  local at=$1 options=(); shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
  [ $# = 0 ] || shift
  qemus "${options[@]}"
  rm -f "$tmp/log" "$tmp/report"
  # shellcheck disable=SC2086
  spawn migrate nbdmirror migrate --source-qmp "$tmp/source.qmp" --dest-qmp "$tmp/dest.qmp" \
    --memory-uri unix:/nowhere $both --log "$tmp/log" --report "$tmp/report" "$@"
  wait_for 20 grep -q "^$at " "$tmp/story"
  coordinator=$(ps -o pid= --ppid "${pid[migrate]}" | tr -d ' ')
  [ -n "$coordinator" ] || fail "$case: it has no child"
}
has_ended () { # STATUS RESULT
  wait_exit migrate 60
  [ "$status" = "$1" ] || { cat "$tmp/migrate.log" >&2; fail "$case: exit status $status"; }
  [ -s "$tmp/report" ] || fail "$case: no report"
  [ "$(field result <"$tmp/report")" = "$2" ] || { cat "$tmp/report" >&2; fail "$case: not $2"; }
}
kill_coordinator () { kill -KILL "$coordinator"; has_ended "$@"; }
is_copying () { [ "$(status_of "${control[$1]}" state)" = copying ]; }
gone () { case $(ps -o stat= -p "$1") in ''|Z*) return 0 ;; *) return 1 ;; esac; }
kill_guardian () { # EXIT-STATUS-IN-THE-REPORT
  kill -KILL "${pid[migrate]}"
  wait_exit migrate 10
  wait_for 60 gone "$coordinator"
  [ "$(field exit-status <"$tmp/report")" = "$1" ] ||
      { cat "$tmp/report" >&2; fail "$case: another end"; }
}
for whom in coordinator guardian; do
  case="$whom killed while the disks are copied"
  begin "dest migrate-incoming" -- --bandwidth 128k
  for d in a b; do wait_for 20 is_copying "$d"; done
  if [ $whom = coordinator ]; then kill_coordinator 1 rolled-back; else kill_guardian 6; fi
  ended running dead open
  idle
done
case="coordinator killed before anything is begun"
begin "dest migrate-incoming" --at dest:migrate-incoming:mute-once
kill_coordinator 1 rolled-back
ended running inmigrate open
did_not "source has pause-before-switchover"
case="coordinator killed in the hook of a migration that was refused"
qemus --smaller
rm -f "$tmp/log" "$tmp/report"
# shellcheck disable=SC2086
spawn migrate nbdmirror migrate --source-qmp "$tmp/source.qmp" --dest-qmp "$tmp/dest.qmp" \
  --memory-uri unix:/nowhere $both --log "$tmp/log" --report "$tmp/report" \
  --on-abort-exec "echo >>'$tmp/hook'; while [ -d '$tmp' ] && [ ! -e '$tmp/go' ]; do sleep 1; done"
wait_for 20 test -s "$tmp/hook"
coordinator=$(ps -o pid= --ppid "${pid[migrate]}" | tr -d ' ')
kill_coordinator 1 rolled-back
touch "$tmp/go"
[ "$(wc -l <"$tmp/hook")" = 1 ] || fail "$case: it was run twice"
ended running inmigrate open
case="coordinator killed while the memory is sent"
begin "source migrate" --at source:migrate:hang -- \
    --on-abort-exec 'echo "$NBDMIRROR_REASON" >'"$tmp/hook"
kill_coordinator 1 rolled-back
grep -q "killed by signal 9" "$tmp/hook" || fail "$case: no hook"
[ "$(grep -c '^source migrate-set-parameters' "$tmp/story")" = 2 ] ||
    fail "$case: its settings were not restored"
ended running dead open
idle
grep -q '"event":"guardian"' "$tmp/log" || fail "$case: nothing in the log"
case="guardian killed while the memory is sent"
begin "source migrate" --at source:migrate:hang
kill_guardian 6
ended running dead open
idle
case="coordinator killed while the disks are held"
begin "source migrate-continue" --at source:migrate-continue:hang
kill_coordinator 1 rolled-back
did "source migrate_cancel finish-migrate open+open"
ended running dead open
idle
case="guardian killed while the disks are held"
begin "source migrate-continue" --at source:migrate-continue:hang
kill_guardian 6
did "source migrate_cancel finish-migrate open+open"
ended running dead open
idle
case="coordinator killed at cont"
begin "dest cont" --at dest:cont:mute-once -- \
    --after-commit-exec 'echo "$NBDMIRROR_EVENT" >'"$tmp/hook"
kill_coordinator 0 migrated
[ "$(cat "$tmp/hook")" = after-commit ] || fail "$case: no hook"
ended postmigrate running fenced
back_home
case="guardian killed at cont"
begin "dest cont" --at dest:cont:slow
kill_guardian 0
ended postmigrate running fenced
back_home
case="coordinator killed while it takes a hand-over back"
begin "source cont" --at dest:cont:refuse --at source:cont:mute-once
kill_coordinator 1 rolled-back
ended running dead open
idle idle
case="coordinator killed, and the destination cannot be started"
begin "dest cont" --at dest:cont:mute-then-refuse
kill_coordinator 1 rolled-back
ended running dead open
idle idle
case="coordinator killed, and the destination dies when it is told to start"
begin "dest cont" --at dest:cont:mute-then-die
kill_coordinator 1 rolled-back
did "source cont postmigrate open+open"
ended running dead open
case="coordinator killed when the guest has started, which then loses its disk"
rm -f "$tmp/migrate.log"
plain=$both
start_receive receive "$tmp/received.img" --size $size
both="--disk ${control[a]}=${uri[receive]} --disk ${control[b]}=${uri[to-b]}"
begin "dest cont" --at dest:cont:done-mute-once
sigstop "${pid[migrate]}" # so that it finds these servers gone
kill -KILL "$coordinator" "${pid[receive]}" "$(child_of receive nbdkit)" "${pid[b]}"
wait_for 10 gone "$coordinator"
wait_exit receive 10
wait_exit b 10
rm -f "$tmp/b.control.fence" # there is something left to do: the hand-over is not recorded by all
start_server b "$tmp/b.disk"
kill -CONT "${pid[migrate]}"
wait_for 30 grep -q 'once more in' "$tmp/migrate.log"
kill -USR1 "${pid[qemus]}"
has_ended 1 unresolved
did_not "source cont"
did_not "dest quit"
stop qemus
nbdmirror rollback "${control[a]}" --token "$(status_of "${control[a]}" rollback-token)" \
  --destination-stopped
rm -f "$tmp/qemus.ready"
both=$plain
case="coordinator stopped while the disks are held"
begin "source migrate-continue" --at source:migrate-continue:hang -- --switchover-timeout 2s
sigstop "$coordinator"
has_ended 1 rolled-back
ended running dead open
idle
case="a signal for both, as systemd sends it"
begin "source migrate-continue" --at source:migrate-continue:hang
kill -TERM "$coordinator" "${pid[migrate]}"
has_ended 6 rolled-back
! grep -q '"event":"guardian"' "$tmp/log" || fail "$case: the coordinator was killed by it"
ended running dead open
idle
case="a signal twice at once, as timeout sends it to a process and its group"
taken () { # no signal waits for it any more
  ! grep -qE '^(SigPnd|ShdPnd):.*[1-9a-f]' "/proc/${pid[migrate]}/status"
}
begin "source migrate-continue" --at source:migrate-continue:hang --at source:migrate_cancel:slow
kill -TERM "${pid[migrate]}"
wait_for 10 taken
kill -TERM "${pid[migrate]}"
has_ended 6 rolled-back
! grep -q '"event":"guardian"' "$tmp/log" || fail "$case: the coordinator was killed by it"
ended running dead open
idle
case="a second signal"
begin "source migrate-continue" --at source:migrate-continue:hang \
    --at source:migrate_cancel:mute-once
kill -INT "${pid[migrate]}"
wait_for 20 grep -q "^source migrate_cancel" "$tmp/story"
sleep 0.6
kill -INT "${pid[migrate]}"
has_ended 6 rolled-back
grep -q '"event":"guardian"' "$tmp/log" || fail "$case: the coordinator lives on"
ended running dead open
idle
case="coordinator killed, and impatient users"
begin "source migrate-continue" --at source:migrate-continue:hang
sigstop "${pid[migrate]}" # so that all of them are there when it looks
kill -KILL "$coordinator"
wait_for 10 gone "$coordinator"
kill -INT "${pid[migrate]}"
kill -TERM "${pid[migrate]}"
kill -CONT "${pid[migrate]}"
has_ended 6 rolled-back
ended running dead open
idle

# Both: --recover ends it.
recover () { # STATUS
  # shellcheck disable=SC2086
  has_to_exit "$1" nbdmirror migrate --recover --source-qmp "$tmp/source.qmp" --dest-qmp \
      "$tmp/dest.qmp" $both --report "$tmp/report"
}
killed () { # as begin
  begin "$@"
  sigstop "${pid[migrate]}"
  kill -KILL "$coordinator" "${pid[migrate]}"
  wait_exit migrate 10
}
end_mirrors () {
  local d
  for d in a b; do nbdmirror cancel "${control[$d]}" >"$tmp/cancel.log" 2>&1 || :; done
}
case="both killed while the memory is sent"
killed "source migrate" --at source:migrate:hang
recover 0
ended running dead open
end_mirrors
case="both killed while the disks are held"
killed "source migrate-continue" --at source:migrate-continue:hang
recover 0
did "source migrate_cancel finish-migrate open+open"
ended running dead open
end_mirrors
case="both killed at cont"
killed "dest cont" --at dest:cont:mute-once
recover 0
ended postmigrate running fenced
back_home
case="one disk was handed over alone, and the guest runs here with the other"
nbdmirror mirror "${control[a]}" "${uri[to-a]}" --on-ready complete >"$tmp/alone.log" 2>&1
qemus --dest-status paused
recover 1
says "takes no part"
did_not "source stop"
[ "$(status_of "${control[b]}" gate)" = open ] || fail "$case: the other one is not the guest's"
nbdmirror rollback "${control[a]}" --token "$(status_of "${control[a]}" rollback-token)" \
  --destination-stopped
ended running paused open
case="two recoveries at the same time"
begin "source migrate-continue" --at source:migrate-continue:hang
kill -KILL "$coordinator"
# shellcheck disable=SC2086
nbdmirror migrate --recover --source-qmp "$tmp/source.qmp" --dest-qmp "$tmp/dest.qmp" $both \
    >"$tmp/recover.log" 2>&1 || :
has_ended 1 rolled-back
ended running dead open
end_mirrors
case="nothing to recover"
qemus
recover 0
says "nothing to do"
ended running inmigrate open
