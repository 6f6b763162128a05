#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that the examples of nbdmirror-backup(1) work as they are printed, one after the other: the
# five minutes, freezing a guest, restoring and the drill, the units for systemd, the line for cron,
# and the steps of users of virtnbdbackup.  Only paths, dates and the guest are others.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd nbdinfo
proves_nothing_under thread
proves_nothing_under address

ln -s "$NBDMIRROR" "$tmp/nbdmirror"
ln -s "$builddir/nbdmirror-guest-agent" "$tmp/nbdmirror-guest-agent"
export PATH=$tmp:$PATH
mkdir "$tmp/lib"
image=$tmp/lib/vda.img
head -c 4M <(seq -f 'line %.0f of a disk' 1000000) >"$image"
cp "$image" "$tmp/lib/vdb.img"
cp "$image" "$tmp/before"
device=$tmp/device
if loop=$(truncate -s 4M "$tmp/device" && losetup -f --show "$tmp/device" 2>/dev/null); then
  device=$loop
  detach () { losetup -d "$loop"; }
  at_exit detach
else
  note "no loop device can be made: a file is restored to instead"
fi

# example SECTION N: its Nth indented block, with the names of this test.
newest=
example () {
  awk -v section="$1" -v n="$2" '/^=head1/ { on = index ($0, section) }
    on && /^  / { if (!inside) { count++; inside = 1 } if (count == n) print substr($0, 3); next }
    on && /^[^ ]/ { inside = 0 }' "$srcdir/docs/nbdmirror-backup.pod" |
    sed "s|=nbdmirror|=$NBDMIRROR|; s|root nbdmirror|root $NBDMIRROR|; s|/run/vm|$tmp/run|g
      s|--detach|& -- mirror-state-volatile=yes|; s|/dev/vg/vda|$device|; s|/tmp/overlay|$tmp/over|
      s|20261128T013000Z-inc|$newest|; s|2026-11-28|$(date +%F)|; s|/backup/vm|$tmp/vm|g
      s|^virsh|virsh -c test:///default|; s|dumpxml vm|dumpxml test|; s|/etc/vm.xml|$tmp/vm.xml|
      s|/var/lib/prometheus/node-exporter|$tmp|; s|/var/lib/vm|$tmp/lib|g"
}
# follow LINES SECTION N: run it; it has so many lines.
follow () {
  local lines=$1; shift
  example "$@" >"$tmp/steps.sh"
  [ "$(wc -l <"$tmp/steps.sh")" = "$lines" ] || fail "$*: $(cat "$tmp/steps.sh")"
  sh -e "$tmp/steps.sh" >"$tmp/out" 2>&1 || fail "$*: $(cat "$tmp/steps.sh" "$tmp/out")"
}
told () { grep -q "$1" "$tmp/out" || fail "'$1' is not told: $(cat "$tmp/out")"; }
servers=()
end_servers () {
  local one
  for one in "${servers[@]}"; do kill "$one" 2>/dev/null || :; done
  servers=()
}
at_exit end_servers
took_over () { servers+=("$(status_of "$tmp/run/$1.control" server-pid)"); }

