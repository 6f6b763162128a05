#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# One mirror session at a time (R12): a new one revokes the old at once, and opens only when the old
# one's writes have ended; the guest's first write, and sealing, end every session's right to write,
# for good, and wait for the last mirror write; whoever only reads may do so.  A delaying filter
# below makes writes late.
. "$(dirname "$0")/lib.sh"

for name in dst other; do
  start_receive $name "$tmp/$name.img" --size 8M -- --filter=log logfile="$tmp/$name.requests" \
    --filter=delay wdelay=300ms
done

timeout 60 "$python" - "${socket[dst]}" "${socket[other]}" <<'PY' || fail "see above"
import nbd, os, sys, threading, time
dst, other = sys.argv[1:]

def connect(name, where=dst):
    h = nbd.NBD()
    h.set_export_name(name)
    h.connect_unix(where)
    return h

def refused(what, function, *args, errors=None):
    try:
        function(*args)
    except nbd.Error as e:
        assert errors is None or e.errno in errors, "%s: failed with %s" % (what, e)
        return
    raise AssertionError(what + " was not refused")

def begun(where):
    """How many writes have reached what is below the filter?"""
    with open(where.replace(".sock", ".requests")) as f:
        return sum("Write id=" in line and "offset=" in line for line in f)

class Late(threading.Thread):
    """A write that takes its time; its end is .done."""
    def __init__(self, handle, byte, offset, where=dst):
        super().__init__()
        self.handle, self.byte, self.offset = handle, byte, offset
        self.done = self.error = None
        before = begun(where)
        self.started = time.monotonic()
        self.start()
        deadline = time.monotonic() + 10
        while begun(where) == before and time.monotonic() < deadline:
            time.sleep(0.01)    # until it is below the filter
    def run(self):
        try:
            self.handle.pwrite(self.byte * 4096, self.offset)
        except nbd.Error as e:
            self.error = e
        self.done = time.monotonic()

def meets(late, what, function, *args):
    """FUNCTION returns only after LATE, which was let through, has ended."""
    if late.done is not None:
        print("%s: the write was done already: nothing is shown" % what)
    result = function(*args)
    took = time.monotonic() - late.started
    late.join()
    assert late.error is None, "%s: the write that was under way failed: %s" % (what, late.error)
    assert took >= 0.3, "%s did not wait: the write began %.3f s before" % (what, took)
    return result

def listed(where):
    found = {}
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_unix(where)
    h.opt_list(lambda name, description: found.__setitem__(name, description))
    h.opt_abort()
    return found

assert listed(dst) == {"mirror": "nbdmirror-receive 1", "mirror+zstd": "nbdmirror-receive zstd 1",
                       "checkpoint": "nbdmirror-receive checkpoint 1 none",
                       "": "for the guest"}, listed(dst)

# A session of two connections, and the next one.
a, a2 = connect("mirror@a"), connect("mirror@a")
assert a.can_multi_conn()
a.pwrite(b"1" * 512, 0)
a2.pwrite(b"2" * 512, 512)
b = meets(Late(a, b"a", 0), "a new session", connect, "mirror@b")
assert b.pread(4096, 0) == b"a" * 4096
for h in a, a2:
    refused("the old session's write", h.pwrite, b"x" * 512, 0, errors=["ESHUTDOWN"])
    refused("the old session's zeroes", h.zero, 512, 0, errors=["ESHUTDOWN"])
    refused("the old session's trim", h.trim, 512, 0, errors=["ESHUTDOWN"])
    refused("the old session's flush", h.flush, errors=["ESHUTDOWN"])
    refused("the old session's read", h.pread, 512, 0, errors=["ESHUTDOWN"])
refused("another connection of the old session", connect, "mirror@a")
connect("mirror@b").pwrite(b"b" * 512, 0)

# A client that knows of no sessions: one from its first write on, before that only a reader.
plain = connect("mirror")
assert not plain.can_multi_conn()
plain.pread(512, 0)
plain.flush()
late = Late(b, b"b", 0)
meets(late, "a plain client's first write", plain.pwrite, b"p" * 512, 0)
refused("the old session's write", b.pwrite, b"x" * 512, 0, errors=["ESHUTDOWN"])
plain.pwrite(b"p" * 512, 0)

for name in "mirror@", "mirrors", "x", "mirror@" + 65 * "i":
    refused("the export " + name, connect, name)

# Two clients do not take it from one another in turn: who had it before may only read, but for its
# own session.
d = connect("mirror@d1")
d.pwrite(b"d" * 512, 0)
d = connect("mirror@d2.d1")
connect("mirror@d2.d1").pwrite(b"d" * 512, 0)
e = connect("mirror@e1")
late = connect("mirror@d3.d2")
assert late.is_read_only()
refused("a write of the one before", late.pwrite, b"x" * 512, 0)
e.pwrite(b"e" * 512, 0)
for name in "mirror@.d2", "mirror@d4.", "mirror@d4." + 65 * "i":
    refused("the export " + name, connect, name)

# The guest: reading changes nothing, its first write is the end of the mirror's.
guest = connect("")
guest.pread(512, 0)
guest.flush()
plain_reader = connect("mirror")
plain_reader.pread(512, 0)
c = connect("mirror@c")
c.pwrite(b"c" * 512, 0)
assert listed(dst)["mirror"] == "nbdmirror-receive 1"
meets(Late(c, b"c", 0), "the guest's first write", guest.pwrite, b"g" * 512, 0)
assert guest.pread(512, 0) == b"g" * 512
for h in c, plain, b, connect("mirror"):
    refused("a late worker's write", h.pwrite, b"x" * 512, 0)
