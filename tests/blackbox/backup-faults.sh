#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves what a backup does where it cannot go on, and what it leaves: two backups of one disk at
# once, of two hosts, and the job of another are refused, even if nobody knows where that goes; one
# that has lost its lock fails; a disk's server that is killed costs that disk only; a worker that
# is stopped, and a repository that is full or read-only, make it fail, the repository stays as it
# was, and no job is left; a restore to a full disk says why in one line; a backup that was killed,
# even with the disk's server, does not block those into another repository; the command that thaws
# runs always.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd
proves_nothing_under thread
proves_nothing_under address
. "$srcdir/tests/blackbox/backup-lib.sh"
repo=$tmp/repo
two_disks

run 0 'a full' "$A" "$B" "$repo"
run 0 'a: incremental:' "$A" "$B" "$repo"

# ---- two at once, and jobs of others -------------------------------------------------------------
elsewhere=() there=$(uname -n) # as another host, where that can be played
if unshare --uts true 2>/dev/null; then
  there=other-host
  # shellcheck disable=SC2016
  elsewhere=(unshare --uts sh -c 'hostname other-host; exec "$@"' sh)
fi
spawn slow "${elsewhere[@]}" "$NBDMIRROR" backup "$A" "$repo" --full --bandwidth 256k
is_copying () { [ "$(status_of "$A" state)" = copying ]; }
wait_for 20 is_copying
for reader in "backup-list $repo" "backup-verify $repo" "restore $repo $tmp/read --disk a"; do
  # shellcheck disable=SC2086
  has_to_exit 0 nbdmirror $reader # no lock is in its way
done
is_copying || fail "this is about readers beside a writer"
run 7 "disk 'a' is being written to by process ${pid[slow]} on host $there" "$A" "$repo"
run 7 'another job is under way' "$A" "$tmp/other"
has_to_exit 1 nbdmirror backup-prune "$repo" --keep-last 1
[ ! -s "$tmp/out" ] || fail "a prune without its lock told what it did not do: $(cat "$tmp/out")"
run 0 'b full' "$B" "$repo"
kill -INT "${pid[slow]}"
wait_exit slow 20
[ $status = 6 ] || fail "exit status $status after SIGINT"
[ "$(tail -n 1 "$tmp/slow.log" | grep -c 'earlier backups are as they were')" = 1 ] ||
  fail "the last line does not tell what has become of it: $(cat "$tmp/slow.log")"
[ -z "$(find "$repo" -name '*.begun')" ] || fail "a cancelled backup has left its mark"
run 0 'a: incremental:' "$A" "$repo"
same a "$tmp/a"
# A file server gave the lock away, and another run has taken this one for dead.
run 3 'so its lock was lost' "$A" "$repo" --before-hold-exec "rm '$repo/backups/'*.begun"
run 0 'a: incremental:' "$A" "$repo"
same a "$tmp/a"

# ---- somebody's job whose destination cannot be told stays ---------------------------------------
spawn users "$NBDMIRROR" mirror "$A" "$tmp/name"$'\xff' --bandwidth 1M
wait_for 20 is_copying
kill -KILL "${pid[users]}"
wait_exit users 20
has_left_job () { [ "$(status_of "$A" state)/$(status_of "$A" target)" = "detached/null" ]; }
wait_for 20 has_left_job
run 7 'a job to another place is left over' "$A" "$repo"
has_left_job || fail "somebody's job was taken away"
nbdmirror cancel "$A" >/dev/null || fail "cancel"

# ---- a worker that is stopped (SIGSTOP) does not hold a backup for ever --------------------------
before=$(find "$repo" | sort)
spawn slow "$NBDMIRROR" backup "$A" "$repo" --full --bandwidth 1M
wait_for 20 is_copying
sigstop "$(status_of "$A" worker-pid)"
wait_exit slow 60
[ "$status" = 1 ] || fail "exit status $status after a worker was stopped: $(cat "$tmp/slow.log")"
grep -q 'its worker was stopped by a signal for 5 s' "$tmp/slow.log" ||
  fail "a stopped worker is not told: $(cat "$tmp/slow.log")"
[ "$before" = "$(find "$repo" | sort)" ] || fail "a stopped worker has left files"
[ "$(status_of "$A" state)" = cancelled ] || fail "its job was left"
run 0 'a: incremental:' "$A" "$repo"
same a "$tmp/a"

