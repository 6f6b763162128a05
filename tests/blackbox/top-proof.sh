#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that `--sync top` leaves nothing out because of a base that one side does not have: the
# base is read in the source's header, or named and compared with the source, and proved to be the
# destination's.  One byte that differs is refused before anything is written.  And that a job is
# not resumed with another base than it was begun with.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread
need qemu-img qemu-io qemu-nbd

poke () { printf 'other' | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }
digest () { nbdmirror digest "$@" | cut -d ' ' -f 1; }
sent () { echo $(($(field sent-bytes <"$tmp/report") + $(field zero-bytes <"$tmp/report"))); }

size=$(bytes 96M)
random_disk "$tmp/base" "$size"
qemu-img convert -q -f raw -O qcow2 "$tmp/base" "$tmp/base.qcow2"
qemu-img create -q -f qcow2 -b "$tmp/base.qcow2" -F qcow2 "$tmp/top.qcow2"
qemu-io -f qcow2 -c 'write -P 7 5M 1M' -c 'write -z 40M 128k' "$tmp/top.qcow2" >"$tmp/io.log"
changed=$((1048576 + 131072))
cp "$tmp/base" "$tmp/wrong"
poke "$tmp/wrong" 70000000
sleep 2.1                       # or their digests are not kept
want=$(digest "$tmp/base")
wrong=$(digest "$tmp/wrong")

# received BASE: a new destination on that base.
received () {
  rm -f "$tmp/there.qcow2"
  start_receive dst "$tmp/there.qcow2" --format qcow2 --size "$size" --backing "$1" \
    --backing-format raw
}

# untouched: the destination's own layer holds nothing.
untouched () {
  [ "$(qemu-img map -U --output=json -f qcow2 "$tmp/there.qcow2" | grep -c '"depth": 0,')" = 0 ] ||
    fail "something was written in spite of the refusal"
}

# ---- the base stands in the source's header ----

top=(copy "$tmp/top.qcow2" --source-format qcow2 --sync top)
received "$tmp/base"
has_to_exit 0 nbdmirror "${top[@]}" "${uri[dst]}" --report "$tmp/report"
[ "$(sent)" = $changed ] || fail "$(sent) bytes were sent, and $changed lie in the top layer"
spawn shown qemu-nbd -r -t -e 0 -k "$tmp/shown.sock" -f qcow2 "$tmp/top.qcow2"
wait_for_socket "$tmp/shown.sock" shown
equal "nbd+unix:///?socket=$tmp/shown.sock" "${uri[dst]}"
# It is no new overlay now.
has_to_exit 7 nbdmirror "${top[@]}" "${uri[dst]}"
grep -q 'may hold more' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
stop dst
received "$tmp/wrong"
has_to_exit 7 nbdmirror "${top[@]}" "${uri[dst]}"
grep -q "$want.*$wrong" "$tmp/err" || fail "it does not tell both digests: $(cat "$tmp/err")"
untouched
has_to_exit 7 nbdmirror copy "$tmp/base.qcow2" "${uri[dst]}" --source-format qcow2 --sync top
grep -q 'has no base' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"

# ---- the base is named, and a guest writes ----

stop shown
spawn layers qemu-nbd -A -t -e 0 -k "$tmp/layers.sock" -f qcow2 "$tmp/top.qcow2"
wait_for_socket "$tmp/layers.sock" layers
start_nbdkit src nbd "socket=$tmp/layers.sock" \
  "mirror-direct=nbd+unix:///?socket=$tmp/layers.sock"
live=(mirror "${control[src]}" "${uri[dst]}" --sync top --bandwidth 64M --quarantine-grace 100ms)
has_to_exit 7 nbdmirror "${live[@]}" --base "$tmp/base"
grep -q "$want.*$wrong" "$tmp/err" || fail "it does not tell both digests: $(cat "$tmp/err")"
untouched
stop dst
# Both have a base, but the source's is another one: only the source shows it.
head -c "$size" /dev/urandom >"$tmp/strange"
received "$tmp/strange"
has_to_exit 7 nbdmirror "${live[@]}" --base "$tmp/strange"
grep -q 'does not lie on the base image' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
untouched
stop dst

received "$tmp/base"
start_guest guest "${uri[src]}" --rate 50 --seconds 60
spawn first nbdmirror "${live[@]}" --base "$tmp/base"
wait_state "${control[src]}" ready 20
grep -q 'sample and no proof' "$tmp/first.log" || fail "it does not say that this is a sample"
[ "$(status_of "${control[src]}" base-digest)" = "$want" ] || fail "the job does not tell its base"
stop first KILL
wait_state "${control[src]}" detached 10
has_to_exit 7 nbdmirror "${live[@]}" --resume --base "$tmp/wrong"
grep -q "begun with another base.*$wrong.*$want" "$tmp/err" || {
  # The one byte was in the sample.
  grep -q 'does not lie on the base image' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
}
has_to_exit 0 nbdmirror "${live[@]}" --resume --base "$tmp/base.qcow2" --base-format qcow2 \
  --on-ready complete --report "$tmp/report"
wait_exit guest 10
[ "$status" = 0 ] || fail "the guest saw an error"
[ "$(field skipped-bytes <"$tmp/report")" -gt $((size / 2)) ] || fail "most should be skipped"
equal "${uri[src]}" "${guest_uri[dst]}"
for name in src layers dst; do stop $name; done
rm -f "${control[src]}.fence"

# ---- a job whose destination does not tell: the record is all there is ----

cp "$tmp/base" "$tmp/disk"
poke "$tmp/disk" 1000000
start_server src "$tmp/disk"
cp "$tmp/base" "$tmp/plain.img"
start_dest plain file "$size"
plain=(mirror "${control[src]}" "${uri[plain]}" --sync base --trust-base)
spawn begun nbdmirror "${plain[@]}" --base "$tmp/base"
wait_state "${control[src]}" ready 20
stop begun KILL
wait_state "${control[src]}" detached 10
sleep 0.3                       # nbdkit 1.32 may go with its client, a moment later
running plain || start_dest plain file "$size"
has_to_exit 7 nbdmirror "${plain[@]}" --resume --base "$tmp/wrong"
grep -q "begun with another base.*$wrong.*$want" "$tmp/err" || fail "reason: $(cat "$tmp/err")"
has_to_exit 0 nbdmirror "${plain[@]}" --resume --base "$tmp/base.qcow2" --base-format qcow2 \
  --on-ready complete
equal "$tmp/disk" "${uri[plain]}"
