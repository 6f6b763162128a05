#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a repository behind ssh is one like any other: backups, full and incremental, with
# files beside them, are listed, verified, restored, served and pruned there; what is wrong is said;
# and a line that is cut at any instant leaves the earlier backups as they were and nothing
# half-done.  ROUNDS cuts (1); with NBDMIRROR_LONG 60, and a real sshd.
[ "${NBDMIRROR_LONG:-0}" != 0 ] || export SSH_STAND_IN="${SSH_STAND_IN:-1}"
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd
proves_nothing_under thread
proves_nothing_under address
. "$srcdir/tests/blackbox/sshd.sh"

rounds=${ROUNDS:-1}
[ "${NBDMIRROR_LONG:-0}" = 0 ] || rounds=60
repo="$tmp/there/it's a repo"
far="ssh://127.0.0.1:$port$tmp/there/it's%20a%20repo?program=$tmp/there/nbdmirror"
disk='für, my disk'
random_disk "$tmp/a" 12M+513
start_server a "$tmp/a" --state "$tmp/a.state" -- mirror-state-volatile=yes
# put BYTE: change some of the disk.
put () {
  "$python" -c 'import nbd, random, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(bytes([int(sys.argv[2])]) * 65536, random.randrange(180) * 65536)
h.shutdown()' "${uri[a]}" "$1"
}
# shellcheck disable=SC2120
backup () { nbdmirror backup "${control[a]}" "$far" --disk-name "${control[a]}=$disk" "$@"; }
# what KEY: of the last backup.
what () { "$python" "$srcdir/tests/blackbox/newest-backup.py" "$repo" "$disk" "$1"; }
kind () { what kind; }
# restored [AT]: does the backup AT restore to $tmp/shadow-AT, or the last one to the disk?
restored () {
  rm -f "$tmp/back"
  has_to_exit 0 nbdmirror restore "$far" "$tmp/back" ${1:+--at "$1"}
  cmp "$tmp/back" "${1:+$tmp/shadow-}${1:-$tmp/a}" || fail "restored: it differs"
}
newest () { what file | sed 's/.*\///; s/-full.*//; s/-inc.*//'; }

# ---- all commands --------------------------------------------------------------------------------
has_to_exit 2 nbdmirror backup "${control[a]}" "$far&format=raw"
has_to_exit 3 nbdmirror backup "${control[a]}" "ssh://127.0.0.1:$port$tmp/none?program=/nonexistent"
grep -q 'not found there' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
has_to_exit 1 nbdmirror backup-list "$far"
has_to_exit 0 backup --dry-run
grep -q "^$disk: full, " "$tmp/out" || fail "the plan: $(cat "$tmp/out")"
has_to_exit 7 backup --incremental
[ ! -e "$repo" ] || fail "a dry run or a refused backup made a repository"

