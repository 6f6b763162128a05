#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# --compress: what arrives is exact, also over a thin line and with an odd tail; fewer bytes cross
# the line, and the bandwidth limit counts only these; a damaged or cut line and a killed worker
# cost nothing but time; a server that cannot unpack is refused before anything is written; and what
# a hostile client sends is neither written nor taken for a pack.
# shellcheck disable=SC2015,SC2016
. "$(dirname "$0")/lib.sh"
measures_times

relay=$builddir/bench/relay
[ -x "$relay" ] || skip "bench/relay is not built"

# Text that compresses well, and a part that does not.
size=$(bytes 14M+1536)
"$python" - "$tmp/disk" "$size" <<'PY'
import random, sys
path, size = sys.argv[1], int(sys.argv[2])
rng = random.Random(7)
words = [rng.randbytes(rng.randrange(3, 9)).hex() for _ in range(500)]
with open(path, "wb") as f:
    while f.tell() < size - (1 << 20):
        f.write(" ".join(rng.choices(words, k=4000)).encode())
    f.write(rng.randbytes(size - f.tell()))
PY
cp "$tmp/disk" "$tmp/shadow"
value () { field "$1" <"$tmp/report"; }
# compressed WHAT: the report tells that the line had to carry clearly less.  Where the processor is
# busy, as it is with a sanitizer, less is compressed, so that the line is not slower than without.
compressed () {
  local sent wire
  sent=$(value sent-bytes) wire=$(value wire-bytes)
  [ -n "$sanitizers" ] || [ $((wire * 10)) -le $((sent * 9)) ] && [ "$wire" -gt 1000 ] ||
    fail "$1: $sent bytes were sent as $wire"
}

# ---- a thin line ----

start_receive far "$tmp/far.img" --size "$size"
spawn relay sh -c 'exec "$@" >"$0"' "$tmp/relay.ready" "$relay" --listen "$tmp/near.sock" \
  --connect "${socket[far]}" --delay 2 --rate $((10 << 20)) --buffer 262144
wait_for 10 grep -q ready "$tmp/relay.ready"
thin="nbd+unix:///mirror?socket=$tmp/near.sock"
nbdmirror copy "$tmp/disk" "$thin" --compress --json >"$tmp/report" 2>"$tmp/log" ||
  fail "copy --compress ended with $?: $(cat "$tmp/log")"
compressed "copy over a thin line"
equal "$tmp/disk" "$tmp/far.img"
stop relay

# ---- a live mirror with a limit, whose line is damaged or cut ----

start_server src "$tmp/disk"
limit=$((8 << 20))
# live NAME DEST: mirror to DEST beside a guest's writes, and roll back.
live () {
  start_guest guest "${uri[src]}" --shadow "$tmp/shadow" --rate 20 --seconds 600
  nbdmirror mirror "${control[src]}" "$2" --compress=3 --bandwidth $limit --restart \
    --quarantine-grace 100ms --max-downtime 5s --on-ready complete --json \
    >"$tmp/report" 2>"$tmp/log" || fail "$1: mirror ended with $?: $(cat "$tmp/log")"
  stop guest
  equal "${uri[src]}" "$3"
  roll_back "${control[src]}"
}
start_receive plain "$tmp/plain.img" --size "$size"
live "with a limit" "${uri[plain]}" "$tmp/plain.img"
compressed "a mirror with a limit"
[ "$(value reconnects)" = 0 ] || fail "connected $(value reconnects) times more"
"$python" - "$tmp/report" $limit "$sanitizers" <<'PY' || fail "see above"
import json, sys
o, limit = json.load(open(sys.argv[1])), int(sys.argv[2])
# The limit holds for the wire: a tenth of a second's burst, and one request of each copier more.
assert o["wire-bytes"] <= limit * (o["total-s"] + 0.1) + 4 * 262144, o
# It does not hold for what is sent: that would take longer.  With a sanitizer it does take longer.
one = o["pass-log"][0]
assert sys.argv[3] or one["sent-bytes"] > 1.1 * limit * one["seconds"], o
PY
for how in flip cut; do
  start_receive $how "$tmp/$how.img" --size "$size"
  spawn $how-proxy sh -c 'exec "$@" >"$0"' "$tmp/$how.ready" "$python" \
    "$srcdir/tests/blackbox/damage-proxy.py" $how "$tmp/$how-proxy.sock" "${socket[$how]}"
  wait_for 10 grep -q ready "$tmp/$how.ready"
  live $how "nbd+unix:///mirror?socket=$tmp/$how-proxy.sock" "$tmp/$how.img"
  grep -q damaged "$tmp/$how.ready" || fail "$how: nothing was damaged"
  [ "$(value reconnects)" -ge 1 ] || fail "$how: the damage did not end the session"
  stop $how-proxy
