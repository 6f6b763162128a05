#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a mirror goes through TLS 1.3 key updates.  GnuTLS makes one after 2^24 records of a
# connection, which is 256 GiB in large requests and has killed long migrations of others; a proxy
# makes six a second here, and asks our end for as many, while requests are on their way in both
# directions.
. "$(dirname "$0")/lib.sh"
"$python" -c 'import ctypes; ctypes.CDLL("libgnutls.so.30").gnutls_session_key_update' \
  2>/dev/null ||
  skip "there is no libgnutls.so.30 with key updates"

echo 'alice:0123456789abcdef0123456789abcdef' >"$tmp/psk"
random_disk "$tmp/disk" 16M
start_dest dst memory 16M
spawn proxy "$python" "$srcdir/tests/blackbox/rekey-proxy.py" "$tmp/proxy.sock" "${socket[dst]}" \
  "$tmp/psk" 160
through="nbds+unix://alice@/?socket=$tmp/proxy.sock&tls-psk-file=$tmp/psk"
wait_for_socket "$tmp/proxy.sock" proxy
start_server src "$tmp/disk"
has_to_exit 0 timeout 60 "$NBDMIRROR" mirror "${control[src]}" "$through" --bandwidth 4M \
  --on-ready complete --report "$tmp/report"
[ "$(field reconnects <"$tmp/report")" = 0 ] || fail "a key update broke the connection"
has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$through" "$tmp/back" --bandwidth 4M
cmp "$tmp/disk" "$tmp/back" || fail "other data came back"
equal "$tmp/disk" "${uri[dst]}"
wait_for 10 grep -q '^updates [1-9]' "$tmp/proxy.log"
! grep error "$tmp/proxy.log" || fail "the proxy failed"
[ "$(awk '/^updates/ { n += $2 } END { print n + 0 }' "$tmp/proxy.log")" -ge 12 ] ||
  fail "hardly a key update, so nothing is proven: $(cat "$tmp/proxy.log")"
