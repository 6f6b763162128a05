# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034
#
# Common to all black-box tests: source it first.
#
#   #!/usr/bin/env bash
#   . "$(dirname "$0")/lib.sh"
#   need fio
#   random_disk "$tmp/disk" 64M
#   start_server src "$tmp/disk"                # -> ${uri[src]} and ${control[src]}
#   start_dest dst file 64M                     # -> ${uri[dst]}
#   nbdmirror mirror "${control[src]}" "${uri[dst]}" --on-ready complete
#   equal "$tmp/disk" "${uri[dst]}"
#
# A test runs from the build directory, or from anywhere if $builddir names that directory.  `make
# check` runs it, or somebody by hand: ../tests/blackbox/NAME.sh.  It passes with exit status 0;
# `fail` ends it with 1, and `skip` with 77.  `set -e` is on.  Everything lives in the private
# directory $tmp.  However the test ends, cleanup() then ends the processes that spawn() has
# started, makes the test fail if a sanitizer or valgrind has reported something, shows the logs if
# it failed, and removes $tmp.
#
# In the environment: KEEP=1 keeps $tmp.  VALGRIND=1 runs nbdmirror and the source server under
# valgrind.  SHORT=1 skips the tests that call `long_test`.  NBDMIRROR_LONG=1 (make check-long)
# makes some tests do more.

set -eu
set -o pipefail
export LC_ALL=C
test_name=$(basename "$0" .sh)
srcdir=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)   # the top of the source

# ---- telling what happened -------------------------------------------------------------

# Messages go to the test's own stderr, even from a trap that interrupts a command whose stderr is
# redirected.
exec {stderr}>&2
note () { printf '%s: %s\n' "$test_name" "$*" >&"$stderr"; }
fail () { note "FAIL: $*"; exit 1; }
skip () { note "SKIP: $*"; exit 77; }

# need PROGRAM...: skip the test if one of them is missing.
need () {
  local prog
  for prog; do
    command -v "$prog" >/dev/null || skip "$prog is not installed"
  done
}
need_fio_nbd () {
  need fio
  fio --enghelp 2>/dev/null | grep -qw nbd || skip "this fio has no NBD engine"
}
# proves_nothing_under SANITIZER: for a test whose programs have one thread (thread), or that is
# about times (both): other tests run the same code under that sanitizer.
proves_nothing_under () {
  case $sanitizers in
    *"$1"*) skip "proves nothing more with -fsanitize=$sanitizers" ;;
  esac
}
# measures_times: for a test that compares times with limits.  Where it fails beside other tests,
# ./quickstart check runs it once more, alone, and says so.
measures_times () { :; }
# within N LIMIT MESSAGE: a time is at most a limit, both whole numbers.  It is not asked in a build
# with a sanitizer: that is several times slower, and how much so depends on the machine.
within () {
  [ -n "$sanitizers" ] || [ "$1" -le "$2" ] || fail "$3"
}
long_test () {
  [ "${SHORT:-0}" = 0 ] || skip "takes long, and this is a short run"
}

# ---- where things are ------------------------------------------------------------------

if [ -z "${builddir:-}" ]; then
  for builddir in . "$srcdir/build" "$srcdir"; do
    [ ! -f "$builddir/config.status" ] || break
  done
fi
builddir=$(cd "$builddir" && pwd)
export builddir
[ -f "$builddir/config.status" ] || skip "no build found: run from the build directory"

# make_var NAME: what configure found (CC, SANITIZERS, ...).
make_var () { sed -n "s/^$1 *= *//p" "$builddir/Makefile" | head -n 1; }

python=/usr/bin/python3         # Debian's: another one in PATH may lack the nbd module
"$python" -c 'import nbd' 2>/dev/null || skip "$python has no nbd module: install python3-libnbd"

export NBDMIRROR_FILTER=${NBDMIRROR_FILTER:-$builddir/nbd-plugin/.libs/nbdkit-mirror-filter.so}
filters=$builddir/nbd-plugin/.libs
export NBDMIRROR_DIGEST_FILTER=${NBDMIRROR_DIGEST_FILTER:-$filters/nbdkit-digest-filter.so}
export NBDMIRROR_IMAGE_PLUGIN=${NBDMIRROR_IMAGE_PLUGIN:-$filters/nbdkit-image-plugin.so}
if [ -z "${NBDMIRROR:-}" ]; then
  NBDMIRROR=$builddir/nbdmirror
  [ -x "$NBDMIRROR" ] || NBDMIRROR=$builddir/cmd/nbdmirror
