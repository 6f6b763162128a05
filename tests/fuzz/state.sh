#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a state file of any bytes is read or refused: the inputs that are kept are replayed,
# and then libFuzzer looks for others for FUZZ_SECONDS (10), if clang is there.
set -eu
export LC_ALL=C
srcdir=$(cd "$(dirname "$0")/../.." && pwd)
builddir=${builddir:-.}
builddir=$(cd "$builddir" && pwd)
corpus=$srcdir/tests/fuzz/state-corpus
rounds=15
[ "${SHORT:-0}" = 0 ] || rounds=1 # with sanitizers
"$builddir/tests/fuzz/state-replay" -n $rounds "$corpus"/*

[ "${SHORT:-0}" = 0 ] || exit 0
tmp=$(mktemp -d /tmp/nbdmirror-fuzz.XXXXXX)
trap 'rm -rf "$tmp"' EXIT
echo 'int LLVMFuzzerTestOneInput (const char *p, unsigned long n) { return !p && n; }' >"$tmp/try.c"
if ! clang -fsanitize=fuzzer,address "$tmp/try.c" -o "$tmp/try" 2>"$tmp/log"; then
  echo "no clang with libFuzzer: only the replay was run"
  exit 0
fi
libs=$(sed -n 's/^JANSSON_LIBS *= *//p' "$builddir/Makefile")
# shellcheck disable=SC2086
clang -O1 -g -std=gnu11 -w -D_GNU_SOURCE -I"$builddir" -I"$srcdir" \
  -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -o "$tmp/fuzz" \
  "$srcdir"/tests/fuzz/state.c "$srcdir"/tests/fuzz/state-file.c \
  "$srcdir"/cmd/{state,options,help,units}.c "$srcdir"/dirty-bitmap/*.c \
  "$srcdir"/dirty-bitmap/state/*.c "$srcdir"/base/*.c $libs -lpthread
mkdir "$tmp/new"
cp "$corpus"/* "$tmp/new"
"$tmp/fuzz" -max_total_time="${FUZZ_SECONDS:-10}" -timeout=10 -rss_limit_mb=600 \
  -malloc_limit_mb=100 -max_len=4096 -close_fd_mask=0 -artifact_prefix="${FUZZ_KEEP:-$tmp}/" \
  -print_final_stats=1 "$tmp/new" >"$tmp/log" 2>&1 || {
  cat "$tmp/log"
  for input in "${FUZZ_KEEP:-$tmp}"/{crash,timeout,oom,leak,slow-unit}-*; do
    [ ! -e "$input" ] || { echo "the input, in base64:"; base64 "$input"; }
  done
  exit 1
}
grep -E 'DONE|number_of_executed_units|peak_rss' "$tmp/log"
if [ -n "${FUZZ_CORPUS:-}" ]; then # the smallest set of inputs that reaches as much
  "$tmp/fuzz" -merge=1 "$FUZZ_CORPUS" "$tmp/new" >"$tmp/log" 2>&1
fi
