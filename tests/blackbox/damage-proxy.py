#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""damage-proxy.py flip|cut LISTEN TARGET: a proxy between Unix sockets for NBD that damages the
third compressed write of its first client: it flips a bit in the middle of the data, or closes both
connections there.  All else is passed on as it is.  Prints "ready", and "damaged" when it was
done."""
import os
import socket
import struct
import sys
import threading

REQUEST, WRITE, PACK_OFFSET = 0x25609513, 1, 1 << 62
how, listen, target = sys.argv[1:]
lock = threading.Lock()
seen = 0


class End(Exception):
    pass


def read(sock, size):
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise End
        data += more
    return data


def damage(request):
    """The request as it is to be passed on."""
    global seen
    _, _, kind, _, offset, _ = struct.unpack(">IHH8sQI", request[:28])
    if kind != WRITE or offset < PACK_OFFSET:
        return request
    with lock:
        seen += 1
        if seen != 3:
            return request
    print("damaged", flush=True)
    middle = (28 + len(request)) // 2
    if how == "cut":
        raise End(request[:middle])
    return request[:middle] + bytes([request[middle] ^ 0x10]) + request[middle + 1:]


def forth(client, server):
    """Client to server: in the handshake whatever comes, then whole requests."""
    mark, begun = struct.pack(">I", REQUEST), b""
    while mark not in begun:
        data = client.recv(65536)
        if not data:
            raise End
        begun += data
        at = begun.find(mark)
        server.sendall(data[:len(data) - len(begun) + at] if at >= 0 else data)
        begun = begun[at:] if at >= 0 else begun[-3:]
    rest = begun
    while True:
        rest += read(client, max(0, 28 - len(rest)))
        _, _, kind, _, _, length = struct.unpack(">IHH8sQI", rest[:28])
        size = 28 + (length if kind == WRITE else 0)
        rest += read(client, max(0, size - len(rest)))
        server.sendall(damage(rest[:size]))
        rest = rest[size:]


def back(server, client):
    while True:
        data = server.recv(1 << 20)
        if not data:
            raise End
        client.sendall(data)


def run(function, one, other):
    try:
        function(one, other)
    except End as end:
        if end.args:
            other.sendall(end.args[0])
    except OSError:
        pass
    for sock in one, other:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


if os.path.exists(listen):
    os.unlink(listen)
listener = socket.socket(socket.AF_UNIX)
listener.bind(listen)
listener.listen(16)
print("ready", flush=True)
while True:
    client, _ = listener.accept()
    server = socket.socket(socket.AF_UNIX)
    server.connect(target)
    for args in (forth, client, server), (back, server, client):
        threading.Thread(target=run, args=args, daemon=True).start()
