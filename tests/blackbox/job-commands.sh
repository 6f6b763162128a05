#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves what users do to a running job: a limit holds, pause stops the copying, resume goes on,
# cancel cancels (also while paused, and from Ctrl-C), start-cancel-start works, a left-over job is
# refused until the user chooses, complete before ready is refused, and nothing of it disturbs the
# guest.
. "$(dirname "$0")/lib.sh"
measures_times
proves_nothing_under address
proves_nothing_under thread

random_disk "$tmp/disk" 64M
start_server src "$tmp/disk"
start_dest dst file 64M
c=${control[src]} d=${uri[dst]}
start_guest guest "${uri[src]}" --seconds 600

attached () { [ "$(status_of "$c" worker)" = attached ]; }

# Where no job is, all say the same.
for word in complete pause resume cancel set; do
  setting=()
  [ $word != set ] || setting=(bandwidth=1M)
  has_to_exit 1 nbdmirror $word "$c" "${setting[@]}"
  grep -q ": $c: no job is running on this disk$" "$tmp/err" ||
    fail "$word without a job: $(cat "$tmp/err")"
done

# The limit: 32 MiB of data at 4 MiB/s; in 3 s no more than 12 MiB and a little.
spawn worker nbdmirror mirror "$c" "$d" --bandwidth 4M
wait_state "$c" copying 10
sleep 3
sent=$(status_of "$c" sent-bytes)
[ "$sent" -le 16000000 ] || fail "sent $sent bytes in about 3 s at 4 MiB/s"
[ "$sent" -ge 4000000 ] || fail "sent only $sent bytes in 3 s at 4 MiB/s"
has_to_exit 1 nbdmirror complete "$c"
grep -q 'not ready' "$tmp/err" || fail "complete does not say why"
has_to_exit 7 nbdmirror mirror "$c" "$d"
has_to_exit 7 nbdmirror mirror "$c" "$d" --resume
has_to_exit 7 nbdmirror mirror "$c" "$d" --restart

has_to_exit 0 nbdmirror pause "$c"
wait_state "$c" paused 5
sleep 0.5
before=$(status_of "$c" sent-bytes)
sleep 1
[ "$(status_of "$c" sent-bytes)" = "$before" ] || fail "it copies while paused"
PYTHONPATH=$srcdir/tests/blackbox "$python" -B - "$c" <<'END' || fail "a limit is told late"
import sys
from filter_client import Client
client = Client(sys.argv[1])
for speed in 6 << 20, 7 << 20: # what comes after a rest is told at once in any case
    client.call("block-job-set-speed", device="mirror", speed=speed)
assert client.call("query-mirror")["bandwidth-limit"] == 7 << 20
client.call("mirror-set", **{"bandwidth-limit": 9 << 20})
assert client.call("query-mirror")["bandwidth-limit"] == 9 << 20
END
has_to_exit 0 nbdmirror set "$c" bandwidth=0 max-downtime=200ms
has_to_exit 0 nbdmirror resume "$c"
wait_state "$c" ready 20
[ "$(status_of "$c" max-downtime-ms)" = 200 ] || fail "max-downtime was not taken"

# SIGTERM: resumable, also if it comes several times at once, as from timeout(1).
"$python" - "${pid[worker]}" <<'END'
import os, signal, sys
try:
    for _ in range(100):
        os.kill(int(sys.argv[1]), signal.SIGTERM)
except ProcessLookupError:
    pass
END
stop worker TERM
[ "$status" = 3 ] || fail "SIGTERM: exit $status"
[ "$(status_of "$c" worker)" = detached ] || fail "still attached after SIGTERM"
has_to_exit 7 nbdmirror mirror "$c" "$d"
grep -q -- --resume "$tmp/err" && grep -q -- --restart "$tmp/err" ||
  fail "the two choices are not named"
spawn worker nbdmirror mirror "$c" "$d" --resume --bandwidth 2M
wait_for 10 attached

# Ctrl-C: cancelled.
stop worker INT
[ "$status" = 6 ] || fail "SIGINT: exit $status"
[ "$(status_of "$c" state)" = cancelled ] || fail "not cancelled: $(status_of "$c" state)"

# Nothing is left to resume, and nothing is made for it; with --restart as well it begins.
has_to_exit 7 nbdmirror mirror "$c" "$tmp/never" --resume
grep -q 'nothing to resume.*--restart' "$tmp/err" ||
  fail "--resume does not say that there is nothing"
[ ! -e "$tmp/never" ] || fail "--resume made a destination"
has_to_exit 7 nbdmirror mirror "$c" "$tmp/never" --resume --dry-run
spawn worker nbdmirror mirror "$c" "$d" --resume --restart --bandwidth 2M
wait_for 10 attached
stop worker TERM
sent=$(status_of "$c" sent-bytes)
: >"$tmp/worker.log"
spawn worker nbdmirror mirror "$c" "$d" --restart --resume --bandwidth 2M
wait_for 10 attached
[ "$(status_of "$c" sent-bytes)" -ge "$sent" ] || fail "--restart --resume has started over"
stop worker TERM

# Cancelled while the next worker is only starting: that one does not begin anew.
sigstop "${pid[dst]}"
spawn worker nbdmirror mirror "$c" "$d" --resume
sleep 0.5
has_to_exit 0 nbdmirror cancel "$c"
kill -CONT "${pid[dst]}"
wait_exit worker 10
[ "$status" = 7 ] || fail "cancelled while it starts: exit $status instead of 7"
grep -q 'nothing to resume' "$tmp/worker.log" ||
  fail "it does not say that there is nothing to resume"
[ "$(status_of "$c" state)" = cancelled ] || fail "not cancelled: $(status_of "$c" state)"

# start, cancel, start; cancel while paused; cancel without a worker.
spawn worker nbdmirror mirror "$c" "$d" --bandwidth 2M
wait_for 10 attached
has_to_exit 0 nbdmirror pause "$c"
has_to_exit 0 nbdmirror cancel "$c"
wait_exit worker 10
[ "$status" = 6 ] || fail "cancel: exit $status"
spawn worker nbdmirror mirror "$c" "$d" --bandwidth 2M
wait_for 10 attached
stop worker KILL
has_to_exit 0 nbdmirror cancel "$c"
[ "$(status_of "$c" state)" = cancelled ] || fail "not cancelled: $(status_of "$c" state)"
stop dst # where nbdkit has the abort bug it is gone already
start_dest dst file 64M
has_to_exit 0 nbdmirror mirror "$c" "$d" --detach
wait_state "$c" ready 20
complete_soon "$c"

# The guest has noticed nothing but the end, and the copy holds what it was told is written.
ends_well guest
[ "$(field fenced <"$tmp/guest.json")" = true ] ||
  fail "the guest was not fenced: $(cat "$tmp/guest.json")"
equal "$tmp/disk" "$d"
