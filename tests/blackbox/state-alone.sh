#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that no change is missed where the state file was not alone with its disk: it is an older
# copy, another server has served the same disk meanwhile, the disk was a destination meanwhile, or
# it is an older one that was put back with its attributes.  Each time the map since a checkpoint
# either has what was written, or is refused.
. "$(dirname "$0")/lib.sh"

size=32M

# serve NAME [STATE]: serve the disk, with a state file.
serve () {
  server_paths "$1"
  rm -f "${socket[$1]}" "${control[$1]}"
  spawn "$1" "${nbdmirror_prefix[@]}" "${server_env[@]}" nbdkit -f -U "${socket[$1]}" \
    --filter="$NBDMIRROR_FILTER" file "$tmp/disk" "mirror-control=${control[$1]}" \
    "mirror-uri=${uri[$1]}" "mirror-direct=$tmp/disk" ${2:+"mirror-state=$tmp/$2"} \
    mirror-state-volatile=yes
  wait_for_socket "${socket[$1]}" "$1"
  wait_for_socket "${control[$1]}" "$1"
}
killed () {
  kill -KILL "${pid[$1]}"
  wait "${pid[$1]}" 2>/dev/null || :
  unset "pid[$1]"
}
# change NAME MEBIBYTE: a guest writes a block.
change () {
  "$python" -c '
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(os.urandom(4096), int(sys.argv[2]) << 20)
h.flush()
h.shutdown()' "${uri[$1]}" "$2"
}
# has NAME MEBIBYTE CASE: the map since "one" has the block, or there is none.
has () {
  local result=0
  nbdmirror dirty-map "${control[$1]}" --since one --json >"$tmp/map" 2>"$tmp/err" || result=$?
  [ $result != 7 ] || return 0
  [ $result = 0 ] || fail "$3: no map: $(cat "$tmp/err")"
  "$python" -c '
import json, sys
at = int(sys.argv[2]) << 20
sys.exit(not any(r["type"] and r["offset"] <= at < r["offset"] + r["length"]
                 for r in json.load(open(sys.argv[1]))))' "$tmp/map" "$2" ||
    fail "$3: what was written is not in the map"
}
# begin: a new disk, whose state file has the checkpoint "one".
begin () {
  rm -f "$tmp/disk" "$tmp"/*.state
  random_disk "$tmp/disk" $size
  serve src a.state
  nbdmirror checkpoint add "${control[src]}" one
  change src 1
  has src 1 "at once"
}

"$python" - "$tmp" <<'PY' || skip "no attributes of users here"
import os, sys
path = sys.argv[1] + "/probe"
open(path, "w").close()
os.setxattr(path, "user.nbdmirror.probe", b"x")
PY

# An older copy of the state file of a server that was killed.
begin
killed src
cp "$tmp/a.state" "$tmp/old.state"
serve src a.state
change src 9
stop src
serve src old.state
has src 9 "an older copy"
stop src

# Another server that came later, with a state file of its own, or with none, and ended later.
for state in b.state ""; do
  begin
  serve other $state
  change other 9
  has src 9 "beside another server (${state:-none})"
  stop src
  stop other
  serve src a.state
  has src 9 "after another server (${state:-none})"
  stop src
done

# Another server that was there before.
for state in b.state ""; do
  rm -f "$tmp/disk" "$tmp"/*.state
  random_disk "$tmp/disk" $size
  serve other $state
  serve src a.state
  nbdmirror checkpoint add "${control[src]}" one
  change other 9
  has src 9 "beside an earlier server (${state:-none})"
  stop src
  stop other
  serve src a.state
  has src 9 "after an earlier server (${state:-none})"
  stop src
done

# An older disk is put back after a crash, with all its attributes.
begin
cp -a "$tmp/disk" "$tmp/older"
change src 9
nbdmirror checkpoint add "${control[src]}" two
nbdmirror checkpoint remove "${control[src]}" one
nbdmirror checkpoint add "${control[src]}" one
killed src
mv "$tmp/older" "$tmp/disk"
serve src a.state
has src 9 "an older disk"
stop src

# A program of ours writes to the disk after a crash.
begin
cp "$tmp/disk" "$tmp/other"
"$python" -c 'import os, sys; os.pwrite(os.open(sys.argv[1], os.O_WRONLY), b"x", 9 << 20)' \
  "$tmp/other"
killed src
nbdmirror copy "$tmp/other" "$tmp/disk" 2>"$tmp/err" || fail "copy: $(cat "$tmp/err")"
serve src a.state
has src 9 "after a copy"
stop src
begin
killed src
start_receive dst "$tmp/disk" --resume
"$python" -c '
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"y", 11 << 20)
h.flush()
h.shutdown()' "${guest_uri[dst]}"
stop dst
serve src a.state
has src 11 "after a receive"
stop src

# A server that is killed while it starts costs nothing: what is known stays exact.
begin
for i in {1..6}; do
  killed src
  rm -f "$tmp"/early.*
  spawn src "${nbdmirror_prefix[@]}" "${server_env[@]}" nbdkit -f -U "$tmp/early.sock" \
    --filter="$NBDMIRROR_FILTER" file "$tmp/disk" "mirror-control=$tmp/early.control" \
    "mirror-direct=$tmp/disk" "mirror-state=$tmp/a.state" mirror-state-volatile=yes
  sleep "0.0$i"
done
killed src
serve src a.state
change src 3
nbdmirror dirty-map "${control[src]}" --since one >/dev/null || fail "a start that was cut off"
has src 1 "a start that was cut off"
