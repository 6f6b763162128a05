#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that nothing is left out because of a base image that the destination may not have: both
# sides compute the digest of the whole base, whatever its format, and one byte that differs is
# refused before anything is written.  The digest is kept, and computed anew when the base may have
# changed.  For other servers --trust-base looks at a sample, and says so.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread
need qemu-img qemu-nbd

digest () { nbdmirror digest "$@" | cut -d ' ' -f 1; }
poke () { printf 'other' | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }

# ---- the digest of an image ----

size=$((24 * 1048576 + 1234))
random_disk "$tmp/base" $size
mkdir "$tmp/there"
qemu-img convert -q -f raw -O qcow2 -c "$tmp/base" "$tmp/there/base.qcow2"
sleep 2.1                       # what was changed just now is not kept
before=$(stat -c '%Y %Z %s %i' "$tmp/base" "$tmp/there/base.qcow2" | tr '\n' ' ')
want=$(digest "$tmp/base")
[[ $want =~ ^[0-9a-f]{32}$ ]] || fail "this is no digest: $want"
[ -s "$tmp/base.nbdmirror-digest" ] || fail "the digest was not kept"
[ "$(digest "$tmp/there/base.qcow2" --format qcow2)" = "$want" ] ||
  fail "another format has another digest"
cp "$tmp/base" "$tmp/longer"
truncate -s 40M "$tmp/longer"
[ "$(digest "$tmp/longer")" = "$want" ] || fail "zeroes at the end count"
[ ! -e "$tmp/longer.nbdmirror-digest" ] || fail "kept, though it was just changed"
# What is kept is believed, and only while the file is the same.
sed -i "s/ 1 $want/ 1 $(printf '0%.0s' {1..32})/" "$tmp/base.nbdmirror-digest"
[ "$(digest "$tmp/base")" != "$want" ] || fail "the digest that was kept is not used"
chmod o+w "$tmp/base.nbdmirror-digest"
[ "$(digest "$tmp/base")" = "$want" ] || fail "it believes what anybody could have written"
for change in 'poke base 5000000' 'truncate -s +1M base' 'cp --remove-destination longer base'; do
  cp --preserve "$tmp/base" "$tmp/saved"
  sleep 2.1
  digest "$tmp/base" >"$tmp/first"
  (cd "$tmp"; $change; touch -r saved base)     # with the time stamp of before
  case $change in
    poke*) [ "$(digest "$tmp/base")" != "$want" ] || fail "not computed again after: $change" ;;
    *) [ "$(digest "$tmp/base")" = "$want" ] || fail "another digest after: $change" ;;
  esac
  cp --preserve "$tmp/saved" "$tmp/base"
done
# A change further down a chain counts as well.
qemu-img create -q -f qcow2 -b "$tmp/longer" -F raw "$tmp/upper.qcow2"
sleep 2.1
[ "$(digest "$tmp/upper.qcow2" --format qcow2)" = "$want" ] || fail "the digest of an overlay"
poke "$tmp/longer" 1000
[ "$(digest "$tmp/upper.qcow2" --format qcow2)" != "$want" ] || fail "its base changed unnoticed"
has_to_exit 1 nbdmirror digest "$tmp/none"
has_to_exit 1 nbdmirror digest "$tmp/base" --format qcow2

# ---- receive tells that of its base ----

cp --preserve "$tmp/saved" "$tmp/base"
cp "$tmp/base" "$tmp/disk"
poke "$tmp/disk" 3000000
poke "$tmp/disk" $((size - 5))

# received NAME BASE FORMAT: a destination on that base.
received () {
  rm -f "$tmp/there/disk.qcow2"
  start_receive "$1" "$tmp/there/disk.qcow2" --format qcow2 --size "$size" \
    --backing "$2" --backing-format "$3"
}
received dst "$tmp/there/base.qcow2" qcow2
has_to_exit 0 nbdmirror copy "$tmp/disk" "${uri[dst]}" --sync base --base "$tmp/base" \
  --report "$tmp/report"
