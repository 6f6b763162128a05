#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What `nbdmirror receive` makes of the disk before and after it serves it: what is there is not
# touched unless the user says so, what cannot work is refused before anything is made, two servers
# never have one disk, and what was made here, and only that, is removed when the migration is given
# up.
. "$(dirname "$0")/lib.sh"

receive () { has_to_exit "$@" --socket "$tmp/s"; }
says () { grep -qe "$1" "$tmp/err" || fail "not said: $1: $(cat "$tmp/err")"; }
absent () { [ ! -e "$1" ] || fail "$1 is there"; }

# Refused, and nothing made.
receive 1 "$NBDMIRROR" receive "$tmp/nowhere/disk" --size 1M
says "the directory $tmp/nowhere: No such file"
receive 7 "$NBDMIRROR" receive "$tmp/disk" --size 4000T
says 'no room'
receive 7 "$NBDMIRROR" receive "$tmp/disk" --size 4000T --preallocate --overcommit
says 'no room'
receive 2 "$NBDMIRROR" receive "$tmp/disk"
says '--size is missing'
receive 1 "$NBDMIRROR" receive "$tmp/disk" --resume
receive 1 "$NBDMIRROR" receive "$tmp/disk" --size 1M --format qcow2 --backing "$tmp/nowhere"
receive 1 "$NBDMIRROR" receive "$tmp" --size 1M
receive 2 "$NBDMIRROR" receive "$tmp/disk" --size 1M --port 10809
receive 1 "$NBDMIRROR" receive "$tmp/disk" --size 1M --tls-certificates "$tmp/nowhere"
absent "$tmp/disk"
# The server does not start: what was made for it goes again.
has_to_exit 1 "$NBDMIRROR" receive "$tmp/disk" --size 1M --socket "$tmp/s" -- nonsense=1
absent "$tmp/disk"
if [ "$(id -u)" != 0 ]; then
  mkdir -m 555 "$tmp/locked"
  receive 1 "$NBDMIRROR" receive "$tmp/locked/disk" --size 1M
fi
echo mine >"$tmp/file"
receive 7 "$NBDMIRROR" receive "$tmp/file" --size 1M
says 'exists and is not empty'
[ "$(cat "$tmp/file")" = mine ] || fail "a file that is in the way was changed"

# Made as asked.  The line that is printed says what.
start_receive a "$tmp/a" --size 3M
private=$(ps -o args= -p "$(child_of a nbdkit)" | sed -n 's/.* -P \([^ ]*\)\/nbdkit.pid .*/\1/p')
[ -d "$private" ] || fail "no private directory: '$private'"
[ "$(field path <"$tmp/a.json")" = "$tmp/a" ] || fail "another path: $(cat "$tmp/a.json")"
[ "$(field uri <"$tmp/a.json")" = "${uri[a]}" ] || fail "another uri: $(cat "$tmp/a.json")"
[ "$(field guest-uri <"$tmp/a.json")" = "${guest_uri[a]}" ] ||
  fail "another guest-uri: $(cat "$tmp/a.json")"
[ "$(field pid <"$tmp/a.json")" = "${pid[a]}" ] || fail "another pid: $(cat "$tmp/a.json")"
[ "$(field size <"$tmp/a.json")" = 3145728 ] || fail "another size: $(cat "$tmp/a.json")"
[ "$(wc -l <"$tmp/a.json")" = 1 ] || fail "not one line: $(cat "$tmp/a.json")"
[ "$(stat -c '%s %b' "$tmp/a")" = '3145728 0' ] || fail "not thin: $(stat -c '%s %b' "$tmp/a")"

# One server a disk, whatever the name.
ln -s a "$tmp/link"
receive 7 "$NBDMIRROR" receive "$tmp/link" --resume
says 'in use'

# Nor does any other program of ours write there, and a server that tracks it says that it misses
# what is written: nbdkit has the disk, also once it is started again and `receive` was killed.
random_disk "$tmp/random" 3M
refused () {
  has_to_exit 7 "$NBDMIRROR" copy "$tmp/random" "$1"
  says 'in use by a server of nbdmirror'
  cmp -n 3145728 "$1" /dev/zero || fail "$1 was written to while it was served"
}
refused "$tmp/a"
start_server beside "$tmp/a"
grep -q 'another server of nbdmirror has this disk' "$tmp/beside.log" || fail "no warning"
stop beside
first=$(child_of a nbdkit)
kill -KILL "$first"
again () { local now; now=$(child_of a nbdkit); [ -n "$now" ] && [ "$now" != "$first" ]; }
wait_for 10 again
wait_for_socket "${socket[a]}" a
refused "$tmp/a"

