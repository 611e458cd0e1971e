"""A connection of the developer's to something in the cluster: an SSH channel on one side, a socket on the other.

asyncssh has a forwarder of its own, and it minds one channel's window alone. Here the SSH connection's socket
counts too: while it is full, nobody who would fill it further is read from. So one download over a slow line
neither fills this pod's memory with its window nor stands, megabytes long, before everybody else's next byte.

How a connection ends is carried over: an orderly end is EOF and then CLOSE, a reset is CLOSE alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from asyncio.staggered import staggered_race
from functools import partial
from typing import Any, cast

import asyncssh
from asyncssh.packet import SSHPacket, String, UInt32

from .destinations import EVERYWHERE, DeniedError, Destinations
from .lane import READ_BYTES, Laned
from .packets import PACKET_BYTES, Buffers, send_data, silence
from .quick import quicken
from .unsent import bound_unsent

WINDOW_BYTES = 8 * 1024 * 1024
"""The largest of a channel's windows. A stream gets one in each round trip: 8 MiB are 160 MB/s at 50 ms. It is a bound,
not an allocation: memory is used only while one side reads more slowly than the other sends."""
NEAR_WINDOW_BYTES = 2 * 1024 * 1024
"""The smallest: as much as keeps both ends at work where a round trip takes next to nothing. What is more than that
waits somewhere on the way, and all that comes after it on the connection waits behind it."""


quicken()


class TcpChannel(asyncssh.SSHTCPChannel[bytes]):
    """A "direct-tcpip" channel (RFC 4254, 7.2), at either end; or one for what has come to an intercept's socket.

    Its window is what its owner has yet to take. asyncssh opens the window in full as soon as one packet is taken,
    whatever else lies in its buffer: an owner that pauses and resumes, as all that relay do, would let another window
    in each time, and a slow client's whole download in the end.
    """

    bulk = True
    """`packets.py` may hand it memoryviews."""
    _taken = 0
    _asks: asyncssh.SSHTCPSession[bytes] | None = None

    @classmethod
    def of(cls, connection: Any, window: int = WINDOW_BYTES) -> TcpChannel:
        """A channel that is not open yet. Raises ChannelOpenError if the connection has ended."""
        made = connection.create_tcp_channel(window=window, max_pktsize=PACKET_BYTES)
        made.__class__ = cls  # there is no way to say which class it makes
        return cast(TcpChannel, made)

    def ask(self, session: asyncssh.SSHTCPSession[bytes], host: str, port: int, number: int = 0) -> asyncio.Future[Any]:
        """Ask the other end to connect. `session` is connected when the future is done.

        `number` stands where RFC 4254 has the originator's port, which an SSH server does no more with than to log it;
        an agent knows the connection by it.

        It is asyncssh's `connect` without its two tasks. Cancelling the future closes the channel as soon as the other
        end has opened it; otherwise its exception is a ChannelOpenError.
        """
        return self._open_for(session, b"direct-tcpip", String(host) + UInt32(port) + String("") + UInt32(number))

    def hand_over(self, session: asyncssh.SSHTCPSession[bytes], path: str) -> asyncio.Future[Any]:
        """Give the other end a connection that has come to a path of its (OpenSSH's PROTOCOL, 2.4), in the same way.

        asyncssh tells a session in a task of its own that the channel is open. What the other end says and how it ends
        may be there before that; then the end of a short answer is lost, and how it has ended.
        """
        return self._open_for(session, b"forwarded-streamlocal@openssh.com", String(path) + String(""))

    def _open_for(self, session: asyncssh.SSHTCPSession[bytes], kind: bytes, about: bytes) -> asyncio.Future[Any]:
        assert self._conn is not None and self._recv_chan is not None
        self._asks = session
        waiter: asyncio.Future[Any] = self._loop.create_future()
        self._open_waiter = waiter
        self._conn.send_packet(
            asyncssh.constants.MSG_CHANNEL_OPEN,
            String(kind),
            UInt32(self._recv_chan) + UInt32(self._recv_window) + UInt32(self._recv_pktsize),
            about,
            handler=self,
        )
        return waiter

    def process_open(self, send_chan: int, send_window: int, send_pktsize: int, session: Any) -> None:
        """The other end asks. It gives the window that the way needs, and gets one like it."""
        self._init_recv_window = max(min(self._init_recv_window, send_window), NEAR_WINDOW_BYTES)
        self._recv_window = self._init_recv_window
        super().process_open(send_chan, send_window, send_pktsize, session)

    def process_open_confirmation(self, send_chan: int, send_window: int, send_pktsize: int, packet: SSHPacket) -> None:
        """It is open."""
        waiter = self._open_waiter
        super().process_open_confirmation(send_chan, send_window, send_pktsize, packet)
        if self._asks is None:
            return
        if waiter is not None and waiter.cancelled():
            self.abort()
            return
        self._session = self._asks
        self._session.connection_made(self)
        self._session.session_started()
        if self._recv_paused == "starting":
            self._recv_paused = False

    def write(self, data: bytes, datatype: int | None = None) -> None:
        """Send; with one copy if there is room in the window, as a rule. The data may be used again at once."""
        at, size = 0, len(data)
        number = self._send_chan
        if self._send_state == "open" and number is not None and not self._send_buf and datatype is None:
            view = memoryview(data)
            while at < size:
                part = min(size - at, self._send_pktsize)
                if part > self._send_window:
                    break
                self._send_window -= part
                send_data(self._conn, number, view[at : at + part])
                at += part
        if at < size or not size:
            super().write(bytes(data[at:]), datatype)

    def _deliver_data(self, data: bytes, datatype: int | None) -> None:
        self._taken += len(data)
        if self._taken > self._init_recv_window // 2:
            self.send_packet(asyncssh.constants.MSG_CHANNEL_WINDOW_ADJUST, UInt32(self._taken))
            self._recv_window += self._taken
            self._taken = 0
        if self._session is not None:
            self._session.data_received(data, datatype)


class Connection:
    """The part of one SSH connection that its channels share: whether its socket takes more."""

    def __init__(self, connection: asyncssh.SSHServerConnection, destinations: Destinations = EVERYWHERE) -> None:
        self.ssh = connection
        self.destinations = destinations
        self.key = ""
        """The fingerprint of the key that it was opened with, once that is proven."""
        self.full = False
        self.open: set[Near] = set()
        # asyncssh has no use for these two; its transport calls them when its buffer fills and empties.
        hooks: Any = connection
        hooks.pause_writing = self._pause
        hooks.resume_writing = self._resume
        bound_unsent(connection.get_extra_info("socket"))

    @property
    def silence(self) -> float:
        """For how many seconds nothing has come by it, be it a message or some bytes of a long answer."""
        return silence(self.ssh)

    def _pause(self) -> None:
        self.full = True
        for near in self.open:
            near.flow()

    def _resume(self) -> None:
        self.full = False
        for near in self.open:
            near.flow()

    def forward(self, host: str, port: int, number: int = 0) -> tuple[asyncssh.SSHTCPChannel[bytes], Any]:
        """What asyncssh takes for a "direct-tcpip" channel; `number`: see `TcpChannel.ask`."""
        return self.channel(), self._connect(host, port, number)

    def channel(self) -> asyncssh.SSHTCPChannel[bytes]:
        """A channel for what the developer's side asks for."""
        return TcpChannel.of(self.ssh)

    async def _connect(self, host: str, port: int, number: int) -> Near:
        try:
            near = Near(self, await dial(host, port, self.destinations))
        except DeniedError as problem:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, str(problem)) from problem
        except OSError as problem:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, str(problem)) from problem
        near.number = number
        if self.ssh.is_closed():  # the developer has gone meanwhile, and nobody takes what was made
            near.far.transport.abort()
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "SSH connection closed")
        return near

    async def adopt(self, sock: socket.socket) -> Near:
        """The session for a channel to a socket that is connected already; it is closed with the channel."""
        try:
            _, far = await asyncio.get_running_loop().create_connection(Dialed, sock=sock)
        except BaseException:
            sock.close()
            raise
        return Near(self, far)


