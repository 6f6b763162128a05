#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""split-relay.py LISTEN FIRST OTHERS [--rename]: a relay between Unix sockets in whose place
another server comes.  All connections go to FIRST until SIGUSR1; then the next one does, and those
after it go to OTHERS.  With --rename OTHERS itself takes the path LISTEN as soon as one connection
was made, before that one is answered."""
import os
import signal
import socket
import sys
import threading

path, first, others = sys.argv[1:4]
to_first = [sys.maxsize]
signal.signal(signal.SIGUSR1, lambda *_: to_first.__setitem__(0, 1))


def pump(source, sink):
    try:
        while True:
            data = source.recv(262144)
            if not data:
                break
            sink.sendall(data)
    except OSError:
        pass
    for sock in source, sink:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(16)
print("ready", flush=True)
while True:
    client = listener.accept()[0]
    server = socket.socket(socket.AF_UNIX)
    server.connect(first if to_first[0] > 0 else others)
    to_first[0] -= 1
    if len(sys.argv) > 4:
        os.rename(others, path)
    for ends in (client, server), (server, client):
        threading.Thread(target=pump, args=ends, daemon=True).start()
