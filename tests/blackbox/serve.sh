#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves what `nbdmirror serve` promises beside serving: it becomes nbdkit (same pid), returns from
# --detach when both sockets answer, leaves no socket and no pid file behind however the server
# ends, replaces stale sockets, keeps its hands off those in use and off a disk that QEMU has
# open, and the export name and block size reach the filter.
. "$(dirname "$0")/lib.sh"
need qemu-nbd

truncate -s 1M "$tmp/disk"
s=$tmp/s.sock c=$tmp/c.sock p=$tmp/s.sock.pid
serve=("${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" serve "$tmp/disk" --socket "$s" \
  --control "$c")
gone () { [ ! -e "$s" ] && [ ! -e "$c" ] && [ ! -e "$p" ]; }

end_daemons () {
  local file
  for file in "$p" "$tmp/my.pid"; do
    [ ! -s "$file" ] || kill "$(cat "$file")" 2>/dev/null || :
  done
}
at_exit end_daemons

# In the foreground: the process itself is the server.
spawn fg "${serve[@]}"
wait_for_socket "$s" fg
wait_for 10 nbdmirror status "$c"
[ "$(cat "/proc/${pid[fg]}/comm")" = nbdkit ] || fail "serve did not become nbdkit"

# A second one on the same sockets is refused and changes nothing.
has_to_exit 1 "${serve[@]}"
grep -q "$s: in use by another server" "$tmp/err" || fail "the socket in use is not named"
has_to_exit 1 "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" serve "$tmp/disk" \
  --socket "$tmp/other" --control "$c"
grep -q "$c: in use by another server" "$tmp/err" || fail "the control socket in use is not named"
[ ! -e "$tmp/other" ] || fail "a refused server left its socket"
nbdmirror status "$c" >/dev/null || fail "the first server does not answer any more"
stop fg
[ "$status" = 0 ] || fail "SIGTERM: exit status $status"
wait_for 5 gone

# Killed: removed all the same, and the next server can use the paths at once.
for _ in 1 2 3; do
  spawn fg "${serve[@]}"
  wait_for_socket "$s" fg
  wait_for 10 nbdmirror status "$c"
  stop fg KILL
done
spawn fg "${serve[@]}"
wait_for 10 nbdmirror status "$c"
sleep 0.5 # time for anybody who wrongly removed the new server's sockets
{ [ -S "$s" ] && [ -S "$c" ]; } || fail "the sockets of the new server were removed"
stop fg
wait_for 5 gone

# Two are started at once: the second one has looked, and found the paths free, when the first one
# takes them. It fails, and removes nothing. (An nbdkit that waits makes it slow.)
mkdir "$tmp/slow"
cat >"$tmp/slow/nbdkit" <<EOF
#!/bin/sh
while [ ! -e "$tmp/go" ]; do sleep 0.02; done
exec "$(command -v nbdkit)" "\$@"
EOF
chmod +x "$tmp/slow/nbdkit"
for how in "" --detach; do
  rm -f "$tmp/go"
  spawn loser env PATH="$tmp/slow:$PATH" "${serve[@]}" $how --pidfile "$p"
  sleep 0.3 # until it waits
  spawn fg "${serve[@]}" --pidfile "$p"
  wait_for 10 nbdmirror status "$c"
  wait_for 10 test -s "$p"
  touch "$tmp/go"
  wait_exit loser 20
  [ "$status" = 1 ] || fail "two servers have the same paths (${how:-in the foreground})"
  sleep 0.3 # for whoever tidies up after it
  { [ -S "$s" ] && [ -S "$c" ]; } || fail "a server that failed has removed another one's sockets"
  [ -s "$p" ] || fail "a server that failed has removed another one's pid file"
  stop fg
  wait_for 10 gone
done

# A disk that QEMU writes to is refused, as QEMU's lock tells; --force-share serves it all the same.

spawn holder qemu-nbd -f raw -k "$tmp/holder" -t "$tmp/disk"
wait_for_socket "$tmp/holder" holder
has_to_exit 7 "${serve[@]}"
grep -q "$tmp/disk: in use by QEMU" "$tmp/err" || fail "a disk in use: $(cat "$tmp/err")"
spawn fg "${serve[@]}" --force-share
wait_for 10 nbdmirror status "$c"
stop fg
stop holder

# A disk that another server of ours has is served, with a warning: two guests would damage it.
spawn fg "${serve[@]}"
wait_for 10 nbdmirror status "$c"
spawn second "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" serve "$tmp/disk" \
  --socket "$tmp/second" --control "$tmp/second.control"
wait_for 10 nbdmirror status "$tmp/second.control"
grep -q "$tmp/disk: another server of nbdmirror" "$tmp/second.log" ||
  fail "two servers: $(cat "$tmp/second.log")"
