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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .objects import kept
from .tasks import background

log = logging.getLogger("agent")

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SECRET = "devloop-agent"
API_SECONDS = 5
LINE_BYTES = 16 << 20
"""A line of a watch: one object, of which etcd takes 1.5 MiB."""
ANSWER_BYTES = 64 << 20
"""An object, or a list of a namespace's: this pod has 512 MiB in all."""


def bounded(data: bytes, most: int) -> bytes:
    """The same. Raises OSError if it is more than there may be: whoever answers may say anything."""
    if len(data) > most:
        raise OSError(errno.EMSGSIZE, f"there is no end to what the API server says, after {most} bytes")
    return data


class ClusterApi:
    """The API server, as the pod's service account. Blocking: called in a thread."""

    def __init__(self, account: Path = ACCOUNT) -> None:
        self.account = account
        self.namespace = (account / "namespace").read_text()
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        self._context: ssl.SSLContext | None = None
        self.server = f"https://{f'[{host}]' if ':' in host else host}:{port}"

    def request(self, method: str, kind: str, name: str, body: object = None) -> dict[str, Any]:
        """One request for an object of this namespace. Raises OSError, of which HTTPError is one."""
        return self.call(method, f"/api/v1/namespaces/{self.namespace}/{kind}/{name}", body)

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """One request for any path. Raises OSError, of which HTTPError is one."""
        with self._open(method, path, body, API_SECONDS) as response:
            answer: dict[str, Any] = json.loads(bounded(response.read(ANSWER_BYTES + 1), ANSWER_BYTES))
            return answer

    def lines(self, path: str, silence: float) -> Iterator[bytes]:
        """The lines of a watch, until it ends. OSError: it says nothing for `silence` seconds, or a line has no end."""
        with self._open("GET", path, None, silence) as response:
            while line := response.readline(LINE_BYTES + 1):
                yield bounded(line, LINE_BYTES)

    def _open(self, method: str, path: str, body: object, seconds: float) -> Any:
        request = urllib.request.Request(
            f"{self.server}{path}",
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            # The kubelet renews the token; it is read anew each time.
            headers={
                "Authorization": f"Bearer {(self.account / 'token').read_text()}",
                "Content-Type": "application/json",
            },
        )
        if self._context is None:  # some 10 ms, so it is kept; an authority is not renewed as tokens are
            self._context = ssl.create_default_context(cafile=str(self.account / "ca.crt"))
        return urllib.request.urlopen(request, timeout=seconds, context=self._context)


class Seat:
    """One client, whose connections come and go: the first one takes the seat, the last one gives it back."""

    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        self._connections = 0
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


class Presence:
    """Counts clients. `gone` is set when the agent has removed itself."""

    def __init__(self, api: ClusterApi | None, linger: float) -> None:
        self.api = api
        self.linger = linger
        """Seconds without a client after which the agent removes itself; 0: it never does."""
        self.clients = 0
        self.busy: Callable[[], bool] = lambda: False
        """Whether traffic still goes through this pod: then it stays, whoever is there."""
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
        """Delete the Secret, then this pod. If somebody joins meanwhile, they make both anew."""
        if self.busy():
            self._wait()
            return
        try:
            await asyncio.to_thread(self._delete)
        except OSError as problem:
            log.warning("nobody is here, and the agent can't remove itself: %s", problem)
            self._wait()

    def _delete(self) -> None:
        assert self.api is not None
        log.info("nobody has been here for %g s: the agent removes itself", self.linger)
        try:
            secret = self.api.request("GET", "secrets", SECRET)
            # A developer who is just joining has changed the Secret: then it stays, and so does this pod.
            same = {key: secret["metadata"][key] for key in ("uid", "resourceVersion")}
            if self.clients:
                return
            if not kept(secret):
                self.api.request("DELETE", "secrets", SECRET, {"preconditions": same})
        except urllib.error.HTTPError as problem:
            problem.close()
            if problem.code != 404:
                raise
        self.api.request("DELETE", "pods", os.environ.get("HOSTNAME", SECRET))

    def close(self) -> None:
        """The agent ends anyway."""
        if self._timer is not None:
            self._timer.cancel()
