#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What qemu-ga says of a guest's file systems: guest-agent-stand-in.py SOCKET LOG [hang|silent].
Every freeze and thaw is a line of LOG.  With `hang` it freezes and does not answer.  With `silent`
it hangs up on the first connection, and never answers on the others.  Each connection begins with
an answer to an older question."""

import json
import socket
import sys
import threading

path, log = sys.argv[1:3]
frozen = False


def note(text):
    with open(log, "a", encoding="utf-8") as f:
        f.write(text + "\n")


def answer(connection, line):
    global frozen
    delimiter = b""
    if line.startswith(b"\xff"):
        line = line[1:]
    call = json.loads(line)
    name = call["execute"]
    if name == "guest-sync-delimited":
        delimiter = b"\xff"
        reply = {"return": call["arguments"]["id"]}
    elif name == "guest-fsfreeze-freeze":
        note("freeze")
        frozen = True
        if "hang" in sys.argv:
            return
        reply = {"return": 2}
    elif name == "guest-fsfreeze-thaw":
        note("thaw")
        reply = {"return": 2 if frozen else 0}
        frozen = False
    elif name == "guest-fsfreeze-status":
        reply = {"return": "frozen" if frozen else "thawed"}
    else:
        reply = {"error": {"class": "CommandNotFound", "desc": f"no {name}"}}
    connection.sendall(delimiter + json.dumps(reply).encode() + b"\n")


def serve(connection):
    connection.sendall(b'{"return": 17}\n{"return": ')
    for line in connection.makefile("rb"):
        answer(connection, line.strip())


listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
if "silent" in sys.argv:
    listener.accept()[0].close()
    note("hung-up")
    unanswered = []
    while True:
        unanswered.append(listener.accept()[0])
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
