# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2154
#
# Common to the tests of disks that come back (return*.sh): source it after lib.sh.

# receive NAME DISK OPTIONS...: NAME is tracked as well.
receive () {
  local name=$1 disk=$2; shift 2
  control[$name]=$tmp/$name.control
  rm -f "$tmp/$name.log"
  start_receive "$name" "$disk" --control "${control[$name]}" --state "$tmp/$name.state" "$@" \
    -- mirror-state-volatile=yes
}
# kill_server NAME: `receive` and its server, as if the host had gone.
kill_server () {
  local server
  server=$(child_of "$1" nbdkit)
  kill -KILL "${pid[$1]}" "$server"
  wait "${pid[$1]}" 2>/dev/null || :
  unset "pid[$1]"
  while kill -0 "$server" 2>/dev/null; do sleep 0.02; done
}
# write_blocks URI SEED COUNT [BYTES]: a guest writes blocks here and there in the first BYTES.
write_blocks () {
  "$python" - "$@" <<'PY'
import nbd, os, random, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
rng = random.Random(int(sys.argv[2]))
size = int(sys.argv[4]) if len(sys.argv) > 4 else h.get_size()
for i in range(int(sys.argv[3])):
    h.pwrite(os.urandom(4096), rng.randrange(size // 4096) * 4096)
h.shutdown()
PY
}
# moves FROM TO OPTIONS...: FROM's disk is handed over to TO.
moves () {
  local from=$1 to=$2; shift 2
  rm -f "$tmp/report" "$tmp/moves.log"
  nbdmirror mirror "${control[$from]}" "${uri[$to]}" --on-ready complete --report "$tmp/report" \
    "$@" >"$tmp/moves.log" 2>&1 || fail "$from to $to: $(cat "$tmp/moves.log")"
}
# Does the disk of NAME, which was handed over, say where it stands?
stands () { [ "$(status_of "${control[$1]}" stands-at)" != null ]; }
has_checkpoint () { nbdmirror checkpoint list "${control[$1]}" | grep -q "^received .*consistent"; }