fi
[ -x "$NBDMIRROR" ] || fail "$NBDMIRROR is not built"
[ -f "$NBDMIRROR_FILTER" ] || fail "$NBDMIRROR_FILTER is not built"

# The path of a Unix socket has at most 107 bytes, so $tmp is not below TMPDIR or the build
# directory.
tmp=$(mktemp -d "/tmp/nbdmirror-$test_name.XXXXXX")
cd "$tmp"                       # where programs leave what they leave: core dumps, fio's state

# ---- sanitizers and valgrind -----------------------------------------------------------

# nbdkit was built without a sanitizer, so the runtime that our filter needs is loaded into it
# first, through $server_env.  Only the commands that end up as nbdkit with our filter get it.
# nbdkit and its plugins keep memory to the end, so leaks are not looked for there.  The worker is a
# program of our own, and is checked for leaks.
sanitizers=${SANITIZERS:-$(make_var SANITIZERS)}
[ "$sanitizers" != no ] || sanitizers=
server_env=()
nbdmirror_prefix=()
# Beside AddressSanitizer, UBSan reports to stderr, whatever its log_path says.  So cleanup() looks
# there too.
export UBSAN_OPTIONS="print_stacktrace=1:exitcode=86"
export ASAN_OPTIONS="detect_leaks=1:log_path=$tmp/sanitizer:exitcode=86"
export TSAN_OPTIONS="log_path=$tmp/sanitizer:second_deadlock_stack=1:exitcode=86"
echo thread:nbdkit >"$tmp/tsan.supp" # nbdkit does not join all of its threads
TSAN_OPTIONS+=":suppressions=$tmp/tsan.supp"
TSAN_OPTIONS+=":atexit_sleep_ms=0" # by default it sleeps for a second, which limits.sh would see
case $sanitizers in
  *address*) runtime=libasan.so ;;
  thread) runtime=libtsan.so ;;
  *) runtime= ;;
esac
# make_helpers DIR: programs that all tests of a sanitizer build need.
make_helpers () {
  # With either runtime nbdkit hangs at its exit once it has logged an errno, even without our
  # filter: GnuTLS's p11-kit frees a locale then, and waits for a lock of glibc's that is off by
  # one.  If freelocale() does nothing, nbdkit ends.
  echo 'void freelocale (void *l); void freelocale (void *l) { (void) l; }' |
    "${cc:-gcc}" -x c -shared -fPIC -o "$1/freelocale.so" -
  # A server may start QEMU's programs, and these use coroutines that the runtime does not
  # understand. So a program stands before each of them that takes the runtime away.  It is linked
  # statically, so that the runtime is not loaded into it either.
  mkdir "$1/bin"
  for prog in qemu-img qemu-nbd; do
    real=$(command -v $prog) || continue
    "${cc:-gcc}" -x c -static -o "$1/bin/$prog" - <<END
#include <stdlib.h>
#include <unistd.h>
int main (int argc, char **argv) {
  (void) argc; unsetenv ("LD_PRELOAD"); execv ("$real", argv); return 127;
}
END
  done
}
if [ -n "$runtime" ]; then
  cc=$(make_var CC); cc=${cc%% *}
  runtime=$("${cc:-gcc}" "-print-file-name=$runtime")
  [ -f "$runtime" ] || fail "${cc:-gcc} has no ${runtime##*/}"
  # They are made once for a build; who comes first wins.
  helpers=$(cd "$builddir" && pwd)/tests/sanitizer-helpers
  if [ ! -d "$helpers" ]; then
    mkdir "$tmp/helpers"
    make_helpers "$tmp/helpers"
    mkdir -p "$builddir/tests"
    cp -r "$tmp/helpers" "$helpers.$$"
    mv -T "$helpers.$$" "$helpers" 2>/dev/null || rm -rf "$helpers.$$"
  fi
  PATH=$helpers/bin:$PATH
  server_env=(env "LD_PRELOAD=$runtime $helpers/freelocale.so" \
    "ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0")
