"""Puts this process into the midst of connections of its pod, while they are in use and without an end noticing.

    client ◀──TCP──▶ outer ┄ this process ┄ inner ◀──TCP──▶ the server's socket

The outer socket goes on as the server towards the client, the inner one as the client towards the server: they are made
with TCP_REPAIR (CAP_NET_ADMIN), which gives a socket the numbers of a connection that is there. nftables leads the
client's packets to the outer one, which has a port of its own, and a rule of routing keeps the server's within the pod,
where the inner one has the client's address. Nothing is lost by it, whatever is under way: what was not acknowledged is
sent again by whoever sent it, as after the loss of a packet.

The numbers are asked of the server's socket while the connection's packets are held: a packet that is out of its window
is answered with an acknowledgment that has them (RFC 9293, 3.10.7.4). It carries nothing, so it can't do any harm.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import diag, routing
from .diag import Connection
from .packetlog import PacketLog, Segment, nft, segment

GROUP = 19997
HOLD_SECONDS = 3
"""What is held is let go after this time, whatever becomes of this process."""
ANSWER_SECONDS = 0.1
AT_ONCE = 64
_MARKS = 0x5D100000
_REPAIR, _QUEUE, _SEQUENCE, _OPTIONS, _TIMESTAMP, _WINDOW = 19, 20, 21, 22, 24, 29  # TCP_REPAIR and on, linux/tcp.h
_OFF, _ON, _OFF_IN_SILENCE = 0, 1, -1
_RECEIVE, _SEND = 1, 2
_LONGEST, _SCALES, _SELECTIVE, _TIMESTAMPS = 2, 3, 4, 8  # TCPOPT_…
_HAS_TIMESTAMPS, _HAS_SELECTIVE, _HAS_SCALES = 1, 2, 4  # TCPI_OPT_…
_HARMLESS = (1, 5, 8)  # options that say nothing which has to go on: NOP, SACK, timestamps
_TRANSPARENT = {socket.AF_INET: (socket.SOL_IP, 19), socket.AF_INET6: (socket.IPPROTO_IPV6, 75)}


@dataclass(eq=False, slots=True)
class Pair:
    """The two sockets of one connection; they don't block."""

    found: Connection
    outer: socket.socket
    number: int
    """The outer socket's port."""
    inner: socket.socket
    unsure: int
    """So many of the server's next bytes may be with the client already: they are those that were not acknowledged."""

    def close(self) -> None:
        """Both ends; what was not read is a reset."""
        self.outer.close()
        self.inner.close()


@dataclass(frozen=True, slots=True)
class _Numbers:
    sent: int
    """The next that the server sends."""
    acknowledged: int
    """The next of the client's that the server has not got."""
    window: int
    own_time: int
    client_time: int


class Takeover:
    """What leads packets to the pairs, while it is open: a table of nftables and a rule of routing. OSError."""

    def __init__(self) -> None:
        number = secrets.randbelow(1 << 16)
        self._table, self._mark = f"devloop_move_{number:x}", _MARKS | number
        self._families: list[socket.AddressFamily] = []
        try:
            nft(rules(self._table, self._mark))
            for family in (socket.AF_INET, socket.AF_INET6):
                if family == socket.AF_INET or Path("/proc/net/if_inet6").exists():
                    routing.keep_within(self._mark, family)
                    self._families.append(family)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave nothing in the pod's network. Pairs that are open are cut."""
        with contextlib.suppress(OSError):
            nft(f"add table inet {self._table}\ndelete table inet {self._table}\n")
        for family in self._families:
            routing.let_go(self._mark, family)

    def take(self, sock: socket.socket, chosen: Sequence[Connection]) -> list[Pair]:
        """Those that could be taken; the others go on as they were. OSError: none could. `sock`: `diag.opened`'s."""
        ports = {each.port for each in chosen}
        with contextlib.closing(PacketLog(GROUP)) as log, contextlib.ExitStack() as undo:
            undo.callback(self._let_go)
            nft(held(self._table, chosen))
            before = {each.identity: each for each in diag.connections(sock, ports)}
            numbers = _numbers(log, chosen)
            now = {each.identity: each for each in diag.connections(sock, ports)}
            made: list[Pair] = []
            for each in chosen:
                one, two = before.get(each.identity), now.get(each.identity)
                known = numbers.get(each.ends)
                # If the server has said something meanwhile, its numbers may be from before that or from after.
                if known is None or one is None or two is None or one.under_way != two.under_way:
                    continue
                with contextlib.suppress(OSError):
                    made.append(pair := _pair(two, known))
                    undo.callback(_forget, pair)
            nft(led(self._table, made))
            undo.pop_all()
        for pair in made:
            for each_sock in (pair.outer, pair.inner):
                each_sock.setsockopt(socket.IPPROTO_TCP, _REPAIR, _OFF)  # and it asks how the other end is
                each_sock.setblocking(False)
        return made

    def forget(self, pairs: Iterable[Pair]) -> None:
        """Lead nothing any more to pairs that are over."""
        with contextlib.suppress(OSError):
            nft(_elements("delete", self._table, pairs))

    def _let_go(self) -> None:
        with contextlib.suppress(OSError):
            nft(f"flush set inet {self._table} held4\nflush set inet {self._table} held6\n")


