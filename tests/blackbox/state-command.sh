#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves what `nbdmirror state` says of a file without a job, of one that is in use, and of one
# whose server was killed, in this boot and in another one; and that it notices damage, says so with
# exit status 1, and takes more for dirty then, never less.
. "$(dirname "$0")/lib.sh"

random_disk "$tmp/disk" 64M
start_dest dst file 64M
server_paths src
spawn src "${nbdmirror_prefix[@]}" "${server_env[@]}" nbdkit -f -U "${socket[src]}" \
  --filter="$NBDMIRROR_FILTER" file "$tmp/disk" "mirror-control=${control[src]}" \
  "mirror-uri=${uri[src]}" "mirror-direct=$tmp/disk" "mirror-state=$tmp/state" \
  mirror-state-volatile=yes
wait_for_socket "${socket[src]}" src
wait_for_socket "${control[src]}" src

# state STATUS ARGS...: what it prints, in $tmp/out; its exit status must be STATUS.
state () {
  want=$1; shift
  status=0
  nbdmirror state "$@" >"$tmp/out" 2>&1 || status=$?
  [ $status = "$want" ] || { cat "$tmp/out"; fail "state $*: exit status $status, not $want"; }
}
says () { grep -q "$1" "$tmp/out" || { cat "$tmp/out"; fail "state does not say: $1"; }; }
field () {
  "$python" -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1" <"$tmp/out"
}
is () { [ "$(field "$1")" = "$2" ] || fail "$1 is $(field "$1"), not $2"; }

# change MEBIBYTE: a guest writes two blocks.
change () {
  "$python" -c '
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(os.urandom(8192), int(sys.argv[2]) << 20)
h.shutdown()' "${uri[src]}" "$1"
}

state 0 "$tmp/state" && says 'no job'
if grep -q recovery "$tmp/out"; then fail "it tells of a recovery where nothing is recorded"; fi
for name in one two three; do
  nbdmirror checkpoint add "${control[src]}" $name
  change 40
done
state 0 "$tmp/state" && says 'recovery     exact' && says 'no job' && says 'checkpoint   one'
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}"
wait_state "${control[src]}" ready 40
sleep 2.5 # a round or two: note and L2 are written
state 0 "$tmp/state" && says 'in use by a server' && says 'recovery     exact'
stop mirror TERM
stop src KILL
state 0 "$tmp/state" --json
is job True; is in-use False; is status active; is recovery exact; is bad-pages 0
is size 67108864; is block-size 4096
exact=$(field dirty-blocks)
samples=$(field samples)
[ "$samples" -gt 1 ] || fail "$samples samples"

# checkpoints JSON-EXPRESSION: what it is of the list of checkpoints, c.
checkpoints () {
  "$python" -c '
import json, sys
c = json.load(sys.stdin)["checkpoints"]
sys.exit(not eval(sys.argv[1]))' "$1" <"$tmp/out" || { cat "$tmp/out"; fail "not so: $1"; }
}
checkpoints '[k["name"] for k in c] == ["one", "two", "three"]'
checkpoints '[k["recording"] for k in c] == ["frozen", "frozen", "active"]'
checkpoints 'all(k["recorded-blocks"] == 2 and k["bad-pages"] == 0 for k in c)'
state 0 "$tmp/state" && says "^samples  *$samples$" && says 'checkpoint   two: frozen, 8.*recorded'

# damage OFFSET...: a copy in which these bytes are others.
damage () {
  cp "$tmp/state" "$tmp/damaged"
  for at; do
    printf 'damage' | dd of="$tmp/damaged" bs=1 seek="$at" conv=notrunc status=none
  done
}
note=8192 table=81920 l1=221184 samples_at=$((221184 + 8192)) l2=$((221184 + 8192 + 64 * 8192))
damage 100;             state 1 "$tmp/damaged" --json; is bad-pages 1; is dirty-blocks "$exact"
damage 4200;            state 1 "$tmp/damaged" --json; is bad-pages 1; is dirty-blocks "$exact"
damage 100 4200;        state 1 "$tmp/damaged"; says 'its superblocks are damaged'
damage $((l1 + 100)) $((l1 + 4196)); state 1 "$tmp/damaged" --json; is hot-extents 16
truncate -s 500000 "$tmp/damaged"; state 1 "$tmp/damaged"; says 'shorter than'
head -c 9000 /dev/urandom >"$tmp/random"; state 1 "$tmp/random"; says 'not a state file'
state 1 "$tmp/nothing"; says 'No such file'

# Every kind of page: the note, the table, a sample, and frozen recordings.
damage $((note + 100));  state 1 "$tmp/damaged" --json; is bad-pages 1; is dirty-blocks "$exact"
damage $((table + 300)); state 1 "$tmp/damaged" --json; is bad-pages 1
checkpoints 'len(c) == 3'
damage $((samples_at + 8192 + 5000)); state 1 "$tmp/damaged" --json
is bad-pages 1; is samples $((samples - 1)); is dirty-blocks "$exact"
# area NUMBER: where that recording's pages begin.  64 MiB in blocks of 4 KiB: one page each.
area () { echo $(((l2 + 4096 + 65535) / 65536 * 65536 + 3 * 65536 + $1 * 65536)); }
for i in 0 1; do
  damage $(($(area $i) + 2000)); state 1 "$tmp/damaged" --json
  is bad-pages 1; is dirty-blocks "$exact"
  checkpoints "c[$i]['recording'] == 'damaged' and c[$i]['recorded-blocks'] == 16384"
  checkpoints "c[1 - $i]['recording'] == 'frozen' and c[1 - $i]['bad-pages'] == 0"
  state 1 "$tmp/damaged"; says 'damaged, 64.0 MiB recorded: 1 pages are damaged'
done
# A page that is missing.
cp "$tmp/state" "$tmp/damaged"
dd if=/dev/zero of="$tmp/damaged" bs=4k seek=$(($(area 1) / 4096)) count=1 conv=notrunc status=none
state 1 "$tmp/damaged"; says "two: damaged, .*it has 0 of 2 blocks"
state 1 "$tmp/damaged" --json; is bad-pages 0

# In another boot L2 counts, and what is hot.
cp "$tmp/state" "$tmp/damaged"
"$python" "$srcdir/tests/blackbox/other-boot.py" "$tmp/damaged"
state 0 "$tmp/damaged" --json; is recovery extents
cp "$tmp/damaged" "$tmp/state"
damage $((l2 + 100)); state 1 "$tmp/damaged" --json
is bad-pages 1; is dirty-blocks 16384