fi
# With some kernels ThreadSanitizer needs an address space whose layout is not random.
if [ "$sanitizers" = thread ] && setarch -R true 2>/dev/null; then
  nbdmirror_prefix=(setarch -R)
fi

valgrind=()
if [ "${VALGRIND:-0}" != 0 ]; then
  need valgrind
  [ -z "$sanitizers" ] || skip "valgrind cannot run what has a sanitizer"
  valgrind=(valgrind --quiet --error-exitcode=86 "--log-file=$tmp/valgrind.%p")
  server_env=("${valgrind[@]}" --trace-children=yes)
  valgrind+=(--leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite)
fi

nbdmirror () { "${valgrind[@]}" "${nbdmirror_prefix[@]}" "$NBDMIRROR" "$@"; }

# ---- processes -------------------------------------------------------------------------

declare -A pid=() uri=() control=() socket=() guest_uri=()

# spawn NAME COMMAND...: run it in the background, with its output in $tmp/NAME.log and its process
# id in ${pid[NAME]}.  COMMAND may be the function nbdmirror.
spawn () {
  local name=$1; shift
  if [ "$1" = nbdmirror ]; then
    shift
    set -- "${valgrind[@]}" "${nbdmirror_prefix[@]}" "$NBDMIRROR" "$@"
  fi
  "$@" >>"$tmp/$name.log" 2>&1 </dev/null {stderr}>&- &
  pid[$name]=$!
}

running () { [ -n "${pid[$1]:-}" ] && kill -0 "${pid[$1]}" 2>/dev/null; }

# wait_exit NAME SECONDS: wait until it has ended.  $status is then its exit status.  If it takes
# longer than SECONDS the test fails.
wait_exit () {
  local name=$1 deadline=$((SECONDS + $2))
  while running "$name"; do
    [ $SECONDS -le $deadline ] || fail "$name (pid ${pid[$name]}) did not end within $2 s"
    sleep 0.05
  done
  status=0
  wait "${pid[$name]}" || status=$?
  unset "pid[$name]"
}

# ends_well NAME [SECONDS [CASE]]: the same (20 s), and the test fails unless the exit status is 0.
ends_well () {
  wait_exit "$1" "${2:-20}"
  [ "$status" = 0 ] || fail "${3:+$3: }$1 ended with $status: $(cat "$tmp/$1.json" 2>/dev/null)"
}

# stop NAME [SIGNAL]: end it (SIGTERM by default) and wait.  After 10 s it counts as hung.
# ThreadSanitizer puts the handler of a signal off, for good if nbdkit is just about to poll() (1 of
# some hundred): there nbdkit gets another SIGTERM every 2 s.
stop () {
  local name=$1 n=0
  if running "$name"; then
    kill "-${2:-TERM}" "${pid[$name]}" 2>/dev/null || :
  fi
  while [ "$sanitizers" = thread ] && [ "${2:-TERM}" = TERM ] && [ $n -lt 160 ] && running "$name"
  do
    sleep 0.05
    n=$((n + 1))
    [ $((n % 40)) != 0 ] || [ "$(cat "/proc/${pid[$name]}/comm" 2>/dev/null)" != nbdkit ] ||
      kill -TERM "${pid[$name]}" 2>/dev/null || :
  done
  [ -z "${pid[$name]:-}" ] || wait_exit "$name" 10
}

# sigstop PID: stop a process with SIGSTOP.  On a busy machine its threads go on for some time after
# the signal was sent, so wait until each is stopped.
sigstop () { kill -STOP "$1"; wait_for 20 is_stopped "$1"; }
is_stopped () {
  [ -z "$(grep -Ls '^State:[[:space:]]*[TZX]' /proc/"$1"/task/*/status)" ]
}

# has_to_exit STATUS COMMAND...: run it, with its output in $tmp/out and $tmp/err.  The test fails
# unless it ends with STATUS.
has_to_exit () {
  local want=$1 got=0; shift
  "$@" >"$tmp/out" 2>"$tmp/err" </dev/null || got=$?
  [ "$got" = "$want" ] || {
    cat "$tmp/out" "$tmp/err" >&2
    fail "exit status $got instead of $want from: $*"
  }
}

