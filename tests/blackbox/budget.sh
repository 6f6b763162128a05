#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Budgets: two jobs share one fairly and by weight, and together send no faster; a member that is
# stopped or killed at any instant is no longer counted, and holds nobody up; a change is seen by
# running jobs, and the status tells it; a budget that is missing, or not ours, is refused before
# anything is written; compressed bytes are counted as they cross the line.
. "$(dirname "$0")/lib.sh"
measures_times

export NBDMIRROR_BUDGETS=$tmp/budgets
head -c $((8 << 20)) /dev/urandom >"$tmp/disk"
budget () { nbdmirror budget "$@"; }
# of MEMBER FIELD: a figure of the member whose job is called so.
of () {
  budget vms --json | "$python" -c '
import json, sys
for m in json.load(sys.stdin)["members"]:
    if m["job"] == sys.argv[1]:
        print(m[sys.argv[2]])' "$1" "$2"
}
members () { budget vms --json | grep -c '"pid"'; }
start_copy () { # NAME BUDGET
  local name=$1
  spawn "$name" nbdmirror copy "$tmp/disk" "$tmp/$name.out" --budget "$2" --report \
    "$tmp/$name.report"
}
has_sent () { local n; n=$(of "$tmp/$1.out" bytes) && [ "${n:-0}" -gt "$2" ]; }

# ---- what is refused ----

for wrong in '' .x x/y 'x y' "$(printf 'x%.0s' {1..65})"; do
  has_to_exit 2 "$NBDMIRROR" budget "$wrong" 1M
  has_to_exit 2 "$NBDMIRROR" copy "$tmp/disk" "$tmp/new" --budget "$wrong"
done
for wrong in x: x:0 x:101 x:y; do
  has_to_exit 2 "$NBDMIRROR" copy "$tmp/disk" "$tmp/new" --budget "$wrong"
done
for wrong in fast 1k -1M; do has_to_exit 2 "$NBDMIRROR" budget vms "$wrong"; done
has_to_exit 1 "$NBDMIRROR" copy "$tmp/disk" "$tmp/new" --budget vms
grep -q "there is no budget vms: 'nbdmirror budget vms RATE' makes it" "$tmp/err" ||
  fail "another reason: $(cat "$tmp/err")"
start_server other "$tmp/disk"
nbdmirror copy "${uri[other]}" null: 2>"$tmp/log" || fail "it cannot be opened"
"${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" evacuate-disk "${control[other]}" \
  "$tmp/new" --budget vms >"$tmp/log" 2>&1 &&
  fail "evacuate-disk does without the budget"
grep -q "there is no budget vms" "$tmp/log" || fail "evacuate-disk: $(cat "$tmp/log")"
rm -f "$tmp/new"
stop other
has_to_exit 1 "$NBDMIRROR" budget vms
budget vms 5M
for what in "chmod 770 $tmp/budgets" "chmod 666 $tmp/budgets/vms" \
  "chown 65534 $tmp/budgets/vms" "chown 65534 $tmp/budgets"; do
  case $what in chown*) [ "$(id -u)" = 0 ] || continue ;; esac
  $what
  has_to_exit 1 "$NBDMIRROR" copy "$tmp/disk" "$tmp/new" --budget vms
  grep -q 'other user\|another user' "$tmp/err" || fail "$what: $(cat "$tmp/err")"
  has_to_exit 1 "$NBDMIRROR" budget vms 1G
  chmod 700 "$tmp/budgets"; chmod 600 "$tmp/budgets/vms"
  [ "$(id -u)" != 0 ] || chown 0 "$tmp/budgets" "$tmp/budgets/vms"
done
[ ! -e "$tmp/new" ] || fail "something was written without the budget"

# One that cannot be read is named, and hides none of the others.
echo "from elsewhere" >"$tmp/budgets/one"
chmod 600 "$tmp/budgets/one"
has_to_exit 1 "$NBDMIRROR" budget
grep -q '^vms: 5.00 MiB/s' "$tmp/out" || fail "the others are hidden: $(cat "$tmp/out")"
grep -q "budget one: $tmp/budgets/one is none of nbdmirror" "$tmp/err" ||
  fail "the file is not named: $(cat "$tmp/err")"
has_to_exit 1 "$NBDMIRROR" budget --json
[ "$(field budget <"$tmp/out")" = vms ] || fail "--json: $(cat "$tmp/out")"
rm "$tmp/budgets/one"

# ---- two share, and keep the sum ----

