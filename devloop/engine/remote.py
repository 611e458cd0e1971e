"""A project's remote: the link to it, and what is there."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from devloop.agent.tasks import background
from devloop.config.model import Network, Project, Remote, RemoteKind
from devloop.engine.board import unix
from devloop.engine.here import Here
from devloop.errors import DevloopError, RemoteError
from devloop.failures import contained
from devloop.local.process import Holders
from devloop.protocol import RemoteStatus
from devloop.remote.imports import imported
from devloop.remote.link import Link, LinkState, Phase
from devloop.remote.standing import Domain, Standing, Standings

if TYPE_CHECKING:
    from devloop.engine.names import Names
    from devloop.engine.networks import Networks
    from devloop.engine.routes import Routes
    from devloop.net.dns import Resolver
    from devloop.remote.workload.cluster import Cluster
    from devloop.state import StateFolder

SURVEY_SECONDS = 20.0
"""Between two looks at what is in the remote's namespaces."""
RETRY_SECONDS = (0.2, 5.0)
"""Before another try where the first look failed: doubled each time, from the one to the other."""


@dataclass(frozen=True, slots=True)
class Outside:
    """What the remote needs of the engine."""

    is_local: Callable[[str], bool]
    """Whether a service's mode is local."""
    opened: Callable[[str], None]
    """A service's world is there."""
    failed: Callable[[str, str, str], None]
    """It can't be had: service, what, hint."""
    outdated: Callable[[str, str], None]
    """Another start would find another world: service, why."""
    status: Callable[[RemoteStatus], None]
    """The connection has changed."""
    services: Callable[[], None]
    """Something that clients see of services has changed: what they stand for, where they are published."""
    served: Callable[[str], None]
    """A service's newest process has answered its first connection."""
    linked: Callable[[Link], None]
    """There is a link; it may still be connecting."""
    say: Callable[[str, str], None]
    """A line for a service's log."""
    notice: Callable[[str, str, str], None]
    """Tell a person: level, text, hint."""


@dataclass(slots=True)
class Parts:
    """What there is once the heavy modules are imported and the link is made."""

    link: Link
    names: Names
    routes: Routes
    resolver: Resolver
    networks: Networks
    folder: Any
    clusters: dict[str, Cluster] = field(default_factory=dict)
    agent_image: str = ""


