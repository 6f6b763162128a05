#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that `verify` finds the first difference exactly, and finds equal what is equal, whichever
# of the two sides serves digests; that it uses them where they are served, falls back to reading
# where they are not, and that holes on both sides cost nothing.
. "$(dirname "$0")/lib.sh"
measures_times
long_test
need qemu-nbd

# serve NAME FILE [FILTER [PARAMETERS...]]
serve () {
  local name=$1 file=$2 filter=${3:-}; shift $(($# < 3 ? $# : 3))
  server_paths "$name"
  rm -f "${socket[$name]}"
  spawn "$name" "${nbdmirror_prefix[@]}" "${server_env[@]}" nbdkit -f -U "${socket[$name]}" \
    ${filter:+"$filter"} file "$file" "$@"
  wait_for_socket "${socket[$name]}" "$name"
}

digest=--filter=$NBDMIRROR_DIGEST_FILTER

# verified STATUS A B [ARGS...]: its JSON is in $tmp/out
verified () {
  local want=$1 got=0; shift
  nbdmirror verify --json "$@" >"$tmp/out" 2>"$tmp/err" </dev/null || got=$?
  [ $got = "$want" ] || { cat "$tmp/err"; fail "verify $*: exit status $got instead of $want"; }
}

# changed OFFSET: the same, with one byte of B changed there; every pair of sides has to find it.
changed () {
  local at=$1 pair byte; shift
  byte=$(od -An -tu1 -j "$at" -N 1 "$tmp/b")
  printf '%b' "$(printf '\\%03o' $((byte ^ 1)))" |
    dd of="$tmp/b" bs=1 seek="$at" conv=notrunc status=none
  for pair in "${pairs[@]}"; do
    # shellcheck disable=SC2086
    verified 5 $pair
    [ "$(field first-difference <"$tmp/out")" = "$at" ] ||
      fail "$pair: first difference at $(field first-difference <"$tmp/out") instead of $at"
  done
  printf '%b' "$(printf '\\%03o' $((byte)))" |
    dd of="$tmp/b" bs=1 seek="$at" conv=notrunc status=none
}

for size in 70001 9M+513; do
  size=$(bytes "$size")
  rm -f "$tmp/a" "$tmp/b"
  random_disk "$tmp/a" "$size"
  cp --sparse=never "$tmp/a" "$tmp/b"           # the same contents, without the holes
  serve a "$tmp/a" "$digest"
  serve b "$tmp/b" "$digest"
  serve plain "$tmp/b"
  # A server with a smallest block of its own, and one that does not know block status.
  serve coarse "$tmp/a" --filter=blocksize-policy blocksize-minimum=1 blocksize-maximum=64k
  serve mute "$tmp/b" --filter=noextents
  pairs=("${uri[a]} ${uri[b]}" "$tmp/a ${uri[b]}" "${uri[a]} $tmp/b" "${uri[a]} ${uri[plain]}"
    "${uri[coarse]} ${uri[b]}" "${uri[a]} ${uri[mute]}" "$tmp/a $tmp/b"
    "${uri[a]} ${uri[b]} --bytes")
  for pair in "${pairs[@]}"; do
    # shellcheck disable=SC2086
    verified 0 $pair
    case "$pair" in
      *--bytes | /*\ /*) expect='false false' ;;
      "${uri[a]} ${uri[b]}") expect='true true' ;;
      "${uri[a]} "*) expect='true false' ;;
      *) expect='false true' ;;
    esac
    [ "$(field source-digests <"$tmp/out") $(field dest-digests <"$tmp/out")" = "$expect" ] ||
      fail "$pair: digests of source and destination used: $(cat "$tmp/out")"
  done
  changed 0
  changed 65535
  changed 65536
  changed $((size - 1))
  changed $((size / 2))
  for name in a b plain coarse mute; do stop $name; done
done

# Two differences: the first one counts, also if the other is met before.
printf X | dd of="$tmp/b" bs=1 seek=9000000 conv=notrunc status=none
serve a "$tmp/a" "$digest"
serve b "$tmp/b" "$digest"
pairs=("${uri[a]} ${uri[b]}" "$tmp/a ${uri[b]}" "${uri[a]} $tmp/b")
changed 2000123
stop b

# Sizes: a larger DEST is compared as far as SOURCE is long, also within a block; a smaller one is
# different at its end.
cp "$tmp/a" "$tmp/b"
printf 'more than there is in SOURCE' >>"$tmp/b"
serve b "$tmp/b" "$digest"
verified 0 "${uri[a]}" "${uri[b]}"
verified 5 "${uri[b]}" "${uri[a]}"
[ "$(field first-difference <"$tmp/out")" = "$size" ] || fail "a smaller DEST differs elsewhere"
changed $((size - 1))
changed $((size - 600))
stop a
stop b

# Nothing and next to nothing.
for size in 0 1; do
  random_disk "$tmp/small" $size
  serve small "$tmp/small" "$digest"
  verified 0 "$tmp/small" "${uri[small]}"
  verified 0 "${uri[small]}" "${uri[small]}"
  stop small
done

# Holes on both sides cost nothing: 1 TiB, of which 2 MiB are data.
truncate -s 1T "$tmp/large"
dd if="$tmp/a" of="$tmp/large" bs=1M count=1 conv=notrunc status=none
dd if="$tmp/a" of="$tmp/large" bs=1M count=1 seek=700000 conv=notrunc status=none
cp --sparse=always "$tmp/large" "$tmp/copy"
serve large "$tmp/large" "$digest"
serve copy "$tmp/copy" "$digest"
for a in "$tmp/large" "${uri[large]}"; do
  verified 0 "$a" "${uri[copy]}"
  [ "$(field compared-bytes <"$tmp/out")" -le 8388608 ] || fail "holes were compared"
done
stop large
stop copy
rm "$tmp/large" "$tmp/copy"

# `receive` serves digests always: while a mirror writes, and once it is sealed.
start_server src "$tmp/a"
start_receive dst "$tmp/received" --size "$(stat -c %s "$tmp/a")"
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}"
wait_state "${control[src]}" ready 30
verified 0 "$tmp/a" "${uri[dst]}"
[ "$(field dest-digests <"$tmp/out")" = true ] || fail "the destination's digests were not used"
[ "$(status_of "${control[src]}" session)" = 1 ] || fail "verify has ended the mirror's session"
complete_soon "${control[src]}"
wait_exit mirror 20
verified 0 "$tmp/a" "${uri[dst]}"
[ "$(field dest-digests <"$tmp/out")" = true ] || fail "no digests of a sealed disk"
stop src
stop dst

# A server with one place only is asked about digests on the connection that it has.
server_paths one
spawn one qemu-nbd -e 1 -t -k "${socket[one]}" -f raw "$tmp/a"
wait_for_socket "${socket[one]}" one
cp "$tmp/a" "$tmp/b"
serve b "$tmp/b" "$digest"
SECONDS=0
verified 0 "${uri[b]}" "${uri[one]}"          # which rounds the size up
within $SECONDS 7 "it waited for a connection that qemu-nbd does not take"
[ "$(field dest-digests <"$tmp/out")" = false ] || fail "qemu-nbd serves digests?"

# What a terminal-less user sees, and a disk that vanishes in the middle.
has_to_exit 0 nbdmirror verify "$tmp/a" "${uri[b]}"
grep -q "^equal: .* by the digests of DEST's server" "$tmp/out" || fail "it says: $(cat "$tmp/out")"
serve slow "$tmp/b" --filter=delay rdelay=2
spawn verify nbdmirror verify "$tmp/a" "${uri[slow]}"
sleep 1
stop slow KILL
wait_exit verify 20
[ "$status" = 1 ] || fail "exit status $status though the server was killed"
