#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a checkpoint needs no instant without writes: a guest keeps as many of them in flight,
# on one connection and a slow disk, as the server takes.
. "$(dirname "$0")/lib.sh"

random_disk "$tmp/disk" 64M
fresh_paths src
spawn src "${nbdmirror_prefix[@]}" "${server_env[@]}" nbdkit -f -U "${socket[src]}" \
  --filter="$NBDMIRROR_FILTER" --filter=delay file "$tmp/disk" wdelay=20ms \
  "mirror-control=${control[src]}" "mirror-uri=${uri[src]}" "mirror-direct=$tmp/disk" \
  "mirror-state=$tmp/state" mirror-state-volatile=yes
wait_for_socket "${socket[src]}" src
wait_for_socket "${control[src]}" src

cat >"$tmp/guest.py" <<'EOF'
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
data = nbd.Buffer.from_bytearray(bytearray(b"w" * 4096))
nr = flying = 0

def done(_error):
    global flying
    flying -= 1
    return 1

while not os.path.exists(sys.argv[2]):
    while flying < 32:  # nbdkit has 16 threads
        flying += 1
        h.aio_pwrite(data, nr % 16384 * 4096, completion=done)
        nr += 1
    if nr == 320:
        open(sys.argv[2] + ".busy", "w")
    h.poll(-1)
while flying:
    h.poll(-1)
h.shutdown()
EOF
spawn guest "$python" "$tmp/guest.py" "${uri[src]}" "$tmp/enough"
wait_for 20 test -e "$tmp/enough.busy"
for i in 1 2 3; do
  nbdmirror checkpoint add "${control[src]}" "at$i"
done
touch "$tmp/enough"
ends_well guest
