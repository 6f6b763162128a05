#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The way that virtnbdbackup reads and writes, for `bench/run backup`.

  pull.py read URI BITMAP FILE       what the dirty bitmap names (`-`: what is allocated)
  pull.py write DISK SIZE FILE...    what these files hold, one after the other, into a new disk

A file is a list of: offset and length, 8 bytes each, and the data. """

import os
import struct
import sys

import nbd

PIECE = 1 << 20
ASK = 1 << 30


def extents(h, context, at):
    """[(length, flags)] from AT on."""
    found = []

    def take(name, _offset, entries, _error):
        if name == context:
            found.extend(zip(entries[::2], entries[1::2]))

    h.block_status(min(ASK, h.get_size() - at), at, take)
    return found


def read(uri, bitmap, path):
    context = "base:allocation" if bitmap == "-" else "qemu:dirty-bitmap:" + bitmap
    h = nbd.NBD()
    h.add_meta_context(context)
    h.connect_uri(uri)
    with open(path, "wb") as f:
        at = 0
        while at < h.get_size():
            for length, flags in extents(h, context, at):
                wanted = not flags & nbd.STATE_ZERO if bitmap == "-" else flags & 1
                for offset in range(at, at + length, PIECE) if wanted else ():
                    data = h.pread(min(PIECE, at + length - offset), offset)
                    f.write(struct.pack("<QQ", offset, len(data)))
                    f.write(data)
                at += length
        f.flush()
        os.fsync(f.fileno())


def write(path, size, files):
    with open(path, "wb") as out:
        out.truncate(size)
        for name in files:
            with open(name, "rb") as f:
                while head := f.read(16):
                    offset, length = struct.unpack("<QQ", head)
                    out.seek(offset)
                    out.write(f.read(length))
        out.flush()
        os.fsync(out.fileno())


if sys.argv[1] == "read":
    read(*sys.argv[2:])
else:
    write(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
