#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a hand-off may be taken apart into several processes: what `complete --prepare-only`
# holds stays held after it has ended, and is handed over or released by another process, all disks
# or none: also when the lease ends first, when a disk drops out, when a server was killed
# meanwhile; and that a coordinator killed after its decision is finished by running `complete`
# again.
. "$(dirname "$0")/lib.sh"
. "$srcdir/tests/blackbox/return-lib.sh"

disks="a b"
controls=()
for d in $disks; do
  random_disk "$tmp/$d.disk" 8M
  start_server "$d" "$tmp/$d.disk"
  start_dest "to-$d" file 8M
  controls+=("${control[$d]}")
  spawn "mirror-$d" nbdmirror mirror "${control[$d]}" "${uri[to-$d]}"
done
all_ready () { local d; for d in $disks; do wait_state "${control[$d]}" ready 30; done; }
gates () {
  local d
  for d in $disks; do [ "$(status_of "${control[$d]}" gate)" = "$1" ] || return; done
}
cat >"$tmp/write.py" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(h.pread(512, 0), 0)
h.shutdown()
PY
writes () { spawn "write-$1" "$python" "$tmp/write.py" "${uri[$1]}"; }
write_ends () {
  wait_exit "write-$1" 10
  [ "$status" = "$2" ] || fail "$3: the guest's write ended with $status"
}
prepare () { # the job is not ready for a moment after it was released
  wait_for 20 nbdmirror complete --prepare-only --json "${controls[@]}" "$@"
  gates held || fail "not every disk is held"
}

# Held after the command has ended, and released by another.
all_ready
prepare
writes a
sleep 0.5
running write-a || fail "a guest wrote though its disk is held"
has_to_exit 1 nbdmirror complete --commit --token wrong "${controls[@]}"
grep -q 'another token' "$tmp/err" || fail "wrong token: no reason"
gates held || fail "a wrong token changed something"
has_to_exit 1 nbdmirror complete "${controls[@]}"
grep -q -- '--release' "$tmp/err" || fail "it is not said how to go on"
has_to_exit 0 nbdmirror complete --release "${controls[@]}" \
    --on-abort-exec 'echo "$NBDMIRROR_EVENT $NBDMIRROR_REASON" >"$NBDMIRROR_CONTROL.hook"'
gates open || fail "not every disk was released"
write_ends a 0 "after the release"
[ "$(cat "${control[a]}.hook")" = "abort released" ] || fail "the hook did not run as it should"
has_to_exit 0 nbdmirror complete --release "${controls[@]}"

# The lease ends: all are released, and nothing can be committed any more.
wait_for 20 nbdmirror complete --prepare-only "${controls[@]}" --lease 400ms --rollback-token t2
wait_for 5 gates open
has_to_exit 1 nbdmirror complete --commit --token t2 --json "${controls[@]}"
grep -q 'no hand-over' "$tmp/err" || fail "lease ended: no reason"
field error <"$tmp/out" | grep -q 'no hand-over' || fail "lease ended: no reason as JSON"

# One disk drops out: the other one is released as well, long before the lease ends, and nobody has
# to help.
prepare --rollback-token t3
stop mirror-b KILL
wait_for 10 gates open
has_to_exit 1 nbdmirror complete --commit --token t3 "${controls[@]}"
spawn mirror-b nbdmirror mirror --resume "${control[b]}" "${uri[to-b]}"
all_ready