refused("a late worker's zeroes", c.zero, 512, 0, errors=["EPERM"])
refused("a new session after the guest's write", connect, "mirror@d")
assert listed(dst)["mirror"] == "nbdmirror-receive 1 sealed"
reader = connect("mirror")
assert reader.is_read_only(), "writing is offered after the seal"
reader.pread(512, 0)
plain_reader.pread(512, 0)
refused("a write of one who only read before", plain_reader.pwrite, b"x" * 512, 0, errors=["EPERM"])
assert guest.pread(512, 0) == b"g" * 512

# Sealed by the mirror, before the guest starts.
m = connect("mirror@m", other)
late = Late(m, b"m", 0, other)
meets(late, "the seal", connect, "mirror@seal", other)
refused("a write after the seal", m.pwrite, b"x" * 512, 0, errors=["EPERM"])
refused("a new session after the seal", connect, "mirror@n", other)
s = connect("mirror@seal", other)
assert s.is_read_only()
connect("", other).pwrite(b"g" * 512, 4096)
PY
grep -q 'handed over to its guest' "$tmp/dst.log" || fail "the seal was not told"
[ "$(grep -c 'a newer session has taken its place (logged' "$tmp/dst.log")" = 3 ] ||
  fail "refused requests are not logged once a connection"

# From the command line.  Sealed it is started again, as long as its guest has not written: it may
# have lost writes then.
start_receive third "$tmp/third" --size 1M
has_to_exit 0 "$NBDMIRROR" receive --seal "${uri[third]}"
has_to_exit 0 "$NBDMIRROR" receive --seal "${uri[third]}"
has_to_exit 1 "$NBDMIRROR" receive --give-up "${uri[third]}"
grep -q 'sealed' "$tmp/err" || fail "give-up: wrong reason: $(cat "$tmp/err")"
has_to_exit 7 "$NBDMIRROR" copy "$tmp/third" "${uri[third]}"
has_to_exit 0 "$NBDMIRROR" verify "$tmp/third" "${uri[third]}"
has_to_exit 1 "$NBDMIRROR" receive --seal "${guest_uri[third]}"
first=$(child_of third nbdkit)
kill -KILL "$first"
again () { local now; now=$(child_of third nbdkit); [ -n "$now" ] && [ "$now" != "$first" ] &&
  listening "${socket[third]}"; }
wait_for 10 again
has_to_exit 7 "$NBDMIRROR" copy "$tmp/third" "${uri[third]}"
has_to_exit 0 "$NBDMIRROR" verify "$tmp/third" "${guest_uri[third]}"
"$python" -c 'import nbd, sys
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"g" * 512, 0)' "${socket[third]}"
kill -KILL "$(child_of third nbdkit)"
wait_exit third 10
[ "$status" = 1 ] || fail "receive ended with $status after its guest's server was killed"
[ -e "$tmp/third" ] || fail "the disk of a guest was removed"
# Served again it is sealed from the beginning: its file says so, or else the user.  To receive anew
# it has to be given up.
random_disk "$tmp/small" 1M
recorded=()
"$python" -c 'import os, sys; os.setxattr(sys.argv[1], "user.test", b"1")' "$tmp/small" \
  2>/dev/null ||
  recorded=(--sealed)
for how in "${recorded[*]}" --sealed; do
  # shellcheck disable=SC2086
  start_receive third "$tmp/third" --resume $how
  [ "$(field sealed <"$tmp/third.json")" = true ] ||
    fail "--resume $how: not sealed: $(cat "$tmp/third.json")"
  has_to_exit 7 "$NBDMIRROR" copy "$tmp/small" "${uri[third]}"
  has_to_exit 0 "$NBDMIRROR" verify "$tmp/third" "${uri[third]}"
  # It is the guest's, which may take it off this server.
  "$python" -c 'import nbd, sys
h = nbd.NBD()
h.set_export_name("image@lend")
h.connect_unix(sys.argv[1])' "${socket[third]}" || fail "--resume $how: it is not lent"
  stop third
done
has_to_exit 2 "$NBDMIRROR" receive "$tmp/third" --size 1M --sealed --socket "$tmp/s"
[ ${#recorded[@]} != 0 ] || has_to_exit 7 "$NBDMIRROR" receive --stdio "$tmp/third" --resume
start_receive third "$tmp/third" --size 1M --overwrite
[ "$(field sealed <"$tmp/third.json")" = false ] || fail "--overwrite: sealed"
has_to_exit 0 "$NBDMIRROR" copy "$tmp/small" "${uri[third]}"

# Given up, and the guest's first write comes before the server has ended: its disk will be gone, so
# it is not answered.
start_receive fourth "$tmp/fourth.img" --size 8M
sigstop "${pid[fourth]}"
timeout 60 "$python" - "${socket[fourth]}" <<'PY' ||
import nbd, sys
guest, other = nbd.NBD(), nbd.NBD()
guest.connect_unix(sys.argv[1])
other.set_export_name("mirror@give-up")
other.connect_unix(sys.argv[1])
try:
    guest.pwrite(b"g" * 4096, 0)
except nbd.Error:
    sys.exit(0)
sys.exit(1)
PY
  fail "a guest's write was answered by a disk that was given up"
kill -CONT "${pid[fourth]}"
wait_exit fourth 20
[ ! -e "$tmp/fourth.img" ] || fail "the disk that was given up is still there"
