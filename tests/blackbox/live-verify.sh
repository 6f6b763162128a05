#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a live copy is verified while the guest writes: by the destination's digests or by its
# bytes, without a false difference; that a planted difference is found, told with its offset, and
# healed; that the bandwidth limit holds; and that a job which completes by itself does so after a
# verification without a difference only.  With NBDMIRROR_LONG it goes on for half an hour.
[ "${NBDMIRROR_LONG:-0}" = 0 ] || TEST_TIMEOUT=2400
. "$(dirname "$0")/lib.sh"
long_test

size=$((192 * 1048576 + 513))
seconds=4
[ "${NBDMIRROR_LONG:-0}" = 0 ] || seconds=900 # by digests and by bytes

# plant FILE OFFSET: another byte there, behind everybody's back.
plant () { printf '\377\376' | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }

# verify_beside_guests NAME: verify over and over for $seconds while guests write.
verify_beside_guests () {
  local name=$1 rounds=0 deadline
  start_guest "guest-$name" "${uri[src]}" --connections 3 --rate 150 --seconds $((seconds + 120))
  deadline=$((SECONDS + seconds))
  while [ $SECONDS -lt $deadline ]; do
    # It is ready most of the time, and not always.
    wait_state "${control[src]}" ready 60
    nbdmirror verify "${control[src]}" --json >"$tmp/out" 2>"$tmp/err" </dev/null || {
      grep -q 'not ready' "$tmp/err" || fail "verify ($name): $? $(cat "$tmp/out" "$tmp/err")"
      continue
    }
    rounds=$((rounds + 1))
    [ "$(field equal <"$tmp/out")" = true ] || fail "a false difference: $(cat "$tmp/out")"
    [ "$(field verified-bytes <"$tmp/out")" -ge $((size / 2)) ] ||
      fail "most was not verified: $(cat "$tmp/out")"
  done
  [ $rounds -gt 0 ] || fail "not one verification came to its end"
  stop "guest-$name" INT
  [ "$status" = 0 ] || fail "guest-$name ended with $status"
  note "$name: $rounds verifications beside the guests"
}

random_disk "$tmp/disk" $size
start_server src "$tmp/disk"

# ---- by digests, at a server of receive ----

start_receive dst "$tmp/dst.img" --size $size
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}"
has_to_exit 1 nbdmirror verify "$tmp/none"
wait_state "${control[src]}" ready 60
has_to_exit 0 nbdmirror verify "${control[src]}"
grep -q "^equal: .* ($size bytes)" "$tmp/out" || fail "not all verified: $(cat "$tmp/out")"
[ "$(status_of "${control[src]}" verified-bytes)" = "$size" ] || fail "the status does not tell"
verify_beside_guests digests

# Planted where nobody writes: in data, beside a guest; and then in a hole and in the tail.
start_guest guest "${uri[src]}" --connections 2 --rate 100 --to 100000000
for at in 120000000 $((141 * 1048576)) $((size - 1)); do
  plant "$tmp/dst.img" "$at"
  wait_state "${control[src]}" ready 60
  has_to_exit 5 nbdmirror verify "${control[src]}" --json
  block=$((at / 4096 * 4096))
  [ "$(field mismatch-offset <"$tmp/out")" -ge 0 ] || fail "no offset: $(cat "$tmp/out")"
  [ "$(field mismatches <"$tmp/out")" -ge 1 ] || fail "not counted: $(cat "$tmp/out")"
  grep -q "first found at offset $block" "$tmp/mirror.log" ||
    fail "the offset $block is not told: $(tail -n 2 "$tmp/mirror.log")"
  wait_state "${control[src]}" ready 60
  ! running guest || stop guest INT
  has_to_exit 0 nbdmirror verify "${control[src]}"      # healed
done
[ "$(status_of "${control[src]}" mismatches)" -ge 3 ] || fail "the status does not count"