grep "another server" "$tmp/fg.log" && fail "the first server warns of a second one"
stop second
stop fg
wait_for 5 gone

# Stale sockets, from a machine that crashed, are replaced.
"$python" -c 'import socket, sys
for path in sys.argv[1:]: socket.socket(socket.AF_UNIX).bind(path)' "$s" "$c"
spawn fg "${serve[@]}"
wait_for 10 nbdmirror status "$c"
stop fg
wait_for 5 gone

# So is a stale control socket where nbdkit is started by hand.
"$python" -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$c"
spawn fg "${nbdmirror_prefix[@]}" "${server_env[@]}" nbdkit -f -U "$s" \
  --filter="$NBDMIRROR_FILTER" file "$tmp/disk" \
  "mirror-control=$c" "mirror-uri=nbd+unix:///?socket=$s"
wait_for 10 nbdmirror status "$c"
stop fg
[ ! -e "$c" ] || fail "the filter left its control socket"
rm -f "$s"

# --detach.
has_to_exit 0 "${serve[@]}" --detach
nbdmirror status "$c" >/dev/null || fail "--detach returned before the control socket answered"
"$python" -c 'import nbd, sys
h = nbd.NBD(); h.connect_unix(sys.argv[1]); assert h.get_size() == 1 << 20; h.shutdown()' "$s" ||
  fail "--detach returned before the export was served"
daemon=$(cat "$p")
[ "$(cat "/proc/$daemon/comm")" = nbdkit ] || fail "$p does not hold the server's pid"
# A Ctrl-C goes to all processes of a script, and their terminal's end to all of the session.
"$python" -c 'import os, sys
pid = int(sys.argv[1])
sys.exit(os.getpgid(pid) == os.getpgid(0) or os.getsid(pid) == os.getsid(0))' "$daemon" ||
  fail "the server in the background ends with the script that has started it"
kill "$daemon"
wait_for 10 gone

# A server that cannot write its process id is not left running.  It takes 15 s to know that.
if [ "${NBDMIRROR_LONG:-0}" != 0 ]; then
  ln -s /dev/full "$tmp/full.pid"
  has_to_exit 1 "${serve[@]}" --detach --pidfile "$tmp/full.pid"
  grep -q "could not write its process id" "$tmp/err" || fail "full: $(cat "$tmp/err")"
  wait_for 10 gone
  # But another one, which has come to its sockets since it has ended by itself, goes on.
  mkdir "$tmp/ends"
  cat >"$tmp/ends/nbdkit" <<EOF
#!/bin/sh
PATH=\${PATH#*:}
case "\$*" in --*-*) exec nbdkit "\$@" ;; esac
touch "$tmp/ended"
EOF
  chmod +x "$tmp/ends/nbdkit"
  spawn ends env PATH="$tmp/ends:$PATH" "${serve[@]}" --detach
  wait_for 10 test -e "$tmp/ended"
  spawn fg "${serve[@]}"
  wait_for 10 nbdmirror status "$c"
  wait_exit ends 30
  [ "$status" = 1 ] || fail "no server, and exit status $status"
  sleep 0.3 # for one that was told to end
  running fg || fail "another server was ended"
  stop fg
  wait_for 10 gone
fi

has_to_exit 0 "${serve[@]}" --detach --pidfile "$tmp/my.pid" --export 'a b' -- mirror-block-size=64k
"$python" -c 'import nbd, sys
h = nbd.NBD(); h.set_export_name("a b"); h.connect_unix(sys.argv[1]); h.shutdown()' "$s" ||
  fail "the export's name is another one"
[ "$(status_of "$c" block-size)" = 65536 ] || fail "the block size did not reach the filter"
[ "$(status_of "$c" uri)" = "nbd+unix:///a%20b?socket=$s" ] || fail "uri: $(status_of "$c" uri)"
[ "$(status_of "$c" direct)" = "$tmp/disk" ] || fail "direct: $(status_of "$c" direct)"
kill "$(cat "$tmp/my.pid")"
wait_for 10 gone
wait_for 5 test ! -e "$tmp/my.pid"

# ---- a disk that was resized is not mirrored, and the message says where to look -----------------
truncate -s 4M "$tmp/grows.img"
start_server grows "$tmp/grows.img"
nbdinfo --size "${uri[grows]}" >"$tmp/size"
truncate -s 8M "$tmp/grows.img"
has_to_exit 1 nbdmirror mirror "${control[grows]}" "$tmp/copy.img"
grep -q 'source: .*was the disk resized?' "$tmp/err" || fail "resized: $(cat "$tmp/err")"
stop grows
grep -q 'size changed from 4194304 to 8388608' "$tmp/grows.log" || fail "$(cat "$tmp/grows.log")"
