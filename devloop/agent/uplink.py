"""From Envoy to a developer: a unix socket that Envoy connects to, and an SSH channel for each connection to it.

The channel ("forwarded-streamlocal@openssh.com", OpenSSH's PROTOCOL, 2.4) is opened before a byte is read from Envoy.
If the developer's side refuses it, because the local service is down or does not come back in time, the connection is
closed and nothing of the request was given to anybody: Envoy tries the next endpoint, which is the original pods.
Plain TCP has no such second try in Envoy, so there the agent itself connects to one of them; also for a connection on
which neither side has said anything yet when the developer is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import asyncssh

from .forward import Connection, Far, Near, TcpChannel
from .tasks import background
from .turns import LOST, REFUSED_H2, Turns, is_h2

log = logging.getLogger("agent")

HANDSHAKE = b"\x16"
"""How TLS begins (RFC 8446, 5.1), and no request."""
REFUSE_SECONDS = 0.5
LAST_SECONDS = 1.0
"""How long Envoy may take to close a connection of HTTP/2 that is over."""
Endpoints = Callable[[], Sequence[Sequence[tuple[str, int]]]]


class FromEnvoy(Far, asyncio.Protocol):
    """A connection of Envoy's."""

    def __init__(self, uplink: Uplink) -> None:
        super().__init__()
        self.uplink = uplink
        self.turns = Turns()
        self.over = False
        self.silent = True
        """Nobody has said anything."""
        self._refusing = False
        self._refused = False
        self._diverted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the channel; nothing is read meanwhile."""
        self.transport = cast(asyncio.Transport, transport)
        self.quiet()
        self.uplink.begin(self)

    def opened(self) -> None:
        """The developer is there: what came before goes on."""
        for data in self._early:
            self.turns.asked(data)
        self.silent = not self._early
        super().opened()

    def data_received(self, data: bytes | memoryview) -> None:
        """On to the developer; before the channel is open, it is kept, and nobody has been asked anything."""
        if self._refusing:
            self._decline(bytes(data))
            return
        if self._open:
            self.turns.asked(bytes(data))
            self.silent = False
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Envoy has closed it."""
        self.over = True
        self.uplink.ended(self)
        super().connection_lost(exc)

    def unopened(self) -> None:
        """As it was before the channel was open: what comes is kept."""
        near, self.near, self._open = self.near, None, False
        if near is not None and near.channel is not None:
            near.end()
        self.quiet()

    def refuse(self) -> None:
        """Nobody takes it. Nothing was read, or given to anybody, so that Envoy may ask somebody else."""
        self._refusing = True
        if self._diverted:  # the original does not take it either
            self.transport.abort()
            return
        if early := b"".join(self.kept()):
            self._decline(early)
        else:
            self.transport.resume_reading()
            asyncio.get_running_loop().call_later(REFUSE_SECONDS, self._unasked)

    def _unasked(self) -> None:
        if not self._refused:
            self.transport.abort()

    def _decline(self, data: bytes) -> None:
        if self._refused:
            if self._diverted:
                self._early.append(data)
            return
        if self.uplink.encrypted and self.uplink.fallback is not None and data[:1] == HANDSHAKE:
            self._refused = self._diverted = True
            self._early.append(data)
            self.uplink.hand_on(self, seen=True)
        elif is_h2(data):
            # Envoy closes when it has read this. What it sends until then would meet a closed connection.
            self._refused = True
            self.transport.write(REFUSED_H2)
            self.transport.resume_reading()
            asyncio.get_running_loop().call_later(LAST_SECONDS, self.transport.close)
        else:
            self.transport.abort()

    def kept(self) -> list[bytes]:
        """What came before anybody could be given it."""
        early, self._early = self._early, []
        return early

    def cut(self) -> None:
        """The developer is lost: answer what nobody else may answer, and leave the rest to Envoy."""
        if self.over:
            return
        if self.turns.waiting and not self.turns.repeatable:
            self.turns = Turns()
            self.transport.write(LOST)
            self.transport.close()
        elif not (self.silent and self._open and self.uplink.hand_on(self)):
            self.transport.abort()


class ToDeveloper(Near):
    """The channel's side of it."""

    far: FromEnvoy

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        """The answer."""
        self.far.silent = False
        if not self.far.turns.waiting:
            super().data_received(data)
            return
        self.got(len(data))
        if ready := self.far.turns.answered(bytes(data)):
            self.deliver(ready)

    def eof_received(self) -> bool:
        """That it says no more is a word, too."""
        self.far.silent = False
        if self.far.turns.begun:
            if not self.far.uplink.plain:
                self.far.cut()  # half a head is no answer, and Envoy would ask somebody else
                return False
            self.deliver(self.far.turns.rest())
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel has ended: in order, or because the developer's side has cut it, or is gone."""
        self.connection.open.discard(self)
        if self.far.near is not self:  # somebody else has it by now
            return
        if self.finished and exc is None and not self.far.turns.begun:
            self.far.transport.close()
        else:
            self.far.cut()


