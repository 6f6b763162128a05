#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that `nbdmirror migrate` waits for a worker that proves the base image of its destination
# for longer than any other worker may be silent; and that it finds out about one that was stopped
# meanwhile.
. "$(dirname "$0")/lib.sh"
[ -n "${NBDMIRROR_LONG:-}" ] || skip "takes long: NBDMIRROR_LONG=1"
proves_nothing_under address
proves_nothing_under thread
. "$srcdir/tests/blackbox/migrate-lib.sh"

# The destination of a reads its disk for its digests in 384 pieces.  That takes 27 s.
size=$((96 << 20))
for d in a b; do stop "$d"; stop "to-$d"; rm -f "${socket[to-$d]}"; done
head -c $size /dev/zero | tr '\0' x >"$tmp/base"
for d in a b; do
  cp "$tmp/base" "$tmp/$d.disk"
  cp "$tmp/base" "$tmp/to-$d.img"
  start_server "$d" "$tmp/$d.disk"
done
start_dest to-b file $size
spawn to-a "${server_env[@]}" nbdkit -f -U "${socket[to-a]}" --filter="$NBDMIRROR_DIGEST_FILTER" \
  --filter=delay file "$tmp/to-a.img" rdelay=70ms
wait_for_socket "${socket[to-a]}" to-a
both="--disk ${control[a]}=${uri[to-a]},sync=base,base=$tmp/base --disk ${control[b]}=${uri[to-b]}"

migrate () { # NAME
  # shellcheck disable=SC2086
  spawn "$1" nbdmirror migrate --source-qmp "$tmp/source.qmp" --dest-qmp "$tmp/dest.qmp" \
    --memory-uri unix:/nowhere $both --log "$tmp/log"
}
worker () { pgrep -f "nbdmirror mirror ${control[a]} "; }

case="its worker was stopped"
qemus
migrate stopped
wait_for 20 worker >/dev/null
sigstop "$(worker)"
wait_exit stopped 60
[ "$status" = 1 ] || fail "$case: exit status $status"
grep -q "its worker has said nothing for 20 s: is it stopped?" "$tmp/stopped.log" ||
  fail "$case: $(cat "$tmp/stopped.log")"
ended running dead open

case="a long proof"
qemus
migrate long
wait_exit long 120
[ "$status" = 0 ] || { cat "$tmp/long.log" >&2; fail "$case: exit status $status"; }
"$python" - "$tmp/log" <<'PY' || fail "$case: it was no long one: $(cat "$tmp/log")"
import json, sys
last = [json.loads(line) for line in open(sys.argv[1])][-1]
assert last["ms"] > 22000, last
PY
ended postmigrate running fenced
