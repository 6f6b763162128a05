#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a qemu-nbd that is killed under `serve --format qcow2` is started again, and that the
# guest notices nothing but a pause: over many kills at random instants, while several connections
# write, zero, trim and flush, no request fails, all that is read back is what was acknowledged, and
# in the end the image holds exactly that.  A mirror job at the same time ends equal.  A qemu-nbd
# that cannot be started again ends in errors, not in a hang, and none of ours outlives nbdkit.  A
# full device does not hinder it.
[ "${NBDMIRROR_LONG:-0}" = 0 ] || TEST_TIMEOUT=3600
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd

size=$((32 << 20))
kills=10
[ "${NBDMIRROR_LONG:-0}" = 0 ] || kills=${KILLS:-100}
seed=${SEED:-$RANDOM}
RANDOM=$seed
note "SEED=$seed"

qemu_nbd () { child_of vm qemu-nbd; }

# is_replaced OLD: is there another one, or no guest any more whose requests would need one?
is_replaced () {
  local new
  new=$(qemu_nbd)
  ! running guest || { [ -n "$new" ] && [ "$new" != "$1" ]; }
}

# kill_once: kill the qemu-nbd of vm, and wait until there is another one.
kill_once () {
  local old
  old=$(qemu_nbd)
  [ -n "$old" ] || fail "there is no qemu-nbd to kill"
  kill -KILL "$old"
  wait_for 20 is_replaced "$old"
}

# kill_often N: at random instants, up to half a second apart.
kill_often () {
  local n
  for ((n = 0; n < $1; n++)); do
    sleep "0.$(printf %03d $((RANDOM % 500)))"
    kill_once
  done
}

# sound IMAGE: no error in it.  Clusters that nothing points to (status 3) are what any qcow2 image
# keeps from a writer that was killed.
sound () {
  local status=0
  qemu-img check -q "$1" >"$tmp/check" 2>&1 || status=$?
  [ "$status" = 0 ] || [ "$status" = 3 ] || fail "$1 is damaged: $(cat "$tmp/check")"
}

# ---- a guest that checks all that it reads, and a job beside it ----

random_disk "$tmp/base" "$size"
cp "$tmp/base" "$tmp/shadow"
# Small clusters, so that qemu-nbd keeps much in its memory: where each of them is.
qemu-img create -q -f qcow2 -o cluster_size=4k -b "$tmp/base" -F raw "$tmp/vm.qcow2"
base=$(sha256sum <"$tmp/base")
start_server vm "$tmp/vm.qcow2" --format qcow2
start_dest dst file "$size"
start_guest guest "${uri[vm]}" --shadow "$tmp/shadow" --rate 2000 --seed "$seed" --seconds 3600
spawn mirror nbdmirror mirror "${control[vm]}" "${uri[dst]}" --bandwidth 16M --max-downtime 2s
kill_often "$kills"
stop guest
[ "$status" = 0 ] || fail "the guest saw an error: $(cat "$tmp/guest.json")"
note "$(cat "$tmp/guest.json")"

# The last kill finds what was acknowledged and never flushed, and no request notices it.
kill -KILL "$(qemu_nbd)"
compare "$tmp/shadow" "${uri[vm]}" || fail "the disk is not what the guest was told"
wait_state "${control[vm]}" ready 60
complete_soon "${control[vm]}"
ends_well mirror 20
compare "$tmp/shadow" "${uri[dst]}" || fail "the destination is not what the guest was told"

# So does one that comes just before the server ends.
kill -KILL "$(qemu_nbd)"
stop vm
grep -q 'changes that were not durable were repeated' "$tmp/vm.log" || fail "nothing was repeated"
sound "$tmp/vm.qcow2"
qemu-img compare -q -f qcow2 -F raw "$tmp/vm.qcow2" "$tmp/shadow" ||
  fail "the image is not what the guest was told"
[ "$(sha256sum <"$tmp/base")" = "$base" ] || fail "the base was written to"
rm -f "$tmp/vm.control.fence"

