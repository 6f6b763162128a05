#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two hosts to try the manuals' recipes on as they are printed: hosta and hostb, each with its own
name, network, processes and directories (/etc, /root, /run, /srv, /var/lib, /var/log, /var/cache),
in namespaces. They know each other by name, and hosta's root may log in at hostb with ssh.

    a, b = hosts.pair(s)
    a.run("nbdmirror serve /srv/vm1.img ...")
    for host, command in hosts.recipe("nbdmirror.pod", "WITH LIBVIRT"): ...

Needs root. Nothing of them is left at the end: their processes end with the first one, which is
this file, run as a program."""

import os
import re
import shutil
import signal
import subprocess
import sys

PRIVATE = ("etc", "root", "run", "srv", "var/lib", "var/log", "var/cache")
ADDRESSES = {"hosta": "10.78.0.1", "hostb": "10.78.0.2"}


# ---- the first process of a host ----------------------------------------------------------

def call(*words):
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)


def be_a_host(name, top):
    call("hostname", name)
    call("ip", "link", "set", "lo", "up")
    for directory in PRIVATE:
        mine = os.path.join(top, directory)
        if directory == "etc":
            call("cp", "-a", "/etc", mine)
        else:
            os.makedirs(mine, 0o755)
    call("mkdir", "-p", *(os.path.join(top, "var", d, "libvirt") for d in ("lib", "log", "cache")))
    with open(os.path.join(top, "etc/hosts"), "w") as f:
        f.write("127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for n, a in ADDRESSES.items()))
    os.chmod(os.path.join(top, "root"), 0o700)
    # A tree that was cloned or built in such a directory, /root for one, stays where it is.
    for tree in {os.path.realpath(os.path.join(os.path.dirname(__file__), "../..")), os.getcwd()}:
        if tree.startswith(tuple(f"/{d}/" for d in PRIVATE)):
            os.makedirs(top + tree, exist_ok=True)
            call("mount", "--bind", tree, top + tree)
    for directory in PRIVATE:
        call("mount", "--rbind", os.path.join(top, directory), "/" + directory)
    if os.path.exists("/dev/kvm"):  # these guests are emulated
        call("mount", "--bind", "/dev/null", "/dev/kvm")
    print("ready", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:  # whoever has lost its parent is ours
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        signal.sigtimedwait([signal.SIGCHLD], 1)


# ---- for tests ---------------------------------------------------------------------------

class Host:
    def __init__(self, s, name):
        self.s, self.name, self.top = s, name, s.path(name)
        os.mkdir(self.top)
        self.process = s.spawn(name, ["unshare", "-m", "-n", "-u", "-i", "-p", "--fork",
                                      "--kill-child", "--mount-proc",
                                      "--propagation", "private", "/usr/bin/python3",
                                      os.path.abspath(__file__), name, self.top],
                               stdout=subprocess.PIPE)
        s.at_end.append(self.end)
        if self.process.stdout.readline() != b"ready\n":
            import machine
            raise machine.Unavailable(f"no namespaces for {name} here (see its log)")
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as f:
            self.init = f.read().split()[0]
        self.prefix = ["nsenter", "-t", self.init, "-m", "-n", "-u", "-i", "-p"]

    def end(self):
        self.process.kill()  # and all that runs there
        self.process.wait()

    def path(self, inside):
        return self.top + inside

    def run(self, command, status=0, seconds=60):
        """A line for its shell. What is left in the background may keep the output open, so that
        goes to files."""
        out = self.path("/output")
        with open(out, "w+") as f:
            try:
                got = subprocess.run([*self.prefix, "sh", "-c", "cd; " + command],
                                     stdin=subprocess.DEVNULL, stdout=f,
                                     stderr=subprocess.STDOUT, timeout=seconds).returncode
            except subprocess.TimeoutExpired:
                got = f"none in {seconds} s"
            f.seek(0)
            text = f.read()
        if status is not None and got != status:
            import scene
            raise scene.Failed(
                f"{self.name}: exit status {got} instead of {status} from: {command}\n{text}")
        return text


def pair(s):
    import machine
    missing = [p for p in ("ip", "unshare", "nsenter", "hostname") if not shutil.which(p)]
    if os.getuid() != 0 or missing:
        raise machine.Unavailable(
    "hosts of namespaces need root" +
    "".join(
        f", and {p}" for p in missing))
    os.chmod(s.tmp, 0o711)  # other users' processes look into it
    a, b = Host(s, "hosta"), Host(s, "hostb")
    s.run(["nsenter", "-t", a.init, "-n", "ip", "link", "add", "line",
          "type", "veth", "peer", "name", "line", "netns", b.init])
    for host in (a, b):
        host.run(f"ip addr add {ADDRESSES[host.name]}/24 dev line && ip link set line up")
    return a, b


def let_log_in(s, a, b):
    """root of A at B, with ssh."""
    import machine
    if not shutil.which("sshd") or not shutil.which("ssh"):
        raise machine.Unavailable("ssh or sshd is not installed")
    b.run("mkdir -p /run/sshd /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/test_key")
    a.run("mkdir -p -m 700 /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
    shutil.copy(a.path("/root/.ssh/id_ed25519.pub"), b.path("/root/.ssh/authorized_keys"))
    with open(b.path("/etc/ssh/test_key.pub")) as key, open(a.path("/root/.ssh/known_hosts"),
                                                            "w") as known:
        known.write("hostb " + " ".join(key.read().split()[:2]) + "\n")
    sshd = s.spawn("sshd", [*b.prefix, shutil.which("sshd"), "-D", "-e", "-f", "/dev/null", "-h",
                            "/etc/ssh/test_key", "-o", "UsePAM=no",
                            "-o", "PermitRootLogin=prohibit-password", "-o",
                            "PasswordAuthentication=no",
                            "-o", "SetEnv=PATH=" + os.environ["PATH"]])
    s.wait_for("sshd", lambda: sshd.poll() is not None or subprocess.run(
        [*a.prefix, "ssh", "-o", "BatchMode=yes", "hostb", "true"], stdin=subprocess.DEVNULL,
        capture_output=True).returncode == 0)


pems = {}


def certificates(a, b):
    """Made at A with the commands of nbdmirror(1), once, and given to both as it says. A has a
    server's certificate as well, for the way back."""
    import machine
    import scene
    if not shutil.which("certtool"):
        raise machine.Unavailable("certtool is not installed (gnutls-bin)")
    if not pems:
        with open(os.path.join(scene.SRCDIR, "docs/nbdmirror.pod")) as f:
            steps = re.search(r"^B<1. Certificates.>.*?\n\n(.*?)^F<", f.read(), re.M | re.S)[1]
        a.run("mkdir pki && cd pki\n" + steps)
        back = re.search(r"^ certtool --generate-privkey --outfile server-key.*?server-cert.pem$",
                         steps, re.M | re.S)[0]
        a.run("cd pki\n" + back.replace("hostb", "hosta").replace("server-", "back-"))
        for name in ("ca-cert", "client-cert", "client-key", "server-cert", "server-key",
                     "back-cert", "back-key"):
            with open(a.path(f"/root/pki/{name}.pem")) as f:
                pems[name] = f.read()
    for host in (a, b):
        host.run("mkdir -p -m 700 /etc/pki/nbdmirror")
        for name, pem in pems.items():
            if ("server" if host is a else "back") not in name:
                name = name.replace("back", "server")
                with open(host.path(f"/etc/pki/nbdmirror/{name}.pem"), "w") as f:
                    f.write(pem)


def recipe(page, section):
    """The commands of a section of a manual, in their order: pairs (host, command)."""
    import scene
    with open(os.path.join(scene.SRCDIR, "docs", page)) as f:
        text = f.read()
    found = re.search(rf"^=head[12] {re.escape(section)}\n(.*?)^=head", text, re.M | re.S)
    scene.check(found, f"{page} has no section {section}")
    commands = re.findall(r"^ (host[ab])# ((?:.*\\\n)*.*)$", found[1], re.M)
    scene.check(commands, f"{page}, {section}: no commands")
    return [(host, re.sub(r"\\\n *", "", command)) for host, command in commands]


if __name__ == "__main__":
    be_a_host(*sys.argv[1:])
