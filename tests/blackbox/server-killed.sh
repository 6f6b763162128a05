#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that nothing hangs and nothing is left behind when the guest's server goes in the middle of
# a mirror: it is killed -9, or ended with SIGTERM, at random instants.  The worker ends with exit
# status 1 and says why, within seconds; started again, the server replaces the sockets that a kill
# -9 left behind, and a new job copies everything to the end.
. "$(dirname "$0")/lib.sh"

rounds=4 size=$(bytes 32M)
[ -z "${NBDMIRROR_LONG:-}" ] || rounds=20
RANDOM=${SEED:-$$}
note "SEED=${SEED:-$$}"

head -c "$size" /dev/urandom >"$tmp/disk"
start_dest dst file "$size"

# A guest that may lose its server: its errors are no surprise, but it must not hang either.
start_writer () { start_guest guest "${uri[src]}" --rate 30 --connections 2 --seconds 600; }

# Nothing but the sockets and what the test made itself may lie beside the control socket.
no_leftovers () {
  local file
  for file in "$tmp"/src.*; do
    case ${file##*/} in
      src.log) ;;
      src.sock|src.control) # a process of its own removes them after the server has ended
        [ "$2" = allow-sockets ] || wait_for 10 test ! -e "$file" ;;
      *) fail "$1: ${file##*/} was left behind" ;;
    esac
  done
}

# gone SIGNAL MOMENT...: the server goes at this moment; the worker and the guest notice.
gone () {
  local signal=$1 begin=$SECONDS
  if [ "$signal" = TERM ]; then
    # nbdkit waits for its clients: the worker leaves by itself, a guest has to be told.
    kill -TERM "${pid[src]}"
    wait_exit mirror 10
    took=$((SECONDS - begin))
    worker_status=$status
    stop guest
    ends_well src 10 SIGTERM
  else
    kill -KILL "${pid[src]}"
    wait "${pid[src]}" 2>/dev/null || :
    unset "pid[src]"
    wait_exit mirror 10
    took=$((SECONDS - begin))
    worker_status=$status
    stop guest
  fi
  [ "$worker_status" = 1 ] || fail "$signal: the worker ended with $worker_status instead of 1"
  tail -n 3 "$tmp/mirror.log" | grep -qE 'src\.(sock|control)' ||
    fail "$signal: the worker does not name the server"
  tail -n 3 "$tmp/mirror.log" | grep -qiE 'shutting down|closed|lost|reset|pipe|gone' ||
    fail "$signal: the worker does not say why"
  note "$signal: $(tail -n 1 "$tmp/mirror.log") (after $took s)"
}

# in_doubt: killed between prepared and the decision.  The coordinator may have committed, so the
# disk is fenced from the start until somebody who knows says otherwise; the draft is there for
# that.
in_doubt () {
  [ -e "$tmp/src.control.fence.draft" ] || fail "killed while prepared: no draft of the fence"
  start_server src "$tmp/disk"
  [ "$(status_of "${control[src]}" gate)" = fenced ] ||
    fail "killed while prepared: not fenced after the restart"
  has_to_exit 7 nbdmirror mirror "${control[src]}" "${uri[dst]}"
  has_to_exit 7 nbdmirror rollback "${control[src]}" --token wrong --destination-stopped
  has_to_exit 0 nbdmirror rollback "${control[src]}" --token test --destination-stopped
  [ "$(status_of "${control[src]}" gate)" = open ] || fail "the gate is not open after the rollback"
  stop src
}

# start_again: on the sockets that may still be there.  lib.sh waits for sockets, so ask instead.
start_again () {
  server_paths src
  spawn src "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" serve "$tmp/disk" \
    --socket "${socket[src]}" --control "${control[src]}"
  wait_for 20 status_of "${control[src]}" state
  wait_for 20 "$python" -c 'import nbd, sys; nbd.NBD().connect_uri(sys.argv[1])' "${uri[src]}"
  [ "$(status_of "${control[src]}" gate)" = open ] || fail "the gate is not open after a restart"
  [ "$(status_of "${control[src]}" state)" = idle ] || fail "the state is not idle after a restart"
}

for ((i = 1; i <= rounds; i++)); do
  for signal in KILL TERM; do
    start_again
    start_writer
    : >"$tmp/mirror.log"
    spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --max-downtime 2s --bandwidth 24M
    wait_for 20 test -s "$tmp/mirror.log"
    sleep "0.$(printf %03d $((RANDOM % 1000)))"
    # every other time in the state ready, and there with a hold under way
    if [ $((i % 2)) = 0 ]; then
      wait_state "${control[src]}" ready 30
    fi
    if [ $((i % 4)) = 0 ]; then
      rm -f "$tmp/prepare.log"
      spawn prepare "$python" "$srcdir/tests/blackbox/prepare.py" "${control[src]}" 20000
      wait_for 30 grep -q prepared "$tmp/prepare.log"
    fi
    gone $signal
    if [ -n "${pid[prepare]:-}" ]; then
      wait_exit prepare 10
      [ $signal = TERM ] || in_doubt
    fi
    no_leftovers "$signal" "$([ $signal = KILL ] && echo allow-sockets || echo none)"
  done
done

# A path that is no stale socket is nobody's to delete.
rm -f "${socket[src]}" "${control[src]}"
echo precious >"$tmp/src.control"
has_to_exit 1 timeout 20 "$NBDMIRROR" serve "$tmp/disk" --socket "$tmp/src.sock" \
  --control "$tmp/src.control"
[ "$(cat "$tmp/src.control")" = precious ] || fail "serve replaced a file that was no socket"
rm -f "$tmp/src.control" "$tmp/src.sock"

# And so is one where somebody listens.
start_again
has_to_exit 1 timeout 20 "$NBDMIRROR" serve "$tmp/disk" --socket "$tmp/other.sock" \
  --control "${control[src]}"
[ "$(status_of "${control[src]}" state)" = idle ] ||
  fail "the control socket was taken away from a running server"

# After all that a mirror still comes to its end.
start_writer
nbdmirror mirror "${control[src]}" "${uri[dst]}" --max-downtime 2s --on-ready complete \
  >"$tmp/mirror.log" 2>&1 </dev/null ||
  fail "the last mirror ended with $?"
ends_well guest 10
equal "$tmp/disk" "${uri[dst]}"