# ---- five minutes --------------------------------------------------------------------------------
follow 3 'FIVE MINUTES' 1
took_over vda
follow 2 'FIVE MINUTES' 2
told 'vda full'
told 'vda incremental'
newest=$(basename "$tmp"/vm/vda/*-inc.qcow2 .qcow2)
follow 4 'FIVE MINUTES' 3
told 'Images are identical'
[ "$(grep -c '^image:' "$tmp/out")" = 2 ] || fail "the chain: $(cat "$tmp/out")"
example 'FIVE MINUTES' 1 | sed 's/vda/vdb/g' >"$tmp/steps.sh"
sh -e "$tmp/steps.sh" >"$tmp/out" 2>&1 || fail "a second disk: $(cat "$tmp/out")"
took_over vdb
follow 1 'FIVE MINUTES' 4
told 'all 2 disks done, vda incremental .*, vdb full'

# ---- freezing a guest, of which there is its agent only ------------------------------------------
spawn agent "$python" "$srcdir/tests/blackbox/guest-agent-stand-in.py" "$tmp/run/ga.sock" \
  "$tmp/did"
wait_for_socket "$tmp/run/ga.sock" agent
example 'FREEZING A GUEST' 1 | sed -n '/^nbdmirror/,$p' >"$tmp/steps.sh"
sh -e "$tmp/steps.sh" >"$tmp/out" 2>&1 || fail "freezing: $(cat "$tmp/out")"
told 'vda incremental .*; guest frozen'
follow 1 'FREEZING A GUEST' 2
[ "$(paste -sd' ' "$tmp/did")" = 'freeze thaw freeze thaw' ] || fail "it did $(cat "$tmp/did")"

# ---- the drill: QEMU is one that reads its disk and prints a mark --------------------------------
# shellcheck disable=SC2016
printf '#!/bin/sh\nfor word; do uri=${word##*file=}; done\nnbdinfo --size "$uri" && echo login:\n' \
  >"$tmp/qemu-system-x86_64"
chmod +x "$tmp/qemu-system-x86_64"
example 'RESTORING' 2 | sed 's/ --boot/ --disk vda&/' >"$tmp/steps.sh"
sh -e "$tmp/steps.sh" >"$tmp/out" 2>&1 || fail "the drill: $(cat "$tmp/out")"
[ "$(grep -c ': good$' "$tmp/out")" -ge 5 ] || fail "the drill: $(cat "$tmp/out")"
told '^vda: good: 0 bytes differ'
told ': booted'

# ---- restoring; the newest backup has both disks -------------------------------------------------
end_servers
is_free () { flock -n "$image" true && ! "$NBDMIRROR" status "$tmp/run/vda.control"; }
wait_for 20 is_free
printf 'damage' | dd of="$image" conv=notrunc status=none
follow 2 'RESTORING' 1
cmp "$image" "$tmp/before" || fail "another disk was restored"
cmp "$device" "$tmp/before" || fail "another disk was restored to the device"
follow 2 'RESTORING' 3
cmp "$image" "$tmp/before" || fail "qemu-img has restored another disk"
qemu-img compare -q -f qcow2 -F raw "$tmp/over.qcow2" "$image" || fail "the overlay differs"

# ---- services and cron ---------------------------------------------------------------------------
mkdir "$tmp/units"
example SCHEDULES 1 >"$tmp/units/backup-vm.service"
example SCHEDULES 2 >"$tmp/units/backup-vm.timer"
example SCHEDULES 4 >"$tmp/units/vda.service"
if command -v systemd-analyze >/dev/null; then
  systemd-analyze verify "$tmp"/units/* >"$tmp/out" 2>&1 ||
    fail "systemd-analyze verify: $(cat "$tmp/out")"
  ! grep -q 'backup-vm\|vda\.service' "$tmp/out" || fail "systemd-analyze verify: $(cat "$tmp/out")"
else
  note "there is no systemd-analyze: the units are not verified"
fi
# command_of UNIT: what it runs.
command_of () {
  awk 'sub (/^ExecStart=/, "") { on = 1 } on { print } on && !/\\$/ { exit }' \
    "$tmp/units/$1.service"
}
rm -f "$tmp"/run/*
command_of vda | sed '$s/$/ -- mirror-state-volatile=yes/' >"$tmp/serve.sh"
spawn served sh -c "exec $(cat "$tmp/serve.sh")"
wait_for_socket "$tmp/run/vda.sock" served
command_of backup-vm >"$tmp/service.sh"
example SCHEDULES 3 | sed 's/^[0-9*]* [0-9*]* [0-9*]* [0-9*]* [0-9*]* root //' >"$tmp/cron.sh"
for script in service cron; do
  sh -e "$tmp/$script.sh" >"$tmp/out" 2>"$tmp/err" ||
    fail "the example for $script: $(cat "$tmp/err")"
  [ "$(wc -l <"$tmp/out")" = 1 ] || fail "the mail of $script: $(cat "$tmp/out")"
done
told 'vda incremental'
[ -s "$tmp/vm.prom" ] || fail "the service has written no metrics"

# ---- the steps of another program's users --------------------------------------------------------
if command -v virsh >/dev/null; then
  follow 2 VIRTNBDBACKUP 1
  stop served
  follow 3 VIRTNBDBACKUP 2
  told "Domain 'test' defined"
  cmp "$image" "$tmp/before" || fail "another disk was restored"
else
  note "there is no virsh: the steps of a restore with a guest's definition are not tried"
fi