# Started with no standard input: the disk must not take its number, which a server's own would.
spawn bare sh -c 'exec "$@" >"$0" <&-' "$tmp/bare.json" "${nbdmirror_prefix[@]}" \
  "${server_env[@]}" "$NBDMIRROR" receive \
  "$tmp/bare" --size 1M --socket "$tmp/bare.sock"
wait_for 20 grep -q '"uri"' "$tmp/bare.json"
truncate -s 1M "$tmp/empty"
has_to_exit 0 "$NBDMIRROR" copy "$tmp/empty" "nbd+unix:///mirror?socket=$tmp/bare.sock"
stop bare INT

# Given up: by Ctrl-C, and by the mirror.
stop a INT
[ "$status" = 6 ] || fail "exit status $status"
absent "$tmp/a"
absent "$tmp/a.sock"
absent "$private"
start_receive a "$tmp/a" --size 3M
has_to_exit 0 "$NBDMIRROR" receive --give-up "${uri[a]}"
absent "$tmp/a"
wait_exit a 10
[ "$status" = 6 ] || fail "exit status $status"

# Started with signals that are ignored, as nohup and a careless parent do: a hangup ends nothing,
# and children are waited for.  (The lower signal is read first.)
prefix=("${nbdmirror_prefix[@]}")
nbdmirror_prefix+=("$python" -c 'import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execvp(sys.argv[1], sys.argv[1:])')
start_receive a "$tmp/a" --size 3M
nbdmirror_prefix=("${prefix[@]}")
first=$(child_of a nbdkit)
kill -KILL "$first"
wait_for 10 again
wait_for_socket "${socket[a]}" a
sigstop "${pid[a]}"
kill -HUP "${pid[a]}"
kill -INT "${pid[a]}"
kill -CONT "${pid[a]}"
wait_exit a 10
[ "$status" = 6 ] || fail "exit status $status"
absent "$tmp/a"

# Ended while qemu-img makes the disk, and while nbdkit does not serve it yet, which a program in
# their place is for: what was made is gone at once, whichever signal it is.
mkdir "$tmp/bin"
cat >"$tmp/bin/qemu-img" <<'SH'
#!/bin/sh
trap 'exit 1' INT TERM
echo $$ >"$tmp/begun"
until [ -e "$tmp/go" ]; do sleep 0.02; done
"$real" "$@"
SH
printf '#!/bin/sh\necho $$ >"$tmp/begun"\nexec sleep 60\n' >"$tmp/bin/nbdkit"
chmod +x "$tmp/bin/nbdkit" "$tmp/bin/qemu-img"
# interrupted SIGNAL WHO OPTION...: it comes once the program has begun, to `receive` alone, or to
# both, as Ctrl-C does.
interrupted () {
  local sig=$1 who=$2
  shift 2
  case $sanitizers in *thread*) return 0 ;; esac # no shell runs as nbdkit with its runtime
  rm -f "$tmp/begun" "$tmp/go"
  spawn early env PATH="$tmp/bin:$PATH" tmp="$tmp" real="$(command -v qemu-img)" \
    "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" receive "$tmp/early" --size 1M \
    --socket "$tmp/early.sock" "$@"
  wait_for 10 test -s "$tmp/begun"
  kill "-$sig" "${pid[early]}"
  if [ "$who" = both ]; then kill "-$sig" "$(cat "$tmp/begun")"; else touch "$tmp/go"; fi
  wait_exit early 10
  [ "$status" = 6 ] || fail "$sig $who $*: exit status $status"
  ! grep qemu-img "$tmp/early.log" || fail "$sig $who $*: an error of qemu-img is reported"
  absent "$tmp/early"
}
interrupted TERM alone
interrupted INT alone
if command -v qemu-nbd qemu-img >/dev/null; then
  for who in alone both; do
    interrupted TERM $who --format qcow2
    interrupted INT $who --format qcow2
  done
fi

# Ended while it waits for the end of another session, which does not end.
truncate -s 1M "$tmp/held"
spawn holder "$python" -c 'import fcntl, signal, sys, time
signal.signal(signal.SIGTERM, lambda *args: print("told", flush=True))
f = open(sys.argv[1], "r+")
fcntl.lockf(f, fcntl.LOCK_EX, 2, 1 << 62)
print("locked", flush=True)
while True:
    time.sleep(60)' "$tmp/held"
wait_for 10 grep -q locked "$tmp/holder.log"
spawn waits "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" receive --stdio "$tmp/held" \
  --resume
wait_for 10 grep -q told "$tmp/holder.log"
kill "${pid[waits]}"
wait_exit waits 8
[ "$status" = 7 ] || fail "exit status $status"
stop holder KILL

# NFS makes flock() a lock of all bytes, which belongs to the open file description.  It must not
# keep a session of --stdio from telling the next one its process.
cat >"$tmp/nfs.c" <<'END'
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>