# ---- more than the log holds ----

# 48 MiB without a flush: the plugin flushes by itself, and its memory is bounded.
qemu-img create -q -f qcow2 "$tmp/vm.qcow2" 64M
start_server vm "$tmp/vm.qcow2" --format qcow2
random_disk "$tmp/shadow" 48M
truncate -s 64M "$tmp/shadow"
"$python" - "${uri[vm]}" "$tmp/shadow" <<'EOF' || fail "writing 48 MiB failed"
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
with open(sys.argv[2], "rb") as f:
    for offset in range(0, 48 << 20, 256 << 10):
        h.pwrite(f.read(256 << 10), offset)
EOF
kill -KILL "$(qemu_nbd)"
compare "$tmp/shadow" "${uri[vm]}" || fail "48 MiB are not what was written"
repeated=$(sed -n 's/.* \([0-9]*\) changes that were not durable.*/\1/p' "$tmp/vm.log" | tail -n 1)
[ "$repeated" -le 128 ] || fail "$repeated changes of 256 KiB were kept, and 32 MiB is the limit"

# ---- nbdkit is killed ----

child=$(qemu_nbd)
stop vm KILL
wait_for 10 eval '! kill -0 '"$child"' 2>/dev/null'
sound "$tmp/vm.qcow2"

# It is killed before qemu-nbd has answered: that waits for nobody then, with the image's lock.  (A
# shell does not run with a preloaded sanitizer.)
mkdir "$tmp/bin"
if [ -z "$runtime" ]; then
  printf '#!/bin/sh\nwhile [ ! -e %s ]; do sleep 0.05; done\nexec %s "$@"\n' "$tmp/go" \
    "$(command -v qemu-nbd)" >"$tmp/bin/qemu-nbd"
  chmod +x "$tmp/bin/qemu-nbd"
  rm -f "${socket[vm]}" "${control[vm]}"
  PATH=$tmp/bin:$PATH spawn vm "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" serve \
    "$tmp/vm.qcow2" --format qcow2 --socket "${socket[vm]}" --control "${control[vm]}"
  # shellcheck disable=SC2016 # wait_for evaluates it
  wait_for 10 eval '[ -n "$(qemu_nbd)" ]'
  child=$(qemu_nbd)
  stop vm KILL
  touch "$tmp/go"
  wait_for 10 eval '! kill -0 '"$child"' 2>/dev/null'
fi

# ---- a full device ----

# What the dead qemu-nbd had allocated for changes that were not durable is nobody's room, and the
# replay has to get it back.  The image lies in a device of 8 MiB here: raw's size.  The clusters
# that it had left are made such ones before the next qemu-nbd starts.
if [ -z "$runtime" ]; then
  qemu-img create -q -f qcow2 "$tmp/full.qcow2" 16M
  truncate -s 8M "$tmp/full.qcow2"
  cat >"$tmp/lose-room.py" <<'END'
import struct, sys
with open(sys.argv[1], "r+b") as f:
    f.seek(48)
    f.seek(struct.unpack(">Q", f.read(8))[0])  # the refcount table
    block = struct.unpack(">Q", f.read(8))[0]
    for cluster in range(8 << 20 >> 16):
        f.seek(block + 2 * cluster)
        if f.read(2) == bytes(2):
            f.seek(block + 2 * cluster)
            f.write(b"\0\1")
END
  cat >"$tmp/bin/qemu-nbd" <<END
#!/bin/sh
rm "$tmp/lose" 2>/dev/null && "$python" "$tmp/lose-room.py" "$tmp/full.qcow2"
file=driver=qcow2,file.driver=raw,file.size=8M,file.file.driver=file
exec $(command -v qemu-nbd) --shared=0 --image-opts "\$file,file.file.filename=$tmp/full.qcow2"
END
  chmod +x "$tmp/bin/qemu-nbd"
  rm -f "${socket[vm]}" "${control[vm]}"
  PATH=$tmp/bin:$PATH start_server vm "$tmp/full.qcow2" --format qcow2
  "$python" - "${uri[vm]}" <<'END'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for mib in range(4):
    h.pwrite(b"\7" * (1 << 20), mib << 20)