done
grep -q 'cannot be unpacked' "$tmp/flip.log" || fail "the server does not tell of the damage"

# ---- a killed worker ----

start_receive killed "$tmp/killed.img" --size "$size"
moved () { local n; n=$(status_of "${control[src]}" wire-bytes) && [ "$n" -gt $((1 << 20)) ]; }
spawn worker nbdmirror mirror "${control[src]}" "${uri[killed]}" --compress --bandwidth 8M --restart
wait_for 20 moved
nbdmirror status "${control[src]}" --json >"$tmp/before" # both figures of one instant
before=$(field wire-bytes <"$tmp/before")
saved=$(($(field sent-bytes <"$tmp/before") - before))
kill -KILL "${pid[worker]}"
wait "${pid[worker]}" || :
nbdmirror mirror "${control[src]}" "${uri[killed]}" --compress --resume --quarantine-grace 100ms \
  --on-ready complete --max-downtime 5s --json >"$tmp/report" 2>"$tmp/log" ||
  fail "--resume ended with $?: $(cat "$tmp/log")"
[ "$(value wire-bytes)" -ge "$before" ] &&
  [ $(($(value sent-bytes) - $(value wire-bytes))) -ge $saved ] ||
  fail "the count does not go on across workers"
equal "${uri[src]}" "$tmp/killed.img"
roll_back "${control[src]}"

# ---- who cannot unpack ----

# refused WHAT DEST...: exit 7, and nothing is written.
refused () {
  local what=$1; shift
  for command in "mirror ${control[src]}" "mirror --dry-run --measure 100ms ${control[src]}" \
    "copy $tmp/shadow"; do
    code=0
    # shellcheck disable=SC2086
    nbdmirror $command "$@" --compress >"$tmp/log" 2>&1 || code=$?
    [ $code = 7 ] || fail "$what: $command ended with $code instead of 7: $(cat "$tmp/log")"
    grep -q -e '--compress' "$tmp/log" || fail "$what: another reason: $(cat "$tmp/log")"
  done
}
spawn other nbdkit -f -U "$tmp/other.sock" --filter=log memory "$size" "logfile=$tmp/requests"
wait_for_socket "$tmp/other.sock" other
refused "another server" "nbd+unix:///?socket=$tmp/other.sock"
spawn older nbdkit -f -U "$tmp/older.sock" --filter=exportname --filter=log memory "$size" \
  exportname=mirror 'exportdesc=fixed:nbdmirror-receive 1' exportname-list=keep \
  "logfile=$tmp/requests"
wait_for_socket "$tmp/older.sock" older
refused "an older receive" "nbd+unix:///mirror?socket=$tmp/older.sock"
refused "a command" [ nbdkit --filter=log memory "$size" "logfile=$tmp/requests" ]
refused "a file" "$tmp/new.img"
[ ! -e "$tmp/new.img" ] || fail "a refused copy created its destination"
! grep -q -e 'Write id' -e 'Zero id' "$tmp/requests" || fail "a refused job has written"

# ---- hostile clients ----

start_receive dst "$tmp/dst.img" --size "$size" -- --filter=log "logfile=$tmp/hostile"
server=$(pgrep -P "${pid[dst]}" -f nbdkit | head -n 1)
timeout 60 "$python" - "${socket[dst]}" "$size" "$server" ${runtime:+sanitizer} <<'PY' ||
import ctypes, errno, nbd, sys
where, size = sys.argv[1], int(sys.argv[2])
PACK = 1 << 62
z = ctypes.CDLL("libzstd.so.1")
for name in "ZSTD_createCCtx", "ZSTD_compress2", "ZSTD_CCtx_setParameter":
    getattr(z, name).restype = ctypes.c_void_p if "create" in name else ctypes.c_size_t
z.ZSTD_CCtx_setParameter.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
z.ZSTD_compress2.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t,
                             ctypes.c_char_p, ctypes.c_size_t]
context = z.ZSTD_createCCtx()
CHECKSUM, LENGTH = 201, 200

