"""What is needed of a cluster, as a small Protocol; `kube.py` is the real one, `fake.py` one in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from devloop.errors import RemoteError
from devloop.remote import roles

from .model import Absence, Object
from .references import Kind


class AbsentError(RemoteError):
    """One object is not there, or may not be read."""

    def __init__(self, absence: Absence, what: str, *, hint: str | None = None) -> None:
        if absence is Absence.FORBIDDEN and hint is None:
            hint = roles.hint(what)
        super().__init__(what, hint=hint)
        self.absence = absence


class ExpiredError(RemoteError):
    """A watch's resourceVersion is too old (410 Gone): read the object anew."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Some objects of a kind, and the resourceVersion from which a watch goes on."""

    items: tuple[Object, ...]
    version: str


@dataclass(frozen=True, slots=True)
class Event:
    """A watch's event. A bookmark's object has a resourceVersion and nothing else."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: Object


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """A service account's token. Its repr has nothing of it."""

    value: str
    expires_at: float
    """Unix time."""


@dataclass(frozen=True, slots=True, repr=False)
class Ran:
    """A command's end in a container. Its repr has nothing of what was printed."""

    code: int
    """Its exit code; -1 if it could not be started."""
    stdout: bytes
    stderr: bytes


class ExecStream(Protocol):
    """A command that runs in a container: bytes both ways."""

    async def send(self, data: bytes) -> None:
        """Write to its standard input."""

    async def receive(self) -> bytes:
        """What it printed next on standard output; empty at its end."""

    def errors(self) -> str:
        """What it has printed on standard error so far, and how it ended."""

    async def close(self) -> None:
        """End the connection, and with it the command's standard input."""


class Cluster(Protocol):
    """One namespace of a cluster. Methods raise AbsentError for 404 and 403, RemoteError for all else."""

    namespace: str

    async def get(self, kind: Kind, name: str, *, namespace: str | None = None) -> Object:
        """One object; `namespace` is another one than ours, or "" for an object of the cluster."""

    async def listing(self, kind: Kind, *, labels: Mapping[str, Any] | None = None, name: str | None = None) -> Listing:
        """Objects of a kind that a label selector (`matchLabels`, `matchExpressions`) or a name selects.

        With `name` a Role that allows that name alone suffices.
        """

    def watch(self, kind: Kind, name: str, version: str) -> AsyncGenerator[Event, None]:
        """What happens to one object after `version`. Ends when the server ends it; raises ExpiredError."""

    async def token(self, account: str, *, audience: str, seconds: int) -> Token:
        """A token of a service account (TokenRequest), bound to no object."""

    async def patch_pod(self, name: str, sub: str, patch: Object) -> Object:
        """A strategic merge patch of a pod's subresource; gives the pod."""

    async def run(self, pod: str, container: str, command: Sequence[str]) -> Ran:
        """Run a command in a container and wait for its end."""

    async def open_exec(self, pod: str, container: str, command: Sequence[str]) -> ExecStream:
        """Run a command in a container, with its standard input."""

    async def version(self) -> tuple[int, int]:
        """Kubernetes' own, as in (1, 36)."""
