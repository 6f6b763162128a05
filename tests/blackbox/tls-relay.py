#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""tls-relay.py PORT LOG [NR]: passes TCP connections to localhost on to PORT there, and looks at
what goes by.  Prints the port that it listens at.  LOG gets a line for each connection that has
ended:

    tls UP DOWN      NBD's negotiation up to STARTTLS, then nothing but TLS records; bytes each way
    clear WHAT       anything else: WHAT says where
    refused          the server ended it before the client had asked for anything that matters

With NR, the connections after so many hear nothing of the server's TLS.
"""

import contextlib
import socket
import struct
import sys
import threading

GREETING = b"NBDMAGIC" + b"IHAVEOPT"
STARTTLS, ACK = 5, 1
RECORDS = {20, 21, 22, 23}  # change-cipher-spec, alert, handshake, data


class Clear(Exception):
    pass


class Side:
    """One direction.  Reads what comes, exactly as it has to be, and remembers how much of it was
    TLS."""

    def __init__(self, source, sink, mute=False):
        self.source, self.sink, self.mute = source, sink, mute
        self.waiting = b""
        self.fault, self.bytes = None, 0

    def feed(self, data):
        self.waiting += data
        while self.fault is None:
            try:
                if not self.take():
                    return
            except Clear as e:
                self.fault = str(e)

    def need(self, size):
        return len(self.waiting) >= size

    def drop(self, size):
        data, self.waiting = self.waiting[:size], self.waiting[size:]
        return data

    def record(self):
        """A TLS record, or what there is of it."""
        if not self.need(5):
            return False
        kind, version, length = struct.unpack(">BHH", self.waiting[:5])
        if kind not in RECORDS or version >> 8 != 3:
            raise Clear(f"no TLS record: {self.waiting[:16]!r}")
        if not self.need(5 + length):
            return False
        self.bytes += len(self.drop(5 + length))
        return True

    def pump(self):
        while True:
            try:
                data = self.source.recv(65536)
                if not data:
                    self.sink.shutdown(socket.SHUT_WR)
                    return
                mute = self.mute and self.step == 2
                self.feed(data)
                if not mute:
                    self.sink.sendall(data)
            except OSError:  # that is the end of the other direction, too
                for end in (self.source, self.sink):
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                return


class Client(Side):
    step = 0

    def take(self):
        if self.step == 2:
            return self.record()
        if not self.need((4, 16)[self.step]):
            return False
        if self.step == 0:
            self.drop(4)
        else:
            magic, option, length = struct.unpack(">8sII", self.drop(16))
            if (magic, option, length) != (b"IHAVEOPT", STARTTLS, 0):
                raise Clear(f"option {option} before TLS")
        self.step += 1
        return True


class Server(Side):
    step = 0

    def take(self):
        if self.step == 2:
            return self.record()
        if not self.need((18, 20)[self.step]):
            return False
        data = self.drop((18, 20)[self.step])
        if self.step == 0 and data[:16] != GREETING:
            raise Clear("another greeting")
        if self.step == 1 and struct.unpack(">QIII", data)[1:] != (STARTTLS, ACK, 0):
            raise Clear("the server did not agree to TLS")
        self.step += 1
        return True


def relay(client, port, log, mute):
    with client, socket.create_connection(("localhost", port)) as server:
        up, down = Client(client, server), Server(server, client, mute)
        threads = [threading.Thread(target=side.pump) for side in (up, down)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    fault = up.fault or down.fault
    with open(log, "a") as out:
        print(f"clear {fault}" if fault else f"tls {up.bytes} {down.bytes}" if up.step == 2
              else "refused", file=out)


def main():
    port, log = int(sys.argv[1]), sys.argv[2]
    most, nr = int(sys.argv[3]) if len(sys.argv) > 3 else None, 0
    listener = socket.create_server(("localhost", 0), backlog=16)
    print(listener.getsockname()[1], flush=True)
    while True:
        client, nr = listener.accept()[0], nr + 1
        mute = most is not None and nr > most
        threading.Thread(target=relay, args=(client, port, log, mute), daemon=True).start()


main()
