#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that the model of the state file holds within small bounds, and that it can fail: of each
# rule that is dropped a counterexample is found.  docs/model/run.sh checks all models.
[ "${SHORT:-0}" = 0 ] || exit 77 # nothing of ours is compiled
for program in spin gcc; do
  command -v $program >/dev/null || { echo "$program is not installed"; exit 77; }
done
exec "$(dirname "$0")/../docs/model/run.sh" short
