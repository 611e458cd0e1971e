"""The sandbox's API as the rest of devloop asks a cluster's: `devloop.remote.workload.cluster.Cluster`."""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from devloop.errors import RemoteError
from devloop.remote.workload import files_container
from devloop.remote.workload import references as kinds
from devloop.remote.workload.cluster import AbsentError, Event, ExecStream, Listing, Ran, Token
from devloop.remote.workload.model import Absence, Object
from devloop.remote.workload.references import Kind

from .command import Exec
from .objects import Objects
from .pod import Pod

VERSION = (1, 34)
"""Whose rules are followed."""
EXEC_SECONDS = 20.0
_ENVIRON = ("cat", "/proc/self/environ")


class PodCluster:
    """One namespace, whose pods run here."""

    def __init__(self, objects: Objects, pods: Callable[[str], Pod | None]) -> None:
        """`pods` gives a pod that runs, by its name."""
        self.namespace = objects.namespace
        self._objects = objects
        self._pods = pods

    async def get(self, kind: Kind, name: str, *, namespace: str | None = None) -> Object:
        """See `Cluster`."""
        return self._objects.get(kind, name, namespace)

    async def listing(self, kind: Kind, *, labels: Mapping[str, Any] | None = None, name: str | None = None) -> Listing:
        """See `Cluster`."""
        return self._objects.listing(kind, labels, name)

    def watch(self, kind: Kind, name: str, version: str) -> AsyncGenerator[Event, None]:
        """See `Cluster`. Goes on for good."""
        return self._objects.watch(kind, name, version)

    async def token(self, account: str, *, audience: str, seconds: int) -> Token:
        """See `Cluster`. It has the claims of a real one, and opens nothing: there is no API server."""
        expires = int(time.time()) + seconds
        claims = {
            "aud": [audience or "https://kubernetes.default.svc.cluster.local"],
            "exp": expires,
            "iat": expires - seconds,
            "iss": "https://kubernetes.default.svc.cluster.local",
            "jti": secrets.token_hex(8),
            "sub": f"system:serviceaccount:{self.namespace}:{account}",
        }
        parts = [{"alg": "none", "typ": "JWT"}, claims]
        coded = [base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=").decode() for each in parts]
        return Token(f"{coded[0]}.{coded[1]}.", float(expires))

    async def patch_pod(self, name: str, sub: str, patch: Object) -> Object:
        """See `Cluster`. Ephemeral containers can be added, and nothing else changed."""
        pod = self._pod(name)
        if sub != "ephemeralcontainers":
            raise RemoteError(f"the sandbox can't change a pod's {sub}", where=f"pod {name}")
        for spec in patch["spec"]["ephemeralContainers"]:
            # What this Python can import, it can there: asyncssh, wherever devloop is installed.
            env = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            await pod.add_ephemeral(spec, _argv(spec["name"], spec.get("command") or []), env)
        return pod.item

    async def run(self, pod: str, container: str, command: Sequence[str]) -> Ran:
        """See `Cluster`."""
        found = self._pod(pod)
        if tuple(command) == _ENVIRON:
            # What is asked is the container's environment; a process here would also have devloop's own marks.
            env = found.start_of(container, command).env
            plain = {name: value for name, value in env.items() if not name.startswith("DEVLOOP_")}
            out = "".join(f"{name}={value}\0" for name, value in plain.items())
            return Ran(0, out.encode(errors="surrogateescape"), b"")
        try:
            code, out_bytes, err = await found.exec(container, _argv(container, command), EXEC_SECONDS)
        except TimeoutError:
            raise RemoteError(f"exec in pod {pod} gave no answer for {EXEC_SECONDS:g} s") from None
        return Ran(code, out_bytes, err)

    async def open_exec(self, pod: str, container: str, command: Sequence[str]) -> ExecStream:
        """See `Cluster`."""
        found = self._pod(pod)
        how = found.start_of(container, _argv(container, command))
        stream = Exec(*found.job("exec"))
        await stream.open(how)
        return stream

    async def version(self) -> tuple[int, int]:
        """See `Cluster`."""
        return VERSION

    def _pod(self, name: str) -> Pod:
        found = self._pods(name)
        if found is None:
            self._objects.get(kinds.POD, name)
            raise AbsentError(Absence.MISSING, f"pod {name} does not run")
        return found


def _argv(container: str, command: Sequence[str]) -> Sequence[str]:
    """The agent's image, in which files are served, has Python and asyncssh: here that is devloop's own Python."""
    if container.startswith(files_container.PREFIX) and command and command[0] == "python3":
        return [sys.executable, *command[1:]]
    return command
