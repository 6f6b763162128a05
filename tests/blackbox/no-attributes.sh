#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that nothing is believed that cannot be kept, where the disks' file systems have no
# extended attributes.  A destination stands nowhere then, an old disk does not either, and both are
# told of: --sync incremental is refused, and --sync auto copies everything.  The tracker does
# without its mark: after a kill it is exact, and what another program has written after a clean end
# is noticed.
. "$(dirname "$0")/lib.sh"
. "$srcdir/tests/blackbox/return-lib.sh"
[ "$(make_var SANITIZERS)" = no ] || skip "a sanitizer is preloaded already"
[ "${VALGRIND:-0}" = 0 ] || skip "not under valgrind"
cc=$(make_var CC)
need "${cc%% *}"

cat >"$tmp/no-attributes.c" <<'EOC'
#include <errno.h>
#include <sys/types.h>

ssize_t
fgetxattr (int fd, const char *name, void *value, size_t size)
{
  errno = ENOTSUP;
  return -1;
}

int
fsetxattr (int fd, const char *name, const void *value, size_t size, int flags)
{
  errno = ENOTSUP;
  return -1;
}

int
fremovexattr (int fd, const char *name)
{
  errno = ENOTSUP;
  return -1;
}
EOC
$cc -shared -fPIC -w -o "$tmp/no-attributes.so" "$tmp/no-attributes.c" ||
  fail "the shim does not build"
server_env=(env "LD_PRELOAD=$tmp/no-attributes.so")

size=8M
at_a=$tmp/a.img at_b=$tmp/b.img
random_disk "$at_a" $size
# refused FROM TO SINCE FILE: an incremental, and nothing was written to FILE.
refused () {
  cp "$4" "$tmp/before"
  has_to_exit 7 nbdmirror mirror "${control[$1]}" "${uri[$2]}" --sync incremental --since "$3"
  grep -q "it stands at none" "$tmp/err" || fail "refused for another reason: $(cat "$tmp/err")"
  cmp "$tmp/before" "$4" || fail "a refused destination was written to"
}
all_of_it () { grep -q "full: the destination stands at no checkpoint" "$tmp/moves.log"; }
# recovered HOW: so it was, and what a guest has written since the checkpoint is in the map.
recovered () {
  [ "$(status_of "${control[a]}" state-recovery)" = "$1" ] || fail "it was not recovered as '$1'"
  nbdmirror dirty-map "${control[a]}" --since one --json | "$python" -c '
import json, sys
at = 5 << 20
sys.exit(not any(r["type"] and r["offset"] <= at < r["offset"] + r["length"]
                 for r in json.load(sys.stdin)))' || fail "$1: what was written is not in the map"
}

# The tracker.
start_stateful a "$at_a" "$tmp/a.state"
nbdmirror checkpoint add "${control[a]}" one
"$python" -c 'import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(os.urandom(4096), 5 << 20)' "${uri[a]}"
receive b "$at_b" --size $size
spawn mirror nbdmirror mirror "${control[a]}" "${uri[b]}"
wait_for 20 grep -q "^ready" "$tmp/mirror.log"
stop mirror
stop a KILL
start_stateful a "$at_a" "$tmp/a.state"
recovered exact
stop a
start_stateful a "$at_a" "$tmp/a.state"
recovered clean
stop a
printf x | dd of="$at_a" bs=1 seek=7000000 conv=notrunc status=none
start_stateful a "$at_a" "$tmp/a.state"
has_to_exit 7 nbdmirror dirty-map "${control[a]}" --since one
grep -q "changed" "$tmp/err" || fail "refused for another reason: $(cat "$tmp/err")"

# A destination.
nbdmirror cancel "${control[a]}" 2>/dev/null || :
nbdmirror checkpoint add "${control[a]}" two
spawn again nbdmirror mirror "${control[a]}" "${uri[b]}" --restart
wait_for 20 grep -q "^ready" "$tmp/again.log"
nbdmirror cancel "${control[a]}"
wait_exit again 10
grep -q "cannot keep that it stands at checkpoint 'two'" "$tmp/again.log" ||
  fail "nobody says that the destination stands nowhere: $(cat "$tmp/again.log")"
compare "$at_a" "$at_b" || fail "the disks differ"
refused a b two "$at_b"

# There and back.
moves a b --sync auto
all_of_it || fail "there: no reason is told: $(cat "$tmp/moves.log")"
wait_for 20 has_checkpoint b
wait_for 20 grep -q "its file system has no extended attributes" "$tmp/a.log"
write_blocks "${guest_uri[b]}" 1 8
stop a
receive a "$at_a" --resume
refused b a received "$at_a"
moves b a --sync auto
all_of_it || fail "back: no reason is told: $(cat "$tmp/moves.log")"
compare "$at_b" "$at_a" || fail "the disks differ after the way back"
