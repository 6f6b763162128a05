#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client of the digest filter, with its own code for all that it expects (digest-filter.sh).

  check SOCKET FILE [--export NAME] [--no-holes]   the digests of FILE, asked for in several ways
  refuse SOCKET --export NAME                      no digests of that export
  large SOCKET MEBIBYTE                            a large disk that begins with MEBIBYTE
  bounds SOCKET                                    names and requests that must be refused
  writer SOCKET FILE                               digests while the disk is written to
"""
import argparse
import ctypes
import errno
import os
import random
import signal
import time

import nbd

BLOCKS = [4096, 65536, 1 << 20]
MAX_REQUEST = 64 << 20  # of the disk, bytes


class Hash128(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]


xxhash = ctypes.CDLL("libxxhash.so.0")
xxhash.XXH3_128bits_withSeed.restype = Hash128
xxhash.XXH3_128bits_withSeed.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64]


def digest(data, seed):
    if not any(data):
        return bytes(16)
    h = xxhash.XXH3_128bits_withSeed(data, len(data), seed)
    return h.high.to_bytes(8, "big") + h.low.to_bytes(8, "big")


def digests(data, block, seed):
    return b"".join(digest(data[i:i + block], seed) for i in range(0, len(data), block))


def connect(socket, name):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_export_name(name)
    h.set_full_info(True)
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_unix(socket)
    return h


def name_of(block, seed, export=""):
    return "digest@%016x.%d%s" % (seed, block, "/" + export if export else "")


def status(h, offset, length, flags=0):
    """What is said about it: pairs of a length and the flags."""
    answer = []

    def extents(context, at, entries, err):
        answer.extend((entries[i], entries[i + 1]) for i in range(0, len(entries), 2))

    h.block_status(length, offset, extents, flags)
    assert answer, "no extents"
    return answer


def whole_status(h):
    at, told = 0, []
    while at < h.get_size():
        answer = status(h, at, min(h.get_size() - at, (2 << 30) - 65536))
        told += answer
        at += sum(length for length, _ in answer)
    return told


def check(args):
    data = open(args.file, "rb").read()
    rng = random.Random(len(data))
    for block in BLOCKS:
        seed = rng.getrandbits(64)
        want = digests(data, block, seed)
        h = connect(args.socket, name_of(block, seed, args.export))
        assert h.get_size() == len(want), (h.get_size(), len(want))
        assert h.is_read_only()
        assert h.get_export_description() == \
            "nbdmirror-digest 1 xxh3-128 size=%d block=%d" % (len(data), block)
        if want:
            most = MAX_REQUEST // block * 16
            got = b"".join(h.pread(min(most, len(want) - i), i) for i in range(0, len(want), most))
            assert got == want, "whole"
        for _ in range(min(200, len(want))):
            at = rng.randrange(len(want))
            n = min(rng.randint(1, 100), len(want) - at)
            assert h.pread(n, at) == want[at:at + n], (at, n)
        at = 0
        holes = 0
        for length, flags in whole_status(h):
            part = want[at:at + length]
            if flags & nbd.STATE_ZERO:
                assert not any(part), "status says zero at %d" % at
                holes += len(part)
            at += length
        # random_disk() leaves every other mebibyte out.
        expected = sum(16 for i in range(0, len(data), block) if not any(data[i:i + block]))
        assert holes == (0 if args.no_holes else expected), (holes, expected)
        h.shutdown()


def refuse(args):
    try:
        connect(args.socket, name_of(4096, 1, args.export))
    except nbd.Error:
        return
    raise AssertionError("it was served")


def large(args):
    data = open(args.file, "rb").read()
    h = connect(args.socket, name_of(4096, 7))
    want = digests(data, 4096, 7)
    assert h.pread(len(want), 0) == want
    start = time.monotonic()
    told = whole_status(h)
    assert sum(length for length, _ in told) == h.get_size()
    zero = sum(length for length, flags in told if flags & nbd.STATE_ZERO)
    assert h.get_size() - zero <= len(want), "only the first mebibyte is data"
    assert time.monotonic() - start < 20, "block status of an empty disk takes long"
    # The very end, where offsets are largest.
    assert h.pread(4096, h.get_size() - 4096) == bytes(4096)
    # The longest question that NBD has, and about one extent only.
    length = min(h.get_size() - len(want), (2 << 30) - 65536)
    answer = status(h, len(want), length, nbd.CMD_FLAG_REQ_ONE)
    assert len(answer) == 1 and answer[0][1] & nbd.STATE_ZERO
    h.shutdown()


def fails(errnum, f, *arguments):
    try:
        f(*arguments)
    except nbd.Error as e:
        assert e.errnum == errnum, e
        return
    raise AssertionError("not refused: %s%s" % (f.__name__, arguments))


def bounds(args):
    for name in ["digest@", "digest@0", "digest@0123456789abcdef.512", "digest@0123456789abcdef.0",
                 "digest@0123456789abcdef.2097152", "digest@0123456789abcdef.4097",
                 "digest@0123456789ABCDEF.4096", "digest@0123456789abcdef.4096x",
                 "digest@0123456789abcdef.99999999999999999999",
                 "digest@%s.4096" % ("0" * 4000), "digest@%s" % ("%n" * 100),
                 "digest@0123456789abcdef.4096/digest@0123456789abcdef.4096"]:
        try:
            connect(args.socket, name)
        except nbd.Error:
            continue
        raise AssertionError("%s is served" % name)
    for block in BLOCKS:
        h = connect(args.socket, name_of(block, 3))
        most = MAX_REQUEST // block * 16
        assert h.get_block_size(nbd.SIZE_MAXIMUM) == most
        assert most < h.get_size()
        h.pread(most, 0)
        for _ in range(100):
            fails(errno.EINVAL, h.pread, most + 1, 0)
        # Nothing can be changed there.
        fails(errno.EPERM, h.pwrite, bytes(16), 0)
        fails(errno.EPERM, h.zero, 16, 0)
        fails(errno.EPERM, h.trim, 16, 0)
        fails(errno.EINVAL, h.pread, 16, h.get_size())
        h.shutdown()


def writer(args):
    """Each block has one of a few contents; so each digest must be that of one of them."""
    block = 4096
    size = 4 << 20
    contents = [bytes([n]) * block for n in range(4)]
    known = {digest(c, 9): c for c in contents}
    disk = connect(args.socket, "")
    assert not disk.is_read_only()
    assert disk.get_size() == os.stat(args.file).st_size
    for at in range(0, size, block):
        disk.pwrite(contents[1], at)
    child = os.fork()
    if child == 0:
        rng = random.Random(5)
        own = connect(args.socket, "")
        ended = []
        signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
        while not ended:
            own.pwrite(contents[rng.randrange(4)], rng.randrange(size // block) * block)
        own.shutdown()  # not with a write on its way, which would be late
        os._exit(0)
    h = connect(args.socket, name_of(block, 9))
    torn = 0
    for _ in range(50):
        got = bytes(h.pread(size // block * 16, 0))
        torn += sum(got[i:i + 16] not in known for i in range(0, len(got), 16))
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == 0
    # A read beside a write may find a part of each.
    assert torn < 50, torn
    got = bytes(h.pread(size // block * 16, 0))
    for i in range(size // block):
        assert known[got[i * 16:i * 16 + 16]] == disk.pread(block, i * block), i
    h.shutdown()
    disk.shutdown()


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("command", choices=["check", "refuse", "large", "bounds", "writer"])
parser.add_argument("socket")
parser.add_argument("file", nargs="?")
parser.add_argument("--export", default="")
parser.add_argument("--no-holes", action="store_true")
arguments = parser.parse_args()
{"check": check, "refuse": refuse, "large": large, "bounds": bounds, "writer": writer}[
    arguments.command](arguments)
