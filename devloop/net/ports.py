"""The portable way: dependencies have ports on 127.0.0.1, and addresses in an environment are rewritten to them.

Pure functions. The `hosts` way uses them too, for addresses that no hosts file can have. What can't be rewritten so
that it works is left alone or made as right as it can be, with a note: a variable that silently means something else
costs more than one that fails.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"
DEFAULT_PORTS = {
    "amqp": 5672, "amqps": 5671, "clickhouse": 9000, "cockroachdb": 26257, "etcd": 2379, "ftp": 21, "grpc": 443,
    "grpcs": 443, "http": 80, "https": 443, "kafka": 9092, "ldap": 389, "ldaps": 636, "mariadb": 3306,
    "memcached": 11211, "mongodb": 27017, "mqtt": 1883, "mqtts": 8883, "mssql": 1433, "mysql": 3306, "nats": 4222,
    "neo4j": 7687, "bolt": 7687, "oracle": 1521, "postgres": 5432, "postgresql": 5432, "pulsar": 6650, "redis": 6379,
    "rediss": 6379, "smtp": 25, "smtps": 465, "sqlserver": 1433, "ssh": 22, "sftp": 22, "stomp": 61613, "ws": 80,
    "wss": 443,
}  # fmt: skip
"""The port that a URL means when it names none, by scheme; `grpc+x`, `postgresql+x` count as what is before +."""
_SECURE = {"https", "grpcs", "wss", "amqps", "rediss", "ldaps", "mqtts", "smtps"}

_HOST = r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9])?\.?"
_PLACES = re.compile(
    rf"""(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?\#\s"'<>]*)
    |(?<![\w.-])(?P<host>{_HOST}):(?P<port>\d{{1,5}})(?![\w:@-]|\.\d)""",
    re.VERBOSE,
)
_KEYWORD_HOST = re.compile(
    rf"(?i)(?P<key>\b(?:host|hostaddr|hostname|server|addr|address|data\ source)\s*=\s*)(?:tcp:)?(?P<host>{_HOST})"
    r"(?:,(?P<comma>\d+))?(?=[\s;&]|$)"
)
_KEYWORD_PORT = re.compile(r"(?i)(?P<key>\bport\s*=\s*)(?P<port>\d+)\b")
_HOST_VARIABLE = re.compile(
    r"^(?P<stem>.*?)(?P<suffix>_?(?:SERVICE_HOST|HOSTNAME|HOSTS?|ADDR(?:ESS(?:ES)?)?|SERVERS?|ENDPOINTS?|NODES?|IP|"
    r"CONTACT_POINTS|DOMAIN|BROKERS?))$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Dependency:
    """Something that an environment may name."""

    name: str
    """For notes."""
    hosts: frozenset[str]
    """Each name and address that it goes by: "api", "api.shop", its cluster IP, …; in lower case."""
    ports: Mapping[int, int]
    """Its port → the port here. What takes any port may be `OnDemand`."""
    address: str = LOOPBACK
    """Where these ports are: an address, or a name that leads to one."""


class Listed(Mapping[int, int]):
    """Ports that are known, and made when they are asked for."""

    def __init__(self, ports: Iterable[int], make: Callable[[int], int | None]) -> None:
        """`make` gives the port here of one of them, None if there can be none."""
        self._ports = tuple(ports)
        self._make = make

    def __getitem__(self, port: int) -> int:
        found = self._make(port) if port in self._ports else None
        if found is None:
            raise KeyError(port)
        return found

    def __contains__(self, port: object) -> bool:
        return port in self._ports

    def __iter__(self) -> Iterator[int]:
        return iter(self._ports)

    def __len__(self) -> int:
        return len(self._ports)


class OnDemand(Mapping[int, int]):
    """Ports that are made when they are asked for: for what can have any, such as a headless Service's pods."""

    def __init__(self, known: Mapping[int, int], make: Callable[[int], int | None]) -> None:
        """`known` are there already; `make` gives the port here of another one, None if there can be none."""
        self._known = known
        self._make = make

    def __getitem__(self, port: int) -> int:
        found = self._known[port] if port in self._known else self._make(port)
        if found is None:
            raise KeyError(port)
        return found

    def __iter__(self) -> Iterator[int]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


@dataclass(frozen=True, slots=True)
class Rewritten:
    """An environment whose addresses are on this machine."""

    env: dict[str, str]
    changed: dict[str, str]
    """Variable → what it was."""
    notes: tuple[str, ...]
    """What could not be rewritten, or may not work in spite of it; a sentence each."""


def rewrite(
    env: Mapping[str, str],
    dependencies: Iterable[Dependency],
    other: Callable[[str], Dependency | None] = lambda host: None,
) -> Rewritten:
    """Point every address of a dependency at its port on this machine.

    Found are URLs, also with several hosts, a user or no port; host:port, alone, in lists and inside of other text;
    keyword strings ("host=db port=5432"); pairs of variables (X_HOST and X_PORT, the X_SERVICE_HOST and
    X_SERVICE_PORT of service links). A name alone is an address only in a variable that is called like one
    (`APP_NAME=api` stays), or if it has a dot. `other` is asked for names and addresses that are none of these.
    """
    rewriter = _Rewriter({host: d for d in dependencies for host in d.hosts}, other, env)
    return rewriter.run()


class _Rewriter:
    def __init__(
        self, hosts: Mapping[str, Dependency], other: Callable[[str], Dependency | None], env: Mapping[str, str]
    ) -> None:
        self._hosts = hosts
        self._other = other
        self._before = dict(env)
        self._env = dict(env)
        self._notes: list[str] = []

    def run(self) -> Rewritten:
        for name, value in self._before.items():
            whole = [self._known(part) for part in value.split(",")]
            if value and all(whole):
                self._bare(name, value, [found for found in whole if found])
            elif self._env[name] == value:  # not the port of a pair that came before
                self._env[name] = self._inner(name, value)
        changed = {name: old for name, old in self._before.items() if self._env[name] != old}
        return Rewritten(self._env, changed, tuple(dict.fromkeys(self._notes)))

    def _known(self, host: str) -> Dependency | None:
        host = host.strip().strip("[]").removesuffix(".").lower()
        if host not in self._hosts and ":" in host:
            try:
                host = str(ipaddress.ip_address(host))
            except ValueError:
                return None
        return self._hosts.get(host) or (self._other(host) if host else None)

    def _note(self, text: str) -> None:
        self._notes.append(text)

    def _inner(self, name: str, value: str) -> str:
        """A value with addresses in it."""

        def place(match: re.Match[str]) -> str:
            if match["scheme"] is not None:
                return self._url(name, match["scheme"], match["authority"])
            found = self._known(match["host"])
            if found is None:
                return match[0]
            port = self._port(name, found, int(match["port"]))
            return match[0] if port is None else f"{found.address}:{port}"

        value = _PLACES.sub(place, value)
        return self._keywords(name, value)

    def _url(self, name: str, scheme: str, authority: str) -> str:
        user, at, hosts = authority.rpartition("@")
        written = []
        for part in hosts.split(","):
            host, colon, port = part.rpartition(":")
            if not colon or not port.isdigit() or (host.startswith("[") and not host.endswith("]")):
                host, port = part, ""
            found = self._known(host)
            if found is None:
                written.append(part)
                continue
            if scheme.lower() == "mongodb+srv":
                self._note(f"{name}: {scheme}://{host} asks the DNS for its servers, which only a namespace can answer")
                written.append(part)
                continue
            local = self._port(name, found, int(port) if port else self._default(scheme, found))
            kept = local is None or (not port and found.address == host)
            written.append(part if kept else f"{found.address}:{local}")
            if not kept and scheme.lower() in _SECURE and found.address != host:
                self._note(f"{name}: the certificate of {host} is not one for {found.address}")
        return f"{scheme}://{user}{at}{','.join(written)}"

    def _default(self, scheme: str, found: Dependency) -> int | None:
        port = DEFAULT_PORTS.get(scheme.lower()) or DEFAULT_PORTS.get(re.split("[+:]", scheme.lower())[0])
        if (port is None or port not in found.ports) and len(found.ports) == 1:
            return next(iter(found.ports))
        return port

    def _port(self, name: str, found: Dependency, port: int | None) -> int | None:
        local = None if port is None else found.ports.get(port)
        if local is None:
            asked = "no port is named" if port is None else f"it has no port {port}"
            known = ", ".join(map(str, sorted(found.ports))) or "none"
            self._note(f"{name}: {found.name} was left alone: {asked} (known: {known})")
        return local

    def _keywords(self, name: str, value: str) -> str:
        """libpq's "host=db port=5432" and ADO.NET's "Server=db,1433;Database=…"."""
        match = _KEYWORD_HOST.search(value)
        found = self._known(match["host"]) if match else None
        if match is None or found is None:
            return value
        port = _KEYWORD_PORT.search(value)
        number = int(match["comma"] or (port["port"] if port else 0)) or None
        if number is None and len(found.ports) == 1:
            number = next(iter(found.ports))
        local = self._port(name, found, number)
        if local is None or (found.address == match["host"] and local == number):
            return value
        if match["comma"]:
            return f"{value[: match.start()]}{match['key']}{found.address},{local}{value[match.end() :]}"
        if port is not None:
            value = _KEYWORD_PORT.sub(lambda m: f"{m['key']}{local}", value, count=1)
            match = _KEYWORD_HOST.search(value)
            assert match is not None
            return f"{value[: match.start()]}{match['key']}{found.address}{value[match.end() :]}"
        separator = ";" if ";" in value else " "
        return f"{value[: match.start()]}{match['key']}{found.address}{separator}port={local}{value[match.end() :]}"

    def _bare(self, name: str, value: str, found: list[Dependency]) -> None:
        """A variable that is nothing but a name, or several: its port is in another variable."""
        match = _HOST_VARIABLE.match(name)
        if match is None and not all("." in part or ":" in part for part in value.split(",")):
            return
        partners = self._partners(match["stem"], match["suffix"]) if match else []
        if not partners and not all(each.ports for each in found):
            self._note(f"{name}: {value} was left alone: no port is named beside it")
            return
        if len(found) == 1 and partners:
            ports = {each: self._port(each, found[0], int(self._before[each])) for each in partners}
            if any(ports.values()):  # else the address is right as it is: half of a pair leads nowhere
                self._env[name] = found[0].address
                self._env.update({each: str(local) for each, local in ports.items() if local is not None})
            return
        self._env[name] = ",".join(each.address for each in found)
        for dependency in found:
            here = {port: dependency.ports.get(port) for port in sorted(dependency.ports)}
            moved = [f"{port} is {local}" for port, local in here.items() if local not in (None, port)]
            if moved:
                self._note(f"{name}: no port is named beside it; of {dependency.name}, {', '.join(moved)} here")

    def _partners(self, stem: str, suffix: str) -> list[str]:
        """Variables that hold the port of a host variable."""
        if suffix.upper().endswith("SERVICE_HOST"):
            # Kubernetes' service links: X_SERVICE_PORT and, of named ports, X_SERVICE_PORT_HTTP.
            prefix = f"{stem}_SERVICE_PORT"
            names = [n for n in self._before if n == prefix or n.startswith(f"{prefix}_")]
        else:
            lower = suffix.islower()
            ends = ("_port", "port") if lower else ("_PORT", "PORT")
            names = [stem + end for end in (ends if suffix.startswith("_") or not stem else reversed(ends))]
            names = [n for n in names if n in self._before][:1]
        return [n for n in names if self._before[n].isdigit()]


def rewrite_paths(env: Mapping[str, str], moved: Mapping[str, str]) -> dict[str, str]:
    """Point paths below the volumes' mount points at where the volumes lie here: {"/data": "/…/volumes/data"}."""
    if not moved:
        return dict(env)
    longest_first = sorted((path.rstrip("/") for path in moved), key=len, reverse=True)
    pattern = re.compile(
        rf"(?:(?<![\w./~-])|(?<=file://))(?P<path>{'|'.join(map(re.escape, longest_first))})(?![\w.-])"
    )
    places = {path.rstrip("/"): place.rstrip("/") for path, place in moved.items()}
    return {name: pattern.sub(lambda match: places[match["path"]], value) for name, value in env.items()}
