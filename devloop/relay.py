"""Two connections whose bytes go to each other: half-close, backpressure and resets are passed on.

A side is an asyncio protocol; its transport may be anything with asyncio's transport interface, an SSH channel of
asyncssh too. That keeps one copy of each chunk in user space and no task per direction.

This stands below `net` and `remote`, which both relay: a service's connections out, and what the remote sends in.

Clients keep connections. When what a connection leads to has moved, it is led there too, as far as nothing is lost by
it (`Relay.leave`): HTTP/1.1 between two requests, and its client notices nothing; HTTP/2 by asking its client for
another connection; any other as long as neither side has said a word. All else stays where it is, and is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Protocol

from devloop import http1, http2
from devloop.agent.tasks import background
from devloop.errors import DevloopError, ServiceError

WRITE_BUFFER = 512 * 1024
"""Bytes that may wait for a slow side before the other is no longer read from."""
EARLY = 64 * 1024
"""Bytes of the client that are kept until the target answers: they wait for its connection, or for a second one."""
REFUSED_SECONDS = 2.0
"""How long a client that was refused may still send: a connection that is closed before takes the answer with it."""
MOVES = 3
"""So often one connection's route is asked for again before it is refused."""
_RESET = struct.pack("ii", 1, 0)  # l_onoff, l_linger: close(2) sends RST (socket(7), SO_LINGER)


class MovedError(ServiceError):
    """What a target led to is no longer there: it may be elsewhere by now, and the route is asked for again."""


class Target(Protocol):
    """Where a connection goes."""

    async def connect(self, side: asyncio.Protocol) -> Any:
        """Connect, with `side` as the protocol. Raises OSError or DevloopError, `RefusedError` and MovedError too."""


class Repeatable(Protocol):
    """A target that may be connected to a second time, when the first ends before it has answered."""

    def may_repeat(self, relay: Relay) -> bool:
        """Whether what this relay's client has sent so far may be sent again. Asked once for each target's end."""


class Refused(Protocol):
    """What a `Guard` has found: `devloop.net.rebinding.Refusal`."""

    @property
    def what(self) -> str:
        """Why, as a sentence."""

    @property
    def answer(self) -> bytes:
        """What its client is told."""


class Guard(Protocol):
    """Looks at what a client says: `devloop.net.rebinding.Guard`."""

    def take(self, data: bytes) -> Refused | None:
        """Its next bytes. Once this is not None, neither they nor what follows is passed on."""


