"""A project's remote: the link to it, what is there, and what each local service has of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from devloop.config.model import SECOND, Network, Project, Remote, RemoteKind, Service
from devloop.engine.board import unix
from devloop.errors import DevloopError, RemoteError, ServiceError
from devloop.local.process import Holders
from devloop.net.publish import Gate
from devloop.protocol import Mounted, RemoteStatus, Variable
from devloop.remote.life import imported
from devloop.remote.link import Link, LinkState, Phase
from devloop.remote.standing import Domain, Standing, Standings

if TYPE_CHECKING:
    from devloop.engine.names import Names
    from devloop.engine.routes import Routes
    from devloop.engine.worlds import Source, World
    from devloop.net.dns import Resolver
    from devloop.net.forward import Forwards
    from devloop.net.host import HostPorts
    from devloop.net.service import ServiceNetwork
    from devloop.remote.workload import Change
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
    host_ports: HostPorts
    fronts: Forwards
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
        self._standings = Standings((), {}, Domain(""))
        self._worlds: dict[str, World] = {}
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._refused: dict[str, DevloopError] = {}
        self._gates: dict[str, Gate] = {}
        self._ready: dict[str, asyncio.Event] = {}
        self._published: dict[str, dict[str, int]] = {}
        self.connects = True
        self._failure: DevloopError | None = None
        self._since = 0
        self._tasks: set[asyncio.Task[None]] = set()

    # Its life.

    def start(self, *, connect: bool = True) -> None:
        """Begin to find out what is there and, if `connect`, to make the link; returns at once.

        Without `connect` the link is made when something is to go through it: reading a workload takes none.
        """
        self.connects = connect
        self._prepared = asyncio.get_running_loop().create_future()
        self._prepared.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._task(self._run())

    async def close(self) -> None:
        """End all of it: worlds, fronts, the link, and what it has left in the remote."""
        for task in (*self._tasks, *self._opening.values()):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._opening.values(), return_exceptions=True)
        for world in self._worlds.values():
            with contextlib.suppress(DevloopError, TimeoutError, OSError):
                await world.close()
        await self._stack.aclose()

    def remove_made(self) -> None:
        """Remove what was made on this machine to mount on; the holders have ended."""
        for world in self._worlds.values():
            world.network.remove_made()

    async def _run(self) -> None:
        assert self._prepared is not None
        try:
            # Some tenths of a second of imports, in a thread: local services start meanwhile.
            await imported("devloop.engine.parts")
            from devloop.engine.parts import make

            parts = await make(self)
        except DevloopError as error:
            self._failure = error
            self._prepared.set_exception(error)
            self._outside.status(self.status())
            self._outside.notice("error", f"no remote: {error.what}", error.hint or "")
            return
        self._parts = parts
        self._prepared.set_result(parts)
        parts.link.subscribe(self._link_changed)
        self._outside.status(self.status())
        await self._publish_fronts(parts)
        delay = RETRY_SECONDS[0]
        while True:
            try:
                await self._survey(parts)
                delay, pause = RETRY_SECONDS[0], SURVEY_SECONDS
            except RemoteError as error:
                if not self._surveyed.is_set():
                    self._failure = error
                    self._outside.status(self.status())
                pause, delay = delay, min(delay * 2, RETRY_SECONDS[1])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), pause)
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
        self._failure = None
        self._surveyed.set()
        if before.by_service != self._standings.by_service:
            self._outside.services()

    def _link_changed(self, state: LinkState) -> None:
        if state.phase is Phase.CONNECTED:
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
            self._task(self._publish_fronts(self._parts))

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
        )

    def standing(self, service: str) -> Standing | None:
        """How a service stands in the remote, as far as is known."""
        return self._standings.by_service.get(service)

    def can_be_remote(self, service: str) -> bool:
        """Whether it can be left to the remote: it is there, or that is not known yet."""
        found = self.standing(service)
        return not self._surveyed.is_set() or (found is not None and bool(found.workload or found.counterparts))

    def published(self, service: str) -> dict[str, int]:
        """Port's name or number → the host's port that leads to it."""
        found = dict(self._published.get(service, {}))
        world = self._worlds.get(service)
        if world is not None:
            found |= {str(each.port): each.host_port for each in world.network.publisher.published}
        return found

    def notes(self, service: str) -> tuple[str, ...]:
        """How its world differs from its pod's."""
        world = self._worlds.get(service)
        return world.notes if world is not None else ()

    def mounts(self, service: str) -> tuple[Mounted, ...]:
        """Its files and folders."""
        world = self._worlds.get(service)
        return world.mounts if world is not None else ()

    def variables(self, service: str) -> Collection[Variable]:
        """The workload's variables, for a service whose world is open."""
        world = self._worlds.get(service)
        return world.variables if world is not None else ()

    def network(self, service: str) -> ServiceNetwork | None:
        """The network of a service whose world is open."""
        world = self._worlds.get(service)
        return world.network if world is not None and not world.network.lost else None

    async def enter(self, service: str) -> int:
        """The process whose namespaces are the service's; its world is opened first. Raises DevloopError."""
        network = self.network(service)
        if network is None or self._worlds[service].view is None:
            self.open_world(service)
            await asyncio.shield(self._opening[service])
            if service in self._refused:  # without its files, though its network may be there
                raise self._refused.pop(service)
            network = self.network(service)
        if network is None:
            raise ServiceError("its network could not be made", where=service)
        return network.inside.pid

    async def read_variables(self, service: str) -> Collection[Variable]:
        """The workload's variables, without anything being made for it. Raises DevloopError."""
        world = self._worlds.get(service)
        if world is not None and world.view is not None:
            return world.variables
        from devloop.remote.workload import read_environment

        spec = self.project.services[service]
        _, source = await self._source(spec)
        if source is None:
            return ()
        _, found = await read_environment(source.cluster, source.reference, spec.place.container)
        return (*found.image, *found.variables)

    async def _source(self, spec: Service) -> tuple[Parts, Source | None]:
        from devloop.engine.worlds import Source

        assert self._prepared is not None
        parts = await asyncio.shield(self._prepared)
        await self._until_surveyed(parts)
        standing = self._standings.by_service[spec.name]
        cluster = parts.clusters.get(spec.place.namespace or next(iter(parts.clusters), ""))
        if cluster is None or spec.place.none or not (spec.place.workload or standing.workload):
            return parts, None
        reference = spec.place.workload or (standing.workload.reference if standing.workload else "")
        return parts, Source(cluster, reference, parts.agent_image)

    # Worlds.

    def open_world(self, service: str) -> None:
        """Get what the service has of its workload; `Outside.opened` or `failed` tells."""
        task = self._opening.get(service)
        if task is None or task.done():
            task = asyncio.get_running_loop().create_task(self._open(service), name=f"world of {service}")
            self._opening[service] = task
            task.add_done_callback(lambda done: done.cancelled() or done.result())

    async def _open(self, service: str) -> None:
        try:
            await self._open_world(self.project.services[service])
        except DevloopError as error:
            self._refused[service] = error
            where_ = f"{error.where}: " if error.where else ""
            self._outside.failed(service, f"{where_}{error.what}", error.hint or "")
        else:
            self._refused.pop(service, None)
            self._outside.services()
            self._outside.opened(service)

    async def _open_world(self, spec: Service) -> None:
        from devloop.engine.worlds import World

        assert self._prepared is not None
        parts = await asyncio.shield(self._prepared)
        world = self._worlds.get(spec.name)
        if world is None or world.network.lost:
            network = await self._open_network(parts, spec)
            if world is not None:
                await world.close()
            folder, data = parts.folder.path / spec.name, self._state.path / "volumes" / spec.name
            world = self._worlds[spec.name] = World(spec.name, network, folder, data)
            network.set_gate(self._gates.get(spec.name, Gate.HELD))
            self._arrived(spec.name).set()
        if not self.connects:
            self.connects = True
            parts.link.start()
        _, source = await self._source(spec)
        await parts.link.ready()
        await world.open(spec, source, await parts.link.resolver(), lambda change: self._changed(spec.name, change))

    async def _until_surveyed(self, parts: Parts) -> None:
        """Wait until it is known what there is. Raises RemoteError if the link says that trying again won't help."""
        failed = asyncio.Event()
        stop = parts.link.subscribe(lambda state: failed.set() if state.phase is Phase.FAILED else None)
        if parts.link.state.phase is Phase.FAILED:
            failed.set()
        waits = [asyncio.ensure_future(each.wait()) for each in (self._surveyed, failed)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop()
            for each in waits:
                each.cancel()
        if not self._surveyed.is_set():
            await parts.link.ready()  # raises why

    async def _open_network(self, parts: Parts, spec: Service) -> ServiceNetwork:
        from devloop.net.service import ServiceNetwork

        network = ServiceNetwork(
            spec.name,
            parts.routes,
            parts.resolver,
            parts.host_ports,
            lambda line: self._outside.say(spec.name, line),
            hold=spec.hold / SECOND,
            fronts=lambda: self._published.get(spec.name, {}).values(),
        )
        await network.open(self._holders.get(spec.name))
        network.follow(self._outside.services, except_for=spec.ports.values())
        return network

    def _changed(self, service: str, change: Change) -> None:
        match change.what:
            case "environment":
                self._outside.outdated(service, change.text)
            case "pod" | "files":
                self._outside.say(service, change.text)
            case "trouble":
                self._outside.say(service, f"warning: {change.text}")

    # Traffic.

    async def connect(self, service: str, port: int) -> socket.socket:
        """A connection to what listens on a port of its localhost, for a probe. Raises OSError."""
        network = self.network(service)
        if network is None:
            raise ConnectionRefusedError
        try:
            return await network.connect(port)
        except ConnectionRefusedError:
            if not network.inside.ipv6:
                raise
            return await network.inside.connect(port, "::1")

    def set_gate(self, service: str, ready: bool, coming: bool) -> None:
        """Say whether a local service takes new connections; if not, they wait where it is `coming`."""
        gate = Gate.OPEN if ready else Gate.HELD if coming else Gate.CLOSED
        self._gates[service] = gate
        world = self._worlds.get(service)
        if world is not None:
            world.network.set_gate(gate)

    def _arrived(self, service: str) -> asyncio.Event:
        return self._ready.setdefault(service, asyncio.Event())

    async def ports(self, service: str) -> Any:
        """What connects to a local service's ports; waits until it has a network."""
        found = self.network(service)
        if found is None:
            spec = self.project.services[service]
            try:
                async with asyncio.timeout(spec.hold / SECOND):
                    await self._arrived(service).wait()
            except TimeoutError:
                raise ServiceError(f"{service} is not running", where=service) from None
            found = self.network(service)
            if found is None:
                raise ServiceError(f"{service} is not running", where=service)
        return found.publisher

    async def _publish_fronts(self, parts: Parts) -> None:
        """A port on the host's loopback for each declared one, which leads to the service wherever that is."""
        wanted = {(s.name, port): name for s in self.project.services.values() for name, port in s.ports.items()}
        for service, name, port in [
            (service, name, self.project.services[service].ports.get(name))
            for service, found in self._published.items()
            for name in found
            if service in self.project.services
        ]:
            if port is None:
                self._published[service].pop(name, None)
        for (service, port), name in wanted.items():

            async def route(service: str = service, port: int = port) -> Any:
                return await parts.routes.front(service, port)

            there = await parts.fronts.add(service, port, route)
            self._published.setdefault(service, {})[name] = there
            if there != port:
                from devloop.local import ports

                who, hint = ports.holder_of(port)
                text = f"port {port} is taken by {who}, so {service} is at localhost:{there}"
                self._outside.notice("warning", text, hint)
        self._outside.services()

    def standings(self) -> Standings:
        """All services as they stand."""
        return self._standings

    def _task(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()


def where(remote: Remote) -> str:
    """The remote for people, before it is looked up."""
    if remote.kind is RemoteKind.SSH:
        return remote.host or ""
    return "/".join(each for each in (remote.context, remote.namespace) if each) or remote.kind.value
