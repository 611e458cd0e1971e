"""The sandbox's link: SSH to a server on the loopback, in this process, for a machine that has no cluster.

Its link is the SSH link: what works here is the code that works at a cluster. The server's and the client's key are
made at each start and never leave the process. What stands behind it is a `Backend`: `devloop.sandbox`, which runs
pods, or the `SandboxCluster` of this module, where each Service is one fixed answer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from devloop.dial import connect

from .imports import imported
from .life import HOLD_SECONDS, LiveLink
from .link import OpenError, Refusal, Resolver

if TYPE_CHECKING:
    import asyncssh
    import dns.message

    from devloop.agent.forward import Connection

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LOOPBACK = "127.0.0.1"
NETWORK = ipaddress.ip_network("10.96.0.0/16")
"""Addresses of Services, as kubeadm gives them out."""
RESOLVER = str(NETWORK[10])
TTL_SECONDS = 5


class Backend(Protocol):
    """What stands behind the link: names, and what connections lead to."""

    @property
    def namespace(self) -> str:
        """The one namespace that it has."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of it, for the link's state."""

    async def query(self, wire: bytes) -> bytes:
        """The answer of its resolver to a DNS message in wire format."""

    async def connect(self, host: str, port: int) -> socket.socket | Handler:
        """A connected, non-blocking TCP socket, which is the caller's; or what speaks in its place.

        Raises OpenError.
        """


def resolver(namespace: str, domain: str = "cluster.local") -> Resolver:
    """What the resolv.conf of a pod says (`dnsPolicy: ClusterFirst`)."""
    return Resolver((RESOLVER,), (f"{namespace}.svc.{domain}", f"svc.{domain}", domain), 5, ("ndots:5",))


def resolv_conf(namespace: str, domain: str = "cluster.local") -> str:
    """The same as the file."""
    found = resolver(namespace, domain)
    return f"search {' '.join(found.search)}\nnameserver {RESOLVER}\noptions ndots:{found.ndots}\n"


@dataclass(frozen=True, slots=True)
class Page:
    """A port that answers each HTTP request with this body; None: with what was asked, as JSON."""

    body: str | None = None
    content_type: str = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Echo:
    """A port that sends back what it hears."""


@dataclass(frozen=True, slots=True)
class Forward:
    """A port behind which there is a real one of this machine."""

    port: int
    host: str = LOOPBACK


Answer = Page | Echo | Forward


@dataclass(frozen=True, slots=True)
class SandboxService:
    """A Service, with what its workload's container would be given."""

    name: str
    ports: Mapping[int, Answer]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    """Absolute path → content."""
    address: str = ""
    """Its address; one of the network's if empty."""


@dataclass(frozen=True, slots=True)
class SandboxCluster:
    """What is there: one namespace, its Services, and names from outside (`db.vpc.internal` → a Service)."""

    services: tuple[SandboxService, ...] = ()
    namespace: str = "default"
    domain: str = "cluster.local"
    aliases: Mapping[str, str] = field(default_factory=dict)
    """A name that the cluster's resolver knows besides, and the Service that stands behind it."""

    def addresses(self) -> dict[str, str]:
        """Service → address."""
        return {each.name: each.address or str(NETWORK[100 + index]) for index, each in enumerate(self.services)}

    def names(self) -> dict[str, str]:
        """Every full name, in lower case and without the last dot → address."""
        addresses = self.addresses()
        suffix = f"{self.namespace}.svc.{self.domain}"
        found = {f"{name}.{suffix}".lower(): address for name, address in addresses.items()}
        found |= {alias.lower().rstrip("."): addresses[name] for alias, name in self.aliases.items()}
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """Part of `Backend`: none."""
        return ()

    def find(self, host: str) -> SandboxService | None:
        """The service at an address or a name, which may need a search domain."""
        addresses = self.addresses()
        names = self.names()
        host = host.lower().rstrip(".")
        completed = [host, *(f"{host}.{suffix}" for suffix in resolver(self.namespace, self.domain).search)]
        address = next((names[each] for each in completed if each in names), host)
        return next((each for each in self.services if addresses[each.name] == address), None)

    async def connect(self, host: str, port: int) -> socket.socket | Handler:
        """Part of `Backend`."""
        service = self.find(host)
        if service is None:
            raise OpenError(Refusal.UNKNOWN_HOST, host, port, "no Service has this name")
        match service.ports.get(port):
            case None:
                raise OpenError(Refusal.REFUSED, host, port, f"the Service {service.name} has no such port")
            case Forward() as forward:
                return await _dial(forward, host, port)
            case Echo():
                return echo
            case Page() as answer:
                return page(service.name, answer)

    async def query(self, wire: bytes) -> bytes:
        """Part of `Backend`: A, PTR, and NXDOMAIN or no data with an SOA (RFC 2308)."""
        import dns.message

        return answered(self, dns.message.from_wire(wire)).to_wire()


