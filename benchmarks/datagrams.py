"""UDP of a local service to the cluster, by devloop's whole path and beside going straight.

devloop: a process in its namespace → the engine → an SSH session of the agent's → a UDP socket of the agent's → the
server. Straight: the same process without a namespace, to the same server. Server, agent, engine and client are
processes of their own; the agent is one of this machine's, so that no cluster is needed, and its network costs nothing.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncssh

from benchmarks.figures import Result, Table, percentile
from devloop.agent import server
from devloop.agent.loops import new_event_loop
from devloop.net.datagrams import Udp
from devloop.net.router import Destination, RefusedError, ToLink
from devloop.remote.life import LiveLink
from devloop.remote.ssh import connect
from devloop.remote.sshcarrier import SshCarrier
from tests.integration.net.conftest import SYSTEM_PYTHON, Pod
from tests.integration.net.conftest import Table as Router
from tests.integration.remote.admitted import Admitted

ADDRESS, PORT = "10.96.0.1", 8125
SIZES = (64, 1400)
WINDOW = 64
"""Datagrams that are on their way at a time, when it is asked how many go."""
SERVER = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1], flush=True)
while True:
    data, client = s.recvfrom(70000)
    s.sendto(data, client)
"""
CLIENT = """
import json, socket, sys, time
what, host, port, seconds, size, window = sys.argv[1], sys.argv[2], *(float(each) for each in sys.argv[3:])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
s.connect((host, int(port)))
s.settimeout(1)
clock, data = time.perf_counter, bytes(int(size))
def trips():
    found, lost = [], 0
    for _ in range(20):
        s.send(data)
        try: s.recv(70000)
        except OSError: pass
    end = clock() + seconds
    while clock() < end:
        begin = clock()
        s.send(data)
        try: s.recv(70000)
        except OSError: lost += 1
        else: found.append(clock() - begin)
    return {"trips": found, "lost": lost}
def rate():
    # So many are on their way at all times; one that is lost is given up after a second, with all others.
    sent = got = lost = 0
    begin, end = clock(), clock() + seconds
    while clock() < end:
        while sent - got < window: s.send(data); sent += 1
        try: s.recv(70000)
        except OSError: lost += sent - got; sent = got
        else: got += 1
    return {"rate": got / (clock() - begin), "lost": lost}
print(json.dumps({"trips": trips, "rate": rate}[what]()))
"""
Ask = Callable[..., Awaitable[Any]]


async def agent(folder: Path) -> None:
    """An agent with the key of `measure`, until its standard input ends."""
    server.cluster_api = lambda: None
    async with server.serve(folder, 0, admission=Admitted(asyncssh.read_public_key(folder / "bench.pub"))) as port:
        print(port, flush=True)
        await asyncio.to_thread(sys.stdin.read)


@contextmanager
def started(*command: str) -> Iterator[int]:
    """A process that says its port; it is killed in the end."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


class ToServer(Router):
    """Datagrams to `ADDRESS` go by a link to the server."""

    def __init__(self, link: LiveLink, port: int) -> None:
        super().__init__()
        self._target = ToLink(link, "127.0.0.1", port)

    async def datagrams(self, service: str, destination: Destination) -> ToLink:
        """See `DatagramRouter`."""
        if destination != Destination(ADDRESS, PORT):
            raise RefusedError("nothing is there")
        return self._target

    def stale(self, target: Any) -> bool:
        """See `DatagramRouter`."""
        return False


async def measure(folder: Path, agent_port: int, key: asyncssh.SSHKey, port: int, *, quick: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "username": "bench",
        "client_keys": [key],
        "known_hosts": None,
        "config": None,
        "agent_path": None,
    }

    async def dial(tell: Any) -> SshCarrier:
        return SshCarrier(await connect("127.0.0.1", where="here", port=agent_port, **options), "agent", "here")

    link = LiveLink("agent", "here", dial)
    link.start()
    await link.ready(20)
    router = ToServer(link, port)
    pod = Pod("bench", router, ordinary=True)
    await pod.open()
    udp = Udp("bench", pod.inside, router, pod.lines.append)
    udp.start()

    async def through(*arguments: str) -> Any:
        done = await pod.run(SYSTEM_PYTHON, "-I", "-S", "-c", CLIENT, arguments[0], ADDRESS, str(PORT), *arguments[1:])
        if done.code:
            raise SystemExit(done.err)
        return json.loads(done.out)

    async def straight(*arguments: str) -> Any:
        command = (SYSTEM_PYTHON, "-I", "-S", "-c", CLIENT, arguments[0], "127.0.0.1", str(port), *arguments[1:])
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        return json.loads((await process.communicate())[0])

    ways: dict[str, Ask] = {"devloop (agent)": through, "straight": straight}
    rounds, seconds = (1, 0.3) if quick else (5, 2.0)
    raw: dict[str, Any] = {
        f"{name}, {size} bytes": {"trips": [], "lost": 0, "rate": [], "dropped": 0} for name in ways for size in SIZES
    }
    for _ in range(rounds):
        for size in SIZES:
            for name, ask in ways.items():
                values = raw[f"{name}, {size} bytes"]
                found = await ask("trips", str(seconds), str(size), "1")
                values["trips"].append(found["trips"])
                values["lost"] += found["lost"]
                found = await ask("rate", str(seconds), str(size), str(WINDOW))
                values["rate"].append(found["rate"])
                values["dropped"] += found["lost"]
    udp.close()
    await pod.close()
    await link.close()
    return raw


def run(*, quick: bool) -> Result:
    """Measure, on the event loop that the engine has."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="devloop-datagrams-")))
        host, key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
        (folder / "host_key").write_bytes(host.export_private_key("openssh"))
        (folder / "bench.pub").write_bytes(key.export_public_key("openssh"))
        port = stack.enter_context(started(sys.executable, "-u", "-c", SERVER))
        agent_port = stack.enter_context(started(sys.executable, "-m", "benchmarks.datagrams", str(folder)))
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            raw = runner.run(measure(folder, agent_port, key, port, quick=quick))
    table = Table(
        "UDP to the cluster", ["", "trip p50, ms", "trip p99, ms", "lost", "datagrams/s there and back", "dropped"]
    )
    for name, values in raw.items():
        p50, p99 = (statistics.median(percentile(each, at) for each in values["trips"]) * 1e3 for at in (50, 99))
        table.rows.append(
            [
                *(name, f"{p50:.2f}", f"{p99:.2f}", str(values["lost"])),
                *(f"{statistics.median(values['rate']):.0f}", str(values["dropped"])),
            ]
        )
    table.notes.append(f"trips: one after the other; datagrams/s: {WINDOW} on their way at a time")
    return Result("datagrams", [table], raw)


if __name__ == "__main__":
    asyncio.run(agent(Path(sys.argv[1])))
