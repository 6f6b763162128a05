#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A TLS server before a plain NBD server, which changes its keys all the time.

usage: rekey-proxy.py LISTEN-SOCKET SERVER-SOCKET PSK-FILE MILLISECONDS

While it sends it updates its key every so many milliseconds and asks the client to update too,
which GnuTLS does by itself after 2^24 records (TLS 1.3).  GnuTLS refuses more than 8 updates a
second.  At the end of each connection it prints "updates N".  Only the fixed newstyle handshake is
known.  GnuTLS is used without its headers.
"""
import ctypes
import select
import socket
import struct
import sys
import threading
import time

tls = ctypes.CDLL("libgnutls.so.30")
SERVER, CRD_PSK, KU_PEER = 1, 4, 1            # as in gnutls/gnutls.h
AGAIN, INTERRUPTED = -28, -52
tls.gnutls_record_recv.restype = ctypes.c_ssize_t
tls.gnutls_record_send.restype = ctypes.c_ssize_t
tls.gnutls_record_recv.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
tls.gnutls_record_send.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
tls.gnutls_record_check_pending.restype = ctypes.c_size_t
tls.gnutls_record_check_pending.argtypes = [ctypes.c_void_p]
tls.gnutls_session_key_update.argtypes = [ctypes.c_void_p, ctypes.c_uint]


def check(what, result):
    if result < 0:
        raise OSError("%s: GnuTLS error %d" % (what, result))


def read_exactly(sock, n):
    data = b""
    while len(data) < n:
        more = sock.recv(n - len(data))
        if not more:
            raise OSError("closed in the handshake")
        data += more
    return data


def handshake(client, server):
    """The client's, up to STARTTLS; the server's, so that options can follow.  Both are plain."""
    greeting = read_exactly(server, 18)
    client.sendall(greeting)
    flags = read_exactly(client, 4)
    server.sendall(flags)
    magic, option, length = struct.unpack(">QLL", read_exactly(client, 16))
    if option != 5 or length != 0:
        raise OSError("the client does not begin with STARTTLS")
    client.sendall(struct.pack(">QLLL", 0x3E889045565A9, 5, 1, 0))


def begin_tls(client, psk_file):
    session, cred = ctypes.c_void_p(), ctypes.c_void_p()
    check("init", tls.gnutls_init(ctypes.byref(session), SERVER))
    check("credentials", tls.gnutls_psk_allocate_server_credentials(ctypes.byref(cred)))
    check("psk", tls.gnutls_psk_set_server_credentials_file(cred, psk_file.encode()))
    check("credentials", tls.gnutls_credentials_set(session, CRD_PSK, cred))
    check("priority", tls.gnutls_priority_set_direct(
        session, b"NORMAL:-VERS-ALL:+VERS-TLS1.3:+ECDHE-PSK:+DHE-PSK:+PSK", None))
    tls.gnutls_transport_set_int2(session, client.fileno(), client.fileno())
    check("handshake", tls.gnutls_handshake(session))
    client.setblocking(False)
    return session


def insist(what, client, call, *args):
    """Call until it has sent what it should.  The socket does not block, because a record that is
    no data would keep us waiting for the next one, while the server's answers wait here."""
    while True:
        result = call(*args)
        if result not in (AGAIN, INTERRUPTED):
            check(what, result)
            return
        select.select([], [client], [])


def relay(client, server, session, interval):
    """-> how often the key was updated."""
    updates, last = 0, time.monotonic()
    buf = ctypes.create_string_buffer(65536)
    while True:
        pending = tls.gnutls_record_check_pending(session) > 0
        ready = select.select([client, server], [], [], 0 if pending else None)[0]
        if pending or client in ready:
            n = tls.gnutls_record_recv(session, buf, len(buf))
            if n in (AGAIN, INTERRUPTED):
                continue
            if n <= 0:
                return updates
            server.sendall(buf.raw[:n])
        if server in ready:
            data = server.recv(4096)
            if not data:
                return updates
            # As GnuTLS does it by itself: a record follows at once.  When libnbd has read only an
            # update it sends nothing more until it has a reply.
            if time.monotonic() - last >= interval:
                last = time.monotonic()
                insist("key update", client, tls.gnutls_session_key_update, session, KU_PEER)
                updates += 1
            insist("send", client, tls.gnutls_record_send, session, data, len(data))


def serve(client, server_path, psk_file, interval):
    server = socket.socket(socket.AF_UNIX)
    server.connect(server_path)
    updates = 0
    try:
        handshake(client, server)
        updates = relay(client, server, begin_tls(client, psk_file), interval)
    except OSError as e:
        print("error: %s" % e, flush=True)
    print("updates %d" % updates, flush=True)
    client.close()
    server.close()


def main():
    listen, server_path, psk_file, interval = sys.argv[1:]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(listen)
    listener.listen()
    while True:
        client = listener.accept()[0]
        threading.Thread(target=serve, args=(client, server_path, psk_file, int(interval) / 1000),
                         daemon=True).start()


main()
