"""A link's life: it connects, notices when the other end is gone, and connects again.

What a connection is made of (SSH, port-forwards) is a *carrier*; this module knows when there is one. It needs
neither a clock nor randomness of its own to be tested: both come in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from devloop.agent.tasks import background
from devloop.datagrams import DatagramClient, DatagramFlow
from devloop.errors import RemoteError

from .link import (
    CarrierLostError,
    Kind,
    LinkState,
    Listener,
    NameLookupError,
    OpenError,
    PermanentError,
    Phase,
    Refusal,
    Resolver,
)
from .wake import WakeWatch

if TYPE_CHECKING:
    import dns.message

P = TypeVar("P", bound=asyncio.Protocol)
log = logging.getLogger(__name__)

HOLD_SECONDS = 30.0
CHECK_SECONDS = 2.0
"""After `wake`: a connection that does not answer within this time is given up."""
STEADY_SECONDS = 10.0
"""A connection that lasted this long starts the backoff anew."""


class Carrier(Protocol):
    """One connection to the other end, good until it is lost."""

    kind: Kind
    notes: tuple[str, ...]

    @property
    def direct(self) -> str:
        """As `LinkState.direct`; it may change, and whoever changes it says so (`LiveLink.refresh`)."""

    async def connect(self, factory: Callable[[], P], host: str, port: int) -> tuple[asyncio.Transport, P]:
        """As `Link.connect`; CarrierLostError when it ends meanwhile."""

    async def datagrams(self, client: DatagramClient, address: str, port: int) -> DatagramFlow:
        """As `Link.datagrams`; CarrierLostError when it ends meanwhile."""

    async def resolver(self) -> Resolver:
        """As `Link.resolver`."""

    async def query(self, message: bytes) -> bytes:
        """As `Link.query`."""

    async def check(self) -> None:
        """One round trip to the other end. Any error means that it is gone."""

    async def lost(self) -> str:
        """Wait until it has ended; why."""

    def abort(self, reason: str) -> None:
        """End it at once, with every connection through it; `lost` gives this reason."""

    async def close(self) -> None:
        """End it in order, and what it has left at the other end."""


Dial = Callable[[Callable[[str], None]], Awaitable[Carrier]]
"""Connects; it is given what tells people how far it is ("pulling the agent's image"). A RemoteError or an
OSError is tried again later, a PermanentError is not."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before the next attempt, in seconds: doubled each time, up to `longest`.

    The share `jitter` of it is random, so that a team does not come back all at once when an API server does.
    """

    first: float = 0.1
    longest: float = 5.0
    jitter: float = 0.5

    def delay(self, attempt: int, draw: Callable[[], float]) -> float:
        """Before attempt number `attempt` (1 is the first one after a failure); `draw` gives 0 to 1."""
        whole = min(self.first * 2.0 ** min(attempt - 1, 30), self.longest)
        return whole * (1 - self.jitter * draw())


async def answers_or_ends(carrier: Carrier, seconds: float, who: str) -> None:
    """One round trip within so many seconds, or the carrier is ended; `who`: what does not answer, for people."""
    try:
        async with asyncio.timeout(seconds):
            await carrier.check()
    except Exception as problem:
        carrier.abort(str(problem) or f"{who} does not answer")


class LiveLink:
    """The Link (see `link.py`) over whatever `dial` connects to."""

    def __init__(
        self,
        kind: Kind,
        where: str,
        dial: Dial,
        *,
        hold: float = HOLD_SECONDS,
        backoff: Backoff | None = None,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._dial = dial
        self.hold = hold
        self._backoff = backoff or Backoff()
        self._draw = draw
        self._clock = clock
        self._state = LinkState(Phase.CONNECTING, kind, where, clock())
        self._listeners: list[Listener] = []
        self._carrier: Carrier | None = None
        self._changed = asyncio.Event()
        self._woken = asyncio.Event()
        self._watch = WakeWatch(self._woke)
        self._task: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None

    # --- State -------------------------------------------------------------------------------------------------

    @property
    def kind(self) -> Kind:
        """What carries it."""
        return self._state.kind

    @property
    def state(self) -> LinkState:
        """Now."""
        return self._state

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each new state, until what this returns is called."""
        self._listeners.append(listener)

        def stop() -> None:
            with contextlib.suppress(ValueError):
                self._listeners.remove(listener)

        return stop

    def _become(
        self,
        phase: Phase,
        reason: str = "",
        *,
        attempt: int = 0,
        next_attempt: int | None = None,
        carrier: Carrier | None = None,
    ) -> None:
        old = self._state
        self._state = LinkState(
            phase,
            carrier.kind if carrier else old.kind,
            old.where,
            old.since if old.phase is phase else self._clock(),
            reason,
            attempt,
            next_attempt,
            carrier.notes if carrier else old.notes,
            carrier.direct if carrier else "",
        )
        # Each waiter sees this change; the next one has an event of its own.
        self._changed.set()
        self._changed = asyncio.Event()
        for listener in list(self._listeners):
            try:
                listener(self._state)
            except Exception:  # what a listener does wrong does not end the link
                log.exception("a listener of the link failed")

    def refresh(self) -> None:
        """What is told of the connection has changed, and the connection has not."""
        if self._carrier is not None and self._state.phase is Phase.CONNECTED:
            self._become(Phase.CONNECTED, carrier=self._carrier)

    # --- Life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect; returns at once."""
        if self._task is None:
            self._task = background(self._live(), name="link")
            self._watch.start()

    async def ready(self, timeout: float | None = None) -> None:
        """Wait until it is connected."""
        await self._present(timeout)

    def wake(self, *, retry: bool = True) -> None:
        """Look at once whether the connection lives, and do not wait for the next attempt.

        `retry`: also after a failure that nothing but a change of the user's can mend.
        """
        if retry:
            if self._state.phase is Phase.FAILED:
                self._become(Phase.RECONNECTING, self._state.reason)
            self._woken.set()
        if self._carrier is not None and (self._checking is None or self._checking.done()):
            self._checking = background(
                answers_or_ends(self._carrier, CHECK_SECONDS, "the other end"), name="link check"
            )

    def _woke(self, why: str) -> None:
        log.info("%s: %s", self._state.where, why)
        self.wake(retry=self._state.phase is not Phase.FAILED)

    async def _live(self) -> None:
        try:
            await self._keep()
        except Exception as problem:
            # Nobody will try again: who waits for it is told now, and the loop's exception handler has the rest.
            self._become(Phase.FAILED, f"a fault in devloop itself: {problem!r}")
            raise

    async def _keep(self) -> None:
        attempt = 0
        first = True
        while True:
            phase = Phase.CONNECTING if first else Phase.RECONNECTING
            self._woken.clear()
            reason = self._state.reason
            if attempt or not first:
                self._become(phase, reason, attempt=attempt)
            try:
                carrier = await self._dial(lambda text: self._become(phase, text, attempt=attempt))  # noqa: B023
            except PermanentError as problem:
                self._become(Phase.FAILED, str(problem), attempt=attempt + 1)
                await self._woken.wait()
                continue
            except (RemoteError, OSError, TimeoutError) as problem:
                reason = str(problem) or type(problem).__name__
            else:
                first = False
                began = self._clock()
                self._carrier = carrier
                self._become(Phase.CONNECTED, carrier=carrier)
                reason = await carrier.lost()
                self._carrier = None
                if self._clock() - began > STEADY_SECONDS * 1e9:
                    attempt = 0
            attempt += 1
            delay = self._backoff.delay(attempt, self._draw)
            self._become(
                Phase.CONNECTING if first else Phase.RECONNECTING,
                reason,
                attempt=attempt,
                next_attempt=self._clock() + int(delay * 1e9),
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._woken.wait()

    async def close(self) -> None:
        """End it; connections through it are aborted."""
        self._watch.close()
        carrier, self._carrier = self._carrier, None
        tasks = [task for task in (self._checking, self._task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task = self._checking = None
        if carrier is not None:
            await carrier.close()
        if self._state.phase is not Phase.CLOSED:
            self._become(Phase.CLOSED)

    # --- Use ---------------------------------------------------------------------------------------------------

    async def _present(self, timeout: float | None) -> Carrier:
        """The carrier, as soon as there is one; RemoteError if there is none in time, or none will be."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if self._carrier is not None:
                        return self._carrier
                    state = self._state
                    if state.phase is Phase.FAILED:
                        raise PermanentError(state.reason)
                    if state.phase is Phase.CLOSED:
                        raise RemoteError("the link is closed", where=state.where)
                    await self._changed.wait()
        except TimeoutError:
            why = f": {self._state.reason}" if self._state.reason else ""
            what = f"the link is not there after {timeout:g} s{why}"
            raise RemoteError(what, where=self._state.where) from None

    async def connect(self, factory: Callable[[], P], host: str, port: int) -> tuple[asyncio.Transport, P]:
        """Open a TCP connection from the other end; in a gap it waits. Raises OpenError."""
        until = time.monotonic() + self.hold
        while True:
            carrier = self._carrier
            if carrier is None:
                try:
                    carrier = await self._present(max(0.0, until - time.monotonic()))
                except RemoteError as problem:
                    raise OpenError(Refusal.LINK_DOWN, host, port, problem.what, hint=problem.hint) from problem
            try:
                return await carrier.connect(factory, host, port)
            except CarrierLostError:
                # It was not open yet, so nothing of the client's was sent: the next carrier may have it.
                await self._without(carrier, until)

    async def _without(self, carrier: Carrier, until: float) -> None:
        """Come back when it is known to be lost, which the carrier knows before its life does; at that time at last."""
        await asyncio.sleep(0)
        if self._carrier is carrier:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    await self._changed.wait()

    async def datagrams(self, client: DatagramClient, address: str, port: int) -> DatagramFlow:
        """A UDP socket at the other end; in a gap it waits."""
        until = time.monotonic() + self.hold
        while True:
            carrier = await self._present(max(0.0, until - time.monotonic()))
            try:
                return await carrier.datagrams(client, address, port)
            except CarrierLostError as problem:
                if time.monotonic() > until:
                    raise RemoteError(str(problem), where=self._state.where) from problem
                await self._without(carrier, until)

    async def open(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The same as asyncio's stream pair."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1 << 18, loop=loop)
        transport, protocol = await self.connect(lambda: asyncio.StreamReaderProtocol(reader, loop=loop), host, port)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def resolver(self) -> Resolver:
        """How names are resolved at the other end."""
        try:
            return await (await self._present(self.hold)).resolver()
        except CarrierLostError as problem:
            raise NameLookupError(str(problem), where=self._state.where) from problem

    async def query(self, message: bytes) -> bytes:
        """Ask the other end's resolver, in wire format."""
        try:
            return await (await self._present(self.hold)).query(message)
        except NameLookupError:
            raise
        except (CarrierLostError, RemoteError) as problem:
            raise NameLookupError(str(problem), where=self._state.where) from problem

    async def lookup(self, name: str, rdtype: str = "A") -> dns.message.Message:
        """Ask for one name, as it stands."""
        import dns.exception
        import dns.message

        try:
            question = dns.message.make_query(name if name.endswith(".") else f"{name}.", rdtype)
            return dns.message.from_wire(await self.query(question.to_wire()))
        except (dns.exception.DNSException, ValueError) as problem:
            raise NameLookupError(f"{name} {rdtype}: {problem}", where=self._state.where) from problem
