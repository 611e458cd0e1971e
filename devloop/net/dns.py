"""The DNS server of a namespace: cluster names from a `NameSource`, everything else from the host's resolvers.

It answers on every address of the namespace at port 53, UDP and TCP (RFC 1035, RFC 7766), with EDNS (RFC 6891).
Search domains and `ndots` are the business of the client and its resolv.conf, as in a pod.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from devloop.agent.tasks import background
from devloop.listening import stop_listening
from devloop.net.router import Destination, canonical
from devloop.net.upstream import Upstream

LOCAL_TTL = 0
"""Seconds for which a client may keep an answer that a toggle changes."""
_CHAIN = 8
"""CNAMEs that are followed, as resolvers do."""
_EDNS_SIZE = 4096
_CACHE = 4096
_MAX_TTL = 3600
_NEGATIVE_TTL = 5
_IDLE = 10.0
_PKTINFO_4, _PKTINFO_6 = 8, 50  # IP_PKTINFO, IPV6_PKTINFO
_KEPT_QUERY = 512
"""Bytes of a query whose answer is kept as it was sent."""
_UNANSWERED = (dns.rcode.SERVFAIL, dns.rcode.REFUSED)


@dataclass(frozen=True, slots=True)
class Record:
    """One resource record. `value` is in the form of a zone file ("10.0.0.1", "0 50 80 a.b.c."), `ttl` in seconds."""

    type: str
    value: str
    ttl: int = LOCAL_TTL
    name: str = ""
    """Its owner, if that is not the name that was asked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a source knows of a name: its records; none means that it exists, without such a record (NODATA)."""

    records: tuple[Record, ...] = ()
    exists: bool = True
    """False: there is no such name (NXDOMAIN)."""
    additional: tuple[Record, ...] = ()
    """What is likely to be asked for next: the addresses of an SRV's targets. They need a `name`."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer of a source's that holds for some time. It is told by which object it is."""

    at: float
    """When it came, in seconds of the source's clock: `time.monotonic`."""
    ttl: float
    answer: Answer | None
    """None: the name is not the source's."""


NOT_OURS = Kept(0.0, 0.0, None)
"""For a name that is none of the source's, and that it does not have to ask about."""


class NameSource(Protocol):
    """Who knows the names of the cluster and of the local services. It caches for itself what is worth it."""

    async def lookup(self, name: str, type: str) -> Answer | None:
        """The answer for a name, in lower case and without the final dot; None for a name that is not its own.

        `type` is "A", "AAAA", "SRV", "PTR", "CNAME", "TXT", …; PTR comes with names under in-addr.arpa and
        ip6.arpa. A CNAME record alone is followed, also out of the cluster (ExternalName). Raises
        DevloopError or OSError where it can't tell now: the client is answered SERVFAIL, and asks again.
        """

    def kept(self, name: str, type: str) -> Kept | None:
        """What `lookup` would answer from now; None if it would have to find out.

        As long as this gives the same object, a message that was made of it is right.
        """


