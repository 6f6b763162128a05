#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a backup of two disks in use stands at one instant on both, whatever is written
# meanwhile; that an incremental one is equal to the disk, small, and leaves the earlier ones as
# they were; that trims shrink it and thin stays thin; that sizes may be odd or 0 and names any; and
# that a server that was restarted loses nothing.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd
proves_nothing_under thread

repo="$tmp/my repo"
serve () { # serve NAME DISK
  rm -f "$tmp/$1.sock" "$tmp/$1.control"
  start_server "$1" "$2" --state "$tmp/$1.state" -- mirror-state-volatile=yes
}
# what KEY DISK: of the last backup.  last DISK: the path of its file.
what () { "$python" "$srcdir/tests/blackbox/newest-backup.py" "$repo" "$2" "$1"; }
last () { what file "$1"; }
same () { # same DISK RAW: is the last backup equal to RAW, as QEMU reads it?
  qemu-img compare -q -f qcow2 -F raw "$(last "$1")" "$2" || fail "the backup of $1 differs"
  qemu-img check -q "$(last "$1")" || fail "qemu-img check of $1"
}
# put URI OFFSET LENGTH BYTE|trim
put () {
  "$python" - "$@" <<'END'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
offset, length = int(sys.argv[2]), int(sys.argv[3])
if sys.argv[4] == "trim":
    h.trim(length, offset)
else:
    h.pwrite(bytes([int(sys.argv[4])]) * length, offset)
h.shutdown()
END
}

# ---- one instant, while a guest writes: the number is written to A first, and then to B ----------
truncate -s 64M "$tmp/a"
random_disk "$tmp/b" 24M
serve a "$tmp/a"
serve b "$tmp/b"
spawn writer "$python" -c '
import nbd, struct, sys
a, b = nbd.NBD(), nbd.NBD()
a.connect_uri(sys.argv[1])
b.connect_uri(sys.argv[2])
n = 0
while True:
    n += 1
    for h in a, b:
        h.pwrite(struct.pack("<Q", n), 1 << 20)
        h.pwrite(struct.pack("<Q", n), (n % 200) * 4096)
' "${uri[a]}" "${uri[b]}"
for round in 1 2 3; do
  nbdmirror backup "${control[a]}" "${control[b]}" "$repo" >"$tmp/out" 2>"$tmp/err" ||
    fail "round $round: $(cat "$tmp/err")"
  number=()
  for disk in a b; do
    qemu-img dd -f qcow2 -O raw bs=1M skip=1 count=2 "if=$(last $disk)" "of=$tmp/part" >/dev/null ||
      fail "qemu-img dd"
    number+=("$(od -An -tu8 -N8 "$tmp/part" | tr -d ' ')")
  done
  note "round $round: ${number[*]}; $(cat "$tmp/out")"
  [ "${number[0]}" -gt 0 ] || fail "nothing was written"
  between=$((number[0] - number[1]))
  [ $between = 0 ] || [ $between = 1 ] || fail "no common instant: ${number[*]}"
  [ "$(what kind a)" = "$([ $round = 1 ] && echo full || echo incremental)" ] || fail "kind"
done
stop writer