cleanup_functions=()
at_exit () { cleanup_functions+=("$1"); }

cleanup () {
  local result=$? name file deadline
  trap - EXIT
  trap '' PIPE
  set +e
  exec 2>&"$stderr"
  for name in "${cleanup_functions[@]}"; do "$name"; done
  for name in "${!pid[@]}"; do
    kill -CONT "${pid[$name]}" 2>/dev/null
    kill -TERM "${pid[$name]}" 2>/dev/null
  done
  deadline=$((SECONDS + 5))
  for name in "${!pid[@]}"; do
    while running "$name" && [ $SECONDS -lt $deadline ]; do sleep 0.05; done
    kill -KILL "${pid[$name]}" 2>/dev/null
    wait "${pid[$name]}" 2>/dev/null
  done
  for file in "$tmp"/sanitizer.* "$tmp"/valgrind.*; do
    grep -qs '^==' "$file" || continue          # "--PID--": valgrind's remarks on itself
    note "FAIL: report in ${file##*/}:"
    head -c 20000 "$file" >&2
    result=1
  done
  if [ -n "$runtime" ] &&
    grep -h -A 20 'runtime error:' "$tmp"/*.log "$tmp/err" >&2 2>/dev/null; then
    note "FAIL: report above, of UndefinedBehaviorSanitizer"
    result=1
  fi
  if [ $result != 0 ] && [ $result != 77 ]; then
    for file in "$tmp"/*.log; do
      [ -s "$file" ] || continue
      note "last lines of ${file##*/}:"
      tail -n 40 "$file" >&2
    done
  fi
  if [ "${KEEP:-0}" != 0 ]; then note "kept: $tmp"; else rm -rf "$tmp"; fi
  exit "$result"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# One test that hangs must not hang all of them.  After TEST_TIMEOUT seconds it fails, and what it
# waits for in the foreground is ended, so that the trap can run.
mkfifo "$tmp/watchdog"
(
  trap - EXIT HUP INT TERM
  read -r -t "${TEST_TIMEOUT:-600}" <>"$tmp/watchdog" && exit
  note "FAIL: not done after ${TEST_TIMEOUT:-600} s"
  kill -TERM $$
  sleep 1
  children=$(ps -o pid= --ppid $$)
  # shellcheck disable=SC2086
  kill -TERM $children
  # shellcheck disable=SC2086
  kill -CONT $children
) </dev/null &
pid[watchdog]=$!

# ---- waiting ---------------------------------------------------------------------------

# wait_for SECONDS COMMAND...: run it again and again until it succeeds.
wait_for () {
  local deadline=$((SECONDS + $1)) seconds=$1; shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -le $deadline ] || fail "waited ${seconds} s in vain for: $*"
    sleep 0.05
  done
}

# listening PATH: does somebody listen there?  It is looked up in /proc, because a connection would
# count as a client.  Between bind and listen the socket is there and refuses connections.  Such a
# socket has no flags and is in state 1 (unconnected).  A socket that was renamed is in /proc by its
# old name, and one that was left over is not there at all: connecting by datagrams reaches neither
# server, and its error tells whether there is one.
listening () {
  [ -S "$1" ] || return 1
  local found=0
  awk -v path="$1" '$8 != path { next }
    $4 == 0 && $6 == 1 { bound = 1 }
    $4 != 0 { listens = 1 }
    END { exit bound ? 1 : listens ? 0 : 2 }' /proc/net/unix || found=$?
  [ $found = 2 ] || return $found
  "$python" -c 'import errno, socket, sys
sys.exit(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).connect_ex(sys.argv[1])
         != errno.EPROTOTYPE)' "$1"
}

# wait_for_socket PATH NAME: wait until the server NAME listens there.  If it ended instead, the
# test fails at once.
wait_for_socket () {
  local deadline=$((SECONDS + 20))
  until listening "$1"; do
    running "$2" || fail "$2 ended before it listened at $1"
    [ $SECONDS -le $deadline ] || fail "$2 does not listen at $1"
    sleep 0.05
  done
}

# free_port: the number of a TCP port that nobody listens at.
free_port () {
  "$python" -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])'
}

