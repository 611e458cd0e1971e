"""PID 1 of the node: prepares the node's mounts and network, then starts and stops its programs.

Run by `sandbox.py` inside new network, mount and process namespaces, with the standard library alone.
It listens on a Unix socket for one JSON object a line, and answers each with one:

    {"do": "start", "name": NAME, "argv": [...], "log": PATH, "env": {...}}   {"ok": true, "pid": PID}
    {"do": "stop", "name": NAME, "seconds": 10}     SIGTERM, then SIGKILL     {"ok": true, "status": N}
    {"do": "status"}                                                          {"ok": true, "running": {...}}

or {"ok": false, "error": TEXT}. When it dies, the kernel kills every process of the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

CLONE_NEWCGROUP = 0x02000000


def run(*argv: str) -> None:
    """Run a command; what it says goes into the error."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")


def prepare_cgroups(name: str) -> None:
    """Make the control group `name` the root of what the node sees, in every hierarchy.

    containerd puts containers under /k8s.io of each hierarchy, wherever it runs; so they come to lie below
    our own group, which the host can find and remove. A cgroup namespace is rooted where the process is
    that makes it: step into the group for that moment, and back, so that the node's own programs stay under
    the limits, and within the reach, of whoever started them.
    """
    top = Path("/sys/fs/cgroup")
    groups = [each for each in (top / name, *top.glob(f"*/{name}")) if not each.parent.is_symlink()]
    groups = [each for each in groups if each.is_dir()]
    before = [os.open(group.parent / own_group(group.parent) / "cgroup.procs", os.O_WRONLY) for group in groups]
    for group in groups:
        (group / "cgroup.procs").write_text("0")  # 0 is whoever writes it
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWCGROUP):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWCGROUP)")
    for group, file in zip(groups, before, strict=True):
        os.write(file, b"0")
        os.close(file)
        run("mount", "--bind", str(group), str(group.parent))


def own_group(hierarchy: Path) -> str:
    """This process' group in a hierarchy, relative to its root (cgroups(7), /proc/PID/cgroup)."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        names = set(controllers.removeprefix("name=").split(","))
        unified = not controllers and (hierarchy / "cgroup.controllers").exists()
        if unified or (controllers and names & set(hierarchy.name.split(","))):
            return path.lstrip("/")
    raise OSError(f"no control group of this process in {hierarchy}")


def prepare_mounts(state: Path) -> None:
    """Give the node a /run and a /var of its own.

    /var is an overlay: the node reads the machine's, and what it writes lies in the state folder. The three
    folders that can't lie on an overlay (container snapshots are overlays themselves, and the kubelet asks
    for the disk beneath its own) are bound from the state folder.
    """
    # A peer group of our own: the kubelet needs shared mounts, and none may reach the machine.
    run("mount", "--make-rshared", "/")
    upper, work = state / "var", state / "var-work"
    for folder in (upper, work):
        folder.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/var,upperdir={upper},workdir={work}", "/var")
    for name in ("containerd", "kubelet", "etcd"):
        source, target = state / name, Path("/var/lib") / name
        source.mkdir(parents=True, exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", str(source), str(target))
    run("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/run")
    Path("/run/lock").mkdir(mode=0o1777)


def prepare_network(ways: list[tuple[str, str]]) -> None:
    """Bring up what the host has moved into this namespace: eth0, the node's one way out.

    `ways` has an address with its prefix, and the gateway, for each family.
    """
    run("ip", "link", "set", "lo", "up")
    for address, _ in ways:
        run("ip", "address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
    run("ip", "link", "set", "eth0", "up")
    for _, gateway in ways:
        run("ip", "-6" if ":" in gateway else "-4", "route", "add", "default", "via", gateway)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    if any(":" in gateway for _, gateway in ways):
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
    with contextlib.suppress(OSError):  # not there where bridge netfilter is not loaded
        Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text("1")


class Programs:
    """The node's programs by name, and the reaper of every orphan in the namespace."""

    def __init__(self) -> None:
        self.pids: dict[str, int] = {}
        self.ended: dict[int, asyncio.Future[int]] = {}

    def reap(self) -> None:
        """Collect every process that has ended; containerd's shims are re-parented to PID 1 by design."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            future = self.ended.pop(pid, None)
            if future is not None and not future.done():
                future.set_result(os.waitstatus_to_exitcode(status))
            for name, each in list(self.pids.items()):
                if each == pid:
                    del self.pids[name]

    def start(self, name: str, argv: list[str], log: str, env: dict[str, str]) -> int:
        if name in self.pids:
            raise OSError(f"{name} is running already, as process {self.pids[name]}")
        writing = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawnp(
            argv[0],
            argv,
            {**os.environ, **env},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, writing, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGTERM],
        )
        self.pids[name] = pid
        self.ended[pid] = asyncio.get_running_loop().create_future()
        return pid

    async def stop(self, name: str, seconds: float) -> int | None:
        pid = self.pids.get(name)
        if pid is None:
            return None
        ended = self.ended[pid]
        os.kill(pid, signal.SIGTERM)
        try:
            return await asyncio.wait_for(asyncio.shield(ended), seconds)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            return await ended

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request:
            case {"do": "start", "name": str(name), "argv": [*argv], "log": str(log)}:
                return {"pid": self.start(name, argv, log, request.get("env") or {})}
            case {"do": "stop", "name": str(name)}:
                return {"status": await self.stop(name, float(request.get("seconds", 10)))}
            case {"do": "status"}:
                return {"running": self.pids}
        raise OSError(f"unknown request {request!r}")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                try:
                    reply = {"ok": True, **await self.answer(json.loads(line))}
                except (OSError, ValueError) as error:
                    reply = {"ok": False, "error": str(error)}
                writer.write(json.dumps(reply).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            pass  # whoever asked has gone
        finally:
            writer.close()


async def main(state: Path, cgroup: str, ways: list[tuple[str, str]]) -> None:
    programs = Programs()
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, programs.reap)
    prepare_mounts(state)
    prepare_cgroups(cgroup)
    prepare_network(ways)
    server = await asyncio.start_unix_server(programs.serve, state / "init.sock")
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    folder, cgroup_name, *each_way = sys.argv[1:]
    # The veth's end is moved in by the host once this process exists: wait for that word.
    sys.stdin.readline()
    try:
        pairs = [(address, gateway) for address, _, gateway in (each.partition(",") for each in each_way)]
        asyncio.run(main(Path(folder), cgroup_name, pairs))
    except OSError as problem:
        sys.exit(f"init: {problem}")