# A hand-off ends a verification that runs, and is exact.
nbdmirror set "${control[src]}" bandwidth=64k
spawn verify nbdmirror verify "${control[src]}"
wait_for 10 sh -c "'$NBDMIRROR' status '${control[src]}' --json | grep -q '\"verify\": \"running\"'"
nbdmirror set "${control[src]}" bandwidth=none
complete_soon "${control[src]}"
wait_exit mirror 20
wait_exit verify 20
equal "$tmp/disk" "${uri[dst]}"
stop dst
nbdmirror rollback "${control[src]}" --destination-stopped \
  --token "$(status_of "${control[src]}" rollback-token)" >"$tmp/rollback.log" 2>&1 </dev/null

# ---- by bytes, at any server, under a limit ----

start_dest plain file $size
has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$tmp/disk" "${uri[plain]}"
spawn mirror nbdmirror mirror "${control[src]}" "${uri[plain]}" --sync compare --restart
wait_state "${control[src]}" ready 60
verify_beside_guests bytes
nbdmirror set "${control[src]}" bandwidth=64M
wait_state "${control[src]}" ready 60
SECONDS=0
has_to_exit 0 nbdmirror verify "${control[src]}"
[ $SECONDS -ge 2 ] || fail "192 MiB were read in $SECONDS s with a limit of 64 MiB/s"
nbdmirror cancel "${control[src]}"
wait_exit mirror 20

# ---- mirror --verify ----

has_to_exit 0 timeout 60 "$NBDMIRROR" mirror "${control[src]}" "${uri[plain]}" --sync compare \
  --verify --on-ready complete --report "$tmp/report"
[ "$(field verify <"$tmp/report")" = "done" ] || fail "it did not verify before it completed"
[ "$(field verified-bytes <"$tmp/report")" = $size ] || fail "it did not verify everything"
[ "$(field mismatches <"$tmp/report")" = 0 ] || fail "a false difference"
equal "$tmp/disk" "${uri[plain]}"

# ---- a write on its way ----

# It has changed the source already, and is marked 3 s later: no difference may be told meanwhile.
head -c 1M /dev/urandom >"$tmp/slow.img"
cp "$tmp/slow.img" "$tmp/target.img"
# What is preloaded into nbdkit is too much for dd, and ThreadSanitizer for a shell.
[ "$sanitizers" != thread ] || exit 0
dd="unset LD_PRELOAD; dd status=none"
start_nbdkit slow eval get_size='echo 1048576' can_write='exit 0' can_flush='exit 0' \
  flush='exit 0' thread_model='echo parallel' \
  pread="$dd if='$tmp/slow.img' iflag=skip_bytes,count_bytes skip=\$4 count=\$3" \
  pwrite="$dd of='$tmp/slow.img' oflag=seek_bytes seek=\$4 conv=notrunc; sleep 3"
start_dest target file 1M
# Ready for as long as this takes, however slow the machine is.
spawn mirror nbdmirror mirror "${control[slow]}" "${uri[target]}" --sync compare \
  --max-downtime 20s
wait_state "${control[slow]}" ready 60
spawn writer "$python" -c 'import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"w" * 4096, 409600)
h.shutdown()' "${uri[slow]}"
printf 'w%.0s' {1..4096} >"$tmp/written"
wait_for 10 cmp -s -i 409600:0 -n 4096 "$tmp/slow.img" "$tmp/written"
[ "$(status_of "${control[slow]}" in-flight)" = 1 ] || fail "the write is over already"
has_to_exit 0 nbdmirror verify "${control[slow]}"
wait_exit writer 10
[ "$(status_of "${control[slow]}" mismatches)" = 0 ] || fail "a write on its way is no difference"

# ---- a command has no connection to spare, and says so ----

random_disk "$tmp/small" 1M
start_server small "$tmp/small"
spawn command nbdmirror mirror "${control[small]}" [ nbdkit memory 1M ]
wait_state "${control[small]}" ready 60
has_to_exit 1 nbdmirror verify "${control[small]}"
grep -q 'a command has one connection only' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
[ "$(status_of "${control[small]}" state)" = ready ] || fail "the mirror did not go on"
