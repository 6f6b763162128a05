#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# ssh://HOST/PATH as a destination and a source, with a real sshd on loopback: copy, verify, and a
# mirror whose connection is cut, whose server there is killed, and whose old session there is still
# alive when the new one comes: that one is ended first (R12).
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread
. "$srcdir/tests/blackbox/sshd.sh"
# The host there: a directory with a name that a shell would take apart.
mkdir "$tmp/there/it's \$HOME"
disk_there="$tmp/there/it's \$HOME/disk"
host="ssh://127.0.0.1:$port$tmp/there"
program="program=$tmp/there/nbdmirror"
dest="$host/it's%20\$HOME/disk?$program"

random_disk "$tmp/disk" 16M+513

# Usage, and what cannot be.
for wrong in ssh:// ssh://host ssh://host/ ssh:///disk ssh://-oX/disk "ssh://host:1x/disk" \
  "ssh://host/disk?nonsense" \
  "ssh://host/disk?format" "ssh://host/a%zz"; do
  has_to_exit 2 "$NBDMIRROR" copy "$tmp/disk" "$wrong"
done
has_to_exit 3 timeout 30 "$NBDMIRROR" copy "$tmp/disk" "$host/disk?program=/nonexistent"
grep -q 'not found there' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
has_to_exit 3 timeout 30 "$NBDMIRROR" copy "$tmp/disk" "ssh://127.0.0.1:1/disk?$program"

# Copy there, compare, refuse, copy back.
has_to_exit 0 timeout 30 "$NBDMIRROR" copy "$tmp/disk" "$dest"
cmp "$tmp/disk" "$disk_there" || fail "copied through ssh: differs"
has_to_exit 0 timeout 30 "$NBDMIRROR" verify "$tmp/disk" "$dest"
grep -q "by the digests of DEST's server" "$tmp/out" || fail "verify through ssh moved the data"
has_to_exit 7 timeout 30 "$NBDMIRROR" copy "$tmp/disk" "$dest"
has_to_exit 0 timeout 30 "$NBDMIRROR" copy "$tmp/disk" "$dest&overwrite"
has_to_exit 0 timeout 30 "$NBDMIRROR" copy "$dest" "$tmp/back"
cmp "$tmp/disk" "$tmp/back" || fail "copied back through ssh: differs"

# Compressed.
seq 500000 >"$tmp/text"
has_to_exit 0 timeout 30 "$NBDMIRROR" copy "$tmp/text" "$host/text?$program" --compress --json
[ "$(field wire-bytes <"$tmp/out")" -lt "$(field sent-bytes <"$tmp/out")" ] ||
  fail "--compress through ssh has compressed nothing: $(cat "$tmp/out")"
cmp "$tmp/text" "$tmp/there/text" || fail "copied with --compress through ssh: differs"

# A mirror that loses its connection, then its server.
session () { ps -eo pid=,args= |
  awk -v path="$disk_there" '/ receive --stdio / && index ($0, path) && !/sh -c/ { print $1 }'; }
start_server src "$tmp/disk"
spawn mirror nbdmirror mirror "${control[src]}" "$dest&overwrite" --bandwidth 2M \
  --quarantine-grace 100ms \
  --on-ready complete --report "$tmp/report"
copied () { [ "$(status_of "${control[src]}" sent-bytes 2>/dev/null || echo 0)" -gt "$1" ]; }
wait_for 20 copied $((1 << 20))
kill -KILL "$(ps -o pid=,args= --ppid "${pid[mirror]}" | awk '$2 ~ /ssh$/ { print $1 }')"
back () { [ "$(status_of "${control[src]}" reconnects)" = 1 ] &&
  [ "$(status_of "${control[src]}" state)" = copying ]; }
wait_for 40 back
receive=$(session)
[ -n "$receive" ] || fail "no session there"
kill -KILL "$receive"
ends_well mirror 60
[ "$(field reconnects <"$tmp/report")" -ge 2 ] || fail "no reconnects: $(cat "$tmp/report")"
cmp "$tmp/disk" "$disk_there" || fail "mirrored through ssh: differs"
stop src

# A worker that is stopped at the hand-over: its session there is ended all the same, before anybody
# may use the disk.
start_server late "$tmp/disk"
spawn mirror nbdmirror mirror "${control[late]}" "$dest&overwrite"
wait_state "${control[late]}" ready 30
# A live copy is verified through ssh, too.
has_to_exit 0 timeout 30 "$NBDMIRROR" verify "${control[late]}"
printf 'planted' | dd of="$disk_there" bs=1 seek=5000000 conv=notrunc status=none
wait_state "${control[late]}" ready 30
has_to_exit 5 timeout 30 "$NBDMIRROR" verify "${control[late]}"
wait_state "${control[late]}" ready 30
until nbdmirror complete --prepare-only --lease 60s --json "${control[late]}" \
  >"$tmp/prepared"; do sleep 0.2; done
sigstop "${pid[mirror]}"
[ -n "$(session)" ] || fail "no session there"
has_to_exit 0 nbdmirror complete --commit --token "$(field rollback-token <"$tmp/prepared")" \
  --json "${control[late]}"
grep -q '"sealed": true' "$tmp/out" || fail "not sealed: $(cat "$tmp/out")"
[ -z "$(session)" ] || fail "the session of a stopped worker still has the disk: $(session)"
kill -CONT "${pid[mirror]}"
ends_well mirror
cmp "$tmp/disk" "$disk_there" || fail "handed over through ssh: differs"
stop late

# An old session that is still there, and knows nothing of the end of its client.  It is ended, its
# server with it, before the new one begins.
mkfifo "$tmp/silent"
spawn silent sh -c 'exec <>"$0"; exec "$@"' "$tmp/silent" "$tmp/there/nbdmirror" receive --stdio \
  --resume "$disk_there"
old_server () { [ -n "$(child_of silent nbdkit)" ]; }
wait_for 20 old_server
old=$(child_of silent nbdkit)
has_to_exit 7 "$NBDMIRROR" receive "$disk_there" --resume --socket "$tmp/s"
grep -q "process ${pid[silent]}" "$tmp/err" || fail "not said who has the disk: $(cat "$tmp/err")"
has_to_exit 0 timeout 30 "$NBDMIRROR" verify "$tmp/disk" "$dest"
running silent || fail "a reader ended the session"
has_to_exit 0 timeout 30 "$NBDMIRROR" copy "$tmp/disk" "$dest&overwrite"
wait_exit silent 10
kill -0 "$old" 2>/dev/null && fail "the old session's server outlived it"
cmp "$tmp/disk" "$disk_there" || fail "after an old session: differs"
