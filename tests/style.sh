#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that the tree looks as HACKING.md says: .clang-format, and what style.py looks for.
#
# usage: style.sh [PATH...]     only what is below these paths, from the top of the tree
#
# Releases of clang-format differ in details, so the one of Debian 12 decides.  Where it is missing,
# everything else is looked at and the test is skipped (77).
set -u
export LC_ALL=C.UTF-8
cd "$(dirname "$0")/.." || exit 1

/usr/bin/python3 tests/style.py . "$@" || exit 1

for program in clang-format-14 clang-format; do
  case $($program --version 2>/dev/null) in
    *"version 14."*) break ;;
  esac
  program=
done
[ -n "$program" ] || { echo "skipped: clang-format 14 is not installed"; exit 77; }

# shellcheck disable=SC2012,SC2046
[ $# -gt 0 ] || set -- $(ls -- */local.mk | sed 's,/.*,,')
find "$@" -name '*.[ch]' -print0 | xargs -0 "$program" --dry-run -Werror
