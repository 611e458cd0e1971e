"""This end of lanes (`devloop/agent/lane.py`): which connections are given one, and how it is asked for.

The other end may know nothing of them (an SSH server, an agent of before): then all stays on the SSH connection. So it
does when a lane can't be made; it is a matter of speed alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

import asyncssh

from devloop.agent.lane import BULK_SECONDS, NUMBER_BYTES, Lane, LaneError
from devloop.agent.lanes import COMMAND
from devloop.agent.tasks import background
from devloop.errors import DevloopError
from devloop.remote.said import json_of, said

if TYPE_CHECKING:
    from .sshcarrier import Channel

log = logging.getLogger(__name__)

MOST = 8
"""So many at a time: each is a connection of its own to the API server."""
PATIENCE_TRIPS = 20
"""Much must have moved for so many round trips before a lane is asked for. It takes some six until it is there, and TCP
begins slowly on it: over a long way, what is soon over is over sooner without."""
DIAL_SECONDS = 10.0
SPARE_SECONDS = 30.0
"""How long a wire that nobody uses is kept for the next lane."""
CHECK_SECONDS = 2.0
DEAD_SECONDS = 3.0
"""A lane from which nothing came for CHECK_SECONDS is asked, and has so long to answer."""


class Burst:
    """For how long a connection has been moving much."""

    def __init__(self) -> None:
        self._began = self._seen = float("-inf")

    def goes_on(self, now: float) -> float:
        """It does at `now`; since how many seconds without a pause."""
        if now - self._seen > BULK_SECONDS:
            self._began = now
        self._seen = now
        return now - self._began


class Wire(Protocol):
    """What lanes run over, one after the other."""

    @property
    def usable(self) -> bool:
        """It is there."""

    async def open(self, factory: Callable[[], Lane], port: int) -> object:
        """Connect a lane to a port of the agent's. Raises OSError."""

    async def check(self) -> None:
        """Come back when the other end has answered. Raises OSError."""

    def close(self) -> None:
        """End it."""


Dial = Callable[[], Awaitable[Wire]]
"""Makes one. Raises OSError or DevloopError."""


class Asking(Lane):
    """This end of one."""

    def __init__(self, channel: Channel, hello: bytes, answer: bytes) -> None:
        super().__init__()
        self._channel = channel
        self._hello = hello
        self._expected = answer
        self._said = b""
        loop = asyncio.get_running_loop()
        self.answered: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say whose it is."""
        super().connection_made(transport)
        self.transport.write(self._hello)

    def greeting(self, data: memoryview) -> memoryview:
        """The agent's key; bytes of the connection's may stand behind it."""
        missing = len(self._expected) - len(self._said)
        if not missing:
            return data
        self._said, data = self._said + bytes(data[:missing]), data[missing:]
        if len(self._said) == len(self._expected):
            if self._said != self._expected:
                raise LaneError("it is not the agent that answers")
            if self._channel.closing or self.answered.done():
                raise LaneError("the connection has ended")
            self._channel.attach(self)
            self.answered.set_result(None)
        return data

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        if not self.answered.done():
            self.answered.set_exception(LaneError(str(exc or "the agent has closed it")))
        super().connection_lost(exc)
        self.ended.set_result(None)


class Lanes:
    """Those of one SSH connection."""

    def __init__(self, connection: asyncssh.SSHClientConnection, dial: Dial) -> None:
        self._connection = connection
        self._dial = dial
        self._tasks: dict[Channel, asyncio.Task[None]] = {}
        self._spare: dict[Wire, asyncio.TimerHandle] = {}
        self._asking = asyncio.Lock()
        self._told: tuple[int, bytes, bytes] | None = None
        self._off = False

    def offer(self, channel: Channel) -> None:
        """Give this one a lane, in the background."""
        if not self._off and len(self._tasks) < MOST and channel not in self._tasks:
            task = self._tasks[channel] = background(self._keep(channel), name="lane")
            task.add_done_callback(lambda _: self._tasks.pop(channel, None))

    async def _keep(self, channel: Channel) -> None:
        """Make it, and look after it as long as it lasts."""
        spare = bool(self._spare)
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                port, developer, agent = await self._ask()
                wire = await self._wire()
        except (
            asyncssh.Error,
            DevloopError,
            OSError,
            ValueError,
            KeyError,
            TypeError,
            OverflowError,
            RecursionError,
        ) as problem:
            self._give_up(problem)
            return
        lane = Asking(channel, developer + channel.number.to_bytes(NUMBER_BYTES, "big"), agent)
        answered = good = False
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                await wire.open(lambda: lane, port)
                await asyncio.shield(lane.answered)
            answered = True
            await _watch(lane, wire)
            if not lane.clear:
                # The answer comes behind what was still on its way.
                async with asyncio.timeout(DEAD_SECONDS):
                    await wire.check()
            good = True
        except (OSError, TimeoutError) as problem:
            # One that was not used for a while may have ended, and a connection may end at any time.
            if not (answered or spare or channel.closing):
                self._give_up(problem)
        finally:
            if good and wire.usable and not self._off:
                loop = asyncio.get_running_loop()
                self._spare[wire] = loop.call_later(SPARE_SECONDS, self._drop, wire)
            else:
                wire.close()

    def _give_up(self, problem: Exception) -> None:
        """There are none, and it is not tried again; but what was only slow may be quicker the next time."""
        self._off = self._off or not isinstance(problem, TimeoutError)
        log.info("no lanes: %s", str(problem) or "no answer in time")

    async def _ask(self) -> tuple[int, bytes, bytes]:
        """Where lanes begin, this end's key and the agent's."""
        async with self._asking:
            if self._told is None:
                told = json_of(await said(self._connection, COMMAND))
                self._told = int(told["port"]), bytes.fromhex(told["developer"]), bytes.fromhex(told["agent"])
        return self._told

    async def _wire(self) -> Wire:
        for wire in list(self._spare):
            if wire.usable:
                self._spare.pop(wire).cancel()
                return wire
            self._drop(wire)
        return await self._dial()

    def _drop(self, wire: Wire) -> None:
        self._spare.pop(wire).cancel()
        wire.close()

    def close(self) -> None:
        """End them all."""
        self._off = True
        for wire in list(self._spare):
            self._drop(wire)
        for task in self._tasks.values():
            task.cancel()


async def _watch(lane: Asking, wire: Wire) -> None:
    """Until it has ended. Raises TimeoutError if it is dead."""
    while not lane.ended.done():
        await asyncio.wait([lane.ended], timeout=CHECK_SECONDS)
        now = time.monotonic()
        if lane.ended.done() or lane.held or now - lane.heard < CHECK_SECONDS:
            continue
        try:
            async with asyncio.timeout(DEAD_SECONDS):
                await wire.check()
        except TimeoutError:
            if lane.heard < now and not lane.held:
                raise
