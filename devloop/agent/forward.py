"""A connection of the developer's to something in the cluster: an SSH channel on one side, a socket on the other.

asyncssh has a forwarder of its own, and it minds one channel's window alone. Here the SSH connection's socket
counts too: while it is full, nobody who would fill it further is read from. So one download over a slow line
neither fills this pod's memory with its window nor stands, megabytes long, before everybody else's next byte.

How a connection ends is carried over: an orderly end is EOF and then CLOSE, a reset is CLOSE alone.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import asyncssh

# As the client's (devloop/remote/sshcarrier.py): a window for each round trip.
WINDOW_BYTES = 8 * 1024 * 1024
PACKET_BYTES = 128 * 1024


class Connection:
    """The part of one SSH connection that its channels share: whether its socket takes more."""

    def __init__(self, connection: asyncssh.SSHServerConnection) -> None:
        self.ssh = connection
        self.full = False
        self.open: set[Near] = set()
        # asyncssh has no use for these two; its transport calls them when its buffer fills and empties.
        hooks: Any = connection
        hooks.pause_writing = self._pause
        hooks.resume_writing = self._resume

    def _pause(self) -> None:
        self.full = True
        for near in self.open:
            near.flow()

    def _resume(self) -> None:
        self.full = False
        for near in self.open:
            near.flow()

    def authenticated(self) -> None:
        """Leave out the empty packet that asyncssh puts before each packet.

        It is there for ciphers in CBC mode, whose next initialisation vector is known (CVE-2008-5161). With those
        that this server speaks it protects nothing, and costs an encryption and a decryption each time.
        """
        hooks: Any = self.ssh
        send = hooks.send_packet

        def send_packet(pkttype: int, *args: bytes, **more: Any) -> None:
            if pkttype != asyncssh.constants.MSG_IGNORE:
                send(pkttype, *args, **more)

        hooks.send_packet = send_packet

    def forward(self, host: str, port: int) -> tuple[asyncssh.SSHTCPChannel[bytes], Any]:
        """What asyncssh takes for a "direct-tcpip" channel."""
        channel = self.ssh.create_tcp_channel(window=WINDOW_BYTES, max_pktsize=PACKET_BYTES)
        return channel, self._connect(host, port)

    async def _connect(self, host: str, port: int) -> Near:
        loop = asyncio.get_running_loop()
        try:
            # RFC 8305: a name with an IPv6 address that leads nowhere costs a quarter of a second.
            _, far = await loop.create_connection(Far, host, port, happy_eyeballs_delay=0.25)
        except OSError as problem:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, str(problem)) from problem
        if self.ssh.is_closed():  # the developer has gone meanwhile, and nobody takes what was made
            far.transport.abort()
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "SSH connection closed")
        near = far.near = Near(self, far)
        return near


class Near(asyncssh.SSHTCPSession[bytes]):
    """The channel's side."""

    def __init__(self, connection: Connection, far: Far) -> None:
        self.connection = connection
        self.far = far
        self.channel: asyncssh.SSHTCPChannel[bytes] | None = None
        self.finished = False  # the developer's side sends no more
        self._full = False
        self._held = True

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        """The channel is about to open."""
        self.channel = chan

    def session_started(self) -> None:
        """It is open: what the far side has said may come."""
        self.connection.open.add(self)
        self.flow()

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        """On to the socket."""
        self.far.transport.write(data)

    def eof_received(self) -> bool:
        """A half-close, handed on."""
        self.finished = True
        if self.far.finished:
            self.far.transport.close()
        elif self.far.transport.can_write_eof():
            self.far.transport.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel has ended, or the developer's whole connection."""
        self.connection.open.discard(self)
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
        hold = self._full or self.connection.full
        if hold == self._held or self.far.transport.is_closing():
            return
        self._held = hold
        if hold:
            self.far.transport.pause_reading()
        else:
            self.far.transport.resume_reading()


class Far(asyncio.Protocol):
    """The socket's side. It is not read from before the channel is open."""

    near: Near | None = None
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.finished = False  # the service sends no more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected, and quiet for now."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.pause_reading()
        if connected := transport.get_extra_info("socket"):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """On to the channel."""
        if self.near is not None and self.near.channel is not None:
            self.near.channel.write(data)

    def eof_received(self) -> bool:
        """A half-close, handed on; the channel is done when the other side is done too."""
        self.finished = True
        if self.near is not None and self.near.channel is not None:
            self.near.channel.write_eof()
            if self.near.finished:
                return False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The service has gone; without EOF before it, the client sees a reset."""
        if self.near is not None and self.near.channel is not None:
            self.near.channel.close()

    def pause_writing(self) -> None:
        """The service reads slowly: the channel's window stays closed."""
        if self.near is not None and self.near.channel is not None:
            self.near.channel.pause_reading()

    def resume_writing(self) -> None:
        """It reads again."""
        if self.near is not None and self.near.channel is not None:
            self.near.channel.resume_reading()