# ---- incremental: equal, small, thin -------------------------------------------------------------
nbdmirror backup "${control[a]}" "${control[b]}" "$repo" >"$tmp/out"
same a "$tmp/a"
same b "$tmp/b"
# The job of a backup is completed, and the disk was not handed over.
has_to_exit 1 nbdmirror complete "${control[a]}"
grep -q "${control[a]}: no job is running" "$tmp/err" || fail "complete: $(cat "$tmp/err")"
first=$(find "$repo/b" -name '*-full.qcow2')
before=$(sha256sum <"$first")
put "${uri[b]}" 3145728 65536 7
put "${uri[b]}" 8388608 4194304 trim
nbdmirror backup "${control[a]}" "${control[b]}" "$repo" --dry-run >"$tmp/out"
grep -q '^b: incremental, 4.06 MiB of 24.0 MiB: ' "$tmp/out" || fail "plan: $(cat "$tmp/out")"
nbdmirror backup "${control[a]}" "${control[b]}" "$repo" --json >"$tmp/out"
same b "$tmp/b"
[ "$(what copied-bytes b)" -le 131072 ] || fail "the trim was sent as data: $(what copied-bytes b)"
[ "$(what file-bytes b)" -le 524288 ] || fail "the file has $(what file-bytes b) bytes"
[ "$(what copied-bytes a)" = 0 ] || fail "nothing was changed on a"
[ "$(what digest b)" = "$(nbdmirror digest "$tmp/b" | cut -d' ' -f1)" ] || fail "digest"
[ "$before" = "$(sha256sum <"$first")" ] || fail "the first file was changed"
size=$(stat -c %b "$(find "$repo/a" -name '*-full.qcow2')")
[ "$size" -lt 16000 ] || fail "an empty disk takes $size sectors"
# Clusters that were changed here and there: the repository grows by hardly more than them.
"$python" - "${uri[b]}" <<'END'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for n in range(128):
    h.pwrite(b"x" * 4096, n * 3 * 65536)
h.shutdown()
END
size=$(du -sB1 "$repo" | cut -f1)
nbdmirror backup "${control[b]}" "$repo" >"$tmp/out"
same b "$tmp/b"
grown=$(($(du -sB1 "$repo" | cut -f1) - size))
[ $grown -le $((128 * 65536 * 11 / 10)) ] || fail "128 clusters of 64 KiB take $grown bytes"
# One checkpoint is left, with a name of the repository's.
[ "$(nbdmirror checkpoint list "${control[b]}" | grep -c '^backup-')" = 1 ] || fail "checkpoints"

# ---- the server ends and starts in between -------------------------------------------------------
put "${uri[b]}" 12582912 4096 9
stop b
serve b "$tmp/b"
put "${uri[b]}" 16777216 4096 9
nbdmirror backup "${control[b]}" "$repo" >"$tmp/out" 2>"$tmp/err"
[ "$(what kind b)" = incremental ] || fail "after a restart: $(what reason b)"
same b "$tmp/b"

# ---- the directory can be moved ------------------------------------------------------------------
mv "$repo" "$tmp/moved"
repo="$tmp/moved"
same b "$tmp/b"

# ---- odd sizes, a disk of 0 bytes, names ---------------------------------------------------------
random_disk "$tmp/odd" 100001
: >"$tmp/none"
serve odd "$tmp/odd"
start_server none "$tmp/none"
for round in full incremental; do
  nbdmirror backup "${control[odd]}" "${control[none]}" "$repo" --include "$tmp/out" \
    --disk-name "${control[odd]}=für, my disk" >"$tmp/line" 2>"$tmp/err" ||
    fail "$(cat "$tmp/err")"
  [ "$(what kind none)" = full ] || fail "none: $(what kind none)"
  [ "$(what kind "für, my disk")" = $round ] || fail "odd: $(what reason "für, my disk")"
  same "für, my disk" "$tmp/odd"
  same none "$tmp/none"
  put "${uri[odd]}" 99990 11 5
done
grep -q 'all 2 disks done' "$tmp/line" || fail "$(cat "$tmp/line")"
cmp "$tmp/out" "$(find "$repo/backups" -name '1-out' | head -n 1)" || fail "--include"
put "${uri[odd]}" 99990 11 9
nbdmirror backup "${control[odd]}" "$repo" --disk-name "${control[odd]}=für, my disk" \
  >"$tmp/line" 2>"$tmp/err" || fail "$(cat "$tmp/err")"
for disk in odd none; do
  nbdmirror restore "$repo" "$tmp/restored" --disk "${disk/odd/für, my disk}" 2>"$tmp/err" ||
    fail "restore of $disk: $(cat "$tmp/err")"
  cmp "$tmp/restored" "$tmp/$disk" || fail "another disk than $disk was restored"
  rm "$tmp/restored"
done
[ -z "$(find "$repo" -name '*.begun')" ] || fail "a mark was left"