# ---- disks -----------------------------------------------------------------------------

# bytes 64M: the number of bytes.  It knows k, M, G, T and sums such as 4G+1.
bytes () {
  local n=${1//k/*1024}
  n=${n//M/*1048576}; n=${n//G/*1073741824}; n=${n//T/*1099511627776}
  echo $((n))
}

# random_disk FILE SIZE: every other mebibyte is data, and holes are between.  An odd tail is data
# as well.
random_disk () {
  "$python" - "$1" "$(bytes "$2")" <<'PY'
import os, random, sys
path, size = sys.argv[1], int(sys.argv[2])
rng = random.Random(size)
with open(path, "wb") as f:
    f.truncate(size)
    for start in range(0, min(size, 1 << 30), 2 << 20):
        f.seek(start)
        f.write(rng.randbytes(min(1 << 20, size - start)))
    tail = min(size, 5000)
    f.seek(size - tail)
    f.write(rng.randbytes(tail))
PY
}

# shadowed_disk SIZE: write data to $tmp/disk and the same to $tmp/shadow.  start_guest --shadow
# changes the shadow as the disk has to change.  shadow_equal [FROM [CASE]]: the disk has to be
# equal to the shadow, from the byte FROM on.
shadowed_disk () {
  head -c "$(bytes "$1")" /dev/urandom >"$tmp/disk"
  cp "$tmp/disk" "$tmp/shadow"
}
shadow_equal () {
  cmp -i "${1:-0}" "$tmp/shadow" "$tmp/disk" ||
    fail "${2:+$2: }the source is not what the guest wrote"
}

# fresh_paths NAME: server_paths, without what a server that was killed has left there.  Its sockets
# may seem to listen for a moment more.
fresh_paths () {
  server_paths "$1"
  rm -f "${socket[$1]}" "${control[$1]}"
}

# start_server NAME DISK [SERVE-OPTIONS...] [-- NBDKIT-ARGS...]: serve and track a disk with
# `nbdmirror serve`.
# -> ${uri[NAME]} ${socket[NAME]} ${control[NAME]}
start_server () {
  local name=$1 disk=$2; shift 2
  fresh_paths "$name"
  spawn "$name" "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" serve "$disk" \
    --socket "${socket[$name]}" --control "${control[$name]}" "$@"
  wait_for_socket "${socket[$name]}" "$name"
  wait_for_socket "${control[$name]}" "$name"
}

# start_nbdkit NAME ARGS...: nbdkit with the mirror filter on any plugin, for example
# start_nbdkit src memory 64M
start_nbdkit () {
  local name=$1; shift
  fresh_paths "$name"
  spawn "$name" "${nbdmirror_prefix[@]}" "${server_env[@]}" \
    nbdkit -f -v -U "${socket[$name]}" --filter="$NBDMIRROR_FILTER" "$@" \
    "mirror-control=${control[$name]}" "mirror-uri=${uri[$name]}"
  wait_for_socket "${socket[$name]}" "$name"
  wait_for_socket "${control[$name]}" "$name"
}

# start_stateful NAME DISK STATE: nbdkit with the mirror filter on the raw DISK, with the state file
# STATE, which may lie on a tmpfs.  To start it anew after a kill, call it again.
start_stateful () {
  local name=$1 disk=$2 state=$3
  fresh_paths "$name"
  spawn "$name" "${nbdmirror_prefix[@]}" "${server_env[@]}" nbdkit -f -U "${socket[$name]}" \
    --filter="$NBDMIRROR_FILTER" file "$disk" "mirror-control=${control[$name]}" \
    "mirror-uri=${uri[$name]}" "mirror-direct=$disk" "mirror-state=$state" \
    mirror-state-volatile=yes
  wait_for_socket "${socket[$name]}" "$name"
  wait_for_socket "${control[$name]}" "$name"
}

# start_dest NAME KIND WHAT [ARGS...]: a destination export without tracking.  KIND WHAT is
#   file SIZE    nbdkit file, on the new or left over file $tmp/NAME.img
#   memory SIZE  nbdkit memory
#   qcow2 SIZE   qemu-nbd, on the new or left over $tmp/NAME.qcow2
# To restart one after stop, call it again.
start_dest () {
  local name=$1 kind=$2 size env=(); shift 2
  size=$(bytes "$1"); shift
  case "$*" in *"$filters"*) env=("${server_env[@]}") ;; esac # with a filter of ours
  server_paths "$name"
  rm -f "${socket[$name]}"
  case $kind in
    file)
      [ -e "$tmp/$name.img" ] || truncate -s "$size" "$tmp/$name.img"
      spawn "$name" "${env[@]}" nbdkit -f -U "${socket[$name]}" "$@" file "$tmp/$name.img" ;;
    memory)
      spawn "$name" "${env[@]}" nbdkit -f -U "${socket[$name]}" "$@" memory "$size" ;;
    qcow2)
      need qemu-img qemu-nbd
      [ -e "$tmp/$name.qcow2" ] || qemu-img create -q -f qcow2 "$tmp/$name.qcow2" "$size"
      spawn "$name" qemu-nbd -t -e 8 -k "${socket[$name]}" -f qcow2 "$@" "$tmp/$name.qcow2" ;;
    *)
      fail "start_dest: no such kind: $kind" ;;
  esac
  wait_for_socket "${socket[$name]}" "$name"
}

