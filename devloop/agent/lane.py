"""A lane: what takes a connection's bytes past the SSH connection when they become many. Both ends are here.

A connection begins as a channel of the SSH connection: no round trip of its own, and what is small is quick there.
Bytes are dear on it: they are encrypted twice, and share one window and one socket with everybody else's. So
a connection that moves much is given a lane: a connection of its own, to a port of the agent's that is told, with two
keys, over the SSH connection. Each end then moves what it sends from the channel to the lane, if and when that is much.

What an end writes to its lane is eight bytes, how many bytes it had sent on the channel before, and then frames:
a length in four bytes and so many bytes of data; a length of 0 says that no more will come (a half-close), and CLOSE
that this end is done. All of these are on the lane, behind the data that they follow. The other end takes nothing from
the lane before it has what came first from the channel. The channel itself stays open and is closed last; to cut it
cuts both.

Lengths and offsets are unsigned and big-endian, as in SSH (RFC 4251, 5).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

KEY_BYTES = 32
NUMBER_BYTES = 4
OFFSET_BYTES = 8
LENGTH_BYTES = 4
CLOSE = (1 << 32) - 1
BULK_BYTES = 256 * 1024
BULK_SECONDS = 0.5
"""A connection that has moved so many bytes within that time, after as many before, is worth a lane."""
READ_BYTES = 256 * 1024


class LaneError(ConnectionError):
    """The other end does not keep to what stands above."""


class Meter:
    """Whether much moves in one direction of a channel."""

    limit = BULK_BYTES

    def __init__(self) -> None:
        self.count = 0
        """Bytes so far."""
        self._weighed = 0
        self._when = float("-inf")

    def add(self, size: int) -> bool:
        """True, once in a while, if it is much."""
        self.count += size
        if self.count - self._weighed < self.limit:
            return False
        now = time.monotonic()
        much = now - self._when < BULK_SECONDS
        self._weighed, self._when = self.count, now
        return much


class Laned:
    """One end of a connection that may have a lane beside its channel."""

    channel: Any = None
    """asyncssh's, once it is open."""
    lane: Lane | None = None
    by_lane = False
    """What is sent goes by the lane."""
    closing = False
    """This end is done; nobody wants what still comes."""

    def __init__(self) -> None:
        # What the channel has carried.
        self._sent = Meter()
        self._received = Meter()
        self._much = False  # has been sent from here
        self._finished = False  # no more is sent
        self._still = False  # nothing is taken

    # What the end itself does.

    def deliver(self, data: Any) -> None:
        """Bytes from the other end. A memoryview may be kept: it stays as it is."""
        raise NotImplementedError

    def deliver_end(self) -> None:
        """No more will come."""
        raise NotImplementedError

    def flow(self) -> None:
        """It may have changed whether more can be sent; see `full`."""
        raise NotImplementedError

    def busy(self) -> None:
        """Much is sent, or received: a lane would help."""

    # For the end.

    def send(self, data: Any) -> None:
        """Send. By a lane, `data` must stay as it is until it is sent; else it may be used again at once."""
        if self.by_lane:
            if self.lane is not None:  # else it was lost just now, and the connection with it
                self.lane.send(data)
            return
        self.channel.write(data)
        if self._sent.add(len(data)):
            self._much = True
            if self.lane is None:
                self.busy()
            else:
                self._move()

    def finish(self) -> None:
        """Send no more."""
        self._finished = True
        if not self.by_lane:
            self.channel.write_eof()
        elif self.lane is not None:
            self.lane.finish()

    def end(self) -> None:
        """Be done: after what was sent, and with nothing to come."""
        if self.closing:
            return
        self.closing = True
        if not self.by_lane or self.lane is None:
            self.channel.close()
            return
        # What is still on its way would hold up the other end's answer, which closes the channel.
        self.hold(False)
        self.lane.close()

    def got(self, count: int) -> None:
        """So many bytes came by the channel, and were delivered."""
        if self._received.add(count) and self.lane is None:
            self.busy()
        if self.lane is not None:
            self.lane.reached(self.received)

    @property
    def received(self) -> int:
        """Bytes that the channel has delivered."""
        return self._received.count

    def hold(self, still: bool) -> None:
        """Take nothing for now, or go on."""
        self._still = still
        if still:
            self.channel.pause_reading()
        else:
            self.channel.resume_reading()
        if self.lane is not None:
            self.lane.hold(still)

    def attach(self, lane: Lane) -> None:
        """Here it is."""
        self.lane = lane
        lane.end = self
        if self._still:
            lane.hold(True)
        if self._much:
            self._move()

    def over(self) -> None:
        """The channel has ended."""
        self.closing = True
        if self.lane is not None:
            self.lane.end = None
            self.lane.transport.abort()

    # For the lane.

    def from_lane(self, data: memoryview) -> None:
        """Bytes."""
        if not self.closing:
            self.deliver(data)

    def lane_finished(self) -> None:
        """The other end sends no more."""
        if not self.closing:
            self.deliver_end()

    def lane_closed(self) -> None:
        """The other end is done. It waits for the channel's end."""
        self.closing = True
        self.channel.close()

    def lane_lost(self, used: bool) -> None:
        """It has ended; `used`: bytes were on it."""
        lane, self.lane = self.lane, None
        if lane is not None and not used:
            self.flow()
        elif not self.closing:
            self.closing = True
            self.channel.abort()

    def _move(self) -> None:
        """From the channel to the lane."""
        if self.by_lane or self._finished or self.closing:
            return
        assert self.lane is not None
        self.by_lane = True
        self.lane.begin(self._sent.count)
        self.flow()


