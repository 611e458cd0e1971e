"""Passes on what connections say that were taken over (`takeover.py`), tells their clients when it may (`goaway.py`) to
connect anew, and goes on until both ends have closed."""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import struct
import time
from collections.abc import Collection

from .goaway import PREFACE, Http1Last, Http2Last, Last, possible
from .takeover import Pair, Takeover

READ_BYTES = 1 << 16
MOST_BYTES = 1 << 18
"""So much waits for one end before the other is not read any more."""
QUIET_SECONDS = 1.0
"""HTTP/2: after so long with nothing from the server, what it has said was whole."""
IDLE_SECONDS = 5.0
"""HTTP/1.1: after so long an answer is over, and the next request not on its way."""
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 9))
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


class _Way:
    """From one socket to the other."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        self.waiting = bytearray()
        self.read = self.ended = False
        """The source has said all; and so the target was told."""


class Between:
    """One connection."""

    def __init__(self, pair: Pair, last: Last) -> None:
        self.pair = pair
        self.last = last
        self.over = False
        self._heard = time.monotonic()
        for each in (pair.outer, pair.inner):  # as the server would, who is the neighbor of this process now
            each.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, number in _KEEPALIVE:
                each.setsockopt(socket.IPPROTO_TCP, option, number)
        self._asking = _Way(pair.outer, pair.inner)
        self._answering = _Way(pair.inner, pair.outer)

    @property
    def answered(self) -> bool:
        """The server has ended it, and the client was told all."""
        return self.over or self._answering.ended

    def moves(self, ready: Collection[socket.socket]) -> None:
        """Pass on what can be."""
        try:
            for way in (self._asking, self._answering):
                if way.source in ready and not way.read and len(way.waiting) < MOST_BYTES:
                    self._take(way)
                self._give(way)
        except BlockingIOError:
            pass
        except OSError:  # one end is gone: so is the other, in the same way
            self._reset()
        if self._asking.ended and self._answering.ended:
            self.pair.close()
            self.over = True

    def rests(self, now: float) -> None:
        """Nothing has passed."""
        way = self._answering
        quiet = now - self._heard
        if self.over or way.waiting or way.read or quiet < QUIET_SECONDS:
            return
        way.waiting += self.last.rest()
        if quiet >= IDLE_SECONDS and self.last.idle and not self._asking.waiting:
            way.read = self.last.said = True  # as if the server had closed it
        self.moves(())

    def _take(self, way: _Way) -> None:
        try:
            data = way.source.recv(READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            way.read = True
        elif way is self._asking:
            self.last.asked()
            way.waiting += data
        else:
            self._heard = time.monotonic()
            way.waiting += self.last.passed(data)

    def _give(self, way: _Way) -> None:
        if way.waiting:
            try:
                del way.waiting[: way.target.send(way.waiting)]
            except BlockingIOError:
                return
        if way.read and not way.waiting and not way.ended:
            way.ended = True
            with contextlib.suppress(OSError):
                way.target.shutdown(socket.SHUT_WR)

    def _reset(self) -> None:
        for each in (self.pair.outer, self.pair.inner):
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.pair.close()
        self.over = True

    def wants(self) -> dict[socket.socket, int]:
        """What to wait for."""
        found: dict[socket.socket, int] = {}
        for way in (self._asking, self._answering):
            if not way.read and len(way.waiting) < MOST_BYTES:
                found[way.source] = found.get(way.source, 0) | selectors.EVENT_READ
            if way.waiting:
                found[way.target] = found.get(way.target, 0) | selectors.EVENT_WRITE
        return found


class Crowd:
    """All of them."""

    def __init__(self, takeover: Takeover) -> None:
        self._takeover = takeover
        self._selector = selectors.DefaultSelector()
        self._waiting: dict[socket.socket, tuple[Between, int]] = {}
        self.members: list[Between] = []
        self._over = 0

    @property
    def told(self) -> int:
        """How many were told to connect anew, or have ended by themselves."""
        return self._over + sum(each.last.said for each in self.members)

    @property
    def answered(self) -> bool:
        """All that servers have said is with their clients, and they say no more."""
        return all(each.answered for each in self.members)

    def add(self, pair: Pair, speaks: str) -> None:
        """Begin with one. `speaks`: `http` or `http2`, for sure."""
        found = pair.found
        asked = found.sent_ms >= found.received_ms
        last: Last = Http1Last(pair.unsure, asked=asked) if speaks == "http" else Http2Last(pair.unsure)
        member = Between(pair, last)
        self.members.append(member)
        member.moves((pair.outer, pair.inner))
        self._wait(member)

    def work(self, seconds: float) -> None:
        """For so long, or a little less."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            ready: dict[Between, set[socket.socket]] = {}
            for key, _ in self._selector.select(left):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                ready.setdefault(self._waiting[sock][0], set()).add(sock)
            for member, socks in ready.items():
                member.moves(socks)
                self._wait(member)
        now = time.monotonic()
        for member in self.members:
            member.rests(now)
            self._wait(member)
        if over := [each for each in self.members if each.over]:
            self._over += len(over)
            self.members = [each for each in self.members if not each.over]
            self._takeover.forget(each.pair for each in over)

    def close(self) -> None:
        """Cut what is left."""
        for each in self.members:
            each.pair.close()
        self._selector.close()

    def _wait(self, member: Between) -> None:
        wanted = {} if member.over else member.wants()
        for sock in (member.pair.outer, member.pair.inner):
            had, wants = self._waiting.get(sock, (member, 0))[1], wanted.get(sock, 0)
            if had == wants:
                continue
            if not had:
                self._selector.register(sock, wants)
            elif not wants:
                with contextlib.suppress(KeyError, ValueError, OSError):
                    self._selector.unregister(sock)
            else:
                self._selector.modify(sock, wants)
            if wants:
                self._waiting[sock] = member, wants
            else:
                self._waiting.pop(sock, None)


def speaks_http2(address: str, port: int, seconds: float = 1.0) -> bool:
    """Whether a server answers HTTP/2 without TLS there: it says SETTINGS first (RFC 9113, 3.4)."""
    try:
        with socket.create_connection((address, port), seconds) as made:
            made.sendall(PREFACE)
            head = b""
            while len(head) < 9 and (data := made.recv(9 - len(head))):
                head += data
            return len(head) == 9 and head[3] == 4 and possible(head)
    except OSError as problem:
        if problem.errno == errno.EMFILE:
            raise
        return False
