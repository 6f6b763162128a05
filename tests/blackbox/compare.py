#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""compare.py A B: exit 0 if B (a path or NBD URI) begins with exactly what A holds, else 1.

The tests' own eyes: it shares no code with nbdmirror, and believes no block status.
One request at a time, so that it is safe with every nbdkit.
"""
import sys
import nbd

CHUNK = 4 << 20


class File:
    def __init__(self, path):
        self.f = open(path, "rb")
        self.size = self.f.seek(0, 2)
        self.max = CHUNK

    def read(self, length, offset):
        self.f.seek(offset)
        return self.f.read(length)


class Export:
    def __init__(self, uri):
        self.h = nbd.NBD()
        self.h.connect_uri(uri)
        self.size = self.h.get_size()
        self.block = self.h.get_block_size(nbd.SIZE_MINIMUM) or 1
        self.max = self.h.get_block_size(nbd.SIZE_MAXIMUM) or CHUNK

    def read(self, length, offset):
        # A size that is no multiple of the server's minimum block cannot be read to its end.
        padded = min(-(-length // self.block) * self.block, self.size - offset)
        return bytes(self.h.pread(padded, offset))[:length]


def open_side(name):
    return Export(name) if name.startswith("nbd") and ":" in name else File(name)


def main():
    a, b = (open_side(name) for name in sys.argv[1:3])
    if b.size < a.size:
        print(f"{sys.argv[2]} has {b.size} bytes, less than {a.size}", file=sys.stderr)
        return 1
    chunk = min(CHUNK, a.max, b.max)
    for offset in range(0, a.size, chunk):
        length = min(chunk, a.size - offset)
        x, y = a.read(length, offset), b.read(length, offset)
        if x != y or len(x) != length:
            at = next((i for i, (p, q) in enumerate(zip(x, y)) if p != q), min(len(x), len(y)))
            print(f"first difference at offset {offset + at}", file=sys.stderr)
            return 1
    return 0


sys.exit(main())
