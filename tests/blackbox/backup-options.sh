#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves what the options of a backup do besides copying: --compress makes smaller files that QEMU
# reads, --budget keeps the host's limit, --policy and --max-duration say what becomes of a guest
# that writes too fast, --metrics tells Prometheus of successes and failures, and the line for the
# mail is one line.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd
proves_nothing_under thread
proves_nothing_under address

repo="$tmp/the \"repo"
export NBDMIRROR_BUDGETS=$tmp/budgets
head -c 4M <(seq -f 'line %.0f of a text that is easily compressed' 100000) >"$tmp/vda"
start_server vda "$tmp/vda" --state "$tmp/vda.state" -- mirror-state-volatile=yes
A=${control[vda]}
newest () { "$python" "$srcdir/tests/blackbox/newest-backup.py" "$repo" vda "$1"; }
same () {
  qemu-img check -q "$(newest file)" || fail "qemu-img check"
  qemu-img compare -q -f qcow2 -F raw "$(newest file)" "$tmp/vda" || fail "the backup differs"
}
back_up () { # back_up STATUS OPTIONS...: the line for the mail is in $tmp/mail.
  local want=$1 got=0; shift
  nbdmirror backup "$A" "$repo" "$@" >"$tmp/mail" 2>"$tmp/err" || got=$?
  [ $got = "$want" ] || fail "exit status $got instead of $want: $(cat "$tmp/err")"
}
write () { # write BYTE OFFSET LENGTH
  "$python" -c '
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(bytes([int(sys.argv[2])]) * int(sys.argv[4]), int(sys.argv[3]))
h.shutdown()' "${uri[vda]}" "$@"
}

# ---- --compress, and the metrics of a success ----------------------------------------------------
metric () { # metric NAME: its value for the disk
  sed -n "s|^nbdmirror_backup_$1{repository=\".*/the ..repo\",disk=\"vda\"} ||p" "$tmp/vm.prom"
}
back_up 0 --compress --metrics "$tmp/vm.prom"
same
[ "$(wc -l <"$tmp/mail")" = 1 ] || fail "the mail has not one line: $(cat "$tmp/mail")"
grep -q 'backup [0-9TZ]*: 1 disk done, vda full .* crash-consistent, pause' "$tmp/mail" ||
  fail "the mail: $(cat "$tmp/mail")"
bytes=$(stat -c %s "$(newest file)")
[ "$bytes" -lt $((2 << 20)) ] || fail "4 MiB of text take $bytes bytes"
qemu-img info "$(newest file)" | grep -q 'compression type: zstd' || fail "it is not zstd"
[ "$(metric success) $(metric full) $(metric bytes)" = "1 1 $bytes" ] ||
  fail "metrics: $(cat "$tmp/vm.prom")"
grep -q '^nbdmirror_backup_full_reason{.*,disk="vda",reason="there is no earlier backup' \
  "$tmp/vm.prom" || fail "metrics: $(cat "$tmp/vm.prom")"
grep -q '^nbdmirror_backup_duration_seconds{repository="[^{]*"} [0-9.]*$' "$tmp/vm.prom" ||
  fail "metrics: $(cat "$tmp/vm.prom")"
write 7 1000000 300000
back_up 0 --compress --incremental
same

# qemu-img ignores that there is no room for its last tables, and ends with 0.  A stand-in does the
# same: the file that it makes lacks what was there.
mkdir "$tmp/bin"
cat >"$tmp/bin/qemu-img" <<END
#!/bin/sh
"$(command -v qemu-img)" "\$@" || exit
[ "\$1" != convert ] || for file; do :; done
[ "\$1" != convert ] || qemu-io -f qcow2 -c 'discard 1M 64k' "\$file" >/dev/null
END
chmod +x "$tmp/bin/qemu-img"
before=$(newest file)
write 8 1000000 300000
path=$PATH PATH=$tmp/bin:$PATH
for kind in --full --incremental; do
  back_up 3 --compress $kind
  grep -q 'holds other data than the file before it' "$tmp/err" || fail "$(cat "$tmp/err")"
done
PATH=$path
[ "$before" = "$(newest file)" ] || fail "a file that lacks data counts as a backup"
back_up 0 --compress
same

