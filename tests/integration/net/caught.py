"""A pod with a door, its agent and a developer's engine, in network namespaces of this program's own: it is run by
`test_caught.py` under `unshare --user --net`. What the door tells the kernel is real, and so is the kernel.

This namespace is the cluster's: the agent, the client and the developer's local service are in it. The pod has another.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from devloop.agent import doors
from devloop.agent.datagrams import DatagramSocket
from devloop.agent.inbound import ToEngine
from devloop.agent.member import Member
from devloop.agent.pods import PodWay
from devloop.agent.spec import Spec
from devloop.attach import inbound
from devloop.attach.inbound import Inbound

AGENT, POD = "10.9.0.1", "10.9.0.2"
AGENT_6, POD_6 = "fd00:9::1", "fd00:9::2"
PORT, SERVICE_PORT = 9125, 8125
ORIGINAL = """
import socket, sys, threading
def serve(family, address):
    s = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((address, int(sys.argv[1])))
    print("bound", flush=True)
    while True:
        data, client = s.recvfrom(70000)
        s.sendto(b"pod:" + data, client)
threading.Thread(target=serve, args=(socket.AF_INET, "0.0.0.0"), daemon=True).start()
serve(socket.AF_INET6, "::")
"""


async def until(there: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(15):
        while not there():  # noqa: ASYNC110 (of the kernel)
            await asyncio.sleep(0.01)
    print("·", what, file=sys.stderr)


def run(*command: str) -> None:
    subprocess.run(command, check=True)


class Pipe:
    """A channel whose bytes the other end has at once."""

    to: Any

    def write(self, data: bytes) -> None:
        asyncio.get_running_loop().call_soon(self.to, data)

    def exit(self, code: int) -> None: ...

    def close(self) -> None: ...


class Local:
    """A local service on the host's network; it answers "here:" and what it was told."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.bind(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.sources: list[tuple[str, int]] = []
        asyncio.get_running_loop().add_reader(self.sock, self._answer)

    def _answer(self) -> None:
        data, client = self.sock.recvfrom(70000)
        self.sock.sendto(b"here:" + data, client)

    async def datagrams(self, client: Any, port: int, source: tuple[str, int]) -> Any:
        self.sources.append(source)
        return DatagramSocket("127.0.0.1", port, client.received, client.refused)


class Client:
    """A socket of a client's, connected, so that only answers from the address that it has asked reach it."""

    def __init__(self, address: str, port: int = PORT) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.connect((address, port))
        self.own = self.sock.getsockname()[:2]

    async def ask(self, data: bytes = b"x", seconds: float = 3) -> str:
        """Who answers: "here", "pod", or why nobody does."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                await loop.sock_sendall(self.sock, data)
                if not data:
                    self.sock.send(b"")
                answer = await loop.sock_recv(self.sock, 70000)
        except (OSError, TimeoutError) as problem:
            return type(problem).__name__
        who, _, rest = answer.partition(b":")
        assert rest == data, (len(rest), len(data))
        return who.decode()

    async def hears(self, who: str) -> None:
        """Ask until that one answers."""
        async with asyncio.timeout(15):
            while await self.ask(seconds=0.3) != who:  # noqa: ASYNC110 (of the kernel)
                await asyncio.sleep(0.02)


class Cluster:
    """What the agent has, without Envoy and SSH."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.changed = asyncio.Event()
        self.way = PodWay("/nowhere", lambda: self.members, self.changed.set)  # type: ignore[arg-type]
        self.local = Local()
        self.connection: Any = object()

    def connect(self) -> ToEngine:
        """A session of the developer's engine."""
        up, down = Pipe(), Pipe()
        engine = Inbound()
        engine.connection_made(up)
        agent = self.way.inbound.session(self.connection, down)
        up.to, down.to = agent.received, engine.data_received
        engine.serve("ada", SERVICE_PORT, self.local, self.local.port, lambda: None)  # type: ignore[arg-type]
        return agent

    async def attach(self) -> Member:
        spec = Spec("ada", "ada", "h", "intercept", "now", "echo", way="pods", datagrams={SERVICE_PORT: 1})
        member = Member(spec, self.connection, None, 0.0, 0.0)
        self.members.append(member)
        target = {"uid": "u0", "name": "echo-0", "addresses": [POD, POD_6], "ports": {}, "udp": {SERVICE_PORT: PORT}}
        await self.way.ask(member, [target])
        return member

    async def apply(self) -> None:
        await self.way.prepare()
        self.way.plans(lambda service, port: "http")
        await self.way.catch([])

    async def door(self, pod: int) -> asyncio.subprocess.Process:
        """Begin one, and wait until it is there and has been told."""
        self.changed.clear()
        env = {
            **os.environ,
            "DEVLOOP_DOOR_AGENT": f"{AGENT}:{doors.PORT}",
            "DEVLOOP_DOOR_TOKEN": self.way._doors.token,
            "DEVLOOP_DOOR_POD": "u0",
            "DEVLOOP_DOOR_TABLE": "devloop_x",
            "DEVLOOP_DOOR_PASS": "",
        }
        # As in its container: NET_ADMIN, and no raw sockets.
        command = ("nsenter", "-t", str(pod), "-n", "setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all")
        process = await asyncio.create_subprocess_exec(
            *command, sys.executable, "-m", "devloop.agent.door", env=env, stdout=sys.stderr
        )
        async with asyncio.timeout(15):
            await self.changed.wait()
        await self.apply()
        return process


