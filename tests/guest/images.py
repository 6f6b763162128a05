# SPDX-License-Identifier: LGPL-2.1-or-later
"""Overlays, and the bases that they lie on."""

import hashlib
import os

from scene import check


class Base:
    """An image that must stay as it is."""

    def __init__(self, path):
        self.path, self.before = path, self.look(path)

    @staticmethod
    def look(path):
        with open(path, "rb") as f:
            return hashlib.sha256(f.read()).hexdigest(), os.stat(path).st_mtime_ns

    def check(self):
        check(self.look(self.path) == self.before, f"{self.path} has changed")


def whole(s, overlay, name):
    """The overlay's own structures, and the path of its contents."""
    s.run(["qemu-img", "check", "-q", "-f", "qcow2", overlay])
    raw = s.path(name)
    s.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", overlay, raw])
    return raw
