"""The API server: JSON in and out, and websockets.

The generated client of `kubernetes.aio` has a model for every object; the link needs a dozen requests and takes
the objects as they come. It goes through the same session, so credentials, proxies and TLS are read once.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import aiohttp

from devloop.errors import RemoteError
from devloop.remote import bounded

from .kubeconfig import Kubeconfig
from .websocket import WebSocket

CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 15.0
WATCH_SECONDS = 75
SILENCE_SECONDS = 90.0
"""The server ends a watch before that. One that hears nothing for so long has lost its connection in silence: a NAT, a
VPN or a load balancer has forgotten it. Bookmarks would tell sooner, and an API server without a watch cache whose
storage reports no progress ends every watch that asks for them with an error."""
PROBES = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
"""Where an honest server may say nothing for hours: the kernel asks whether it is there, and gives up after 90 s."""
MERGE = "application/merge-patch+json"
ERROR_CHARACTERS = 2000
"""What is shown of an answer that is an error."""
BUSY_TRIES = 4
BUSY_SECONDS = 2.0
"""A server that has too much to do (429) has done nothing, whatever was asked, and says for how long to wait. So often
it is asked, and no longer is waited for, each time."""


class ApiError(RemoteError):
    """The API server answered with an error; `status` is the HTTP status, `reason` the API's (`NotFound`, …)."""

    def __init__(self, status: int, reason: str, what: str, *, where: str, hint: str | None = None) -> None:
        super().__init__(what, where=where, hint=hint)
        self.status = status
        self.reason = reason


class ApiUnreachableError(RemoteError):
    """No answer from the API server: the network, a name, a certificate, or a timeout."""


class _Client:
    """A `kubernetes.aio.client.ApiClient` with its session, and what runs through that."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.settings = client.configuration
        self.tls = _tls(self.settings)
        self._asked = 0
        self._answers: weakref.WeakSet[aiohttp.ClientResponse] = weakref.WeakSet()

    @property
    def used(self) -> bool:
        """A request, a watch or a websocket has not ended."""
        return self._asked > 0 or any(not each.closed for each in self._answers)

    async def request(self, method: str, path: str, **options: Any) -> aiohttp.ClientResponse:
        """One request to a path of the server's. Raises what the session does."""
        rest = self._client.rest_client
        if rest.pool_manager is None:
            rest.pool_manager = rest._create_pool_manager()
        session: aiohttp.ClientSession = rest.pool_manager
        self._asked += 1
        try:
            response = await session.request(method, self.settings.host + path, **options)
            self._answers.add(response)
        finally:
            self._asked -= 1
        return response

    async def close(self) -> None:
        """End the session and all that runs through it."""
        await self._client.close()


def _tls(settings: Any) -> tuple[str | None, ...]:
    """What a session can't change: a client's certificate is shown once to a connection."""
    return settings.cert_file, settings.key_file


def _probed(response: aiohttp.ClientResponse) -> None:
    """Its connection ends with an error if the other end is there no more."""
    transport = response.connection.transport if response.connection is not None else None
    if transport is not None and (raw := transport.get_extra_info("socket")):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in PROBES:
            raw.setsockopt(socket.IPPROTO_TCP, option, value)