# ---- the metrics of a failure keep the last success ----------------------------------------------
success=$(metric last_success_timestamp_seconds)
[ "$success" = "$(metric end_timestamp_seconds)" ] || fail "metrics: $(cat "$tmp/vm.prom")"
sed -i "s/$success/1234567/" "$tmp/vm.prom"
back_up 0 --dry-run --metrics "$tmp/vm.prom"
[ "$(metric success)" = 1 ] || fail "a dry run has changed the metrics"
mv "$repo/nbdmirror-repository.json" "$tmp/away"
back_up 3 --metrics "$tmp/vm.prom"
mv "$tmp/away" "$repo/nbdmirror-repository.json"
[ "$(metric success) $(metric last_success_timestamp_seconds)" = "0 1234567" ] ||
  fail "metrics of a failure: $(cat "$tmp/vm.prom")"
back_up 0 --metrics "$tmp/vm.prom"
if [ "$(metric full)" != 0 ] || grep -q 'reason=' "$tmp/vm.prom" ||
  [ "$(metric last_success_timestamp_seconds)" -le 1234567 ]; then
  fail "metrics: $(cat "$tmp/vm.prom")"
fi
# Somebody waits for the report.
mkfifo "$tmp/fifo"
spawn reader cat "$tmp/fifo"
spawn fifo nbdmirror backup "$A" "$repo" --report "$tmp/fifo"
wait_exit fifo 60
wait_exit reader 10
grep -q '"checkpoint"' "$tmp/reader.log" || fail "a fifo's report: $(cat "$tmp/reader.log")"

# All is copied, and the manifest cannot be written: that is no success, and no line says so.
sed -i "s/\(last_success.*\) .*/\1 1234567/" "$tmp/vm.prom"
# shellcheck disable=SC2016
full='mkdir "$NBDMIRROR_REPOSITORY/backups/$NBDMIRROR_BACKUP.json.tmp"'
back_up 3 --metrics "$tmp/vm.prom" --report "$tmp/report" --before-hold-exec "$full" \
  --after-release-exec true
grep -q 'json.tmp: Is a directory' "$tmp/err" || fail "another failure: $(cat "$tmp/err")"
[ "$(metric success) $(metric last_success_timestamp_seconds)" = "0 1234567" ] ||
  fail "metrics without a manifest: $(cat "$tmp/vm.prom")"
[ ! -s "$tmp/mail" ] || fail "the mail without a manifest: $(cat "$tmp/mail")"
[ ! -e "$tmp/report" ] || fail "the report without a manifest: $(cat "$tmp/report")"
rmdir "$repo"/backups/*.json.tmp
has_to_exit 1 nbdmirror backup "$A" "$repo" --metrics "$tmp/none/vm.prom"
grep -q "none/vm.prom" "$tmp/err" || fail "metrics that cannot be written: $(cat "$tmp/err")"

# ---- --budget: 4 MiB at 2 MiB/s take more than a second, however fast or slow this machine is ----
nbdmirror budget vms 2M
begun=${EPOCHREALTIME/./}
back_up 0 --full --budget vms
took=$(((${EPOCHREALTIME/./} - begun) / 1000))
[ $took -ge 1000 ] || fail "4 MiB with a budget of 2 MiB/s took $took ms"
back_up 1 --full --budget nobody
grep -q 'there is no budget nobody' "$tmp/err" || fail "a missing budget: $(cat "$tmp/err")"
same

# ---- a guest that changes more than is copied: --policy and --max-duration -----------------------
before=$(newest file)
spawn guest "$python" -c '
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
n = 0
while True:
    h.pwrite(os.urandom(65536), n * 7 % 64 * 65536)
    n += 1
' "${uri[vda]}"
back_up 4 --full --bandwidth 1M --max-duration 1s # the default is not to slow it down
grep -q 'not done within --max-duration: the guest goes on' "$tmp/err" || fail "$(cat "$tmp/err")"
back_up 4 --full --bandwidth 1M --policy fail
grep -q 'not converging' "$tmp/err" || fail "--policy fail: $(cat "$tmp/err")"
[ "$before" = "$(newest file)" ] || fail "a backup that was given up is in the repository"
running guest || fail "the guest has failed: $(cat "$tmp/guest.log")"
back_up 0 --full --bandwidth 4M --policy throttle
stop guest
back_up 0 --incremental
same
