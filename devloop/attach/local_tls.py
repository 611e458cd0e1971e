"""TLS with the local service, where the agent has ended it to see the requests.

What comes by the channel is then plain HTTP, so a reload is hidden and a request repeated as on any other port
(`relay.py`); between this machine's engine and the local service it is TLS again. A connection that came as TLS, since
it was taken whole or by its server's name, passes as it is: its first bytes tell.

The handshake waits for those bytes: they say which version of HTTP is asked for (ALPN, RFC 7301).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from devloop.agent.tasks import background
from devloop.agent.turns import is_h2
from devloop.agent.uplink import HANDSHAKE
from devloop.datagrams import DatagramClient, DatagramFlow

from .seam import LocalEnd

P = TypeVar("P", bound=asyncio.Protocol)
HANDSHAKE_SECONDS = 60.0
"""A process may be stopped by a debugger; a request that it has accepted waits for it, too."""
WAITING_BYTES = 64 << 10
"""So much of an upload is kept during a handshake; the rest waits where it comes from."""


class Identity:
    """Who the engine says it is to a local service: for which server it asks, and with which certificate (PEM)."""

    def __init__(self, server: str = "", certificate: str = "", key: str = "") -> None:
        self.server = server
        self._contexts = {alpn: _context(alpn, certificate, key) for alpn in ("h2", "http/1.1")}

    def context(self, first: bytes) -> ssl.SSLContext:
        """For a connection that begins so."""
        return self._contexts["h2" if is_h2(first) else "http/1.1"]


def _context(alpn: str, certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # It is a process of this machine, at a port that devloop has led to; its certificate is another host's.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    if certificate:
        # OpenSSL reads from files alone; this one is in memory, and nobody else's.
        file = os.memfd_create("certificate", os.MFD_CLOEXEC)
        try:
            os.write(file, f"{key.rstrip()}\n{certificate}".encode())
            context.load_cert_chain(f"/proc/self/fd/{file}")
        finally:
            os.close(file)
    return context


class TlsEnd:
    """A local service some of whose ports speak TLS. See `LocalEnd`."""

    def __init__(self, local: LocalEnd, told: Callable[[int, str], None]) -> None:
        """`told` hears of a port at which no TLS can be made, with the reason; or with none: it could."""
        self._local = local
        self._told = told
        self.ports: Mapping[int, Identity] = {}
        """By the local port."""

    async def connect(self, factory: Callable[[], P], port: int) -> tuple[asyncio.Transport, P]:
        """A connection to the port; over TLS if what is sent first is none."""
        identity = self.ports.get(port)
        if identity is None:
            return await self._local.connect(factory, port)
        made: list[P] = []

        def wrapped() -> _Wrapped:
            made.append(factory())
            return _Wrapped(made[-1], identity, lambda why: self._told(port, why))

        _, wrap = await self._local.connect(wrapped, port)
        return cast(asyncio.Transport, wrap.outside), made[-1]

    @property
    def running(self) -> bool:
        """See `LocalEnd`."""
        return self._local.running

    @property
    def deaf(self) -> Mapping[int, str]:
        """See `LocalEnd`."""
        return self._local.deaf

    @property
    def deaf_datagrams(self) -> Mapping[int, str]:
        """See `LocalEnd`."""
        return self._local.deaf_datagrams

    async def datagrams(self, client: DatagramClient, port: int, source: tuple[str, int]) -> DatagramFlow:
        """See `LocalEnd`."""
        return await self._local.datagrams(client, port, source)

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """See `LocalEnd`."""
        return self._local.subscribe(listener)

    async def stop(self) -> Callable[[], None]:
        """See `LocalEnd`."""
        return await self._local.stop()


class _Outside:
    """The transport that the relay has: at first the plain connection, then the one within TLS."""

    def __init__(self, wrap: _Wrapped, inner: asyncio.Transport) -> None:
        self._wrap = wrap
        self.inner = inner
        self.paused = False

    def write(self, data: bytes) -> None:
        if self._wrap.decided:
            self.inner.write(data)
        else:
            self._wrap.first(bytes(data))

    def pause_reading(self) -> None:
        self.paused = True
        if not self._wrap.shaking:
            self.inner.pause_reading()

    def resume_reading(self) -> None:
        self.paused = False
        if not self._wrap.shaking:
            self.inner.resume_reading()

    def can_write_eof(self) -> bool:
        return not self._wrap.shaking and self.inner.can_write_eof()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class _Wrapped(asyncio.Protocol):
    """Between a connection to the local service and the relay's protocol."""

    def __init__(self, near: asyncio.Protocol, identity: Identity, told: Callable[[str], None]) -> None:
        self.near = near
        self.outside: _Outside | None = None
        self.decided = False
        self.shaking = False
        self._identity = identity
        self._told = told
        self._waiting: list[bytes] = []
        self._kept = 0
        self._held_back = False
        """The relay was told to wait until TLS is there."""
        self.full = False
        """What TLS has to send waits for the local service."""
        self._lost = False
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.outside = _Outside(self, cast(asyncio.Transport, transport))
        self.near.connection_made(cast(asyncio.Transport, self.outside))

    def first(self, data: bytes) -> None:
        """The first bytes that are sent, and what follows until TLS is there."""
        assert self.outside is not None
        if not self.shaking and data[:1] == HANDSHAKE:
            self.decided = True
            self.outside.inner.write(data)
            return
        self._waiting.append(data)
        self._kept += len(data)
        if not self.shaking:
            self.shaking = True
            self._task = background(self._shake(data), name="TLS with the local service")
        if self._kept > WAITING_BYTES and not self._held_back:
            self._held_back = True
            self.near.pause_writing()

    async def _shake(self, first: bytes) -> None:
        assert self.outside is not None
        plain = self.outside.inner
        try:
            tls = await asyncio.get_running_loop().start_tls(
                plain,
                _Inside(self),
                self._identity.context(first),
                server_hostname=self._identity.server or "localhost",
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
            )
            if tls is None:
                raise ConnectionResetError("closed meanwhile")
        except (ssl.SSLError, OSError, TimeoutError) as problem:
            if isinstance(problem, ssl.SSLError):
                self._told(_why(problem))
            plain.abort()
            self.shaking = False
            self._waiting.clear()
            self.lost(ConnectionResetError("no TLS"))
            return
        self._told("")
        self.decided, self.shaking = True, False
        self.outside.inner = tls
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            tls.write(data)
        if self._held_back and not self.full:
            self.near.resume_writing()
        if self.outside.paused:
            with contextlib.suppress(RuntimeError):
                tls.pause_reading()

    def lost(self, problem: Exception | None) -> None:
        """Once, whoever tells it."""
        if not self._lost:
            self._lost = True
            self.near.connection_lost(problem)

    def data_received(self, data: bytes) -> None:
        self.near.data_received(data)

    def eof_received(self) -> bool | None:
        return self.near.eof_received()

    def pause_writing(self) -> None:
        self.near.pause_writing()

    def resume_writing(self) -> None:
        self.near.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.shaking:
            self.lost(exc)


class _Inside(asyncio.Protocol):
    """What TLS tells."""

    def __init__(self, wrap: _Wrapped) -> None:
        self._wrap = wrap

    def data_received(self, data: bytes) -> None:
        self._wrap.near.data_received(data)

    def eof_received(self) -> bool | None:
        self._wrap.near.eof_received()
        return None  # TLS has no half-closed connections (asyncio)

    def pause_writing(self) -> None:
        self._wrap.full = True
        self._wrap.near.pause_writing()

    def resume_writing(self) -> None:
        self._wrap.full = False
        self._wrap.near.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wrap.lost(exc)


def _why(problem: ssl.SSLError) -> str:
    reason = str(problem.reason or "")
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        return 'it speaks no TLS there: `tls = { local = "plain" }` of `attach` says so'
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        return "it refuses TLS; if it wants a certificate of its clients, `client` of `attach.tls` names one"
    return f"TLS can't be made with it ({reason.lower().replace('_', ' ') or type(problem).__name__})"
