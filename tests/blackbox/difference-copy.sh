#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that an offline copy sends only the difference, and is exact: bases that are smaller or
# larger than the disk, holes on either side, zeroes where the base holds data, odd tails, raw and
# qcow2.  A second `--sync compare` sends nothing.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread
need qemu-img qemu-nbd

size=$((48 * 1048576 + 777))

# sent REPORT: the bytes that were sent, as data or as zeroes.
sent () { echo $(($(field sent-bytes <"$1") + $(field zero-bytes <"$1"))); }

# copies LIMIT SOURCE DEST OPTIONS...: it becomes equal, and at most LIMIT bytes are sent.
copies () {
  local limit=$1 source=$2 dest=$3 n; shift 3
  nbdmirror copy "$source" "$dest" "$@" --report "$tmp/report" 2>"$tmp/copy.log" </dev/null ||
    fail "copy $* ended with $?: $(tail -n 1 "$tmp/copy.log")"
  compare "$source" "$dest" || fail "copy $*: the destination differs"
  n=$(sent "$tmp/report")
  [ "$n" -le "$limit" ] || fail "copy $*: $n bytes were sent, and at most $limit had to be"
  [ $((n + $(field skipped-bytes <"$tmp/report"))) = "$size" ] ||
    fail "copy $*: sent $n and skipped $(field skipped-bytes <"$tmp/report"), which is not $size"
}

at () { dd of="$1" bs=1M oflag=seek_bytes seek="$2" conv=notrunc status=none; }
# poke FILE OFFSET BYTES: other data there.
poke () { head -c "$3" /dev/urandom | at "$1" "$2"; }
# blank FILE OFFSET BYTES: zeroes that are stored.
blank () { head -c "$3" /dev/zero | at "$1" "$2"; }

# Data, a hole, data, and an odd tail that is data.
truncate -s "$size" "$tmp/old"
poke "$tmp/old" 0 16M
poke "$tmp/old" 32M $((16 * 1048576 + 777))

# What changed: 4 KiB and 1 byte of data, 1 MiB became zero, another one a hole, and 64 KiB of the
# hole data.
cp "$tmp/old" "$tmp/disk"
poke "$tmp/disk" 1M 4096
poke "$tmp/disk" $((size - 1)) 1
blank "$tmp/disk" 4M 1M
fallocate -p -o 8M -l 1M "$tmp/disk"
poke "$tmp/disk" 20M 64K
data=$((4096 + 777 + 65536)) zeroes=$((2 * 1048576))

# ---- compare ----

cp "$tmp/old" "$tmp/dest"
copies $((data + zeroes)) "$tmp/disk" "$tmp/dest" --sync compare
copies 0 "$tmp/disk" "$tmp/dest" --sync compare
[ "$(field sync <"$tmp/report")" = compare ] || fail "the report does not name the mode"

# A destination that has no holes and cannot tell zeroes is read.
cp --sparse=never "$tmp/disk" "$tmp/dense.img"
start_dest dense file 1 --filter=noextents
copies 0 "$tmp/disk" "${uri[dense]}" --sync compare
blank "$tmp/dense.img" 0 1M
poke "$tmp/dense.img" 24M 1
copies $((1048576 + 1048576)) "$tmp/disk" "${uri[dense]}" --sync compare
stop dense

qemu-img convert -q -f raw -O qcow2 "$tmp/old" "$tmp/q.qcow2"
start_dest q qcow2 1
qsize=$size size=$(((size + 511) / 512 * 512)) # qcow2 has whole sectors
cp "$tmp/disk" "$tmp/whole"
truncate -s "$size" "$tmp/whole"
copies $((data + 512 + zeroes)) "$tmp/whole" "${uri[q]}" --sync compare
copies 0 "$tmp/whole" "${uri[q]}" --sync compare
stop q
size=$qsize

# ---- base ----

