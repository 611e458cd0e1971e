"""Who is there, and the agent's own end: an agent that devloop has made goes when nobody has used it for a while.

The client that leaves last removes it at once. This is for clients that could not: a crash, a laptop that sleeps,
a lost network. It needs no lease: the SSH connections are the count, and a dead one ends by its keepalive.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

from .tasks import background

log = logging.getLogger("agent")

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
API_SECONDS = 5
JSON = "application/json"
LINE_BYTES = 16 << 20
"""A line of a watch: one object, of which etcd takes 1.5 MiB."""
ANSWER_BYTES = 64 << 20
"""An object, or a list of a namespace's: this pod has 512 MiB in all."""


class TooLongError(OSError):
    """An answer is longer than it may be."""


def bounded(data: bytes, most: int) -> bytes:
    """The same. Raises TooLongError if it is more than there may be: whoever answers may say anything."""
    if len(data) > most:
        raise TooLongError(errno.EMSGSIZE, f"there is no end to what the API server says, after {most} bytes")
    return data


class ClusterApi:
    """The API server, as the pod's service account. Blocking: called in a thread."""

    def __init__(self, account: Path = ACCOUNT) -> None:
        self.account = account
        self.namespace = (account / "namespace").read_text()
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        self._context: ssl.SSLContext | None = None
        self.server = f"https://{f'[{host}]' if ':' in host else host}:{port}"

    def call(
        self, method: str, path: str, body: object = None, *, content_type: str = JSON, most: int | None = None
    ) -> dict[str, Any]:
        """One request for any path. Raises OSError, of which HTTPError is one, and TooLongError if the answer has more
        than `most` bytes (ANSWER_BYTES); ValueError if it is no JSON.
        """
        with _told(), self._open(method, path, body, API_SECONDS, content_type=content_type) as response:
            return _read(response, ANSWER_BYTES if most is None else most)

    def metadata(self, path: str, most: int) -> tuple[dict[str, Any], datetime]:
        """GET the metadata alone of an object, or of a list if the path has a query; and what the API server's clock
        says. Raises what `call` does.
        """
        kind = "PartialObjectMetadataList" if "?" in path else "PartialObjectMetadata"
        accept = f"{JSON};as={kind};g=meta.k8s.io;v=v1"
        with _told(), self._open("GET", path, None, API_SECONDS, accept=accept) as response:
            try:
                now = parsedate_to_datetime(response.headers["Date"]).astimezone(UTC)
            except (TypeError, ValueError):
                now = datetime.now(UTC)
            return _read(response, most), now

    def lines(self, path: str, silence: float) -> Iterator[bytes]:
        """The lines of a watch, until it ends. OSError: it says nothing for `silence` seconds, or a line has no end."""
        with _told(), self._open("GET", path, None, silence) as response:
            while line := response.readline(LINE_BYTES + 1):
                yield bounded(line, LINE_BYTES)

    def _open(
        self, method: str, path: str, body: object, seconds: float, *, content_type: str = JSON, accept: str = JSON
    ) -> Any:
        request = urllib.request.Request(
            f"{self.server}{path}",
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            # The kubelet renews the token; it is read anew each time.
            headers={
                "Authorization": f"Bearer {(self.account / 'token').read_text()}",
                "Content-Type": content_type,
                "Accept": accept,
            },
        )
        if self._context is None:  # some 10 ms, so it is kept; an authority is not renewed as tokens are
            self._context = ssl.create_default_context(cafile=str(self.account / "ca.crt"))
        return urllib.request.urlopen(request, timeout=seconds, context=self._context)


@contextmanager
def _told() -> Iterator[None]:
    """What http.client has of its own (half an answer, one that is no HTTP) is an OSError to whoever asks."""
    try:
        yield
    except HTTPException as problem:
        raise ConnectionResetError(f"no answer of the API server's: {type(problem).__name__}: {problem}") from problem


def _read(response: Any, most: int) -> dict[str, Any]:
    try:
        answer = json.loads(bounded(response.read(most + 1), most))
    except RecursionError as problem:
        raise ValueError("an answer that is nested without end") from problem
    if not isinstance(answer, dict):
        raise ValueError("an answer that is no object")
    return answer


class Seat:
    """One client, whose connections come and go: the first one takes the seat, the last one gives it back."""

    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        self._connections = 0
        self.key = b""
        """The key that it was taken with, in SSH's wire format; further connections come with the same one."""
        self.entry = ""
        """What let that key in; see `authorized.py`."""
        self.given_back: Callable[[], None] = lambda: None
        """Called when it is."""

    def joined(self) -> None:
        """A connection has logged in."""
        self._connections += 1
        if self._connections == 1:
            self._presence.joined()

    def left(self) -> None:
        """One that had has ended."""
        self._connections -= 1
        if not self._connections:
            self._presence.left()
            self.given_back()


def cluster_api() -> ClusterApi | None:
    """The API, if this pod may speak to it."""
    try:
        return ClusterApi()
    except (OSError, KeyError):
        return None


async def _nobody() -> bool:
    return False


class Presence:
    """Counts clients. `gone` is set when the agent has removed itself."""

    def __init__(self, api: ClusterApi | None, linger: float) -> None:
        self.api = api
        self.linger = linger
        """Seconds without a client after which the agent removes itself; 0: it never does."""
        self.clients = 0
        self.busy: Callable[[], bool] = lambda: False
        """Whether traffic still goes through this pod: then it stays, whoever is there."""
        self.joining: Callable[[], Awaitable[bool]] = _nobody
        """Whether somebody is about to log in: then it stays too."""
        self._timer: asyncio.TimerHandle | None = None
        self._removing: asyncio.Task[None] | None = None
        self._wait()

    def joined(self) -> None:
        """A developer has logged in."""
        self.clients += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def left(self) -> None:
        """One has gone."""
        self.clients -= 1
        if not self.clients:
            self._wait()

    def _wait(self) -> None:
        if self.linger and self.api is not None:
            self._timer = asyncio.get_running_loop().call_later(self.linger, self._begin)

    def _begin(self) -> None:
        self._removing = background(self._remove(), name="removal")

    async def _remove(self) -> None:
        """Delete this pod; what was put beside it goes with it. Who joins meanwhile makes another one."""
        try:
            if not (self.busy() or await self.joining() or self.clients):
                await asyncio.to_thread(self._delete)
                return
        except (OSError, ValueError) as problem:
            log.warning("nobody is here, and the agent can't remove itself: %s", problem)
        except Exception:  # whatever it is, it is tried again
            log.exception("nobody is here, and the agent can't remove itself")
        if not self.clients:
            self._wait()

    def _delete(self) -> None:
        assert self.api is not None
        log.info("nobody has been here for %g s: the agent removes itself", self.linger)
        name = os.environ.get("HOSTNAME", "devloop-agent")
        self.api.call("DELETE", f"/api/v1/namespaces/{self.api.namespace}/pods/{name}")

    def close(self) -> None:
        """The agent ends anyway."""
        if self._timer is not None:
            self._timer.cancel()