seq 100000 >"$tmp/notes.txt"
has_to_exit 0 backup --include "$tmp/notes.txt"
[ "$(kind)" = full ] || fail "the first one is $(kind)"
first=$(newest)
cp "$tmp/a" "$tmp/shadow-$first"
put 7
has_to_exit 0 backup --include "$tmp/notes.txt" --json
[ "$(kind)" = incremental ] || fail "the second one is $(kind)"
[ "$(what copied-bytes)" -le 131072 ] || fail "more than was changed: $(what copied-bytes)"
restored
restored "$first"
has_to_exit 0 nbdmirror restore "$far" "$tmp/back" --sync compare --included "$tmp/inc"
cmp "$tmp/inc/1-notes.txt" "$tmp/notes.txt" || fail "--included: it differs"
has_to_exit 0 nbdmirror restore "$far" "ssh://127.0.0.1:$port$tmp/there/back?${far#*\?}"
cmp "$tmp/there/back" "$tmp/a" || fail "restored through ssh: it differs"
# Other people's tools, there.
qemu-img compare -q -f qcow2 -F raw "$repo/$disk/$(newest)-inc.qcow2" "$tmp/a" || fail "qemu-img"
has_to_exit 0 nbdmirror backup-list "$far"
[ "$(grep -c ': full\|: incremental' "$tmp/out")" = 2 ] || fail "list: $(cat "$tmp/out")"
has_to_exit 0 nbdmirror backup-verify "$far"
[ "$(grep -c ': good$' "$tmp/out")" = 2 ] || fail "verify: $(cat "$tmp/out")"
has_to_exit 2 nbdmirror backup-verify "$far" --boot true --mark x
for overlay in '' --overlay; do
  rm -f "$tmp/serve.log"
  # shellcheck disable=SC2086
  spawn serve nbdmirror serve-backup "$far" --socket "$tmp/s" $overlay
  wait_for 40 grep -q '^nbd+unix' "$tmp/serve.log"
  equal "$tmp/a" "nbd+unix:///?socket=$tmp/s"
  got=0
  qemu-io -f raw -c 'write -P 9 0 4096' "nbd+unix:///?socket=$tmp/s" >"$tmp/out" 2>&1 || got=$?
  [ $((got == 0)) = $((${#overlay} > 0)) ] || fail "a write: $got $(cat "$tmp/out")"
  sleep 1 # for what served that client there
  ! qemu-io -f qcow2 -c quit "$repo/$disk/$(newest)-inc.qcow2" 2>"$tmp/out" ||
    fail "nobody holds the file between two clients: a prune could rewrite it"
  grep -q 'lock' "$tmp/out" || fail "another reason: $(cat "$tmp/out")"
  stop serve
  [ ! -e "$tmp/s" ] || fail "the socket was left"
done
restored

# ---- a name that is not UTF-8 --------------------------------------------------------------------
bytes=$tmp/there/r$'\xff'
cp -a "$repo" "$bytes"
spawn locker "$python" -c 'import fcntl, sys, time
f = open(sys.argv[1], "r+")
fcntl.lockf(f, fcntl.LOCK_EX)
open(sys.argv[2], "w").close()
time.sleep(600)' "$bytes/$disk/.lock" "$tmp/is-locked"
wait_for 20 test -e "$tmp/is-locked"
has_to_exit 7 nbdmirror backup "${control[a]}" "ssh://127.0.0.1:$port$tmp/there/r%FF?${far#*\?}" \
  --disk-name "${control[a]}=$disk"
grep -q "/there/r?: disk '$disk' is being written to by" "$tmp/err" || fail "$(cat "$tmp/err")"
stop locker
has_to_exit 0 nbdmirror backup "${control[a]}" "$bytes" --dry-run --json
"$python" -c 'import json, sys
assert json.load(sys.stdin)["repository"].endswith("/there/r?")' <"$tmp/out" || fail "the plan"
: >"$tmp/"$'\xff'
has_to_exit 1 nbdmirror backup-verify "$bytes" --compare --json --control "$disk=$tmp/"$'\xff'
"$python" -c 'import json, sys
assert "/? is no control socket" in json.load(sys.stdin)[0]["error"]' <"$tmp/out" ||
  fail "compared: $(cat "$tmp/out")"
rm -r "$bytes"

# ---- two at once ---------------------------------------------------------------------------------
spawn slow nbdmirror backup "${control[a]}" "$far" --disk-name "${control[a]}=$disk" --full \
  --bandwidth 1M
begun () { ls "$repo/backups/"*.begun; }
wait_for 20 begun
has_to_exit 7 backup
kill -INT "${pid[slow]}"
wait_exit slow 30
[ "$status" = 6 ] || fail "cancelled: $status"
no_marks () { [ -z "$(find "$repo" -name '*.begun')" ]; }
wait_for 20 no_marks
[ "$(find "$repo/$disk" -name '*.qcow2' | wc -l)" = 2 ] || fail "files were left"

# ---- the line is cut -----------------------------------------------------------------------------
# lines: the processes that carry lines of ours.
lines () { ps -eo pid=,args= |
  awk -v tmp="$tmp" 'index ($0, tmp) && / -- 127\.0\.0\.1 / { print $1 }'; }
seed=${SEED:-$RANDOM}
RANDOM=$seed
for ((i = 1; i <= rounds; i++)); do
  put "$((i % 250))"
  # Every other one takes so long that the copy is cut.
  slow=()
  [ $((i % 2)) = 0 ] || slow=(--full --bandwidth 8M)
  spawn backup nbdmirror backup "${control[a]}" "$far" --disk-name "${control[a]}=$disk" \
    "${slow[@]}"
  sleep "0.$(printf %03d $((RANDOM % 900)))"
  mapfile -t victims < <(lines)
  [ ${#victims[@]} = 0 ] || kill -KILL "${victims[RANDOM % ${#victims[@]}]}" 2>/dev/null || :
  wait_exit backup 120
  note "seed $seed, cut $i of ${#victims[@]} lines: $status"
  if [ "$status" = 0 ]; then restored; fi
  restored "$first"
  # What the agent there has not removed yet, the next backup does.
  for try in 1 2 3 4 5; do
    # shellcheck disable=SC2119
    backup >"$tmp/out" 2>&1 && break
    [ $try != 5 ] || fail "seed $seed, cut $i: $(cat "$tmp/out")"
    sleep 1
  done
  restored
  no_marks || fail "seed $seed, cut $i: a mark was left"
  json=$(find "$repo/backups" -name '*.json' | wc -l)
  [ "$(find "$repo/$disk" -name '*.qcow2' | wc -l)" = "$json" ] || fail "files were left"
done
has_to_exit 0 nbdmirror backup-verify "$far"

# ---- pruned --------------------------------------------------------------------------------------
has_to_exit 0 nbdmirror backup-protect "$far" "$first"
has_to_exit 7 nbdmirror backup-merge "$far" "$first"
has_to_exit 0 nbdmirror backup-protect "$far" "$first" --off
has_to_exit 0 nbdmirror backup-prune "$far" --keep-last 1
restored
has_to_exit 0 nbdmirror backup-verify "$far"
[ "$(grep -c ': good$' "$tmp/out")" = 1 ] || fail "pruned: $(cat "$tmp/out")"
put 99
has_to_exit 0 backup --compress
qemu-img info "$(what file)" | grep -q 'compression type: zstd' || fail "no file for zstd"
qemu-img check "$(what file)" | grep -q ' [1-9][0-9.]*% compressed' || fail "it is not compressed"
[ "$(kind)" = incremental ] || fail "after pruning: $(kind)"
restored
has_to_exit 0 nbdmirror backup-verify "$far" --compare
grep -q "^$disk: good: 0 bytes differ" "$tmp/out" || fail "compared: $(cat "$tmp/out")"
printf 'behind' | dd of="$tmp/a" bs=1 seek=500000 conv=notrunc status=none
has_to_exit 5 nbdmirror backup-verify "$far" --compare
has_to_exit 0 backup
restored
