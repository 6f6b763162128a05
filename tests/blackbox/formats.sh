#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that the format of a disk is never guessed: what begins like a container is refused until
# the user says which it is.  Then a qcow2 overlay is served, mirrored while a guest writes to it,
# copied and verified, and its base stays as it was.  A worker or a server that is killed takes the
# qemu-nbd along that it has started.  (image-killed.sh has the one that is killed itself.)
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread
need qemu-img qemu-nbd
nbdkit nbd --dump-plugin >/dev/null 2>&1 || skip "nbdkit has no nbd plugin"

size=$((32 << 20))

# refused STATUS WORD COMMAND...: with this exit status, and a message that has WORD.
refused () {
  local want=$1 word=$2 got=0; shift 2
  nbdmirror "$@" >"$tmp/out" 2>&1 </dev/null || got=$?
  [ "$got" = "$want" ] || fail "$*: exit status $got instead of $want: $(cat "$tmp/out")"
  grep -q -- "$word" "$tmp/out" || fail "$*: no '$word' in: $(cat "$tmp/out")"
}

# ---- a container is no raw disk ----

truncate -s "$size" "$tmp/raw"
start_server src "$tmp/raw"
for format in qcow2 vmdk vdi vpc vhdx; do
  image=$tmp/disk.$format
  qemu-img create -q -f $format "$image" "$size"
  before=$(sha256sum <"$image")
  refused 7 "--format $format" serve "$image" --socket "$tmp/s" --control "$tmp/c"
  refused 7 "--format raw" serve "$image" --socket "$tmp/s" --control "$tmp/c"
  refused 7 "--source-format $format" copy "$image" "$tmp/new"
  refused 7 "--dest-format $format" copy "$tmp/raw" "$image"
  refused 7 "--source-format $format" verify "$image" "$tmp/raw"
  refused 7 "--dest-format $format" verify "$tmp/raw" "$image"
  refused 7 "--dest-format $format" mirror "${control[src]}" "$image"
  refused 7 "--format $format" receive "$image" --resume --socket "$tmp/s"
  [ ! -e "$tmp/new" ] || fail "$format: a refused copy has made a file"
  [ "$(sha256sum <"$image")" = "$before" ] || fail "$format: the image was changed"
done
stop src

# The user's word is enough.
nbdmirror copy "$tmp/disk.qcow2" "$tmp/bytes" --source-format raw 2>/dev/null </dev/null ||
  fail "--source-format raw: exit status $?"
cmp "$tmp/disk.qcow2" "$tmp/bytes" || fail "--source-format raw: the bytes differ"

# What is no image, or none of this format, is named.
refused 1 "cannot read it as qcow2" copy "$tmp/raw" "$tmp/new" --source-format qcow2
refused 1 "cannot read it as qcow2" serve "$tmp/raw" --format qcow2 --socket "$tmp/s" \
  --control "$tmp/c"
refused 1 "make it first" copy - "$tmp/new" --dest-format qcow2 <"$tmp/raw"
refused 1 "No such file" copy "$tmp/raw" "$tmp/none/new" --dest-format qcow2
refused 1 "No such file" verify "$tmp/raw" "$tmp/new" --dest-format qcow2
refused 7 "does not hold" copy "$tmp/raw" "$tmp/new" --dest-format qcow2 --sync base \
  --base "$tmp/raw" --trust-base
[ ! -e "$tmp/new" ] || fail "a refused image was left over"
qemu-img create -q -f qcow2 "$tmp/little.qcow2" 64k
refused 7 "refused: $tmp/little.qcow2 is too small" copy "$tmp/raw" "$tmp/little.qcow2" \
  --dest-format qcow2
refused 2 "is for a local image" copy "$tmp/raw" nbd://localhost/ --dest-format qcow2
refused 2 "a stream is a raw disk" copy - "$tmp/new" --source-format qcow2