# A server is killed while prepared: its successor is in doubt. The other disk's filter notices
# nothing.
prepare --rollback-token t4
stop b KILL
start_server b "$tmp/b.disk"
[ "$(status_of "${control[b]}" gate)" = fenced ] || fail "in doubt, and not fenced"
mv "${control[b]}.fence.draft" "$tmp/draft"
mkdir "${control[b]}.fence.draft" # it cannot be removed
has_to_exit 1 nbdmirror complete --release "${controls[@]}" --on-abort-exec "touch '$tmp/aborted'"
grep -q "cannot remove the fence record.*guest cannot write" "$tmp/err" || fail "no reason is told"
[ ! -e "$tmp/aborted" ] || fail "the hook ran, and a guest is kept from writing"
[ "$(status_of "${control[b]}" gate)" = fenced ] || fail "not released, and not fenced"
rmdir "${control[b]}.fence.draft"
mv "$tmp/draft" "${control[b]}.fence.draft"
has_to_exit 0 nbdmirror complete --release "${controls[@]}"
[ ! -e "${control[b]}.fence.draft" ] || fail "released, and the record is left"
gates open || fail "not released though in doubt"
stop mirror-b KILL
spawn mirror-b nbdmirror mirror "${control[b]}" "${uri[to-b]}" --restart
all_ready

# A hook that fails: nothing is held.
hook_fails () {
  status=0
  nbdmirror complete "${controls[@]}" --before-hold-exec 'exit 3' 2>"$tmp/err" || status=$?
  grep -q 'before-hold-exec: .*status 3' \
      "$tmp/err" # else not ready: it comes and goes on a busy machine
}
wait_for 20 hook_fails
[ "$status" = 1 ] || fail "a failing hook: exit status $status"
has_to_exit 1 nbdmirror complete "${controls[@]}" --before-hold-exec 'exit 3' --prepare-only --json
[ "$(field prepared <"$tmp/out")" = false ] || fail "a failing hook: no JSON"
gates open || fail "held in spite of the hook"

# Prepared, a server killed, then committed: by its own process and for both.
prepare --rollback-token t5
stop b KILL
start_server b "$tmp/b.disk"
has_to_exit 0 nbdmirror complete --commit --token t5 "${controls[@]}" --json \
    --after-commit-exec \
    'printf "%s\n" $NBDMIRROR_TOKEN "$NBDMIRROR_CONTROLS" >"$NBDMIRROR_CONTROL.hook"'
[ "$(field committed <"$tmp/out")" = true ] || fail "JSON does not say committed"
printf '%s\n' t5 "${controls[@]}" | cmp - "${control[a]}.hook" || fail "the hook got something else"
gates fenced || fail "committed, and not every disk is fenced"
for d in $disks; do
  equal "$tmp/$d.disk" "${uri[to-$d]}"
  writes $d
  write_ends $d 1 "after the commit"
done
has_to_exit 7 nbdmirror complete --release "${controls[@]}"
gates fenced || fail "release opened what was handed over"
has_to_exit 0 nbdmirror complete --commit --token t5 "${controls[@]}"
stop mirror-b KILL
wait_exit mirror-a 10

# A disk in doubt beside one that is committed: running complete again finishes it.
mv "${control[b]}.fence" "${control[b]}.fence.draft"
stop b KILL
start_server b "$tmp/b.disk"
has_to_exit 0 nbdmirror complete "${controls[@]}"
[ -e "${control[b]}.fence" ] && [ ! -e "${control[b]}.fence.draft" ] ||
    fail "the hand-off was not finished"
has_to_exit 1 nbdmirror complete "${controls[@]}"
grep -q 'already, rollback token t5' "$tmp/err" || fail "twice: no reason"

# One disk is taken back and mirrored anew, and its guest runs.  It has no part in the hand-off of
# the other: both together are refused, and nothing is touched.
nbdmirror rollback "${control[a]}" --token t5 --destination-stopped
spawn mirror-a nbdmirror mirror "${control[a]}" "${uri[to-a]}"
wait_state "${control[a]}" ready 30
for how in "" "--commit --token t5" --release; do
  # shellcheck disable=SC2086
  has_to_exit 7 nbdmirror complete "${controls[@]}" $how --json \
      --after-commit-exec 'touch "$NBDMIRROR_CONTROL.ran"'
  grep -q "${control[a]} takes no part in the hand-over of ${control[b]}" "$tmp/err" ||
      fail "mixed, '$how': no reason: $(cat "$tmp/err")"
  [ "$(field committed <"$tmp/out")" = false ] || fail "mixed, '$how': JSON says committed"
  [ ! -e "${control[a]}.ran" ] || fail "mixed, '$how': the hook that starts the guest ran"
  [ "$(status_of "${control[a]}" gate)" = open ] || fail "mixed, '$how': a running guest is held"