async def dial(host: str, port: int, destinations: Destinations = EVERYWHERE) -> Far:
    """A connection to a name or an address. Raises OSError; DeniedError, if it leads where nobody is connected to."""
    if _is_address(host):
        destinations.check(host, port)
        return await _connected(host, port)  # the rule: the developer's side has resolved the name
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # What is connected to are these addresses, and nobody resolves the name once more.
    for *_, address in found:
        destinations.check(str(address[0]), port)
    # RFC 8305: a name with an IPv6 address that leads nowhere costs a quarter of a second. uvloop does not do that.
    tries = [partial(_connected, str(address[0]), port) for *_, address in found]
    far, _, problems = await staggered_race(tries, 0.25)
    if far is None:
        raise next(each for each in problems if each is not None)
    return cast(Far, far)


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host)
            return True
    return False


async def _connected(address: str, port: int) -> Far:
    # uvloop's sock_connect asks a thread to resolve an address too, and a socket that it has not made itself costs it
    # more: 0.3 ms instead of 0.1 in all.
    _, far = await asyncio.get_running_loop().create_connection(Dialed, address, port)
    return far


class Near(Laned, asyncssh.SSHTCPSession[bytes]):
    """The channel's side."""

    def __init__(self, connection: Connection, far: Far) -> None:
        Laned.__init__(self)
        self.connection = connection
        self.far = far
        far.near = self
        self.number = 0
        """What the developer's end calls it, from 1 on; 0: it can have no lane."""
        self.channel: asyncssh.SSHTCPChannel[bytes] | None = None
        self.finished = False  # the developer's side sends no more
        self._full = False
        self._held = True

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        """The channel is about to open."""
        self.channel = chan

    def session_started(self) -> None:
        """It is open: what the far side has said, or how it has ended, may come."""
        self.connection.open.add(self)
        self.far.opened()
        self.flow()

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        """Bytes by the channel."""
        self.deliver(data)
        self.got(len(data))

    def deliver(self, data: bytes | memoryview) -> None:
        """On to the socket."""
        if not self.far.transport.is_closing():  # uvloop raises, and asyncssh would end the whole connection
            self.far.transport.write(data)

    def eof_received(self) -> bool:
        """A half-close, handed on."""
        self.deliver_end()
        return True

    def deliver_end(self) -> None:
        """On to the socket, too."""
        self.finished = True
        if self.far.finished:
            self.far.transport.close()
        elif not self.far.transport.is_closing():
            self.far.transport.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel has ended, or the developer's whole connection."""
        self.connection.open.discard(self)
        self.over()
        if exc is None:
            self.far.transport.close()
        else:
            self.far.transport.abort()

    def pause_writing(self) -> None:
        """The channel's window is used up."""
        self._full = True
        self.flow()

    def resume_writing(self) -> None:
        """There is room again."""
        self._full = False
        self.flow()

    def flow(self) -> None:
        """Read from the socket, or do not."""
        hold = self.lane.full if self.by_lane and self.lane else self._full or self.connection.full
        if hold == self._held or self.far.transport.is_closing():
            return
        self._held = hold
        if hold:
            self.far.transport.pause_reading()
        else:
            self.far.transport.resume_reading()