class Lane(asyncio.Protocol):
    """The protocol of one end of a lane."""

    transport: Any
    end: Laned | None = None
    """Whose it is; None before it is known, and when that is over."""

    def __init__(self) -> None:
        self.full = False
        self.heard = 0.0
        """When something came, in monotonic seconds."""
        self._began = False
        self._held = False
        self._head = b""
        self._offset: int | None = None  # of what comes; None: not told yet
        self._waits = False  # for the channel to reach it
        self._left = 0
        self._closed = False  # no more is sent
        self._over = False  # no more comes
        self._kept: list[memoryview] = []

    @property
    def clear(self) -> bool:
        """Nothing of either end's is on its way."""
        return (self._offset is None or self._over) and (not self._began or self._closed)

    def greeting(self, data: memoryview) -> memoryview:
        """Take what comes before the offset; what is left is returned. For the two ends to say."""
        return data

    # Sending.

    def begin(self, offset: int) -> None:
        """What is sent from now on comes after `offset` bytes on the channel."""
        self._began = True
        self.transport.write(offset.to_bytes(OFFSET_BYTES, "big"))

    def send(self, data: Any) -> None:
        """Send. The data must stay as it is until it has been sent."""
        if not self.transport.is_closing():
            self.transport.writelines((len(data).to_bytes(LENGTH_BYTES, "big"), data))

    def finish(self) -> None:
        """No more comes."""
        self._closed = True
        if not self.transport.is_closing():
            self.transport.write(bytes(LENGTH_BYTES))

    def close(self) -> None:
        """This end is done."""
        self._closed = True
        if not self.transport.is_closing():
            self.transport.write(CLOSE.to_bytes(LENGTH_BYTES, "big"))

    # Receiving.

    def reached(self, count: int) -> None:
        """So many bytes have come by the channel."""
        if self._waits and self._offset is not None and count >= self._offset:
            self._waits = False
            self._go_on()

    @property
    def held(self) -> bool:
        """Nothing is taken from it for now."""
        return self._held or self._waits

    def hold(self, still: bool) -> None:
        """Take nothing for now, or go on."""
        self._held = still
        self._go_on()

    def _go_on(self) -> None:
        if self.transport.is_closing():
            return
        while self._kept and not self.held:
            self._parse(self._kept.pop(0))
        if self.held:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast(Any, transport)

    def data_received(self, data: bytes | memoryview) -> None:
        """A memoryview stays as it is while it is looked at."""
        self.heard = time.monotonic()
        try:
            view = self.greeting(memoryview(data))
            if self._kept:
                self._kept.append(view)
            else:
                self._parse(view)
        except LaneError:
            self.transport.abort()

    def _parse(self, view: memoryview) -> None:
        while view and self.end is not None:
            if self.held:
                self._kept.insert(0, view)
                return
            if self._left:
                part, view = view[: self._left], view[self._left :]
                self._left -= len(part)
                self.end.from_lane(part)
                continue
            size = OFFSET_BYTES if self._offset is None else LENGTH_BYTES
            missing = size - len(self._head)
            self._head, view = self._head + bytes(view[:missing]), view[missing:]
            if len(self._head) < size:
                return
            number, self._head = int.from_bytes(self._head, "big"), b""
            if self._offset is None:
                self._offset = number
                self._waits = True
                self.reached(self.end.received)
                if self._waits:
                    self.transport.pause_reading()
            elif self._over and number != CLOSE:
                self.transport.abort()  # bytes after the end: who has the connection could not be given them
                return
            elif number == CLOSE:
                self._over = True
                self.end.lane_closed()
            elif number == 0:
                self._over = True
                self.end.lane_finished()
            else:
                self._left = number

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self.full = True
        if self.end is not None:
            self.end.flow()

    def resume_writing(self) -> None:
        """It does again."""
        self.full = False
        if self.end is not None:
            self.end.flow()

    def eof_received(self) -> bool:
        """An end with no CLOSE before it."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        end, self.end = self.end, None
        if end is not None:
            end.lane_lost(self._began or self._offset is not None)