async def _dial(forward: Forward, host: str, port: int) -> socket.socket:
    try:
        return await connect(forward.host, forward.port)
    except OSError as problem:
        raise OpenError(Refusal.REFUSED, host, port, str(problem)) from problem


class SandboxLink(LiveLink):
    """The link to a sandbox: its server starts with the first connection and ends with `close`."""

    def __init__(self, backend: Backend, *, hold: float = HOLD_SECONDS) -> None:
        super().__init__("sandbox", f"sandbox/{backend.namespace}", self._connect, hold=hold)
        self.backend = backend
        self._server: Any = None
        self._host_key: Any = None
        self._key: Any = None
        self._starting = asyncio.Lock()

    async def _connect(self, tell: Callable[[str], None]) -> Any:
        await imported("devloop.remote.sshcarrier", "dns.message")
        import asyncssh

        from .ssh import connect
        from .sshcarrier import SshCarrier

        async with self._starting:
            if self._server is None:
                self._host_key = asyncssh.generate_private_key("ssh-ed25519")
                self._key = asyncssh.generate_private_key("ssh-ed25519")
                self._server = await serve(self.backend, self._host_key, self._key)
        connection = await connect(
            LOOPBACK,
            where=self.state.where,
            port=self._server.get_port(),
            username="sandbox",
            config=None,
            agent_path=None,
            client_keys=[self._key],
            known_hosts=([self._host_key.convert_to_public()], [], []),
        )
        return SshCarrier(connection, "sandbox", self.state.where, notes=self.backend.notes)

    async def close(self) -> None:
        """End the link and its server; what stands behind it goes on."""
        await super().close()
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await server.wait_closed()


async def serve(backend: Backend, host_key: Any, key: Any) -> Any:
    """Start the server on a free port of the loopback; only `key` opens it."""
    import asyncssh

    from devloop.agent.forward import Connection

    class Server(asyncssh.SSHServer):
        """One connection."""

        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            # The agent's own way from a channel to a socket: asyncssh's loses what comes at once, on uvloop.
            self.connection = Connection(conn)

        def begin_auth(self, username: str) -> bool:
            return True

        def public_key_auth_supported(self) -> bool:
            return True

        def validate_public_key(self, username: str, key_: asyncssh.SSHKey) -> bool:
            return bool(key_.public_data == key.public_data)

        def session_requested(self) -> Callable[..., Awaitable[None]]:
            return say_resolv_conf

        def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
            if (dest_host, dest_port) == (RESOLVER, 53):
                return tcp(answer_names(backend))
            return self.connection.channel(), _session(self.connection, backend, dest_host, dest_port)

    async def say_resolv_conf(stdin: Any, stdout: Any, stderr: Any) -> None:
        known = stdout.channel.get_command() == "cat /etc/resolv.conf"
        if known:
            stdout.write(resolv_conf(backend.namespace))
        stdout.channel.exit(0 if known else 127)

    return await asyncssh.create_server(
        Server,
        LOOPBACK,
        0,
        server_host_keys=[host_key],
        server_version="devloop-sandbox",
        password_auth=False,
        kbdint_auth=False,
        encoding="utf-8",
        agent_forwarding=False,
        x11_forwarding=False,
        compression_algs=["none"],
    )


