#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that checkpoints know what was changed since: after writes, zeroes and trims, while a guest
# writes, after kill -9, after a clean end, in another boot, and with some of them removed.  The map
# has all that really changed, and no more than whole blocks (whole extents after a power failure).
# What was changed behind the server's back makes them inconsistent.  Two disks have one instant.
. "$(dirname "$0")/lib.sh"

size=64M
extent=4194304
random_disk "$tmp/disk" $size
random_disk "$tmp/disk2" $size

# serve NAME DISK: with a state file.
serve () {
  server_paths "$1"
  rm -f "${socket[$1]}" "${control[$1]}"
  spawn "$1" "${nbdmirror_prefix[@]}" "${server_env[@]}" nbdkit -f -U "${socket[$1]}" \
    --filter="$NBDMIRROR_FILTER" file "$2" "mirror-control=${control[$1]}" \
    "mirror-uri=${uri[$1]}" "mirror-direct=$2" "mirror-state=$tmp/$1.state" \
    mirror-state-volatile=yes
  wait_for_socket "${socket[$1]}" "$1"
  wait_for_socket "${control[$1]}" "$1"
}
kill_server () {
  kill -KILL "${pid[$1]}"
  wait "${pid[$1]}" 2>/dev/null || :
}

# change SEED: a guest writes, zeroes and trims here and there, unaligned too.  It notes where in
# $tmp/log.
change () {
  "$python" - "${uri[src]}" "$tmp/log" "$1" <<'EOF'
import nbd, os, random, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
rng = random.Random(int(sys.argv[3]))
with open(sys.argv[2], "a") as log:
    for i in range(40):
        offset = rng.randrange(0, h.get_size() - 70000)
        length = rng.choice((1, 512, 4096, 5000, 65536))
        kind = rng.choice("wwzt")
        if kind == "w":
            h.pwrite(os.urandom(length), offset)
        elif kind == "z":
            h.zero(length, offset)
        else:
            h.trim(length, offset)
        print(offset, length, file=log)
h.shutdown()
EOF
}

