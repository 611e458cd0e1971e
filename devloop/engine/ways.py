"""How services on the host's network reach what they depend on: by ports on localhost, or by the hosts file.

A dependency is whatever has a name in the remote: each Service of its catalogs, each other service of the project, and
what an environment names besides. Each connection is routed when it is made, so a toggle is effective for the next.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from devloop.config.model import Network, Project, Remote, Service
from devloop.engine.needs import Need, needs
from devloop.engine.routes import Routes
from devloop.errors import ServiceError
from devloop.local import ports
from devloop.net import hosts
from devloop.net.forward import Forwards
from devloop.net.ports import Dependency, Listed, OnDemand, Rewritten, rewrite
from devloop.net.rebinding import Names
from devloop.net.router import Destination
from devloop.net.seldom import Seldom
from devloop.relay import Relays, Target
from devloop.remote.standing import Standings

_TRIES = 3
"""Addresses that are tried for a name: another project may have one by chance."""
_LOOK = 0.1
"""Seconds until a service that is ready is looked at again, whether it listens."""
_LINK = re.compile(r"(.+?)_(?:SERVICE_HOST|SERVICE_PORT(?:_.+)?|PORT(?:_\d+_[A-Z]+(?:_(?:PROTO|PORT|ADDR))?)?)")
"""The names of service links, and of Docker's before them."""


class Setting(Protocol):
    """What a way has to know: `devloop.engine.networks.Networks`."""

    routes: Routes
    remote: Remote
    notice: Callable[[str, str, str], None]
    """Tell a person: level, text, hint."""

    @property
    def project(self) -> Project:
        """As it is now."""

    @property
    def standings(self) -> Standings:
        """As they are now."""


class Way:
    """What `ports` and `hosts` have in common. Nothing waits: an environment is made right before a process starts."""

    network: Network

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._failed = Seldom(lambda text: setting.notice("warning", text, ""))
        self._forwards = Forwards(self._failed, names=Names(setting.remote.allowed_hosts, self._is_own))
        self._needs: list[Need] = []
        self._by_host: dict[str, Need] = {}

    def update(self) -> None:
        """What there is may have changed."""
        self._needs = needs(self._setting.standings, self._setting.project.services, self._setting.routes)
        first = self._setting.standings.domain.namespace
        self._by_host = {host: each for each in reversed(self._needs) for host in each.names(first)}

    def _is_own(self, name: str) -> bool:
        """Whether it is what the remote calls one of its Services or pods, and no name that anybody can register.

        "api.shop" is one, if it is a Service: there is a domain `shop`.
        """
        if name in self._by_host:
            return name.count(".") != 1
        return any(name == each.short for each in self._needs) or self._is_below(name)

    def _is_below(self, name: str) -> bool:
        cluster = self._setting.standings.domain.cluster
        return cluster is not None and name.endswith((".svc", f".svc.{cluster}"))

    def forwarded(self) -> dict[str, int]:
        """What has ports on localhost: name:port of the remote → port here."""
        return {}

    def closed(self) -> tuple[str, ...]:
        """The names of what has none, as nothing names it."""
        return ()

    def environment(self, spec: Service, env: Mapping[str, str]) -> Rewritten:
        """A service's variables, so that the addresses in them lead where they would in its pod."""
        namespace = spec.place.namespace or self._setting.standings.domain.namespace
        known = [found for each in self._needs for found in self._dependencies(each, namespace)]
        return rewrite(env, known, self._other)

    def starts(self, spec: Service) -> None:
        """A process of it is about to start: its ports must be free."""

    def runs(self, spec: Service, here: bool) -> None:
        """It is ready, or not here any more."""

    def notes(self, spec: Service) -> tuple[str, ...]:
        """What this way can't give a service, besides what is wrong in its environment; a sentence each."""
        return ()

    @property
    def relays(self) -> tuple[Relays, ...]:
        """All connections to dependencies."""
        return self._forwards.relays

    async def close(self) -> None:
        """Stop all of it."""
        await self._forwards.close()

    def _dependencies(self, need: Need, namespace: str) -> Iterable[Dependency]:
        """What an environment may say of it, in this namespace."""
        raise NotImplementedError

    def _mentioned(self, need: Need) -> Dependency:
        """The same for something that only an environment names: one name, or one address."""
        raise NotImplementedError

    def _other(self, host: str) -> Dependency | None:
        """What an environment names and no catalog has: a pod's name, `dns.remote`, an address behind the link."""
        routes, cluster = self._setting.routes, self._setting.standings.domain.cluster
        domains = (*self._setting.remote.names, *((cluster,) if cluster else ()))
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            label, _, rest = host.partition(".")
            above = self._by_host.get(rest)
            if above is not None and above.any_port and label:
                full = f"{label}.{above.full}"
            elif any(host == each or host.endswith(f".{each}") for each in domains):
                full = host
            else:
                return None
            return self._mentioned(Need(full, frozenset({host}), "", "", partial(routes.name, full), any_port=True))
        if address.is_loopback or address.is_unspecified or address.is_multicast or not routes.through_link(host):
            return None

        async def route(port: int) -> Target:
            return await routes.route("", Destination(host, port))

        return self._mentioned(Need(host, frozenset(), "", "", route, addresses=frozenset({host}), any_port=True))


