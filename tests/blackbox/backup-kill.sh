#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a backup may be killed at any instant, and so may its worker and the disk's server:
# every backup that has a manifest keeps its digests, the guest goes on, and the next backup is
# equal to the disk.  BACKUP_KILLS is how many kills there are (500 in `make check-backup`).  After
# each fifth one all backups are read, and the oldest are pruned, so that a long run does not slow
# down.
[ "${BACKUP_KILLS:-0}" -lt 100 ] || TEST_TIMEOUT=14400
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd
proves_nothing_under thread
proves_nothing_under address

kills=${BACKUP_KILLS:-5}
seed=${SEED:-$RANDOM}
RANDOM=$seed
made=0
repo=$tmp/repo
random_disk "$tmp/a" 4M
serve () {
  rm -f "$tmp/a.sock" "$tmp/a.control"
  start_server a "$tmp/a" --state "$tmp/a.state" -- mirror-state-volatile=yes
}
serve
put () { # a guest writes here and there
  "$python" - "${uri[a]}" "$1" <<'END'
import nbd, os, random, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
rng = random.Random(int(sys.argv[2]))
for i in range(20):
    h.pwrite(os.urandom(4096), rng.randrange(0, 1024) * 4096)
h.shutdown()
END
}
check () { # every backup is what it was
  nbdmirror backup-verify "$repo" >"$tmp/verify" 2>&1 || fail "seed $seed: $(cat "$tmp/verify")"
}
# back_up: sets `took`, the milliseconds that it has taken.
back_up () {
  local begun=${EPOCHREALTIME/./}
  nbdmirror backup "${control[a]}" "$repo" >"$tmp/out" 2>&1 || return
  took=$(((${EPOCHREALTIME/./} - begun) / 1000))
}
back_up || fail "the first backup: $(cat "$tmp/out")"
for ((i = 1; i <= kills; i++)); do
  put "$i"
  victim=$((RANDOM % 4))
  options=()
  [ $((RANDOM % 4)) != 0 ] || options=(--full)
  spawn backup "$NBDMIRROR" backup "${control[a]}" "$repo" "${options[@]}"
  delay=$((RANDOM * (took + took / 5) / 32768)) # at any instant of it
  sleep "$((delay / 1000)).$(printf %03d $((delay % 1000)))"
  case $victim in
    0 | 1) kill -KILL "${pid[backup]}" 2>/dev/null || : ;;
    2) worker=$(child_of backup 'nbdmirror mirror' || :)
      [ -z "$worker" ] || kill -KILL "$worker" 2>/dev/null || : ;;
    3) kill -KILL "${pid[a]}"; wait "${pid[a]}" 2>/dev/null || : ;;
  esac
  wait_exit backup 60
  # It ended by itself, or by our signal; a crash is neither.
  [ "$status" -lt 128 ] || [ "$status:$victim" = 137:0 ] || [ "$status:$victim" = 137:1 ] ||
    fail "seed $seed, kill $i of $victim: exit status $status: $(cat "$tmp/backup.log")"
  [ $victim != 3 ] || serve
  if ((i % 5 == 0)); then
    put "$((i + 1000))"
    for try in 1 2 3; do # a worker that is about to end refuses the first one
      back_up && break
      [ $try != 3 ] || fail "seed $seed, kill $i: $(cat "$tmp/out")"
      sleep 1
    done
    newest=$("$python" "$srcdir/tests/blackbox/newest-backup.py" "$repo" a file)
    qemu-img compare -q -f qcow2 -F raw "$newest" "$tmp/a" || fail "seed $seed, kill $i: it differs"
    [ -z "$(find "$repo" -name '*.begun')" ] || fail "seed $seed, kill $i: a mark was left"
    made=$((made + $(find "$repo/backups" -name '*.json' | wc -l)))
    check
    nbdmirror backup-prune "$repo" --keep-last 2 >"$tmp/out" 2>&1 ||
      fail "seed $seed, kill $i: $(cat "$tmp/out")"
    made=$((made - $(find "$repo/backups" -name '*.json' | wc -l)))
  fi
done
check
made=$((made + $(find "$repo/backups" -name '*.json' | wc -l)))
note "$kills kills, seed $seed, $made backups, each of which kept its digest"