class Api:
    """A client of one context. `close` it."""

    def __init__(self, kubeconfig: Kubeconfig) -> None:
        self.kubeconfig = kubeconfig
        self.namespace = kubeconfig.chosen.namespace
        self.where = kubeconfig.where
        self._client: _Client | None = None
        self._former: list[_Client] = []
        """Those of earlier certificates that something still runs through."""
        self._refused = False
        """The API server takes these credentials no more."""
        self._loading = asyncio.Lock()

    async def _current(self) -> _Client:
        """A client with credentials that are good now. It is another one when a certificate was renewed."""
        async with self._loading:
            if self._client is None or self._refused or self.kubeconfig.stale():
                from kubernetes.aio import client

                settings = await self.kubeconfig.configuration()
                self._refused = False
                if self._client is not None and self._client.tls == _tls(settings):
                    self._client.settings.api_key = settings.api_key  # a token is sent with each request
                else:
                    if self._client is not None:
                        # What runs through it goes on: the link itself is one of its websockets.
                        self._former.append(self._client)
                    self._client = _Client(client.ApiClient(settings))
            for each in [one for one in self._former if not one.used]:
                self._former.remove(each)
                await each.close()
            return self._client

    async def close(self) -> None:
        """End every session, and every request and websocket of them."""
        clients, self._client, self._former = [*self._former, self._client], None, []
        for each in clients:
            if each is not None:
                await each.close()

    def _options(self, settings: Any) -> dict[str, Any]:
        """What each request is sent with."""
        headers = {"Accept": "application/json", "User-Agent": "devloop"}
        if token := settings.api_key.get("BearerToken"):
            headers["Authorization"] = token
        options: dict[str, Any] = {"headers": headers}
        if settings.tls_server_name:
            options["server_hostname"] = settings.tls_server_name
        if settings.proxy:
            options["proxy"] = settings.proxy
            options["proxy_headers"] = settings.proxy_headers
        return options

    async def _send(
        self, method: str, path: str, *, timeout: aiohttp.ClientTimeout, headers: Mapping[str, str], **more: Any
    ) -> aiohttp.ClientResponse:
        """One request. With credentials that are refused (401), those of a plugin or of a file are fetched anew, once:
        for this request and later ones. What runs goes on with what it was let in with.
        """
        for attempt in (1, 2):
            client = await self._current()
            keys = client.settings.api_key
            options = self._options(client.settings)
            sent = {**options, "headers": {**options["headers"], **headers}, **more}
            try:
                response = await client.request(method, path, timeout=timeout, **sent)
            except (aiohttp.ClientError, OSError, TimeoutError) as problem:
                raise self._unreachable(problem) from problem
            if response.status != HTTPStatus.UNAUTHORIZED or attempt == 2:
                break
            if not {"exec", "tokenFile"} & self.kubeconfig.chosen.user.keys():
                break
            response.release()
            if client is self._client and keys is client.settings.api_key:  # nobody has fetched others meanwhile
                self.kubeconfig.forget()
                self._refused = True
        return response

    def _unreachable(self, problem: BaseException) -> ApiUnreachableError:
        what = str(problem) or type(problem).__name__
        if isinstance(problem, TimeoutError):
            what = "no answer in time"
        hint = None
        if isinstance(problem, aiohttp.ClientConnectorCertificateError):
            hint = "The kubeconfig's certificate-authority does not match the server."
        elif isinstance(problem, aiohttp.ClientConnectorDNSError):
            hint = "Is the VPN up?"
        server = str(self.kubeconfig.chosen.cluster.get("server", ""))
        return ApiUnreachableError(f"the API server {server} can't be reached: {what}", where=self.where, hint=hint)

    async def _error(self, response: aiohttp.ClientResponse, what: str) -> ApiError:
        """Read a `Status` object, or whatever a proxy has put in its place."""
        try:
            text = (await bounded.beginning(response)).decode(errors="replace")
            status = json.loads(text)
            message, reason = str(status.get("message") or text), str(status.get("reason") or "")
        except (ValueError, AttributeError, RecursionError):
            message, reason = text.strip() or str(response.reason), ""
        except (aiohttp.ClientError, OSError):
            message, reason = str(response.reason), ""
        hint = None
        if response.status == HTTPStatus.FORBIDDEN:
            from devloop.remote import roles

            hint = roles.hint(message)
        return ApiError(response.status, reason, f"{what}: {message[:ERROR_CHARACTERS]}", where=self.where, hint=hint)

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        seconds: float = REQUEST_SECONDS,
    ) -> dict[str, Any]:
        """Send a request and read its object. Raises ApiError and ApiUnreachableError."""
        timeout = aiohttp.ClientTimeout(total=seconds, connect=CONNECT_SECONDS)
        headers = {"Accept": accept} | ({"Content-Type": content_type} if body is not None else {})
        data = json.dumps(body).encode() if body is not None else None
        target = f"{path}?{urlencode(query)}" if query else path
        for attempt in range(1, BUSY_TRIES + 1):
            response = await self._send(method, target, timeout=timeout, headers=headers, data=data)
            if response.status != HTTPStatus.TOO_MANY_REQUESTS or attempt == BUSY_TRIES:
                break
            said = response.headers.get("Retry-After", "")
            response.release()
            await asyncio.sleep(min(float(said) if said.isdecimal() else BUSY_SECONDS / 4, BUSY_SECONDS))
        async with response:
            if response.status >= HTTPStatus.BAD_REQUEST:
                raise await self._error(response, f"{method} {path}")
            try:
                answer = json.loads(await bounded.read(response))
            except (aiohttp.ClientError, OSError, TimeoutError) as problem:
                raise self._unreachable(problem) from problem
            except bounded.TooLongError as problem:
                raise ApiUnreachableError(f"{path}: {problem}", where=self.where) from problem
            except (ValueError, RecursionError) as problem:
                raise ApiUnreachableError(f"{path}: the answer is no JSON", where=self.where) from problem
        return answer if isinstance(answer, dict) else {}

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        """GET an object or a list."""
        return await self.request("GET", path, query=query)

    async def find(self, path: str) -> dict[str, Any] | None:
        """GET an object; None if there is none."""
        try:
            return await self.request("GET", path)
        except ApiError as problem:
            if problem.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def watch(self, path: str, **query: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield (ADDED, MODIFIED, DELETED; object) until the server ends the watch. Raises ApiError, and
        ApiUnreachableError also when it says nothing for `SILENCE_SECONDS`."""
        query = {"watch": "1", "timeoutSeconds": str(WATCH_SECONDS), **query}
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        response = await self._send("GET", f"{path}?{urlencode(query)}", timeout=timeout, headers={})
        async with response:
            if response.status >= HTTPStatus.BAD_REQUEST:
                raise await self._error(response, f"watch {path}")
            try:
                async for line in bounded.lines(response):
                    event = json.loads(line)
                    if event["type"] == "ERROR":  # 410 Gone: the list has to be read anew
                        return
                    if event["type"] != "BOOKMARK":
                        yield event["type"], event["object"]
            except (aiohttp.ClientError, OSError, TimeoutError) as problem:
                raise self._unreachable(problem) from problem
            except bounded.TooLongError as problem:
                raise ApiUnreachableError(f"{path}: {problem}", where=self.where) from problem
            except (ValueError, KeyError, TypeError, RecursionError) as problem:
                raise ApiUnreachableError(f"{path}: the watch is no JSON", where=self.where) from problem

    async def stream(self, path: str, **query: str) -> AsyncIterator[bytes]:
        """Yield an answer's bytes as they come, until it ends. Raises ApiError and ApiUnreachableError."""
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS)
        response = await self._send("GET", f"{path}?{urlencode(query)}", timeout=timeout, headers={})
        async with response:
            if response.status >= HTTPStatus.BAD_REQUEST:
                raise await self._error(response, f"GET {path}")
            _probed(response)
            try:
                async for part in response.content.iter_any():
                    yield part
            except (aiohttp.ClientError, OSError, TimeoutError) as problem:
                raise self._unreachable(problem) from problem

    async def websocket(
        self, path: str, query: Sequence[tuple[str, str]], protocols: Sequence[str]
    ) -> tuple[WebSocket, str]:
        """Open a websocket (RFC 6455); gives it, not reading yet, and the subprotocol that was agreed on."""
        headers = {
            "Accept": "*/*",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Protocol": ", ".join(protocols),
        }
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, connect=CONNECT_SECONDS)
        target = f"{path}?{urlencode(query)}" if query else path
        response = await self._send("GET", target, timeout=timeout, headers=headers, read_until_eof=False)
        try:
            if response.status != HTTPStatus.SWITCHING_PROTOCOLS:
                raise await self._error(response, f"{path}")
            agreed = response.headers.get("Sec-WebSocket-Protocol", "")
            if agreed not in protocols:
                raise ApiError(
                    response.status, "", f"{path}: no subprotocol of {', '.join(protocols)}", where=self.where
                )
            connection = response.connection
            assert connection is not None and connection.transport is not None
            if raw := connection.transport.get_extra_info("socket"):
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            masked = connection.transport.get_extra_info("sslcontext") is None
            return WebSocket(response, connection, masked=masked), agreed
        except BaseException:
            response.close()
            raise
