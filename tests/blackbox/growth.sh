#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that commands do not slow down more than what they look at grows: each file of a chain of
# backups, and each recording of a state file, is looked at once, however many backups or
# checkpoints lie upon it.  With three times as many, commands read about three times as much.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread
proves_nothing_under address # its leak check cannot be traced
need qemu-img qemu-io qemu-nbd strace
[ -e /proc/self/io ] || skip "this kernel does not count what a process reads"
strace -o /dev/null true 2>/dev/null || skip "strace cannot be used here"

few=12 many=36
for n in $few $many; do
  "$python" "$srcdir/tests/blackbox/make-repository.py" "$NBDMIRROR" "$tmp/$n" "$tmp/shadow.$n" \
    --backups "$n" --step 60 >"$tmp/names.$n"
done

# reads COMMAND...: how often it and its children read; what a run without work does is taken
# off.
calls () {
  "$python" - "$NBDMIRROR" "$@" <<'END'
import subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(next(l.split()[1] for l in open("/proc/self/io") if l.startswith("syscr")))
END
}
reads () { echo $(($(calls "$@") - $(calls --version))); }

# linear COMMAND...: with the number of backups or checkpoints in the place of @N@.
linear () {
  local a b
  a=$(reads "${@/@N@/$few}") b=$(reads "${@/@N@/$many}")
  note "$*: $few: $a reads, $many: $b"
  [ "$b" -le $((a * 9 / 2)) ] || fail "$* reads $a times for $few, and $b for $many"
}
linear backup-list "$tmp/@N@"
linear backup-verify "$tmp/@N@" --quick

# The structure of a file is checked without those below it.
newest=$(tail -n 1 "$tmp/names.$many")
strace -f -o "$tmp/trace" -e trace=execve,openat "$NBDMIRROR" backup-verify "$tmp/$many" \
  --at "$newest" >"$tmp/out"
awk '
  /execve\(.*"qemu-img".*"check"/ { checks[$1] = 1 }
  /openat\(.*\.qcow2", O_RDONLY/ && $1 in checks { opened++ }
  END { n = length (checks); print n, opened + 0; exit !(n > 0 && opened <= 4 * n) }' \
  "$tmp/trace" >"$tmp/counts" || fail "qemu-img check: checks, files opened: $(cat "$tmp/counts")"

# Half of each is pruned at once.
reads_few=$(reads backup-prune "$tmp/$few" --keep-last $((few / 2)))
reads_many=$(reads backup-prune "$tmp/$many" --keep-last $((many / 2)))
note "backup-prune: $reads_few reads, $reads_many"
[ "$reads_many" -le $((reads_few * 3)) ] || fail "prune reads $reads_few, and $reads_many"
has_to_exit 0 nbdmirror backup-verify "$tmp/$many"

# A chain does not grow for ever: one of 500 files gets no other.  All but its first file are made
# here, as overlays that hold nothing.
random_disk "$tmp/a" 1M
start_stateful src "$tmp/a" "$tmp/state"
again=("$NBDMIRROR" backup "${control[src]}" "$tmp/long" --disk-name "${control[src]}=a")
has_to_exit 0 "${again[@]}"
"$python" - "$tmp/long" <<'END'
import glob, json, os, subprocess, sys
os.chdir(sys.argv[1])
manifest, = glob.glob("backups/*.json")
with open(manifest) as f:
    m = json.load(f)
disk, full = m["disks"][0], os.path.basename(m["disks"][0]["file"])
subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", full,
                "overlay", str(disk["size"])], check=True)
with open("overlay", "rb") as f:
    overlay = bytearray(f.read())
at = int.from_bytes(overlay[8:16], "big")
for i in range(1, 500):
    below = os.path.basename(disk["file"])
    overlay[16:20] = len(below).to_bytes(4, "big")
    overlay[at:at + len(full)] = below.encode().ljust(len(full), b"\0")
    disk["parent"] = {"backup": m["name"], "file": disk["file"]}
    m["name"], m["sequence"] = f"20200101T{i // 60:02}{i % 60:02}00Z", i + 1
    disk["kind"], disk["file"] = "incremental", f"a/{m['name']}-inc.qcow2"
    disk["file-bytes"], disk["file-digest"], disk["digests"] = len(overlay), "0" * 32, None
    with open(disk["file"], "wb") as f:
        f.write(overlay)
    with open(f"backups/{m['name']}.json", "w") as f:
        json.dump(m, f)
END
dry () { has_to_exit 0 "${again[@]}" --dry-run; }
dry
grep -q "a: full, .*chain has 500 files" "$tmp/out" || fail "500 files: $(cat "$tmp/out")"
has_to_exit 7 "${again[@]}" --incremental
rm "$tmp/long/backups/20200101T081900Z.json"
dry
grep -q "a: incremental, .*since backup 20200101T081800Z" "$tmp/out" ||
  fail "499 files: $(cat "$tmp/out")"

# Checkpoints in a state file that no server uses.
for n in $few $many; do
  random_disk "$tmp/disk.$n" 64M
  start_stateful "s$n" "$tmp/disk.$n" "$tmp/state.$n"
  for ((i = 0; i < n; i++)); do nbdmirror checkpoint add "${control[s$n]}" "k$i"; done
  stop "s$n"
done
linear checkpoint list "$tmp/state.@N@"