# start_eval NAME SIZE BEFORE-WRITE FLUSH: a destination on the new file $tmp/NAME.img that runs a
# shell command before each write, and another for each flush.
start_eval () {
  local name=$1 size copy=$tmp/$1.img
  need dd
  size=$(bytes "$2")
  truncate -s "$size" "$copy"
  server_paths "$name"
  spawn "$name" nbdkit -f -U "${socket[$name]}" eval \
    get_size="echo $size" can_write='exit 0' can_flush='exit 0' \
    pread="dd if=$copy skip=\$4 count=\$3 iflag=skip_bytes,count_bytes status=none" \
    pwrite="$3; dd of=$copy seek=\$4 conv=notrunc oflag=seek_bytes status=none" \
    flush="$4"
  wait_for_socket "${socket[$name]}" "$name"
}

# start_receive NAME PATH [RECEIVE-OPTIONS...]: `nbdmirror receive`, on a Unix socket.
# -> ${uri[NAME]} for the mirror, ${guest_uri[NAME]}; its line of JSON is in $tmp/NAME.json
start_receive () {
  local name=$1; shift
  socket[$name]=$tmp/$name.sock
  uri[$name]="nbd+unix:///mirror?socket=$tmp/$name.sock"
  guest_uri[$name]="nbd+unix:///?socket=$tmp/$name.sock"
  : >"$tmp/$name.json"
  spawn "$name" sh -c 'exec "$@" >"$0"' "$tmp/$name.json" "${nbdmirror_prefix[@]}" \
    "${server_env[@]}" "$NBDMIRROR" \
    receive --socket "${socket[$name]}" "$@"
  until grep -q '"uri"' "$tmp/$name.json"; do
    running "$name" || fail "receive ended before it served the disk"
    sleep 0.05
  done
}

# child_of NAME PROGRAM: the process id of the child of NAME that runs PROGRAM.
child_of () { ps -o pid=,args= --ppid "${pid[$1]}" |
  awk -v name="(^|[ /])$2( |\$)" '$0 ~ name { print $1 }'; }

# qemu_nbd_of NAME: the process id of the qemu-nbd behind the `receive` NAME.
qemu_nbd_of () { ps -o pid=,comm= --ppid "$(child_of "$1" nbdkit)" |
  awk '$2 == "qemu-nbd" { print $1 }'; }

# start_fake NAME [OPTIONS...]: a destination that goes wrong, see fake-nbd-server.py.
start_fake () {
  local name=$1; shift
  server_paths "$name"
  rm -f "${socket[$name]}" "$tmp/$name.ready"
  spawn "$name" sh -c 'exec "$@" >"$0"' "$tmp/$name.ready" "$python" \
    "$srcdir/tests/blackbox/fake-nbd-server.py" \
    --unix "${socket[$name]}" "$@"
  wait_for 20 grep -q ready "$tmp/$name.ready"
}

server_paths () {
  socket[$1]=$tmp/$1.sock
  control[$1]=$tmp/$1.control
  uri[$1]="nbd+unix:///?socket=$tmp/$1.sock"
}