class RemoteSide:
    """The remote of one project, from the start of its engine to the end."""

    def __init__(
        self, project: Project, remote: Remote, holders: Holders, state: StateFolder, outside: Outside
    ) -> None:
        self.project = project
        self._remote = remote
        self._holders = holders
        self._state = state
        self._outside = outside
        self._stack = AsyncExitStack()
        self._parts: Parts | None = None
        self._prepared: asyncio.Future[Parts] | None = None
        self._surveyed = asyncio.Event()
        self._look = asyncio.Event()
        self._broken = asyncio.Event()
        """The last look failed in a way that is not the cluster's."""
        self._errors: dict[str, DevloopError] = {}
        self._standings = Standings((), {}, Domain(""))
        self.idle = False
        """Nothing is started here: somebody wants the remote alone."""
        self.connects = True
        self._failure: DevloopError | None = None
        self._since = 0
        self._linked_at = 0  # monotonic
        self._tasks: set[asyncio.Task[None]] = set()
        self.copies = state.path / "volumes"
        """Where copies of volumes lie: on a disk, as they may be large."""
        self.here = Here(self, outside)

    # Its life.

    def start(self, *, connect: bool = True) -> None:
        """Begin to find out what is there and, if `connect`, to make the link; returns at once.

        Without `connect` the link is made when something is to go through it: reading a workload takes none.
        """
        self.connects, self.idle = connect, not connect
        self._prepared = asyncio.get_running_loop().create_future()
        self._prepared.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._task(self._run())

    async def close(self) -> None:
        """End all of it: worlds, fronts, the link, and what it has left in the remote."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.here.close()
        await self._stack.aclose()

    async def _run(self) -> None:
        assert self._prepared is not None
        try:
            # Some tenths of a second of imports, in a thread: local services start meanwhile.
            await imported("devloop.engine.parts")
            from devloop.engine.parts import make

            parts = await make(self)
        except Exception as problem:
            error = self._failure = contained(problem, "the remote can't be prepared")
            self._prepared.set_exception(error)
            self._outside.status(self.status())
            self._outside.notice("error", f"no remote: {error.what}", error.hint or "")
            return
        self._parts = parts
        self._prepared.set_result(parts)
        self._outside.linked(parts.link)
        parts.link.subscribe(self._link_changed)
        self._outside.status(self.status())
        self.here.update()
        delay = RETRY_SECONDS[0]
        while True:
            try:
                await self._survey(parts)
                delay, pause = RETRY_SECONDS[0], SURVEY_SECONDS
            except Exception as problem:
                if not self._surveyed.is_set():
                    self._failure = self._told(problem, "what is in the remote can't be read")
                    if not isinstance(problem, RemoteError):
                        self._broken.set()  # nobody knows whether another try will help, so nobody waits for it
                    self._outside.status(self.status())
                pause, delay = delay, min(delay * 2, RETRY_SECONDS[1])
            # Not wait_for: until Python 3.12 it swallows a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._look.wait()
            self._look.clear()

    async def _survey(self, parts: Parts) -> None:
        """Look at what is there, and where the project's services stand in it."""
        from devloop.remote.catalog import survey

        catalogs = await asyncio.gather(*(survey(cluster) for cluster in parts.clusters.values()))
        by_name = {each.namespace: each for each in catalogs}
        first = next(iter(parts.clusters), "")
        domain = self._standings.domain
        if not domain.search:
            domain = Domain(first)
            if parts.clusters:
                # Until the link says otherwise; all that is known without it.
                domain = Domain.of(first, (f"{first}.svc.cluster.local", "svc.cluster.local", "cluster.local"))
        if parts.link.state.phase is Phase.CONNECTED:
            domain = Domain.of(first, (await parts.link.resolver()).search)
        before = self._standings
        self._standings = Standings(self.project.services.values(), by_name, domain)
        for service, problem in self._standings.problems.items():
            self._told(problem, f"it is not known how {service} stands in the remote")
        self._failure = None
        self._broken.clear()
        self._surveyed.set()
        parts.networks.update()
        if before.by_service != self._standings.by_service:
            self._outside.services()

    def _told(self, problem: Exception, what: str) -> DevloopError:
        """The problem as an error for the user. A fault is told in full once, and not at every look."""
        key = f"{what}: {problem!r}"
        if key not in self._errors:
            self._errors[key] = contained(problem, what)
        return self._errors[key]

    def _link_changed(self, state: LinkState) -> None:
        if state.phase is Phase.CONNECTED and state.since != self._linked_at:
            self._linked_at = state.since
            gc.freeze()  # the modules that this took stay: going through them would hold up every connection
            self._look.set()
            if self._parts is not None:
                self._parts.names.forget()
                self._parts.resolver.forget()
        self._outside.status(self.status())

    def reconfigure(self, project: Project) -> None:
        """A new devloop.toml is in force; its `[remote]` is the same."""
        self.project = project
        self._look.set()
        if self._parts is not None:
            self._parts.networks.update()
            self.here.update()

    def wake(self) -> None:
        """Look at the connection at once, and try again if it is not there."""
        if self._parts is not None:
            self._parts.link.wake()
            self._look.set()

    # What clients see.

    def status(self) -> RemoteStatus:
        """The connection as it is."""
        kind = self._remote.kind.value
        network = (self.project.network or Network.NAMESPACE).value
        if self._parts is not None:
            network = self._parts.networks.kind.value
        if self._parts is None:
            phase = "failed" if self._failure else "connecting"
            reason = self._failure.what if self._failure else ""
            return RemoteStatus(kind, kind, where(self._remote), phase, unix(self._since), reason, network=network)
        state = self._parts.link.state
        return RemoteStatus(
            kind=kind,
            link=state.kind,
            where=state.where,
            phase=state.phase.value,
            since_at=unix(state.since),
            reason=state.reason or (self._failure.what if self._failure else ""),
            attempt=state.attempt,
            next_at=None if state.next_attempt is None else unix(state.next_attempt),
            notes=state.notes,
            network=network,
            direct=state.direct,
            forwarded=self._parts.networks.forwarded(),
            closed=self._parts.networks.closed(),
        )

    def standing(self, service: str) -> Standing | None:
        """How a service stands in the remote, as far as is known."""
        return self._standings.by_service.get(service)

    def can_be_remote(self, service: str) -> bool:
        """Whether it can be left to the remote: it is there, or that is not known yet."""
        found = self.standing(service)
        return not self._surveyed.is_set() or (found is not None and bool(found.workload or found.counterparts))

    @property
    def parts(self) -> Parts | None:
        """What there is by now."""
        return self._parts

    async def until_prepared(self) -> Parts:
        """Wait until there is a link. Raises DevloopError if there can be none."""
        assert self._prepared is not None
        return await asyncio.shield(self._prepared)

    async def until_standing(self, service: str) -> Standing:
        """How a service stands in the remote, once that is known. Raises DevloopError."""
        await self._until_surveyed(await self.until_prepared())
        if (problem := self._standings.problems.get(service)) is not None:
            raise self._told(problem, f"it is not known how {service} stands in the remote")
        return self._standings.by_service[service]

    async def _until_surveyed(self, parts: Parts) -> None:
        """Wait until it is known what there is. Raises DevloopError if trying again won't help, or may not."""
        failed = asyncio.Event()
        stop = parts.link.subscribe(lambda state: failed.set() if state.phase is Phase.FAILED else None)
        if parts.link.state.phase is Phase.FAILED:
            failed.set()
        waits = [asyncio.ensure_future(each.wait()) for each in (self._surveyed, failed, self._broken)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop()
            for each in waits:
                each.cancel()
        if not self._surveyed.is_set():
            if self._broken.is_set() and self._failure is not None:
                raise self._failure
            await parts.link.ready()  # raises why

    def changed(self) -> None:
        """Clients should look anew, at the connection and at services."""
        self._outside.status(self.status())
        self._outside.services()

    def standings(self) -> Standings:
        """All services as they stand."""
        return self._standings

    def _task(self, work: Any) -> None:
        task = background(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def where(remote: Remote) -> str:
    """The remote for people, before it is looked up."""
    if remote.kind is RemoteKind.SSH:
        return remote.host or ""
    return "/".join(each for each in (remote.context, remote.namespace) if each) or remote.kind.value
