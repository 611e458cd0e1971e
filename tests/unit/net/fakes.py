"""Fakes of the seams of devloop.net."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterable

import dns.message
import dns.rcode
import dns.rrset

from devloop.net.dns import Answer, Kept, Record
from devloop.net.listeners import Listener


class Zone:
    """A NameSource: (name, type) → answer; names under `suffix` that are not there don't exist."""

    def __init__(self, suffix: str = "cluster.local") -> None:
        self.suffix = suffix
        self.answers: dict[tuple[str, str], Answer] = {}
        self.asked: list[tuple[str, str]] = []
        self.error: Exception | None = None
        self.keeps: dict[tuple[str, str], Kept] = {}

    def set(self, name: str, *records: Record) -> None:
        for record in records:
            self.answers[name, record.type] = Answer(tuple(r for r in records if r.type == record.type))

    def kept(self, name: str, type: str) -> Kept | None:
        """What a test has put there."""
        return self.keeps.get((name, type))

    async def lookup(self, name: str, type: str) -> Answer | None:
        self.asked.append((name, type))
        if self.error is not None:
            raise self.error
        if not name.endswith(self.suffix) and (name, type) not in self.answers:
            return None
        found = self.answers.get((name, type)) or self.answers.get((name, "CNAME"))
        if found is not None:
            return found
        return Answer(exists=any(known == name for known, _ in self.answers))


class FakeUpstream:
    """An Upstream: answers from rrsets by name and type, NXDOMAIN otherwise."""

    def __init__(self) -> None:
        self.rrsets: dict[tuple[str, str], dns.rrset.RRset] = {}
        self.authority: list[dns.rrset.RRset] = []
        self.asked: list[str] = []
        self.release: asyncio.Event | None = None
        self.error: Exception | None = None

    def set(self, name: str, ttl: int, type: str, *values: str) -> None:
        self.rrsets[name, type] = dns.rrset.from_text(name, ttl, "IN", type, *values)

    async def ask(self, query: bytes) -> bytes:
        message = dns.message.from_wire(query)
        question = message.question[0]
        name, type = question.name.to_text(), question.to_text().split()[-1]
        self.asked.append(f"{name} {type}")
        if self.release is not None:
            await self.release.wait()
        if self.error is not None:
            raise self.error
        response = dns.message.make_response(message)
        found = self.rrsets.get((name, type))
        if found is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
            response.authority += self.authority
        else:
            response.answer.append(found)
        return response.to_wire()


class FakeInside:
    """The namespace as a Publisher sees it, on the host's own sockets: inner port → a listening socket."""

    def __init__(self) -> None:
        self.open: dict[int, tuple[str, int]] = {}
        self.open_6: dict[int, tuple[str, int]] = {}
        """What is listened on at ::1 alone."""
        self.unaccepted: set[int] = set()
        self.addresses: list[str] = []
        self.errors: list[OSError] = []
        """Raised by the next connections that are made."""
        self.release: asyncio.Event | None = None
        """What a connection waits for when it is made."""

    @property
    def tries(self) -> int:
        return len(self.addresses)

    async def connect(self, port: int, address: str = "127.0.0.1") -> socket.socket:
        self.addresses.append(address)
        if self.errors:
            raise self.errors.pop(0)
        found = (self.open_6 if ":" in address else self.open).get(port)
        if found is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, found)
            if self.release is not None:
                await self.release.wait()
        except BaseException:
            sock.close()
            raise
        return sock

    def listeners(self) -> Iterable[Listener]:
        return [
            *(Listener(port, "0.0.0.0") for port in self.open),
            *(Listener(port, "::1") for port in self.open_6),
        ]

    def not_accepted(self, port: int) -> frozenset[int]:
        return frozenset(self.unaccepted)
