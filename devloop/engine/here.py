"""The services of a project with a remote that are here: their worlds, and what connects to them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from devloop.config.model import SECOND, Service
from devloop.engine.fronts import Fronts
from devloop.engine.moving import Moving
from devloop.errors import DevloopError, ServiceError, UsageError
from devloop.failures import contained
from devloop.local import left_out
from devloop.net.publish import Gate
from devloop.net.router import OffError
from devloop.protocol import Mounted, Variable

if TYPE_CHECKING:
    from devloop.engine.remote import Outside, Parts, RemoteSide
    from devloop.engine.worlds import Source, World
    from devloop.net.listeners import Listener
    from devloop.net.service import LocalNetwork
    from devloop.relay import Relays, Target
    from devloop.remote.workload import Change

_FOREIGN = ("host", "devloop")
"""Origins of variables that say nothing of the remote."""


class Here:
    """All of them."""

    def __init__(self, side: RemoteSide, outside: Outside) -> None:
        self._side = side
        self._outside = outside
        self._worlds: dict[str, World] = {}
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._refused: dict[str, DevloopError] = {}
        self._gates: dict[str, Gate] = {}
        self._arrived: dict[str, asyncio.Event] = {}
        """Set when a service that has no network gets one."""
        self._unmatched: set[str] = set()
        """Services that were told to stand for no workload."""
        self.fronts = Fronts(self._front, outside.notice, side._remote.allowed_hosts)
        self.moving = Moving(self._relays, self._stale, outside.services)

    async def close(self) -> None:
        """End all of it."""
        self.moving.close()
        for task in self._opening.values():
            task.cancel()
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        for service, world in self._worlds.items():
            try:
                await world.close()
            except Exception as problem:  # the others are to be closed, too
                contained(problem, f"{service} can't be closed")
        await self.fronts.close()

    def update(self) -> None:
        """The project's services may have changed."""
        self.fronts.update(self._side.project.services)
        self._outside.services()

    # What clients see.

    def published(self, service: str) -> dict[str, int]:
        """Port's name or number → the host's port that leads to it."""
        found = self.fronts.reachable(service)
        world = self._worlds.get(service)
        if world is not None:
            found |= {str(each.port): each.host_port for each in world.network.publisher.published}
        return found

    def notes(self, service: str) -> tuple[str, ...]:
        """How its world differs from its pod's."""
        world, parts = self._worlds.get(service), self._side.parts
        if world is None or parts is None:
            return ()
        spec = self._side.project.services.get(service)
        left = left_out.notes(world.variables, spec.env_from_workload if spec is not None else ())
        return (*world.notes, *left, *world.network.notes, *parts.networks.notes(service))

    def mounts(self, service: str) -> tuple[Mounted, ...]:
        """Its files and folders."""
        world = self._worlds.get(service)
        return world.mounts if world is not None else ()

    def _relays(self) -> Iterator[tuple[str, Relays]]:
        """What relays connections of this machine's clients to where services are, by client."""
        for service, world in self._worlds.items():
            yield from ((service, each) for each in world.network.relays)
        parts = self._side.parts
        for each in (*self.fronts.relays, *(parts.networks.relays if parts is not None else ())):
            yield "localhost", each

    def _stale(self, target: Target) -> bool:
        parts = self._side.parts
        return parts is not None and parts.routes.stale(target)

    # Variables.

    def variables(self, service: str) -> Collection[Variable]:
        """The workload's variables, for a service whose world is open."""
        world = self._worlds.get(service)
        return world.variables if world is not None else ()

    async def read_variables(self, service: str) -> Collection[Variable]:
        """The workload's variables, without anything being made for it. Raises DevloopError."""
        world = self._worlds.get(service)
        if world is not None and world.view is not None:
            return world.variables
        from devloop.remote.workload import read_environment

        spec = self._side.project.services[service]
        _, source = await self._source(spec)
        if source is None:
            return ()
        with self._named(spec):
            _, found = await read_environment(source.cluster, source.reference, spec.place.container)
        return (*found.image, *found.variables)

    @contextlib.contextmanager
    def _named(self, spec: Service) -> Iterator[None]:
        """A UsageError of a workload's says where it was named: the line of devloop.toml, or the option."""
        try:
            yield
        except UsageError as error:
            from devloop.config.problems import place_of

            path = ("services", spec.name, "workload")
            files = self._side.project.files
            place = place_of(files, path) if files else "--workload"
            error.where = error.where or place or f"services.{spec.name}"
            raise

    def adapted(self, service: str, variables: Iterable[Variable]) -> list[Variable]:
        """All variables of a service's process, with the addresses and paths that are right in its network.

        Where the service has no world yet they stay what they are: the addresses would be nobody's.
        """
        given = list(variables)
        world = self._worlds.get(service)
        if world is None or not world.ready:
            return given
        before = {each.name: each.value for each in given if each.origin not in _FOREIGN}
        after = world.network.environment(before)
        found = {each.name: each for each in given}
        for name, value in after.items():
            if name not in before:
                found[name] = Variable(name, value, "devloop")
            elif value != before[name]:
                found[name] = replace(found[name], value=value, origin=f"{found[name].origin}, rewritten")
        return [found[name] for name in sorted(found)]

    # Worlds.

    def network(self, service: str) -> LocalNetwork | None:
        """The network of a service whose world is open."""
        world = self._worlds.get(service)
        return world.network if world is not None and not world.network.lost else None

    async def enter(self, service: str) -> int | None:
        """The process whose namespaces are the service's, None if it has the host's; its world is opened first.

        Raises DevloopError.
        """
        network = self.network(service)
        if network is None or not self._worlds[service].ready:
            self.open_world(service)
            await asyncio.shield(self._opening[service])
            if service in self._refused:  # without its files, though its network may be there
                raise self._refused.pop(service)
            network = self.network(service)
        if network is None:
            raise ServiceError("its network could not be made", where=service)
        if self._side.idle:
            self.starts(service)  # no other process of this engine's will listen on its ports
        return network.pid

    def open_world(self, service: str) -> None:
        """Get what the service has of its workload; `Outside.opened` or `failed` tells."""
        task = self._opening.get(service)
        if task is None or task.done():
            task = asyncio.get_running_loop().create_task(self._open(service), name=f"world of {service}")
            self._opening[service] = task
            task.add_done_callback(lambda done: done.cancelled() or done.result())

    async def _open(self, service: str) -> None:
        try:
            await self._open_world(self._side.project.services[service])
        except Exception as problem:
            # Whatever it is (a full disk, no more descriptors, a fault of ours), this service can't start, which is
            # an answer to who waits for it, and no other's business. The next try may find it mended.
            error = self._refused[service] = contained(problem, f"{service} can't have what its workload has")
            where = f"{error.where}: " if error.where else ""
            self._outside.failed(service, f"{where}{error.what}", error.hint or "")
        else:
            self._refused.pop(service, None)
            self._outside.services()
            self._outside.opened(service)

    async def _open_world(self, spec: Service) -> None:
        from devloop.engine.worlds import World

        parts = await self._side.until_prepared()
        world = self._worlds.get(spec.name)
        if world is None or world.network.lost:
            network = await parts.networks.open(spec)
            folder, data = parts.folder.path / spec.name, self._side.copies / spec.name
            lost, world = world, World(spec.name, network, folder, data)
            self._worlds[spec.name] = world
            network.publisher.on_served = partial(self._outside.served, spec.name)
            network.set_gate(self._gates.get(spec.name, Gate.HELD))
            self._arrived.pop(spec.name, asyncio.Event()).set()
            if lost is not None:  # not before: what waits there asks again for its route, and waits in the new one
                await lost.close()
        if not self._side.connects:
            self._side.connects = True
            parts.link.start()
        _, source = await self._source(spec)
        if source is None:
            self._tell_unmatched(spec, parts)
        await parts.link.ready()
        resolver = await parts.link.resolver()
        with self._named(spec):
            await world.open(spec, source, resolver, lambda change: self._changed(spec.name, change))

    def _tell_unmatched(self, spec: Service, parts: Parts) -> None:
        """A service that has nothing of the cluster, though nothing says that this is meant: a misspelt name, say."""
        namespace = spec.place.namespace or next(iter(parts.clusters), "")
        if spec.place.none or namespace not in parts.clusters or spec.name in self._unmatched:
            return
        self._unmatched.add(spec.name)
        from devloop.remote.roles import Role, ask_for
        from devloop.remote.workload.references import nearest

        catalog = self._side.standings().catalogs.get(namespace)
        if catalog is not None and not catalog.may_read(spec.place.workload or spec.name):
            what = f"{spec.name} has no environment and no files of the cluster: you may not read its workloads"
            self._outside.notice("warning", what, ask_for(Role.INGEST))
            return
        there = {each.partition("/")[2]: each for each in catalog.workloads} if catalog is not None else {}
        close = nearest(spec.name, there)
        meant = f"did you mean {there[close]}? " if close is not None else ""
        self._outside.notice(
            "warning",
            f"{spec.name} has no environment and no files of the cluster: no workload of {namespace} is called so",
            f'{meant}`workload = "KIND/NAME"` in services.{spec.name} names one, `workload = false` says it has none',
        )

    async def _source(self, spec: Service) -> tuple[Parts, Source | None]:
        from devloop.engine.worlds import Source

        standing = await self._side.until_standing(spec.name)
        parts = await self._side.until_prepared()
        cluster = parts.clusters.get(spec.place.namespace or next(iter(parts.clusters), ""))
        if cluster is None or spec.place.none:
            return parts, None
        catalog = self._side.standings().catalogs.get(cluster.namespace)
        unread = catalog is not None and not catalog.may_read(spec.place.workload or spec.name)
        if unread and not (
            self._side.idle and spec.place.workload
        ):  # where nothing else is wanted, finding it says why
            return parts, None
        if not (spec.place.workload or standing.workload):
            return parts, None
        reference = spec.place.workload or (standing.workload.reference if standing.workload else "")
        return parts, Source(cluster, reference, parts.agent_image, self._side._remote.secrets_on_disk)

    def _changed(self, service: str, change: Change) -> None:
        match change.what:
            case "environment":
                self._outside.outdated(service, change.text)
            case "pod" | "files":
                self._outside.say(service, change.text)
            case "trouble":
                self._outside.say(service, f"warning: {change.text}")

    # Processes and traffic.

    def starts(self, service: str) -> None:
        """A process of the service is about to start: what has its ports lets go of them."""
        self.fronts.set_here(service, here=True)
        if self._side.parts is not None:
            self._side.parts.networks.starts(service)

    def set_gate(self, service: str, ready: bool, coming: bool, here: bool) -> None:
        """Say whether a local service takes new connections; if not, they wait where it is `coming`.

        `here` is whether its ports are its own: it is local, or its last process has not ended yet.
        """
        gate = Gate.OPEN if ready else Gate.HELD if coming else Gate.CLOSED
        opens = gate is Gate.OPEN and self._gates.get(service) is not gate
        self._gates[service] = gate
        moved = self.fronts.set_here(service, here)
        if self._side.parts is not None and (opens or (moved and not here)):
            self._side.parts.networks.runs(service, here)
        world = self._worlds.get(service)
        if world is not None:
            world.network.set_gate(gate)

    async def connect(self, service: str, port: int) -> socket.socket:
        """A connection to what listens on a port of its localhost, for a probe. Raises OSError."""
        network = self.network(service)
        if network is None:
            raise ConnectionRefusedError
        return await network.connect(port)

    async def ports(self, service: str) -> Any:
        """What connects to a local service's ports; waits until it has a network."""
        spec = self._side.project.services[service]
        try:
            async with asyncio.timeout(spec.hold / SECOND):
                while (found := self.network(service)) is None:
                    if self._gates.get(service) is Gate.CLOSED:
                        raise OffError(f"{service} is not running", where=service)
                    await self._arrived.setdefault(service, asyncio.Event()).wait()
        except TimeoutError:
            raise ServiceError(f"{service} is not running", where=service) from None
        return found.publisher

    def listening(self, service: str) -> tuple[Iterable[Listener] | None, float, bool]:
        """What listens in a local service's network now (None: not known), for how many seconds connections wait while
        it reloads, and whether all of that is its own."""
        network, spec = self.network(service), self._side.project.services.get(service)
        hold = spec.hold / SECOND if spec is not None else 0.0
        if network is None:
            return None, hold, True
        return network.publisher.listening(), hold, network.pid is not None

    def listening_datagrams(self, service: str) -> tuple[Iterable[Listener], frozenset[int]] | None:
        """Its UDP sockets, and the ports at which they are reached; None: not known."""
        network = self.network(service)
        return network.publisher.listening_datagrams() if network is not None else None

    async def _front(self, service: str, port: int) -> Target:
        parts = await self._side.until_prepared()
        return await parts.routes.front(service, port)