class Resolver:
    """Answers messages; one for all namespaces, so that they share what is kept of the host's answers."""

    def __init__(
        self,
        source: NameSource,
        upstream: Upstream,
        clock: Callable[[], float] = time.monotonic,
        reached: Callable[[str], bool] = lambda address: True,
    ) -> None:
        """`clock` counts seconds. `reached` says of an IPv6 address that the host's resolvers give whether a service's
        connection could get there."""
        self._reached = reached
        self._source = source
        self._upstream = upstream
        self._clock = clock
        self._kept: dict[tuple[str, int, int], tuple[float, float, dns.message.Message]] = {}
        self._wires: dict[bytes, _Wire] = {}
        self._asking: dict[tuple[str, int, int], asyncio.Task[dns.message.Message]] = {}

    def forget(self) -> None:
        """Forget the host's answers: its network has changed. The source's are never kept here."""
        self._kept.clear()
        self._wires.clear()

    async def close(self) -> None:
        """Stop what is being asked."""
        tasks = tuple(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def known(self, wire: bytes) -> bytes | None:
        """The answer to a message that came by UDP, if it has been given before and still holds; else None.

        Some 20 µs, where `answer` takes 500: nothing is taken apart.
        """
        found = self._wires.get(wire[2:])
        if found is None:
            return None
        kept = self._source.kept(found.name, found.type)
        now = self._clock()
        since = found.source.at
        if found.host is not None:
            since = found.host[0]
            if self._kept.get(found.key) is not found.host or found.host[1] <= now:
                kept = None
        if kept is not found.source:
            del self._wires[wire[2:]]
            return None
        return found.answer(wire[:2], int(now - since))

    def _keep_wire(self, wire: bytes, query: dns.message.Message, made: _Made, answer: bytes) -> None:
        """Remember a message for `known`, if all that it was made of is kept."""
        question = query.question[0]
        name, rdtype = _text(question.name), question.rdtype
        kept = self._source.kept(name, _type(rdtype))
        if kept is None or (kept is not made.before and kept.answer is not made.found):
            return
        key = (name, int(rdtype), int(question.rdclass))
        host = None
        if made.host is not None:
            host = self._kept.get(key)
            if host is None or host[2] is not made.host:
                return
        elif kept.answer is None:
            return
        age = int(self._clock() - (kept.at if host is None else host[0]))
        while len(self._wires) >= _CACHE:
            self._wires.pop(next(iter(self._wires)))
        self._wires[wire[2:]] = _Wire(name, _type(rdtype), kept, key, host, answer, _ttls(answer, age))

    async def answer(self, wire: bytes, *, tcp: bool = False) -> bytes | None:
        """The answer to a message; None where there is nothing to be said (it is no query)."""
        try:
            query = dns.message.from_wire(wire, ignore_trailing=True)
        except dns.exception.DNSException:
            if len(wire) < 12 or wire[2] & 0x80:
                return None
            # FORMERR, with the head of what came (RFC 1035, 4.1.1)
            return wire[:2] + bytes([0x80 | (wire[2] & 0x79), 0x81]) + bytes(8)
        if query.flags & dns.flags.QR:
            return None
        made = _Made()
        if query.edns > 0:
            response = self._empty(query, dns.rcode.BADVERS)
        elif query.opcode() != dns.opcode.QUERY:
            response = self._empty(query, dns.rcode.NOTIMP)
        elif len(query.question) != 1:
            response = self._empty(query, dns.rcode.FORMERR)
        else:
            response = await self._respond(query, made)
        size = 65535 if tcp else min(max(512, query.payload if query.edns >= 0 else 512), _EDNS_SIZE)
        answer = _to_wire(response, size)
        if made.lookups == 1 and not tcp and len(wire) <= _KEPT_QUERY:
            self._keep_wire(wire, query, made, answer)
        return answer

    async def _respond(self, query: dns.message.Message, made: _Made) -> dns.message.Message:
        question = query.question[0]
        response = self._empty(query, dns.rcode.NOERROR)
        try:
            await self._gather(response, question.name, question.rdtype, question.rdclass, made)
        except Exception:
            # Whatever a source or resolver raises, the client shall not wait for its own timeout.
            made.lookups = 0
            return self._empty(query, dns.rcode.SERVFAIL)
        return response

    def _empty(self, query: dns.message.Message, rcode: dns.rcode.Rcode) -> dns.message.Message:
        response = dns.message.make_response(query, recursion_available=True, our_payload=_EDNS_SIZE)
        response.set_rcode(rcode)
        return response

    async def _gather(
        self, response: dns.message.Message, name: dns.name.Name, rdtype: int, rdclass: int, made: _Made
    ) -> None:
        """Add the records for a name to the response, following CNAMEs."""
        seen: set[dns.name.Name] = set()
        for _ in range(_CHAIN):
            seen.add(name)
            found = None
            if rdclass == dns.rdataclass.IN:
                found = _well_known(name, rdtype)
                if found is None:
                    made.before = self._source.kept(_text(name), _type(rdtype))
                    made.found = found = await self._source.lookup(_text(name), _type(rdtype))
                    made.lookups += 1
            if found is None:
                made.host = await self._from_host(response, name, rdtype, rdclass)
                return
            response.flags |= dns.flags.AA
            if not found.exists:
                response.set_rcode(dns.rcode.NXDOMAIN)
            _add(response.answer, name, found.records)
            _add(response.additional, name, found.additional)
            target = _alias(found.records)
            if target is None or rdtype in (dns.rdatatype.CNAME, dns.rdatatype.ANY) or target in seen:
                return
            if any(r.type == _type(rdtype) for r in found.records):
                return  # the source has followed it already
            name = target

    async def _from_host(
        self, response: dns.message.Message, name: dns.name.Name, rdtype: int, rdclass: int
    ) -> dns.message.Message:
        """Add what the host's resolvers say, which is returned."""
        key = (_text(name), rdtype, rdclass)
        kept = self._kept.get(key)
        now = self._clock()
        if kept is not None and kept[1] <= now:
            kept = None
        if kept is None:
            answer, since = await self._ask(key, name), now
        else:
            answer, since = kept[2], kept[0]
        age = int(now - since)
        response.set_rcode(answer.rcode())
        response.flags &= ~dns.flags.AA
        for section, source in (
            (response.answer, answer.answer), (response.authority, answer.authority),
            (response.additional, answer.additional),
        ):  # fmt: skip
            for rrset in source:
                ttl = max(0, rrset.ttl - age)
                # Without a route to it the proxy would accept a connection and reset it, where a client that is refused
                # at once tries IPv4: a namespace always has IPv6.
                known = [each for each in rrset if rrset.rdtype != dns.rdatatype.AAAA or self._reached(each.address)]
                if known:
                    section.append(dns.rrset.from_rdata_list(rrset.name, ttl, known))
        return answer

    async def _ask(self, key: tuple[str, int, int], name: dns.name.Name) -> dns.message.Message:
        """The host's answer. The same question is asked once for all who wait for it."""
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._ask_host(key, name))
            task.add_done_callback(lambda done: self._asked(key, done))
        # The task outlives a client that gives up, so that the next one finds the answer.
        return await asyncio.shield(task)

    def _asked(self, key: tuple[str, int, int], task: asyncio.Task[dns.message.Message]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever waited has it

    async def _ask_host(self, key: tuple[str, int, int], name: dns.name.Name) -> dns.message.Message:
        query = dns.message.make_query(
            name, dns.rdatatype.RdataType(key[1]), dns.rdataclass.RdataClass(key[2]), use_edns=0, payload=_EDNS_SIZE
        )
        answer = dns.message.from_wire(await self._upstream.ask(query.to_wire()), ignore_trailing=True)
        ttl = _keep_for(answer)
        if ttl > 0:
            while len(self._kept) >= _CACHE:
                self._kept.pop(next(iter(self._kept)))
            now = self._clock()
            self._kept[key] = (now, now + ttl, answer)
        return answer


@dataclass(slots=True)
class _Made:
    """What a message is being made of."""

    before: Kept | None = None
    found: Answer | None = None
    """What the source has said,"""
    host: dns.message.Message | None = None
    """and the host's resolvers."""
    lookups: int = 0
    """So many names were asked for: one, unless there are aliases."""


@dataclass(frozen=True, slots=True)
class _Wire:
    """A message, and what it is made of: while that is there, it is right."""

    name: str
    type: str
    source: Kept
    key: tuple[str, int, int]
    host: tuple[float, float, dns.message.Message] | None
    message: bytes
    ttls: tuple[tuple[int, int], ...]
    """Where a record's time to live stands, and what it was when the answer came."""

    def answer(self, id_: bytes, age: int) -> bytes:
        """It, as an answer to the query of that number, so many seconds after it came."""
        out = bytearray(self.message)
        out[:2] = id_
        for at, ttl in self.ttls:
            out[at : at + 4] = max(0, ttl - age).to_bytes(4, "big")
        return bytes(out)


def _ttls(wire: bytes, age: int) -> tuple[tuple[int, int], ...]:
    """The places of all TTLs of a message of ours, with what they were `age` seconds before (RFC 1035, 4.1)."""
    questions, *counts = struct.unpack_from("!4H", wire, 4)
    at = 12
    for _ in range(questions):
        at = _after_name(wire, at) + 4
    found = []
    for _ in range(sum(counts)):
        at = _after_name(wire, at)
        kind, _, ttl, size = struct.unpack_from("!HHIH", wire, at)
        if kind != dns.rdatatype.OPT:  # there it is flags
            found.append((at + 4, ttl + age if ttl else 0))
        at += 10 + size
    return tuple(found)


def _after_name(wire: bytes, at: int) -> int:
    while (length := wire[at]) and length < 0xC0:
        at += length + 1
    return at + (2 if length else 1)


def _keep_for(answer: dns.message.Message) -> int:
    """Seconds for which an answer holds (RFC 2308 for those that say no)."""
    if answer.rcode() in _UNANSWERED:
        return 0
    ttls = [rrset.ttl for rrset in answer.answer]
    if not ttls or answer.rcode() == dns.rcode.NXDOMAIN:
        soa = [rrset for rrset in answer.authority if rrset.rdtype == dns.rdatatype.SOA]
        ttls += [min(rrset.ttl, rrset[0].minimum) for rrset in soa] or [_NEGATIVE_TTL]
    return min(*ttls, _MAX_TTL)


def _to_wire(response: dns.message.Message, size: int) -> bytes:
    """The message, cut where it doesn't fit, so that the client comes back over TCP."""
    with contextlib.suppress(dns.exception.TooBig):
        return response.to_wire(max_size=size)
    # What is additional may be left out without a word (RFC 2181, 9).
    response.additional.clear()
    with contextlib.suppress(dns.exception.TooBig):
        return response.to_wire(max_size=size)
    response.answer.clear()
    response.authority.clear()
    response.flags |= dns.flags.TC
    return response.to_wire(max_size=size)


def _text(name: dns.name.Name) -> str:
    return name.canonicalize().to_text(omit_final_dot=True)


def _type(rdtype: int) -> str:
    return dns.rdatatype.to_text(dns.rdatatype.RdataType(rdtype))


def _alias(records: Sequence[Record]) -> dns.name.Name | None:
    """Where the last CNAME of the answer leads."""
    aliases = [record for record in records if record.type == "CNAME"]
    return dns.name.from_text(aliases[-1].value) if aliases else None


def _add(section: list[dns.rrset.RRset], name: dns.name.Name, records: Sequence[Record]) -> None:
    sets: dict[tuple[str, str], dns.rrset.RRset] = {}
    for record in records:
        key = (record.name, record.type)
        owner = dns.name.from_text(record.name) if record.name else name
        data = dns.rdata.from_text(dns.rdataclass.IN, record.type, record.value, origin=dns.name.root, relativize=False)
        if key not in sets:
            sets[key] = dns.rrset.from_rdata(owner, record.ttl, data)
            section.append(sets[key])
        else:
            sets[key].add(data, record.ttl)


def _well_known(name: dns.name.Name, rdtype: int) -> Answer | None:
    """`localhost` and what is under it is the loopback, and nobody is asked (RFC 6761, 6.3)."""
    labels = _text(name).rsplit(".", 1)
    if labels[-1] != "localhost":
        return None
    if rdtype == dns.rdatatype.A:
        return Answer((Record("A", "127.0.0.1", 300),))
    if rdtype == dns.rdatatype.AAAA:
        return Answer((Record("AAAA", "::1", 300),))
    return Answer()


class DnsServer:
    """Serves one namespace."""

    def __init__(
        self,
        udp: socket.socket,
        tcp: socket.socket,
        resolver: Resolver,
        elsewhere: Callable[[Destination, str, bytes], bool] = lambda client, address, data: False,
    ) -> None:
        """`udp` and `tcp` are `Inside.dns_udp` and `Inside.dns_tcp`; they are closed with the server.

        `elsewhere` is given a client, the address that it has asked, and the datagram; true: that was for somebody
        else, and is on its way.
        """
        self._elsewhere = elsewhere
        self._udp = udp
        self._tcp = tcp
        self._resolver = resolver
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._closing = False

    async def start(self) -> None:
        """Answer from now on."""
        asyncio.get_running_loop().add_reader(self._udp, self._readable)
        self._server = await asyncio.start_server(self._connected, sock=self._tcp, backlog=512)

    async def close(self) -> None:
        """Stop. Returns when nothing is being answered any more."""
        asyncio.get_running_loop().remove_reader(self._udp)
        self._closing = True
        if self._server is not None:
            await stop_listening(self._server)
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._udp.close()

    def _readable(self) -> None:
        for _ in range(64):  # then somebody else's turn
            try:
                data, ancillary, _, client = self._udp.recvmsg(65535, 256)
            except OSError:
                return  # BlockingIOError: all read; else an ICMP error of somebody who is gone
            source = _source(ancillary)
            if self._elsewhere(Destination(canonical(client[0]), client[1]), _address(source), data):
                continue
            if (answer := self._resolver.known(data)) is not None:
                self._send(answer, source, client)
                continue
            self._keep(background(self._answer(data, source, client), name="dns answer"))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, data: bytes, source: list[tuple[int, int, bytes]], client: tuple[str, int]) -> None:
        answer = await self._resolver.answer(data)
        if answer is not None:
            self._send(answer, source, client)

    def _send(self, answer: bytes, source: list[tuple[int, int, bytes]], client: tuple[str, int]) -> None:
        # A client that is gone, or a full buffer, is what UDP's clients ask again for.
        with contextlib.suppress(OSError):
            self._udp.sendmsg([answer], source, 0, client)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Not a coroutine: `close` has to know of a connection whose task has not run yet."""
        if self._closing:
            writer.transport.abort()
            return
        task = background(self._serve(reader, writer), name="dns connection")
        task.add_done_callback(lambda _: writer.close())
        self._keep(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                async with asyncio.timeout(_IDLE):
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    data = await reader.readexactly(size)
                answer = await self._resolver.answer(data, tcp=True)
                if answer is None:
                    return
                writer.write(len(answer).to_bytes(2, "big") + answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            return
        except asyncio.CancelledError:
            writer.transport.abort()
            raise


def _source(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """What makes the answer come from the address that was asked (ip(7), ipv6(7))."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IPV6 and kind == _PKTINFO_6:
            return [(level, kind, data[:16] + struct.pack("=I", 0))]
        if level == socket.IPPROTO_IP and kind == _PKTINFO_4:
            # in_pktinfo: the interface, the local address, the address in the packet's head.
            return [(level, kind, struct.pack("=I4s4s", 0, data[8:12], bytes(4)))]
    return []


def _address(source: list[tuple[int, int, bytes]]) -> str:
    """The one that was asked; empty if it is not known."""
    for _, kind, data in source:
        if kind == _PKTINFO_6:
            return canonical(socket.inet_ntop(socket.AF_INET6, data[:16]))
        return socket.inet_ntop(socket.AF_INET, data[4:8])
    return ""
