"""What comes out: a container's environment and mounts, and what could not be had of them.

Objects of the API are plain dicts, as its JSON has them (`Object`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from devloop.errors import RemoteError
from devloop.protocol import Variable

Object = Mapping[str, Any]
"""An object, or a part of one, as the API's JSON has it."""


class Absence(StrEnum):
    """Why an object is not there."""

    MISSING = "missing"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True, slots=True)
class Note:
    """A difference between what the local process gets and what the container has, for a person to read."""

    subject: str
    """What it is about: "variable POD_IP", "volume data"."""
    text: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something without which the pod itself would not start; never holds a value."""

    subject: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}"


def refuse(where: str, problems: Iterable[Problem]) -> None:
    """Raise one RemoteError that lists them all, if there are any."""
    found = list(dict.fromkeys(problems))
    if not found:
        return
    hints = "\n  ".join(dict.fromkeys(each.hint for each in found if each.hint))
    if len(found) == 1:
        raise RemoteError(str(found[0]), where=where, hint=hints or None)
    lines = "".join(f"\n  - {each}" for each in found)
    raise RemoteError(f"{len(found)} references can't be resolved{lines}", where=where, hint=hints or None)


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload, the pod that stands for it, and one of its containers."""

    namespace: str
    kind: str
    """The API's kind, as in "Deployment"."""
    name: str
    pod: Object
    """The running pod; without one, a pod made from the template: no status, no uid."""
    container: Object
    running: bool
    """`pod` is a pod that runs, and `container` runs in it."""
    is_init: bool = False
    """The container is one of `initContainers`."""

    @property
    def reference(self) -> str:
        """As people write it: "deployment/web"."""
        return f"{self.kind.lower()}/{self.name}"

    @property
    def where(self) -> str:
        """For error messages: the workload and the container."""
        return f"{self.reference} in {self.namespace}, container {self.container['name']}"

    @property
    def pod_name(self) -> str:
        """The name of `pod`."""
        return str(self.pod["metadata"].get("name", ""))

    @property
    def status(self) -> Object:
        """The container's entry in the pod's status; empty if it has none."""
        statuses = self.pod.get("status") or {}
        for each in (statuses.get("containerStatuses") or []) + (statuses.get("initContainerStatuses") or []):
            if each["name"] == self.container["name"]:
                return dict(each)
        return {}

    @property
    def started_at(self) -> str | None:
        """When the running container was started: RFC 3339 in UTC, which also sorts."""
        running = (self.status.get("state") or {}).get("running") or {}
        return running.get("startedAt")


@dataclass(frozen=True, slots=True)
class Sources:
    """What a pod's environment and files are made from, as far as it could be read."""

    config_maps: Mapping[str, Object | Absence] = field(default_factory=dict)
    secrets: Mapping[str, Object | Absence] = field(default_factory=dict)
    services: Sequence[Object] | Absence = ()
    """Of the pod's namespace."""
    master: Object | None = None
    """The Service `kubernetes` of the namespace `default`, if it may be read."""
    allocatable: Mapping[str, str] | None = None
    """The node's `status.allocatable`, if it may be read."""
    local: Mapping[str, str] = field(default_factory=dict)
    """What this machine has to allocate: stands in for the node's."""
    relaxed_names: bool = True
    """Any name of a variable goes (Kubernetes 1.32 and later); before, invalid ones were skipped."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A container's environment, in the order in which it is defined: each name once."""

    variables: tuple[Variable, ...] = ()
    """What the pod's spec defines, then the service links."""
    image: tuple[Variable, ...] = ()
    """What only the running container has: the image's own, the container runtime's, links to deleted
    Services. Empty where it could not be read."""
    stand_ins: frozenset[str] = frozenset()
    """Variables whose value is not the pod's own but a stand-in, each with a note."""
    notes: tuple[Note, ...] = ()
    problems: tuple[Problem, ...] = ()

    def mapping(self, *, image: bool = True) -> dict[str, str]:
        """Name → value."""
        found = (*self.variables, *self.image) if image else self.variables
        return {each.name: each.value for each in found}


class VolumeMode(StrEnum):
    """How files that only the cluster has come here."""

    COPY = "copy"
    MOUNT = "mount"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Mount:
    """One `volumeMount` of the container, and the local files that stand for it."""

    path: str
    """Where the container has it; absolute."""
    source: Path
    """A local file or folder to bind there."""
    volume: str
    kind: str
    """The field of the volume that says what it is: "configMap", "persistentVolumeClaim", …"""
    read_only: bool
    follows: bool = False
    """The files under `source` change with the cluster. A `subPath` never does, as in the pod."""


@dataclass(frozen=True, slots=True)
class WorldView:
    """How a container sees the world: what a local process needs to see the same."""

    workload: Workload
    environment: Environment
    mounts: tuple[Mount, ...]
    """By path, so that a mount comes before those inside it."""
    notes: tuple[Note, ...]
    """All differences, also those of the environment."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something has changed in the cluster while a view is open."""

    what: Literal["files", "environment", "pod", "trouble"]
    """New files are in place; a restart would give another environment or other volumes; the pod is another one; or a
    volume keeps its old files because of what `text` says."""
    text: str
    volumes: tuple[str, ...] = ()


def decoded(data: str) -> bytes:
    """The bytes of a value in `Secret.data` or `ConfigMap.binaryData`. Raises ValueError."""
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        raise ValueError("is not base64") from None
