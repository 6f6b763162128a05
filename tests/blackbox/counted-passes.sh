#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that passes are counted whenever the job is not ready: also after it was ready and then
# paused, or lost its destination.  The guards against a job that does not converge go by them.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread

random_disk "$tmp/disk" 8M
start_server src "$tmp/disk"
start_dest dst file 8M
c=${control[src]}
spawn mirror nbdmirror mirror "$c" "${uri[dst]}" --quarantine-grace 0 --report "$tmp/report"
wait_state "$c" ready 20

guest_writes () {
  "$python" - "${uri[src]}" <<'PY'
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(os.urandom(1 << 20), 5 << 20) # a hole: what the destination is recognised by stays
h.shutdown()
PY
}
# counts_again WHAT: it becomes ready, and has counted at least one pass more than $passes.
counts_again () {
  wait_state "$c" ready 20
  more () { [ "$(status_of "$c" passes)" -gt "$passes" ]; }
  wait_for 20 more
  note "$1: $passes passes before, $(status_of "$c" passes) after"
}

passes=$(status_of "$c" passes)
nbdmirror pause "$c"
guest_writes
nbdmirror resume "$c"
counts_again "paused"

# What is not flushed yet would have to be read back, and no passes are counted meanwhile.
flushed () { [ "$(status_of "$c" claimed-bytes)" = 0 ]; }
wait_for 10 flushed
passes=$(status_of "$c" passes)
stop dst KILL
wait_state "$c" degraded 10
guest_writes
start_dest dst file 8M
counts_again "destination lost"

passes=$(status_of "$c" passes)
nbdmirror complete "$c"
ends_well mirror
[ "$("$python" -c 'import json, sys; print(len(json.load(sys.stdin)["pass-log"]))' \
  <"$tmp/report")" -ge "$passes" ] || fail "the log has less than $passes passes"
equal "$tmp/disk" "${uri[dst]}"
