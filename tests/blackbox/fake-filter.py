#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A stand-in for the filter's control socket that plays one part in a hand-off.

usage: fake-filter.py CONTROL LOG MODE

  ok        does as asked
  refuse    answers mirror-prepare with NotReady
  late      is armed, and answers mirror-prepare-now with LeaseEnded
  mute      is armed, and never answers mirror-prepare-now
  lease     its lease ends before the commit: turns the word to "abort", but answers "prepared"
  close     closes the connection instead of answering mirror-prepare
  leave     the same with mirror-prepare-now
  hang      never answers mirror-prepare
  drop      closes the connection at the first job-finalize, answers the next
  deaf      never confirms: closes the connection at every job-finalize
  copying   says that it is not ready

LOG gets a line for each command: its name, the decision word at that time, and its arguments.
"""
import json
import mmap
import os
import socket
import struct
import sys
import threading

path, log_path, mode = sys.argv[1:]
log = open(log_path, "w", buffering=1)
word = None          # the decision word, once it was passed to us
token = None
dropped = False


def decision():
    return struct.unpack("=I", word[:4])[0] if word is not None else None


def serve(conn):
    global word, token, dropped
    data, fds = b"", []

    def say(obj):
        conn.sendall(json.dumps(obj).encode() + b"\n")

    say({"QMP": {"version": {"qemu": {"major": 0, "minor": 1, "micro": 0}, "package": "fake"},
                 "capabilities": []}})
    while True:
        while b"\n" not in data:
            more, new, _, _ = socket.recv_fds(conn, 65536, 4)
            if not more:
                conn.close()
                return
            data += more
            fds += new
        line, data = data.split(b"\n", 1)
        request = json.loads(line)
        name, args = request["execute"], request.get("arguments") or {}
        if fds:
            word = mmap.mmap(fds.pop(), 4096)
        log.write("%s %s %s\n" % (name, decision(), json.dumps(args, sort_keys=True)))

        def answer(ret):
            reply = {"return": ret}
            if "id" in request:
                reply["id"] = request["id"]
            say(reply)

        def refuse(class_, desc):
            reply = {"error": {"class": class_, "desc": desc}}
            if "id" in request:
                reply["id"] = request["id"]
            say(reply)

        if name == "qmp_capabilities" or name == "mirror-release":
            answer({})
        elif name == "query-mirror":
            answer({"state": "copying" if mode == "copying" else "ready", "max-downtime-ms": 350,
                    "size": 1 << 30, "dirty-bytes": 4096, "claimed-bytes": 0,
                    "gate": "open", "worker": "attached"})
        elif name == "mirror-prepare":
            token = args["rollback-token"]
            if mode == "refuse":
                refuse("NotReady", "the job is not ready")
            elif mode == "close":
                conn.close()
                return
            elif mode == "hang":
                continue
            else:
                assert args["arm"], args
                answer({"armed": True})
        elif name == "mirror-prepare-now":
            if mode == "late":
                refuse("LeaseEnded", "the rest took too long")
            elif mode == "mute":
                continue
            elif mode == "leave":
                conn.close()
                return
            else:
                if mode == "lease" and decision() == 0:
                    word[:4] = struct.pack("=I", 2)
                answer({"generation": 7})
        elif name == "job-finalize":
            if mode == "deaf" or (mode == "drop" and not dropped):
                dropped = True
                conn.close()
                return
            if decision() != 1:
                refuse("NotDecided", "the word does not say commit")
            else:
                answer({"downtime-ms": 3.25, "rollback-token": token})
        else:
            refuse("CommandNotFound", "no such command: " + name)


listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(16)
while True:
    c, _ = listener.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
