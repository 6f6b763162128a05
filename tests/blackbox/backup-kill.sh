#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a backup may be killed at any instant, and so may its worker and the disk's server:
# every backup that has a manifest keeps its digests, the guest goes on, and the next backup is
# equal to the disk.  BACKUP_KILLS is how many kills there are (500 in `make check-backup`).
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd
proves_nothing_under thread
proves_nothing_under address

kills=${BACKUP_KILLS:-10}
seed=${SEED:-$RANDOM}
RANDOM=$seed
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
nbdmirror backup "${control[a]}" "$repo" >/dev/null 2>&1 || fail "the first backup"
for ((i = 1; i <= kills; i++)); do
  put "$i"
  victim=$((RANDOM % 4))
  options=()
  [ $((RANDOM % 4)) != 0 ] || options=(--full)
  spawn backup "$NBDMIRROR" backup "${control[a]}" "$repo" "${options[@]}"
  sleep "0.$(printf %03d $((RANDOM % 600)))"
  case $victim in
    0 | 1) kill -KILL "${pid[backup]}" 2>/dev/null || : ;;
    2) worker=$(child_of backup 'nbdmirror mirror' || :)
      [ -z "$worker" ] || kill -KILL "$worker" 2>/dev/null || : ;;
    3) kill -KILL "${pid[a]}"; wait "${pid[a]}" 2>/dev/null || : ;;
  esac
  wait_exit backup 60
  [ $victim != 3 ] || serve
  if ((i % 5 == 0)); then
    put "$((i + 1000))"
    for try in 1 2 3; do # a worker that is about to end refuses the first one
      nbdmirror backup "${control[a]}" "$repo" >"$tmp/out" 2>&1 && break
      [ $try != 3 ] || fail "seed $seed, kill $i: $(cat "$tmp/out")"
      sleep 1
    done
    newest=$("$python" "$srcdir/tests/blackbox/newest-backup.py" "$repo" a file)
    qemu-img compare -q -f qcow2 -F raw "$newest" "$tmp/a" || fail "seed $seed, kill $i: it differs"
    [ -z "$(find "$repo" -name '*.begun')" ] || fail "seed $seed, kill $i: a mark was left"
    check
  fi
done
check
note "$kills kills, seed $seed, $(find "$repo/backups" -name '*.json' | wc -l) backups"