# A base whose format is not recorded would have to be guessed.
random_disk "$tmp/base" "$size"
qemu-img create -q -f qcow2 -b "$tmp/base" -F raw "$tmp/vm.qcow2"
cp "$tmp/vm.qcow2" "$tmp/guess.qcow2"
qemu-img rebase -u -f qcow2 -b "$tmp/base" -F "" "$tmp/guess.qcow2" 2>/dev/null || :
if ! qemu-img info "$tmp/guess.qcow2" | grep -q 'backing file format'; then
  refused 7 "is not recorded" serve "$tmp/guess.qcow2" --format qcow2 --socket "$tmp/s" \
    --control "$tmp/c"
fi

# ---- copy and verify ----

# A raw file may have such a name, with a warning.
has_to_exit 0 nbdmirror copy "$tmp/base" "$tmp/raw.qcow2"
grep -q "raw.qcow2 is going to be a raw file.*'--dest-format qcow2'" "$tmp/err" ||
  fail "a raw file named .qcow2: $(cat "$tmp/err")"

# An image that is missing is made.
nbdmirror copy "$tmp/base" "$tmp/copy.qcow2" --dest-format qcow2 2>"$tmp/log" </dev/null ||
  fail "copy to qcow2: $(cat "$tmp/log")"
qemu-img compare -q -f raw -F qcow2 "$tmp/base" "$tmp/copy.qcow2" || fail "copy to qcow2 differs"
nbdmirror verify "$tmp/vm.qcow2" "$tmp/copy.qcow2" --source-format qcow2 --dest-format qcow2 \
  >"$tmp/log" 2>&1 </dev/null || fail "verify: $(cat "$tmp/log")"
qemu-io -f qcow2 -c "write -P 7 1M 512" "$tmp/copy.qcow2" >/dev/null
refused 5 "offset 1048576" verify "$tmp/vm.qcow2" "$tmp/copy.qcow2" --source-format qcow2 \
  --dest-format qcow2

start_server src "$tmp/base"
nbdmirror mirror "${control[src]}" "$tmp/new.qcow2" --dest-format qcow2 --dry-run \
  >"$tmp/log" 2>&1 </dev/null || fail "dry run: $(cat "$tmp/log")"
grep -q "new.qcow2 does not exist: it would be created" "$tmp/log" ||
  fail "dry run: $(cat "$tmp/log")"
[ ! -e "$tmp/new.qcow2" ] || fail "a dry run made the image"
nbdmirror mirror "${control[src]}" "$tmp/new.qcow2" --dest-format qcow2 --on-ready complete \
  >"$tmp/log" 2>&1 </dev/null || fail "mirror to a new image: $(cat "$tmp/log")"
stop src
qemu-img compare -q -f raw -F qcow2 "$tmp/base" "$tmp/new.qcow2" || fail "that mirror differs"

# The command line with every word that an image's server may have.
start_server longest "$tmp/new.qcow2" --format qcow2 --export a --state "$tmp/state" \
  --pidfile "$tmp/longest.pid" -- -v
stop longest

# A worker that is killed leaves nothing behind that would hold the image's lock.
qemu-img create -q -f qcow2 "$tmp/copy.qcow2" "$size"
spawn copy nbdmirror copy "$tmp/base" "$tmp/copy.qcow2" --dest-format qcow2 --bandwidth 1M
wait_for 10 eval 'child=$(child_of copy qemu-nbd); [ -n "$child" ]'
kill -KILL "${pid[copy]}"
wait "${pid[copy]}" 2>/dev/null || :
unset "pid[copy]"
wait_for 10 eval '! kill -0 '"$child"' 2>/dev/null'
nbdmirror copy "$tmp/base" "$tmp/copy.qcow2" --dest-format qcow2 2>"$tmp/log" </dev/null ||
  fail "copy after a kill: $(cat "$tmp/log")"
qemu-img compare -q -f raw -F qcow2 "$tmp/base" "$tmp/copy.qcow2" || fail "that copy differs"

# ---- an overlay is mirrored while its guest writes ----

