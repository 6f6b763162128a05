#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""delay.py LISTEN:PORT TARGET:PORT MS LOSS: a TCP relay that is as slow as a long line. What is
received is passed on MS milliseconds later, in order; for one in a hundred pieces where LOSS is 1
it is 200 ms more, as when a packet is lost and sent again. Prints "ready". For kernels without
netem."""

import random
import socket
import sys
import threading
import time
from collections import deque

PIECE = 65536
RESEND_S = 0.2


def address(text):
    host, _, port = text.rpartition(":")
    return host, int(port)


class Way:
    """One direction of a connection: a reader, and a writer that is behind by the delay."""

    def __init__(self, source, sink, delay, loss):
        self.source, self.sink, self.delay, self.loss = source, sink, delay, loss
        self.queue, self.changed = deque(), threading.Condition()
        for function in (self.read, self.write):
            threading.Thread(target=function, daemon=True).start()

    def read(self):
        late = 0.0
        while True:
            try:
                data = self.source.recv(PIECE)
            except OSError:
                data = b""
            due = time.monotonic() + self.delay
            if random.random() * 100 < self.loss:
                due += RESEND_S
            late = max(late, due)
            with self.changed:
                self.queue.append((late, data))
                self.changed.notify()
                # What would be a full window: 4 MiB on the way.
                self.changed.wait_for(lambda: len(self.queue) < 64)
            if not data:
                return

    def write(self):
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.queue)
                due, data = self.queue.popleft()
                self.changed.notify()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                if not data:
                    self.sink.shutdown(socket.SHUT_WR)
                    return
                self.sink.sendall(data)
            except OSError:
                self.source.close()
                return


def main():
    listen, target, ms, loss = sys.argv[1:]
    listener = socket.create_server(address(listen), backlog=16)
    print("ready", flush=True)
    while True:
        client = listener.accept()[0]
        try:
            server = socket.create_connection(address(target), 5)
            server.settimeout(None)
        except OSError:
            client.close()
            continue
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Way(client, server, float(ms) / 1000, float(loss))
        Way(server, client, float(ms) / 1000, float(loss))


main()
