# SPDX-License-Identifier: LGPL-2.1-or-later
"""Something between `nbdmirror migrate` and a QEMU's monitor that lets a test act at an exact
instant.

    proxy = QmpProxy(vm)
    proxy.before["migrate-continue"] = function      # called once; the command waits for it
    proxy.after["migrate-continue"] = function       # called once; the answer waits
    proxy.event["pre-switchover"] = function       # a MIGRATION event's status, or an event's name
    ... proxy.path is the socket to be given to the program under test

When the QEMU is gone the proxy is as well: nobody listens at its path. So it may be called like
one: of a listener with another name the program under test does not believe that its end is QEMU's.
"""

import json
import os
import select
import socket
import threading
import time


class QmpProxy:
    def __init__(self, vm, like_qemu=True):
        self.vm = vm
        self.path = vm.path("qmp3")
        self.before, self.after, self.event = {}, {}, {}
        self.seen = []   # commands, in their order
        self.errors = []
        self.deaf_until = 0  # time.monotonic(): until then nobody is answered
        with open("/proc/self/comm", "w") as name:
            name.write("qemu-proxy" if like_qemu else "proxy")
        self.listener = socket.socket(socket.AF_UNIX)
        if os.path.exists(self.path):
            os.unlink(self.path)
        self.listener.bind(self.path)
        self.listener.listen(4)
        self.stop_read, self.stop_write = os.pipe()
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def accept(self):
        """One client at a time, which is what QEMU does as well."""
        while self.listener.fileno() != -1:
            ready, _, _ = select.select([self.listener, self.stop_read], [], [], 0.1)
            if self.stop_read in ready or self.vm.process.poll() is not None:
                break
            if not ready:
                continue
            client = self.listener.accept()[0]
            time.sleep(max(0, self.deaf_until - time.monotonic()))
            upstream = socket.socket(socket.AF_UNIX)
            try:
                upstream.connect(self.vm.qmp_path)
                self.relay(client, upstream)
            except OSError:
                pass
            finally:
                if self.vm.process.poll() is not None:
                    self.gone()
                client.close()
                upstream.close()
        self.gone()

    def gone(self):
        """Before the client sees the end of its connection: it may look whether somebody
        listens."""
        self.listener.close()
        if os.path.exists(self.path):
            os.unlink(self.path)

    def relay(self, client, upstream):
        buffers = {client: b"", upstream: b""}
        running = {}  # id of a command: its name
        while True:
            ready, _, _ = select.select([client, upstream, self.stop_read], [], [])
            if self.stop_read in ready:
                return
            for end in ready:
                data = end.recv(65536)
                if not data:
                    return
                *lines, buffers[end] = (buffers[end] + data).split(b"\n")
                for line in lines:
                    if end is client:
                        self.command(json.loads(line), running)
                        upstream.sendall(line + b"\n")
                    else:
                        self.answer(json.loads(line), running)
                        if self.deaf_until > time.monotonic():
                            return
                        client.sendall(line + b"\n")

    def command(self, message, running):
        name = message["execute"]
        self.seen.append(name)
        running[str(message.get("id"))] = name
        self.act(self.before, name)

    def answer(self, message, running):
        if "event" in message:
            status = message.get("data", {}).get(
                "status") if message["event"] == "MIGRATION" else None
            self.act(self.event, status or message["event"])
        else:
            self.act(self.after, running.pop(str(message.get("id")), None))

    def go_deaf(self, seconds):
        """For an action: the client loses its connection, and for so long no other one is
        answered."""
        self.deaf_until = time.monotonic() + seconds

    def act(self, table, name):
        function = table.pop(name, None)
        if function is not None:
            try:
                function()
            except Exception as e:  # told by the test, in its own thread
                self.errors.append(f"at {name}: {e!r}")

    def close(self):
        """May be called again."""
        if self.stop_write is not None:
            os.write(self.stop_write, b"x")
            self.thread.join(5)
            os.close(self.stop_write)
            if not self.thread.is_alive():
                os.close(self.stop_read)
            self.stop_write = None
