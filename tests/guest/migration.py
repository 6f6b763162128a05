# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory migration between two machines of a test over QMP, as libvirt drives it."""

import time

import machine


def prepare(source, dest, uri, **parameters):
    """Capabilities and parameters on both sides; the destination listens at URI."""
    source.qmp("migrate-set-capabilities", capabilities=[
        {"capability": "pause-before-switchover", "state": True},
        {"capability": "events", "state": True}])
    dest.qmp("migrate-set-capabilities", capabilities=[
        {"capability": "late-block-activate", "state": True},
        {"capability": "events", "state": True}])
    source.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 30, "downtime-limit": 300,
                                            **parameters})
    dest.qmp("migrate-incoming", uri=uri)


def migrate_to(source, dest, uri, **parameters):
    prepare(source, dest, uri, **parameters)
    source.qmp("migrate", uri=uri)


def wait_migration(source, status, seconds=60):
    """Until the source says so.  Asked for, since events may be of an earlier migration."""
    deadline = time.monotonic() + seconds
    while True:
        now = source.qmp("query-migrate").get("status")
        if now == status:
            return
        if now in ("failed", "cancelled", "completed"):
            raise machine.QmpError(f"migration is {now} and not {status}")
        if time.monotonic() > deadline:
            raise machine.QmpError(f"migration is still {now} after {seconds} s")
        time.sleep(0.005)
