#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""prepare.py CONTROL LEASE-MS: a coordinator that prepares one disk, and then never decides.

Prints "prepared", or "refused: CLASS"; then the decision word when the filter has changed it ("word
2": abort) or is gone, whether a commit at that time still succeeds ("committed" or "not committed:
CLASS"), and ends. """
import sys
import time

from filter_client import Client, Refused, Word

control, lease = sys.argv[1], int(sys.argv[2])
client = Client(control)
end = time.monotonic() + 20
while True:
    word = Word()
    try:
        ret = client.call("mirror-prepare", fd=word.fd, timeout=60, lease_ms=lease,
                          rollback_token="test")
        break
    except Refused as e:
        # "Ready" comes and goes with the guest's writes.
        if e.class_ != "NotReady" or time.monotonic() > end:
            print("refused:", e.class_, flush=True)
            sys.exit(0)
    time.sleep(0.1)
print("prepared", flush=True)
while word.get() == 0 and not client.closed(0.01):
    pass
print("word", word.get(), flush=True)
try:
    client.call("job-finalize", generation=ret["generation"])
    print("committed", flush=True)
except Refused as e:
    print("not committed:", e.class_, flush=True)
except (EOFError, OSError):
    print("not committed: the server has gone", flush=True)