def rules(table: str, mark: int) -> str:
    """For nft. What is in no set goes on as it was."""
    lines = [f"add table inet {table}"]
    for version, kind in (("4", "ipv4_addr"), ("6", "ipv6_addr")):
        key = f"type {kind} . inet_service . inet_service"
        lines += [
            f"add set inet {table} held{version} {{ {key}; flags timeout; timeout {HOLD_SECONDS}s; }}",
            f"add set inet {table} taken{version} {{ {key}; }}",
            f"add map inet {table} led{version} {{ {key} : inet_service; }}",
        ]
    lines += [
        f"add map inet {table} back {{ type inet_service : inet_service; }}",
        f"add chain inet {table} came {{ type filter hook prerouting priority -310; policy accept; }}",
        f"add chain inet {table} kept {{ type route hook output priority -160; policy accept; }}",
        f"add chain inet {table} went {{ type filter hook postrouting priority 310; policy accept; }}",
        f'add rule inet {table} came iifname "lo" return',
    ]
    for version, ip in (("4", "ip"), ("6", "ip6")):
        came, went = f"{ip} saddr . tcp sport . tcp dport", f"{ip} daddr . tcp dport . tcp sport"
        lines += [
            f"add rule inet {table} came {came} @held{version} drop",
            f"add rule inet {table} came tcp dport set {came} map @led{version}",
            f"add rule inet {table} kept {went} @held{version} log group {GROUP} snaplen 160 queue-threshold 1 drop",
            f"add rule inet {table} kept {went} @taken{version} meta mark set {mark}",
        ]
    lines.append(f'add rule inet {table} went oifname != "lo" tcp sport set tcp sport map @back')
    return "\n".join(lines) + "\n"


def held(table: str, chosen: Iterable[Connection]) -> str:
    """Let nothing of these pass."""
    return "".join(f"add element inet {table} held{_key(each)} }}\n" for each in chosen)


def led(table: str, made: Iterable[Pair]) -> str:
    """Lead these, and hold nothing any more."""
    return f"{_elements('add', table, made)}flush set inet {table} held4\nflush set inet {table} held6\n"


def _elements(what: str, table: str, pairs: Iterable[Pair]) -> str:
    lines = []
    for each in pairs:
        lines += [
            f"{what} element inet {table} taken{_key(each.found)} }}",
            f"{what} element inet {table} led{_key(each.found)} : {each.number} }}",
            f"{what} element inet {table} back {{ {each.number} : {each.found.port} }}",
        ]
    return "".join(f"{each}\n" for each in lines)


def _key(found: Connection) -> str:
    version = ipaddress.ip_address(found.client).version
    return f"{version} {{ {found.client} . {found.client_port} . {found.port}"


def _family(found: Connection) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in found.client else socket.AF_INET


def _numbers(log: PacketLog, chosen: Iterable[Connection]) -> dict[tuple[int, str, int], _Numbers]:
    """By the ends of a connection, what its server says."""
    found: dict[tuple[int, str, int], _Numbers] = {}
    with contextlib.ExitStack() as stack:
        waiting = set()
        for each in chosen:
            with contextlib.suppress(OSError):
                made = _socket(_family(each), (each.client, each.client_port), (each.address, each.port))
                stack.callback(_close_in_silence, made)
                made.setsockopt(socket.IPPROTO_TCP, _REPAIR, _OFF)  # and it asks, with a number that is none
                waiting.add(each.ends)
        until = time.monotonic() + ANSWER_SECONDS
        while waiting and time.monotonic() < until:
            try:
                packets = list(log.read())
            except BlockingIOError:
                time.sleep(0.001)
                continue
            for packet in packets:
                said = segment(packet)
                if said is None:
                    continue
                ends = (said.source_port, said.target, said.target_port)
                if said.carries or ends not in waiting:
                    continue
                if (numbers := _read(said)) is not None:
                    found[ends] = numbers
                waiting.discard(ends)
    return found


