#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""pulse.py URI FILE: write one sector a hundred times a second, and a line to FILE for each reply:
the time.

Ends at SIGTERM, or with status 0 when a write is refused with EPERM (handed over), 1 at any other
error.

pulse.py --after FILE T: print how many seconds after T the first reply came, and how many before T
the last one, or fail.
"""
import errno
import random
import sys
import time

import nbd


def after(path, t):
    times = [float(line) for line in open(path) if line[0] != "#" and line.endswith("\n")]
    later = [x for x in times if x > t]
    print("%.3f %.3f" % (later[0] - t, t - max(x for x in times if x <= t)))


def pulse(uri, path):
    h = nbd.NBD()
    h.connect_uri(uri)
    with open(path, "a", buffering=1) as f:
        while True:
            try:
                h.pwrite(random.randbytes(512), 512)
            except nbd.Error as e:
                f.write("# %s\n" % e)
                sys.exit(0 if e.errnum == errno.EPERM else 1)
            f.write("%f\n" % time.time())
            time.sleep(0.01)


if sys.argv[1] == "--after":
    after(sys.argv[2], float(sys.argv[3]))
else:
    pulse(*sys.argv[1:])
