#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest that changes its mind.

usage: return-guest.py URI BASE FROM TO SECONDS

Between the bytes FROM and TO it writes a block, and soon after writes back what the file BASE has
there, again and again, so that the disk holds the base most of the time.  At the end, or when a
write is refused because the disk was handed over, some blocks are left changed.  BASE is changed to
what this guest's part of the disk holds then.
"""
import random
import sys
import time

import nbd

uri, base, first, end, seconds = sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])
first, end = int(first), int(end)
h = nbd.NBD()
h.connect_uri(uri)
with open(base, "r+b") as f:
    f.seek(first)
    old = f.read(end - first)
    now = bytearray(old)
    rng = random.Random(7)
    until = time.monotonic() + seconds
    changed = []
    try:
        while time.monotonic() < until:
            if len(changed) < 40 and rng.randrange(2):
                at = rng.randrange((end - first) // 4096) * 4096
                data = rng.randbytes(4096)
                changed.append(at)
            elif changed:
                at = changed.pop(rng.randrange(len(changed)))
                data = old[at:at + 4096]
            else:
                continue
            h.pwrite(data, first + at)
            now[at:at + 4096] = data
            time.sleep(0.002)
    except nbd.Error as e:
        if e.errno != "EPERM":
            raise
    f.seek(first)
    f.write(now)