class PortsWay(Way):
    """Each dependency that is named has a port on 127.0.0.1, and addresses in an environment are rewritten to it."""

    network = Network.PORTS

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._by_link: dict[tuple[str, str], Need] = {}
        """By the beginning of its variables' names, and its address."""

    def update(self) -> None:
        """See `Way`. Ports that were given stay: programs that run know them."""
        super().update()
        self._by_link = {
            (need.short.upper().replace("-", "_"), address): need for need in self._needs for address in need.addresses
        }
        wanted = self._wanted()
        for need in self._needs:
            if wanted(need):
                for port in need.ports:
                    self._port(need, port)

    def environment(self, spec: Service, env: Mapping[str, str]) -> Rewritten:
        """See `Way`. Service links name every Service of a namespace, unasked: those alone open none."""
        links = {name: need for name in env if (need := self._linked(name, env)) is not None}
        if not links:
            return super().environment(spec, env)
        super().environment(spec, {name: value for name, value in env.items() if name not in links})
        opened = {full for full, _, _ in self._forwards.open_ports}
        closed = {name: env[name] for name, need in links.items() if need.full not in opened}
        found = super().environment(spec, {name: value for name, value in env.items() if name not in closed})
        return replace(found, env={**found.env, **closed})

    def _linked(self, name: str, env: Mapping[str, str]) -> Need | None:
        """The Service whose link this variable is (Kubernetes: enableServiceLinks), None if it is none."""
        match = _LINK.fullmatch(name)
        return self._by_link.get((match[1], env.get(f"{match[1]}_SERVICE_HOST", ""))) if match else None

    def _wanted(self) -> Callable[[Need], bool]:
        """What has its ports from the beginning: by `remote.forward`, and what a service says that it depends on. What
        environments name gets its ports when they are made."""
        project, forward = self._setting.project, frozenset(self._setting.remote.forward)
        named = {name for spec in project.services.values() for name in spec.depends_on}
        first = self._setting.standings.domain.namespace

        def wanted(need: Need) -> bool:
            return "*" in forward or need.service in named or not forward.isdisjoint(need.names(first))

        return wanted

    def forwarded(self) -> dict[str, int]:
        """See `Way`."""
        return {f"{name}:{port}": here for name, port, here in self._forwards.open_ports}

    def closed(self) -> tuple[str, ...]:
        """See `Way`."""
        opened = {name for name, _, _ in self._forwards.open_ports}
        return tuple(sorted(each.full for each in self._needs if each.ports and each.full not in opened))

    def starts(self, spec: Service) -> None:
        """See `Way`. The ports of services are spared from the beginning; these are new in devloop.toml."""
        wanted = set(spec.ports.values())
        for need in self._needs:
            for port in need.ports:
                if self._forwards.port(need.full, port) in wanted:
                    self._forwards.release(need.full, port)
                    self._port(need, port)
                    text = f"{need.full}:{port} is at another port of localhost now, as {spec.name} has that one"
                    self._setting.notice("warning", text, "restart the services that use it")

    def _dependencies(self, need: Need, namespace: str) -> Iterable[Dependency]:
        known = Listed(need.ports, partial(self._port, need))
        ports = OnDemand(known, partial(self._port, need)) if need.any_port else known
        yield Dependency(need.full, need.names(namespace) | need.addresses, ports)

    def _mentioned(self, need: Need) -> Dependency:
        return Dependency(need.full, need.hosts | need.addresses, OnDemand({}, partial(self._port, need)))

    def _port(self, need: Need, port: int) -> int | None:
        """Its port here, which is made if there is none."""
        try:
            return self._forwards.open(need.full, port, partial(need.route, port), spared=self._spared())
        except (OSError, OverflowError) as error:
            self._failed(f"no port of localhost for {need.full}:{port}: {error}")
            return None

    def _spared(self) -> frozenset[int]:
        """Ports that services of the project listen on, now or when they are local."""
        found = {port for spec in self._setting.project.services.values() for port in spec.ports.values()}
        for standing in self._setting.standings.by_service.values():
            targets = (port.target for each in standing.counterparts for port in each.ports)
            found |= {target for target in targets if isinstance(target, int)}
            found |= set(standing.workload.ports.values()) if standing.workload else set()
        return frozenset(found)


