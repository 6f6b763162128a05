#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# `nbdmirror receive` with certificates, made by the commands of nbdmirror(1) as they are printed
# there: a disk is mirrored, verified, sealed and given up through a relay that sees nothing but TLS
# on any connection, also from a server that was started again; nobody gets in without a
# certificate, or with one of another CA, and a client does not talk to a server of another CA or
# another name.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread
need certtool

# The manual's own words; this host plays hostb.
make_pki () {
  mkdir -p "$tmp/$1.d" "$tmp/$1"
  sed -n -e '/^B<1. Certificates.>/,/^B<2. hosta:>/s/^ \([^ ]\)/\1/p' \
    -e '/^B<1. Certificates.>/,/^B<2. hosta:>/s/^  *//p' \
    "$srcdir/docs/nbdmirror.pod" | sed 's/"hostb"/"localhost"/g' >"$tmp/$1.sh"
  grep -q 'certtool --generate-certificate' "$tmp/$1.sh" ||
    fail "the manual has no commands for certificates"
  (cd "$tmp/$1.d" && bash -eu "$tmp/$1.sh") >"$tmp/$1.log" 2>&1 ||
    fail "the manual's commands for certificates fail"
}
# pki DIR FILE...: a directory of these files (as NAME=FROM if they are called otherwise).
pki () {
  local to=$tmp/$1 file; shift
  mkdir -p "$to"
  for file; do cp "$tmp/${file#*=}" "$to/$(basename "${file%%=*}")"; done
}
make_pki ours
make_pki others
pki server ours.d/ca-cert.pem ours.d/server-cert.pem ours.d/server-key.pem
pki client ours.d/ca-cert.pem ours.d/client-cert.pem ours.d/client-key.pem
pki anonymous ours.d/ca-cert.pem
pki stranger ours.d/ca-cert.pem client-cert.pem=others.d/client-cert.pem \
  client-key.pem=others.d/client-key.pem
pki elsewhere ca-cert.pem=others.d/ca-cert.pem client-cert.pem=ours.d/client-cert.pem \
  client-key.pem=ours.d/client-key.pem

