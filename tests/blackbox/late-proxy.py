#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""late-proxy.py LISTEN TARGET: a proxy between Unix sockets for NBD, in whose network a request
gets lost, and comes late. The first WRITE of byte 0 is passed on and remembered.  At SIGUSR1 it is
sent once more, over the connection that it came by, with a cookie that nobody uses; prints "late"
when that was sent.  From then on nothing is passed back to that client, who is expected to be
stopped."""
import os
import signal
import socket
import struct
import sys
import threading

REQUEST, WRITE = 0x25609513, 1
remembered = None   # (socket to the server, request with its data)
lock = threading.Lock()
silent = set()


def read(sock, size):
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def forth(client, server):
    """Client to server: in the handshake whatever comes, then whole requests."""
    global remembered
    try:
        begun = b""
        while struct.pack(">I", REQUEST) not in begun:
            data = client.recv(65536)
            if not data:
                raise EOFError
            begun += data
            at = begun.find(struct.pack(">I", REQUEST))
            server.sendall(data[:len(data) - len(begun) + at] if at >= 0 else data)
            begun = begun[at:] if at >= 0 else begun[-3:]
        rest = begun
        while True:
            while len(rest) < 28:
                more = client.recv(65536)
                if not more:
                    raise EOFError
                rest += more
            _, _, kind, _, offset, length = struct.unpack(">IHH8sQI", rest[:28])
            size = 28 + (length if kind == WRITE else 0)
            if len(rest) < size:
                rest += read(client, size - len(rest))
            with lock:
                if kind == WRITE and offset == 0 and remembered is None:
                    remembered = server, rest[:8] + b"LATELATE" + rest[16:size]
                server.sendall(rest[:size])
            rest = rest[size:]
    except (OSError, EOFError):
        shut(client, server)


def back(client, server):
    try:
        while True:
            data = server.recv(65536)
            if not data:
                raise EOFError
            if server not in silent:
                client.sendall(data)
    except (OSError, EOFError):
        shut(client, server)


def shut(*socks):
    for s in socks:
        try:
            s.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def late():
    while True:
        signal.sigwait([signal.SIGUSR1])
        with lock:
            server, request = remembered
            silent.add(server)
            server.sendall(request)
        print("late", flush=True)


signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
threading.Thread(target=late, daemon=True).start()
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(50)
while True:
    a, _ = listener.accept()
    b = socket.socket(socket.AF_UNIX)
    try:
        b.connect(sys.argv[2])
    except OSError:
        a.close()
        continue
    for f in forth, back:
        threading.Thread(target=f, args=(a, b), daemon=True).start()