def _read(said: Segment) -> _Numbers | None:
    """None: there is an option that would have to go on."""
    own = theirs = 0
    at = 0
    while at < len(said.options):
        kind = said.options[at]
        if kind == 0:
            break
        if kind not in _HARMLESS:
            return None
        if kind == 1:
            at += 1
            continue
        if at + 1 >= len(said.options) or said.options[at + 1] < 2:
            return None
        if kind == _TIMESTAMPS:
            own, theirs = struct.unpack_from(">II", said.options, at + 2)
        at += said.options[at + 1]
    return _Numbers(said.sequence, said.acknowledged, said.window, own, theirs)


def _socket(
    family: socket.AddressFamily,
    own: tuple[str, int],
    other: tuple[str, int],
    sends: int | None = None,
    receives: int | None = None,
) -> socket.socket:
    """One that is connected without a packet, in repair. OSError."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(*_TRANSPARENT[family], 1)
        if not own[1]:
            made.bind(own)
        made.setsockopt(socket.IPPROTO_TCP, _REPAIR, _ON)
        if own[1]:
            made.bind(own)
        for queue, number in ((_SEND, sends), (_RECEIVE, receives)):
            made.setsockopt(socket.IPPROTO_TCP, _QUEUE, queue)
            number = secrets.randbits(32) if number is None else number % (1 << 32)
            made.setsockopt(socket.IPPROTO_TCP, _SEQUENCE, struct.pack("=I", number))
        made.setsockopt(socket.IPPROTO_TCP, _QUEUE, 0)
        made.connect(other)
    except BaseException:
        made.close()
        raise
    return made


def _pair(found: Connection, numbers: _Numbers) -> Pair:
    """Both sockets, in repair. OSError."""
    info = found.info
    if info is None:
        raise OSError("the kernel says too little of it")
    family = _family(found)
    acknowledged = (numbers.sent - found.under_way) % (1 << 32)
    server_window = numbers.window << info.receive_scale
    outer = _socket(family, (found.address, 0), (found.client, found.client_port), acknowledged, numbers.acknowledged)
    with contextlib.ExitStack() as stack:
        stack.callback(_close_in_silence, outer)
        scales = info.send_scale | info.receive_scale << 16
        _repair(outer, info.options, info.segment, scales, numbers.own_time)
        _windows(outer, numbers.acknowledged, info.send_window, server_window)
        inner = _socket(
            family,
            (found.client, found.client_port),
            (found.address, found.port),
            numbers.acknowledged,
            acknowledged,
        )
        stack.callback(_close_in_silence, inner)
        scales = info.receive_scale | info.send_scale << 16
        _repair(inner, info.options, info.advertised, scales, numbers.client_time)
        _windows(inner, acknowledged, server_window, info.send_window)
        stack.pop_all()
    return Pair(found, outer, outer.getsockname()[1], inner, found.under_way)


def _repair(made: socket.socket, options: int, longest: int, scales: int, clock: int) -> None:
    """What was agreed on when the connection was made."""
    said = [(_LONGEST, longest)]
    if options & _HAS_SCALES:
        said.append((_SCALES, scales))
    if options & _HAS_SELECTIVE:
        said.append((_SELECTIVE, 0))
    if options & _HAS_TIMESTAMPS:
        said.append((_TIMESTAMPS, 0))
    made.setsockopt(socket.IPPROTO_TCP, _OPTIONS, b"".join(struct.pack("=II", *each) for each in said))
    if options & _HAS_TIMESTAMPS:
        made.setsockopt(socket.IPPROTO_TCP, _TIMESTAMP, struct.pack("=I", (clock + 1) % (1 << 32)))


def _windows(made: socket.socket, receives: int, sends: int, own: int) -> None:
    """struct tcp_repair_window: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup."""
    own = max(own, 1)
    text = struct.pack("=IIIII", receives, sends, max(sends, 1), own, receives)
    made.setsockopt(socket.IPPROTO_TCP, _WINDOW, text)


def _close_in_silence(made: socket.socket) -> None:
    with contextlib.suppress(OSError):
        made.setsockopt(socket.IPPROTO_TCP, _REPAIR, _ON)
    made.close()


def _forget(pair: Pair) -> None:
    _close_in_silence(pair.outer)
    _close_in_silence(pair.inner)
