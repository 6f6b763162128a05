# SPDX-License-Identifier: LGPL-2.1-or-later
"""A QMP client: QEMU's monitor and nbdmirror's control socket speak the same."""

import json
import select
import socket
import time


class QMPError(Exception):
    """An error reply, or none in time."""


class QMP:
    """One connection.  Events that come meanwhile are kept, in order, until somebody waits for
    them."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(path)
        self.data = b""
        self.events = []
        self.last_id = 0
        self._message(10)
        self.command("qmp_capabilities")

    def close(self):
        self.sock.close()

    def _message(self, timeout):
        """The next message; None when there is none in time."""
        end = time.monotonic() + timeout
        while b"\n" not in self.data:
            if not select.select([self.sock], [], [], max(0, end - time.monotonic()))[0]:
                return None
            more = self.sock.recv(65536)
            if not more:
                raise QMPError("the connection was closed")
            self.data += more
        line, self.data = self.data.split(b"\n", 1)
        return json.loads(line)

    def command(self, name, arguments=None, fd=None, timeout=30):
        """Its return value."""
        self.last_id += 1
        line = json.dumps({"execute": name, "arguments": arguments or {}, "id": self.last_id})
        line = line.encode() + b"\n"
        if fd is None:
            self.sock.sendall(line)
        else:
            socket.send_fds(self.sock, [line], [fd])
        end = time.monotonic() + timeout
        while True:
            m = self._message(max(0, end - time.monotonic()))
            if m is None:
                raise QMPError(f"{name}: no answer within {timeout} s")
            if "event" in m:
                self.events.append(m)
            elif m.get("id") != self.last_id:
                continue  # of a command that was given up
            elif "error" in m:
                raise QMPError(f"{name}: {m['error']['class']}: {m['error']['desc']}")
            else:
                return m["return"]

    def event(self, names, timeout):
        """The next event of one of these NAMES, with those before it dropped; None when none
        comes."""
        end = time.monotonic() + timeout
        while True:
            while self.events:
                e = self.events.pop(0)
                if e["event"] in names:
                    return e
            m = self._message(max(0, end - time.monotonic()))
            if m is None:
                return None
            if "event" in m:
                self.events.append(m)


def seconds(event):
    """When it happened, in seconds since the epoch."""
    stamp = event["timestamp"]
    return stamp["seconds"] + stamp["microseconds"] / 1e6
