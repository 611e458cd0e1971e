"""What there is in a namespace: its workloads, and the Services that lead to each. For `devloop list`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from devloop.agent import objects

from . import references as kinds
from .cluster import AbsentError, Cluster
from .find import is_ready
from .model import Object
from .references import Kind

_OURS = ("app.kubernetes.io/managed-by", "devloop")


@dataclass(frozen=True, slots=True)
class Leading:
    """A Service that leads to a workload."""

    name: str
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A workload that nothing but people owns."""

    kind: Kind
    name: str
    ready: int | None
    """Pods that are ready, and how many are wanted; None where that is no question (a CronJob)."""
    wanted: int | None
    services: tuple[Leading, ...]

    @property
    def reference(self) -> str:
        """As people write it: "deployment/web"."""
        return f"{self.kind.name.lower()}/{self.name}"


@dataclass(frozen=True, slots=True)
class Inventory:
    """Workloads by kind, as `references.WORKLOADS` has them, then by name."""

    entries: tuple[Entry, ...]
    unseen: tuple[str, ...]
    """Kinds, in the plural, that this user may not list."""


async def inventory(cluster: Cluster) -> Inventory:
    """List a namespace. What may not be listed is left out; AbsentError if that is everything. Raises RemoteError."""
    asked = (*kinds.WORKLOADS, kinds.SERVICE)
    unseen: list[str] = []
    refused: list[AbsentError] = []

    async def items(kind: Kind) -> tuple[Object, ...]:
        try:
            return (await cluster.listing(kind)).items
        except AbsentError as problem:
            unseen.append(kind.plural)
            refused.append(problem)
            return ()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(items(kind)) for kind in asked]
    except BaseExceptionGroup as problems:
        raise problems.exceptions[0] from None
    if len(refused) == len(asked):
        raise refused[0]
    *found, services = (task.result() for task in tasks)
    entries = [
        Entry(kind, str(item["metadata"]["name"]), *_count(kind, item), _leading(services, _labels(kind, item)))
        for kind, several in zip(kinds.WORKLOADS, found, strict=True)
        for item in sorted(several, key=lambda each: str(each["metadata"]["name"]))
        if not _controlled(item) and not _ours(item)
    ]
    return Inventory(tuple(entries), tuple(sorted(unseen)))


def _count(kind: Kind, item: Object) -> tuple[int | None, int | None]:
    """(ready, wanted), from the fields of each kind's status."""
    spec: Mapping[str, Any] = item["spec"]
    status: Mapping[str, Any] = item.get("status") or {}
    if kind is kinds.CRON_JOB:
        return None, None
    if kind is kinds.POD:
        return int(is_ready(item)), 1
    if kind is kinds.DAEMON_SET:
        return status.get("numberReady", 0), status.get("desiredNumberScheduled", 0)
    if kind is kinds.JOB:
        # Once it has ended, none is wanted.
        return status.get("ready", 0), spec.get("parallelism", 1) if status.get("active") else 0
    return status.get("readyReplicas", 0), spec.get("replicas", 1)


def _labels(kind: Kind, item: Object) -> Mapping[str, str]:
    """Those of its pods."""
    if kind is kinds.POD:
        metadata = item["metadata"]
    else:
        spec = item["spec"]
        template = (spec["jobTemplate"]["spec"] if kind is kinds.CRON_JOB else spec)["template"]
        metadata = template.get("metadata") or {}
    return metadata.get("labels") or {}


def _leading(services: tuple[Object, ...], labels: Mapping[str, str]) -> tuple[Leading, ...]:
    """The Services whose selector these labels match; one without a selector leads nowhere by itself.

    Those that devloop has made stand behind another one, whose name people use.
    """
    found = []
    for item in services:
        each = objects.owners(dict(item))  # while its traffic is taken, its selector is the agent's
        selector: Mapping[str, str] = each["spec"].get("selector") or {}
        if selector and selector.items() <= labels.items() and not _ours(each):
            # Once, if it is there for TCP and UDP.
            ports = tuple(dict.fromkeys(int(port["port"]) for port in each["spec"].get("ports") or []))
            found.append(Leading(str(each["metadata"]["name"]), ports))
    return tuple(sorted(found, key=lambda each: each.name))


def _controlled(item: Object) -> bool:
    return any(each.get("controller") for each in item["metadata"].get("ownerReferences") or [])


def _ours(item: Object) -> bool:
    key, value = _OURS
    return (item["metadata"].get("labels") or {}).get(key) == value