# ---- the server of one disk is killed, and the other disk has a backup ---------------------------
spawn slow "$NBDMIRROR" backup "$A" "$B" "$repo" --full --bandwidth 8M
wait_for 20 is_copying
stop a KILL
wait_exit slow 60
[ "$status" = 1 ] || fail "exit status $status after a server was killed: $(cat "$tmp/slow.log")"
name=$(basename "$(newest b manifest)" .json)
has_to_exit 0 nbdmirror backup-verify "$repo" # it is known, and nothing is damaged
grep -q "^$name a: it was not backed up: " "$tmp/out" || fail "not told: $(cat "$tmp/out")"
has_to_exit 5 nbdmirror backup-verify "$repo" --at "$name"
serve a "$tmp/a" --state "$tmp/a.state"
run 0 'a full' "$A" "$B" "$repo" --full
# The same at the instant itself, when all is copied, and before the guest is let go.
cat >"$tmp/kill.c" <<'END'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
ssize_t
sendmsg (int fd, const struct msghdr *m, int flags)
{
  const char word[] = "job-finalize";
  ssize_t (*real) (int, const struct msghdr *, int)
      = (ssize_t (*) (int, const struct msghdr *, int)) dlsym (RTLD_NEXT, "sendmsg");
  if (m->msg_iovlen > 0
      && memmem (m->msg_iov[0].iov_base, m->msg_iov[0].iov_len, word, sizeof word - 1) != NULL)
    kill (atoi (getenv ("VICTIM")), SIGKILL);
  return real (fd, m, flags);
}
END
cc=$(make_var CC)
# shellcheck disable=SC2086
$cc -shared -fPIC -o "$tmp/kill.so" "$tmp/kill.c" -ldl || fail "cannot compile"
status=0
env VICTIM="${pid[a]}" LD_PRELOAD="$tmp/kill.so" "$NBDMIRROR" backup "$A" "$B" "$repo" \
  >"$tmp/out" 2>&1 || status=$?
[ $status = 1 ] || fail "exit status $status after a server was killed: $(cat "$tmp/out")"
grep -q 'only 1 of 2 disks done, a FAILED, b full' "$tmp/out" || fail "$(cat "$tmp/out")"
same b "$tmp/b"
wait_exit a 20
serve a "$tmp/a" --state "$tmp/a.state"
run 0 'a: ' "$A" "$B" "$repo"
same a "$tmp/a"
[ -z "$(find "$repo" -name '*.begun')" ] || fail "a mark was left"

