#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that pruning takes no backup along that is to stay: where a manifest cannot be read, where
# two backups are built upon the same one, where a backup is protected while others are pruned, and
# where the run that made a pruned backup has left its mark of having begun.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread
need qemu-img qemu-io qemu-nbd

shadow=$tmp/shadow
repo=$tmp/r
# make_repository OPTIONS...: sets `names`, the backups in it.
make_repository () {
  rm -rf "$repo" "$shadow"
  mapfile -t names < <("$python" "$srcdir/tests/blackbox/make-repository.py" "$NBDMIRROR" "$repo" \
    "$shadow" --size 2097152 "$@")
  [ ${#names[@]} -gt 2 ] || fail "no repository was made"
}

# same NAME: the backup is what it was.
same () {
  rm -f "$tmp/restored"
  nbdmirror restore "$repo" "$tmp/restored" --at "$1" --disk vda 2>"$tmp/err" ||
    fail "restore of $1: $? $(cat "$tmp/err")"
  cmp "$shadow/$1.vda" "$tmp/restored" || fail "$1 is not what was backed up"
}

# A manifest that a later version has written: nobody knows which files it needs.
make_repository --backups 4
manifest=$repo/backups/${names[3]}.json
cp "$manifest" "$tmp/saved"
sed -i 's/"version": 1/"version": 2/' "$manifest"
has_to_exit 5 nbdmirror backup-prune "$repo" --keep-last 1
grep -q "not known which files backup ${names[3]} needs" "$tmp/err" || fail "$(cat "$tmp/err")"
has_to_exit 5 nbdmirror backup-merge "$repo" "${names[0]}"
cp "$tmp/saved" "$manifest"
for name in "${names[@]}"; do same "$name"; done

# The run that made the full backup was killed after its manifest was there.
echo '{"format": "nbdmirror-backup-begun", "version": 1, "disks": ["vda"]}' \
  >"$repo/backups/${names[0]}.begun"
has_to_exit 0 nbdmirror backup-merge "$repo" "${names[0]}"
[ ! -e "$repo/backups/${names[0]}.begun" ] || fail "the next backup would remove a file in use"
for name in "${names[@]:1}"; do same "$name"; done

# A prune while the backups are verified: the first look at a file calls it.  What it removes is not
# booted either.
make_repository --backups 4
mkdir "$tmp/beside"
cat >"$tmp/beside/qemu-img" <<END
#!/bin/sh
if [ "\$1" = check ] && mkdir "$tmp/once" 2>/dev/null; then
  "$NBDMIRROR" backup-merge "$repo" "${names[1]}" >"$tmp/merged" 2>&1 || echo failed >>"$tmp/merged"
fi
exec "$(command -v qemu-img)" "\$@"
END
chmod +x "$tmp/beside/qemu-img"
PATH=$tmp/beside:$PATH has_to_exit 0 nbdmirror backup-verify "$repo" --boot 'echo up' --mark up
[ -d "$tmp/once" ] || fail "no file was looked at"
! grep -q failed "$tmp/merged" || fail "merge: $(cat "$tmp/merged")"
[ "$(grep -c ': good$' "$tmp/out")" = 3 ] || fail "a prune is taken for damage: $(cat "$tmp/out")"
[ "$(grep -c ': booted$' "$tmp/out")" = 3 ] || fail "not each backup was booted: $(cat "$tmp/out")"
! grep -q "^${names[1]} " "$tmp/out" || fail "what was pruned is told: $(cat "$tmp/out")"
# Damage is still damage.
printf x | dd of="$repo/vda/${names[3]}-inc.qcow2" bs=1 seek=300000 conv=notrunc status=none
has_to_exit 5 nbdmirror backup-verify "$repo"

# Two backups are built upon one.
make_repository --backups 4
qemu-img rebase -f qcow2 -F qcow2 -b "${names[1]}-inc.qcow2" "$repo/vda/${names[3]}-inc.qcow2"
"$python" - "$repo" "${names[1]}" "${names[3]}" <<'EOF'
import json, os, sys
repo, parent, name = sys.argv[1:]
path = f"{repo}/backups/{name}.json"
m = json.load(open(path))
d = m["disks"][0]
d["parent"] = {"backup": parent, "file": f"vda/{parent}-inc.qcow2"}
d["file-bytes"] = os.path.getsize(f"{repo}/{d['file']}")
json.dump(m, open(path, "w"))
EOF
same "${names[3]}"
has_to_exit 5 nbdmirror backup-merge "$repo" "${names[1]}"
for name in "${names[@]}"; do same "$name"; done

# A backup is protected while the prune is under way that writes its manifest.
make_repository --backups 4
mkdir "$tmp/bin"
printf '#!/bin/sh\ntouch %s\nwhile [ ! -e %s ]; do sleep 0.05; done\nexec %s "$@"\n' \
  "$tmp/begun" "$tmp/go" "$(command -v qemu-img)" >"$tmp/bin/qemu-img"
chmod +x "$tmp/bin/qemu-img"
PATH=$tmp/bin:$PATH spawn prune nbdmirror backup-prune "$repo" --keep-last 2
wait_for 10 test -e "$tmp/begun"
has_to_exit 0 nbdmirror backup-protect "$repo" "${names[2]}"
has_to_exit 1 nbdmirror backup-protect "$repo" "${names[1]}"
touch "$tmp/go"
ends_well prune 20
has_to_exit 0 nbdmirror backup-prune "$repo" --keep-last 1
same "${names[2]}"
same "${names[3]}"

# A backup is pruned between its choice and the opening of its files: they hold another one then.
make_repository --backups 4
rm "$tmp/go"
printf '#!/bin/sh\nwhile [ ! -e %s ]; do sleep 0.05; done\nexec %s "$@"\n' \
  "$tmp/go" "$(command -v qemu-nbd)" >"$tmp/bin/qemu-nbd"
chmod +x "$tmp/bin/qemu-nbd"
rm "$tmp/bin/qemu-img" "$tmp/restored"
full=$repo/vda/${names[0]}-full.qcow2
PATH=$tmp/bin:$PATH spawn restore nbdmirror restore "$repo" "$tmp/restored" --at "${names[0]}" \
  --no-verify
PATH=$tmp/bin:$PATH spawn serve nbdmirror serve-backup "$repo" --at "${names[0]}" --socket "$tmp/s"
wait_for 10 child_of restore qemu-nbd
wait_for 10 child_of serve qemu-nbd
has_to_exit 0 nbdmirror backup-merge "$repo" "${names[0]}"
[ -e "$full" ] || fail "this is about a file that holds another backup"
touch "$tmp/go"
for name in restore serve; do
  got=0
  wait "${pid[$name]}" || got=$?
  unset "pid[$name]"
  [ $got = 1 ] || fail "$name of another backup than was asked for: $got $(cat "$tmp/$name.log")"
done