# base_case NAME LIMIT BASE_SIZE: the base is cut or lengthened to BASE_SIZE bytes, and what a
# destination holds that was made from it is the same, cut or filled up with zeroes.
base_case () {
  cp "$tmp/old" "$tmp/base"
  [ "$3" -le "$size" ] || poke "$tmp/base" "$size" $(($3 - size))
  truncate -s "$3" "$tmp/base"
  cp "$tmp/base" "$tmp/dest"
  truncate -s "$size" "$tmp/dest"
  copies "$2" "$tmp/disk" "$tmp/dest" --sync base --base "$tmp/base" --trust-base

  qemu-img convert -q -f raw -O qcow2 "$tmp/base" "$tmp/base.qcow2"
  cp "$tmp/base" "$tmp/dest"
  truncate -s "$size" "$tmp/dest"
  copies "$2" "$tmp/disk" "$tmp/dest" --sync base --base "$tmp/base.qcow2" --base-format qcow2 \
    --trust-base
}
base_case same $((data + zeroes)) "$size"
base_case larger $((data + zeroes)) $((size + 1234567))
base_case smaller $((data + zeroes + 8 * 1048576 + 777)) $((40 * 1048576))
base_case odd $((data + zeroes + 8 * 1048576 + 777 + 4096)) $((40 * 1048576 - 1))
base_case empty "$size" 0

# ---- top ----

qemu-img convert -q -f raw -O qcow2 "$tmp/old" "$tmp/old.qcow2"
qemu-img resize -q --shrink "$tmp/old.qcow2" 48M
size=$((48 * 1048576))
qemu-img create -q -f qcow2 -b "$tmp/old.qcow2" -F qcow2 "$tmp/middle.qcow2"
qemu-img create -q -f qcow2 -b "$tmp/middle.qcow2" -F qcow2 "$tmp/top.qcow2"
# Clusters and less, single ones between others, zeroes over data and over a hole, the last bytes.
commands=(-c 'write -P 1 1M 64k' -c 'write -P 2 4195k 3k' -c 'write -z 6M 1M'
  -c 'write -z 22M 64k' -c "write -P 3 $((size - 512)) 512")
for i in 0 2 4 6 8 10 12 14 16 18; do
  commands+=(-c "write -P 9 $((8 * 1048576 + i * 65536)) 64k")
done
qemu-io -f qcow2 "${commands[@]}" "$tmp/top.qcow2" >"$tmp/io.log"
# What the top layer's clusters hold.
allocated=$(qemu-img map --output=json "$tmp/top.qcow2" | "$python" -c '
import json, sys
print(sum(extent["length"] for extent in json.load(sys.stdin) if extent["depth"] == 0))')
[ "$allocated" -lt $((5 * 1048576)) ] || fail "$allocated bytes are allocated: the test is wrong"
qemu-img convert -q -O raw "$tmp/top.qcow2" "$tmp/disk"
spawn layers qemu-nbd -A -t -r -e 0 -k "$tmp/layers.sock" -f qcow2 "$tmp/top.qcow2"
wait_for_socket "$tmp/layers.sock" layers
source="nbd+unix:///?socket=$tmp/layers.sock"

qemu-img convert -q -O raw "$tmp/middle.qcow2" "$tmp/dest"
copies "$allocated" "$source" "$tmp/dest" --sync top --trust-base
compare "$tmp/disk" "$tmp/dest" || fail "top: the destination is not the disk"
qemu-img create -q -f qcow2 -b "$tmp/middle.qcow2" -F qcow2 "$tmp/over.qcow2"
start_dest over qcow2 1
copies "$allocated" "$source" "${uri[over]}" --sync top --trust-base
stop over
qemu-img compare -q "$tmp/top.qcow2" "$tmp/over.qcow2" || fail "top: qemu-img finds a difference"
stop layers

# ---- what is refused ----

# refused STATUS MESSAGE OPTIONS...
refused () {
  local want=$1 message=$2 got=0; shift 2
  nbdmirror copy "$tmp/disk" "$tmp/dest" "$@" >"$tmp/refused.log" 2>&1 </dev/null || got=$?
  [ "$got" = "$want" ] || fail "copy $*: exit status $got, not $want: $(cat "$tmp/refused.log")"
  grep -q -- "$message" "$tmp/refused.log" ||
    fail "copy $*: does not say '$message': $(cat "$tmp/refused.log")"
}
refused 2 'must be full, top, base, compare, incremental or auto' --sync nothing
refused 2 'needs --base' --sync base
refused 2 'goes with --sync base or --sync top' --sync compare --base "$tmp/base"
refused 2 'goes with --base' --base-format qcow2
refused 2 'goes with --base' --trust-base
refused 1 "base image: $tmp/none: No such file" --sync base --base "$tmp/none"
refused 1 "base image: " --sync base --base "$tmp/none" --base-format qcow2
refused 7 'does not tell its layers apart' --sync top --trust-base
refused 2 'needs --base IMAGE' --sync top
