#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that what is no monitor of QEMU's, or is libvirt's, is refused by name, and that commands
# to a guest of libvirt's go through virsh, whose faults are told.
. "$(dirname "$0")/lib.sh"

# says STATUS TEXT WORDS...: nbdmirror ends with STATUS, and its message has TEXT in it.
says() {
  local want=$1 text=$2 got=0
  shift 2
  nbdmirror "$@" </dev/null >"$tmp/out" 2>&1 || got=$?
  [ "$got" = "$want" ] || fail "exit status $got, not $want, from: $*: $(cat "$tmp/out")"
  grep -qF -- "$text" "$tmp/out" || fail "no '$text' from: $*: $(cat "$tmp/out")"
}

random_disk "$tmp/disk" 1M
start_server src "$tmp/disk"
here=(--socket "$tmp/s" --control "$tmp/c")

says 7 "control socket of nbdmirror's" adopt --qmp "${control[src]}" "${here[@]}"
says 2 "the name of the node is missing" mirror "qmp:${control[src]}" nbd://localhost/
says 2 "only none and fail" mirror qmp:/x/y nbd://localhost/ --policy sync

# libvirt's own monitor: nobody answers there, so it is known by its path.
mkdir -p "$tmp/libvirt/qemu/domain-1-vm1"
: >"$tmp/libvirt/qemu/domain-1-vm1/monitor.sock"
says 7 "libvirt keeps this monitor to itself" adopt \
  --qmp "$tmp/libvirt/qemu/domain-1-vm1/monitor.sock" "${here[@]}"
says 2 "migrate needs the monitor itself" migrate --source-qmp libvirt:vm1 --dest-qmp x \
  --memory-uri x --disk a=b

# A virsh that answers what the test has written, and notes how it was called.
mkdir "$tmp/bin"
cat >"$tmp/bin/virsh" <<SH
#!/bin/sh
echo "\$@" >>"$tmp/calls"
cat "$tmp/answer"
exit \$(cat "$tmp/status")
SH
chmod +x "$tmp/bin/virsh"
PATH="$tmp/bin:$PATH"
answers() {
  echo "$1" >"$tmp/status"
  printf '%s\n' "$2" >"$tmp/answer"
}
answers 1 ''
says 1 "libvirt:vm1: virsh qemu-monitor-command: it has failed" adopt --qmp libvirt:vm1 "${here[@]}"
answers 0 'no JSON'
says 1 "no answer of QEMU's" adopt --qmp libvirt:vm1 "${here[@]}"
answers 0 '{"id":"libvirt-9","error":{"class":"GenericError","desc":"a reason of its own"}}'
says 1 "a reason of its own" give-back --qmp libvirt:vm1 "${control[src]}"
answers 0 '{"id":"libvirt-9","return":{"qemu":{"major":4,"minor":2,"micro":0},"package":""}}'
says 7 "QEMU is version 4.2" adopt --qmp libvirt:vm1 "${here[@]}"
[ "$(sort -u "$tmp/calls")" = \
  '-q qemu-monitor-command vm1 -- {"execute":"query-version"}' ] \
  || fail "calls: $(cat "$tmp/calls")"
[ ! -e "$tmp/c.adopted" ] || fail "a record of what was refused"
