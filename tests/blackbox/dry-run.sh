#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that `mirror --dry-run` measures what the guest writes, says whether it would converge,
# refuses what a job would be refused for, and leaves nothing behind: no job, no file, not a byte
# written, and a job that was left over as it was.
. "$(dirname "$0")/lib.sh"
measures_times
proves_nothing_under thread
need_fio_nbd

size=$((64 << 20))
random_disk "$tmp/disk" 64M
start_server src "$tmp/disk"
start_dest dst file 64M
before=$(sha256sum <"$tmp/dst.img")
src=${control[src]} dst=${uri[dst]}

# 512 blocks of 4 KiB a second: 2 MiB/s, against a limit of 8 MiB/s and one of 2.
spawn guest fio --name=guest --ioengine=nbd --uri="${uri[src]}" --rw=write --bs=4k --time_based \
  --runtime=120 \
  --size=64M --rate_iops=512 --output="$tmp/fio.out"
for _ in {1..100}; do # it needs a moment to start
  nbdmirror mirror "$src" "$dst" --dry-run --measure 100ms --json </dev/null >"$tmp/json" ||
    fail "dry run: $?"
  [ "$(field dirty-rate <"$tmp/json")" = 0.0 ] || break
done

nbdmirror mirror "$src" "$dst" --dry-run --measure 2s --bandwidth 8M --json </dev/null \
  >"$tmp/json" || fail "dry run: $?"
"$python" - "$tmp/json" <<'PY' || fail "the forecast is wrong: $(cat "$tmp/json")"
import json, sys
r = json.load(open(sys.argv[1]))
assert r["dry-run"] is True and r["size"] == 64 << 20 and r["exit-status"] == 0, "head"
assert 0.5e6 < r["dirty-rate"] < 4e6, "dirty rate"
assert 0 < r["bandwidth"] <= 8 * 1048576 * 1.1, "bandwidth"
assert r["converging"] is True and r["ends"] is True and r["eta-s"] > 1, "forecast"
assert 0 <= r["expected-downtime-ms"] <= 300, "pause"
assert r["job-left-over"] is False
PY

# A guest that is too fast: what each policy makes of it.
has_to_exit 4 nbdmirror mirror "$src" "$dst" --dry-run --measure 1s --bandwidth 1M --policy none
nbdmirror mirror "$src" "$dst" --dry-run --measure 1s --bandwidth 1M --policy sync </dev/null \
  >"$tmp/text" || fail "dry run: $?"
grep -q 'converging *no (dirty .*, bandwidth ' "$tmp/text" ||
  fail "the text does not say no: $(cat "$tmp/text")"
grep -q 'policy *sync: guest writes are going to wait' "$tmp/text" ||
  fail "it does not say what the policy does"

# Nothing is left behind.
[ "$(status_of "$src" state)" = idle ] || fail "a dry run left a job"
[ "$(status_of "$src" worker)" = detached ] || fail "a dry run left a worker"
[ "$(sha256sum <"$tmp/dst.img")" = "$before" ] || fail "a dry run wrote to the destination"
[ ! -e "$src.worker" ] || fail "a dry run left a lock"
nbdmirror mirror "$src" "$tmp/new.img" --dry-run --measure 100ms </dev/null >/dev/null \
  2>"$tmp/err" || fail "dry run: $?"
grep -q 'would be created' "$tmp/err" || fail "it does not say that the file would be created"
[ ! -e "$tmp/new.img" ] || fail "a dry run created the destination"
truncate -s 1M "$tmp/short.img"
nbdmirror mirror "$src" "$tmp/short.img" --dry-run --measure 100ms </dev/null >/dev/null \
  2>"$tmp/err" || fail "dry run: $?"
[ "$(stat -c %s "$tmp/short.img")" = 1048576 ] || fail "a dry run extended the destination"

# It ends when it is told to.
spawn long nbdmirror mirror "$src" "$dst" --dry-run --measure 60s --bandwidth 1M
measures () { [ "$(find "/proc/${pid[long]}/task" -maxdepth 1 -mindepth 1 | wc -l)" -ge 3 ]; }
wait_for 10 measures # one thread reads the source, and one the destination
kill -INT "${pid[long]}"
wait_exit long 10
[ "$status" = 6 ] || fail "SIGINT: exit status $status"

# What a job would be refused for.
has_to_exit 7 nbdmirror mirror "$src" "${uri[src]}" --dry-run --measure 100ms
start_dest small file 32M
has_to_exit 7 nbdmirror mirror "$src" "${uri[small]}" --dry-run --measure 100ms
has_to_exit 3 nbdmirror mirror "$src" "nbd+unix:///?socket=$tmp/nobody" --dry-run --measure 100ms
has_to_exit 3 nbdmirror mirror "$src" "$tmp/no/such/dir.img" --dry-run --measure 100ms

# A job that is left over stays, can be resumed, and its destination is recognised.
stop guest
nbdmirror mirror "$src" "$dst" --detach </dev/null >/dev/null 2>&1 || fail "mirror: $?"
wait_state "$src" ready 30
has_to_exit 7 nbdmirror mirror "$src" "$dst" --dry-run --measure 100ms # a worker is attached
kill "$(status_of "$src" worker-pid)"
wait_state "$src" detached 10
nbdmirror mirror "$src" "$dst" --dry-run --measure 100ms --resume --json </dev/null >"$tmp/json" ||
  fail "dry run: $?"
[ "$(field destination-is-the-same <"$tmp/json")" = true ] ||
  fail "the destination was not recognised"
[ "$(field data-bytes <"$tmp/json")" -lt "$size" ] || fail "it would send everything again"
start_dest other file 64M
has_to_exit 7 nbdmirror mirror "$src" "${uri[other]}" --dry-run --measure 100ms --resume
[ "$(status_of "$src" state)" = detached ] || fail "a dry run changed the job that was left over"
nbdmirror mirror "$src" "$dst" --resume --on-ready complete </dev/null >/dev/null 2>&1 ||
  fail "it could not be resumed: $?"
equal "$tmp/disk" "$dst"