class HostsWay(Way):
    """Each dependency has a loopback address, which the hosts file has its names for, and is listened for at its ports.

    A service that listens on every address can't do so while the engine listens on its port of one of them. So the
    engine's listeners give way before it starts, and come back when it runs; where that fails, it is told.
    """

    network = Network.HOSTS

    def __init__(self, setting: Setting, owner: Path, lives: Callable[[Path], bool]) -> None:
        """`owner` is this engine's state folder, `lives` says whether that of another has an engine.

        Raises ServiceError without root.
        """
        super().__init__(setting)
        if not hosts.may_write():
            raise ServiceError(
                f"the network `hosts` takes root: it writes {hosts.HOSTS}",
                where="project.network",
                hint='run devloop with sudo, or set `network = "ports"`, which needs nothing',
            )
        self._owner = str(owner)
        self._file = hosts.HostsFile(setting.project.name, owner, lives)
        self._addresses: dict[str, str] = {}
        self._used: set[str] = set()
        self._mentions: dict[str, Need] = {}
        self._gave_way: dict[tuple[str, int], str] = {}
        """(dependency, port) → the service that is starting and may listen there on every address."""
        self._lost: dict[tuple[str, int], str] = {}
        """The same for those that do."""
        self._looks: dict[str, asyncio.TimerHandle] = {}
        self._written: object = None

    def update(self) -> None:
        """See `Way`."""
        super().update()
        for need in self._needs:
            for port in need.ports:
                self._listen(need, port)
        self._write()

    def environment(self, spec: Service, env: Mapping[str, str]) -> Rewritten:
        """See `Way`. Names are right as they are; addresses of the remote are not."""
        found = super().environment(spec, env)
        self._write()
        return found

    def starts(self, spec: Service) -> None:
        """See `Way`."""
        self._look_no_more(spec.name)
        for need in self._all():
            for port in spec.ports.values():
                if self._forwards.port(need.full, port) is not None:
                    self._forwards.release(need.full, port)
                    self._gave_way[need.full, port] = spec.name

    def _is_own(self, name: str) -> bool:
        """See `Way`. What the hosts file has is right for this whole machine, whoever else has that name."""
        return name in self._by_host or name in self._mentions or super()._is_own(name)

    def runs(self, spec: Service, here: bool) -> None:
        """See `Way`. Ready it may be before it listens, if it has no probe: then it is looked at again."""
        self._look_no_more(spec.name)
        if here and any(not ports.taken(port) for port in spec.ports.values()):
            self._looks[spec.name] = asyncio.get_running_loop().call_later(_LOOK, self.runs, spec, here)
            return
        by_name = {each.full: each for each in self._all()}
        keys = [key for key, service in {**self._gave_way, **self._lost}.items() if service == spec.name]
        for full, port in keys:
            self._gave_way.pop((full, port), None)
            self._lost.pop((full, port), None)
            if full in by_name:
                self._listen(by_name[full], port, spec)
        self._write()

    def notes(self, spec: Service) -> tuple[str, ...]:
        """See `Way`."""
        return tuple(
            f"nobody reaches {need.full}:{port}, as {spec.name} listens on port {port} of every address; "
            "have it listen on 127.0.0.1, or on another port"
            for need, port, service in self._unreachable()
            if service == spec.name
        )

    async def close(self) -> None:
        """See `Way`. The hosts file is as it was."""
        await super().close()
        for service in tuple(self._looks):
            self._look_no_more(service)
        try:
            self._file.remove()
        except OSError as error:
            self._failed(f"its lines in {self._file.file} stay, remove them: {error.strerror}")
        hosts.remove_aliases(self._used)

    def _look_no_more(self, service: str) -> None:
        found = self._looks.pop(service, None)
        if found is not None:
            found.cancel()

    def _all(self) -> Iterable[Need]:
        return (*self._needs, *self._mentions.values())

    def _unreachable(self) -> list[tuple[Need, int, str]]:
        """What is lost: not a service's own Service at its own port, as who connects there reaches it directly."""
        by_name = {each.full: each for each in self._all()}
        return [
            (need, port, service)
            for (full, port), service in sorted(self._lost.items())
            if (need := by_name.get(full)) and not (need.service == service and need.here.get(port) == port)
        ]

    def _dependencies(self, need: Need, namespace: str) -> Iterable[Dependency]:
        known = {port: port for port in need.ports}
        if not need.any_port:
            return [Dependency(need.full, need.addresses, known, self._address(need))]
        # A name stays what it is, but the port that is asked for has to be listened on.
        ports = OnDemand(known, partial(self._listen, need))
        return [Dependency(need.full, frozenset({name}), ports, name) for name in need.names(namespace)]

    def _mentioned(self, need: Need) -> Dependency:
        (host,) = need.hosts or need.addresses
        self._mentions.setdefault(host, need)
        address = self._address(need)
        ports = OnDemand({}, partial(self._listen, need))
        return Dependency(need.full, frozenset({host}), ports, host if need.hosts else address)

    def _address(self, need: Need) -> str:
        """Its loopback address, the same each time."""
        found = self._addresses.get(need.full)
        if found is None:
            found = self._addresses[need.full] = hosts.address_of(f"{self._owner}\n{need.full}", self._used)
            self._used.add(found)
            try:
                hosts.add_alias(found)
            except OSError as error:
                self._failed(f"no address for {need.full}: {error.strerror}")
        return found

    def _listen(self, need: Need, port: int, owner: Service | None = None) -> int | None:
        """Listen at a dependency's port, and return it; None if that can't be. `owner` may have it on every address."""
        key = need.full, port
        if key in self._gave_way or key in self._lost:
            return port
        for _ in range(_TRIES):
            try:
                return self._forwards.open(*key, partial(need.route, port), address=self._address(need))
            except (OSError, OverflowError) as error:
                if getattr(error, "errno", None) != errno.EADDRINUSE:
                    self._failed(f"can't listen for {need.full}:{port}: {error}")
                    return None
            owner = owner or self._owner_of(port)
            if owner is not None:
                self._lost[key] = owner.name
                return port
            if any(self._forwards.port(need.full, other) is not None for other in need.ports):
                break  # the address is its own; so this port is taken on every address
            del self._addresses[need.full]
        self._failed(f"can't listen for {need.full}:{port}: another program has that port, on every address it seems")
        return None

    def _owner_of(self, port: int) -> Service | None:
        """The service of the project that listens on this port."""
        services = self._setting.project.services.values()
        return next((each for each in services if port in each.ports.values()), None)

    def _write(self) -> None:
        unreachable = {need.full for need, _, _ in self._unreachable()}
        entries: dict[str, list[str]] = {}
        for each in self._all():
            if each.full not in unreachable and each.full in self._addresses:
                names = entries.setdefault(self._addresses[each.full], [])
                more = each.names(self._setting.standings.domain.namespace) - set(names)
                names += sorted(more, key=lambda name: (len(name), name))
        entries = {address: names for address, names in entries.items() if names}
        if entries == self._written:
            return
        try:
            left_out = self._file.write(entries)
        except OSError as error:
            self._failed(f"{self._file.file} can't be written: {error.strerror}")
            return
        self._written = entries
        for others in left_out.values():
            self._failed(f"{', '.join(sorted(others))}: other lines of {self._file.file} say where that is")
