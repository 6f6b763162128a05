#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a mirror goes through TLS 1.3 key updates.  GnuTLS makes one after 2^24 records of a
# connection, which is 256 GiB in large requests and has killed long migrations of others; a proxy
# makes six a second here, and asks our end for as many, while requests are on their way in both
# directions.  Then nbdkit itself does the same, in the call in which GnuTLS would do it.
. "$(dirname "$0")/lib.sh"
proves_nothing_under address
proves_nothing_under thread
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
has_to_exit 0 timeout 60 "$NBDMIRROR" mirror "${control[src]}" "$through" --bandwidth 6M \
  --on-ready complete --report "$tmp/report"
[ "$(field reconnects <"$tmp/report")" = 0 ] || fail "a key update broke the connection"
has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$through" "$tmp/back" --bandwidth 6M
cmp "$tmp/disk" "$tmp/back" || fail "other data came back"
equal "$tmp/disk" "${uri[dst]}"
wait_for 10 grep -q '^updates [1-9]' "$tmp/proxy.log"
! grep error "$tmp/proxy.log" || fail "the proxy failed"
[ "$(awk '/^updates/ { n += $2 } END { print n + 0 }' "$tmp/proxy.log")" -ge 8 ] ||
  fail "hardly a key update, so nothing is proven: $(cat "$tmp/proxy.log")"

# ---- nbdkit's own ----

cc=${CC:-cc}
command -v "${cc%% *}" >/dev/null || skip "the second half needs a C compiler"
cat >"$tmp/rekey.c" <<'END'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* Six key updates a second, each before a record is sent; one byte in $REKEYS for each. */
ssize_t
gnutls_record_send (void *session, const void *data, size_t size)
{
  static _Atomic long long last;
  struct timespec now;
  clock_gettime (CLOCK_MONOTONIC, &now);
  long long ms = now.tv_sec * 1000LL + now.tv_nsec / 1000000;
  int (*update) (void *, unsigned) = dlsym (RTLD_NEXT, "gnutls_session_key_update");
  ssize_t (*send) (void *, const void *, size_t) = dlsym (RTLD_NEXT, "gnutls_record_send");

  if (ms - last >= 160) {
    last = ms;
    int r = update (session, 1 /* GNUTLS_KU_PEER: the other end, too */);
    int fd = open (getenv ("REKEYS"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (write (fd, r < 0 ? "-" : "+", 1) != 1)
      abort ();
    close (fd);
  }
  return send (session, data, size);
}
END
# shellcheck disable=SC2086
$cc -shared -fPIC -o "$tmp/rekey.so" "$tmp/rekey.c" -ldl 2>"$tmp/cc.log" ||
  { cat "$tmp/cc.log"; fail "cannot compile"; }
spawn own env LD_PRELOAD="$tmp/rekey.so" REKEYS="$tmp/rekeys" nbdkit -f -U "$tmp/own.sock" \
  --tls=require --tls-psk="$tmp/psk" memory 16M
wait_for_socket "$tmp/own.sock" own
own="nbds+unix://alice@/?socket=$tmp/own.sock&tls-psk-file=$tmp/psk"
start_server src2 "$tmp/disk"
has_to_exit 0 timeout 60 "$NBDMIRROR" mirror "${control[src2]}" "$own" --bandwidth 6M \
  --connections 1 --on-ready complete --report "$tmp/report"
[ "$(field reconnects <"$tmp/report")" = 0 ] || fail "nbdkit's key update broke the connection"
has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$own" "$tmp/back2" --bandwidth 6M --connections 1
cmp "$tmp/disk" "$tmp/back2" || fail "other data came back from nbdkit"
note "nbdkit's updates (+ done, - refused): $(cat "$tmp/rekeys")"
[ "$(tr -cd + <"$tmp/rekeys" | wc -c)" -ge 8 ] || fail "hardly a key update of nbdkit's"
