# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034,SC2120,SC2154
#
# For tests of destinations that go wrong: source it after lib.sh.

size=$(bytes 4M+512)
random_disk "$tmp/disk" "$size"
head -c 2M /dev/urandom | dd of="$tmp/disk" bs=64k conv=notrunc status=none
cp "$tmp/disk" "$tmp/offline"
start_server src "$tmp/disk"
limits=(--connect-timeout 1s --request-timeout 1s)

# run_both WHAT MIRROR-STATUS COPY-STATUS PATTERN FAKE-OPTIONS...: run a live mirror and an offline
# copy at the same time, each with a server of its own that has this fault.  Both have to end with
# their status, and to print PATTERN (an extended regular expression, which may be empty).
extra=()
run_both () {
  local what=$1 want_mirror=$2 want_copy=$3 pattern=$4 name log; shift 4
  local file_size=$size give_up
  case " $* " in *' --size '*) file_size= ;; esac
  for name in live off; do
    rm -f "$tmp/$name.img" "$tmp/$name.requests"
    if [ -n "$file_size" ]; then
      truncate -s "$file_size" "$tmp/$name.img"
      start_fake "$name" --file "$tmp/$name.img" --log "$tmp/$name.requests" "$@"
    else
      start_fake "$name" --log "$tmp/$name.requests" "$@"
    fi
  done
  cp "$tmp/disk" "$tmp/shadow"
  start_guest guest "${uri[src]}" --shadow "$tmp/shadow" --connections 1 --rate 50 --seconds 600
  : >"$tmp/copy.log"
  : >"$tmp/mirror.log"
  rm -f "$tmp/report"
  # Where all goes on, it may take long on a busy machine; where it does not, it ends soon.
  [ "$want_mirror" = 0 ] && give_up=10s || give_up=2s
  spawn copy timeout 100 "$NBDMIRROR" copy "$tmp/offline" "${uri[off]}" "${limits[@]}" \
    "${extra[@]}"
  spawn mirror timeout 100 "$NBDMIRROR" mirror "${control[src]}" "${uri[live]}" --max-downtime 2s \
    --restart --on-ready complete \
    "${limits[@]}" --quarantine-grace 200ms --give-up-after $give_up --report "$tmp/report" \
    "${extra[@]}"

  wait_exit mirror 110
  [ "$status" = "$want_mirror" ] || fail "$what: mirror ended with $status instead of $want_mirror"
  if [ "$status" = 0 ]; then
    wait_exit guest 20
    equal "$tmp/disk" "${uri[live]}"
    shadow_equal 0 "$what"
    roll_back "${control[src]}" >"$tmp/rollback.log" 2>&1 || fail "$what: cannot roll back"
  else
    running guest || fail "$what: the guest ended"
    [ "$(status_of "${control[src]}" gate)" = open ] || fail "$what: the gate is not open"
    stop guest
  fi
  [ "$status" = 0 ] || fail "$what: the guest saw an error: $(cat "$tmp/guest.json")"
  [ "$(field error <"$tmp/guest.json")" = null ] ||
    fail "$what: the guest saw an error: $(cat "$tmp/guest.json")"
  running src || fail "$what: the source's server ended"

  wait_exit copy 110
  [ "$status" = "$want_copy" ] || fail "$what: copy ended with $status instead of $want_copy"
  [ "$status" != 0 ] || equal "$tmp/offline" "${uri[off]}"

  for name in live:mirror:$want_mirror off:copy:$want_copy; do
    IFS=: read -r name log want <<<"$name"
    if [ -n "$pattern" ]; then
      grep -qE "$pattern" "$tmp/$log.log" || fail "$what: $log does not say '$pattern'"
      grep -q "$name.sock" "$tmp/$log.log" || fail "$what: $log does not name the destination"
    fi
    if [ "$want" = 7 ]; then
      ! grep -qE '"type": "(write|zero|trim)"' "$tmp/$name.requests" ||
        fail "$what: $log wrote something"
    fi
    stop "$name"
  done
  note "ok: $what (mirror $want_mirror, copy $want_copy):" \
    "$(grep -E "${pattern:-.}" "$tmp/mirror.log" | tail -n 1)"
}
