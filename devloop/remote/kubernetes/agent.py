"""The link to a cluster: SSH to devloop's agent, and plain port-forwards where there can be none."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from devloop.errors import RemoteError
from devloop.remote.life import HOLD_SECONDS, Carrier, LiveLink, imported
from devloop.remote.link import PermanentError

from .api import Api
from .install import (
    IMAGE,
    LINGER_SECONDS,
    START_SECONDS,
    Agent,
    AgentRefusedError,
    Identity,
    Installation,
    identity,
)
from .kubeconfig import Kubeconfig

if TYPE_CHECKING:
    from devloop.remote.lanes import Wire
    from devloop.remote.sshcarrier import SshCarrier

log = logging.getLogger(__name__)

Way = Literal["auto", "agent", "portforward"]
PORT = 2222
# The container runs some tenths of a second before its SSH server listens.
KNOCK_SECONDS = 0.05
JOIN_SECONDS = 100.0
"""How long a key that was just added may be refused: the kubelet's period, where the agent can't ask the API."""


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
    ) -> None:
        kind: Literal["agent", "portforward"] = "portforward" if way == "portforward" else "agent"
        super().__init__(kind, kubeconfig.where, self._connect, hold=hold)
        self.api = Api(kubeconfig)
        self._way = way
        self._key_file = key_file
        self._image = image
        self._linger = linger
        self._identity: Identity | None = None

    async def _connect(self, tell: Callable[[str], None]) -> Carrier:
        await imported("kubernetes.aio.client", "kubernetes.aio.config", "devloop.remote.sshcarrier")
        if self._way == "portforward":
            return await self._portforward(())
        if self._identity is None:
            self._identity = await asyncio.to_thread(identity, self._key_file)
        installation = Installation(self.api, self._identity, self._image, self._linger)
        try:
            return await dial(installation, tell)
        except AgentRefusedError as problem:
            if self._way == "agent":
                rights = "`devloop doctor` names the rights; `devloop agent manifest` is for an administrator."
                raise PermanentError(problem.what, where=problem.where, hint=problem.hint or rights) from problem
            return await self._portforward((f"plain port-forwards, as the agent can't be used: {problem.what}",))

    @property
    def ssh(self) -> SshCarrier | None:
        """The SSH connection to the agent; None in a gap, and when plain port-forwards are used."""
        return self._carrier.ssh if isinstance(self._carrier, AgentCarrier) else None

    async def _portforward(self, notes: tuple[str, ...]) -> Carrier:
        from .portforward import PortForwardCarrier

        carrier = PortForwardCarrier(self.api, notes)
        await carrier.begin()
        return carrier

    async def close(self) -> None:
        """End the link; the agent goes with its last client."""
        await super().close()
        await self.api.close()


async def dial(installation: Installation, tell: Callable[[str], None]) -> Carrier:
    """Provide the agent and log in."""
    import asyncssh

    from devloop.remote.ssh import connect
    from devloop.remote.sshcarrier import SshCarrier

    from .podport import PodPort, PortForwardLostError
    from .spdy import connect_pod

    api = installation.api
    agent = await installation.provide(tell)
    who = installation.who
    began = time.monotonic()
    while True:
        try:
            connection: Any = await connect(
                "127.0.0.1",
                where=api.where,
                port=PORT,
                tunnel=PodPort(api, agent.pod),
                username=who.name,
                client_keys=[who.key],
                known_hosts=([agent.host_key], [], []),
                config=None,
                agent_path=None,
            )
            break
        except PermanentError as problem:
            cause = problem.__cause__
            denied = isinstance(cause, asyncssh.PermissionDenied)
            # Another host key: the agent was made anew since the Secret was read. Either way it is read again.
            if denied and time.monotonic() - began < JOIN_SECONDS:
                tell("waiting until the agent knows your key")
                await asyncio.sleep(1)
            elif denied or isinstance(cause, asyncssh.HostKeyNotVerifiable):
                hint = f"The Secret {agent.pod} and its pod do not belong together: delete both."
                raise RemoteError(problem.what, where=api.where, hint=hint) from problem
            else:
                raise
        except RemoteError as problem:
            # Not listening yet. A pod that was deleted meanwhile is found when all is looked up anew.
            early = isinstance(problem.__cause__, (PortForwardLostError, asyncssh.ConnectionLost, ConnectionError))
            if not early or time.monotonic() - began > START_SECONDS or not await _still(installation, agent):
                raise
            await asyncio.sleep(KNOCK_SECONDS)

    async def wire() -> Wire:
        return await connect_pod(api, agent.pod)

    return AgentCarrier(SshCarrier(connection, "agent", api.where, lane=wire), installation, agent)


async def _still(installation: Installation, agent: Agent) -> bool:
    from .install import running

    pod = await installation.api.find(f"/api/v1/namespaces/{installation.api.namespace}/pods/{agent.pod}")
    return pod is not None and pod["metadata"]["uid"] == agent.uid and running(pod)


class AgentCarrier:
    """An SSH carrier that removes the agent when it is the last one to leave."""

    def __init__(self, ssh: Any, installation: Installation, agent: Agent) -> None:
        self.ssh: SshCarrier = ssh
        self.kind = ssh.kind
        self.notes = ssh.notes
        self.agent = agent
        self._installation = installation
        # What is asked for often goes straight there.
        self.connect = ssh.connect
        self.query = ssh.query
        self.resolver = ssh.resolver
        self.check = ssh.check
        self.lost = ssh.lost
        self.abort = ssh.abort

    async def close(self) -> None:
        """Leave. What fails here is the agent's own to do, some time later."""
        with contextlib.suppress(RemoteError, OSError, TimeoutError):
            async with asyncio.timeout(5):
                if await self._alone():
                    await self._installation.remove(self.agent)
        await self.ssh.close()

    async def _alone(self) -> bool:
        import asyncssh

        try:
            answer = await self.ssh.connection.run("clients", check=False)
        except asyncssh.Error:
            return False
        return str(answer.stdout).strip() == "1"
