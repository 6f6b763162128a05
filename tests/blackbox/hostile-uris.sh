#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that no spelling of a URI gets around the check of a server's certificate.  Two servers are
# asked, one with a certificate of an unknown authority, one with a certificate for another name;
# neither is ever talked to by mirror, copy, verify, receive or complete.  Each URI of the table
# once made the program and libnbd look at different parameters, or could do so.  The last
# destination of a job, which `complete` seals, is such a URI as well.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread
need certtool

# authority DIR, and certificate DIR HOST of it, with the file names of libnbd and nbdkit.
authority () {
  mkdir -p "$tmp/$1"
  certtool --generate-privkey --key-type ecdsa --outfile "$tmp/$1/ca-key.pem"
  printf 'cn = "%s"\nca\ncert_signing_key\n' "$1" >"$tmp/template"
  certtool --generate-self-signed --load-privkey "$tmp/$1/ca-key.pem" --template "$tmp/template" \
    --outfile "$tmp/$1/ca-cert.pem"
}
certificate () { # AUTHORITY DIR HOST
  mkdir -p "$tmp/$2"
  certtool --generate-privkey --key-type ecdsa --outfile "$tmp/$2/server-key.pem"
  printf 'cn = "%s"\ndns_name = "%s"\ntls_www_server\nsigning_key\nencryption_key\n' "$3" "$3" \
    >"$tmp/template"
  certtool --generate-certificate --load-ca-certificate "$tmp/$1/ca-cert.pem" \
    --load-ca-privkey "$tmp/$1/ca-key.pem" \
    --load-privkey "$tmp/$2/server-key.pem" --template "$tmp/template" \
    --outfile "$tmp/$2/server-cert.pem"
  cp "$tmp/$1/ca-cert.pem" "$tmp/$2"
}
{
  authority good
  authority unknown
  certificate good right localhost
  certificate good name elsewhere.example
  certificate unknown ca localhost
} 2>"$tmp/certtool"
mkdir "$tmp/noca"
echo 'alice:0123456789abcdef0123456789abcdef' >"$tmp/psk"

# start_tls NAME: a receiver with that certificate; its port is in ${port[NAME]}.
declare -A port=()
start_tls () {
  port[$1]=$(free_port)
  # shellcheck disable=SC2016
  spawn "$1" sh -c 'exec "$@" >"$0"' "$tmp/$1.json" "${nbdmirror_prefix[@]}" "${server_env[@]}" \
    "$NBDMIRROR" \
    receive "$tmp/$1.img" --size 1M --port "${port[$1]}" --address localhost \
    --tls-certificates "$tmp/$1"
}
for server in right name ca; do start_tls "$server"; done
for server in right name ca; do wait_for 20 grep -q '"uri"' "$tmp/$server.json"; done
random_disk "$tmp/disk" 1M
start_server src "$tmp/disk"

# What cannot be read in one way only is refused before anything is connected to.
good=$tmp/good noca=$tmp/noca
malformed=(
  "?tls-certificates=$good&tls-certificates=$noca"
  "?tls-certificates=$noca&tls-certificates=$good"
  "?tls-certificates=$good&tls%2Dcertificates=$noca"
  "?tls-certificates=$good;tls-certificates=$noca"
  "?tls-certificates=$good;x&tls-certificates=$noca"
  "?tls%2Dcertificates=$good&tls-certificates=$noca"
  "#?tls-psk-file=x"
  "?tls-certificates=$noca#&tls-certificates=$good"
  "?tls-certificates=$good#"
  "?x=1&tls-certificates=$good"
  "?tls-certificates=$good&tls-verify-peer=false"
  "?tls-certificates=$good&tls-psk-file=$tmp/psk"
  "?tls-certificates=$good&tls-psk-file=$tmp/psk&tls-psk-file="
  "?tls-certificates=$good%00x"
  "?tls-certificates="
  "?tls-certificates"
  "?=x&tls-certificates=$good"
  "?tls-certificates=$good&socket=$tmp/x"
)
# What can be read is connected to only if the server could be told, and then it is not the right
# one.
wellformed=(
  ""
  "?"
  "?tls-certificates=$noca"
  "?tls-certificates=$tmp/nowhere"
  "?tls-certificates=$good"
  "?tls%2Dcertificates=$good"
  "?&tls-certificates=%2F${good#/}&"
  "?tls-psk-file=$tmp/psk"
)

