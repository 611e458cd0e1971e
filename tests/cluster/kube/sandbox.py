"""The node's namespaces, seen from the host: made, reached into, and taken away whole.

All that a cluster leaves on the host is here: the process tree under `init.py`, the cable `<name>0`, the
control group `<name>-cluster`, the state folder, and the sysctls that the kubelet sets for the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import cgroups
from .commands import command
from .errors import ClusterError
from .settings import SOURCES, Settings
from .waiting import until

SYSCTLS = Path("/proc/sys")
RARELY_COLLECTED = {"GOGC": "400"}
"""Kubernetes' programs are Go's, and collecting garbage is much of what they do: memory is cheaper here than time."""
# What the kubelet sets (pkg/kubelet/cm/container_manager_linux.go, setupKernelTunables); these belong to
# the whole machine, not to a namespace, so they are put back.
TUNABLES = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


def started_at(pid: int) -> str | None:
    """When a process started, in clock ticks since boot: with its id, its identity. None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # field 22 of proc(5); the name before may hold anything
    return None if fields[0] == "Z" else fields[19]


class Sandbox:
    """The namespaces of one node."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.record = settings.state / "host.json"
        self.process: subprocess.Popen[bytes] | None = None  # ours to reap, if we have started it

    @property
    def pid(self) -> int | None:
        """The process on the host that is the node's PID 1, if it is alive."""
        try:
            known = json.loads(self.record.read_text())
        except (OSError, ValueError):
            return None
        pid = int(known.get("pid", 0))
        return pid if pid and started_at(pid) == known["started"] else None

    def create(self) -> None:
        """Make the namespaces and the cable; `init.py` answers when this returns."""
        settings = self.settings
        if Path("/sys/class/net", settings.device).exists():
            raise ClusterError(
                f"The network device {settings.device} is there already, and not this cluster's",
                "Another test cluster has the name; set DEVLOOP_TEST_CLUSTER=NAME:INDEX for a second one.",
            )
        if any(settings.state.is_relative_to(each) for each in ("/run", "/var", "/sys", "/proc")):
            raise ClusterError(
                f"The state folder {settings.state} lies where the node has files of its own",
                "Set XDG_STATE_HOME to a folder that is under neither /run nor /var.",
            )
        settings.state.mkdir(parents=True, exist_ok=True)
        sysctls = {each: (SYSCTLS / each).read_text().strip() for each in TUNABLES}
        self.write_record({"sysctls": sysctls})
        with (settings.state / "init.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                    *("--propagation", "slave", sys.executable, "-I", "-S", str(SOURCES / "init.py")),
                    *(str(settings.state), settings.cgroup),
                    *(
                        f"{settings.node_ip_of(each)}/{settings.prefix(each)},{settings.host_ip(each)}"
                        for each in settings.families
                    ),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/run"},
            )
        assert process.stdin is not None
        pid = self.child_of(process)
        self.write_record({"sysctls": sysctls, "pid": pid, "started": started_at(pid)})
        device = settings.device
        command("ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        for family in settings.families:
            # Nobody else is on this cable, so no address has to be asked for first.
            alone = ["nodad"] if family.version == 6 else []
            address = f"{settings.host_ip(family)}/{settings.prefix(family)}"
            command("ip", "address", "add", address, "dev", device, *alone)
        command("ip", "link", "set", device, "up")
        process.stdin.write(b"\n")
        process.stdin.close()
        until(lambda: self.answers(process), 10, "The node's first process does not answer", self.log_tail)
        self.process = process

    def child_of(self, process: subprocess.Popen[bytes]) -> int:
        """The id of the one child that `unshare` forks, once it runs in namespaces of its own."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        found: list[int] = []

        def forked() -> bool:
            if process.poll() is not None:
                raise ClusterError(f"unshare ended at once: {self.log_tail()}", "Are you root?")
            found[:] = [int(each) for each in children.read_text().split()]
            return bool(found)

        until(forked, 10, "unshare makes no process", self.log_tail)
        return found[0]

    def answers(self, process: subprocess.Popen[bytes]) -> bool:
        if process.poll() is not None:
            raise ClusterError(f"The node's first process ended: {self.log_tail()}")
        with contextlib.suppress(OSError):
            return bool(self.ask(do="status")["ok"])
        return False

    def log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return (self.settings.state / "init.log").read_text()[-2000:].strip()
        return ""

    def write_record(self, what: dict[str, Any]) -> None:
        making = self.record.with_suffix(".new")
        making.write_text(json.dumps(what))
        making.rename(self.record)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Ask `init.py`; an OSError means that nobody answers."""
        # A relative name: a Unix socket's is at most 107 bytes, and a home folder may be deep.
        path = self.settings.state / "init.sock"
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(60)
                connection.connect(f"/proc/self/fd/{folder}/{path.name}")
                connection.sendall(json.dumps(request).encode() + b"\n")
                with connection.makefile() as lines:
                    answer: dict[str, Any] = json.loads(lines.readline() or "{}")
        finally:
            os.close(folder)
        if not answer.get("ok"):
            raise ClusterError(f"The node: {answer.get('error', 'no answer')}", self.log_tail())
        return answer

    def start(self, name: str, argv: list[str], env: dict[str, str] | None = None) -> None:
        """Start a program in the node; its output goes to `state/logs/NAME.log`."""
        log = self.settings.state / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        self.ask(do="start", name=name, argv=argv, log=str(log), env={**RARELY_COLLECTED, **(env or {})})

    def stop(self, name: str, seconds: float = 10) -> None:
        """Stop a program of the node's with SIGTERM, and with SIGKILL after `seconds`."""
        self.ask(do="stop", name=name, seconds=seconds)

    def running(self) -> dict[str, int]:
        """The node's programs, with their process ids inside the node."""
        answer: dict[str, int] = self.ask(do="status")["running"]
        return answer

    def inside(self, *argv: str) -> list[str]:
        """The command line that runs `argv` in the node's namespaces, from the host."""
        pid = self.pid
        if pid is None:
            raise ClusterError(f"The cluster {self.settings.name} is not running", "Run: make cluster")
        return ["nsenter", "--target", str(pid), "--net", "--mount", "--pid", "--", *argv]

    def destroy(self) -> None:
        """End every process of the node and remove what it had on the host. Works after a crash too."""
        known: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(self.record.read_text())
        if (pid := self.pid) is not None:
            # PID 1's death is SIGKILL to all the others, and the last of them lets the mounts go.
            namespace = Path(f"/proc/{pid}/ns/pid").readlink()
            os.kill(pid, signal.SIGKILL)
            until(lambda: not members(namespace), 20, "Processes of the node do not end")
        if self.process is not None:
            self.process.wait(timeout=10)
            self.process = None
        device = self.settings.device
        if Path("/sys/class/net", device).exists():
            # The kernel removes it with the namespace, some time later; "gone" is to mean gone.
            with contextlib.suppress(ClusterError):
                command("ip", "link", "delete", device)
            until(lambda: not Path("/sys/class/net", device).exists(), 10, f"{device} does not go")
        cgroups.remove(self.settings.cgroup)
        for name, value in known.get("sysctls", {}).items():
            path = SYSCTLS / name
            if path.read_text().strip() != value:
                path.write_text(value)
        if self.settings.state.exists():
            remove(self.settings.state)


def members(namespace: Path) -> list[int]:
    """The processes of a process namespace, given as `/proc/PID/ns/pid` reads."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (each / "ns/pid").readlink() == namespace:
                found.append(int(each.name))
    return found


def remove(folder: Path) -> None:
    """Remove a folder; a mount that is still below it makes this fail before anything is deleted."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if below := [each for each in mounted if Path(each).is_relative_to(folder)]:
        raise ClusterError(f"Still mounted: {', '.join(below)}", "Unmount these by hand, then run this again.")
    shutil.rmtree(folder)