# What `sshcarrier` takes for each, as OpenSSH's server says it.
_SAID = {
    Refusal.REFUSED: "Connection refused",
    Refusal.UNKNOWN_HOST: "Name or service not known",
    Refusal.TIMEOUT: "Connection timed out",
}


async def _session(connection: Connection, backend: Backend, host: str, port: int) -> Any:
    """What asyncssh lets a channel speak with."""
    import asyncssh
    from asyncssh.stream import SSHTCPStreamSession

    try:
        found = await backend.connect(host, port)
    except OpenError as problem:
        said = _SAID.get(problem.refusal, "Network is unreachable")
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, f"{said}: {problem.what}") from None
    if not isinstance(found, socket.socket):
        return SSHTCPStreamSession(tcp(found))
    return await connection.adopt(found)


def tcp(handler: Handler) -> Any:
    """A handler as asyncssh calls it; its connection ends with it."""
    import asyncssh

    async def run(reader: Any, writer: Any) -> None:
        try:
            await handler(reader, writer)
        except (OSError, asyncssh.Error, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    return run


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


def page(service: str, answer: Page) -> Handler:
    """A server of HTTP/1.1 (RFC 9112) that knows one answer."""

    async def serve_page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                return
            request, *lines = head.split("\r\n")
            method, path = [*request.split(" "), "", ""][:2]
            headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines) if k}
            length = headers.get("content-length", "0")
            await reader.readexactly(int(length) if length.isdecimal() else 0)
            body, kind = answer.body, answer.content_type
            if body is None:
                said = {"service": service, "method": method, "path": path, "headers": headers}
                body, kind = json.dumps(said, indent=2) + "\n", "application/json"
            content = body.encode()
            writer.write(
                f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
                f"Server: {service} in the sandbox\r\n\r\n".encode()
                + (b"" if method == "HEAD" else content)
            )
            await writer.drain()
            if headers.get("connection", "").lower() == "close" or request.endswith("HTTP/1.0"):
                return

    return serve_page


def answered(cluster: SandboxCluster, question: dns.message.Message) -> dns.message.Message:
    """The answer of a cluster's resolver to one question."""
    import dns.flags
    import dns.message
    import dns.name
    import dns.rcode
    import dns.reversename
    import dns.rrset

    forward = cluster.names()
    suffix = f".svc.{cluster.domain}"
    backward = {
        dns.reversename.from_address(address).to_text(omit_final_dot=True): name
        for name, address in forward.items()
        if name.endswith(suffix)
    }
    response = dns.message.make_response(question, recursion_available=True)
    response.flags |= dns.flags.AA
    asked = question.question[0]
    name = asked.name.to_text(omit_final_dot=True).lower()
    kind = dns.rdatatype.to_text(asked.rdtype)
    table = {"A": forward, "PTR": backward}.get(kind, {})
    if name in table:
        value = table[name] + ("." if kind == "PTR" else "")
        response.answer.append(dns.rrset.from_text(asked.name, TTL_SECONDS, "IN", kind, value))
        return response
    if name not in forward and name not in backward:
        response.set_rcode(dns.rcode.NXDOMAIN)
    soa = f"ns.dns.{cluster.domain}. hostmaster.{cluster.domain}. 1 7200 1800 86400 {TTL_SECONDS}"
    response.authority.append(dns.rrset.from_text(dns.name.from_text(cluster.domain), TTL_SECONDS, "IN", "SOA", soa))
    return response


def answer_names(backend: Backend) -> Handler:
    """A DNS server over TCP (RFC 7766) in front of the backend's resolver."""
    import dns.exception

    async def serve_names(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                size = int.from_bytes(await reader.readexactly(2), "big")
                wire = await backend.query(await reader.readexactly(size))
            except (asyncio.IncompleteReadError, dns.exception.DNSException):
                return
            writer.write(len(wire).to_bytes(2, "big") + wire)
            await writer.drain()

    return serve_names
