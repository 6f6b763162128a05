#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a disk is mirrored whose path is not UTF-8, though JSON cannot tell the worker of it;
# and that an export with such a name, which NBD does not have, is refused.
. "$(dirname "$0")/lib.sh"

disk=$tmp/$'caf\xe9'
random_disk "$disk" 8M
start_nbdkit src file "$disk" "mirror-direct=$disk"
start_dest dst file 8M
[ "$(status_of "${control[src]}" direct)" = null ] || fail "the path is told"
has_to_exit 0 nbdmirror mirror "${control[src]}" "${uri[dst]}" --on-ready complete
equal "$disk" "${uri[dst]}"

has_to_exit 1 "${nbdmirror_prefix[@]}" "${server_env[@]}" nbdkit -f \
  --filter="$NBDMIRROR_FILTER" memory 1M "mirror-control=$tmp/c" mirror-export=$'caf\xe9'
grep -q 'mirror-export: the name of an export must be UTF-8' "$tmp/out" "$tmp/err" 2>/dev/null ||
  fail "the reason is not told"