# ---- the guest -------------------------------------------------------------------------

# start_fio NAME URI [FIO-OPTIONS...]: a guest that keeps writing (random 4 KiB, a queue of 8, at
# most 2,000 writes a second) for up to 60 s, or as the options say.  End it with stop NAME INT.
start_fio () {
  local name=$1 to=$2; shift 2
  need_fio_nbd
  spawn "$name" fio --name="$name" --ioengine=nbd --uri="$to" --rw=randwrite --bs=4k --iodepth=8 \
    --rate_iops=2000 --time_based --runtime=60 --norandommap --randrepeat=0 "$@"
}

# start_guest NAME URI [OPTIONS...]: a guest that looks at every reply (see guest.py).  Its report
# is $tmp/NAME.json.
start_guest () {
  local name=$1 to=$2; shift 2
  rm -f "$tmp/$name.json" "$tmp/$name.json.begun"
  spawn "$name" "$python" "$srcdir/tests/blackbox/guest.py" "$to" --report "$tmp/$name.json" "$@"
  wait_for 20 test -e "$tmp/$name.json.begun"
}

# guest_changed NAME N: has it changed something N times by now?
guest_changed () {
  [ "$(od -An -v -t u8 -w64 -j 4096 "$tmp/$1.json.live" | awk '{ n += $1 } END { print n }')" -ge \
    "$2" ]
}

# ---- asking ----------------------------------------------------------------------------

# field NAME < JSON: one value of an object (of the first, if it is an array).
field () {
  "$python" -c '
import json, sys
o = json.load(sys.stdin)
o = o[0] if isinstance(o, list) else o
v = o[sys.argv[1]]
print("null" if v is None else str(v).lower() if isinstance(v, bool) else v)' "$1"
}

# status_of CONTROL FIELD: one value of the status.  It does without python, because tests ask
# often.
status_of () {
  local json
  json=$("$NBDMIRROR" status "$1" --json </dev/null) || return
  [[ $json =~ \"$2\":\ *(\"([^\"]*)\"|[^,\}[:space:]]+) ]] || return
  echo "${BASH_REMATCH[2]:-${BASH_REMATCH[1]}}"
}

# wait_state CONTROL STATE[|STATE...] SECONDS: wait for one of these states.  If the job ended in
# another one, the test fails at once.
wait_state () {
  local deadline=$((SECONDS + $3)) state=unknown
  while :; do
    state=$(status_of "$1" state 2>/dev/null) || state=unknown
    case "|$2|" in *"|$state|"*) return 0 ;; esac
    case $state in
      failed|cancelled|completed) fail "state is $state instead of $2" ;;
    esac
    [ $SECONDS -le $deadline ] || fail "state is still $state, not $2, after $3 s"
    sleep 0.05
  done
}

# complete_soon CONTROL [OPTIONS...]: run `nbdmirror complete`, and again while it says "not ready",
# because that state comes and goes with what the guest writes.
complete_soon () {
  local deadline=$((SECONDS + 30))
  until nbdmirror complete "$@" >"$tmp/complete.log" 2>&1 </dev/null; do
    grep -q 'not ready' "$tmp/complete.log" || fail "complete: $(tail -n 1 "$tmp/complete.log")"
    [ $SECONDS -le $deadline ] || fail "not ready long enough to complete for 30 s"
    sleep 0.1
  done
}

# roll_back CONTROL: take back the hand-over that $tmp/report tells of.
roll_back () {
  nbdmirror rollback "$1" --token "$(field rollback-token <"$tmp/report")" --destination-stopped
}

# ---- equal -----------------------------------------------------------------------------

# compare A B: compare two paths or NBD URIs with other code than ours.  B may be larger.
compare () {
  "$python" "$srcdir/tests/blackbox/compare.py" "$1" "$2"
}

# equal A B: they have to be equal, both by `nbdmirror verify` and by the independent comparison.
equal () {
  compare "$1" "$2" || fail "$1 and $2 differ"
  nbdmirror verify "$1" "$2" >"$tmp/verify.log" 2>&1 </dev/null ||
    fail "verify ended with $? though $1 and $2 are equal"
}
