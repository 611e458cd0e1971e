"""The sandbox: a remote with a small fictional cluster, for a machine that has none.

It is an SSH server on the loopback, in this process, and its link is the SSH link: what works here is the code that
works at a cluster. The server's and the client's key are made at each start and never leave the process.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .life import HOLD_SECONDS, LiveLink, imported
from .link import Resolver

if TYPE_CHECKING:
    import asyncssh

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LOOPBACK = "127.0.0.1"
NETWORK = ipaddress.ip_network("10.96.0.0/16")
"""Addresses of Services, as kubeadm gives them out."""
RESOLVER = str(NETWORK[10])
TTL_SECONDS = 5


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
    def resolver(self) -> Resolver:
        """What a pod's resolv.conf says."""
        search = (f"{self.namespace}.svc.{self.domain}", f"svc.{self.domain}", self.domain)
        return Resolver((RESOLVER,), search, 5, ("ndots:5",))

    def resolv_conf(self) -> str:
        """The same as the file."""
        found = self.resolver
        return f"search {' '.join(found.search)}\nnameserver {RESOLVER}\noptions ndots:{found.ndots}\n"

    def find(self, host: str) -> SandboxService | None:
        """The service at an address or a name, which may need a search domain."""
        addresses = self.addresses()
        names = self.names()
        host = host.lower().rstrip(".")
        completed = [host, *(f"{host}.{suffix}" for suffix in self.resolver.search)]
        address = next((names[each] for each in completed if each in names), host)
        return next((each for each in self.services if addresses[each.name] == address), None)


class SandboxLink(LiveLink):
    """The link to a sandbox, and the sandbox itself: it starts with the first connection and ends with `close`."""

    def __init__(self, cluster: SandboxCluster, *, hold: float = HOLD_SECONDS) -> None:
        super().__init__("sandbox", f"sandbox/{cluster.namespace}", self._connect, hold=hold)
        self.cluster = cluster
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
                self._server = await serve(self.cluster, self._host_key, self._key)
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
        return SshCarrier(connection, "sandbox", self.state.where)

    async def close(self) -> None:
        """End the link, then the sandbox."""
        await super().close()
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await server.wait_closed()


async def serve(cluster: SandboxCluster, host_key: Any, key: Any) -> Any:
    """Start the server on a free port of the loopback; only `key` opens it."""
    import asyncssh

    class Server(asyncssh.SSHServer):
        """One connection."""

        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            self.connection = conn

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
                return tcp(answer_names(cluster))
            service = cluster.find(dest_host)
            answer = service.ports.get(dest_port) if service else None
            if service is None or answer is None:
                what = "Connection refused" if service else "Name or service not known"
                raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, what)
            if isinstance(answer, Forward):
                return self.connection.forward_connection(answer.host, answer.port)
            return tcp(echo if isinstance(answer, Echo) else page(service, answer))

    async def say_resolv_conf(stdin: Any, stdout: Any, stderr: Any) -> None:
        known = stdout.channel.get_command() == "cat /etc/resolv.conf"
        if known:
            stdout.write(cluster.resolv_conf())
        stdout.channel.exit(0 if known else 127)

    def tcp(handler: Handler) -> Any:
        async def run(reader: Any, writer: Any) -> None:
            try:
                await handler(reader, writer)
            except (OSError, asyncssh.Error, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        return run

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


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


def page(service: SandboxService, answer: Page) -> Handler:
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
                said = {"service": service.name, "method": method, "path": path, "headers": headers}
                body, kind = json.dumps(said, indent=2) + "\n", "application/json"
            content = body.encode()
            writer.write(
                f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
                f"Server: {service.name} in the sandbox\r\n\r\n".encode()
                + (b"" if method == "HEAD" else content)
            )
            await writer.drain()
            if headers.get("connection", "").lower() == "close" or request.endswith("HTTP/1.0"):
                return

    return serve_page


def answer_names(cluster: SandboxCluster) -> Handler:
    """A DNS server over TCP for the cluster's names: A, PTR, and NXDOMAIN or no data with an SOA (RFC 2308)."""
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

    def respond(question: dns.message.Message) -> dns.message.Message:
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
        zone = dns.name.from_text(cluster.domain)
        response.authority.append(dns.rrset.from_text(zone, TTL_SECONDS, "IN", "SOA", soa))
        return response

    async def serve_names(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                size = int.from_bytes(await reader.readexactly(2), "big")
                question = dns.message.from_wire(await reader.readexactly(size))
            except (asyncio.IncompleteReadError, dns.exception.DNSException):
                return
            wire = respond(question).to_wire()
            writer.write(len(wire).to_bytes(2, "big") + wire)
            await writer.drain()

    return serve_names
