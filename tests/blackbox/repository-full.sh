#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a prune or a merge that has no room left, at whatever it writes, loses no backup that
# is kept, says so, and is finished by the next call.  The limit is on the size of each file, so no
# mount is needed.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io qemu-nbd
proves_nothing_under thread
proves_nothing_under address

shadow=$tmp/shadow
seed=${SEED:-$RANDOM}
mapfile -t names < <("$python" "$srcdir/tests/blackbox/make-repository.py" "$NBDMIRROR" "$tmp/all" \
  "$shadow" --size 4194304 --backups 5 --full 5 --seed "$seed")
[ ${#names[@]} = 5 ] || fail "no repository was made"
# same NAME...: these backups are what they were.
same () {
  local name
  for name; do
    qemu-img compare -q -f qcow2 -F raw "$(file_of "$name")" "$shadow/$name.vda" ||
      fail "seed $seed: $name is not what was backed up"
  done
}
file_of () {
  "$python" -c 'import json, sys
print(sys.argv[1] + "/" + json.load(open(f"{sys.argv[1]}/backups/{sys.argv[2]}.json"))["disks"][0]
      ["file"])' "$repo" "$1"
}
repo=$tmp/r
failed=0
largest=$(find "$tmp/all/vda" -name '*.qcow2' -printf '%k\n' | sort -n | tail -n 1)
for what in "backup-prune --keep-last 2" "backup-merge ${names[2]}"; do
  case $what in
    backup-prune*) kept=("${names[@]:3}") ;;
    *) kept=("${names[0]}" "${names[1]}" "${names[@]:3}") ;;
  esac
  # For hardly a manifest, for half of the largest file, and for one a little larger than that.
  for room in 1 $((largest / 2)) $((largest + 1)); do
    rm -rf "$repo"
    cp -a "$tmp/all" "$repo"
    got=0
    # shellcheck disable=SC2086
    (
      trap '' XFSZ # our own writes get EFBIG; qemu-img is killed
      ulimit -f "$room"
      nbdmirror ${what%% *} "$repo" ${what#* }
    ) >"$tmp/out" 2>&1 || got=$?
    failed=$((failed + (got != 0)))
    [ $got = 0 ] || grep -q '^nbdmirror: backup-' "$tmp/out" || fail "it said nothing: $room KiB"
    same "${kept[@]}"
    # shellcheck disable=SC2086
    has_to_exit 0 nbdmirror backup-prune "$repo" --keep-last 5
    same "${kept[@]}"
    has_to_exit 0 nbdmirror backup-verify "$repo"
  done
done
note "$failed of 6 calls had no room, seed $seed"
[ $failed -ge 3 ] || fail "the limit was hardly ever reached"
