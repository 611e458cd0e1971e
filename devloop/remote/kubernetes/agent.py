"""The link to a cluster: SSH to devloop's agent, and plain port-forwards where there can be none."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from devloop.agent.paths import GOODBYE
from devloop.datagrams import DatagramClient, DatagramFlow
from devloop.errors import RemoteError
from devloop.remote.imports import imported
from devloop.remote.life import HOLD_SECONDS, Carrier, LiveLink, answers_or_ends
from devloop.remote.link import CarrierLostError, PermanentError, Resolver
from devloop.remote.said import said

from .api import Api
from .identity import Identity, identity
from .install import IMAGE, LINGER_SECONDS, START_SECONDS, Installation
from .joining import PORT, Agent
from .kubeconfig import Kubeconfig
from .podstate import FOR_ADMINISTRATORS, AgentRefusedError

if TYPE_CHECKING:
    import socket

    from devloop.remote.direct import Direct
    from devloop.remote.lanes import Wire
    from devloop.remote.sshcarrier import SshCarrier

log = logging.getLogger(__name__)

P = TypeVar("P", bound=asyncio.Protocol)
T = TypeVar("T")
Way = Literal["auto", "agent", "portforward"]
# The container runs some tenths of a second before its SSH server listens.
KNOCK_SECONDS = 0.05
BETTER_SECONDS = 0.3
"""So long who wants the best connection for a long time waits for an answer from the pod's address; if there is one,
for the login as well, which takes eight round trips on a far network."""
CHECK_SECONDS = 1.5
"""A direct connection that does not answer within this time is given up; the link's own patience is longer."""


class KubernetesLink(LiveLink):
    """A link into one namespace of a cluster. Its kind is what the way has become: `agent` or `portforward`."""

    def __init__(
        self,
        kubeconfig: Kubeconfig,
        *,
        key_file: Path,
        way: Way = "auto",
        image: str = IMAGE,
        linger: int = LINGER_SECONDS,
        hold: float = HOLD_SECONDS,
        direct: bool | tuple[str, int] = True,
        mesh: bool = False,
    ) -> None:
        """`direct`: whether the agent's pod is tried at its own address, or at which other one (host, port). `mesh`:
        the namespace's service mesh may put its proxy into the agent's pod."""
        kind: Literal["agent", "portforward"] = "portforward" if way == "portforward" else "agent"
        super().__init__(kind, kubeconfig.where, self._connect, hold=hold)
        self.api = Api(kubeconfig)
        self._way = way
        self._key_file = key_file
        self._image = image
        self._linger = linger
        self._mesh = mesh
        self._direct = direct
        self._identity: Identity | None = None
        self._installation: Installation | None = None

    async def _connect(self, tell: Callable[[str], None]) -> Carrier:
        await imported("kubernetes.aio.client", "kubernetes.aio.config", "devloop.remote.sshcarrier")
        if self._way == "portforward":
            return await self._portforward(())
        if self._identity is None:
            self._identity = await asyncio.to_thread(identity, self._key_file)
        if self._installation is None:  # kept: the entry that it has made is good for the next connection too
            self._installation = Installation(self.api, self._identity, self._image, self._linger, mesh=self._mesh)
        try:
            return await dial(self._installation, tell, self._direct, self.refresh)
        except AgentRefusedError as problem:
            if self._way == "agent":
                hint = problem.hint or FOR_ADMINISTRATORS
                raise PermanentError(problem.what, where=problem.where, hint=hint) from problem
            return await self._portforward((f"plain port-forwards, as the agent can't be used: {problem.what}",))

    @property
    def key(self) -> str:
        """The fingerprint of the key that the agent knows this developer by; empty before the first connection."""
        return self._identity.key.get_fingerprint() if self._identity is not None else ""

    async def best(self) -> SshCarrier | None:
        """The SSH connection to the agent for what stays; None in a gap, and when plain port-forwards are used."""
        carrier = self._carrier
        return await carrier.best() if isinstance(carrier, AgentCarrier) else None

    def holds(self, ssh: SshCarrier) -> bool:
        """Whether this is one of the link's SSH connections, now."""
        return isinstance(self._carrier, AgentCarrier) and ssh in self._carrier.connections

    async def _portforward(self, notes: tuple[str, ...]) -> Carrier:
        from .portforward import PortForwardCarrier

        carrier = PortForwardCarrier(self.api, notes)
        await carrier.begin()
        return carrier

    async def close(self) -> None:
        """End the link; the agent goes with its last client."""
        await super().close()
        await self.api.close()


