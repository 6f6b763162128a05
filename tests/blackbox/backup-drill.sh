#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A restore drill.  A disk that is served is a real disk of this kernel (nbdfuse, loop), with ext4
# and an SQLite database that commits all the time.  It is backed up again and again, with kills in
# between, and pruned.  Then every backup is restored and mounted: the database must be sound, have
# every transaction that was acknowledged before the backup began, and no gap.  BACKUPS backups (4);
# with NBDMIRROR_LONG 60.
[ "${NBDMIRROR_LONG:-0}" = 0 ] || TEST_TIMEOUT=3600
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread
proves_nothing_under address
need qemu-img qemu-nbd nbdfuse losetup mkfs.ext4
[ "$(id -u)" = 0 ] || skip "only root can mount"
"$python" -c 'import sqlite3' 2>/dev/null || skip "there is no SQLite for $python"
{ [ -e /dev/fuse ] && losetup -f >/dev/null 2>&1; } || skip "there is no FUSE, or no loop device"
unshare --mount true 2>/dev/null || skip "this environment does not allow mounts"

backups=${BACKUPS:-4}
[ "${NBDMIRROR_LONG:-0}" = 0 ] || backups=60
loop=
detach () {
  ! mountpoint -q "$tmp/fs" || umount -l "$tmp/fs" || :
  [ -z "$loop" ] || losetup -d "$loop" || :
  ! mountpoint -q "$tmp/fuse" || umount -l "$tmp/fuse" || :
  umount -l "$tmp/look" 2>/dev/null || :
}
at_exit detach
mkdir "$tmp/fs" "$tmp/fuse"

# ---- the guest ----

truncate -s 192M "$tmp/disk"
start_server src "$tmp/disk" --state "$tmp/state"
spawn fuse nbdfuse "$tmp/fuse/disk" "${uri[src]}"
wait_for 10 test -e "$tmp/fuse/disk"
loop=$(losetup -f --show "$tmp/fuse/disk") || skip "no loop device can be made"
mkfs.ext4 -q "$loop"
mount "$loop" "$tmp/fs" || skip "ext4 cannot be mounted"

cat >"$tmp/guest.py" <<'PY'
"""Commit transactions one after the other, and note each one that is acknowledged."""
import os, sqlite3, sys
path, acknowledged = sys.argv[1:]
db = sqlite3.connect(path)
db.execute("PRAGMA synchronous = FULL")
db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)")
db.commit()
number = 0
with open(acknowledged, "w", buffering=1) as notes:
    while True:
        number += 1
        db.execute("INSERT INTO t VALUES (?, ?)", (number, os.urandom(3000)))
        if number > 200:  # what is deleted and trimmed is a change as well
            db.execute("UPDATE t SET data = NULL WHERE id = ?", (number - 200,))
        db.commit()
        notes.write(f"{number}\n")
PY
spawn guest "$python" "$tmp/guest.py" "$tmp/fs/db" "$tmp/acknowledged"
wait_for 20 test -s "$tmp/acknowledged"

# ---- backups, some of which are killed ----

declare -A before=()
names=() # in their order, which is not that of the names within a second
made=0
killed=0
after_kill=0 # a worker that was about to attach then refuses the next backup
while [ $made -lt "$backups" ]; do
  acknowledged=$(tail -n 1 "$tmp/acknowledged")
  rm -f "$tmp/report"
  spawn backup nbdmirror backup "${control[src]}" "$tmp/repo" --report "$tmp/report" \
    --max-downtime 1s
  if [ $((RANDOM % 2)) = 0 ] && [ $killed -lt $((backups * 2)) ]; then
    sleep "0.$(printf %03d $((RANDOM % 900)))"
    kill -KILL "${pid[backup]}" 2>/dev/null || :
    wait "${pid[backup]}" 2>/dev/null || :
    unset "pid[backup]"
    killed=$((killed + 1))
    after_kill=1
    [ -s "$tmp/report" ] || continue
  else
    wait_exit backup 60
    if [ "$status" != 0 ]; then
      [ $after_kill = 1 ] || fail "backup ended with $status"
      after_kill=0
      continue
    fi
    after_kill=0
  fi
  names+=("$(field name <"$tmp/report")")
  before[${names[-1]}]=$acknowledged
  made=$((made + 1))
  running guest || fail "the guest has failed: $(cat "$tmp/guest.log")"
done
stop guest KILL
note "$made backups and $killed kills beside $(tail -n 1 "$tmp/acknowledged") transactions"
umount "$tmp/fs"
losetup -d "$loop"
loop=
umount "$tmp/fuse"
stop fuse
stop src

# ---- the drill ----

# database FOLDER NAME: it is sound, and has what was acknowledged before the backup began.
database () {
  "$python" - "$1/db" "${before[$2]}" <<'PY' || fail "$2: its database is damaged"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
count, last = db.execute("SELECT count(*), max(id) FROM t").fetchone()
assert count == last >= int(sys.argv[2]), (count, last, sys.argv[2])
PY
}
# drill NAME: restore the backup, start its file system, and look at its database.
drill () {
  local at
  rm -f "$tmp/restored"
  nbdmirror restore "$tmp/repo" "$tmp/restored" --at "$1" 2>"$tmp/err" ||
    fail "restore of $1: $? $(cat "$tmp/err")"
  at=$(losetup -f --show "$tmp/restored")
  loop=$at
  mount "$at" "$tmp/fs" || fail "$1: its file system cannot be mounted"
  database "$tmp/fs" "$1"
  umount "$tmp/fs"
  losetup -d "$at"
  loop=
  e2fsck -fn "$tmp/restored" >"$tmp/fsck" 2>&1 || fail "$1: $(cat "$tmp/fsck")"
}
has_to_exit 0 nbdmirror backup-verify "$tmp/repo"
for name in "${names[@]}"; do drill "$name"; done

# ---- files out of a backup, by the manual's recipe: a disk that was in use, without partitions ---
mapfile -t recipe < <(
  awk '/^=head2 nbdmirror serve-backup/ { on = 1 } on && /^    / { print; seen = 1 }
    on && seen && !/^    / { exit }' "$srcdir/docs/nbdmirror.pod" |
    sed "s|nbdmirror|exec '$NBDMIRROR'|; s|nbdfuse|exec nbdfuse|; s|/srv/backup|$tmp/repo|
      s|/run/backup|$tmp/look|g; s|,offset=1048576||; s|/mnt|$tmp/fs|; s|&\$||"
)
[ ${#recipe[@]} = 4 ] || fail "the recipe has other lines: ${recipe[*]}"
spawn look bash -c "${recipe[0]}"
wait_for 20 grep -q '^nbd+unix' "$tmp/look.log"
eval "${recipe[1]}"
spawn look-fuse bash -c "${recipe[2]}"
wait_for 10 test -e "$tmp/look/disk"
eval "${recipe[3]}" || fail "the recipe's mount"
mkdir "$tmp/taken"
cp "$tmp/fs/"db* "$tmp/taken"
umount "$tmp/fs"
umount "$tmp/look"
stop look-fuse
stop look
database "$tmp/taken" "${names[-1]}"

has_to_exit 0 nbdmirror backup-prune "$tmp/repo" --keep-last 2
for name in "${names[@]: -2}"; do drill "$name"; done
