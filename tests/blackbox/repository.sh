#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a repository of backups is read and tended without loss: every backup is listed,
# verified, restored and served; a damaged disk is restored by sending the damage; other people's
# tools read it, also after it was moved; what is damaged is named with all that depends on it; and
# pruning, killed at any instant, leaves every backup that is kept as it was.  ROUNDS kills (6);
# with NBDMIRROR_LONG 200.
[ "${NBDMIRROR_LONG:-0}" = 0 ] || TEST_TIMEOUT=3600
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread
need qemu-img qemu-io qemu-nbd

rounds=${ROUNDS:-6}
[ "${SHORT:-0}" = 0 ] || rounds=2
[ "${NBDMIRROR_LONG:-0}" = 0 ] || rounds=200
shadow=$tmp/shadow
# make_repository NAME [OPTIONS...]: sets `names`, the backups in it.
make_repository () {
  local repo=$tmp/$1; shift
  rm -rf "$repo" "$shadow"
  mapfile -t names < <("$python" "$srcdir/tests/blackbox/make-repository.py" "$NBDMIRROR" "$repo" \
    "$shadow" "$@")
  [ ${#names[@]} -gt 2 ] || fail "no repository was made"
}

# same REPO NAME DISK: the backup is what it was.
same () {
  rm -f "$tmp/restored"
  nbdmirror restore "$1" "$tmp/restored" --at "$2" --disk "$3" 2>"$tmp/err" ||
    fail "restore of $2 $3: $? $(cat "$tmp/err")"
  cmp "$shadow/$2.$3" "$tmp/restored" || fail "$2 $3 is not what was backed up"
}

# ---- all are listed, verified, restored, served ----

make_repository r --disk vda --disk 'Daten ä' --backups 5 --full 3
has_to_exit 0 nbdmirror backup-list "$tmp/r"
[ "$(grep -c ': full\|: incremental' "$tmp/out")" = 10 ] || fail "list: $(cat "$tmp/out")"
has_to_exit 0 nbdmirror backup-verify "$tmp/r"
[ "$(grep -c ': good$' "$tmp/out")" = 10 ] || fail "verify: $(cat "$tmp/out")"
for name in "${names[@]}"; do
  same "$tmp/r" "$name" vda
  same "$tmp/r" "$name" 'Daten ä'
done
nbdmirror restore "$tmp/r" "$tmp/restored" --disk vda --at 2025-01-02 --sync compare \
  --included "$tmp/inc" 2>"$tmp/err" || fail "restore by time: $(cat "$tmp/err")"
cmp "$shadow/${names[1]}.vda" "$tmp/restored" || fail "--sync compare: it differs"
printf 'damage' | dd of="$tmp/restored" bs=1 seek=70000 conv=notrunc status=none
nbdmirror restore "$tmp/r" "$tmp/restored" --disk vda --at "${names[1]}" --sync compare \
  --report "$tmp/report" 2>"$tmp/err" || fail "restore of a damaged disk: $(cat "$tmp/err")"
cmp "$shadow/${names[1]}.vda" "$tmp/restored" || fail "a damaged disk: it differs"
sent=$(($(field sent-bytes <"$tmp/report") + $(field zero-bytes <"$tmp/report")))
{ [ $sent -gt 0 ] && [ $sent -le 65536 ]; } || fail "$sent bytes were sent to mend 6"
if grep "state file" "$tmp/err"; then fail "a raw file has a mark"; fi
for image in new old; do
  nbdmirror restore "$tmp/r" "$tmp/image" --disk vda --at "${names[1]}" --dest-format qcow2 \
    2>"$tmp/err" || fail "restore to a qcow2 image: $(cat "$tmp/err")"
  warned=0
  grep -q "image cannot tell its server's state file" "$tmp/err" || warned=$?
  { [ $image = old ] && [ $warned = 0 ]; } || { [ $image = new ] && [ $warned = 1 ]; } ||
    fail "the warning about a state file, of a $image image: $(cat "$tmp/err")"
done
start_dest dest file "$(stat -c %s "$tmp/restored")" # to a server
nbdmirror restore "$tmp/r" "${uri[dest]}" --disk 'Daten ä' --at "${names[2]}" 2>"$tmp/err" ||
  fail "restore to a server: $(cat "$tmp/err")"
equal "$shadow/${names[2]}.Daten ä" "${uri[dest]}"
[ "$(cat "$tmp/inc/guest.xml")" = "<domain>1</domain>" ] || fail "the included file differs"
has_to_exit 1 nbdmirror restore "$tmp/r" "$tmp/none" --disk vdb
has_to_exit 1 nbdmirror restore "$tmp/r" "$tmp/none" --disk vda --at 2024-12-31
has_to_exit 2 nbdmirror restore "$tmp/r" "$tmp/none"
has_to_exit 2 nbdmirror restore "$tmp/r" "$tmp/none" --disk vda --at yesterday
has_to_exit 1 nbdmirror backup-list "$tmp"
[ ! -e "$tmp/none" ] || fail "a refused restore left a file"

mkdir "$tmp/a b"
for overlay in '' --overlay; do
  rm -f "$tmp/serve.log"
  cd "$tmp/a b"
  # shellcheck disable=SC2086
  spawn serve nbdmirror serve-backup "$tmp/r" --disk vda --socket s $overlay
  cd "$OLDPWD"
  wait_for 10 grep -q '^nbd+unix' "$tmp/serve.log"
  served=$(grep '^nbd+unix' "$tmp/serve.log")
  equal "$shadow/${names[4]}.vda" "$served"
  got=0
  qemu-io -f raw -c 'write -P 9 0 4096' "$served" >"$tmp/out" 2>&1 || got=$?
  same "$tmp/r" "${names[4]}" vda # also while it is served
  if [ -n "$overlay" ]; then
    [ $got = 0 ] || fail "it cannot be written to: $(cat "$tmp/out")"
  else
    [ $got != 0 ] || fail "a backup could be written to"
  fi
  stop serve
  [ ! -e "$tmp/a b/s" ] || fail "the socket was left"
done
same "$tmp/r" "${names[4]}" vda

# Is a guest seen to start?  The command writes to its disk, which is forgotten.
# shellcheck disable=SC2016
boot='set -- $NBDMIRROR_URIS; [ $# = 2 ] && [ "$1" = "$NBDMIRROR_URI" ] || exit 1
  for uri; do qemu-io -f raw -c "write -P 7 0 4096" "$uri" || exit 1; done
  echo "the login"; sleep 1; echo ": is here"; sleep 100'
has_to_exit 0 nbdmirror backup-verify "$tmp/r" --at "${names[4]}" --boot "$boot" --mark 'login
: is'
grep -q "^${names[4]}: booted" "$tmp/out" || fail "it was not booted: $(cat "$tmp/out")"
has_to_exit 5 nbdmirror backup-verify "$tmp/r" --at "${names[4]}" --boot 'echo no' --mark login
has_to_exit 5 nbdmirror backup-verify "$tmp/r" --at "${names[4]}" --boot 'sleep 100' --mark login \
  --boot-limit 500ms
# What a killed one has left in /tmp is removed by the next one.
spawn killed "$NBDMIRROR" backup-verify "$tmp/r" --at "${names[4]}" \
  --boot 'touch up; sleep 99' --mark login
wait_for 20 test -e up
folder=$(readlink "/proc/${pid[killed]}"/fd/* | grep -x '/tmp/nbdmirror-boot-......') || :
[ -n "$folder" ] || fail "it has no folder in /tmp"
kill -KILL "${pid[killed]}"
wait_exit killed 20
has_to_exit 5 nbdmirror backup-verify "$tmp/r" --at "${names[4]}" --boot 'echo no' --mark login
[ ! -e "$folder" ] || fail "what the killed one had in /tmp is still there"
has_to_exit 2 nbdmirror backup-verify "$tmp/r" --boot 'sleep 100'
same "$tmp/r" "${names[4]}" vda

# Other people's tools, after the repository was moved.
mv "$tmp/r" "$tmp/moved"
file=$tmp/moved/vda/${names[4]}-inc.qcow2
qemu-img check -q "$file" || fail "qemu-img check"
qemu-img compare -q -f qcow2 -F raw "$file" "$shadow/${names[4]}.vda" || fail "qemu-img compare"
[ "$(qemu-img info --backing-chain "$file" | grep -c '^image:')" = 2 ] || fail "the chain"
nbdcopy -- [ qemu-nbd -r -f qcow2 "$file" ] "$tmp/copied"
cmp "$tmp/copied" "$shadow/${names[4]}.vda" || fail "nbdcopy: it differs"

# ---- what is damaged is named, and what depends on it ----

cp "$tmp/moved/vda/${names[1]}-inc.qcow2" "$tmp/saved"
qemu-io -f qcow2 -c 'write -P 1 0 64k' "$tmp/moved/vda/${names[1]}-inc.qcow2" >/dev/null
has_to_exit 5 nbdmirror backup-verify "$tmp/moved"
[ "$(grep -c 'vda: vda/' "$tmp/out")" = 2 ] && [ "$(grep -c ': good$' "$tmp/out")" = 8 ] ||
  fail "one file is damaged: $(cat "$tmp/out")"
rm "$tmp/moved/vda/${names[1]}-inc.qcow2"
has_to_exit 5 nbdmirror backup-verify "$tmp/moved" --quick
[ "$(grep -c 'No such file' "$tmp/out")" = 2 ] || fail "a file is missing: $(cat "$tmp/out")"
nbdmirror backup-list "$tmp/moved" | grep -q 'broken: .*No such file' || fail "not listed as broken"
has_to_exit 1 nbdmirror restore "$tmp/moved" "$tmp/none" --disk vda --at "${names[2]}"
has_to_exit 5 nbdmirror backup-prune "$tmp/moved" --keep-last 3
cp "$tmp/saved" "$tmp/moved/vda/${names[1]}-inc.qcow2"
has_to_exit 0 nbdmirror backup-verify "$tmp/moved"
echo '{' >"$tmp/moved/backups/${names[1]}.json"
has_to_exit 5 nbdmirror backup-verify "$tmp/moved" --quick
grep -q "^${names[1]}: the manifest cannot be read" "$tmp/out" || fail "manifest: $(cat "$tmp/out")"

# ---- pruning ----

make_repository p --backups 8 --full 5
has_to_exit 2 nbdmirror backup-prune "$tmp/p"
has_to_exit 0 nbdmirror backup-prune "$tmp/p" --keep-daily 3 --dry-run
[ "$(grep -c 'would be pruned' "$tmp/out")" = 5 ] || fail "dry run: $(cat "$tmp/out")"
has_to_exit 0 nbdmirror backup-prune "$tmp/p" --keep-last 1 --keep-hourly 1 --keep-daily 1 \
  --keep-weekly 1 --keep-monthly 1 --keep-yearly 1 --dry-run
for rule in last hourly daily weekly; do
  [ "$(grep -c ": kept ($rule)$" "$tmp/out")" = 1 ] || fail "the rules: $(cat "$tmp/out")"
done
nbdmirror backup-protect "$tmp/p" "${names[1]}"
nbdmirror backup-list "$tmp/p" | grep -q "^${names[1]} .*, protected$" || fail "list: protected"
has_to_exit 7 nbdmirror backup-merge "$tmp/p" "${names[1]}"
has_to_exit 7 nbdmirror backup-merge "$tmp/p" "${names[7]}"
has_to_exit 0 nbdmirror backup-prune "$tmp/p" --keep-daily 3 --json
[ "$(field freed-bytes <"$tmp/out")" -gt 0 ] || fail "nothing was freed: $(cat "$tmp/out")"
kept=$(nbdmirror backup-list "$tmp/p" --json | "$python" -c '
import json, sys
print(*(b["name"] for b in json.load(sys.stdin)))')
[ "$kept" = "${names[1]} ${names[5]} ${names[6]} ${names[7]}" ] || fail "kept: $kept"
has_to_exit 0 nbdmirror backup-list "$tmp/p"
grep -q '^  vda: full, .*: the full backup before it was pruned$' "$tmp/out" ||
  fail "the reason is not listed: $(cat "$tmp/out")"
for name in $kept; do same "$tmp/p" "$name" vda; done
has_to_exit 0 nbdmirror backup-verify "$tmp/p"
has_to_exit 0 nbdmirror backup-merge "$tmp/p" "${names[5]}"
grep -q "^${names[5]}: merged into the next one, [0-9.]* KiB freed$" "$tmp/out" ||
  fail "merge: $(cat "$tmp/out")"
same "$tmp/p" "${names[6]}" vda
has_to_exit 0 nbdmirror backup-verify "$tmp/p"
[ "$(find "$tmp/p/vda" -name '*.qcow2' | wc -l)" = 3 ] || fail "files left: $(ls "$tmp/p/vda")"

# A reader that is about to end makes a prune wait.
make_repository w --backups 3 --full 3
spawn reader qemu-nbd -r -t -e 0 -k "$tmp/reader.sock" -f qcow2 "$tmp/w/vda/${names[2]}-inc.qcow2"
wait_for_socket "$tmp/reader.sock" reader
spawn prune "$NBDMIRROR" backup-prune "$tmp/w" --keep-last 1
is_marked () { grep -q '"dropped": true' "$tmp/w/backups/${names[0]}.json"; }
wait_for 20 is_marked
sleep 1
stop reader
wait_exit prune 30
[ "$status" = 0 ] || fail "a prune beside a reader that ends: $(cat "$tmp/prune.log")"
same "$tmp/w" "${names[2]}" vda

# A repository that is full: what goes as a whole makes room, also if the rest cannot be done yet.
make_repository f --backups 6 --full 3
mkdir "$tmp/bin"
printf '#!/bin/sh\n[ "$1" != commit ] || exit 1\nexec %s "$@"\n' "$(command -v qemu-img)" \
  >"$tmp/bin/qemu-img"
chmod +x "$tmp/bin/qemu-img"
PATH=$tmp/bin:$PATH has_to_exit 1 nbdmirror backup-prune "$tmp/f" --keep-last 2
[ "$(find "$tmp/f/vda" -name '*.qcow2' | wc -l)" = 3 ] ||
  fail "no room was made: $(ls "$tmp/f/vda")"
for name in "${names[@]:4}"; do same "$tmp/f" "$name" vda; done
has_to_exit 0 nbdmirror backup-prune "$tmp/f" --keep-last 2
for name in "${names[@]:4}"; do same "$tmp/f" "$name" vda; done
has_to_exit 0 nbdmirror backup-verify "$tmp/f"
[ "$(grep -c ': good$' "$tmp/out")" = 2 ] || fail "after a failed prune: $(cat "$tmp/out")"

# Killed at any instant: all that is kept reads as before, and the next call comes to its end.
for ((round = 0; round < rounds; round++)); do
  seed=$((RANDOM * 32768 + RANDOM))
  make_repository k --backups 7 --full $((RANDOM % 5 + 3)) --size 2097152 --seed $seed
  keep=$((RANDOM % 3 + 1))
  note "round $round: seed $seed, keep $keep"
  for _ in 1 2 3; do
    spawn prune nbdmirror backup-prune "$tmp/k" --keep-last $keep
    sleep "0.$(printf %03d $((RANDOM % 250)))"
    kill -KILL "${pid[prune]}" 2>/dev/null || :
    wait "${pid[prune]}" 2>/dev/null || :
    unset "pid[prune]"
    for name in "${names[@]: -$keep}"; do same "$tmp/k" "$name" vda; done
  done
  has_to_exit 0 nbdmirror backup-prune "$tmp/k" --keep-last $keep
  has_to_exit 0 nbdmirror backup-verify "$tmp/k"
  [ "$(grep -c ': good$' "$tmp/out")" = $keep ] || fail "after the kills: $(cat "$tmp/out")"
  for name in "${names[@]: -$keep}"; do same "$tmp/k" "$name" vda; done
  [ "$(find "$tmp/k/vda" -name '*.qcow2' | wc -l)" -le $keep ] ||
    fail "files were left: $(ls "$tmp/k/vda")"
done
