#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that a guest whose qcow2 image `serve` serves gets that image itself with `give-back`, by
the control socket alone: no record is lost, the server ends, and the image has one user at each
time. While a mirror job runs there it is refused. A `give-back` that is killed leaves a guest that
goes on, at the server. (qcow2-lent.py has the same in full, for `receive`.)"""

import os
import signal
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import scene  # noqa: E402
from images import Base, whole  # noqa: E402
from qmp_proxy import QmpProxy  # noqa: E402
from scene import check  # noqa: E402


def driver(vm):
    return vm.qmp("query-block")[0]["inserted"]["drv"]


def killed(s, vm, src):
    """Whoever does the rest, the guest is where it was."""
    proxy = QmpProxy(vm, like_qemu=False)
    proxy.before["blockdev-mirror"] = lambda: process.kill()
    process = s.spawn("give-back", [s.nbdmirror_path, "give-back", "--qmp", proxy.path,
                                    src.control])
    check(s.wait_exit(process) == -signal.SIGKILL, "give-back was not killed")
    s.wait_for("the record's end", lambda: not os.path.exists(src.control + ".adopted"))
    proxy.close()
    check(not proxy.errors, f"in the test's own actions: {proxy.errors}")
    s.wait_for("a guest that runs", lambda: vm.running)
    s.story.wait_for_more(5)
    check(driver(vm) == "nbd", f"the guest uses {driver(vm)}")
    check(s.status(src)["bypassed"] is False, "no job may begin")


def test(s):
    base = Base(s.make_disk("base.img", data=4 * scene.MIB))
    image = s.path("d.qcow2")
    s.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base.path, "-F", "raw", image])
    src = s.serve("src", image, "--format", "qcow2")
    vm = s.vm("a", [src], recorder="-l 200")
    s.story.wait_for_record(20)
    give_back = ["give-back", "--qmp", vm.qmp_path, src.control]

    dest = s.plain("dest", s.empty_disk("dest.img", base.path))
    mirror = s.mirror(src, dest.uri, "--on-ready", "wait")
    s.wait_state(src, "ready")
    s.nbdmirror(*give_back, status=7)
    s.nbdmirror("cancel", src.control)
    check(s.wait_exit(mirror) == 6, "the mirror did not end as cancelled")

    killed(s, vm, src)
    s.nbdmirror(*give_back)
    check(driver(vm) == "qcow2", f"the guest uses {driver(vm)}")
    for path in (src.socket, src.control, src.control + ".adopted", src.control + ".bypass"):
        s.wait_for(f"the end of {path}", lambda path=path: not os.path.exists(path), 10)
    s.story.wait_for_more(20)
    s.story.wait_for_line("LOADED")  # else some blocks were never written
    vm.shut_down()
    s.check_story()
    s.check_clean(whole(s, image, "whole.raw"))
    s.check_records(s.story.last, s.path("whole.raw"), blocks=True)
    base.check()


scene.main(test)