END
  touch "$tmp/lose"
  kill -KILL "$(qemu_nbd)"
  qemu-io -f raw -c 'read -q -P 7 0 4M' "${uri[vm]}" >"$tmp/out" 2>&1 || :
  ! grep -q . "$tmp/out" || fail "a full device: $(cat "$tmp/out")"
  grep -q 'cannot be repeated: No space left' "$tmp/vm.log" || fail "the device was not full"
  stop vm
fi

# ---- a damaged image ----

# A cluster that is in use is counted as free: that is what QEMU has left of some killed images.
# Then nothing is read or written any more until it is repaired.
qemu-img create -q -f qcow2 "$tmp/damaged.qcow2" 4M
start_server vm "$tmp/damaged.qcow2" --format qcow2
write () { qemu-io -f raw -c "write -q -P 7 0 1M" -c flush "${uri[vm]}" >"$tmp/out" 2>&1; }
write
cp "$tmp/damaged.qcow2" "$tmp/copy.qcow2"
"$python" - "$tmp/damaged.qcow2" <<'END'
import struct, sys
with open(sys.argv[1], "r+b") as f:
    f.seek(48)
    f.seek(struct.unpack(">Q", f.read(8))[0])  # the refcount table
    block = struct.unpack(">Q", f.read(8))[0]
    f.seek(0, 2)
    f.seek(block + 2 * (f.tell() // 65536 - 1))
    f.write(bytes(2))
END
kill -KILL "$(qemu_nbd)"
write || :
grep -qi 'input/output error' "$tmp/out" || fail "a damaged image was written to: $(cat "$tmp/out")"
grep -q 'the image is damaged' "$tmp/vm.log" || fail "nobody says that it is damaged"
stop vm
qemu-img check -q -r all "$tmp/damaged.qcow2" >"$tmp/out" 2>&1 || fail "$(cat "$tmp/out")"
qemu-img compare -q "$tmp/damaged.qcow2" "$tmp/copy.qcow2" || fail "a damaged image was changed"

# ---- one that does not come back ----

if [ "${NBDMIRROR_LONG:-0}" != 0 ]; then
  start_server vm "$tmp/vm.qcow2" --format qcow2
  # A copy in its place is not the image: it may be older.
  mv "$tmp/vm.qcow2" "$tmp/away.qcow2"
  cp "$tmp/away.qcow2" "$tmp/vm.qcow2"
  kill -KILL "$(qemu_nbd)"
  "$python" - "${uri[vm]}" <<'EOF' || fail "a disk without a server does not fail in time"
import errno, nbd, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
begin = time.monotonic()
try:
    h.pread(512, 0)
except nbd.Error as e:
    sys.exit(0 if e.errnum == errno.EIO and 20 < time.monotonic() - begin < 40 else 1)
sys.exit(1)
EOF
  stop vm

  # One that never answers is killed, and the next one serves.
  cp "$tmp/away.qcow2" "$tmp/vm.qcow2"
  printf '#!/bin/sh\nrm %s && exec sleep 60\nexec %s "$@"\n' "$tmp/mute" \
    "$(command -v qemu-nbd)" >"$tmp/bin/qemu-nbd"
  PATH=$tmp/bin:$PATH start_server vm "$tmp/vm.qcow2" --format qcow2
  touch "$tmp/mute"
  kill -KILL "$(qemu_nbd)"
  timeout 25 qemu-io -f raw -r -c 'read 0 512' "${uri[vm]}" >"$tmp/out" 2>&1 ||
    fail "a qemu-nbd that never answers hangs the guest: $(cat "$tmp/out")"
  [ ! -e "$tmp/mute" ] || fail "the qemu-nbd that never answers was not started"
  stop vm
fi
