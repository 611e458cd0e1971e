"""A port on the host's loopback for each that a service declares: it leads to the service, wherever that is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial

from devloop.config.model import Service
from devloop.local import ports
from devloop.net.forward import Forwards
from devloop.net.rebinding import Names
from devloop.net.router import ToService
from devloop.net.seldom import Seldom
from devloop.relay import Relays, Target


class Fronts:
    """All of a project's.

    A service in a namespace never listens on the host itself, so its fronts are always there. One that has the host's
    network listens on its ports itself while it is here, and they are let go before it starts.
    """

    def __init__(
        self,
        route: Callable[[str, int], Awaitable[Target]],
        notice: Callable[[str, str, str], None],
        allowed_hosts: Collection[str] = (),
    ) -> None:
        """`route` says where a connection to a service's port leads; `notice` tells a person: level, text, hint.

        `allowed_hosts` are names that HTTP requests to the remote may be for. What is here sees to that itself, as
        without devloop.
        """
        self.on_host = False
        """Whether services have the host's network."""
        self._route = route
        self._notice = notice
        self._services: Mapping[str, Service] = {}
        self._forwards = Forwards(
            Seldom(lambda line: notice("warning", line, "")),
            names=Names(allowed_hosts, lambda name: name in self._services),
            spared=lambda target: isinstance(target, ToService),
        )
        self._open: dict[tuple[str, int], int] = {}
        """(service, port) → the port of the host."""
        self._here: set[str] = set()
        self._told: set[tuple[str, int, int]] = set()

    def update(self, services: Mapping[str, Service]) -> None:
        """The services of the project, or what network they have, may have changed."""
        self._services = services
        wanted = {
            (spec.name, port)
            for spec in services.values()
            for port in spec.ports.values()
            if not self._listens_itself(spec.name)
        }
        for service, port in self._open.keys() - wanted:
            self._release(service, port)
        for service, port in sorted(wanted):
            self._take(service, port)

    def set_here(self, service: str, here: bool) -> bool:
        """Say whether a service is here: its process runs, or is the next to listen on its ports.

        Returns whether that is news.
        """
        if here is (service in self._here):
            return False
        (self._here.add if here else self._here.discard)(service)
        spec = self._services.get(service)
        if spec is None or not self.on_host:
            return True
        own = set(spec.ports.values())
        for port in own:
            (self._release if here else self._take)(service, port)
        if here:
            for (other, port), there in tuple(self._open.items()):
                if there in own:  # of a service that is elsewhere, and has the same port
                    self._release(other, port)
                    self._take(other, port)
        return True

    def published(self, service: str) -> dict[str, int]:
        """Port's name → the host's port that leads to it."""
        spec = self._services.get(service)
        if spec is None:
            return {}
        if self._listens_itself(service):
            return dict(spec.ports)
        return {name: self._open[service, port] for name, port in spec.ports.items() if (service, port) in self._open}

    def reachable(self, service: str) -> dict[str, int]:
        """Those of `published` that something listens on: a service that listens itself may not do so."""
        found = self.published(service)
        if not self._listens_itself(service):
            return found
        return {name: port for name, port in found.items() if ports.taken(port)}

    @property
    def relays(self) -> tuple[Relays, ...]:
        """All connections that came by them."""
        return self._forwards.relays

    async def close(self) -> None:
        """Stop all."""
        await self._forwards.close()

    def _listens_itself(self, service: str) -> bool:
        return self.on_host and service in self._here

    def _release(self, service: str, port: int) -> None:
        self._open.pop((service, port), None)
        self._forwards.release(service, port)

    def _take(self, service: str, port: int) -> None:
        here = [self._services[name] for name in self._here if name in self._services] if self.on_host else []
        spared = {each for spec in here for each in spec.ports.values()}
        try:
            there = self._forwards.open(service, port, partial(self._route, service, port), spared=spared)
        except OSError as error:
            self._notice("warning", f"no port of localhost for {service}: {error.strerror}", "")
            return
        self._open[service, port] = there
        if there != port and (service, port, there) not in self._told:
            self._told.add((service, port, there))
            other = next((name for (name, _), taken in self._open.items() if taken == port and name != service), "")
            if other:
                who, hint = f"{other} of this project", "each has its own port of localhost"
            elif port in spared:
                who, hint = "a service of this project", ""
            else:
                who, hint = ports.holder_of(port)
            level = "info" if other else "warning"
            self._notice(
                level,
                f"port {port} is taken by {who}, so {service} is at localhost:{there}",
                hint,
            )
