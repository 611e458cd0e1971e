"""What a server says of itself in TLS: which HTTP it takes, whether it wants client certificates, and its own.

Looked at from the agent's pod, before a port's TLS is ended there: what clients are offered has to be what the original
takes. Most of it is read as it passes by (RFC 5246, 7.4), since a server that wants a certificate ends the handshake.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .certificates import CertificateError, pin

Client = Literal["none", "optional", "required"]
CONNECT_SECONDS = 1.0
HANDSHAKE_SECONDS = 2.0
LAST_SECONDS = 0.2
"""How long TLS 1.3 is listened to after the handshake: that is when a server asks where the certificate is."""
LOOKED = 4
"""Endpoints that are looked at."""
_HANDSHAKE = 22
_CERTIFICATE, _REQUEST = 11, 13
H2, H1 = "h2", "http/1.1"


@dataclass(frozen=True, slots=True)
class Hello:
    """See the module."""

    reached: bool = False
    tls: bool = False
    alpn: tuple[str, ...] = ()
    """Of `h2` and `http/1.1`, what it takes; empty: it chooses neither."""
    client: Client = "none"
    authorities: frozenset[str] = frozenset()
    """Whose certificates it takes of clients, as far as it says: names in DER, in base64."""
    pins: frozenset[str] = frozenset()
    """Of its own key (`certificates.pin`)."""

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "reached": self.reached,
            "tls": self.tls,
            "alpn": list(self.alpn),
            "client": self.client,
            "authorities": sorted(self.authorities),
            "pins": sorted(self.pins),
        }

    @classmethod
    def read(cls, document: dict[str, Any]) -> Hello:
        """From JSON of the agent's."""
        client = document["client"]
        return cls(
            bool(document["reached"]),
            bool(document["tls"]),
            tuple(map(str, document["alpn"])),
            client if client in ("optional", "required") else "none",
            frozenset(map(str, document["authorities"])),
            frozenset(map(str, document["pins"])),
        )

    def beside(self, other: Hello) -> Hello:
        """What both say, who are two pods of one Service."""
        if not (self.tls and other.tls):
            return replace(self if self.reached else other, tls=self.tls or other.tls) if not self.tls else self
        order: tuple[Client, ...] = ("none", "optional", "required")
        return Hello(
            True,
            True,
            tuple(each for each in self.alpn if each in other.alpn),
            max(self.client, other.client, key=order.index),
            self.authorities | other.authorities,
            self.pins | other.pins,
        )


async def look(endpoints: Sequence[tuple[str, int]], server: str) -> Hello:
    """What they say who is there. `server`: the name that they are asked for."""
    found = await asyncio.gather(*(_endpoint(host, port, server) for host, port in endpoints[:LOOKED]))
    out = Hello()
    for each in found:
        out = out.beside(each)
    return out


async def _endpoint(host: str, port: int, server: str) -> Hello:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        first = await _shake(host, port, server, (H2, H1), version)
        if not first.reached:
            return Hello()
        if first.tls:
            break
    else:
        return Hello(reached=True)
    alpn: tuple[str, ...] = ()
    if first.chosen:
        other = H1 if first.chosen == H2 else H2
        second = await _shake(host, port, server, (other,), version)
        takes = {first.chosen, *([other] if second.chosen == other else [])}
        alpn = tuple(each for each in (H2, H1) if each in takes)
    pins: frozenset[str] = frozenset()
    with contextlib.suppress(CertificateError):
        pins = frozenset({pin(first.certificate)})
    client: Client = "required" if first.wants else "none"
    if first.asked and first.done:
        client = "optional"
    return Hello(True, True, alpn, client, first.authorities, pins)


@dataclass(slots=True)
class _Shake:
    reached: bool = False
    tls: bool = False
    done: bool = False
    chosen: str = ""
    asked: bool = False
    """It asks for a certificate."""
    wants: bool = False
    """It does without none."""
    certificate: bytes = b""
    authorities: frozenset[str] = field(default_factory=frozenset)


async def _shake(host: str, port: int, server: str, alpn: Sequence[str], version: ssl.TLSVersion) -> _Shake:
    out = _Shake()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is looked at, and given nothing
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(list(alpn))
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return out
    out.reached = True
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    sslobj = context.wrap_bio(incoming, outgoing, server_hostname=server or None)
    seen = bytearray()

    async def step(work: Any) -> None:
        """Until it is done. SSLError, OSError, EOFError."""
        while True:
            try:
                work()
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                data = await reader.read(65536)
                if not data:
                    raise EOFError from None
                seen.extend(data)
                incoming.write(data)
            else:
                writer.write(outgoing.read())
                return

    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            await step(sslobj.do_handshake)
        out.done = True
        if version is ssl.TLSVersion.TLSv1_3:
            async with asyncio.timeout(LAST_SECONDS):
                await step(lambda: sslobj.read(1))
    except ssl.SSLError as problem:
        out.done = False
        out.wants = "CERTIFICATE_REQUIRED" in str(problem.reason)
    except (OSError, EOFError):
        out.wants = out.done  # it has closed at once after the handshake: some do so without the alert
    except TimeoutError:
        pass
    finally:
        writer.transport.abort()
    _passed(bytes(seen), out)
    if out.done:
        out.certificate = sslobj.getpeercert(binary_form=True) or out.certificate
    out.tls = out.done or bool(out.certificate) or out.wants
    out.wants = out.wants or (out.asked and not out.done)
    with contextlib.suppress(ValueError):
        out.chosen = sslobj.selected_alpn_protocol() or "" if out.tls else ""
    return out


def _passed(data: bytes, out: _Shake) -> None:
    """What a server has said before it ciphers, up to TLS 1.2."""
    said = bytearray()
    while len(data) >= 5 and data[0] == _HANDSHAKE:
        length = int.from_bytes(data[3:5])
        said += data[5 : 5 + length]
        data = data[5 + length :]
    while len(said) >= 4:
        kind, length = said[0], int.from_bytes(said[1:4])
        body = bytes(said[4 : 4 + length])
        if len(body) < length:
            break
        if kind == _CERTIFICATE and len(body) > 6:
            out.certificate = body[6 : 6 + int.from_bytes(body[3:6])]
        elif kind == _REQUEST:
            out.asked = True
            out.authorities = frozenset(_authorities(body))
        del said[: 4 + length]


def _authorities(body: bytes) -> list[str]:
    """Of a CertificateRequest (RFC 5246, 7.4.4): kinds, algorithms, names."""
    try:
        at = 1 + body[0]
        at += 2 + int.from_bytes(body[at : at + 2])
        end = at + 2 + int.from_bytes(body[at : at + 2])
        at += 2
        found = []
        while at < end:
            length = int.from_bytes(body[at : at + 2])
            found.append(base64.b64encode(body[at + 2 : at + 2 + length]).decode())
            at += 2 + length
        return found
    except IndexError:
        return []