# check SINCE SLACK PLACE [OPTIONS]: the map since then has what $tmp/log says, and is no larger
# than that, in units of SLACK bytes.
check () {
  local since=$1 slack=$2
  shift 2
  nbdmirror dirty-map "$@" --since "$since" --json >"$tmp/map"
  "$python" - "$tmp/map" "$tmp/log" "$slack" "$(bytes $size)" <<'EOF' || fail "since $since"
import json, sys
ranges = json.load(open(sys.argv[1]))
unit, size = int(sys.argv[3]), int(sys.argv[4])
end = 0
for r in ranges:
    assert r["offset"] == end and r["length"] > 0, "the map has a gap"
    assert r["description"] == ("clean", "dirty")[r["type"]]
    end += r["length"]
assert end == size, "the map does not end with the disk"
got = set()
for r in ranges:
    if r["type"]:
        got.update(range(r["offset"] // 4096, (r["offset"] + r["length"] - 1) // 4096 + 1))
want, units = set(), set()
for line in open(sys.argv[2]):
    offset, length = map(int, line.split())
    want.update(range(offset // 4096, (offset + length - 1) // 4096 + 1))
    units.update(range(offset // unit, (offset + length - 1) // unit + 1))
most = {b for u in units for b in range(u * unit // 4096, (u + 1) * unit // 4096)}
print(len(want), len(got), "blocks")
assert want <= got, f"{len(want - got)} changed blocks are missing"
assert got <= most, f"{len(got - most)} blocks were not changed"
EOF
}
cmp_differs () { ! cmp -s "$tmp/before" "$tmp/disk"; }
checkpoint () { nbdmirror checkpoint "$@"; }
names () {
  nbdmirror checkpoint list "$1" --json | "$python" -c '
import json, sys
print(*[c["name"] + ("" if c["status"] == "consistent" else "!") for c in json.load(sys.stdin)])'
}

: >"$tmp/log"
serve src "$tmp/disk"
checkpoint add "${control[src]}" one          # opens the disk by itself
change 1
check one 4096 "${control[src]}"

# Names that are refused, twice the same, and what does not exist.
for name in '' .x a/b -- --x; do
  ! checkpoint add "${control[src]}" -- "$name" 2>/dev/null || fail "the name '$name' was taken"
done
! checkpoint add "${control[src]}" one 2>"$tmp/err" || fail "one was added twice"
grep -q "there is a checkpoint 'one' already" "$tmp/err" || fail "twice: not told"
! nbdmirror dirty-map "${control[src]}" --since none 2>"$tmp/err" || fail "there is none"
grep -q "there is no checkpoint 'none'" "$tmp/err" || fail "none: not told"

# kill -9 in this boot loses nothing, and marks nothing more.
kill_server src
check one 4096 "$tmp/src.state" --disk "$tmp/disk"
serve src "$tmp/disk"
check one 4096 "${control[src]}"
cp "$tmp/log" "$tmp/log1"

# The next checkpoint, while a guest writes.
cp "$tmp/disk" "$tmp/before"
cat >"$tmp/guest.py" <<'EOF'
import nbd, os, random, sys, threading, time
until, writes = time.monotonic() + 60, []
def write(seed):
    rng, h = random.Random(seed), nbd.NBD()
    h.connect_uri(sys.argv[1])
    enough = False
    while not enough and time.monotonic() < until:
        enough = os.path.exists(sys.argv[2])  # one write more
        offset = rng.randrange(2048) * 4096 + (seed << 24)
        writes.append(f"{time.time()} {offset} 4096")
        h.pwrite(os.urandom(4096), offset)
    h.shutdown()
threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
for t in threads: t.start()
for t in threads: t.join()
print("\n".join(writes))
EOF
spawn guest "$python" "$tmp/guest.py" "${uri[src]}" "$tmp/enough"
wait_for 20 cmp_differs
for i in 1 2 3 4 5; do
  checkpoint add "${control[src]}" "busy$i"
  added[i]=$(date +%s.%N)
done
touch "$tmp/enough"
ends_well guest
# What began after one of them is in its map, though not only that.
for i in 1 2 3 4 5; do
  awk -v since="${added[i]}" '$1 > since { print $2, $3 }' "$tmp/guest.log" >"$tmp/log"
  [ -s "$tmp/log" ] || fail "the guest had ended before checkpoint $i"
  check "busy$i" 67108864 "${control[src]}"
done
cp "$tmp/log1" "$tmp/log"
"$python" - "$tmp/before" "$tmp/disk" >>"$tmp/log" <<'EOF'
import sys
a, b = (open(p, "rb").read() for p in sys.argv[1:])
for o in range(0, len(a), 4096):
    if a[o:o+4096] != b[o:o+4096]:
        print(o, 4096)
EOF
check one 67108864 "${control[src]}"

# Changes after the last one are in its recording, and nothing older is.
checkpoint add "${control[src]}" two
: >"$tmp/log"
change 2
check two 4096 "${control[src]}"
cp "$tmp/log" "$tmp/log2"
[ "$(names "${control[src]}")" = "one busy1 busy2 busy3 busy4 busy5 two" ] || fail "the list"

# Some are removed: in the middle, the first, and of the last two the last.
for i in 1 3 4 5 2; do
  checkpoint remove "${control[src]}" "busy$i"
done
check two 4096 "${control[src]}"
cat "$tmp/log1" "$tmp/log2" >"$tmp/log"
check one 67108864 "${control[src]}"
checkpoint add "${control[src]}" three
cp "$tmp/log2" "$tmp/log"
change 3
check two 4096 "${control[src]}"
checkpoint remove "${control[src]}" three
check two 4096 "${control[src]}"
checkpoint remove "${control[src]}" one
check two 4096 "${control[src]}"

# After a clean end the state file alone tells, and a checkpoint can be removed from it.
stop src
check two 4096 "$tmp/src.state" --disk "$tmp/disk"
[ "$(names "$tmp/src.state")" = two ] || fail "the state file's list"
serve src "$tmp/disk"
checkpoint add "${control[src]}" four
stop src
checkpoint remove "$tmp/src.state" four
check two 4096 "$tmp/src.state" --disk "$tmp/disk"
serve src "$tmp/disk"
check two 4096 "${control[src]}"

# The power fails: whole extents may be over-marked, and nothing is missing.
change 4
kill_server src
"$python" "$srcdir/tests/blackbox/other-boot.py" "$tmp/src.state"
check two $extent "$tmp/src.state" --disk "$tmp/disk"
serve src "$tmp/disk"
check two $extent "${control[src]}"

# Two disks at one instant, or none.
serve dst "$tmp/disk2"
checkpoint add "${control[src]}" "${control[dst]}" both
[ "$(names "${control[dst]}")" = both ] || fail "the second disk has no checkpoint"
checkpoint add "${control[dst]}" odd
! checkpoint add "${control[src]}" "${control[dst]}" odd 2>/dev/null || fail "odd is there already"
[ "$(names "${control[src]}")" = "two both" ] || fail "one of two disks got a checkpoint"

# Changed behind the server's back.
stop src
printf x | dd of="$tmp/disk" bs=1 seek=33333 conv=notrunc status=none
status=0
nbdmirror dirty-map "$tmp/src.state" --disk "$tmp/disk" --since two >/dev/null 2>&1 || status=$?
[ $status = 7 ] || fail "a changed disk: exit status $status"
serve src "$tmp/disk"
[ "$(names "${control[src]}")" = "two! both!" ] || fail "they are still consistent"
status=0
nbdmirror dirty-map "${control[src]}" --since two >/dev/null 2>"$tmp/err" || status=$?
[ $status = 7 ] || fail "inconsistent: exit status $status"
grep -q "changed while it was not tracked" "$tmp/err" || fail "the reason is not told"
# A new one begins anew.
checkpoint add "${control[src]}" five
: >"$tmp/log"
change 5
check five 4096 "${control[src]}"

# Served without the state file after a crash.
"$python" -c 'import os, sys; os.getxattr(sys.argv[1], "user.nbdmirror.tracked")' "$tmp/disk" \
  2>/dev/null && marked=1 || marked=0
if [ $marked = 1 ]; then
  kill_server src
  check five 4096 "$tmp/src.state" --disk "$tmp/disk"
  start_server other "$tmp/disk"
  stop other
  serve src "$tmp/disk"
  [ "$(names "${control[src]}")" = "two! both! five!" ] ||
    fail "a server without the state file was not noticed"
  checkpoint remove "${control[src]}" five
  checkpoint add "${control[src]}" five
else
  note "no extended attributes here: a server without the state file is not tried"
fi
checkpoint remove "${control[src]}" both
checkpoint remove "${control[src]}" two
[ "$(names "${control[src]}")" = five ] || fail "the inconsistent ones stay"

# A guest that is held does not wait for recordings to be read.
spawn mirror nbdmirror mirror "${control[src]}" "$tmp/held.img"
wait_state "${control[src]}" ready 20
complete_soon "${control[src]}" --prepare-only --lease 20s
has_to_exit 1 nbdmirror dirty-map "${control[src]}" --since five
grep -q "a hand-over is under way" "$tmp/err" || fail "while it is held: $(cat "$tmp/err")"
has_to_exit 1 nbdmirror checkpoint remove "${control[src]}" five
nbdmirror cancel "${control[src]}"
wait_exit mirror 10
stop src
stop dst
