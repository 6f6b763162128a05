#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that smoke.sh passes with nbdmirror and its server under valgrind, which finds no error.
VALGRIND=1
. "$(dirname "$0")/smoke.sh"