@asynccontextmanager
async def a_pod() -> AsyncIterator[int]:
    """A network namespace with the original in it; its holder's process."""
    run("ip", "link", "set", "lo", "up")
    holder = await asyncio.create_subprocess_exec("unshare", "-n", "sleep", "600")
    mine, its = (Path(f"/proc/{pid}/ns/net") for pid in ("self", holder.pid))
    await until(lambda: its.readlink() != mine.readlink(), "the pod has a network")
    run("ip", "link", "add", "name", "v0", "type", "veth", "peer", "name", "v1", "netns", str(holder.pid))
    inside = ("nsenter", "-t", str(holder.pid), "-n")
    for where, device, addresses in (((), "v0", (AGENT, AGENT_6)), (inside, "v1", (POD, POD_6))):
        run(*where, "ip", "addr", "add", f"{addresses[0]}/24", "dev", device)
        run(*where, "ip", "addr", "add", f"{addresses[1]}/64", "dev", device, "nodad")
        run(*where, "ip", "link", "set", device, "up")
    run(*inside, "ip", "link", "set", "lo", "up")
    original = await asyncio.create_subprocess_exec(
        *inside, sys.executable, "-c", ORIGINAL, str(PORT), stdout=asyncio.subprocess.PIPE
    )
    assert original.stdout is not None
    await original.stdout.readexactly(2 * len("bound\n"))
    try:
        yield holder.pid
    finally:
        original.kill()
        holder.kill()
        await asyncio.gather(original.wait(), holder.wait())


async def sizes(cluster: Cluster, pod: int, clients: list[Client]) -> None:
    """Datagrams of each size go there and back, and come from the address that was asked."""
    assert [await each.ask() for each in clients] == ["here", "here", "here"]
    for size in (1, 1472, 8192, 65_000):
        assert await clients[0].ask(b"x" * size) == "here", size
        assert await clients[2].ask(b"y" * size) == "here", size
    # Nothing but its size: an empty one is a datagram.
    clients[1].sock.send(b"")
    assert await asyncio.get_running_loop().sock_recv(clients[1].sock, 100) == b"here:"
    assert cluster.local.sources == [each.own for each in clients], "the engine knows who asks"