class Uplink:
    """One port of one attachment. `fallback`: original pods, for plain connections that nobody here takes; each by its
    addresses, the first one first."""

    def __init__(
        self, connection: Connection, path: Path, target: str, fallback: Endpoints | None, *, encrypted: bool = False
    ) -> None:
        self._connection = connection
        self.path = path
        self._target = target
        self.fallback = fallback
        self.encrypted = encrypted
        """Its port speaks TLS: both what was seen inside, for which Envoy has a second try, and TLS as it is come."""
        self._server: asyncio.Server | None = None
        self._open: set[FromEnvoy] = set()
        self._joining: dict[FromEnvoy, asyncio.Task[None]] = {}
        self._handed_on: set[FromEnvoy] = set()
        """The original has these: what the developer does is nothing to them."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def plain(self) -> bool:
        """To Envoy it is bytes and no more."""
        return self.fallback is not None and not self.encrypted

    @property
    def open(self) -> bool:
        """There are connections."""
        return bool(self._open or self._handed_on)

    async def listen(self) -> None:
        """Begin."""
        self.path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: FromEnvoy(self), str(self.path), backlog=4096)

    def begin(self, far: FromEnvoy) -> None:
        """Envoy has connected."""
        self._open.add(far)
        task = self._joining[far] = background(self._join(far), name=self._target)
        task.add_done_callback(lambda _: self._joining.pop(far, None))

    def ended(self, far: FromEnvoy) -> None:
        """Envoy has gone."""
        self._open.discard(far)
        self._handed_on.discard(far)

    async def _join(self, far: FromEnvoy) -> None:
        near = ToDeveloper(self._connection, far)
        try:
            await TcpChannel.of(self._connection.ssh).hand_over(near, self._target)
        except (asyncssh.Error, OSError) as problem:
            log.debug("%s: %s", self._target, problem)
            if not self.hand_on(far):
                far.refuse()  # with TLS, the first bytes tell whose it is
        except BaseException:
            if self.encrypted:
                far.refuse()
            elif not self.hand_on(far):
                far.transport.abort()
            raise

    def hand_on(self, far: FromEnvoy, *, seen: bool = False) -> bool:
        """Let an original pod have a connection of which nobody knows anything; False where Envoy sees to that.

        `seen`: it is TLS as it has come. On ports that speak TLS, others are what was seen inside.
        """
        if self.fallback is None or (self.encrypted and not seen):
            return False
        if far in self._open and not far.transport.is_closing():
            self._open.discard(far)
            self._handed_on.add(far)
            far.unopened()
            task = background(self._original(far, self.fallback), name=f"original of {self._target}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return True

    async def _original(self, far: FromEnvoy, pods: Endpoints) -> None:
        found = list(pods())
        random.shuffle(found)
        loop = asyncio.get_running_loop()
        for host, port in (each for pod in found[:3] for each in pod):
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(2):
                    await loop.create_connection(lambda: _Pod(far), host, port)
                return
        far.refuse()

    def cut(self) -> None:
        """The developer does not answer: what waits for them is given up, so that others may answer."""
        joining = dict(self._joining)
        for task in joining.values():
            task.cancel()
        for each in self._open - joining.keys():
            each.cut()

    async def close(self) -> None:
        """Listen no more; connections that are open go on until `cut`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.path.unlink(missing_ok=True)


class _Pod(asyncio.Protocol):
    """A plain connection to an original pod, in the developer's place."""

    def __init__(self, far: FromEnvoy) -> None:
        self.far = far
        self.transport: Any = None
        self.finished = False
        """It says no more."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        if self.far.transport.is_closing():  # Envoy has gone meanwhile, and nobody would end this
            self.transport.abort()
            return
        self.far.transport.set_protocol(_Client(self))
        for data in self.far.kept():
            self.transport.write(data)
        if self.far.finished:
            _write_eof(self.transport)
        self.far.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        _write(self.far.transport, data)

    def eof_received(self) -> bool:
        self.finished = True
        _write_eof(self.far.transport)
        self.close_if_done()
        return True

    def close_if_done(self) -> None:
        """Both have said that they say no more: neither would be told of anything else."""
        if self.finished and self.far.finished:
            self.transport.close()
            self.far.transport.close()

    def pause_writing(self) -> None:
        self.far.transport.pause_reading()

    def resume_writing(self) -> None:
        self.far.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self.far.transport.close()
        else:
            self.far.transport.abort()


class _Client(asyncio.Protocol):
    """The other side of `_Pod`."""

    def __init__(self, pod: _Pod) -> None:
        self.pod = pod

    def data_received(self, data: bytes) -> None:
        _write(self.pod.transport, data)

    def eof_received(self) -> bool:
        self.pod.far.finished = True
        _write_eof(self.pod.transport)
        self.pod.close_if_done()
        return True

    def pause_writing(self) -> None:
        self.pod.transport.pause_reading()

    def resume_writing(self) -> None:
        self.pod.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.pod.far.over = True
        self.pod.far.uplink.ended(self.pod.far)
        if exc is None:
            self.pod.transport.close()
        else:
            self.pod.transport.abort()


def _write(transport: Any, data: bytes) -> None:
    if not transport.is_closing():  # uvloop raises
        transport.write(data)


def _write_eof(transport: Any) -> None:
    if not transport.is_closing() and transport.can_write_eof():
        transport.write_eof()
