#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that the models hold within small bounds, and that they can fail: of each rule that is
# dropped a counterexample is found.  docs/model/run.sh checks them within larger bounds.
[ "${SHORT:-0}" = 0 ] || exit 77 # nothing of ours is compiled
for program in spin gcc; do
  command -v $program >/dev/null || { echo "$program is not installed"; exit 77; }
done
exec "$(dirname "$0")/../docs/model/run.sh" short
