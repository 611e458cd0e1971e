"""The agent's end of lanes (`lane.py`): a port on the pod's loopback, and whose connection each one that comes is for.

Only a port-forward reaches that port, as it does the SSH server's. Which it is, and the two keys, are told in an SSH
session (`COMMAND`): that of the developer's end opens it, and the agent's shows that it is the same agent that answers.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import TYPE_CHECKING

from .lane import KEY_BYTES, NUMBER_BYTES, READ_BYTES, Lane, LaneError
from .packets import Buffers
from .strangers import Stranger, Strangers

if TYPE_CHECKING:
    from .forward import Connection

COMMAND = "lanes"
"""The SSH session in which a developer's end asks."""
GREETING_SECONDS = 10.0
"""So long may a lane take to say whose it is."""
HIGH_WATER = 1024 * 1024
"""More than this in a lane's write buffer pauses who writes, in bytes."""
STRANGERS = 64
"""So many may not have said it yet; all come from the loopback. See `strangers.py`."""

_buffers = Buffers(READ_BYTES, 16)


class Arrived(Lane, asyncio.BufferedProtocol):
    """One that has come."""

    def __init__(self, lanes: Lanes) -> None:
        super().__init__()
        self._lanes = lanes
        self._said = b""
        self._buffer = memoryview(b"")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It has to say whose it is."""
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        self._lanes.let_in(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """What to read into; it stays as it is while somebody looks at it."""
        self._buffer = memoryview(_buffers.take())
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So much was read."""
        data, self._buffer = self._buffer[:nbytes], memoryview(b"")
        self.data_received(data)

    def greeting(self, data: memoryview) -> memoryview:
        """The developer's key, and the number that the connection was opened with."""
        missing = KEY_BYTES + NUMBER_BYTES - len(self._said)
        if not missing:
            return data
        self._said, data = self._said + bytes(data[:missing]), data[missing:]
        if len(self._said) == KEY_BYTES + NUMBER_BYTES:
            connection, answer = self._lanes.whose(self._said[:KEY_BYTES])
            number = int.from_bytes(self._said[KEY_BYTES:], "big")
            near = next((near for near in connection.open if near.number == number), None)
            if near is None or near.lane is not None or not number:
                raise LaneError("there is no such connection")
            self._lanes.known(self)
            self.transport.write(answer)
            near.attach(self)
        return data

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        self._lanes.known(self)
        super().connection_lost(exc)


class Lanes:
    """The port, and the developers' keys."""

    def __init__(self) -> None:
        self._keys: dict[bytes, tuple[Connection, bytes]] = {}
        self._strangers = Strangers(total=STRANGERS, each=STRANGERS, seconds=GREETING_SECONDS)
        self._unknown: dict[Arrived, Stranger] = {}
        self._server: asyncio.Server | None = None
        self._port = 0

    async def listen(self, host: str) -> None:
        """Begin, at any port. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Arrived(self), host, 0)
        self._port = self._server.sockets[0].getsockname()[1]

    def answer(self, connection: Connection) -> str:
        """What a developer is told, as JSON: the port and the keys for this SSH connection."""
        developer, agent = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(KEY_BYTES)
        self._keys[developer] = (connection, agent)
        return json.dumps({"port": self._port, "developer": developer.hex(), "agent": agent.hex()})

    def forget(self, connection: Connection) -> None:
        """The SSH connection has ended."""
        self._keys = {key: found for key, found in self._keys.items() if found[0] is not connection}

    def whose(self, key: bytes) -> tuple[Connection, bytes]:
        """The SSH connection of a developer's key, and the agent's key to answer with. Raises LaneError."""
        found = self._keys.get(key)
        if found is None:
            raise LaneError("nobody has this key")
        return found

    def let_in(self, lane: Arrived) -> None:
        """A new one."""
        self._unknown[lane] = self._strangers.arrived("", lane.transport.abort)

    def known(self, lane: Arrived) -> None:
        """It has said whose it is, or has ended."""
        stranger = self._unknown.pop(lane, None)
        if stranger is not None:
            stranger.known()

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