free_port () { "$python" -c \
  'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# shellcheck disable=SC2016
# receive_tls NAME OPTION ARGS...: on TCP, with OPTION and a relay before it; ${uri[NAME]} leads
# through that.
receive_tls () {
  local name=$1 option=$2; shift 2
  port=$(free_port)
  : >"$tmp/$name.json"
  spawn "$name" sh -c 'exec "$@" >"$0"' "$tmp/$name.json" "${nbdmirror_prefix[@]}" \
    "${server_env[@]}" "$NBDMIRROR" \
    receive "$@" --port "$port" --address localhost --tls-certificates "$tmp/server" "$option"
  wait_for 20 grep -q '"uri"' "$tmp/$name.json"
  [ "$(field uri <"$tmp/$name.json")" = "nbds://localhost:$port/mirror" ] ||
    fail "another uri: $(cat "$tmp/$name.json")"
  rm -f "$tmp/$name.port"
  spawn "$name-relay" sh -c 'exec "$@" >"$0"' "$tmp/$name.port" "$python" \
    "$srcdir/tests/blackbox/tls-relay.py" "$port" "$tmp/seen"
  wait_for 20 test -s "$tmp/$name.port"
  uri[$name]="nbds://localhost:$(cat "$tmp/$name.port")/mirror?tls-certificates=$tmp"
}
# seen N: all connections so far, at least N, were TLS from the first byte that may be.
seen () {
  wait_for 10 sh -c "[ \"\$(wc -l <'$tmp/seen')\" -ge $1 ]"
  grep -v '^tls ' "$tmp/seen" && fail "something went over a connection in the clear"
  : >"$tmp/seen"
}

random_disk "$tmp/disk" 16M
start_server src "$tmp/disk"
: >"$tmp/seen"
receive_tls dst --tls-verify-peer "$tmp/there" --size 16M
# with DIR: the destination, with the certificates in DIR.
with () { echo "${uri[dst]}/$1"; }

# Strangers: no certificate, one of another CA, none known; a server whose CA or name is not the one
# expected.
for who in anonymous stranger elsewhere nowhere; do
  has_to_exit 3 timeout 30 "$NBDMIRROR" mirror "${control[src]}" "$(with $who)" --on-ready complete
  has_to_exit 1 timeout 30 "$NBDMIRROR" receive --seal "$(with $who)"
  has_to_exit 1 timeout 30 "$NBDMIRROR" receive --give-up "$(with $who)"
done
has_to_exit 3 timeout 30 "$NBDMIRROR" mirror "${control[src]}" \
  "$(with client | sed 's/localhost/127.0.0.1/')" --on-ready complete
grep -qi 'certificate' "$tmp/err" || fail "not said why: $(cat "$tmp/err")"
wait_for 10 sh -c "! grep -q '^clear' '$tmp/seen'"
# And without TLS.
for export in mirror ''; do
  has_to_exit 3 timeout 30 "$NBDMIRROR" copy "$tmp/disk" "nbd://localhost:$port/$export"
done
has_to_exit 1 "$NBDMIRROR" receive --seal "nbd://localhost:$port/mirror"
has_to_exit 1 "$NBDMIRROR" receive --give-up "nbd://localhost:$port/mirror"
cmp -n 16777216 "$tmp/there" /dev/zero || fail "somebody without a certificate wrote to the disk"
! grep '^clear' "$tmp/seen" || fail "in the clear"
: >"$tmp/seen"

# Compressed, inside TLS.
seq 500000 >"$tmp/text"
receive_tls zipped --tls-verify-peer "$tmp/zipped" --size "$(stat -c %s "$tmp/text")"
has_to_exit 0 timeout 30 "$NBDMIRROR" copy "$tmp/text" "${uri[zipped]}/client" --compress --json
[ "$(field wire-bytes <"$tmp/out")" -lt "$(field sent-bytes <"$tmp/out")" ] ||
  fail "--compress inside TLS has compressed nothing: $(cat "$tmp/out")"
cmp "$tmp/text" "$tmp/zipped" || fail "copied with --compress inside TLS: differs"
! grep '^clear' "$tmp/seen" || fail "--compress: in the clear"
stop zipped-relay
stop zipped

# The mirror; its server is killed in between, and the new one demands TLS as well.
spawn mirror nbdmirror mirror "${control[src]}" "$(with client)" --bandwidth 4M \
  --on-ready complete --quarantine-grace 100ms \
  --report "$tmp/report"
copied () { [ "$(status_of "${control[src]}" sent-bytes 2>/dev/null || echo 0)" -gt $((1 << 20)) \
  ]; }
wait_for 20 copied
kill -KILL "$(child_of dst nbdkit)"
wait_for 20 grep -q 'started again' "$tmp/dst.log"
has_to_exit 3 timeout 30 "$NBDMIRROR" copy "$tmp/disk" "nbd://localhost:$port/mirror"
has_to_exit 1 timeout 30 "$NBDMIRROR" verify "$tmp/disk" \
  "nbds://localhost:$port/?tls-certificates=$tmp/stranger"
nbdmirror set "${control[src]}" bandwidth=none
ends_well mirror 60
[ "$(field reconnects <"$tmp/report")" -ge 1 ] || fail "no reconnect: $(cat "$tmp/report")"
seen 2
has_to_exit 0 timeout 60 "$NBDMIRROR" verify "$tmp/disk" "$(with client | sed 's/mirror?/?/')"
cmp "$tmp/disk" "$tmp/there" || fail "the disks differ"
has_to_exit 0 "$NBDMIRROR" receive --seal "$(with client)"
has_to_exit 1 "$NBDMIRROR" receive --give-up "$(with client)"
grep -q 'cannot be given up' "$tmp/err" || fail "another reason: $(cat "$tmp/err")"
seen 3
roll_back "${control[src]}"
stop dst

# A server that lets everybody in.  A client that could not tell it from another does not talk to
# it, though libnbd would; one with a certificate gives the disk up.
receive_tls again --detach "$tmp/again" --size 16M
pid[again]=$(field pid <"$tmp/again.json")
for query in '' '?tls-certificates=nowhere' "?tls-certificates=$tmp"; do
  has_to_exit 3 timeout 30 "$NBDMIRROR" copy "$tmp/disk" "nbds://localhost:$port/mirror$query"
  grep -q 'not be known who the server is' "$tmp/err" || fail "another reason: $(cat "$tmp/err")"
  has_to_exit 1 timeout 30 "$NBDMIRROR" receive --give-up "nbds://localhost:$port/mirror$query"
done
[ -e "$tmp/again" ] || fail "given up without knowing by whom"
has_to_exit 0 timeout 60 "$NBDMIRROR" copy "$tmp/disk" "${uri[again]}/anonymous"
has_to_exit 0 "$NBDMIRROR" receive --give-up "${uri[again]}/client"
wait_for 10 sh -c "! kill -0 ${pid[again]} 2>/dev/null"
unset "pid[again]"
[ ! -e "$tmp/again" ] || fail "not removed"
seen 2
