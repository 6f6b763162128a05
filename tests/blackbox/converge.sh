#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a guest that writes faster than the destination may take is dealt with as the policy
# says: `fail` ends with exit status 4 and leaves the guest alone; `none` goes on, says that it does
# not converge, and a change of policy while it runs makes it end; `throttle` and `sync` slow the
# guest and end, the destination equal, the report with a verdict.
. "$(dirname "$0")/lib.sh"
need_fio_nbd

random_disk "$tmp/disk" 12M
random_disk "$tmp/disk2" 12M
start_server src "$tmp/disk"
start_server src2 "$tmp/disk2"
start_dest dst file 12M
dst=${uri[dst]}
guest () {
  spawn guest fio --name=guest --ioengine=nbd --uri="${uri[$1]}" --rw=randwrite --bs=4k \
    --iodepth=8 --time_based \
    --runtime=600 --size=12M --rate_iops=4000 --output="$tmp/fio.out"
}

# ---- fail ----
src=${control[src2]}
guest src2
got=0
timeout 60 "${nbdmirror_prefix[@]}" "$NBDMIRROR" mirror "$src" "$dst" --bandwidth 2M --policy fail \
  --report "$tmp/report" </dev/null >"$tmp/mirror.log" 2>&1 || got=$?
[ $got = 4 ] || fail "policy fail ended with $got: $(cat "$tmp/mirror.log")"
grep -q 'not converging: .*dirty .*bandwidth' "$tmp/mirror.log" ||
  fail "it does not say why: $(cat "$tmp/mirror.log")"
[ "$(field converging <"$tmp/report")" = false ] ||
  fail "the report does not say that it did not converge"
[ "$(status_of "$src" gate)" = open ] || fail "policy fail touched the gate"

stop guest

# ---- none, then throttle ----
src=${control[src]}
guest src
spawn worker nbdmirror mirror "$src" "$dst" --bandwidth 4M --policy none --on-ready complete \
  --report "$tmp/report"
# Where the rates are about equal the verdict may change from one moment to the next: look at one
# answer.
says_no () {
  nbdmirror status "$src" >"$tmp/status" &&
    grep -q 'converging *no (dirty .*, bandwidth ' "$tmp/status" \
    && grep -q 'policy *none: it keeps trying' "$tmp/status"
}
deadline=$((SECONDS + 60))
until says_no; do
  [ $SECONDS -lt $deadline ] ||
    fail "status never says that it does not converge: $(cat "$tmp/status" "$tmp/worker.log")"
  sleep 0.2
done
[ "$(status_of "$src" gate)" = open ] || fail "policy none touched the gate"

nbdmirror set "$src" policy=throttle || fail "set: $?"
deadline=$((SECONDS + 30))
until case $(status_of "$src" gate) in throttled | synchronous) true ;; *) false ;; esac; do
  [ $SECONDS -lt $deadline ] || fail "the guest was not throttled: $(cat "$tmp/worker.log")"
  sleep 0.05
done
ends_well worker 120
grep -Eq 'the guest may change|guest writes wait for the destination' "$tmp/worker.log" ||
  fail "it does not say what it did: $(cat "$tmp/worker.log")"
[ "$(field converging <"$tmp/report")" != false ] || fail "the report says that it did not converge"
stop guest
equal "$tmp/disk" "$dst"