start=$("$python" -c 'import time; print(time.monotonic ())')
start_copy one vms
start_copy two vms:4
wait_for 10 has_sent one 0
# share_now: what both have sent, seen at one instant.
share_now () {
  read -r one two < <(budget vms --json | "$python" -c '
import json, sys
sent = {m["job"][-7:]: m["bytes"] for m in json.load(sys.stdin)["members"]}
print(sent.get("one.out", 0), sent.get("two.out", 0))')
  [ "$two" -gt $((4 << 20)) ]
}
wait_for 20 share_now
if [ $((one * 13)) -gt $((two * 10)) ] || [ $((one * 8)) -lt "$two" ]; then
  fail "weights of 1 and 4, and $one and $two bytes"
fi
[ "$(members)" = 2 ] || fail "$(members) members"
has_to_exit 1 "$NBDMIRROR" budget vms --remove
ends_well two 30
ends_well one 30
"$python" - "$start" $((16 << 20)) $((5 << 20)) <<'PY' || fail "see above"
import sys, time
start, sent, rate = map(float, sys.argv[1:])
least = (sent - 3 * 262144) / rate - 0.1
assert time.monotonic() - start >= least, "the sum was sent too fast"
PY
for copy in one two; do
  cmp "$tmp/disk" "$tmp/$copy.out" || fail "the copies differ"
done
[ "$(field budget <"$tmp/one.report")" = vms ] || fail "the report does not tell the budget"
[ "$(field bytes < <(budget vms --json))" = $((16 << 20)) ] || fail "bytes: $(budget vms --json)"

# ---- one is stopped, one is killed; the rate changes ----

start_copy three vms:100
wait_for 10 has_sent three 0
sigstop "${pid[three]}"
start_server src "$tmp/disk"
budget vms 4M
spawn mirror nbdmirror mirror "${control[src]}" "$tmp/mirror.out" --budget vms
is () { [ "$(status_of "${control[src]}" "$1")" = "$2" ]; }
alone () { local n; n=$(status_of "${control[src]}" budget-share) && [ "${n:-0}" -gt 4000000 ]; }
wait_for 10 alone
is budget vms || fail "the status does not tell the budget"
budget vms 16M
wait_for 10 is budget-limit $((16 << 20))
nbdmirror status "${control[src]}" >"$tmp/out"
grep -q 'rate .*, budget vms of 16.0 MiB/s (share [0-9.]* .iB/s)' "$tmp/out" ||
  fail "status: $(cat "$tmp/out")"
kill -KILL "${pid[three]}"
wait "${pid[three]}" || :
wait_state "${control[src]}" ready 20
[ "$(members)" = 1 ] || fail "a killed member is still there: $(budget vms)"
budget vms none
budget | grep -q '^vms: no limit' || fail "$(budget)"
kill -KILL "${pid[mirror]}"
wait "${pid[mirror]}" || :
wait_for 10 budget vms --remove
[ -z "$(budget)" ] || fail "it was removed and is still there"
# The next worker has no budget, and says so.
is budget vms || fail "the status forgot the budget of the worker that was killed"
spawn mirror nbdmirror mirror "${control[src]}" "$tmp/mirror.out" --resume
wait_for 10 is worker attached
wait_state "${control[src]}" ready 20
is budget null || fail "the status tells a budget that is not used"
is budget-share null || fail "the status tells a share"
stop mirror

# ---- who waits for its input takes no part ----

budget day 5M
mkfifo "$tmp/input"
# shellcheck disable=SC2016
spawn waits sh -c 'exec "$@" <"$0"' "$tmp/input" "${nbdmirror_prefix[@]}" "$NBDMIRROR" copy - \
  "$tmp/stream.out" --budget day
exec {input}>"$tmp/input"
joined () { budget day --json | grep -q '"pid"'; }
wait_for 10 joined
takes_no_part () { ! budget day --json | grep -q '"active": true'; }
wait_for 5 takes_no_part
echo "at last" >&"$input"
exec {input}>&-
ends_well waits 10
grep -q "at last" "$tmp/stream.out" || fail "the stream was not copied"
budget day --remove

# ---- what crosses the line is counted ----

seq 1500000 >"$tmp/text"
budget vms 1G
start_receive dst "$tmp/dst.img" --size "$(stat -c %s "$tmp/text")"
nbdmirror copy "$tmp/text" "${uri[dst]}" --compress --budget vms --report "$tmp/report" \
  2>"$tmp/log" || fail "copy: $(cat "$tmp/log")"
wire=$(field wire-bytes <"$tmp/report")
[ "$wire" -lt "$(field sent-bytes <"$tmp/report")" ] || fail "nothing was compressed"
[ "$(field bytes < <(budget vms --json))" = "$wire" ] ||
  fail "the budget counts $(budget vms --json), and the wire had $wire"

# ---- a file system that is full ----

if unshare -m true 2>/dev/null; then
  mkdir -m 700 "$tmp/full"
  export builddir tmp NBDMIRROR
  # shellcheck disable=SC2016
  unshare -m bash -euc '
    mount -t tmpfs -o size=256k,mode=700 none "$tmp/full"
    export NBDMIRROR_BUDGETS=$tmp/full
    "$NBDMIRROR" budget one 1M
    dd if=/dev/zero of="$tmp/full/rest" bs=4k 2>/dev/null || :
    result=0
    "$NBDMIRROR" budget two 1M 2>"$tmp/err" || result=$?
    [ $result = 1 ] && grep -q "budget two: .*No space left" "$tmp/err"
    # A budget that an older version left, of which only the first page is there.
    rm "$tmp/full/one"
    truncate -s 8 "$tmp/full/rest"
    "$NBDMIRROR" budget one 1M
    head -c 4096 "$tmp/full/one" >"$tmp/head"
    size=$(stat -c %s "$tmp/full/one")
    rm "$tmp/full/one"
    install -m 600 "$tmp/head" "$tmp/full/one"
    truncate -s "$size" "$tmp/full/one"
    dd if=/dev/zero of="$tmp/full/rest" bs=4k 2>/dev/null || :
    result=0
    "$NBDMIRROR" copy /dev/null null: --budget one 2>"$tmp/err" || result=$?
    [ $result = 1 ] && grep -q "budget one: .*No space left" "$tmp/err"
  ' || fail "a full file system: $(cat "$tmp/err")"
else
  note "no full file system: mount is not allowed"
fi
