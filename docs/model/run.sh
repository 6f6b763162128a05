#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Check the protocol models: run.sh [short|mirror|synchronous|state [-DNAME=VALUE...]]
# (Debian packages: spin, gcc; minutes, up to 9 GiB)
#
# Without arguments all:
#   mirror       the data-safety rules, with a quarantine that is read back as the worker does it,
#                late requests ending before that read-back.  Macros that drop a rule stand at the
#                head of mirror.pml.  Each of these finds a counterexample: -DMARK=0 (mark before
#                only), -DONESET, -DRELREPLY -DFINALFLUSH, -DTWOCOPIES, -DR12=0 (no quarantine),
#                -DORDER=4 (no in-flight check), -DNFF=1 -DFFPOL=0 (flush again after a failed
#                one).  So does -DR12=2 -DLB=0 -DRBINLINE: no client is safe from a server that
#                may apply a request at any later time.
#                -DDIFF=1 and -DDIFF=2 (mirror --sync base, compare) leave out what need not be
#                sent.  With -DDIFF=1 -DNOVIS this is also done where the block was sent before,
#                which finds a counterexample: the guest turns a block back into what the base
#                holds.  -DNEIGHBOURS sends clean blocks along; with -DNOCLAIM they are not claimed,
#                which finds a counterexample.  -DORDER=5 looks at the arrays one after the other,
#                as final_look() does; with -DNOBACK it does not notice the blocks of a session that
#                ends meanwhile, which finds a counterexample.  These have many more states, so they
#                are checked with one fault at a time.
#   synchronous  "synchronised" is said only while nothing that the guest was told of is missing at
#                the destination.  Each of these finds a counterexample, in seconds with -DCOPIES=2:
#                -DNOWAIT, -DNOTAIL, -DNOGIVEN, -DNOEPOCH, -DAHEAD=2, -DMODELATE, and, with
#                -DMIDWAY -DW1=0, -DNOUNREAD.
#   state        what the state file says after a power failure; in a minute, with each rule dropped
#                in turn, which must find a counterexample.  The rules stand at the head of
#                state.pml.
#   short        all three within their smallest bounds, with thirteen rules dropped, in seconds:
#                tests/model.sh runs it.
set -e
dir=$(cd "$(dirname "$0")" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"

# check MODEL FLAG...
check () {
  model=$1; shift
  spin -a "$@" "$dir/$model.pml" >spin.out || { cat spin.out; exit 1; }
  gcc $level -DVECTORSZ=2048 -DMEMLIM=9000 -DCOLLAPSE -DSAFETY -o pan pan.c 2>/dev/null
  # shellcheck disable=SC2086
  ./pan -m2000000 -w$table $end >pan.out
  echo "$model: $(grep -E 'states, stored|^pan:1|errors:' pan.out)"
  $faulty && { grep -q 'assertion violated' pan.out; return; }
  grep -q 'errors: 0' pan.out
  ! grep -E 'not completed|reached -DMEMLIM' pan.out
}

end='' faulty=false table=26 level=-O2

# dropped MODEL FLAG... RULE: without the rule there is a counterexample.
dropped () {
  faulty=true
  check "$@" || { echo "$* finds nothing"; exit 1; }
  faulty=false
}

check_short () {
  end=-E table=22 level=-O0 # compiling takes longer than searching
  check state
  check state -DCHECKPOINT -DW0=1
  dropped state -DHOTFIRST
  dropped state -DNOFLUSH
  dropped state -DL1FIRST
  dropped state -DCHECKPOINT -DW0=1 -DTABLEFIRST
  end=''
  set -- -DGATEINC -DCNT -DRECOUNT -DLB=2 -DRBINLINE
  check mirror "$@" -DR12=2 -DW=1
  check mirror "$@" -DR12=2 -DNCRASH=0 -DNRECON=0
  dropped mirror "$@" -DR12=2 -DW=1 -DMARK=0
  dropped mirror "$@" -DR12=2 -DW=1 -DORDER=4
  dropped mirror "$@" -DR12=2 -DW=1 -DRELREPLY
  dropped mirror "$@" -DNCRASH=0 -DNDCRASH=0 -DR12=0
  check mirror "$@" -DR12=2 -DW=1 -DORDER=5
  dropped mirror "$@" -DR12=2 -DW=1 -DORDER=5 -DNOBACK
  set -- -DCOPIES=2 -DW1=0
  check synchronous "$@"
  dropped synchronous "$@" -DNOWAIT
  dropped synchronous "$@" -DNOTAIL
  dropped synchronous "$@" -DNOGIVEN
  check synchronous "$@" -DMIDWAY
  dropped synchronous "$@" -DMIDWAY -DNOUNREAD
}

# state.pml within small bounds, and each of its rules dropped.  Its processes go on for ever, so it
# does not matter where they wait.
check_state () {
  end=-E
  check state
  check state -DCRASHES=2
  check state -DNB=2 -DW0=1 -DW1=1
  check state -DCHECKPOINT -DW0=1
  for rule in HOTFIRST NOFLUSH EARLY L1FIRST NOCOUNT RETURN NOMARK NOLOCK; do
    dropped state -D$rule
  done
  for rule in NODRAIN LATEMARK NOCKFLUSH TABLEFIRST; do
    dropped state -DCHECKPOINT -DW0=1 -D$rule
  done
  end=
}

case ${1:-all} in
  all)
    check mirror -DW=2 -DGATEINC -DCNT -DRECOUNT -DR12=2 -DLB=2 -DRBINLINE
    for what in DIFF=1 DIFF=2 NEIGHBOURS ORDER=5; do
      for no in '-DNDCRASH=0 -DNRECON=0' '-DNCRASH=0 -DNRECON=0' '-DNCRASH=0 -DNDCRASH=0'; do
        # shellcheck disable=SC2086
        check mirror -DW=2 -DGATEINC -DCNT -DRECOUNT -DR12=2 -DLB=2 -DRBINLINE -D$what $no
      done
    done
    check synchronous
    check synchronous -DMIDWAY -DCOPIES=2 -DW1=0
    check_state ;;
  short)
    check_short ;;
  state)
    if [ $# -eq 1 ]; then
      check_state
    else
      end=-E
      check "$@"
    fi ;;
  synchronous)
    check "$@" ;;
  mirror)
    shift
    [ $# -gt 0 ] || set -- -DGATEINC -DCNT -DRECOUNT -DR12=2 -DLB=2 -DRBINLINE
    check mirror -DW=2 "$@" ;;
  *)
    check mirror -DW=2 "$@" ;;
esac
