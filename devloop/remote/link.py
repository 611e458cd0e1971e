"""The seam of a remote: what the engine, the proxy and the DNS server see of a connection to the other end.

Whatever carries it (SSH to the agent, plain port-forwards, SSH to a host), a link is asked for connections as an
event loop is: with a protocol factory, a host and a port, and it gives an asyncio transport. So a proxy pumps
between two transports with no task and no queue for each connection (`devloop.relay`), and `open` is asyncio's own
stream pair on top of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from devloop.agent.addresses import host_port
from devloop.datagrams import DatagramClient, DatagramFlow
from devloop.errors import RemoteError

if TYPE_CHECKING:
    import dns.message

P = TypeVar("P", bound=asyncio.Protocol)
Kind = Literal["agent", "portforward", "ssh", "sandbox"]


class Phase(StrEnum):
    """Where a link is in its life."""

    CONNECTING = "connecting"
    """The first connection is on its way."""
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    """It was lost, or did not come; it tries again by itself. New connections wait."""
    FAILED = "failed"
    """Trying again would change nothing (no right, a wrong host key): only `wake` does. New ones fail."""
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class LinkState:
    """A moment of a link's life, for `status` and the TUI. Times are monotonic nanoseconds."""

    phase: Phase
    kind: Kind
    where: str
    """The context and namespace, or the host, for people."""
    since: int
    reason: str = ""
    """Why it is not connected; the text of an error, with no secret in it."""
    attempt: int = 0
    """How many attempts have failed since it was last connected."""
    next_attempt: int | None = None
    """When it tries again; None while an attempt runs."""
    notes: tuple[str, ...] = ()
    """What people should know though it works: that plain port-forwards are used, and why."""
    direct: str = ""
    """The agent's address (host:port) if connections go straight there, and not by the API server."""


class Refusal(StrEnum):
    """Why a connection through a link was not made; a proxy answers its client accordingly."""

    REFUSED = "refused"
    """The host is there and nothing listens on that port (ECONNREFUSED)."""
    UNKNOWN_HOST = "unknown host"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    PROHIBITED = "prohibited"
    """The other end forbids it: a policy of the SSH server's, or a right that is missing."""
    LINK_DOWN = "link down"
    """The link itself did not come back in time."""


class OpenError(RemoteError):
    """One connection through the link was not made; the link itself may be well."""

    def __init__(self, refusal: Refusal, host: str, port: int, what: str, *, hint: str | None = None) -> None:
        super().__init__(what, where=host_port(host, port), hint=hint)
        self.refusal = refusal


class NameLookupError(RemoteError):
    """The remote's resolver gave no answer: a timeout, or no resolver to ask. NXDOMAIN is an answer."""


class PermanentError(RemoteError):
    """Trying again changes nothing: a right, a key or a name in a configuration is wrong."""


class NoDatagramsError(RemoteError):
    """This kind of link carries no UDP; trying again changes nothing while it is of this kind."""


class CarrierLostError(Exception):
    """The connection below ended while something was asked of it. Inside `remote/` only."""


@dataclass(frozen=True, slots=True)
class Resolver:
    """What the other end's resolv.conf says (resolv.conf(5)): where names are asked, and how they are completed."""

    nameservers: tuple[str, ...]
    search: tuple[str, ...] = ()
    ndots: int = 1
    options: tuple[str, ...] = field(default=())

    @classmethod
    def parse(cls, text: str) -> Resolver:
        """Read a resolv.conf. The last `search` or `domain` line wins, as in glibc."""
        nameservers: list[str] = []
        search: tuple[str, ...] = ()
        options: list[str] = []
        for line in text.splitlines():
            words = line.split("#", 1)[0].split(";", 1)[0].split()
            match words:
                case ["nameserver", address, *_]:
                    nameservers.append(address)
                case ["search" | "domain", *suffixes]:
                    search = tuple(each.rstrip(".") for each in suffixes if each != ".")
                case ["options", *found]:
                    options += found
        ndots = 1
        for option in options:
            name, _, value = option.partition(":")
            if name == "ndots" and value.isdecimal():
                ndots = min(int(value), 15)  # glibc's RES_MAXNDOTS
        return cls(tuple(nameservers), search, ndots, tuple(options))


Listener = Callable[[LinkState], None]


class Link(Protocol):
    """A live connection to a remote, which mends itself. Every method is for the event loop's thread."""

    @property
    def kind(self) -> Kind:
        """What carries it."""

    @property
    def state(self) -> LinkState:
        """Now."""

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each new state, from the event loop, until what this returns is called."""

    def start(self) -> None:
        """Begin to connect; returns at once, so that services start meanwhile."""

    async def ready(self, timeout: float | None = None) -> None:
        """Wait until it is connected. RemoteError when it has failed, or is not within `timeout` seconds."""

    async def connect(self, factory: Callable[[], P], host: str, port: int) -> tuple[asyncio.Transport, P]:
        """Open a TCP connection from the other end to `host` (a name or an address there) and `port`.

        Like `loop.create_connection`: the protocol is asyncio's, with pause_writing and resume_writing, and
        the transport's `write_eof` is a half-close. In a gap of the link it waits, up to the link's `hold`.
        Raises OpenError.
        """

    async def open(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The same as asyncio's stream pair."""

    async def datagrams(self, client: DatagramClient, address: str, port: int) -> DatagramFlow:
        """A UDP socket at the other end, connected to an address and port there; in a gap of the link it waits.

        Raises NoDatagramsError where the link has no UDP, RemoteError where it does not come back in time.
        """

    async def resolver(self) -> Resolver:
        """How names are resolved at the other end. Raises NameLookupError."""

    async def query(self, message: bytes) -> bytes:
        """Ask the other end's resolver: a DNS message in wire format (RFC 1035, 4.2.2), without a length.

        The answer has the question's id. Raises NameLookupError.
        """

    async def lookup(self, name: str, rdtype: str = "A") -> dns.message.Message:
        """Ask for one name, as it stands (no search domains). NXDOMAIN is the message's rcode, no error."""

    def wake(self) -> None:
        """Look at once whether the connection lives, and do not wait for the next attempt.

        For a laptop that has woken up, a network that has changed, and the user's key.
        """

    async def close(self) -> None:
        """End it; connections through it are aborted, and an agent that nobody else uses is removed."""
