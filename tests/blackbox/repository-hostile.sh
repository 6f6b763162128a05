#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a repository which somebody else has written leads nobody out of it: a file whose head
# names another file or a server, or that is a symbolic link, is found before QEMU opens it, by all
# that read or rewrite the chain.  And nobody who restores writes over a backup, and a throw-away
# overlay whose server was killed is removed by the next one.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd
proves_nothing_under thread
proves_nothing_under address

repo=$tmp/r
mapfile -t names < <("$python" "$srcdir/tests/blackbox/make-repository.py" "$NBDMIRROR" "$repo" \
  "$tmp/shadow" --size 1048576 --backups 3)
[ ${#names[@]} = 3 ] || fail "no repository was made"
middle=$repo/vda/${names[1]}-inc.qcow2
cp -a "$repo" "$tmp/good"
qemu-img create -q -f qcow2 "$tmp/outside.qcow2" 1M
# Its own sizes are those of the file: what is to be found is what the file says.
record () { # record FILE...
  "$python" - "$repo" "$@" <<'END'
import glob, json, os, sys
repo, files = sys.argv[1], sys.argv[2:]
for path in glob.glob(f"{repo}/backups/*.json"):
    m = json.load(open(path))
    for d in m["disks"]:
        if d["file"] in files:
            d["file-bytes"] = os.path.getsize(f"{repo}/{d['file']}")
    json.dump(m, open(path, "w"))
END
}
# refused WHAT: everything that would open the chain says WHAT, and opens nothing.
mkdir "$tmp/bin"
# shellcheck disable=SC2016
printf '#!/bin/sh\necho "$0 $*" >>%s\nexit 1\n' "$tmp/opened" >"$tmp/bin/qemu-nbd"
cp "$tmp/bin/qemu-nbd" "$tmp/bin/qemu-img"
chmod +x "$tmp/bin/"*
refused () {
  local words
  for words in "5 backup-verify $repo --at ${names[2]}" "1 restore $repo $tmp/none" \
    "1 serve-backup $repo --socket $tmp/s" "5 backup-merge $repo ${names[1]}" \
    "5 backup-prune $repo --keep-last 1"; do
    # shellcheck disable=SC2086
    PATH=$tmp/bin:$PATH has_to_exit ${words%% *} nbdmirror ${words#* }
    grep -hqF "$1" "$tmp/out" "$tmp/err" || fail "$words: $(cat "$tmp/out" "$tmp/err")"
    [ ! -e "$tmp/opened" ] || fail "$words has opened it: $(cat "$tmp/opened")"
  done
  nbdmirror backup-list "$repo" | grep -qF "$1" || fail "not listed"
  rm -rf "$repo"
  cp -a "$tmp/good" "$repo"
}

for backing in "$tmp/outside.qcow2" ../../outside.qcow2 nbd://127.0.0.1/x \
  'json:{"driver":"qcow2","file":{"driver":"file","filename":"/etc/passwd"}}' \
  "${names[0]}-full.qcow2/../x" ".${names[0]}-full.qcow2"; do
  qemu-img rebase -u -f qcow2 -F qcow2 -b "$backing" "$middle"
  refused 'which is no backup of this disk'
done
qemu-img rebase -u -f qcow2 -F raw -b "${names[0]}-full.qcow2" "$middle"
refused 'does not say that its backing file is a qcow2 file'
qemu-img rebase -u -f qcow2 -F qcow2 -b "${names[1]}-inc.qcow2" "$middle"
refused 'its backing files do not end'
# A file that no manifest names is looked at all the same.
planted=20200101T000000Z-full.qcow2
qemu-img create -q -f qcow2 -F qcow2 -b "$tmp/outside.qcow2" "$repo/vda/$planted"
qemu-img rebase -u -f qcow2 -F qcow2 -b "$planted" "$middle"
refused "vda/$planted names '$tmp/outside.qcow2'"
qemu-img create -q -f qcow2 -o "data_file=$tmp/data,data_file_raw=on" "$tmp/raw.qcow2" 1M
cp "$tmp/raw.qcow2" "$repo/vda/${names[0]}-full.qcow2"
record "vda/${names[0]}-full.qcow2"
refused 'keeps its data in another file'
head -c 1M /dev/zero >"$repo/vda/${names[0]}-full.qcow2"
record "vda/${names[0]}-full.qcow2"
refused 'is no qcow2 file'
mv "$middle" "$tmp/elsewhere"
ln -s "$tmp/elsewhere" "$middle"
refused 'is no regular file'
mv "$repo/vda" "$tmp/elsewhere-too"
ln -s "$tmp/elsewhere-too" "$repo/vda"
refused 'it is no directory of its own'

# A lock that leads out of it.
echo precious >"$tmp/precious"
rm "$repo/.lock" 2>/dev/null || :
ln -s "$tmp/precious" "$repo/.lock"
has_to_exit 1 nbdmirror backup-protect "$repo" "${names[0]}"
[ "$(cat "$tmp/precious")" = precious ] || fail "a lock has overwritten a file"
rm "$repo/.lock"

# Nobody restores over a backup.
for dest in "$repo/vda/${names[0]}-full.qcow2" "$repo/vda/new" "$tmp/link"; do
  [ "$dest" != "$tmp/link" ] || ln "$repo/vda/${names[0]}-full.qcow2" "$tmp/link"
  for format in raw qcow2; do
    has_to_exit 7 nbdmirror restore "$repo" "$dest" --dest-format $format
  done
done
has_to_exit 0 nbdmirror backup-verify "$repo"

# An overlay whose server was killed.
mkdir "$tmp/tmpdir"
export TMPDIR=$tmp/tmpdir
spawn serve nbdmirror serve-backup "$repo" --socket "$tmp/s" --overlay
wait_for 20 grep -q '^nbd+unix' "$tmp/serve.log"
spawn other nbdmirror serve-backup "$repo" --socket "$tmp/s2" --overlay
wait_for 20 grep -q '^nbd+unix' "$tmp/other.log"
[ "$(find "$TMPDIR" -name overlay.qcow2 | wc -l)" = 2 ] || fail "an overlay in use was removed"
kill -KILL "${pid[serve]}"
wait "${pid[serve]}" 2>/dev/null || :
unset "pid[serve]"
rm "$tmp/serve.log"
gone () { ! "$python" -c 'import socket, sys
socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$tmp/s"; }
wait_for 20 gone
spawn serve nbdmirror serve-backup "$repo" --socket "$tmp/s" --overlay
wait_for 20 grep -q '^nbd+unix' "$tmp/serve.log"
[ "$(find "$TMPDIR" -name overlay.qcow2 | wc -l)" = 2 ] || fail "an overlay was left"
stop serve
stop other
[ -z "$(ls "$TMPDIR")" ] || fail "left: $(ls "$TMPDIR")"