# refused STATUS STATUS STATUS URI: the statuses of mirror and copy, verify and receive.
refused () {
  local bad=$4
  has_to_exit "$1" timeout 30 "$NBDMIRROR" mirror "${control[src]}" "$bad" --on-ready complete
  has_to_exit "$1" timeout 30 "$NBDMIRROR" copy "$tmp/disk" "$bad"
  has_to_exit "$2" timeout 30 "$NBDMIRROR" verify "$tmp/disk" "$bad"
  has_to_exit "$2" timeout 30 "$NBDMIRROR" copy "$bad" "$tmp/stolen"
  has_to_exit "$3" timeout 30 "$NBDMIRROR" receive --seal "$bad"
  has_to_exit "$3" timeout 30 "$NBDMIRROR" receive --give-up "$bad"
}
for server in ca name; do
  for query in "${malformed[@]}"; do refused 2 2 2 \
    "nbds://localhost:${port[$server]}/mirror$query"; done
  for query in "${wellformed[@]}"; do refused 3 1 1 \
    "nbds://localhost:${port[$server]}/mirror$query"; done
  refused 2 2 2 "nbds://@localhost:${port[$server]}/mirror?tls-certificates=$good"
done
[ ! -e "$tmp/stolen" ] || fail "a wrong server's data was read"

# A worker of an older release may have had such a destination.  It has handed over and is gone:
# `complete` seals.
"$python" - "$srcdir/tests/blackbox" "$NBDMIRROR" "$tmp" "${port[ca]}" "${malformed[@]}" \
  "${wellformed[@]}" <<'PY'
import subprocess, sys
sys.path.insert(0, sys.argv[1])
from filter_client import Region, Server, Word

program, tmp, port = sys.argv[2:5]
for query in sys.argv[5:]:
    target = "nbds://localhost:%s/mirror%s" % (port, query)
    s = Server()
    s.guest()
    w = s.client()
    w.call("mirror-attach", start="new")
    Region(w.fds.pop()).clean()
    w.call("mirror-progress", state="ready", target=target)
    word, k = Word(), s.client()
    answer = k.start("mirror-prepare", fd=word.fd, lease_ms=20000, rollback_token="t")
    request = w.event("MIRROR_REQUEST", execute="prepare")
    generation = w.call("mirror-hold", lease_ms=20000)["generation"]
    w.call("mirror-prepared", generation=generation, session=w.call("query-mirror")["session"])
    w.call("mirror-reply", **{"request": request["request"], "return": {"generation": generation}})
    k.finish(answer)
    assert word.set(1) == 1
    k.call("job-finalize", generation=generation)
    w.call("mirror-detach", state="completed", reason="done")
    w.close()
    k.close()
    p = subprocess.run([program, "complete", s.control], stderr=subprocess.PIPE, text=True,
                       timeout=60)
    assert p.returncode == 3 and "could not be sealed" in p.stderr, (target, p.returncode, p.stderr)
    s.close()
PY

# Nobody was talked to.
for server in ca name; do
  running "$server" || fail "the wrong server was given up"
  cmp -n 1048576 "$tmp/$server.img" /dev/zero || fail "the wrong server was written to"
done
# And the right server, asked in the right way, is.
has_to_exit 0 "$NBDMIRROR" copy "$tmp/disk" \
  "nbds://localhost:${port[right]}/mirror?tls-certificates=$good"
has_to_exit 0 "$NBDMIRROR" receive --seal \
  "nbds://localhost:${port[right]}/%6dirror?tls%2Dcertificates=$good"
has_to_exit 0 "$NBDMIRROR" verify "$tmp/disk" \
  "nbds://localhost:${port[right]}/?tls-certificates=$good"