done
complete_soon "${control[a]}"
ends_well mirror-a
equal "$tmp/a.disk" "${uri[to-a]}"

# Beside it a disk that QEMU has open by itself: its worker has ended, as it does after the commit.
token=$(sed -n 's/^rollback token: //p' "$tmp/complete.log")
has_to_exit 0 nbdmirror complete --commit --token "$token" "${control[a]}" "qmp:$tmp/monitor/disk"

# A disk that had been received here, with a state file.  A server in doubt that is told of the
# commit ends its job and removes the seal, as one that sees it does.  But the disk does not stand
# at the checkpoint that the destination has begun: the host may have lost writes of the guest's.
disks=s
random_disk "$tmp/s.disk" 8M
serve () { start_stateful s "$tmp/s.disk" "$tmp/s.state"; }
nr_jobs () {
  "$python" -B -c 'import sys
sys.path.insert(0, sys.argv[1])
from filter_client import Client
print(len(Client(sys.argv[2]).call("query-block-jobs")))' "$srcdir/tests/blackbox" "${control[s]}"
}
seal () {
  "$python" -c 'import os, sys; os.setxattr(sys.argv[1], "user.nbdmirror.sealed", b"1")' \
    "$tmp/s.disk"
}
is_sealed () {
  "$python" -c 'import os, sys; os.getxattr(sys.argv[1], "user.nbdmirror.sealed")' "$tmp/s.disk" \
    2>"$tmp/err"
}
is_unsealed () { ! is_sealed; }
changed () { nbdmirror checkpoint list "${control[s]}" --json | field changed-bytes; }
serve
controls=("${control[s]}")
receive to-s "$tmp/to-s.img" --size 8M
has_to_exit 0 nbdmirror verify "$tmp/s.disk" "${uri[s]}" # the server learns the disk's size
nbdmirror checkpoint add "${control[s]}" one
[ "$(changed)" = 0 ] || fail "it is not known what was changed"
spawn mirror-s nbdmirror mirror "${control[s]}" "${uri[to-s]}"
all_ready
noted () { grep -aq '"return-checkpoint": *"' "$tmp/s.state"; }
wait_for 20 noted
prepare --rollback-token t6
# What takes long has to wait: the guest does.
[ "$(changed)" = null ] || fail "changes were counted while a guest was held"
for what in "checkpoint add ${control[s]} two" "checkpoint remove ${control[s]} one" \
    "dirty-map ${control[s]}" "dirty-map ${control[s]} --since one"; do
  # shellcheck disable=SC2086
  has_to_exit 1 nbdmirror $what
  grep -q "a hand-over is under way" "$tmp/err" || fail "$what: no reason: $(cat "$tmp/err")"
done
stop s KILL
stop mirror-s KILL
sealed=true
seal 2>"$tmp/err" || sealed=false # there are no attributes here
serve
[ "$(nr_jobs)" = 1 ] || fail "in doubt: the job is not left over"
[ $sealed = false ] || is_sealed || fail "in doubt: the seal was removed"
has_to_exit 0 nbdmirror complete --commit --token t6 "${control[s]}"
[ "$(nr_jobs)" = 0 ] || fail "the job is left over after the commit"
wait_for 10 is_unsealed
stop s # which waits until its file says what it is to say
"$python" -c 'import os, sys; os.getxattr(sys.argv[1], "user.nbdmirror.checkpoint")' "$tmp/s.disk" \
  2>"$tmp/err" && fail "a disk that was in doubt stands at a checkpoint"
serve
[ "$(nr_jobs)" = 0 ] || fail "the job is left over after one more start"
