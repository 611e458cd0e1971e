"""The `http` check: a GET, over TLS if asked, that follows redirects on its own host."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

import h11

from devloop.agent.addresses import host_port
from devloop.config.model import HttpCheck, Tls
from devloop.paths import SMALL, read_file

if TYPE_CHECKING:
    import ssl

REDIRECTS = 10
"""As many as the kubelet's httpGet follows."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_IN_TARGETS = "%/?:@!$&'()*+,;=~"
"""What a path and a query may hold beside letters and digits (RFC 3986, 3.3 and 3.4), and escapes."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Open = Callable[[str, int, "Tls | None"], Awaitable[Streams]]
"""Connects to a host and port, over TLS if there is one. Raises OSError (ssl.SSLError is one)."""


class CheckFailed(Exception):  # noqa: N818 - an answer, not a fault
    """Why a check did not pass, in words for a person."""


async def get(check: HttpCheck, connect: Open) -> None:
    """Pass at a status from 200 to 399, or raise CheckFailed.

    A redirect to the same host is followed, as the kubelet does; one that leads to another host has been answered, and
    is well. Raises OSError if it can't connect.
    """
    target = check
    for _ in range(REDIRECTS + 1):
        status, location = await _once(target, connect)
        if status not in _REDIRECTS or not location:
            if 200 <= status < 400:
                return
            raise CheckFailed(f"GET {target.path} answered {status}")
        onward = _redirected(target, location)
        if onward is None:
            return
        target = onward
    raise CheckFailed(f"GET {check.path} is redirected more than {REDIRECTS} times, last to {target.path}")


def _redirected(check: HttpCheck, location: str) -> HttpCheck | None:
    """What a redirect leads to; None for another host, or what is no address of HTTP."""
    scheme = "https" if check.tls else "http"
    try:
        url = urlsplit(urljoin(f"{scheme}://{host_port(check.host, check.port)}{check.path}", location))
        port = url.port
    except ValueError:
        raise CheckFailed(f"GET {check.path} is redirected to {location!r}, which is no URL") from None
    if url.scheme not in ("http", "https") or url.hostname != check.host.lower():
        return None
    tls = (check.tls or Tls()) if url.scheme == "https" else None
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    # Not all servers escape what RFC 9112 (3.2) does not allow in a target; clients do it for them.
    return HttpCheck(check.host, port or (443 if tls else 80), quote(path, _IN_TARGETS, "latin-1"), tls)


async def _once(check: HttpCheck, connect: Open) -> tuple[int, str]:
    """The status that one GET is answered with, and where it leads if it is a redirect."""
    reader, writer = await connect(check.host, check.port, check.tls)
    try:
        connection = h11.Connection(h11.CLIENT)
        host = host_port(check.host, check.port)
        headers = [("Host", host), ("User-Agent", "devloop-probe"), ("Connection", "close"), ("Accept", "*/*")]
        request = h11.Request(method="GET", target=quote(check.path, _IN_TARGETS), headers=headers)
        writer.write(connection.send(request) or b"")
        while (event := connection.next_event()) is h11.NEED_DATA or isinstance(event, h11.InformationalResponse):
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
        if not isinstance(event, h11.Response):
            raise CheckFailed(f"{host} hung up without an answer")
        location = next((value for name, value in event.headers if name == b"location"), b"")
        return event.status_code, location.decode("latin-1")
    except h11.RemoteProtocolError as error:
        raise CheckFailed(f"{host} does not speak HTTP: {error}") from None
    finally:
        writer.transport.abort()  # what else it may say is of no interest


def context(tls: Tls, *, protocols: tuple[str, ...] = ()) -> ssl.SSLContext:
    """How a probe speaks TLS. Raises CheckFailed if the authority's file can't be used."""
    import ssl

    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca is None:
        made.check_hostname = False  # as the kubelet's probes, which check no certificates
        made.verify_mode = ssl.CERT_NONE
    else:
        try:
            made.load_verify_locations(cadata=read_file(tls.ca, SMALL).decode("ascii", "ignore"))
        except OSError as problem:  # ssl.SSLError is one
            raise CheckFailed(
                f"the certificates of `ca` can't be read: {tls.ca}: {problem.strerror or problem}"
            ) from None
    if protocols:
        made.set_alpn_protocols(list(protocols))
    return made
