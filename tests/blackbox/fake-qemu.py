#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""fake-qemu.py SOURCE-QMP DEST-QMP STORY [OPTIONS]: two QEMUs in one process, as far as `nbdmirror
migrate` talks to them.

The source runs a guest whose disks are --disk's URIs; the destination waits for a migration.  STORY
gets a line for each command: "SIDE COMMAND STATE-OF-THE-SIDE GATES", where GATES are those of
--control's filters at that moment, joined by "+".  At SIGTERM the source tells which
migration capabilities it "has", and the last line is "end SOURCE DEST": the run state of each
("dead").  At SIGUSR1 the guest at the destination has an I/O error, and is
stopped.  At SIGUSR2 somebody pauses the guest at the source.

Faults: --at SIDE:COMMAND:WHAT does WHAT when that command arrives (it may be given several times):
  refuse   an error            refuse-once   the same, the first time only
  mute-once   neither done nor answered, the first time only
  done-mute-once   done, but not answered, the first time only
  mute-then-refuse, mute-then-die   the same, and refuse or die from the second time on
  die      the process behind that socket has gone, before it did anything
  die-after  the same after it did it, and before the answer
  fail     the migration fails: the source resumes by itself
  tunnel-dies   like die-after, but the process lives on: its monitor was forwarded, and that
                has gone
  moved, moving   refused, as somebody else's migration has just ended, or goes on
  hang     the migration stays where it is (with migrate_cancel: "cancelling", until it is woken)
  slow     done a second later
  long     with migrate-continue: the switch takes 0.6 s
  hide     first the sockets --hide are moved away, to PATH.hidden: nobody can connect any more
  source-dies   with migrate-continue: everything arrives, but the source dies before it says
                "completed"
"""
import argparse
import json
import os
import select
import signal
import socket
import sys
import time

from filter_client import Client

CAPABILITIES = ("pause-before-switchover", "late-block-activate", "postcopy-ram", "events",
                "auto-converge")


class Gone(Exception):
    pass


class Side:
    def __init__(self, world, name, path, status):
        self.world, self.name, self.path, self.status = world, name, path, status
        self.migration = None
        self.capabilities = dict.fromkeys(world.options.capability, False)
        self.parameters = {"max-bandwidth": 134217728, "downtime-limit": 300}
        self.clients = {}
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(5)

    @property
    def other(self):
        return self.world.dest if self is self.world.source else self.world.source

    def send(self, message, to=None):
        for client in [to] if to else list(self.clients):
            try:
                client.sendall(json.dumps(message).encode() + b"\r\n")
            except OSError:
                pass

    def event(self, name, **data):
        self.send({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 0}})

    def set_migration(self, status):
        self.migration = status
        self.event("MIGRATION", status=status)

    def die(self):
        self.status = "dead"
        for client in list(self.clients):
            client.close()
        self.clients = {}
        self.listener.close()
        if self is self.world.source and self.other.status == "inmigrate":
            self.other.migration = "failed"
        if self is self.world.dest and self.world.source.migration in ("active", "device"):
            self.world.source.fail()

    def fail(self):
        """QEMU resumes the guest by itself."""
        self.set_migration("failed")
        self.resume()

    def resume(self):
        if self.world.faults.get(f"{self.name}:cont") != "tunnel-dies":
            self.event("RESUME")
        self.status = "running"

    # ---- commands ----

    def run(self, command, arguments):
        handler = getattr(self, command.replace("-", "_"), None)
        if handler is None:
            raise ValueError(f"The command {command} has not been found")
        return handler(**{k.replace("-", "_"): v for k, v in arguments.items()})

    def qmp_capabilities(self):
        return {}

    def query_status(self):
        return {"status": self.status, "running": self.status == "running"}

    def query_migrate(self):
        answer = {"ram": {"transferred": 12345678, "remaining": 3 << 20,
                          "total": 96 << 20}} if self.migration else {}
        if self.migration:
            answer["status"] = self.migration
        return answer

    def query_migrate_capabilities(self):
        return [{"capability": k, "state": v} for k, v in self.capabilities.items()]

    def query_migrate_parameters(self):
        return self.parameters

    def migrate_set_capabilities(self, capabilities):
        for c in capabilities:
            self.capabilities[c["capability"]] = c["state"]
        return {}

    def migrate_set_parameters(self, **parameters):
        self.parameters.update({k.replace("_", "-"): v for k, v in parameters.items()})
        return {}

    def query_block(self):
        options = self.world.options
        # More than the control protocol's line of 64 KiB, as from a machine with many disks.
        answer = [{"device": "filler", "locked": False, "type": "unknown", "qdev": "x" * 70000}]
        for number, uri in enumerate(options.disk):
            answer.append({
                "device": "", "qdev": f"/machine/peripheral-anon/device[{number}]/virtio-backend",
                "inserted": {"ro": False, "drv": options.driver,
                             "file": uri if self is self.world.source
                             else f"nbd+unix://?socket=/at/b/{number}",
                             "image": {"virtual-size": options.size - (
                                 512 if self is self.world.dest and options.smaller else 0)}}})
        return answer

    def migrate_incoming(self, uri):
        self.set_migration("setup")
        return {}

    def migrate(self, uri):
        self.set_migration("setup")
        self.set_migration("active")
        self.world.later(self.reach_switchover)
        return {}

    def reach_switchover(self):
        if self.migration == "active":
            self.event("STOP")
            self.status = "finish-migrate"
            self.set_migration("pre-switchover")

    def migrate_continue(self, state):
        if self.migration != state:
            raise ValueError(f"Migration not in expected state: {state}")
        if state == "cancelling":  # it has slept, and did not see that it was cancelled
            self.cancelled()
            return {}
        self.set_migration("device")
        self.world.later(self.complete)
        return {}

    def complete(self):
        if self.migration != "device" or self.other.status != "inmigrate":
            return
        self.status = "postmigrate"
        self.set_migration("completed")
        self.world.later(self.other.arrive)

    def arrive(self):
        if self.status == "inmigrate":
            self.set_migration("completed")
            self.status = "paused"

    def migrate_cancel(self):
        if self.migration in ("setup", "active", "pre-switchover", "device"):
            self.set_migration("cancelling")
            self.world.later(self.cancelled)
        return {}

    def cancelled(self):
        self.set_migration("cancelled")
        if self.status == "finish-migrate":
            self.resume()

    def stop(self):
        if self.status == "running":
            self.status = "paused"
            self.event("STOP")
        return {}

    def cont(self):
        if self.status not in ("paused", "postmigrate", "running"):
            raise ValueError(f"the VM is {self.status}")
        self.resume()
        return {}

    def quit(self):
        self.world.later(self.die)
        return {}


class World:
    def __init__(self, options):
        self.options = options
        self.faults = dict(fault.rsplit(":", 1) for fault in options.at)
        self.todo = []
        self.filters = [Client(path) for path in options.control]
        self.story = open(options.story, "w", buffering=1)
        self.source = Side(self, "source", options.source, options.source_status)
        self.dest = Side(self, "dest", options.dest, options.dest_status)
        self.source.migration = options.migration
        print("ready", flush=True)

    def later(self, what, seconds=0.02):
        self.todo.append((time.monotonic() + seconds, what))

    def gates(self):
        return "+".join(f.call("query-mirror")["gate"] for f in self.filters)

    def execute(self, side, client, message):
        command = message["execute"]
        if not command.startswith("q"):
            self.story.write(f"{side.name} {command} {side.status} {self.gates()}\n")
        if command == "quit":
            self.story.write(f"{side.name} quit {side.status} {self.gates()}\n")
        key = f"{side.name}:{command}"
        fault = self.faults.get(key)
        if fault in ("moved", "moving"):
            self.somebody_elses(fault == "moved")
        if fault in ("refuse", "refuse-once", "moved", "moving"):
            if fault == "refuse-once":
                del self.faults[key]
            side.send({"error": {"class": "GenericError", "desc": "not today"},
                       "id": message.get("id")}, client)
            return
        if fault == "mute-once":
            del self.faults[key]
            return
        if fault == "done-mute-once":
            del self.faults[key]
            side.run(command, message.get("arguments", {}))
            return
        if fault and fault.startswith("mute-then-"):
            self.faults[key] = fault[len("mute-then-"):]
            return
        if fault == "slow":
            time.sleep(1)
        if fault == "hide":
            for path in options.hide:
                os.rename(path, path + ".hidden")
        if fault == "die":
            raise Gone
        try:
            answer = {"return": side.run(command, message.get("arguments", {})),
                      "id": message.get("id")}
        except ValueError as e:
            answer = {"error": {"class": "GenericError", "desc": str(e)}, "id": message.get("id")}
        if fault == "fail":
            self.todo = []
            self.later(side.fail)
        elif fault == "hang":
            self.todo = []
        elif fault == "long":
            self.todo = []
            self.later(side.complete, 0.6)
        elif fault == "source-dies":
            self.todo = []
            self.dest.arrive()
            raise Gone
        elif fault == "die-after":
            raise Gone
        elif fault == "tunnel-dies":
            for client in list(side.clients):
                client.close()
            side.clients = {}
            side.listener.close()
            return
        side.send(answer, client)

    def receive(self, side, client):
        try:
            data = client.recv(65536)
        except OSError:
            data = b""
        if not data:
            side.clients.pop(client, None)
            client.close()
            return
        side.clients[client] += data
        while side.status != "dead" and b"\n" in side.clients.get(client, b""):
            line, _, side.clients[client] = side.clients[client].partition(b"\n")
            try:
                self.execute(side, client, json.loads(line))
            except Gone:
                side.die()

    def step(self):
        sides = [s for s in (self.source,
                             self.dest) if s.status != "dead" and s.listener.fileno() != -1]
        sockets = {s.listener: (s, None) for s in sides}
        sockets.update({c: (s, c) for s in sides for c in s.clients})
        left = min([t for t, _ in self.todo], default=time.monotonic() + 1) - time.monotonic()
        for ready in select.select(list(sockets), [], [], max(0, left))[0]:
            side, client = sockets[ready]
            if side.status == "dead" or ready.fileno() == -1:
                continue
            if client:
                self.receive(side, client)
            else:
                client = side.listener.accept()[0]
                side.clients[client] = b""
                side.send({"QMP": {"version": {}, "capabilities": []}}, client)
        now = time.monotonic()
        due = [what for t, what in self.todo if t <= now]
        self.todo = [(t, what) for t, what in self.todo if t > now]
        for what in due:
            if what.__self__.status != "dead":
                what()

    def pause(self, *_):
        self.source.stop()

    def somebody_elses(self, ended):
        self.source.migration, self.dest.migration = \
            ("completed", "completed") if ended else ("active", "active")
        if ended:
            self.source.status, self.dest.status = "postmigrate", "running"

    def io_error(self, *_):
        self.dest.status = "io-error"

    def end(self, *_):
        for name, state in self.source.capabilities.items():
            if state:
                self.story.write(f"source has {name}\n")
        self.story.write(f"end {self.source.status} {self.dest.status}\n")
        os._exit(0)


parser = argparse.ArgumentParser()
parser.add_argument("source")
parser.add_argument("dest")
parser.add_argument("story")
parser.add_argument("--disk", action="append", default=[])
parser.add_argument("--control", action="append", default=[])
parser.add_argument("--at", action="append", default=[])
parser.add_argument("--hide", action="append", default=[])
parser.add_argument("--driver", default="nbd")
parser.add_argument("--size", type=int, default=0)
parser.add_argument("--smaller", action="store_true")
parser.add_argument("--capability", action="append", default=[])
parser.add_argument("--source-status", default="running")
parser.add_argument("--dest-status", default="inmigrate")
parser.add_argument("--migration")
parser.add_argument("--tunnel", action="store_true",
                    help="the monitors are forwarded: it is not QEMU that listens")
parser.add_argument("-incoming", action="store_true",
                    help="for those who look at the arguments, as -S")
parser.add_argument("-S", action="store_true")
options = parser.parse_args()
with open("/proc/self/comm", "w") as comm:
    comm.write("ssh" if options.tunnel else "qemu-fake")
options.capability = options.capability or list(CAPABILITIES)
world = World(options)
signal.signal(signal.SIGTERM, world.end)
signal.signal(signal.SIGUSR1, world.io_error)
signal.signal(signal.SIGUSR2, world.pause)
while True:
    world.step()
