"""Joining an agent: our key put beside it, and its host key, to be pinned.

What the cluster has of both is in `devloop/agent/keys.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from devloop.agent import keys
from devloop.agent.paths import PROTOCOL, protocol_of
from devloop.errors import RemoteError
from devloop.remote.versions import unequal

from .api import Api, ApiError
from .identity import Identity
from .podport import PodPort
from .podstate import AgentRefusedError, AgentStuckError, Manifest, allowed, ended, progress

if TYPE_CHECKING:
    import asyncssh

PORT = 2222
PUBLISH_SECONDS = 40.0
"""How long an agent that runs may take until its host key is published: a node may be slow, or the API server."""
LOOK_SECONDS = (0.05, 0.5)
"""So often it is looked for, at first and later."""
DOUBT_SECONDS = 3.0
"""After so long without one it is looked who answers at the agent's port."""
BANNER_SECONDS = 3.0
RENEW_SECONDS = 60.0
"""So long after it has made an entry for its key, an engine makes no other one for the same pod."""
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Entry:
    """The one that this engine has made: beside which pod, and when (monotonic seconds)."""

    uid: str = ""
    suffix: str = ""
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent that runs: its pod, and the key that it must prove to have."""

    pod: str
    uid: str
    host_key: asyncssh.SSHKey
    user: str
    """The SSH user name, by which the agent finds the entry of our key."""
    addresses: tuple[str, ...] = ()
    """The pod's own; one of each family."""


class Joining:
    """One engine's, into one namespace. It remembers the entry that it has made."""

    def __init__(self, api: Api, who: Identity) -> None:
        self.api = api
        self.who = who
        self._pods = f"/api/v1/namespaces/{api.namespace}/pods"
        self._maps = keys.config_maps(api.namespace)
        self._entry = _Entry()

    async def join(self, pod: Manifest, published: Manifest | None, tell: Tell) -> Agent:
        """Join the agent in this pod, which runs; `published` is what was read of its host key last.

        AgentRefusedError when a right is missing, or it can't be understood; AgentStuckError when it ends again and
        again; RemoteError when it is gone.
        """
        import asyncssh

        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        if self._entry.uid != uid:
            await self._enter(name, uid)
        text = await self._wait_for(pod, published, tell)
        try:
            key = asyncssh.import_public_key(text)
        except (ValueError, asyncssh.KeyImportError) as problem:
            what = f"the ConfigMap {keys.AGENT} has no usable host key: {problem}"
            raise RemoteError(what, where=self.api.where, hint=self._logs(name)) from problem
        addresses = tuple(str(each["ip"]) for each in pod["status"].get("podIPs") or ())
        return Agent(name, uid, key, keys.user(self.who.name, self._entry.suffix), addresses)

    async def renew(self, agent: Agent) -> Agent | None:
        """Our entry is no more, or has never been: with another one. None if this one has just been made."""
        if self._entry.uid == agent.uid and time.monotonic() - self._entry.since < RENEW_SECONDS:
            return None
        await self._enter(agent.pod, agent.uid)
        return replace(agent, user=keys.user(self.who.name, self._entry.suffix))

    async def _enter(self, pod: str, uid: str) -> None:
        """Put an entry for our key beside this pod."""
        suffix = keys.new_suffix()
        entry = keys.entry(self.who.key.public_data, suffix, self.who.name, pod, uid)
        await allowed(self.api, "putting your key beside the agent", "POST", self._maps, entry)
        self._entry = _Entry(uid, suffix, time.monotonic())

    async def published(self) -> Manifest | None:
        """What an agent has published; None if nothing. AgentRefusedError if this user may not read it; ApiError."""
        try:
            return await allowed(self.api, "reading the agent's host key", "GET", f"{self._maps}/{keys.AGENT}")
        except ApiError as problem:
            if problem.status != HTTPStatus.NOT_FOUND:
                raise
            return None

    async def _wait_for(self, pod: Manifest, found: Manifest | None, tell: Tell) -> str:
        """The host key of this very pod, as text. Waits for an agent that has just started."""
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        began, delay, doubted = time.monotonic(), LOOK_SECONDS[0], False
        while not (text := keys.host_key_of(found, uid)):
            waited = time.monotonic() - began
            if not doubted and waited > DOUBT_SECONDS:
                doubted = True
                tell("waiting until the agent has published its host key")
                await self._speaks_alike(name)
            if delay >= LOOK_SECONDS[1] or waited > PUBLISH_SECONDS:
                await self._lives(name, uid)
            if waited > PUBLISH_SECONDS:
                what = f"the agent has not published its host key within {PUBLISH_SECONDS:g} s"
                raise AgentRefusedError(what, where=self.api.where, hint=self._logs(name))
            await asyncio.sleep(delay)
            delay = min(delay * 1.2, LOOK_SECONDS[1])
            found = await self.published()
        return text

    async def _lives(self, name: str, uid: str) -> None:
        """Raises RemoteError if the pod is not the same any more, AgentStuckError if it does not run."""
        pod = await self.api.find(f"{self._pods}/{name}")
        if pod is None or ended(pod) or pod["metadata"]["uid"] != uid:
            raise RemoteError("the agent's pod is gone", where=self.api.where)
        what, stuck = progress(pod)
        if stuck:
            raise AgentStuckError(f"the agent does not start: {what}", where=self.api.where, hint=self._logs(name))

    async def _speaks_alike(self, name: str) -> None:
        """AgentRefusedError if an agent of another version answers; one from before version 5 publishes nothing."""
        theirs = protocol_of(await banner(PodPort(self.api, name)))
        if theirs not in (0, PROTOCOL):
            what, hint = unequal(theirs)
            raise AgentRefusedError(what, where=self.api.where, hint=hint)

    def _logs(self, pod: str) -> str:
        return f"kubectl logs {pod} -n {self.api.namespace}"


class _Banner(asyncio.Protocol):
    """The first line that a server says."""

    def __init__(self) -> None:
        self.said = b""
        self.whole = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.said += bytes(data[: 255 - len(self.said)])
        if b"\n" in self.said or len(self.said) >= 255:
            self.whole.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.whole.set()


async def banner(port: PodPort) -> str:
    """What the agent calls itself (RFC 4253, 4.2), before anybody logs in; empty if nobody answers."""
    try:
        async with asyncio.timeout(BANNER_SECONDS):
            transport, protocol = await port.create_connection(_Banner, "", PORT)
            try:
                await protocol.whole.wait()
            finally:
                transport.abort()
    except (RemoteError, OSError, TimeoutError):
        return ""
    return protocol.said.partition(b"\n")[0].decode(errors="replace")