int
flock (int fd, int how)
{
  struct flock all = { .l_type = how & LOCK_SH ? F_RDLCK : how & LOCK_EX ? F_WRLCK : F_UNLCK };

  fclose (fopen (getenv ("CALLED"), "w"));
  return fcntl (fd, F_OFD_SETLK, &all);
}
END
if [ ${#server_env[@]} = 0 ]; then # where no sanitizer is loaded before everything else
  cc=$(make_var CC)
  # shellcheck disable=SC2086
  $cc -shared -fPIC -O1 -w -o "$tmp/nfs.so" "$tmp/nfs.c" || fail "the shim does not build"
  truncate -s 1M "$tmp/nfs"
  env LD_PRELOAD="$tmp/nfs.so" CALLED="$tmp/called" \
    "$NBDMIRROR" receive --stdio "$tmp/nfs" --resume </dev/null >"$tmp/out" 2>"$tmp/err" || :
  [ -e "$tmp/called" ] || fail "flock() was not called"
  ! grep 'cannot be locked' "$tmp/err" || fail "a session on NFS is not locked"
fi

# Not given up, or not made here, or handed over, or --keep: it stays.
start_receive a "$tmp/a" --size 3M --preallocate
[ "$(stat -c %b "$tmp/a")" -ge 6144 ] || fail "not preallocated: $(stat -c '%s %b' "$tmp/a")"
"$python" - "${socket[a]}" <<'PY'
import nbd, sys
h = nbd.NBD()
h.set_export_name("mirror")
h.connect_unix(sys.argv[1])
h.pwrite(b"x" * 65536, 0)
h.zero(1 << 20, 0)
PY
[ "$(stat -c %b "$tmp/a")" -ge 6144 ] ||
  fail "the mirror's zeroes made holes: $(stat -c '%s %b' "$tmp/a")"
stop a
[ "$status" = 0 ] || fail "exit status $status"
[ -e "$tmp/a" ] || fail "SIGTERM removed the disk"
absent "$tmp/a.sock"
start_receive a "$tmp/a" --resume
stop a INT
[ -e "$tmp/a" ] || fail "a disk that was there before was removed"
start_receive b "$tmp/b" --size 1M
has_to_exit 0 "$NBDMIRROR" receive --seal "${uri[b]}"
stop b INT
[ -e "$tmp/b" ] || fail "a disk that was handed over was removed"
start_receive c "$tmp/c" --size 1M --keep
has_to_exit 0 "$NBDMIRROR" receive --give-up "${uri[c]}"
wait_exit c 10
[ -e "$tmp/c" ] || fail "--keep did not keep"
# Somebody else's file under the same name.
start_receive d "$tmp/d" --size 1M
mv "$tmp/d" "$tmp/d.moved"
echo mine >"$tmp/d"
stop d INT
[ "$(cat "$tmp/d")" = mine ] || fail "a file that was not made here was removed"

# Nor written to, nor served to the guest: not by the server that runs, and not by one that is
# started again.
start_receive d "$tmp/d2" --size 1M
"$python" -c 'import nbd, sys
h = nbd.NBD()
h.set_export_name("mirror")
h.connect_unix(sys.argv[1])
h.pwrite(b"x" * 512, 0)' \
  "${socket[d]}"
mv "$tmp/d2" "$tmp/d2.moved"
truncate -s 1M "$tmp/d2"
for export in mirror mirror@a ''; do
  "$python" - "${socket[d]}" "$export" <<'PY' || fail "another file is served as '$export'"
import nbd, sys
h = nbd.NBD()
h.set_export_name(sys.argv[2])
try:
    h.connect_unix(sys.argv[1])
    h.pwrite(b"x" * 512, 0)
except nbd.Error:
    sys.exit(0)
sys.exit(1)
PY
done
kill -9 "$(child_of d nbdkit)"
wait_exit d 10
[ "$status" = 1 ] || fail "a server of another file was started: exit status $status"
cmp -n 1048576 "$tmp/d2" /dev/zero || fail "a file that was not made here was written to"

# A disk that a QEMU has open (it locks bytes from 100 on) is not given up, whatever the user says.
cp "$tmp/file" "$tmp/busy"
spawn busy "$python" -c 'import fcntl, sys, time
f = open(sys.argv[1], "r+")
fcntl.lockf(f, fcntl.LOCK_EX, 1, 100)
print("locked", flush=True)
time.sleep(60)' "$tmp/busy"
wait_for 10 grep -q locked "$tmp/busy.log"
for way in --overwrite --resume; do
  receive 7 "$NBDMIRROR" receive "$tmp/busy" --size 5 "$way"
  says 'another program has locked it'
done
cmp "$tmp/file" "$tmp/busy" || fail "a disk in use was changed"
stop busy

# Nor is one that a server of ours has open, for its guest.
start_server served "$tmp/busy"
for way in --overwrite --resume; do
  receive 7 "$NBDMIRROR" receive "$tmp/busy" --size 5 "$way"
  says 'in use by a server of nbdmirror'
done
cmp "$tmp/file" "$tmp/busy" || fail "a disk that is served was changed"
stop served

# On TCP.
port=$(free_port)
spawn tcp sh -c 'exec "$@" >"$0"' "$tmp/tcp.json" "${nbdmirror_prefix[@]}" "${server_env[@]}" \
  "$NBDMIRROR" receive \
  "$tmp/tcp" --size 1M --port "$port" --address 127.0.0.1
wait_for 20 grep -q '"uri"' "$tmp/tcp.json"
[ "$(field uri <"$tmp/tcp.json")" = "nbd://127.0.0.1:$port/mirror" ] ||
  fail "another uri: $(cat "$tmp/tcp.json")"
random_disk "$tmp/random" 1M
has_to_exit 0 "$NBDMIRROR" copy "$tmp/random" "$(field uri <"$tmp/tcp.json")"
equal "$tmp/random" "$(field guest-uri <"$tmp/tcp.json")"
# A port that is taken is found before anything is made or given up.
for disk in "$tmp/file" "$tmp/disk"; do
  has_to_exit 1 timeout 20 "$NBDMIRROR" receive "$disk" --size 1M --overwrite --port "$port" \
    --address 127.0.0.1
  says "--port $port: Address already in use"
done
[ "$(cat "$tmp/file")" = mine ] || fail "given up for a server that cannot be started"
absent "$tmp/disk"
stop tcp INT

# Overwritten; in the background.
start_receive e "$tmp/file" --size 1M --overwrite
[ "$(stat -c %s "$tmp/file")" = 1048576 ] || fail "another size"
grep -q mine "$tmp/file" && fail "what was overwritten is there still"
stop e INT
[ -e "$tmp/file" ] || fail "a file that was there before was removed"

# All of its output is read: nothing that goes on may hold it open.
timeout 20 "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" receive "$tmp/f" --size 1M \
  --socket "$tmp/f.sock" \
  --detach 2>&1 | cat >"$tmp/f.json"
pid[f]=$(field pid <"$tmp/f.json")
running f || fail "--detach: no server"
listening "$tmp/f.sock" || fail "--detach returned before it was served"
kill "${pid[f]}"
wait_for 10 sh -c "! kill -0 ${pid[f]} 2>/dev/null"
unset "pid[f]"
absent "$tmp/f.sock"

# The supervising process is killed: its server ends as well, unless a guest is connected, and the
# next one cleans up.
private () { ps -o args= -p "$1" | sed -n 's/.* -P \([^ ]*\)\/nbdkit.pid .*/\1/p'; }
ended () { for p; do ! kill -0 "$p" 2>/dev/null || return; done; }
formats=(raw)
if command -v qemu-nbd qemu-img >/dev/null; then formats+=(qcow2); fi
for format in "${formats[@]}"; do
  stop killed
  start_receive killed "$tmp/killed.$format" --size 1M --format "$format"
  servers=("$(child_of killed nbdkit)")
  private=$(private "${servers[0]}")
  [ "$format" = raw ] || servers+=("$(qemu_nbd_of killed)")
  kill -KILL "${pid[killed]}"
  wait_exit killed 10
  wait_for 10 ended "${servers[@]}"
  # Another test's receive may have removed the directory by now.
  [ -n "$private" ] || fail "no private directory to clean up"
  rm -f "${socket[killed]}"
  start_receive killed "$tmp/killed.$format" --resume --format "$format"
  absent "$private"
  private=$(private "$(child_of killed nbdkit)")
done
spawn guest "$python" -c 'import nbd, sys, time
h = nbd.NBD()
h.connect_unix(sys.argv[1])
while True:
    h.pread(512, 0)
    print("read", flush=True)
    time.sleep(0.1)' "${socket[killed]}"
wait_for 10 grep -q read "$tmp/guest.log"
server=$(child_of killed nbdkit)
backend=$(qemu_nbd_of killed)
kill -KILL "${pid[killed]}"
wait_exit killed 10
start_receive g "$tmp/g" --size 1M
stop g INT
[ -d "$private" ] || fail "the directory of a server that lives was removed"
receive 7 "$NBDMIRROR" receive "$tmp/killed.$format" --resume --format "$format"
sleep 1
running guest || fail "the guest has lost its disk"
for process in "$server" $backend; do
  kill -KILL "$process"
done
