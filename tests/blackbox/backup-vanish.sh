#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves what a backup does whose repository does not answer any more, as on a file server that has
# gone: the guest goes on, a run that is cancelled says why it cannot end and ends, one that waits
# is completed when the server is there again, and one whose server is lost fails.  Every earlier
# backup stays as it was.  The repository is on ext4, on a disk whose server is stopped.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd nbdfuse losetup mkfs.ext4 nbdkit
proves_nothing_under thread
proves_nothing_under address
[ "$(id -u)" = 0 ] || skip "only root can mount"
{ [ -e /dev/fuse ] && losetup -f >/dev/null 2>&1; } || skip "there is no FUSE, or no loop device"
unshare --mount true 2>/dev/null || skip "this environment does not allow mounts"
. "$srcdir/tests/blackbox/backup-lib.sh"
repo=$tmp/fs/repo
loop=
detach () { # what waits for the server can end only now
  kill -CONT "${pid[store]:-0}" 2>/dev/null || :
  umount -l "$tmp/fs" 2>/dev/null || :
  [ -z "$loop" ] || losetup -d "$loop" || :
  umount -l "$tmp/fuse" 2>/dev/null || : # mountpoint(1) fails where the server is gone
}
at_exit detach
mkdir "$tmp/fs" "$tmp/fuse"
truncate -s 100M "$tmp/store"
spawn store nbdkit -f -U "$tmp/store.sock" file "$tmp/store"
wait_for_socket "$tmp/store.sock" store
spawn fuse nbdfuse "$tmp/fuse/disk" "nbd+unix:///?socket=$tmp/store.sock"
wait_for 10 test -e "$tmp/fuse/disk"
loop=$(losetup -f --show "$tmp/fuse/disk") || skip "no loop device can be made"
mkfs.ext4 -q "$loop"
mount "$loop" "$tmp/fs" || skip "ext4 cannot be mounted"
random_disk "$tmp/a" 8M
serve a "$tmp/a" --state "$tmp/a.state"
A=${control[a]}
run 0 'a full' "$A" "$repo"
cp "$(newest a)" "$tmp/first.qcow2"
put () { qemu-io -f raw -c "write -q -P $1 ${1}00k 4k" "${uri[a]}"; }
# hangs NAME: it waits for its repository, in a way that no signal ends.
hangs () { grep -q '^State:[[:space:]]*D' "/proc/${pid[$1]}/status"; }

# ---- the server stops, and goes on ---------------------------------------------------------------
put 1
sigstop "${pid[store]}"
spawn cancelled "$NBDMIRROR" backup "$A" "$repo"
wait_for 20 hangs cancelled
put 2
kill -INT "${pid[cancelled]}"
wait_for 30 grep -q 'repo does not answer, so this ends here: the guest goes on' \
  "$tmp/cancelled.log"
kill -CONT "${pid[store]}"
wait_exit cancelled 20
[ "$status" = 6 ] || fail "exit status $status after SIGINT: $(cat "$tmp/cancelled.log")"
put 3
sigstop "${pid[store]}"
spawn waiting "$NBDMIRROR" backup "$A" "$repo"
wait_for 20 hangs waiting
put 4
kill -CONT "${pid[store]}"
ends_well waiting 60
same a "$tmp/a"
[ "$(newest a kind)" = incremental ] || fail "it is $(newest a kind): $(newest a reason)"
cmp "$tmp/first.qcow2" "$(find "$repo/a" -name '*-full.qcow2')" || fail "an earlier file differs"
has_to_exit 0 nbdmirror backup-verify "$repo"

# ---- the server is lost --------------------------------------------------------------------------
put 5
sigstop "${pid[store]}"
spawn lost "$NBDMIRROR" backup "$A" "$repo"
wait_for 20 hangs lost
stop store KILL
wait_exit lost 60
[ "$status" = 3 ] || fail "exit status $status after the server was lost: $(cat "$tmp/lost.log")"
grep -q "repo.*: \(Input/output error\|Read-only file system\)" "$tmp/lost.log" ||
  fail "it is not said why: $(cat "$tmp/lost.log")"
put 6
repo=$tmp/other
run 0 'a full' "$A" "$repo"
same a "$tmp/a"