class Far(asyncio.BaseProtocol):
    """The socket's side. It is not read from before the channel is open."""

    near: Near | None = None
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.finished = False  # the service sends no more
        self._open = False
        self._lost = False
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected, and quiet for now."""
        self.transport = cast(asyncio.Transport, transport)
        self.quiet()

    def quiet(self) -> None:
        """Read nothing before the channel is open; for `connection_made`."""
        self.transport.pause_reading()
        # uvloop begins to read when connection_made is through, whatever that has said.
        asyncio.get_running_loop().call_soon(self._still_quiet)

    def _still_quiet(self) -> None:
        if not self._open and not self.transport.is_closing():
            self.transport.pause_reading()

    def opened(self) -> None:
        """The channel is there: hand on what came before it was."""
        self._open = True
        early, self._early = self._early, []
        if self.near is None or self.near.channel is None:
            return
        for data in early:
            self.near.send(data)
        if self.finished:
            self.near.finish()
        if self._lost:
            self.near.end()

    def data_received(self, data: bytes | memoryview) -> None:
        """On to the channel. A memoryview need be good during this call alone, unless there is a lane."""
        if not self._open:
            self._early.append(bytes(data))
        elif self.near is not None and self.near.channel is not None:
            self.near.send(data)

    def eof_received(self) -> bool:
        """A half-close, handed on; the channel is done when the other side is done too."""
        self.finished = True
        if self._open and self.near is not None and self.near.channel is not None:
            self.near.finish()
            if self.near.finished:
                self.near.end()
                return False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The service has gone; without EOF before it, the client sees a reset."""
        self._lost = True
        if self._open and self.near is not None and self.near.channel is not None:
            self.near.end()

    def pause_writing(self) -> None:
        """The service reads slowly: the channel's window stays closed."""
        if self.near is not None and self.near.channel is not None:
            self.near.hold(True)

    def resume_writing(self) -> None:
        """It reads again."""
        if self.near is not None and self.near.channel is not None:
            self.near.hold(False)


_read = memoryview(bytearray(PACKET_BYTES))
"""What every socket reads into: what was read has been encrypted before another one reads."""
_lent = Buffers(READ_BYTES, 16)
"""For what goes by a lane: it is not copied, and stays until it is sent."""


class Dialed(Far, asyncio.BufferedProtocol):
    """The socket of a "direct-tcpip" channel."""

    _buffer = _read

    def get_buffer(self, sizehint: int) -> memoryview:
        """What to read into: a packet's worth."""
        self._buffer = memoryview(_lent.take()) if self.near is not None and self.near.by_lane else _read
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So much was read."""
        data, self._buffer = self._buffer[:nbytes], _read
        self.data_received(data)
