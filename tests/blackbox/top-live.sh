#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that `mirror --sync top` of a disk that `serve --format qcow2` serves needs nothing else
# from the user: the image's header names the base, both sides prove that they have the same one,
# and no more than the clusters of the top layer are sent.  Then a guest writes while workers and
# qemu-nbds are killed at random instants, and the destination is compared byte by byte.  The export
# that tells the layers apart is read-only and says what it is, and no other one is taken for it.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread
need qemu-img qemu-io qemu-nbd

size=$(bytes 96M) rounds=3
[ "${NBDMIRROR_LONG:-0}" = 0 ] || rounds=${KILLS:-60}
RANDOM=${SEED:-$$}
note "SEED=${SEED:-$$}"

attached () { [ "$(status_of "${control[vm]}" worker)" = attached ]; }

# A base with a hole, which is smaller than the disk.
truncate -s 90M "$tmp/base"
head -c 40M /dev/urandom | dd of="$tmp/base" bs=1M conv=notrunc status=none
base=$(sha256sum <"$tmp/base")
qemu-img create -q -f qcow2 -b "$tmp/base" -F raw "$tmp/vm.qcow2" "$size"

# ---- what the second export says ----

# Data, zeroes over data, a hole over data, data where the base has none.
qemu-io -f qcow2 -c 'write -P 7 5M 1M' -c 'write -z 10M 128k' -c 'write -z -u 20M 64k' \
  -c 'write -P 8 60M 64k' "$tmp/vm.qcow2" >"$tmp/io.log"
start_server vm "$tmp/vm.qcow2" --format qcow2
"$python" - "${socket[vm]}" >"$tmp/layers" 2>&1 <<'EOF' || fail "layers: $(cat "$tmp/layers")"
import nbd, sys

def connect(*names):
    """Ask about all of them, and open the last one."""
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.set_full_info(True)
    h.add_meta_context("base:allocation")
    h.connect_unix(sys.argv[1])
    for name in names:
        h.set_export_name(name)
        h.opt_info()
    h.opt_go()
    return h

def description(h):
    try:
        return h.get_export_description()
    except nbd.Error:
        return ""

def kinds(h):
    """The flags of each 64 KiB."""
    found = []
    h.block_status(96 << 20, 0, lambda m, o, e, err: found.extend(
        flags for n, flags in zip(e[::2], e[1::2]) for _ in range(n >> 16)))
    return found

disk, layers = connect("@layers", ""), connect("", "@layers")
assert (description(disk), disk.is_read_only()) == ("", False)
assert (description(layers), layers.is_read_only()) == ("nbdmirror layers 1", True)
assert layers.get_size() == disk.get_size() == 96 << 20
HOLE, ZERO = 1, 2
want = [HOLE] * 1536            # the base, and behind its end
want[80:96] = [0] * 16          # the data
want[960] = 0
for i in (160, 161, 320):       # the zeroes
    want[i] = HOLE | ZERO
got = kinds(layers)
assert got == want, [(i, g, w) for i, (g, w) in enumerate(zip(got, want)) if g != w]
assert HOLE not in kinds(disk), "a hole means something else in the disk's own export"
EOF

# Another filter may change what the layers seem to hold, so nothing is said of them then.
print=(serve "$tmp/vm.qcow2" --format qcow2 --socket "$tmp/s" --control "$tmp/c" --print)
nbdmirror "${print[@]}" >"$tmp/line"
grep -q 'mirror-layers=@layers' "$tmp/line" || fail "serve offers no layers: $(cat "$tmp/line")"
nbdmirror "${print[@]}" -- --filter=noextents >"$tmp/line"
! grep -q 'layers=' "$tmp/line" || fail "layers are offered behind another filter"

# ---- no more than the top layer is sent ----

# received BASE: a new destination that lies on it.
received () {
  rm -f "$tmp/there.qcow2"
  start_receive dst "$tmp/there.qcow2" --format qcow2 --size "$size" --backing "$1" \
    --backing-format raw
}

cp "$tmp/base" "$tmp/wrong"
printf 'other' | dd of="$tmp/wrong" bs=1 seek=30000000 conv=notrunc status=none
received "$tmp/wrong"
has_to_exit 7 nbdmirror mirror "${control[vm]}" "${uri[dst]}" --sync top
grep -q 'another base image' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
stop dst

