"""The real cluster, over `kubernetes.aio`.

The generated client's models are passed over: answers stay the dicts that the API's JSON has.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlencode

from devloop.errors import RemoteError
from devloop.remote import bounded, roles

from . import references as kinds
from .cluster import AbsentError, Event, ExecStream, ExpiredError, Listing, Ran, Token
from .model import Absence, Object
from .references import Kind

REQUEST_SECONDS = 30
WATCH_SECONDS = 290
"""How long a watch is asked to go on; the server ends it then, and the next goes on from there."""
SILENCE_SECONDS = 90
"""A watch that hears nothing for so long, not even a bookmark, is made anew: a laptop may have slept."""
EXEC_SECONDS = 20
PRINTED_BYTES = 8 << 20
"""A command in a pod prints no more: what is in an image is anybody's."""
ERROR_BYTES = 64 << 10
"""So much of its standard error is kept."""
ERROR_CHARACTERS = 2000
"""What is shown of an answer that is an error."""


class Credentials(Protocol):
    """Who renews a configuration in place."""

    async def fresh(self) -> None:
        """It is good now. Raises RemoteError."""

    def refused(self) -> bool:
        """It was answered with 401. Whether others can be had: then `fresh` gets them."""


class KubeCluster:
    """One namespace, as the user of a `kubernetes.aio.client.Configuration`; an async context manager."""

    def __init__(self, configuration: Any, namespace: str, credentials: Credentials | None = None) -> None:
        """Without `credentials` these are good for as long as they are."""
        self.namespace = namespace
        self._configuration = configuration
        self._credentials = credentials
        self._api: Any = None
        self._streams: Any = None
        self._certificate: object = None
        self._former: list[Any] = []
        """Clients with an earlier certificate: what runs through them goes on."""

    async def __aenter__(self) -> Self:
        """Connect when first used; nothing is asked yet."""
        self._make()
        return self

    def _make(self) -> None:
        # Imported late: it takes some 280 ms.
        from kubernetes.aio.client import ApiClient
        from kubernetes.aio.stream import WsApiClient

        self._api = ApiClient(self._configuration)
        streams: Any = WsApiClient  # without types
        self._streams = streams(self._configuration, heartbeat=30)
        self._certificate = self._configuration.cert_file, self._configuration.key_file

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        for each in (self._streams, self._api, *self._former):
            await each.close()

    async def _fresh(self) -> None:
        if self._credentials is None:
            return
        await self._credentials.fresh()
        if (self._configuration.cert_file, self._configuration.key_file) != self._certificate:
            self._former += [self._streams, self._api]
            self._make()

    async def get(self, kind: Kind, name: str, *, namespace: str | None = None) -> Object:
        """See `Cluster`."""
        within = self.namespace if namespace is None else namespace or None
        found: Object = await self._json("GET", kind.path(within, name), what=f"{kind.name.lower()} {name}")
        return found

    async def listing(self, kind: Kind, *, labels: Mapping[str, Any] | None = None, name: str | None = None) -> Listing:
        """See `Cluster`. Long lists come in pages."""
        query = {"limit": "500"}
        if labels:
            query["labelSelector"] = selector(labels)
        if name:
            query["fieldSelector"] = f"metadata.name={name}"
        items: list[Object] = []
        left = bounded.ANSWER_BYTES
        while True:
            path = kind.path(self.namespace)
            page, size = await self._sized("GET", path, query=query, what=kind.plural, limit=left)
            items += page.get("items") or []
            metadata = page.get("metadata") or {}
            if not (more := metadata.get("continue")):
                return Listing(tuple(items), str(metadata.get("resourceVersion", "")))
            query["continue"], left = more, left - size

    async def watch(self, kind: Kind, name: str, version: str) -> AsyncGenerator[Event, None]:
        """See `Cluster`."""
        import aiohttp

        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        what = f"{kind.name.lower()} {name}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS, sock_read=SILENCE_SECONDS)
        response: Any = None
        try:
            response = await self._request("GET", kind.path(self.namespace), query=query, timeout=timeout)
            await _check(response, what, self.namespace)
            async for line in bounded.lines(response):
                yield _event(json.loads(line), what)
        except (aiohttp.ClientError, TimeoutError, OSError, bounded.TooLongError) as problem:
            raise RemoteError(f"watching {what}: {_words(problem)}") from problem
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
            raise RemoteError(f"watching {what}: the watch is no JSON") from problem
        finally:
            if response is not None:
                response.close()

    async def token(self, account: str, *, audience: str, seconds: int) -> Token:
        """See `Cluster`."""
        spec = {"audiences": [audience] if audience else [], "expirationSeconds": seconds}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = kinds.SERVICE_ACCOUNT.path(self.namespace, account, "token")
        what = f"a token of service account {account}"
        answer = await self._json("POST", path, body=body, what=what)
        expires = datetime.fromisoformat(answer["status"]["expirationTimestamp"].replace("Z", "+00:00"))
        return Token(answer["status"]["token"], expires.timestamp())

    async def patch_pod(self, name: str, sub: str, patch: Object) -> Object:
        """See `Cluster`."""
        path = kinds.POD.path(self.namespace, name, sub)
        pod: Object = await self._json("PATCH", path, body=dict(patch), what=f"pod {name} {sub}")
        return pod

    async def run(self, pod: str, container: str, command: Sequence[str]) -> Ran:
        """See `Cluster`. Ends with a RemoteError after 20 s, or when more is printed than `PRINTED_BYTES`."""
        stream = await self._exec(pod, container, command, stdin=False)
        out = bytearray()
        try:
            async with asyncio.timeout(EXEC_SECONDS):
                while data := await stream.receive():
                    out += data
                    if len(out) > PRINTED_BYTES:
                        raise RemoteError(f"exec in pod {pod}: {command[0]} prints without end")
        except TimeoutError:
            raise RemoteError(f"exec in pod {pod} gave no answer for {EXEC_SECONDS} s") from None
        finally:
            await stream.close()
        return Ran(stream.code, bytes(out), bytes(stream.stderr))

    async def open_exec(self, pod: str, container: str, command: Sequence[str]) -> ExecStream:
        """See `Cluster`."""
        return await self._exec(pod, container, command, stdin=True)

    async def version(self) -> tuple[int, int]:
        """See `Cluster`."""
        found = await self._json("GET", "/version", what="the version")
        return int(found["major"]), int(found["minor"].rstrip("+"))

    async def _exec(self, pod: str, container: str, command: Sequence[str], *, stdin: bool) -> _Exec:
        import aiohttp

        query = [("container", container), ("stdout", "true"), ("stderr", "true"), ("tty", "false")]
        query += [("stdin", "true" if stdin else "false"), *(("command", each) for each in command)]
        path = f"{kinds.POD.path(self.namespace, pod, 'exec')}?{urlencode(query)}"
        for again in (True, False):
            await self._fresh()
            try:
                request = await self._send(self._streams, "GET", path, {}, None, None)
                # The generated client gives a request that is made when it is awaited.
                return _Exec(await request.response)
            except aiohttp.WSServerHandshakeError as problem:
                if again and problem.status == 401 and self._credentials is not None and self._credentials.refused():
                    continue
                absence = {403: Absence.FORBIDDEN, 404: Absence.MISSING}.get(problem.status)
                what = f"exec in pod {pod}: the API server answers {problem.status}"
                hint = roles.ask_for(roles.Role.ATTACH) if absence is Absence.FORBIDDEN else None
                raise AbsentError(absence, what, hint=hint) if absence else RemoteError(what) from problem
            except (aiohttp.ClientError, TimeoutError, OSError) as problem:
                raise RemoteError(f"exec in pod {pod}: {_words(problem)}") from problem
        raise AssertionError("the second answer is the last")

    async def _json(
        self,
        method: str,
        path: str,
        *,
        what: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
    ) -> Object:
        return (await self._sized(method, path, what=what, query=query, body=body))[0]

    async def _sized(
        self,
        method: str,
        path: str,
        *,
        what: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        limit: int = bounded.ANSWER_BYTES,
    ) -> tuple[Object, int]:
        """An object, and how many bytes it came in."""
        import aiohttp

        try:
            timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
            response = await self._request(method, path, query=query, body=body, timeout=timeout)
            try:
                await _check(response, what, self.namespace)
                data = await bounded.read(response, limit)
                if not isinstance(found := json.loads(data), dict):
                    raise ValueError("no object")
                return found, len(data)
            finally:
                response.release()
        except (ValueError, RecursionError) as problem:
            why = problem if isinstance(problem, bounded.TooLongError) else "the answer is no JSON"
            raise RemoteError(f"{what}: {why}", where=self._configuration.host) from problem
        except (aiohttp.ClientError, TimeoutError, OSError) as problem:
            raise RemoteError(
                f"{what}: {_words(problem)}", where=self._configuration.host, hint="Is the cluster reachable?"
            ) from problem

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        timeout: Any = None,
    ) -> Any:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if method == "PATCH":
            headers["Content-Type"] = "application/strategic-merge-patch+json"
        full = f"{path}?{urlencode(query)}" if query else path
        await self._fresh()
        response = (await self._send(self._api, method, full, headers, body, timeout)).response
        if response.status == 401 and self._credentials is not None and self._credentials.refused():
            response.release()
            await self._fresh()
            response = (await self._send(self._api, method, full, headers, body, timeout)).response
        return response

    async def _send(
        self, api: Any, method: str, path: str, headers: dict[str, str], body: Object | None, timeout: Any
    ) -> Any:
        """One request with the user's credentials."""
        request = await api.param_serialize(
            method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        return await api.call_api(*request, _request_timeout=timeout, _preload_content=False)


class _Exec:
    """A command in a container: the websocket protocol v4.channel.k8s.io, a channel's number before data."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.stderr = bytearray()
        self.code = -1
        self._end = ""

    async def send(self, data: bytes) -> None:
        await self._socket.send_bytes(b"\0" + data)

    async def receive(self) -> bytes:
        while True:
            message = await self._socket.receive()
            if not isinstance(message.data, bytes) or not message.data:
                return b""
            channel, data = message.data[0], message.data[1:]
            if channel == 1 and data:
                return data
            if channel == 2:
                self.stderr += data[: ERROR_BYTES - len(self.stderr)]
            if channel == 3:
                try:
                    self._ended(json.loads(data))
                except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
                    self._end = "the API server does not say how it has ended"

    def errors(self) -> str:
        return f"{self.stderr.decode(errors='replace').strip()} {self._end}".strip()

    async def close(self) -> None:
        await self._socket.close()

    def _ended(self, status: Mapping[str, Any]) -> None:
        if status.get("status") == "Success":
            self.code = 0
            return
        self._end = str(status.get("message", ""))
        for cause in (status.get("details") or {}).get("causes") or []:
            if cause.get("reason") == "ExitCode":
                self.code = int(cause["message"])


def selector(labels: Mapping[str, Any]) -> str:
    """A LabelSelector as the text of a query parameter."""
    parts = [f"{key}={value}" for key, value in (labels.get("matchLabels") or {}).items()]
    for each in labels.get("matchExpressions") or []:
        key, values = each["key"], ",".join(each.get("values") or [])
        parts.append(
            {
                "In": f"{key} in ({values})",
                "NotIn": f"{key} notin ({values})",
                "Exists": key,
                "DoesNotExist": f"!{key}",
            }[each["operator"]]
        )
    return ",".join(parts)


def _event(data: Mapping[str, Any], what: str) -> Event:
    if data["type"] == "ERROR":
        if data["object"].get("code") == 410:
            raise ExpiredError(f"watching {what}: too old")
        raise RemoteError(f"watching {what}: {data['object'].get('message', 'an error')}")
    return Event(data["type"], data["object"])


async def _check(response: Any, what: str, namespace: str) -> None:
    if response.status < 400:
        return
    try:
        message = str(json.loads(await bounded.beginning(response)).get("message", ""))[:ERROR_CHARACTERS]
    except (ValueError, AttributeError, RecursionError):
        message = ""
    text = f"{what} in namespace {namespace}: {message or response.reason}"
    if response.status in (403, 404):
        raise AbsentError(Absence.FORBIDDEN if response.status == 403 else Absence.MISSING, text)
    if response.status == 410:
        raise ExpiredError(text)
    hint = "Log in anew: kubectl get pods shows what is asked." if response.status == 401 else None
    raise RemoteError(text, hint=hint)


def _words(problem: BaseException) -> str:
    return "no answer in time" if isinstance(problem, TimeoutError) else str(problem) or type(problem).__name__
