#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that no flush is answered while an image is about to be lent, before everything is durable:
# a qemu-nbd that is stopped has made nothing durable yet.  That a flush which was waiting for a
# connection is answered once the image is lent.  And that a server ends whose image is lent while a
# request waits for it.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd
proves_nothing_under address
proves_nothing_under thread

qemu-img create -q -f qcow2 "$tmp/vm.qcow2" 4M
server_paths vm
spawn vm nbdkit -f -v -U "${socket[vm]}" "$NBDMIRROR_IMAGE_PLUGIN" "image=$tmp/vm.qcow2" \
  image-format=qcow2
wait_for_socket "${socket[vm]}" vm
qemu_nbd=$(child_of vm qemu-nbd)

# A guest: it writes, says so, and flushes when it is told to.
spawn guest "$python" -c '
import nbd, os, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"\7" * 65536, 0)
open("written", "w").close()
while not os.path.exists("flush"):
    time.sleep(0.01)
open("flushing", "w").close()
h.flush()
open("flushed", "w").close()
' "${uri[vm]}"
wait_for 20 test -e "$tmp/written"
sigstop "$qemu_nbd"
# borrow SECONDS: somebody has the image for so long.
borrow () {
  rm -f "$tmp/lent"
  spawn borrower "$python" -c '
import nbd, sys, time
h = nbd.NBD()
h.set_export_name("image@lend")
h.connect_unix(sys.argv[1])
open("lent", "w").close()
time.sleep(int(sys.argv[2]))
h.shutdown()' "${socket[vm]}" "$1"
}
borrow 0
wait_for 20 grep -q 'open.*image@lend' "$tmp/vm.log"
touch "$tmp/flush"
wait_for 20 test -e "$tmp/flushing"
sleep 0.5
[ ! -e "$tmp/lent" ] || fail "the image was lent by a server that is stopped"
[ ! -e "$tmp/flushed" ] || fail "a flush was answered, and nothing was durable"
kill -CONT "$qemu_nbd"
ends_well guest
ends_well borrower

# Reads take all connections, and a flush waits behind them.
count () { grep -c "$1" "$tmp/vm.log"; }
more_than () { [ "$(count "$1")" -gt "$2" ]; }
qemu-io -f raw -c 'read -q 0 64k' "${uri[vm]}" # the server is started again
qemu_nbd=$(child_of vm qemu-nbd)
sigstop "$qemu_nbd"
reads=$(count ' pread ') flushes=$(count ': flush') opens=$(count 'open.*image@lend')
rm "$tmp/flush" "$tmp/flushed"
spawn guest "$python" -c '
import nbd, os, sys
reader, flusher = nbd.NBD(), nbd.NBD()
for h in (reader, flusher):
    h.connect_uri(sys.argv[1])
buffers = [nbd.Buffer(512) for _ in range(16)]
reads = [reader.aio_pread(b, 1024 * i) for i, b in enumerate(buffers)]
while not os.path.exists("flush"):
    reader.poll(10)
flusher.flush()
open("flushed", "w").close()
while reads:
    reader.poll(10)
    reads = [r for r in reads if not reader.aio_command_completed(r)]
' "${uri[vm]}"
wait_for 20 more_than ' pread ' $((reads + 15))
touch "$tmp/flush"
wait_for 20 more_than ': flush' "$flushes"
sleep 0.5
borrow 60
wait_for 20 more_than 'open.*image@lend' "$opens"
kill -CONT "$qemu_nbd"
wait_for 20 test -e "$tmp/lent"
wait_for 10 test -e "$tmp/flushed"
stop borrower KILL
ends_well guest

borrow 60
wait_for 20 test -e "$tmp/lent"
writes () { grep -c ' pwrite ' "$tmp/vm.log"; }
before=$(writes)
spawn writer qemu-io -f raw -c 'write -q -P 8 64k 64k' "${uri[vm]}"
# shellcheck disable=SC2016 # wait_for evaluates it
wait_for 20 eval '[ "$(writes)" -gt "$before" ]'
kill "${pid[vm]}"
stop borrower KILL
wait_exit vm 20
wait_exit writer 20
qemu-io -f qcow2 -c 'read -q -P 7 0 64k' "$tmp/vm.qcow2" || fail "what was written is not there"
