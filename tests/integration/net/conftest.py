"""Services in real namespaces: held by a tiny process, as an ordinary user where the tests run as root."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from devloop.errors import DevloopError
from devloop.net.check import PACKAGES, check
from devloop.net.inside import Inside, seqpacket_pair
from devloop.net.proxy import Proxy
from devloop.net.publish import Publisher
from devloop.net.router import Destination, HostLoopback, RefusedError
from devloop.relay import Target
from tests import needs, waiting

DEADLINE = 20.0
SYSTEM_PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
"""The services' Python: one that any user may run."""
NOBODY = 65534


def _ordinary() -> list[str]:
    """What makes a command run as an ordinary user, where this process is root's."""
    if os.getuid() != 0:
        return []
    return [needs.program("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips, with the reason, where namespaces can't be made; on CI that is a failure."""
    try:
        asyncio.run(check())
    except DevloopError as error:
        needs.missing(str(error))


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that any user may read; pytest's own are its user's alone."""
    folder = Path(tempfile.mkdtemp(prefix="devloop-net-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


until = partial(waiting.until, seconds=DEADLINE)
"""For the kernel's view of a process."""


class Table:
    """A router that looks up (address, port) and remembers what it was asked."""

    def __init__(self) -> None:
        self.targets: dict[tuple[str, int], Target] = {}
        self.asked: list[Destination] = []
        self.otherwise: Callable[[Destination], Target] | None = None

    async def route(self, service: str, destination: Destination) -> Target:
        self.asked.append(destination)
        if destination.is_loopback:
            return HostLoopback(destination.port, destination.address)
        found = self.targets.get((destination.address, destination.port))
        if found is None and self.otherwise is not None:
            found = self.otherwise(destination)
        if found is None:
            raise RefusedError(f"nothing is at {destination}")
        return found


@dataclass
class Done:
    code: int
    out: str
    err: str


class Running:
    """A process inside."""

    def __init__(self, pid: int, code: asyncio.Future[int]) -> None:
        self.pid = pid
        self.code = code

    def signal(self, number: int = signal.SIGTERM) -> None:
        os.kill(self.pid, number)


class Pod:
    """A service with its holder."""

    def __init__(self, name: str, router: Table, *, ordinary: bool) -> None:
        self.name = name
        self.router = router
        self.lines: list[str] = []
        self.lost = asyncio.Event()
        self._ordinary = _ordinary() if ordinary else []
        self._codes: dict[int, asyncio.Future[int]] = {}
        self._spawned: asyncio.Queue[int] = asyncio.Queue()
        self.made: tuple[str, ...] = ()

    async def open(self) -> None:
        ours, theirs = seqpacket_pair()
        self._commands, commands = seqpacket_pair()
        hold = Path(__file__).with_name("hold.py")
        with theirs, commands:
            fds = (theirs.fileno(), commands.fileno())
            self.holder = subprocess.Popen(  # noqa: ASYNC220 - it is there at once
                [*self._ordinary, SYSTEM_PYTHON, "-I", "-S", str(hold), str(fds[0]), str(fds[1]), PACKAGES],
                pass_fds=fds,
                cwd="/",
            )
        self._commands.setblocking(False)
        asyncio.get_running_loop().add_reader(self._commands, self._told)
        self.inside = Inside(self.name, ours, self.lost.set)
        await asyncio.wait_for(self.inside.enter(), DEADLINE)
        self.proxy = Proxy(self.name, self.inside.proxy, self.router, self.lines.append)
        await self.proxy.start()
        self.publisher = Publisher(self.name, self.inside, self.lines.append)

    def _told(self) -> None:
        try:
            data = self._commands.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._commands)
            return
        message = json.loads(data)
        future = self._codes.setdefault(message["pid"], asyncio.get_running_loop().create_future())
        if "code" in message:
            future.set_result(message["code"])
        else:
            self._spawned.put_nowait(message["pid"])

    async def start(
        self, *argv: str, out: int | None = None, err: int | None = None, stdin: int | None = None, cwd: str = "/"
    ) -> Running:
        message: dict[str, Any] = {"argv": argv, "env": {"PATH": os.environ["PATH"], "HOME": "/tmp"}, "cwd": cwd}
        with socket.socket() as null:  # nothing to read from
            fds = [null.fileno() if stdin is None else stdin, 2 if out is None else out, 2 if err is None else err]
            socket.send_fds(self._commands, [json.dumps(message).encode()], fds)
        pid = await asyncio.wait_for(self._spawned.get(), DEADLINE)
        return Running(pid, self._codes[pid])

    async def run(self, *argv: str, stdin: str = "") -> Done:
        """A command inside, to its end."""
        with tempfile.TemporaryFile() as into, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            into.write(stdin.encode())
            into.seek(0)
            process = await self.start(*argv, out=out.fileno(), err=err.fileno(), stdin=into.fileno())
            code = await asyncio.wait_for(process.code, DEADLINE)
            out.seek(0)
            err.seek(0)
            return Done(code, out.read().decode(), err.read().decode())

    async def python(self, script: str, *arguments: str) -> str:
        """What a script inside prints."""
        done = await self.run(SYSTEM_PYTHON, "-I", "-c", script, *arguments)
        assert done.code == 0, done.err
        return done.out.strip()

    async def serve(self, script: str, port: int) -> Running:
        """Start a script that listens on a port, and wait until it does."""
        running = await self.start(SYSTEM_PYTHON, "-I", "-c", script)
        await self.until_listening(port)
        return running

    async def until_listening(self, port: int) -> None:
        await until(lambda: any(found.port == port for found in self.inside.listeners()))

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._commands)
        await self.publisher.close()
        await self.proxy.close()
        self.inside.close()
        self._commands.close()
        await asyncio.to_thread(self.holder.wait)


class Cluster:
    """Pods that know each other's router."""

    def __init__(self) -> None:
        self.router = Table()
        self.pods: list[Pod] = []

    async def pod(self, name: str = "api", *, ordinary: bool = True) -> Pod:
        pod = Pod(name, self.router, ordinary=ordinary)
        await pod.open()
        self.pods.append(pod)
        return pod


@pytest.fixture
async def cluster(namespaces: None) -> AsyncIterator[Cluster]:
    cluster = Cluster()
    try:
        yield cluster
    finally:
        for pod in cluster.pods:
            await pod.close()


@pytest.fixture(params=["ordinary", "own"])
async def pod(request: pytest.FixtureRequest, cluster: Cluster) -> Pod:
    """One pod, as an ordinary user and as the user of the tests (which may be root)."""
    if request.param == "own" and os.getuid() != 0:
        pytest.skip("the tests run as an ordinary user already")
    return await cluster.pod(ordinary=request.param == "ordinary")