async def dial(
    installation: Installation,
    tell: Callable[[str], None],
    direct: bool | tuple[str, int],
    changed: Callable[[], None],
) -> Carrier:
    """Provide the agent and log in. For `direct` and `changed` see KubernetesLink and Direct."""
    import asyncssh

    from devloop.remote.direct import Direct
    from devloop.remote.ssh import connect
    from devloop.remote.sshcarrier import SshCarrier

    from .podport import PodPort, PortForwardLostError
    from .spdy import connect_pod

    api = installation.api
    agent = await installation.provide(tell)
    who = installation.who
    began = time.monotonic()

    async def login(**way: Any) -> Any:
        return await connect(
            "127.0.0.1",
            where=api.where,
            username=agent.user,
            client_keys=[who.key],
            known_hosts=([agent.host_key], [], []),
            config=None,
            agent_path=None,
            **way,
        )

    while True:
        try:
            connection: Any = await login(port=PORT, tunnel=PodPort(api, agent.pod))
            break
        except PermanentError as problem:
            if isinstance(problem.__cause__, asyncssh.PermissionDenied):
                # The agent has removed an entry that was over.
                if (renewed := await installation.joining.renew(agent)) is not None:
                    agent = renewed
                    continue
                hint = f"kubectl logs {agent.pod} -n {api.namespace} says why."
                raise RemoteError("the agent does not let your key in", where=api.where, hint=hint) from problem
            if isinstance(problem.__cause__, asyncssh.HostKeyNotVerifiable):
                # Nothing has been told it: neither a name nor a key. It is read again with the next attempt.
                what = "what answers in the agent's place has another host key than the agent has published"
                hint = f"The API server's port-forward leads to the pod {agent.pod}: ask who has made it."
                raise RemoteError(what, where=api.where, hint=hint) from problem
            raise
        except RemoteError as problem:
            # Not listening yet. A pod that was deleted meanwhile is found when all is looked up anew.
            early = isinstance(problem.__cause__, (PortForwardLostError, asyncssh.ConnectionLost, ConnectionError))
            if not early or time.monotonic() - began > START_SECONDS or not await _still(installation, agent):
                raise
            await asyncio.sleep(KNOCK_SECONDS)

    async def wire() -> Wire:
        return await connect_pod(api, agent.pod)

    async def login_directly(sock: socket.socket) -> Any:
        return await login(sock=sock)

    base = SshCarrier(connection, "agent", api.where, lane=wire)
    beside: Direct | None = None
    if direct:
        addresses = [direct] if isinstance(direct, tuple) else [(each, 0) for each in agent.addresses]
        beside = Direct(base, addresses, login_directly, changed)
    return AgentCarrier(base, beside, installation, agent)


async def _still(installation: Installation, agent: Agent) -> bool:
    from .podstate import running

    pod = await installation.api.find(f"/api/v1/namespaces/{installation.api.namespace}/pods/{agent.pod}")
    return pod is not None and pod["metadata"]["uid"] == agent.uid and running(pod)


class AgentCarrier:
    """The SSH connection by a port-forward and, while there is one, the direct one beside it, which is preferred.

    It lasts until both are lost: an API server that restarts cuts the first, and nobody notices who uses the second.
    The agent is removed by its last client.
    """

    def __init__(self, ssh: SshCarrier, direct: Direct | None, installation: Installation, agent: Agent) -> None:
        self.ssh = ssh
        self.kind = ssh.kind
        self.notes = ssh.notes
        self.agent = agent
        self._direct = direct
        self._installation = installation

    @property
    def direct(self) -> str:
        """Where the direct connection leads; empty while there is none."""
        return self._direct.address if self._direct is not None else ""

    @property
    def _near(self) -> SshCarrier | None:
        return self._direct.carrier if self._direct is not None else None

    @property
    def connections(self) -> tuple[SshCarrier, ...]:
        """Those that there are, the better one first."""
        return (self.ssh,) if self._near is None else (self._near, self.ssh)

    async def best(self) -> SshCarrier:
        """One for what stays: the direct one if there is one, or will be in a moment."""
        if self._direct is not None:
            await self._direct.tried(BETTER_SECONDS)
        return self.connections[0]

    async def connect(self, factory: Callable[[], P], host: str, port: int) -> tuple[asyncio.Transport, P]:
        """As `Link.connect`; CarrierLostError when it ends meanwhile."""
        return await self._by_either(lambda ssh: ssh.connect(factory, host, port))

    async def datagrams(self, client: DatagramClient, address: str, port: int) -> DatagramFlow:
        """As `Link.datagrams`; CarrierLostError when it ends meanwhile."""
        return await self._by_either(lambda ssh: ssh.datagrams(client, address, port))

    async def resolver(self) -> Resolver:
        """As `Link.resolver`."""
        return await self._by_either(lambda ssh: ssh.resolver())

    async def query(self, message: bytes) -> bytes:
        """As `Link.query`."""
        return await self._by_either(lambda ssh: ssh.query(message))

    async def _by_either(self, ask: Callable[[SshCarrier], Awaitable[T]]) -> T:
        near = self._near
        if near is not None:
            with contextlib.suppress(CarrierLostError):
                return await ask(near)
        return await ask(self.ssh)

    async def check(self) -> None:
        """One round trip by each. The direct one may be gone by itself; it is looked for anew at the same time."""
        if self._direct is not None:
            self._direct.again()
        near = self._near
        if near is not None:
            looked = answers_or_ends(near, CHECK_SECONDS, "the agent")
            await asyncio.gather(looked, *([] if self.ssh.over else [self.ssh.check()]))
        else:
            await self.ssh.check()

    async def lost(self) -> str:
        """Wait until there is neither; why."""
        reason = await self.ssh.lost()
        if (near := self._near) is not None:
            # An agent that has gone takes both with it, and this one may not say so.
            await answers_or_ends(near, CHECK_SECONDS, "the agent")
            reason = await near.lost()
        if self._direct is not None:  # it may be on its way just now
            self._direct.abort(reason)
        return reason

    def abort(self, reason: str) -> None:
        """End both at once."""
        if self._direct is not None:
            self._direct.abort(reason)
        self.ssh.abort(reason)

    async def close(self) -> None:
        """Leave, and have our key forgotten. What fails here is the agent's own to do, some time later."""
        with contextlib.suppress(RemoteError, OSError, TimeoutError):
            async with asyncio.timeout(5):
                if await self._alone():
                    await self._installation.remove(self.agent)
        if self._direct is not None:
            await self._direct.close()
        await self.ssh.close()

    async def _alone(self) -> bool:
        import asyncssh

        for each in self.connections:
            with contextlib.suppress(asyncssh.Error, ValueError):
                return (await said(each.connection, GOODBYE, check=False)).strip() == "1"
        return False