class Side(asyncio.Protocol):
    """One connection of a relay."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.transport: Any = None
        self.ended = False
        """The other end will send no more."""
        self.lost = False
        self.broken = False
        """It was lost, and not in good order: a reset, as a rule."""
        self.closing = False
        self.full = False
        self.note: object = None
        """What a `Target` wants to remember of its connection until `may_repeat`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio's protocol."""
        self.transport = transport
        with contextlib.suppress(AttributeError, NotImplementedError):
            transport.set_write_buffer_limits(high=WRITE_BUFFER)  # type: ignore[attr-defined]
        self.relay.side_made(self)

    def data_received(self, data: bytes, datatype: object = None) -> None:
        """Part of asyncio's protocol, and of asyncssh's sessions, which add the second argument."""
        self.relay.side_sent(self, data)

    def eof_received(self) -> bool:
        """Part of asyncio's protocol. True: this direction has ended, the other goes on."""
        self.ended = True
        self.relay.side_ended(self)
        return True

    def pause_writing(self) -> None:
        """Part of asyncio's protocol."""
        self.full = True
        self.relay.side_full(self)

    def resume_writing(self) -> None:
        """Part of asyncio's protocol."""
        self.full = False
        self.relay.side_drained(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio's protocol."""
        self.lost = True
        self.broken = exc is not None or not (self.ended or self.closing)
        self.relay.side_lost(self)

    def close(self) -> None:
        """Close when what was written is sent."""
        if not self.closing and self.transport is not None:
            self.closing = True
            self.transport.close()

    def reset(self) -> None:
        """Close at once, so that the other end reads "connection reset" and not an end."""
        if self.lost or self.transport is None:
            return
        self.closing = True
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()


class Relay:
    """A client, which is there, and its target, which is being connected to."""

    def __init__(
        self, made: Callable[[Relay], None], done: Callable[[Relay], None], start: Callable[[Relay], None]
    ) -> None:
        """`made` is called when the client is connected, `done` when both sides are closed for good. `start` is to
        find a target for `Relay.target`, in place of one that is looked for already."""
        self._made = made
        self._done = done
        self._start = start
        self.client = Side(self)
        self.target = Side(self)
        self.address: Any = None
        """The client's socket's own address: where the client connected to."""
        self.told: Callable[[Relay], None] | None = None
        """Called at the first byte of the target's answer."""
        self.again: Callable[[Relay], bool] | None = None
        """Asked when the target is lost before it said anything: True if it sees to a new one (`fresh_target`)."""
        self.answered = False
        """The target has said something to what the client has said last: to this request, if it is HTTP/1.1."""
        self.leads_to: Target | None = None
        """What `target` was connected to, or is being."""
        self.guard: Guard | None = None
        self.spared: Callable[[Target], bool] | None = None
        """Whether what it leads to takes what `guard` refuses. None: nothing does."""
        self.refused: Callable[[Relay, Refused], None] = lambda relay, refusal: None
        """Called when it has been refused."""
        self._refusal: Refused | None = None
        """Found by the guard; it is effective where it leads to what is not spared."""
        self._may_answer = False
        """Nothing was under way when that was found, and nobody has heard of it since."""
        self._over = False
        """It has been refused."""
        self._talk: http1.Conversation | http2.Conversation | None = None
        self._spoken = False
        """One side has said something to the other, so that what it speaks is known, or can't be."""
        self._parted = False
        """There is no target until the client says something."""
        self._left: Callable[[], None] | None = None
        """Set while it leads to where it should lead no more."""
        self._early: list[bytes] = []
        self._early_size = 0
        self._paused = False

    @property
    def early(self) -> bytes:
        """What the client has sent, as long as all of it is kept."""
        return b"".join(self._early)

    @property
    def can_start_over(self) -> bool:
        """Whether a new target can be given everything that the client has sent."""
        return not self.answered and self._early_size <= EARLY and not self.client.lost

    @property
    def between(self) -> bool:
        """It is HTTP/1.1, and nothing is under way: the next request may go to another target."""
        talk = self._talk
        return isinstance(talk, http1.Conversation) and talk.idle and not talk.closes and not self.client.ended

    @property
    def leaving(self) -> bool:
        """It still leads to where it should lead no more."""
        return self._left is not None

    @property
    def busy(self) -> bool:
        """Something is under way that is known to end: a request, or streams of HTTP/2."""
        return self._talk is not None and not self._talk.raw and not self._talk.idle

    def fresh_target(self) -> Side:
        """A side for a new target in place of one that was lost; it is sent everything again."""
        self.target = Side(self)
        return self.target

    def leave(self, left: Callable[[], None]) -> None:
        """What it leads to has moved: have it led there, now or as soon as that loses nothing.

        `left` is called when that is done, or when the connection has ended.
        """
        self._left = left
        if self._parted or self.client.lost:
            self._has_left()
        elif self.target.transport is None or not self._spoken:
            old, self.leads_to = self.target, None
            self._start(self)
            old.reset()
            self._has_left()
        elif self.between:
            self.part()
        elif isinstance(self._talk, http2.Conversation) and not self.client.closing:
            self.client.transport.write(self._talk.leave())
            self._close_if_over(self._talk)

    def stay(self) -> None:
        """What it leads to is right again. A client that was asked for another connection makes one all the same."""
        self._left = None

    def part(self) -> None:
        """Close the target. There is another one when the client says something, wherever it leads by then."""
        old, self.target = self.target, Side(self)
        self._parted = True
        self.leads_to = None
        self.answered = False
        self._forget_early()
        if old.full and not self.client.lost:
            self.client.transport.resume_reading()
        if not old.lost:
            old.close()
        self._has_left()

    def _has_left(self) -> None:
        left, self._left = self._left, None
        if left is not None:
            left()

    def reset(self) -> None:
        """Break both."""
        self.client.reset()
        self.target.reset()

    def side_made(self, side: Side) -> None:
        """A side is connected."""
        if side is self.client:
            # uvloop can't tell it any more when the connection is closed.
            self.address = side.transport.get_extra_info("sockname")
            self._made(self)
            return
        if side is not self.target or self.client.lost:
            side.reset()
            return
        for data in self._early:
            side.transport.write(data)
        if self.client.full:
            side.transport.pause_reading()
        if self.again is None:
            self._forget_early()
        if self.client.ended:
            _write_eof(side)
        self._resume_client()

    def side_sent(self, side: Side, data: http1.Bytes) -> None:
        """Bytes came in."""
        if side is self.client:
            if self._over or (self.guard is not None and self._is_refused(self.guard, data)):
                return
            if not self._spoken:
                self._spoken, self._talk = True, _conversation(bytes(data))
            if self._talk is not None:
                data = self._heard(self._talk, self._talk.asked(data))
            if self._parted:
                self._parted = False
                self._start(self)
            if not self.answered and self._early_size <= EARLY and (self.again or self.target.transport is None):
                self._early_size += len(data)
                self._early.append(bytes(data))
            if self.target.transport is None:
                if self._early_size >= EARLY and not self._paused:
                    self._paused = True
                    side.transport.pause_reading()
                return
            if self._early_size > EARLY:
                self._early.clear()
            if not self.target.lost and data:
                self.target.transport.write(data)
            return
        if self._replaced(side):
            return
        if not self._spoken:
            self._spoken = True
            self._talk = http2.Conversation() if http2.greets(bytes(data[: http2.HEADER_BYTES])) else None
        if self._talk is not None:
            data = self._heard(self._talk, self._talk.answered(data))
        if not self.answered:
            self.answered = True
            self._forget_early()
            if self.told is not None:
                self.told(self)
        if not self.client.lost and data:
            self.client.transport.write(data)
        if self.between:
            self.answered = False
            if self._left is not None:
                self.part()

    def _is_refused(self, guard: Guard, data: http1.Bytes) -> bool:
        """The client has said this."""
        if self._refusal is None and (found := guard.take(bytes(data))) is not None:
            self._refusal = found
            self._may_answer = self._talk.may_say if self._talk is not None else not self._spoken
        return self.refuse_unless_spared(self.leads_to)

    def refuse_unless_spared(self, target: Target | None) -> bool:
        """What the guard has found, if it has, is effective if it leads to this. Returns whether it is refused.

        None: that is not known yet.
        """
        refusal = self._refusal
        if refusal is None or self._over:
            return self._over
        if self.spared is not None:
            if target is None:
                return False
            if self.spared(target):
                self._may_answer = False
                return False
        self._over = True
        silent = self._may_answer or (self._talk is not None and self._talk.may_say)
        old, self.target = self.target, Side(self)
        self._parted, self.leads_to = True, None
        self._forget_early()
        old.reset()
        if self._paused or old.full:
            self._paused = False
            self.client.transport.resume_reading()
        if silent and not self.client.lost and not self.client.closing:
            self.client.transport.write(refusal.answer)
            _write_eof(self.client)
            asyncio.get_running_loop().call_later(REFUSED_SECONDS, self.client.close)
        else:
            self.client.reset()
        self._has_left()
        self.refused(self, refusal)
        return True

    def side_ended(self, side: Side) -> None:
        """A side will send no more."""
        if self._replaced(side):
            return
        if side is not self.client and self._start_over(side):
            # A process that is killed ends its connections in good order, as far as TCP is concerned.
            side.close()
            return
        other = self.target if side is self.client else self.client
        if other.transport is not None and not other.lost:
            if side is self.client and isinstance(self._talk, http2.Conversation) and (rest := self._talk.rest()):
                other.transport.write(rest)
            _write_eof(other)
        if self.client.ended and (self.target.ended or self._parted):
            self.client.close()
            self.target.close()

    def _heard(self, talk: http1.Conversation | http2.Conversation, data: http1.Bytes) -> http1.Bytes:
        """Bytes have passed."""
        if talk.raw:
            self._talk = None
        elif isinstance(talk, http2.Conversation):
            self._close_if_over(talk)
        return data

    def _close_if_over(self, talk: http2.Conversation) -> None:
        if talk.over and self._left is not None:
            asyncio.get_running_loop().call_soon(self._close_both, talk.farewell())  # what is passed on now goes first

    def _close_both(self, farewell: bytes) -> None:
        if not self.client.lost and not self.client.closing:
            self.client.transport.write(farewell)
        self.client.close()
        self.target.close()

    def side_full(self, side: Side) -> None:
        """A side does not take more for now."""
        if self._replaced(side):
            return
        other = self.target if side is self.client else self.client
        if other.transport is not None and not other.lost:
            other.transport.pause_reading()

    def side_drained(self, side: Side) -> None:
        """A side takes more again."""
        if self._replaced(side):
            return
        other = self.target if side is self.client else self.client
        if other.transport is not None and not other.lost:
            other.transport.resume_reading()

    def side_lost(self, side: Side) -> None:
        """A side is closed."""
        if self._replaced(side):
            return
        # One that had ended in good order was asked about then, and the client has been told of its end.
        if not side.closing and not side.ended and self._start_over(side):
            return
        other = self.target if side is self.client else self.client
        if not other.lost:
            if side.broken:
                other.reset()
            else:
                other.close()
        if self.client.lost and (self.target.lost or self.target.transport is None):
            self._forget_early()
            self._has_left()
            self._done(self)

    def _replaced(self, side: Side) -> bool:
        """Another target stands in its place. A channel of the link may tell of its end long after it was closed."""
        return side is not self.client and side is not self.target

    def _start_over(self, side: Side) -> bool:
        """Whether a target that ended without an answer was replaced."""
        if side is not self.target or not self.can_start_over or self.again is None:
            return False
        return self.again(self)

    def _forget_early(self) -> None:
        self._early.clear()
        self._early_size = 0

    def _resume_client(self) -> None:
        if self._paused and not self.target.full and not self.client.lost:
            self._paused = False
            self.client.transport.resume_reading()


def _conversation(data: bytes) -> http1.Conversation | http2.Conversation | None:
    """What follows a connection whose client begins with this; None: nothing can."""
    if http2.begins(data):
        return http2.Conversation()
    return http1.Conversation() if http1.may_begin(data) else None


def _write_eof(side: Side) -> None:
    # TLS can't half-close; nothing here is TLS of its own, but a link's transport may be.
    if not side.closing and side.transport.can_write_eof():
        with contextlib.suppress(OSError, RuntimeError):
            side.transport.write_eof()


class Relays:
    """Everything that is relayed from one listening socket."""

    def __init__(
        self,
        route: Callable[[Relay], Awaitable[Target]],
        failed: Callable[[Relay, Exception], None],
        *,
        guard: Callable[[], Guard] | None = None,
        spared: Callable[[Target], bool] | None = None,
    ) -> None:
        """`route` is asked for the target of each connection; `failed` is told of what it or `connect` raised.

        `guard` makes what looks at each client's words, but for targets that are `spared`; `failed` is told of what it
        refuses, too.
        """
        self._guard = guard
        self._spared = spared
        self._route = route
        self._failed = failed
        self._socks: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._relays: set[Relay] = set()
        self._tasks: dict[Relay, asyncio.Task[None]] = {}
        self._closed = False
        self._stopped = False
        self._stale: Callable[[Target], bool] = lambda target: False
        self._empty = asyncio.Event()

    def __len__(self) -> int:
        return len(self._relays)

    def __iter__(self) -> Iterator[Relay]:
        return iter(tuple(self._relays))

    def reroute(self, stale: Callable[[Target], bool], left: Callable[[], None]) -> None:
        """Have all that leads to a stale target led to where its route is now (`Relay.leave`).

        `left` is called for each that does so, or has ended. `stale` is asked about new ones from now on, too: their
        route may have been found before and not be connected yet.
        """
        self._stale = stale
        for relay in tuple(self._relays):
            if relay.leads_to is None:
                continue
            if not stale(relay.leads_to):
                relay.stay()
            elif not relay.leaving:
                relay.leave(left)

    async def listen(self, *socks: socket.socket, backlog: int = 4096) -> None:
        """Accept on these sockets. They are closed with the rest, and all of it if this fails or is cancelled.

        Raises OSError, also if it is closed before or meanwhile.
        """
        loop = asyncio.get_running_loop()
        self._socks += socks
        try:
            for sock in socks:
                if self._closed or self._stopped:
                    raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
                # Serving starts with a turn of the loop, in which `close` or a cancellation has to find the server.
                server = await loop.create_server(self._accept, sock=sock, backlog=backlog, start_serving=False)
                self._servers.append(server)
                await server.start_serving()
        except BaseException:
            self._stop_listening()
            raise

    def stop(self) -> None:
        """Stop accepting, at once; what is open goes on until `close`."""
        self._stopped = True
        self._stop_listening()

    def _stop_listening(self) -> None:
        for server in self._servers:
            server.close()
        for sock in self._socks:
            sock.close()

    def _start(self, relay: Relay, side: Side) -> None:
        """Find a target for this relay, in a task of its own."""
        task = background(self._connect(relay, side), name="relay")
        self._tasks[relay] = task
        task.add_done_callback(lambda done: self._forget_task(relay, done))

    def _forget_task(self, relay: Relay, task: asyncio.Task[None]) -> None:
        if self._tasks.get(relay) is task:
            del self._tasks[relay]

    def _start_anew(self, relay: Relay) -> None:
        side = relay.fresh_target()
        task = self._tasks.pop(relay, None)
        if task is not None:
            task.cancel()
        if not self._closed:
            self._start(relay, side)

    def _repeat(self, relay: Relay, target: Repeatable) -> bool:
        if self._closed or not target.may_repeat(relay):
            return False
        if relay.between:
            relay.part()  # nobody waits for an answer
        else:
            self._start(relay, relay.fresh_target())
        return True

    async def close(self) -> None:
        """Stop accepting and break what is open. Returns when all is closed."""
        self._closed = True
        self._empty.clear()
        self._stop_listening()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for relay in tuple(self._relays):
            relay.reset()
        if self._relays:
            # A link that is gone may never confirm the end of its channels.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._empty.wait()

    def _accept(self) -> Side:
        relay = Relay(self._accepted, self._finished, self._start_anew)
        if self._guard is not None:
            relay.guard, relay.spared, relay.refused = self._guard(), self._spared, self._refused
        return relay.client

    def _refused(self, relay: Relay, refusal: Refused) -> None:
        self._failed(relay, ServiceError(refusal.what))

    def _accepted(self, relay: Relay) -> None:
        if self._closed:
            relay.reset()
            return
        self._relays.add(relay)
        self._start(relay, relay.target)

    def _finished(self, relay: Relay) -> None:
        self._relays.discard(relay)
        if not self._relays:
            self._empty.set()
        task = self._tasks.get(relay)
        if task is not None:
            task.cancel()

    async def _connect(self, relay: Relay, side: Side) -> None:
        try:
            for tries in range(MOVES, -1, -1):
                target = await self._route(relay)
                if self._stale(target) and tries:
                    continue
                relay.leads_to = target
                if relay.refuse_unless_spared(target):
                    return
                again: Repeatable | None = target if hasattr(target, "may_repeat") else None  # type: ignore[assignment]
                # isinstance() of a protocol costs more than the rest of this function
                relay.again = None if again is None else partial(self._repeat, target=again)
                relay.told = getattr(target, "answered", None)
                try:
                    await target.connect(side)
                    return
                except MovedError:
                    if not tries:
                        raise
        except (OSError, DevloopError) as error:
            relay.reset()
            self._failed(relay, error)
        except asyncio.CancelledError:
            if relay.target is side:  # and not another one in its place
                relay.reset()
            raise
        except Exception as error:
            # Whatever a link raises must end this connection, not leave it open for ever.
            relay.reset()
            self._failed(relay, error)
