#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that the filter prints nothing where nothing is wrong, and the reason where something is.

. "$(dirname "$0")/lib.sh"
# nbdkit --run starts a shell, which crashes with ThreadSanitizer preloaded.
[ "$sanitizers" != thread ] || skip "not with ThreadSanitizer"

# size_of ARGS...: nbdkit with the filter, for as long as a client asks for the size.
size_of () {
  # shellcheck disable=SC2016
  "${server_env[@]}" nbdkit -U - --filter="$NBDMIRROR_FILTER" "$@" "mirror-control=$tmp/control" \
    --run 'unset LD_PRELOAD; nbdinfo --size "$uri"' >"$tmp/size" 2>"$tmp/messages"
}

# A server that ends, and one that another filter ends: silence, and no socket is left.
for more in "" --filter=exitlast; do
    # shellcheck disable=SC2086
    size_of $more memory 1M || fail "nbdkit $more failed: $(cat "$tmp/messages")"
    [ "$(cat "$tmp/size")" = 1048576 ] || fail "the size is $(cat "$tmp/size")"
    [ ! -s "$tmp/messages" ] || fail "a clean end printed: $(cat "$tmp/messages")"
    [ ! -e "$tmp/control" ] || fail "the control socket was left behind"
done

# The same at SIGTERM with a worker attached, which has to be told to leave.
random_disk "$tmp/disk" 16M
start_server src "$tmp/disk"
start_dest dst file 16M
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}"
wait_state "${control[src]}" ready 20
stop src
wait_exit mirror 10
grep -v 'nbdmirror: serve: warning: this server, nbdkit' "$tmp/src.log" >"$tmp/messages" || :
[ ! -s "$tmp/messages" ] || fail "a clean end with a worker printed: $(cat "$tmp/messages")"

# Disks that are too large: the limit is told.
size_of memory 64P && fail "a disk of 64 PiB was tracked"
reason='a disk of 72057594037927936 bytes is too large to be tracked'
grep -q "$reason: the limit is 8192 TiB with blocks of 1024 KiB" "$tmp/messages" ||
  fail "64P: $(cat "$tmp/messages")"
size_of memory 64T mirror-block-size=4k && fail "64 TiB in 4 KiB blocks were tracked"
grep -q 'the limit is 32 TiB with blocks of 4 KiB; choose a larger mirror-block-size' \
     "$tmp/messages" || fail "64T: $(cat "$tmp/messages")"
size_of memory 8P || fail "a disk of 8 PiB: $(cat "$tmp/messages")"