async def leaving(cluster: Cluster, pod: int, clients: list[Client]) -> None:
    """Whoever leaves, or goes down, leaves everything to the original, for sockets that are known as well."""
    (member,) = cluster.members
    for name, value in (("up", False), ("silent", True), ("deaf_datagrams", frozenset({SERVICE_PORT}))):
        before = getattr(member, name)
        setattr(member, name, value)
        await cluster.apply()
        assert [await each.ask() for each in clients] == ["pod", "pod", "pod"], name
        setattr(member, name, before)
        await cluster.apply()
        assert [await each.ask() for each in clients] == ["here", "here", "here"], name
    cluster.members.clear()
    await cluster.apply()
    assert [await each.ask() for each in clients] == ["pod", "pod", "pod"]


async def a_lost_engine(cluster: Cluster, pod: int, clients: list[Client]) -> None:
    """`kill -9`: its session ends, and the next one takes what comes from then on, by flows that are new."""
    assert [await each.ask() for each in clients] == ["here", "here", "here"]
    session = cluster.way.inbound.engine(cluster.connection)
    assert session is not None and len(session) == 3
    session.ended()
    cluster.members[0].silent = True
    await cluster.apply()
    assert [await each.ask() for each in clients] == ["pod", "pod", "pod"]
    again = cluster.connect()
    cluster.members[0].silent = False
    await cluster.apply()
    assert [await each.ask() for each in clients] == ["here", "here", "here"] and len(again) == 3


async def a_killed_door(cluster: Cluster, pod: int, clients: list[Client]) -> None:
    """The kernel lets what comes pass at once; what is left of it is no rule that does anything."""
    assert await clients[0].ask() == "here"
    process = cluster.process  # type: ignore[attr-defined]
    process.send_signal(signal.SIGKILL)
    await process.wait()
    assert [await each.ask() for each in clients] == ["pod", "pod", "pod"]
    session = cluster.way.inbound.engine(cluster.connection)
    assert session is not None
    await until(lambda: len(session) == 0, "its flows are over")


async def a_lost_agent(cluster: Cluster, pod: int, clients: list[Client]) -> None:
    """The agent's end is closed: the door ends by itself, and its table with it."""
    assert await clients[0].ask() == "here"
    await cluster.way._doors.close()
    for each in clients:
        await each.hears("pod")
    process = cluster.process  # type: ignore[attr-defined]
    async with asyncio.timeout(15):
        assert await process.wait() == 0
    command = ("nsenter", "-t", str(pod), "-n", "nft", "list", "tables")
    listed = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert await listed.communicate() == (b"", None)


async def bounds(cluster: Cluster, pod: int, clients: list[Client]) -> None:
    """A flow too many ends the one that was idle for the longest, and nothing else; another port stays as it was."""
    others = [Client(POD) for _ in range(6)]
    assert [await each.ask() for each in others] == ["here"] * 6
    session = cluster.way.inbound.engine(cluster.connection)
    assert session is not None
    await until(lambda: len(session) == 4, "four flows are left")
    assert [await each.ask() for each in others] == ["here"] * 6
    assert await Client(POD, PORT + 1).ask() == "ConnectionRefusedError"


SCENES: dict[str, Callable[[Cluster, int, list[Client]], Awaitable[None]]] = {
    each.__name__: each for each in (sizes, leaving, a_lost_engine, a_killed_door, a_lost_agent, bounds)
}


async def main(name: str) -> None:
    async with a_pod() as pod:
        clients = [Client(POD), Client(POD), Client(POD_6)]
        assert [await each.ask() for each in clients] == ["pod", "pod", "pod"], "before anybody attaches"
        cluster = Cluster()
        cluster.connect()
        await cluster.attach()
        process = await cluster.door(pod)
        cluster.process = process  # type: ignore[attr-defined]
        try:
            await SCENES[name](cluster, pod, clients)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    print(json.dumps("done"))


if __name__ == "__main__":
    if sys.argv[1] == "bounds":
        inbound.MAX_FLOWS = 4  # type: ignore[misc]
    asyncio.run(main(sys.argv[1]))
