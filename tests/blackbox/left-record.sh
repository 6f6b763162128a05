#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that `give-back` ends no server that is not the one of its record.  A record may be left of
# a guest that has ended, and another guest's server may have the same NBD socket by now: with
# another control socket, or, where the image was moved, with another image.  The record's own
# server, which was told to end and waits for its clients, is ended, and another one takes its
# place.
. "$(dirname "$0")/lib.sh"

sock=$tmp/nbd
random_disk "$tmp/old.img" 1M
random_disk "$tmp/new.img" 2M
# record CONTROL: adopt's, of the old image.
record () {
  cat >"$1.adopted" <<END
{ "device": "/machine/peripheral/vd0/virtio-backend", "backend": "", "node": null,
  "driver": "raw", "file-node": null, "file-driver": "file", "filename": "$tmp/old.img",
  "direct": false, "no-flush": false, "detect-zeroes": "off", "discard": "ignore",
  "aio": "threads", "size": 1048576, "socket": "$sock", "started": true, "nbdkit-args": [],
  "state": null }
END
}
# Detached, so it is ended by its pid file.
end_server () { [ ! -e "$sock.pid" ] || kill -KILL "$(cat "$sock.pid")" 2>/dev/null || :; }
at_exit end_server
# serve DISK CONTROL: -> $server
serve () {
  "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" serve "$1" --socket "$sock" \
    --control "$2" --detach >"$tmp/serve.log" 2>&1 </dev/null || fail "serve ends with $?"
  server=$(cat "$sock.pid")
}
# gives_back CONTROL: QEMU is not there, so it fails, after it has looked for the server.
gives_back () {
  has_to_exit 1 "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" give-back \
    --qmp "$tmp/no-qemu" "$1"
}
gone () { case $(ps -o stat= -p "$1") in ''|Z*) return 0 ;; *) return 1 ;; esac; }
# lives_on: the server, with the new image.
lives_on () {
  [ "$(cat "$sock.pid")" = "$server" ] || fail "$1: another server has its place"
  if gone "$server"; then fail "$1: the server was ended"; fi
  cmp "$tmp/new.img" <(nbdcopy "nbd+unix:///?socket=$sock" -) || fail "$1: another image"
}
# told_to_end CONTROL: by somebody, while it has a client.
told_to_end () {
  spawn client "$python" -c 'import nbd, sys, time
h = nbd.NBD()
h.connect_unix(sys.argv[1])
print("connected", flush=True)
time.sleep(600)' "$sock"
  wait_for 20 grep -q connected "$tmp/client.log"
  kill "$server"
  wait_for 20 test ! -e "$1"
  if gone "$server"; then fail "the server does not wait for its client"; fi
}

need nbdcopy
record "$tmp/one"
serve "$tmp/new.img" "$tmp/two"
gives_back "$tmp/one"
lives_on "another control socket"
kill "$server"
wait_for 20 gone "$server"

serve "$tmp/new.img" "$tmp/one"
told_to_end "$tmp/one"
gives_back "$tmp/one"
if gone "$server"; then fail "another image: the server was ended"; fi
stop client
wait_for 20 gone "$server"

: >"$tmp/client.log"
serve "$tmp/old.img" "$tmp/one"
told_to_end "$tmp/one"
gives_back "$tmp/one"
gone "$server" || fail "the server that was told to end is still there"
grep -q "was told to end" "$tmp/err" || fail "that is not said"
server=$(cat "$sock.pid")
cmp "$tmp/old.img" <(nbdcopy "nbd+unix:///?socket=$sock" -) || fail "no other one has its place"