# ---- a repository that is full, and one that is read-only ----------------------------------------
if mkdir "$tmp/small" && mount -t tmpfs -o size=7m none "$tmp/small" 2>/dev/null; then
  end_small () { umount -l "$tmp/small"; }
  at_exit end_small
  run 0 'a full' "$A" "$tmp/small"
  before=$(sha256sum "$tmp/small"/a/*.qcow2)
  run 3 'a: ' "$A" "$tmp/small" --full
  [ "$before" = "$(sha256sum "$tmp/small"/a/*.qcow2)" ] || fail "a full repository was changed"
  [ -z "$(find "$tmp/small" -name '*.begun')" ] || fail "a mark was left though nothing else was"
  case $(status_of "$A" state) in
    failed | detached) fail "a job is left at the disk's server" ;;
  esac
  run 0 'a: incremental:' "$A" "$repo"
  has_to_exit 3 nbdmirror restore "$repo" "$tmp/small/disk" --disk a # one reason, and no others
  [ "$(grep -v '^copying' "$tmp/err" | sed 's/.*No space left.*/full/')" = full ] ||
    fail "a restore to a full disk: $(cat "$tmp/err")"
  mount -o remount,ro "$tmp/small"
  run 3 'Read-only file system' "$A" "$tmp/small"
else
  note "no file system can be mounted: a full and a read-only repository are not tested"
fi

# Not even the new file can be made.
(
  trap '' XFSZ
  ulimit -f 1
  run 3 'File too large' "$A" "$repo" --full
)

# ---- the commands around the instant -------------------------------------------------------------
hooks=(--before-hold-exec "echo before >>'$tmp/hooks'" --after-release-exec
  "echo after >>'$tmp/hooks'")
run 0 'guest frozen' "$A" "$repo" "${hooks[@]}"
[ "$(tr '\n' ' ' <"$tmp/hooks")" = "before after " ] || fail "hooks: $(cat "$tmp/hooks")"
run 0 'guest NOT frozen, crash-consistent' "$A" "$repo" --before-hold-exec false
"$python" - "$(newest a manifest)" <<'END' || fail "hooks: $(cat "$(newest a manifest)")"
import json, sys
hook, = json.load(open(sys.argv[1]))["hooks"]
assert (hook["event"], hook["command"]) == ("before-hold", "false") and "status 1" in hook["error"]
END
: >"$tmp/hooks"
# shellcheck disable=SC2016
kill_thaw='for p in $(pgrep -P $PPID); do case $(readlink /proc/$p/fd/3) in pipe:*)
  [ -e /proc/$p/fd/4 ] || kill -KILL $p ;; esac; done'
run 0 'was killed by signal 9' "$A" "$repo" --before-hold-exec "$kill_thaw" "${hooks[@]:2}"
[ "$(cat "$tmp/hooks")" = after ] || fail "nobody thawed: $(cat "$tmp/hooks")"
before=$(find "$repo" -name '*.json' -o -name '*.qcow2' | sort)
: >"$tmp/hooks"
run 4 'the guest was not frozen' "$A" "$repo" --require-frozen \
  --before-hold-exec false "${hooks[@]:2}"
[ "$(cat "$tmp/hooks")" = after ] || fail "not thawed: $(cat "$tmp/hooks")"
run 4 'thawed too early' "$A" "$repo" --require-frozen --before-hold-exec true \
  --after-release-exec false
[ "$before" = "$(find "$repo" -name '*.json' -o -name '*.qcow2' | sort)" ] || fail "files are left"
run 2 'goes with --before-hold-exec' "$A" "$repo" --require-frozen
run 0 'a: incremental:' "$A" "$repo" --require-frozen "${hooks[@]}"
same a "$tmp/a"
: >"$tmp/hooks"
run 0 'not done within 200 ms' "$A" "$repo" --before-hold-exec 'sleep 20' --hook-limit 200ms \
  "${hooks[@]:2}"
[ "$(sort -u "$tmp/hooks")" = after ] || fail "not thawed after a command that hung"
# Nothing froze it, so that it failed is told, and not that the limit was reached before it ran.
run 0 'after-release-exec: ' "$A" "$repo" --hook-limit 1ms --after-release-exec false
grep -q 'after-release-exec: the command failed$' "$tmp/out" || fail "told: $(cat "$tmp/out")"
# What freezes the guest ends when the limit has come and gone, and the guest was thawed.
freeze_late="kill -STOP \$PPID; n=0
  until [ -s '$tmp/hooks' ] || [ \$n = 400 ]; do sleep 0.05; n=\$((n + 1)); done
  touch '$tmp/frozen'; kill -CONT \$PPID"
thaw="rm -f '$tmp/frozen'; echo after >>'$tmp/hooks'"
: >"$tmp/hooks"
run 0 'and again at the end' "$A" "$repo" --before-hold-exec "$freeze_late" --hook-limit 1s \
  --after-release-exec "$thaw"
[ ! -e "$tmp/frozen" ] || fail "frozen after the limit, and not thawed"
# The same where the backup is killed meanwhile.
: >"$tmp/hooks"
spawn killed "$NBDMIRROR" backup "$A" "$repo" --after-release-exec "$thaw" --before-hold-exec \
  "echo before >>'$tmp/hooks'; until [ -e '$tmp/go' ] || [ ! -d '$tmp' ]; do sleep 0.05; done
  touch '$tmp/frozen' '$tmp/was-frozen'"
wait_for 20 grep -q before "$tmp/hooks"
kill -KILL "${pid[killed]}"
wait_exit killed 20
touch "$tmp/go"
wait_for 20 test -e "$tmp/was-frozen"
wait_for 20 grep -q after "$tmp/hooks"
wait_for 20 test ! -e "$tmp/frozen"
is_detached () { [ "$(status_of "$A" worker)" != attached ]; } # its worker ends by itself
wait_for 20 is_detached
run 0 'a full' "$A" "$tmp/other"
run 0 'what it has left was removed' "$A" "$repo"
same a "$tmp/a"

# ---- a backup and the disk's server are killed, and the next one goes elsewhere ------------------
spawn killed "$NBDMIRROR" backup "$A" "$repo" --full --bandwidth 1M
wait_for 20 is_copying
folder=$(readlink "/proc/${pid[killed]}"/fd/* | grep -x '/tmp/nbdmirror-backup-......') || :
[ -n "$folder" ] || fail "it has no folder in /tmp"
kill -KILL "${pid[killed]}" "${pid[a]}"
wait_exit killed 20
wait_exit a 20
# From now on a `backup` of another test may remove the folder.
ln -s "$tmp/a" "$folder/7.log" || :
worker_ended () { [ ! -e "$folder" ] || flock -n "$folder/." true; }
wait_for 20 worker_ended
serve a "$tmp/a" --state "$tmp/a.state"
if [ "$(status_of "$A" target)" = null ]; then # killed before the target was in the state file
  run 7 'a job to another place is left over' "$A" "$tmp/other"
else
  run 0 'a: incremental:' "$A" "$tmp/other"
fi
run 0 'what it has left was removed' "$A" "$repo"
# The one that is refused begins nothing, and so does not look there.
[ ! -e "$folder" ] || fail "what the killed one had in /tmp is still there"
[ -s "$tmp/a" ] || fail "the disk was removed"
same a "$tmp/a"
