#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Check the protocol model: run.sh [-DNAME=VALUE...]   (Debian packages: spin, gcc; minutes, up to 9 GiB)
# Without arguments: the rules with a quarantine that is read back as the worker does it, late requests ending
# before that read-back. Macros that drop a rule stand at the head of mirror.pml, e.g. -DMARK=0 (mark
# before only), -DONESET, -DRELREPLY -DFINALFLUSH, -DTWOCOPIES, -DR12=0 (no quarantine),
# -DORDER=4 (no in-flight check), -DNFF=1 -DFFPOL=0 (flush again after a failed one): each finds a
# counterexample. So does -DR12=2 -DLB=0 -DRBINLINE: no client is safe from a server without any bound.
set -e
dir=$(cd "$(dirname "$0")" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
flags="-DW=2 ${*:--DGATEINC -DCNT -DRECOUNT -DR12=2 -DLB=2 -DRBINLINE}"
# shellcheck disable=SC2086
spin -a $flags "$dir/mirror.pml" >spin.out || { cat spin.out; exit 1; }
gcc -O2 -DVECTORSZ=2048 -DMEMLIM=9000 -DCOLLAPSE -DSAFETY -o pan pan.c 2>/dev/null
./pan -m2000000 -w26 >pan.out
grep -E 'states, stored|^pan:1|errors:' pan.out
grep -q 'errors: 0' pan.out