def pack(data, checksum=1, length=1):
    z.ZSTD_CCtx_setParameter(context, CHECKSUM, checksum)
    z.ZSTD_CCtx_setParameter(context, LENGTH, length)
    room = ctypes.create_string_buffer(len(data) + 1000)
    n = z.ZSTD_compress2(context, room, len(room), data, len(data))
    assert n < len(room)
    return room.raw[:n]

def connect(name="mirror+zstd"):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_export_name(name)
    h.connect_unix(where)
    return h

def fails(what, want, function, *args):
    try:
        function(*args)
    except nbd.Error as e:
        assert e.errnum == want, "%s: %s" % (what, e)
        return
    raise AssertionError(what + " was done")

h = connect()
assert h.get_size() == PACK + size, h.get_size()
assert connect("mirror").get_size() == connect("").get_size() == size

good = b"It is packed. " * 5000
h.pwrite(pack(good), PACK + 12345)
assert bytes(h.pread(len(good), 12345)) == good
tail = b"tail" * 128
h.pwrite(pack(tail), PACK + size - len(tail))
assert bytes(h.pread(len(tail), size - len(tail))) == tail
h.pwrite(b"plain" * 100, 0)
assert bytes(h.pread(500, 0)) == b"plain" * 100

# Beyond the disk: each request, wherever it begins.
fails("a pack over the end", errno.EINVAL, h.pwrite, pack(good), PACK + size - len(good) + 1)
fails("a pack behind the end", errno.ENOSPC, h.pwrite, pack(b"x"), PACK + size)
for at in size - 511, size, PACK - 512, PACK, PACK + 512:
    fails("a read at %d" % at, errno.EINVAL, h.pread, 512, at)
    fails("a zero at %d" % at, errno.EINVAL, h.zero, 512, at)
    fails("a trim at %d" % at, errno.EINVAL, h.trim, 512, at)
for at in size - 511, size, PACK - 512:
    fails("a write at %d" % at, errno.EINVAL, h.pwrite, b"x" * 512, at)
assert bytes(h.pread(len(tail), size - len(tail))) == tail

# What is no pack ends the connection, and only that.
flipped = bytearray(pack(good))
flipped[len(flipped) // 2] ^= 1
bad = {
    "a damaged pack": bytes(flipped),
    "half a pack": pack(good)[:len(pack(good)) // 2],
    "two packs": pack(good) + pack(good),
    "noise": bytes(range(256)) * 4,
    "a bomb": pack(bytes(1 << 28)),
    "a pack without a length": pack(good, length=0),
    "a pack without a checksum": pack(good, checksum=0),
    "a skippable frame": b"\x50\x2a\x4d\x18\x08\0\0\0" + b"x" * 8,
}
for what, data in bad.items():
    fails(what, errno.ESHUTDOWN, h.pwrite, data, PACK + 12345)
    for then in (h.pread, 512, 0), (h.pwrite, pack(good), PACK), (h.pwrite, b"x" * 512, 0), \
            (h.flush,), (h.zero, 512, 0):
        fails("after " + what, errno.ESHUTDOWN, *then)
    h = connect()
    assert bytes(h.pread(len(good), 12345)) == good, what

# Many connections that send much in a few bytes, all at a time.
many = [connect("mirror+zstd@many") for i in range(40)]
large = bytes(1 << 20)
buffer = nbd.Buffer.from_bytearray(bytearray(pack(large)))
for h in many:
    for i in range(16):
        h.aio_pwrite(buffer, PACK + (i % 13 << 20))
for h in many:
    while h.aio_in_flight() > 0:
        h.poll(-1)
assert bytes(many[0].pread(1 << 20, 0)) == large
with open("/proc/%s/status" % sys.argv[3]) as f:
    most = int(f.read().split("VmHWM:")[1].split()[0])
assert most < 200 * 1024 or "sanitizer" in sys.argv, "%d KiB were used" % most

# A session that was revoked stays so, whatever it sends.
a, b = connect("mirror+zstd@a"), connect("mirror@b")
fails("a revoked session", errno.ESHUTDOWN, a.pwrite, pack(good), PACK)
b.pwrite(b"newer", 12345)
assert bytes(b.pread(5, 12345)) == b"newer"
# The guest's write ends them all.
connect("").pwrite(b"guest", 0)
fails("a sealed disk", errno.EPERM, b.pwrite, b"x", 0)
PY
  fail "see above"
stop dst
! grep -q "started again" "$tmp/dst.log" || fail "a hostile client has ended the server"
