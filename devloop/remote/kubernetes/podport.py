"""One port of one pod as a transport: a port-forward of its own, by websocket (`v4.channel.k8s.io`).

Kubernetes' protocol (kubelet, cri-streaming `portforward/websocket.go`): binary messages, the first byte is the
channel (0 data, 1 error), and what comes first on each is the port in two bytes, little-endian. It has no
half-close; for a link that multiplexes over it (SSH) that is no loss.

Against SPDY (`spdy.py`), which kubectl uses, a round trip is a quarter shorter and a connection costs half: it is
handed on as it is where SPDY is taken apart twice. Only uploads cost more: containerd unmasks byte by byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar, cast

from .api import Api
from .websocket import WebSocket

P = TypeVar("P", bound=asyncio.Protocol)
PROTOCOL = "v4.channel.k8s.io"
SAID_BYTES = 4096
"""So much of what the kubelet says on the error channel is kept."""
DATA, ERROR = 0, 1


class PortForwardLostError(ConnectionError):
    """The port-forward has ended; the text says what the kubelet or the connection said."""


class PodTransport(asyncio.Transport):
    """An asyncio transport over a port-forward's data channel. `write_eof` is not possible."""

    gathers = True
    """What is written within one turn of the event loop goes together (see `packets.py`)."""

    def __init__(self, socket: WebSocket, protocol: asyncio.Protocol, pod: str, port: int) -> None:
        super().__init__({"peername": (pod, port), "sockname": ("", 0)})
        self._socket = socket
        self._protocol = protocol
        self._channel = DATA
        self._skip = [2, 2]  # the port, on each channel
        self._said = b""
        self._closing = False

    def begin(self) -> None:
        """Introduce the protocol and let data flow."""
        self._protocol.connection_made(self)
        self._socket.start(self, bytes([DATA]))

    def received(self, data: memoryview, first: bool, /) -> None:
        """Bytes of a message: the receiver's side of the websocket."""
        if first:
            self._channel, data = data[0], data[1:]
        channel = self._channel
        if channel > ERROR:
            return
        if self._skip[channel]:
            skipped = min(self._skip[channel], len(data))
            self._skip[channel] -= skipped
            data = data[skipped:]
        if not data:
            return
        if channel == DATA:
            self._protocol.data_received(cast(bytes, data))
        else:
            self._said += data[: SAID_BYTES - len(self._said)]

    def read(self) -> None:
        """SSH has its own way to take more at once."""

    def lost(self, reason: str) -> None:
        """The websocket has ended."""
        problem: Exception | None = None
        if not self._closing:
            # What the kubelet says on the error channel explains it better than the end itself.
            problem = PortForwardLostError(self._said.decode(errors="replace").strip() or reason)
        self._closing = True
        self._protocol.connection_lost(problem)

    def pause_writing(self) -> None:
        """The socket is full."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """It takes more again."""
        self._protocol.resume_writing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send; what is written within one turn of the event loop goes together."""
        self._socket.write(data)

    def writelines(self, list_of_data: Any) -> None:
        """The same for several."""
        for each in list_of_data:
            self._socket.write(each)

    def get_write_buffer_size(self) -> int:
        """Bytes that are still on this side."""
        return self._socket.waiting

    def can_write_eof(self) -> bool:
        """Never: the protocol has no word for it."""
        return False

    def pause_reading(self) -> None:
        """Take nothing from the websocket for now."""
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        """Go on."""
        self._socket.resume_reading()

    def is_closing(self) -> bool:
        """It has ended, or is about to."""
        return self._closing or self._socket.closing

    def close(self) -> None:
        """Send what was written, then end."""
        self._closing = True
        self._socket.close()

    def abort(self) -> None:
        """End now."""
        self._closing = True
        self._socket.abort()

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol that hears it."""
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`peername` is the pod and its port."""
        found = super().get_extra_info(name)
        return found if found is not None else default


class PodPort:
    """Where a pod's port is; what asyncssh takes as `tunnel=`."""

    def __init__(self, api: Api, pod: str, namespace: str | None = None) -> None:
        self.api = api
        self.pod = pod
        self.namespace = namespace or api.namespace

    async def create_connection(self, factory: Callable[[], P], host: str, port: int) -> tuple[asyncio.Transport, P]:
        """Connect to `port` on the pod's loopback; `host` is only what the other side is called.

        The protocol is given memoryviews, which are good during the call (`packets.py` has asyncssh take them).
        That the API server has taken the request does not mean that something listens: if nothing does, the
        connection ends with PortForwardLostError soon after. Raises ApiError and ApiUnreachableError.
        """
        path = f"/api/v1/namespaces/{self.namespace}/pods/{self.pod}/portforward"
        socket, _ = await self.api.websocket(path, [("ports", str(port))], [PROTOCOL])
        protocol = factory()
        transport = PodTransport(socket, protocol, self.pod, port)
        transport.begin()
        return transport, protocol

    def close(self) -> None:
        """Part of what asyncssh expects of a tunnel; each connection is closed by its own transport."""

    async def wait_closed(self) -> None:
        """The same."""