base=$(sha256sum <"$tmp/base")
cp "$tmp/base" "$tmp/shadow"
start_server vm "$tmp/vm.qcow2" --format qcow2
start_dest dst file "$size"
start_guest guest "${uri[vm]}" --shadow "$tmp/shadow"
nbdmirror mirror "${control[vm]}" "${uri[dst]}" --max-downtime 1s --bandwidth 20M \
  --on-ready complete --report "$tmp/report" 2>"$tmp/mirror.log" </dev/null ||
  fail "mirror: $(tail -n 1 "$tmp/mirror.log")"
ends_well guest 20
[ "$(field fenced <"$tmp/guest.json")" = true ] || fail "the guest was not refused at the end"
equal "${uri[vm]}" "${uri[dst]}"
compare "$tmp/shadow" "${uri[dst]}" || fail "the destination is not what the guest wrote"
qemu_nbd=$(child_of vm qemu-nbd)
stop vm
wait_for 10 eval '! kill -0 '"$qemu_nbd"' 2>/dev/null'
qemu-img check -q "$tmp/vm.qcow2" || fail "the overlay is damaged"
qemu-img compare -q -f qcow2 -F raw "$tmp/vm.qcow2" "$tmp/dst.img" || fail "the overlay differs"
[ "$(sha256sum <"$tmp/base")" = "$base" ] || fail "the base was written to"
rm -f "$tmp/vm.control.fence"

# ---- an image that is in use ----

qemu-img create -q -f qcow2 "$tmp/used.qcow2" "$size"
spawn user qemu-nbd -t -k "$tmp/user.sock" -f qcow2 "$tmp/used.qcow2"
wait_for_socket "$tmp/user.sock" user
for detach in '' --detach; do
  # shellcheck disable=SC2086
  refused 1 'in use' serve "$tmp/used.qcow2" --format qcow2 --socket "$tmp/s" --control "$tmp/c" \
    $detach
done
stop user
# One that is taken a moment later, when nbdkit is in the background already.
mkdir "$tmp/bin"
printf '#!/bin/sh\necho "is taken now" >&2\nsleep 0.3\nexit 1\n' >"$tmp/bin/qemu-nbd"
chmod +x "$tmp/bin/qemu-nbd"
if [ -z "$sanitizers" ]; then   # a shell does not run with a preloaded one
  PATH=$tmp/bin:$PATH refused 1 'ended before it served' serve "$tmp/used.qcow2" --format qcow2 \
    --socket "$tmp/s" --control "$tmp/c" --detach
fi
# A server that was never ready leaves nothing behind.
wait_for 10 eval '[ ! -e "$tmp/s" ] && [ ! -e "$tmp/c" ] && [ ! -e "$tmp/s.pid" ]'

# ---- a killed nbdkit ----

start_server vm "$tmp/vm.qcow2" --format qcow2
qemu_nbd=$(child_of vm qemu-nbd)
[ -n "$qemu_nbd" ] || fail "no qemu-nbd was started"
kill -KILL "${pid[vm]}"
wait_exit vm 10
wait_for 10 eval '! kill -0 '"$qemu_nbd"' 2>/dev/null'
qemu-img check -q "$tmp/vm.qcow2" || fail "the image is damaged"

# ---- a destination that fails ----

# What is on its way when a write fails is waited for, so that qemu-nbd does not complain of it.
# Not for long, which a busy machine may exceed once.
head -c "$size" /dev/urandom >"$tmp/random"
truncate -s "$size" "$tmp/failing"
failing="driver=blkdebug,image.driver=file,image.filename=$tmp/failing"
failing+=",inject-error.0.event=none,inject-error.0.iotype=write,inject-error.0.errno=28"
failing+=",inject-error.0.sector=16384"
for try in 1 2 3; do
  refused 3 'No space left' copy "$tmp/random" '[' qemu-nbd -t -e 8 --image-opts "$failing" ']'
  grep -q 'Disconnect client' "$tmp/out" || break
  [ "$try" != 3 ] || fail "qemu-nbd complains: $(cat "$tmp/out")"
done
