"""Which network the local services of a project have (`project.network`), and each one's own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from devloop.config.model import SECOND, Network, Project, Remote, Service
from devloop.engine.fronts import Fronts
from devloop.engine.routes import Routes
from devloop.engine.ways import HostsWay, PortsWay, Way
from devloop.errors import ServiceError
from devloop.local.process import Holders
from devloop.net.dns import Resolver
from devloop.net.host import HostPorts
from devloop.net.onhost import OnHost
from devloop.net.service import LocalNetwork, ServiceNetwork
from devloop.relay import Relays
from devloop.remote.standing import Standings
from devloop.state import StateFolder


class Networks:
    """Gives a service its network, in the way that is wanted or, if none is, the best that there is.

    Whether namespaces can be made is found out by making the first one: no list of conditions is as right.
    """

    def __init__(
        self,
        remote: Remote,
        project: Callable[[], Project],
        standings: Callable[[], Standings],
        routes: Routes,
        resolver: Resolver,
        holders: Holders,
        fronts: Fronts,
        state: StateFolder,
        folder: Path,
        say: Callable[[str, str], None],
        notice: Callable[[str, str, str], None],
        changed: Callable[[], None],
    ) -> None:
        """`folder` has one for each service; `changed` is told when clients should look anew: at published ports, at
        the way. Raises ServiceError if what is wanted can't be had."""
        self.remote = remote
        self.routes = routes
        self.notice = notice
        self._project = project
        self._standings = standings
        self._resolver = resolver
        self._holders = holders
        self._fronts = fronts
        self._state = state
        self._folder = folder
        self._say = say
        self._changed = changed
        self._host_ports: HostPorts | None = None
        self._way: Way | None = None
        wanted = project().network
        self._fixed = wanted is not None
        self._first = asyncio.Lock()
        if wanted is Network.HOSTS:
            self._way = HostsWay(self, state.path, _lives)
            fronts.on_host = True
        elif wanted is Network.PORTS:
            self._way = PortsWay(self)
            fronts.on_host = True
        elif wanted is None and sys.platform != "linux":
            self._fall_back(ServiceError("network namespaces are a part of Linux"), "info")

    @property
    def project(self) -> Project:
        """As it is now."""
        return self._project()

    @property
    def standings(self) -> Standings:
        """As they are now."""
        return self._standings()

    @property
    def kind(self) -> Network:
        """The way, as far as is known."""
        return self._way.network if self._way is not None else Network.NAMESPACE

    def update(self) -> None:
        """What there is in the remote, or in the project, may have changed."""
        if self._way is not None:
            self._way.update()

    async def open(self, spec: Service) -> LocalNetwork:
        """The network of a service that is to start. Raises ServiceError, EngineError."""
        if self._way is not None:
            return self._on_host(spec, self._way)
        if self._fixed:
            return await self._namespace(spec)
        async with self._first:
            if self._way is None:
                try:
                    found = await self._namespace(spec)
                except ServiceError as error:
                    self._holders.release(spec.name)  # it may have gone half the way
                    self._fall_back(error, "warning")
                else:
                    self._fixed = True
                    return found
        return await self.open(spec)

    def starts(self, service: str) -> None:
        """A process of it is about to start: its ports must be free."""
        spec = self.project.services.get(service)
        if self._way is not None and spec is not None:
            self._way.starts(spec)

    def runs(self, service: str, here: bool) -> None:
        """It is ready, or not here any more."""
        spec = self.project.services.get(service)
        if self._way is not None and spec is not None:
            self._way.runs(spec, here)

    def notes(self, service: str) -> tuple[str, ...]:
        """What the way can't give a service."""
        spec = self.project.services.get(service)
        return self._way.notes(spec) if self._way is not None and spec is not None else ()

    def forwarded(self) -> dict[str, int]:
        """What of the remote has ports on localhost: name:port → port here."""
        return self._way.forwarded() if self._way is not None else {}

    def closed(self) -> tuple[str, ...]:
        """The Services that could have some, and which nothing names."""
        return self._way.closed() if self._way is not None else ()

    @property
    def relays(self) -> tuple[Relays, ...]:
        """Connections to dependencies that are no single service's: those by the ways for the host's network."""
        return self._way.relays if self._way is not None else ()

    async def close(self) -> None:
        """Stop what is for all services."""
        if self._way is not None:
            await self._way.close()
        if self._host_ports is not None:
            await self._host_ports.close()

    def _fall_back(self, why: ServiceError, level: str) -> None:
        self._way = PortsWay(self)
        self._fronts.on_host = True
        text = f"services have the host's network, and ports of localhost lead to the remote, as {why.what}"
        self.notice(level, text, why.hint or "")
        self._fronts.update(self.project.services)
        self._way.update()
        self._changed()

    async def _namespace(self, spec: Service) -> LocalNetwork:
        if self._host_ports is None:
            self._host_ports = HostPorts()
        network = ServiceNetwork(
            spec.name,
            self.routes,
            self._resolver,
            self._host_ports,
            lambda line: self._say(spec.name, line),
            hold=spec.hold / SECOND,
            fronts=lambda: self._fronts.published(spec.name).values(),
        )
        await network.open(self._holders.get(spec.name))
        network.follow(self._changed, except_for=spec.ports.values())
        return network

    def _on_host(self, spec: Service, way: Way) -> LocalNetwork:
        return OnHost(
            spec.name,
            self._folder / spec.name / "volumes",
            lambda env: way.environment(self.project.services.get(spec.name, spec), env),
            lambda line: self._say(spec.name, line),
            hold=spec.hold / SECOND,
        )


def _lives(state: Path) -> bool:
    """Whether an engine holds this state folder."""
    return StateFolder(state.parent, state).engine_pid() is not None