[ "$(field sent-bytes <"$tmp/report")" -le 16384 ] || fail "it has sent what the base holds"
equal "$tmp/disk" "${uri[dst]}"
stop dst
start_server src "$tmp/disk"
received dst "$tmp/there/base.qcow2" qcow2
has_to_exit 0 nbdmirror mirror "${control[src]}" "${uri[dst]}" --on-ready complete \
  --sync base --base "$tmp/there/base.qcow2" --base-format qcow2 --report "$tmp/report"
[ "$(field sent-bytes <"$tmp/report")" -le 65536 ] || fail "it has sent what the base holds"
equal "$tmp/disk" "${uri[dst]}"
stop dst
has_to_exit 0 nbdmirror rollback "${control[src]}" --destination-stopped \
  --token "$(field rollback-token <"$tmp/report")"
[ "$(stat -c '%Y %Z %s %i' "$tmp/there/base.qcow2")" = "$(cut -d ' ' -f 5-8 <<<"$before")" ] ||
  fail "the base was changed"

# The right base, but an overlay that an earlier job has written to: the guest has turned back since
# what that job sent, and nothing but the overlay tells.
received dst "$tmp/there/base.qcow2" qcow2
has_to_exit 0 nbdmirror copy "$tmp/disk" "${uri[dst]}" --sync base --base "$tmp/base"
for again in same-server resumed; do
  has_to_exit 7 nbdmirror copy "$tmp/base" "${uri[dst]}" --sync base --base "$tmp/base"
  grep -q -- '--sync compare' "$tmp/err" || fail "$again: wrong reason: $(cat "$tmp/err")"
  [ $again = resumed ] && break
  stop dst
  start_receive dst "$tmp/there/disk.qcow2" --format qcow2 --resume \
    --backing "$tmp/there/base.qcow2" --backing-format qcow2
done
has_to_exit 0 nbdmirror copy "$tmp/base" "${uri[dst]}" --sync compare
equal "$tmp/base" "${uri[dst]}"
stop dst

# One byte that differs in the destination's base.
cp "$tmp/base" "$tmp/there/wrong"
poke "$tmp/there/wrong" 20000000
received dst "$tmp/there/wrong" raw
for what in "copy $tmp/disk" "mirror ${control[src]}"; do
  # shellcheck disable=SC2086
  has_to_exit 7 nbdmirror $what "${uri[dst]}" --sync base --base "$tmp/base"
  grep -q "$want.*$(digest "$tmp/there/wrong")" "$tmp/err" ||
    fail "it does not tell both digests: $(cat "$tmp/err")"
  # --trust-base is for servers that do not tell.
  # shellcheck disable=SC2086
  has_to_exit 7 nbdmirror $what "${uri[dst]}" --sync base --base "$tmp/base" --trust-base
done
compare "$tmp/there/wrong" "${uri[dst]}" || fail "something was written in spite of the refusal"
stop dst

# ---- other servers ----

# A file that is made for the copy holds no base.  No sample finds that of a base that is nearly
# empty.
truncate -s 1G "$tmp/sparse-base"
poke "$tmp/sparse-base" 12345678
cp --sparse=always "$tmp/sparse-base" "$tmp/sparse"
for there in 'does not exist' 'is empty'; do
  for what in "copy $tmp/sparse" "mirror ${control[src]}"; do
    # shellcheck disable=SC2086
    has_to_exit 7 nbdmirror $what "$tmp/new.img" --sync base --base "$tmp/sparse-base" --trust-base
    grep -q "$there" "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
  done
  [ "$there" = 'is empty' ] || [ ! -e "$tmp/new.img" ] || fail "a refused file was left over"
  : >"$tmp/new.img"
done
[ ! -s "$tmp/new.img" ] || fail "something was written in spite of the refusal"
rm "$tmp/new.img"

