#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ssh does, without a network: ssh-stand-in.py [OPTIONS] -- HOST COMMAND runs COMMAND with a
shell, and carries its standard input and output.  If it is killed, both ends see their line closed,
and COMMAND goes on until it notices."""

import os
import subprocess
import sys
import threading

command = sys.argv[sys.argv.index("--") + 2]
child = subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def carry(source, dest):
    try:
        while data := os.read(source, 1 << 20):
            while data:
                data = data[os.write(dest, data):]
    except OSError:
        pass
    os.close(dest)


threading.Thread(target=carry, args=(0, child.stdin.fileno()), daemon=True).start()
out = threading.Thread(target=carry, args=(child.stdout.fileno(), 1))
out.start()
status = child.wait()
out.join()
os._exit(status if status >= 0 else 255)