# A copy of the base, which a worker has begun with, and which another one goes on with.
cp "$tmp/base" "$tmp/copy.img"
truncate -s "$size" "$tmp/copy.img"
start_receive dst "$tmp/copy.img" --resume
spawn worker nbdmirror mirror "${control[vm]}" "${uri[dst]}" --sync top
wait_state "${control[vm]}" ready 30
stop worker KILL
wait_state "${control[vm]}" detached 10
has_to_exit 7 nbdmirror mirror "${control[vm]}" "${uri[dst]}" --sync top --restart
has_to_exit 0 nbdmirror mirror "${control[vm]}" "${uri[dst]}" --sync top --resume \
  --quarantine-grace 100ms --on-ready complete --report "$tmp/report"
[ "$(field skipped-bytes <"$tmp/report")" -gt $((size / 2)) ] || fail "the base was sent"
equal "${uri[vm]}" "${guest_uri[dst]}"
stop dst
roll_back "${control[vm]}" 2>"$tmp/log" || fail "rollback: $(cat "$tmp/log")"

received "$tmp/base"
has_to_exit 0 nbdmirror mirror "${control[vm]}" "${uri[dst]}" --sync top --on-ready complete \
  --report "$tmp/report"
allocated=$((17 * 65536))       # the clusters with data; zeroes are sent as such
sent=$(field sent-bytes <"$tmp/report")
[ "$sent" -le $((allocated * 102 / 100)) ] || fail "$sent bytes were sent, $allocated are there"
[ "$(field base-digest <"$tmp/report")" != null ] || fail "the base was not proved"
equal "${uri[vm]}" "${guest_uri[dst]}"
stop dst
roll_back "${control[vm]}" 2>"$tmp/log" || fail "rollback: $(cat "$tmp/log")"

# ---- a guest writes, and workers and qemu-nbds are killed ----

received "$tmp/base"
qemu-img convert -q -U -O raw "$tmp/vm.qcow2" "$tmp/shadow"
start_guest guest "${uri[vm]}" --shadow "$tmp/shadow" --rate 100 --from 60000000 --seconds 600
resume=()
served () { [ -n "$(child_of vm qemu-nbd)" ]; }
for ((n = 0; n < rounds; n++)); do
  spawn worker nbdmirror mirror "${control[vm]}" "${uri[dst]}" --sync top --bandwidth 3M \
    --policy none "${resume[@]}"
  resume=(--resume)
  wait_for 20 attached
  wait_for 20 served
  sleep "0.$(printf %03d $((RANDOM % 300)))"
  kill -KILL "$(child_of vm qemu-nbd)"
  sleep "0.$(printf %03d $((RANDOM % 200)))"
  stop worker KILL
  wait_state "${control[vm]}" detached 10
done
has_to_exit 0 nbdmirror mirror "${control[vm]}" "${uri[dst]}" --sync top --resume \
  --max-downtime 2s --quarantine-grace 100ms --on-ready complete --report "$tmp/report"
ends_well guest 20
[ "$(field fenced <"$tmp/guest.json")" = true ] || fail "the guest was not refused at the end"
again=$(grep -c 'qemu-nbd runs again' "$tmp/vm.log") || :
[ "$again" = "$rounds" ] || fail "qemu-nbd was started again $again times, not $rounds"
compare "$tmp/shadow" "${uri[vm]}" || fail "the source is not what the guest wrote"
compare "$tmp/shadow" "${guest_uri[dst]}" || fail "the destination is not what the guest wrote"
[ "$(field skipped-bytes <"$tmp/report")" -gt $((size / 4)) ] || fail "too little was left out"
[ "$(sha256sum <"$tmp/base")" = "$base" ] || fail "the base was written to"
stop vm
rm -f "${control[vm]}.fence"

# ---- an image without a base ----

qemu-img create -q -f qcow2 "$tmp/vm.qcow2" "$size"
start_server vm "$tmp/vm.qcow2" --format qcow2
has_to_exit 7 nbdmirror mirror "${control[vm]}" "$tmp/new" --sync top
grep -q 'has no base' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