# The sample looks where either side holds data: a few blocks in a thin disk are found.
for wrong in 'lacks it' 'has more'; do
  truncate -s 0 "$tmp/thin.img"
  truncate -s 1G "$tmp/thin.img"
  poke "$tmp/thin.img" 700000000
  [ "$wrong" = 'lacks it' ] || poke "$tmp/thin.img" 12345678
  for dest in "$tmp/thin.img" server; do
    if [ "$dest" = server ]; then
      start_dest thin file 1G
      dest=${uri[thin]}
    fi
    has_to_exit 7 nbdmirror copy "$tmp/sparse" "$dest" --sync base --base "$tmp/sparse-base" \
      --trust-base
    grep -q 'differs from .* in the block' "$tmp/err" || fail "$wrong: $(cat "$tmp/err")"
  done
  stop thin
done
rm "$tmp/thin.img"

# A copy of the base, not an overlay on it: its server's digests tell, up to a size that is no
# multiple of theirs.  Then one byte differs, the first or the last.
for byte in none 0 $((size - 5)); do
  cp "$tmp/base" "$tmp/there/copy.img"
  [ $byte = none ] || poke "$tmp/there/copy.img" $byte
  cp "$tmp/there/copy.img" "$tmp/saved.img"
  start_receive copy "$tmp/there/copy.img" --resume
  if [ $byte = none ]; then
    has_to_exit 0 nbdmirror copy "$tmp/disk" "${uri[copy]}" --sync base --base "$tmp/base" \
      --report "$tmp/report"
    [ "$(field sent-bytes <"$tmp/report")" -le 16384 ] || fail "it has sent what the copy holds"
    equal "$tmp/disk" "${uri[copy]}"
  else
    has_to_exit 7 nbdmirror copy "$tmp/disk" "${uri[copy]}" --sync base --base "$tmp/base"
    grep -q "does not hold the base.*$(digest "$tmp/base").*$(digest "$tmp/saved.img")" \
      "$tmp/err" || fail "it does not tell both digests: $(cat "$tmp/err")"
    cmp "$tmp/there/copy.img" "$tmp/saved.img" || fail "written to in spite of the refusal"
  fi
  stop copy
done

cp "$tmp/base" "$tmp/plain.img"
start_dest plain file "$size"
has_to_exit 7 nbdmirror copy "$tmp/disk" "${uri[plain]}" --sync base --base "$tmp/base"
grep -q -- '--trust-base' "$tmp/err" || fail "it does not name the way out"
compare "$tmp/base" "${uri[plain]}" || fail "something was written in spite of the refusal"
has_to_exit 0 nbdmirror copy "$tmp/disk" "${uri[plain]}" --sync base --base "$tmp/base" --trust-base
grep -q 'sample and no proof' "$tmp/err" || fail "it does not say that this is a sample"
equal "$tmp/disk" "${uri[plain]}"
# A job is left over that had to send everything: what it has not sent yet is no base.
stop plain
random_disk "$tmp/plain.img" $((size + 1))
truncate -s $size "$tmp/plain.img"
start_dest plain file "$size"
spawn left "${nbdmirror_prefix[@]}" "$NBDMIRROR" mirror "${control[src]}" "${uri[plain]}" \
  --bandwidth 1M
wait_state "${control[src]}" copying 10
stop left KILL
wait_state "${control[src]}" detached 10
for start in resume restart; do
  has_to_exit 7 nbdmirror mirror "${control[src]}" "${uri[plain]}" --$start --sync base \
    --base "$tmp/base" --trust-base --on-ready complete
  grep -q 'left over' "$tmp/err" || fail "--$start: wrong reason: $(cat "$tmp/err")"
done
has_to_exit 0 nbdmirror mirror "${control[src]}" "${uri[plain]}" --resume --sync compare \
  --on-ready complete --report "$tmp/report"
equal "$tmp/disk" "${uri[plain]}"
stop plain
random_disk "$tmp/plain.img" $((size + 1))      # other data
truncate -s $size "$tmp/plain.img"
start_dest plain file "$size"
has_to_exit 7 nbdmirror copy "$tmp/disk" "${uri[plain]}" --sync base --base "$tmp/base" --trust-base
grep -q 'does not hold the base image' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
